"""`rose export`: a model as a file for other programs."""

from __future__ import annotations

from rich.console import Console

from rose.commands import terminal
from rose.files import beside, expand
from rose.model.ship.export import export_gguf
from rose.recipe.tools import Export
from rose.wording import size


def run(spec: Export, console: Console) -> None:
    folder = expand(spec.folder)
    base = folder.with_suffix("") if folder.is_file() else folder
    output = spec.output or beside(base, f"-{spec.type}.gguf")
    with terminal.bar(console, "Writing") as follow:
        exported = export_gguf(
            str(folder),
            output,
            spec.type,
            lambda share, name: follow(share, name[:30]),
            embeddings=spec.embeddings,
            announce=terminal.say,
        )
        follow(1.0, "Written")
    terminal.say(f"Written to {output}, {size(exported.size)}; tokenizer from {exported.vocabulary}")
    terminal.say(*exported.remarks(spec.type))
