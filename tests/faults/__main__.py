"""Kills every command many times, and says whether each came to the same end: minutes.

    python -m tests.faults [--kills 12] [--seed 0] [COMMAND ...]

`--kills` is for each command. Exit status 1 where one left something else than an undisturbed run leaves.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults.kills import COMMANDS, kill


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=f"{', '.join(COMMANDS)} (default: all)")
    parser.add_argument("--kills", type=int, default=12, help="of each command (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    options = parser.parse_args()
    table = Table("command", "kills", "runs that ended", "same result", "left behind")
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for command in options.commands or COMMANDS:
            found = kill(command, Path(folder) / command, options.kills, options.seed)
            table.add_row(command, *map(str, (found.kills, found.ended, found.same)), ", ".join(found.leftovers))
            failed |= found.same < found.ended or bool(found.leftovers)
    Console().print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
