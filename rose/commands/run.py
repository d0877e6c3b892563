"""`rose run`: what a recipe says, step by step; each step takes what the one before it has written."""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console

import rose
from rose.commands import terminal
from rose.commands.console import Output
from rose.output import check_output
from rose.recipe.file import PREVIOUS, Recipe
from rose.recipe.spec import Spec


def run(recipe: Recipe, console: Console) -> int:
    """Does every step; returns the exit status of the last one, or of the first that fails."""
    *before, last = recipe.steps
    if not before:
        return _do(last, console)
    output: Path = last.output  # type: ignore[attr-defined]
    check_output(output)
    with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=f".{output.name}-") as between:
        previous: Path | None = None
        for number, step in enumerate(recipe.steps, 1):
            place = output if step is last else Path(between) / f"{number}-{step.run}"
            terminal.say(f"Step {number} of {len(recipe.steps)}: {step.run}")
            if status := _do(_placed(step, previous, place), console):
                return status
            previous = place
    recipe.write(output)
    return 0


def run_recipe(recipe: Recipe) -> rose.RunReport | None:
    """As `run`, for Python; returns the written report, None without one.

    Raises:
        RoseError: it cannot be done.
    """
    run(recipe, Output(stderr=True, highlight=False))
    output = getattr(recipe.steps[-1], "output", None)
    return rose.RunReport.load(output) if output and (output / "report.json").exists() else None


def _do(step: Spec, console: Console) -> int:
    command: Any = import_module(f"rose.commands.{step.run.partition(' ')[0]}")
    return command.run(step, console) or 0


def _placed(step: Spec, previous: Path | None, output: Path) -> Spec:
    """The step with the folders of this run: what the step before it has written, and where it writes."""
    fills = {name: str(previous) for name in ("model", "pruned") if getattr(step, name, None) == PREVIOUS}
    return step.changed(output=output, **fills)
