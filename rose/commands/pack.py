"""`rose pack` and `rose unpack`: a checkpoint folder without the room that zeros take, and back, to the bit."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from rose.commands import terminal
from rose.files import beside, expand
from rose.model.load.stored import INDEX, unused_files
from rose.model.ship.packing import PackedSize, pack_folder, unpack_folder
from rose.output import check_output
from rose.wording import size


def add_parser(commands: Any) -> None:
    for name, says, run in (
        ("pack", "write a pruned model without the room that its zeros take; `rose` loads it as any other", _pack),
        ("unpack", "write plain weights of a packed model, equal to the bit, for any program", _unpack),
    ):
        parser = commands.add_parser(name, help=says)
        parser.add_argument("folder", metavar="FOLDER", help=f"of the model to {name}")
        parser.add_argument("--output", type=expand, metavar="FOLDER", help=f"default: FOLDER-{name}ed")
        parser.set_defaults(run=run)


def _pack(options: argparse.Namespace, console: Console) -> None:
    packed, output = _written(options, console, "Packing", "-packed", pack_folder)
    terminal.say(f"Written to {output}: {size(packed.stored)} instead of {size(packed.plain)}")
    terminal.say(*packed.remarks())
    if unused := unused_files(expand(options.folder)):
        terminal.say(f"Left out, as {INDEX} does not name them: {', '.join(unused)}")


def _unpack(options: argparse.Namespace, console: Console) -> None:
    unpacked, output = _written(options, console, "Unpacking", "-unpacked", unpack_folder)
    terminal.say(f"Written to {output}: {size(unpacked.plain)}")
    terminal.say(f"Every tensor was read back and is equal to what was packed; digest {unpacked.digest[:16]}")


def _written(
    options: argparse.Namespace, console: Console, doing: str, ending: str, write: Callable[..., PackedSize]
) -> tuple[PackedSize, Path]:
    folder = expand(options.folder)
    output = options.output or beside(folder, ending)
    check_output(output)
    with terminal.bar(console, doing) as follow:
        written = write(folder, output, lambda share, file: follow(share, f"{doing} {file}"))
        follow(1.0)
    return written, output
