"""The commands; `shared` and `terminal` serve several.

A command is a function with the command's name. It takes its specification of `rose.recipe` and a console for progress;
results go to standard output.
"""

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

from rich.console import Console

MODULES = {
    "changing": ("prune", "slim", "tune"),
    "measuring": ("analyze", "compare", "damage", "evaluate", "check"),
    "tools": ("models", "inspect", "export", "report", "app"),
}  # other commands have a module of the same name


def command(run: str) -> Callable[..., int | None]:
    """The function of this command, imported on demand with torch and transformers.

    It returns the exit status, None for 0.
    """
    name, _, second = run.partition(" ")
    module = next((module for module, names in MODULES.items() if name in names), name)
    return getattr(import_module(f"rose.commands.{module}"), second or name)


class Output(Console):
    """Standard output, or error, without markup. A broken pipe, as in `rose models | head`, drops the rest of the
    output and keeps the exit status."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)  # with emoji, N:M: would become a picture

    def on_broken_pipe(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
