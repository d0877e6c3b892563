"""The settings of several runs side by side, in the recipe's order and by its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rose.recipe.spec import SpecField
from rose.recipe.tools import SPECS

ABSENT = "–"


def settings_beside(
    recipes: Sequence[Mapping[str, Any]], *, only_different: bool = False
) -> list[tuple[SpecField, list[str]]]:
    """Each declared field that a recipe has, and its value in every recipe as text.

    Args:
        recipes: `RunReport.recipe` of each run: "run" and the values of its fields.
        only_different: leave out fields whose values are all the same.

    Returns:
        Fields in declared order; "–" stands for a value that a recipe does not have.
    """
    runs = {str(recipe.get("run")) for recipe in recipes}
    specs = [spec for name, spec in SPECS.items() if name in runs] or list(SPECS.values())
    fields = {name: field for spec in reversed(specs) for name, field in spec.fields().items()}
    rows = [
        (fields[name], [setting_text(recipe.get(name)) for recipe in recipes])
        for name in dict.fromkeys(name for spec in specs for name in spec.fields())
        if fields[name].extra["kept"] and any(recipe.get(name) is not None for recipe in recipes)
    ]
    return [row for row in rows if not only_different or len(set(row[1])) > 1]


def setting_text(value: Any) -> str:
    """A value of a recipe for people: "0.7", "yes", "a, b", "rank_ratio=0.3"; "–" for None."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={setting_text(each)}" for name, each in value.items()) or ABSENT
    if isinstance(value, list | tuple):
        return ", ".join(map(setting_text, value)) or ABSENT
    return ABSENT if value is None else f"{value:g}" if isinstance(value, float) else str(value)
