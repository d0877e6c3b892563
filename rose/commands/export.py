"""`rose export`: a model as a file for other programs."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from rose.commands import terminal
from rose.files import beside, expand
from rose.model.ship.blocks import TYPES
from rose.model.ship.export import export_gguf
from rose.wording import size


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("export", help="write a model as a GGUF file, which llama.cpp runs; zeros stay zeros")
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="of the model, packed or not; or a packaged name or .gguf file")
    add("--to", choices=("gguf",), default="gguf", help="the format (default: %(default)s)")
    says = f"number format of the layers' weights: {', '.join(TYPES)} (default: %(default)s); others would lose zeros"
    add("--type", default="f16", help=says)
    add("--output", type=expand, metavar="FILE.gguf", help="default: FOLDER-TYPE.gguf")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> None:
    folder = expand(options.folder)
    named = folder.with_suffix("") if folder.is_file() else folder
    output = options.output or beside(named, f"-{options.type}.gguf")
    with terminal.bar(console, "Writing") as follow:
        made = export_gguf(str(folder), output, options.type, lambda share, what: follow(share, what[:30]))
        follow(1.0, "Written")
    terminal.say(f"Written to {output}, {size(made.size)}; tokenizer from {made.vocabulary}")
    terminal.say(*made.remarks(options.type))
