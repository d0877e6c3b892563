"""`rose pack` and `rose unpack`: a checkpoint folder without the room that zeros take, and back, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from rose.commands import terminal
from rose.files import beside, expand
from rose.model.load.stored import INDEX, unused_files
from rose.model.ship.packing import PackedSize, pack_folder, unpack_folder
from rose.output import check_output
from rose.recipe.tools import Pack, Unpack
from rose.wording import size


def run(spec: Pack | Unpack, console: Console) -> None:
    """Packs or unpacks, as the specification is of."""
    _pack(spec, console) if isinstance(spec, Pack) else _unpack(spec, console)


def _pack(spec: Pack, console: Console) -> None:
    packed, output = _written(spec, console, "Packing", "-packed", pack_folder)
    terminal.say(f"Written to {output}: {size(packed.stored)} instead of {size(packed.plain)}")
    terminal.say(*packed.remarks())
    if unused := unused_files(expand(spec.folder)):
        terminal.say(f"Left out, as {INDEX} does not name them: {', '.join(unused)}")


def _unpack(spec: Unpack, console: Console) -> None:
    unpacked, output = _written(spec, console, "Unpacking", "-unpacked", unpack_folder)
    terminal.say(f"Written to {output}: {size(unpacked.plain)}")
    terminal.say(f"Every tensor was read back and is equal to what was packed; digest {unpacked.digest[:16]}")


def _written(
    spec: Pack | Unpack, console: Console, doing: str, ending: str, write: Callable[..., PackedSize]
) -> tuple[PackedSize, Path]:
    folder = expand(spec.folder)
    output = spec.output or beside(folder, ending)
    check_output(output)
    with terminal.bar(console, doing) as follow:
        written = write(folder, output, lambda share, file: follow(share, f"{doing} {file}"))
        follow(1.0)
    return written, output
