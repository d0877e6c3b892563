"""What was found of damage: records, their table, what it says of errors, and the folder that keeps it.

How it is measured is in `rose.model.measure.damage`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch

from rose import verdicts
from rose.model.measure.folder import MeasurementFolder
from rose.model.measure.perplexity import perplexity_of
from rose.model.run.damages import WHOLE, DamageRecord
from rose.rows import finite, records_table
from rose.verdicts import Interval

# What could tell damage in advance; columns of the table.
PREDICTORS = ("relative_error", "held_out_error", "output_error", "drift")
CLEAR = 2.0  # standard errors above 0 from which a damage is taken for real
GAP = 0.3  # a layer is an outlier where the rank of its damage is above that of its error by this share of all


@dataclass(frozen=True, eq=False)
class DamageReport:
    """What a measurement of damage has found.

    Attributes:
        units: one row per unit, columns as in `DamageRecord`.
        summary: settings; the loss without a change; the sum of all changes of loss beside that of all units at once;
            how well error predicts damage; how far the numbers can be trusted.
    """

    units: pd.DataFrame
    summary: dict[str, Any]

    @classmethod
    def from_records(cls, records: Sequence[DamageRecord], **settings: Any) -> DamageReport:
        """Builds the table, and adds what follows from it to the settings."""
        table = records_table([record for record in records if record.unit != WHOLE], DamageRecord)
        whole = next((record for record in records if record.unit == WHOLE), None)
        error = math.nan if whole is None else whole.standard_error
        base = None if table.empty else float(table["loss"].iloc[0] - table["delta_loss"].iloc[0])
        told = {name: rank_correlation(table, name) for name in PREDICTORS}
        found: dict[str, Any] = {
            "base_loss": base,
            "base_perplexity": None if base is None else perplexity_of(torch.tensor([base], dtype=torch.float32)),
            "units_measured": len(table),
            "sum_of_damages": float(table["damage"].sum()),
            "together": None if whole is None else whole.damage,
            "together_standard_error": error if math.isfinite(error) else None,
            "correlation": {name: one and one.value for name, one in told.items()},
            "correlation_interval": {name: one and [one.low, one.high] for name, one in told.items()},
            "outliers": list(outliers(table)["unit"]),
            "cautions": verdicts.cautions(table, "unit"),
        }
        return cls(table, {**settings, **found})


def rank_correlation(table: pd.DataFrame, predictor: str = "held_out_error") -> Interval | None:
    """Spearman's ρ between a predictor and damage over the units of a table; see `rose.verdicts.rank_correlation`."""
    return verdicts.rank_correlation(table[predictor], table["damage"])


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """How well each of `PREDICTORS` ranks the units by damage, Spearman's ρ with its interval: over all, within each
    projection, within each third of the depth, and within decoder blocks (the mean of them). `group` and `name` say
    which; a cell is None where there is none."""
    groups: list[tuple[str, str, pd.DataFrame]] = [("all", "", table)]
    if table["projection"].ne("").any():
        groups += [("projection", str(name), rows) for name, rows in table.groupby("projection", sort=False)]
    depth = int(table["block_index"].max()) + 1
    for part in range(3):
        low, high = part * depth // 3, (part + 1) * depth // 3
        rows = table[table["block_index"].between(low, high - 1)]
        which = f"decoder blocks {low} to {high - 1}" if high - low > 1 else f"decoder block {low}"
        groups.append(("depth", which, rows))
    rows_of = [
        {"group": group, "name": name, "units": len(rows), **{p: rank_correlation(rows, p) for p in PREDICTORS}}
        for group, name, rows in groups
        if len(rows)
    ]
    within = [rows for _, rows in table.groupby("block_index") if len(rows) > 2]
    if within:
        found = {p: [rank_correlation(rows, p) for rows in within] for p in PREDICTORS}
        means = {p: _mean_correlation([one.value for one in ones if one]) for p, ones in found.items()}
        rows_of.append({"group": "within a decoder block", "name": "mean", "units": len(within), **means})
    return pd.DataFrame(rows_of)


def _mean_correlation(values: list[float]) -> Interval | None:
    """The mean with its interval, which ends where correlations do."""
    found = verdicts.mean_interval(values)
    return found and replace(found, low=max(found.low, -1.0), high=min(found.high, 1.0))


def outliers(table: pd.DataFrame, predictor: str = "held_out_error", count: int = 5) -> pd.DataFrame:
    """Units with a small error and a large damage: the rank of their damage is above that of their error by at least
    `GAP` of all ranks, and the damage by `CLEAR` standard errors above 0, which a single window does not have. The
    widest gap, column `gap`, first."""
    cost = table["damage"]
    clear = cost > CLEAR * table["standard_error"]
    gap = (cost.rank() - table[predictor].rank()) / max(len(table) - 1, 1)
    found = table.assign(gap=gap)[clear & (gap >= GAP)]
    return found.sort_values("gap", ascending=False, kind="stable").head(count).reset_index(drop=True)


class DamageFolder(MeasurementFolder[DamageRecord]):
    """The folder of a measurement of damage: a row per unit, and at the end one for all units at once."""

    kind = DamageRecord
    key = ("unit",)
    holds = "measurement of damage", "damages"
    summaries = ("summary.json",)

    def summarize(self, settings: dict[str, Any]) -> dict[str, str]:
        summary = DamageReport.from_records(self.rows, **settings, embedding_norms=self.norms).summary
        return {"summary.json": json.dumps(finite(summary), indent=1)}
