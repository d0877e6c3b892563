"""Command line: python -m rose COMMAND; `rose --help` lists the commands.

Exit status: 0 done; 1 `check` found a fault; 2 bad input or too little memory, in one line; 70 an unexpected failure,
with its traceback; 130 cancelled. `rose.recipe` declares every option. Commands are imported, with torch and
transformers, only after their options are checked.
"""

import argparse
import io
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from rose import interrupt
from rose.commands import Output, command
from rose.environment import launched_place, says_versions
from rose.errors import RoseError, is_out_of_memory
from rose.plugins import load_plugins
from rose.recipe.file import Recipe
from rose.recipe.tools import COMMANDS, RunRecipe
from rose.spec import Spec

UNFORESEEN = 70  # as in sysexits.h: not 1, which is a verdict of `check`
DIVIDED = ("analyze", "prune", "slim", "tune")  # commands on which the processes of a launcher work together


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    rank, processes = launched_place()
    # Progress and remarks; results go to standard output.
    console = Output(stderr=True, quiet=rank > 0, highlight=False)
    if isinstance(sys.stdout, io.TextIOWrapper):  # its encoding may lack "…" or bytes of a folder's name
        sys.stdout.reconfigure(errors="backslashreplace")
    name = "rose" if processes == 1 else f"rose, process {rank + 1} of {processes}"
    asked_for: Spec | None = None
    try:
        interrupt.unguard()
        load_plugins()  # first, because they add methods and orders
        spec, unknown = _read(list(sys.argv[1:] if arguments is None else arguments))
        if isinstance(spec, RunRecipe):
            spec = Recipe.read(spec.recipe, *spec.changes, is_placed=True).spec
        asked_for = spec
        return _run(spec, unknown, console, rank) or 0
    except RoseError as problem:
        return _refuse(name, str(problem))
    except KeyboardInterrupt:
        folder = getattr(asked_for, "checkpoint", None)
        if folder is None and asked_for is not None and asked_for.run in ("compare", "damage"):
            folder = getattr(asked_for, "output", None)
        resumes = folder and Path(folder).exists()
        left = f"the same command resumes from {folder}" if resumes else "nothing was written"
        console.print(f"rose: cancelled; {left}", soft_wrap=True)
        return interrupt.CANCELLED
    except Exception as problem:
        if not is_out_of_memory(problem):
            traceback.print_exc()
            return UNFORESEEN
        less = "fewer --samples, --dtype bfloat16 and --stream need less, where the command has them"
        return _refuse(name, f"There was not enough memory; {less}.")


def _run(spec: Spec, unknown: Sequence[str], console: Output, rank: int) -> int | None:
    """Imports the command and does its work; of several processes only the first prints results."""
    work = command(spec.run)
    from rose.model.workers import choose_gpu, process_group

    choose_gpu()
    silence = redirect_stdout(io.StringIO()) if rank > 0 else nullcontext()
    with process_group() if spec.run in DIVIDED else nullcontext(), silence:
        return work(spec, console, *([unknown] if spec.run == "app" else []))


def _refuse(name: str, why: str) -> int:
    Output(stderr=True, highlight=False).print(f"{name}: {why}", style="red", soft_wrap=True)
    return 2


def _read(arguments: list[str]) -> tuple[Spec, list[str]]:
    """The checked specification, and unknown options for `streamlit run`.

    Raises RoseError for bad options and for empty values, which as paths would be the working folder.
    """
    options, unknown = _parser(arguments).parse_known_args(arguments)
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if not argument or (argument.startswith("--") and argument.endswith("=")):
            name = argument.rstrip("=") or before
            raise RoseError(f"The value after {name} is empty; give one, or check the variable there.")
    if unknown and options.command.run != "app":
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    values = {name: value for name, value in vars(options).items() if name in options.command.fields()}
    return options.command(**values), unknown


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rose", description="One-shot pruning of language models, and its analysis.")
    parser.add_argument("--version", action="version", version=says_versions() if "--version" in arguments else "")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    diffuse: Any = None
    for name, spec in COMMANDS.items():
        _, _, second = name.partition(" ")
        if second and diffuse is None:
            summary = "Prune a diffusion model, and draw with it."
            group = commands.add_parser("diffuse", help=summary, description=summary)
            diffuse = group.add_subparsers(required=True, metavar="prune | sample")
        summary = str(spec.__doc__)
        into = diffuse if second else commands
        subparser = into.add_parser(second or name, help=summary, description=summary)
        subparser.set_defaults(command=spec, parser=subparser)
        if not arguments or name.partition(" ")[0] in arguments:  # options of other commands are not needed
            spec.add_options(subparser)
    return parser
