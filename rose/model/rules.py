"""How layers are to share the sparsity, as people write it; needs no torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from rose.errors import RoseError
from rose.files import expand
from rose.layer.pattern import Pattern
from rose.model.defaults import ALLOCATIONS, BY_DAMAGE, DENSITY_SPREAD

if TYPE_CHECKING:
    from rose.model.run.damages import DamageRecord

DAMAGE_SPREAD = 0.15  # how far a layer may be from the target: beyond, the measurement at one sparsity says little


class Allocation(NamedTuple):
    """`text`: as given; `rule`: one of `ALLOCATIONS`, or `BY_DAMAGE`; `spread`: α of "sensitivity"; `folder`: of
    measured damages."""

    text: str
    rule: str
    spread: float = DENSITY_SPREAD
    folder: str = ""

    def damages(self) -> list[DamageRecord]:
        """Raises RoseError where none are there."""
        from rose.model.run.damages import read_damages  # with pandas, which nothing else here needs

        return read_damages(expand(self.folder) / "rows.csv")

    def identity(self) -> str | None:
        """Identifies the damages; None where the rule does without."""
        from rose.tensor_files import digest

        return digest({}, {"damages": repr(self.damages())}) if self.rule == BY_DAMAGE else None

    def check(self, pattern: Pattern) -> None:
        """Raises RoseError for damages that are not there or tell little of this ratio, or where N:M leaves no room."""
        if self.rule != "uniform" and pattern.is_grouped:
            raise RoseError(f'{pattern} fixes the ratio of every layer; use a plain ratio, or allocation "uniform".')
        if self.rule == BY_DAMAGE:
            from rose.model.run.damages import WHOLE, are_restored

            known = [one for one in self.damages() if one.unit != WHOLE]
            if are_restored(expand(self.folder)):
                raise RoseError(
                    f"{self.folder} says what a pruned model gains by layers given back, not what pruning costs; "
                    "measure damages without --restore."
                )
            weights = sum(one.weights for one in known)
            measured = sum(one.sparsity * one.weights for one in known) / weights if weights else pattern.ratio
            if abs(measured - pattern.ratio) > DAMAGE_SPREAD:
                raise RoseError(
                    f"The damages in {self.folder} were measured at a sparsity of {measured:.2g}, which says little of "
                    f"{pattern}; measure them within {DAMAGE_SPREAD:g} of it."
                )


def parse_allocation(text: str) -> Allocation:
    """Reads "uniform", "owl", "sensitivity", "sensitivity:ALPHA" such as "sensitivity:0.05", or "damage:FOLDER"; raises
    RoseError for anything else."""
    rule, colon, number = text.partition(":")
    if rule == BY_DAMAGE:
        if not number.strip():
            raise RoseError("Allocation by damage needs a folder that rose damage has written: damage:FOLDER.")
        return Allocation(text, rule, folder=number.strip())
    if rule not in ALLOCATIONS or (colon and rule != "sensitivity"):
        raise RoseError(
            f"The allocation must be one of {', '.join(ALLOCATIONS)}, sensitivity:ALPHA such as sensitivity:0.05, or "
            f"damage:FOLDER, not {text!r}."
        )
    if not colon:
        return Allocation(text, rule)
    try:
        spread = float(number)
    except ValueError:
        spread = math.nan
    if not 0 <= spread <= 1:  # also catches NaN
        raise RoseError(f"The α of sensitivity must be a number from 0 to 1, not {number!r}.")
    return Allocation(text, rule, spread)
