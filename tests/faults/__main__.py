"""Kills every command many times, and says whether each came to the same end: minutes.

    python -m tests.faults [--kills 12] [--seed 0] [--json] [COMMAND[:KILLS] ...]

`--kills` is for each command that names no number of its own. Exit status 1 where one left something else than an
undisturbed run leaves.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults.kills import COMMANDS, kill, read_ahead


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("commands", nargs="*", metavar="COMMAND[:KILLS]", help=f"{', '.join(COMMANDS)} (default: all)")
    parser.add_argument("--kills", type=int, default=12, help="of each command (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        read_ahead(Path(folder) / "ahead")
        outcomes = [
            kill(name, Path(folder) / name, int(own or options.kills), options.seed)
            for name, _, own in (command.partition(":") for command in options.commands or COMMANDS)
        ]
    if options.json:
        print(json.dumps([dataclasses.asdict(found) for found in outcomes]))
    else:
        table = Table("command", "kills", "runs that ended", "same result", "left behind")
        for found in outcomes:
            table.add_row(found.command, *map(str, (found.kills, found.ended, found.same)), "\n".join(found.leftovers))
        Console().print(table)
    return int(any(found.same < found.ended or found.leftovers for found in outcomes))


if __name__ == "__main__":
    sys.exit(main())
