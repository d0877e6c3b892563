"""Command line: python -m rose COMMAND; `rose --help` lists the commands.

Exit status: 0 done, 1 `check` has found something wrong, 2 bad input or too little
memory (one line that says what and what to do), 70 a failure that nobody has foreseen (a traceback), 130 cancelled.
The commands are in `rose.commands`, one file each.
"""

from __future__ import annotations

import argparse
import io
import shlex
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from typing import Any

import rose
from rose import interrupt
from rose.commands import COMMANDS
from rose.commands.terminal import Output
from rose.environment import says_versions
from rose.errors import is_out_of_memory
from rose.model.workers import choose_gpu, launched_place, process_group

UNFORESEEN = 70  # as in sysexits.h: not 1, which is a verdict of `check`


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    rank, processes = launched_place()
    # Progress and remarks; results go to standard output.
    console = Output(stderr=True, quiet=rank > 0, highlight=False)
    if isinstance(sys.stdout, io.TextIOWrapper):  # which may not write "…", nor bytes in the name of a folder
        sys.stdout.reconfigure(errors="backslashreplace")
    name = "rose" if processes == 1 else f"rose, process {rank + 1} of {processes}"
    options = argparse.Namespace()
    try:
        interrupt.unguard()
        choose_gpu()
        rose.load_plugins()  # first, because help texts list methods and orders
        options = _read(arguments)
        options.command = shlex.join(["rose", *(sys.argv[1:] if arguments is None else arguments)])  # for the report
        silence = redirect_stdout(io.StringIO()) if rank > 0 else nullcontext()  # the first process prints the results
        with process_group() if options.divided else nullcontext(), silence:
            return options.run(options, console) or 0
    except rose.RoseError as problem:
        return _refuse(name, str(problem))
    except KeyboardInterrupt:
        kept = getattr(options, "checkpoint", None) or getattr(options, "rows", None)
        left = f"the same command resumes from {kept}" if kept and kept.exists() else "nothing was written"
        console.print(f"rose: cancelled; {left}", soft_wrap=True)
        return interrupt.CANCELLED
    except Exception as problem:
        if not is_out_of_memory(problem):
            traceback.print_exc()
            return UNFORESEEN
        less = "fewer --samples, --dtype bfloat16 and --stream need less, where the command has them"
        return _refuse(name, f"There was not enough memory; {less}.")


def _refuse(name: str, why: str) -> int:
    Output(stderr=True, highlight=False).print(f"{name}: {why}", style="red", soft_wrap=True)
    return 2


class _Commands(argparse._SubParsersAction):
    """The help of each command begins with what the list of commands says of it; its errors show its usage."""

    def add_parser(self, name: str, **more: Any) -> Any:
        says = more["help"]
        made = super().add_parser(name, description=f"{says[0].upper()}{says[1:]}.", **more)
        made.set_defaults(parser=made)
        return made


def _read(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; those of `streamlit run` as `more`.

    Raises RoseError for one that is empty: as a path it would be the working folder.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, more = _parser().parse_known_args(given)
    for before, one in zip(["", *given], given, strict=False):
        if not one or (one.startswith("--") and one.endswith("=")):
            name = one.rstrip("=") or before
            raise rose.RoseError(f"What is given after {name} is empty; name something, or check the variable there.")
    if more and not options.takes_more:
        options.parser.error(f"unrecognized arguments: {' '.join(more)}")
    options.more = more
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rose", description="One-shot pruning of language models, and its analysis.")
    parser.add_argument("--version", action="version", version=says_versions())
    # Whether the processes of a launcher work on one thing together; whether another program's options may be given.
    parser.set_defaults(divided=False, takes_more=False)
    subparsers = parser.add_subparsers(action=_Commands, required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser
