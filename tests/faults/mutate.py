"""Reads files that were changed at random, and lists those that were not refused as they should be.

    python -m tests.faults.mutate [--cases 2000] [--first 0] [--seed 0] [--json] [READER ...]

A changed file must be refused in one sentence, or be read as the same thing as before; a reader names the changes after
which something else may be read. Exit status 1 where a case did otherwise.
"""

import argparse
import dataclasses
import gc
import json
import sys

from tests.faults import records, weights
from tests.faults.mutations import run

READERS = {reader.name: reader for reader in [*weights.READERS, *records.READERS]}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.mutate", description=__doc__)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"{', '.join(READERS)} (default: all)")
    parser.add_argument("--cases", type=int, default=2000, help="of each reader (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the changes (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    options = parser.parse_args()
    gc.freeze()  # or collections in each child would copy what is here
    cases = range(options.first, options.first + options.cases)
    outcomes = [run(READERS[name], cases, options.seed) for name in options.readers or READERS]
    if options.json:
        print(json.dumps([dataclasses.asdict(outcome) for outcome in outcomes]))
    for outcome in [] if options.json else outcomes:
        print(outcome.reader, dict(outcome.kinds))
        for fault in outcome.faults[:30]:
            print(f"  {fault.case} {fault.change}: {fault.kind}, {fault.detail[-1000:]}")
    return int(any(outcome.faults for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
