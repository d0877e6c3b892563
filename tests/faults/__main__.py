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
            kill(name, Path(folder) / name, int(kills or options.kills), options.seed)
            for name, _, kills in (command.partition(":") for command in options.commands or COMMANDS)
        ]
    if options.json:
        print(json.dumps([dataclasses.asdict(outcome) for outcome in outcomes]))
    else:
        table = Table("command", "kills", "runs that ended", "same result", "left behind")
        for outcome in outcomes:
            counts = (outcome.kills, outcome.ended, outcome.same)
            table.add_row(outcome.command, *map(str, counts), "\n".join(outcome.leftovers))
        Console().print(table)
    return int(any(outcome.same < outcome.ended or outcome.leftovers for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
