"""How layers share the sparsity, as users write it; needs no torch."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rose.errors import RoseError
from rose.layer.pattern import Pattern
from rose.model.defaults import ALLOCATIONS, BY_DAMAGE, DENSITY_SPREAD

if TYPE_CHECKING:
    from rose.rows import DamageRecord

WHOLE = "*"  # the unit of the damage of all units at once
DAMAGE_SPREAD = 0.15  # largest distance from the target: beyond it, the measurement at one sparsity says little


@dataclass(frozen=True)
class Allocation:
    """`text` as written; `rule`, of `ALLOCATIONS` or `BY_DAMAGE`; `spread`, α of "sensitivity"; `folder` of
    measured damages."""

    text: str
    rule: str
    spread: float = DENSITY_SPREAD
    folder: str = ""

    @property
    def place(self) -> Path:
        return Path(os.path.expanduser(self.folder))

    @cached_property
    def damages(self) -> list[DamageRecord]:
        """The records in the folder, read once; raises RoseError without any."""
        from rose.rows import read_damages  # with pandas, which nothing else here needs

        return read_damages(self.place / "rows.csv")

    def identity(self) -> str | None:
        from rose.tensor_files import digest

        return digest({}, {"damages": repr(self.damages)}) if self.rule == BY_DAMAGE else None

    def check(self, pattern: Pattern) -> None:
        """Raises RoseError for missing damages or a far sparsity, and for N:M, which leaves no room."""
        if self.rule != "uniform" and pattern.is_grouped:
            raise RoseError(f'{pattern} fixes the ratio of every layer; use a plain ratio, or allocation "uniform".')
        if self.rule != BY_DAMAGE:
            return
        records = [record for record in self.damages if record.unit != WHOLE]
        settings: Any = {}
        with suppress(OSError, ValueError, RecursionError):
            settings = json.loads((self.place / "settings.json").read_text())
        if isinstance(settings, dict) and settings.get("restore"):
            raise RoseError(
                f"{self.folder} says what a pruned model gains by layers given back, not what pruning costs; "
                "measure damages without --restore."
            )
        weights = sum(record.weights for record in records)
        measured = sum(record.sparsity * record.weights for record in records) / weights if weights else pattern.ratio
        if abs(measured - pattern.ratio) > DAMAGE_SPREAD:
            raise RoseError(
                f"The damages in {self.folder} were measured at a sparsity of {measured:.2g}, which says little of "
                f"{pattern}; measure them within {DAMAGE_SPREAD:g} of it."
            )


def parse_allocation(text: str) -> Allocation:
    """Reads "uniform", "owl", "sensitivity", "sensitivity:ALPHA" such as "sensitivity:0.05", or "damage:FOLDER"."""
    rule, colon, value = text.partition(":")
    if rule == BY_DAMAGE:
        if not value.strip():
            raise RoseError("Allocation by damage needs a folder that rose damage has written: damage:FOLDER.")
        return Allocation(text, rule, folder=value.strip())
    if rule not in ALLOCATIONS or (colon and rule != "sensitivity"):
        raise RoseError(
            f"The allocation must be one of {', '.join(ALLOCATIONS)}, sensitivity:ALPHA such as sensitivity:0.05, or "
            f"damage:FOLDER, not {text!r}."
        )
    if not colon:
        return Allocation(text, rule)
    spread = math.nan
    with suppress(ValueError):
        spread = float(value)
    if not 0 <= spread <= 1:  # also catches NaN
        raise RoseError(f"The α of sensitivity must be a number from 0 to 1, not {value!r}.")
    return Allocation(text, rule, spread)
