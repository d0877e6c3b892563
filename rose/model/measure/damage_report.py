"""The report of measured damage: its table, its relation to errors, and its folder; see `rose.model.measure.damage`."""

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
from rose.model.rules import WHOLE
from rose.model.run.damages import DamageRecord
from rose.rows import finite, records_table
from rose.verdicts import Interval

PREDICTORS = ("relative_error", "held_out_error", "output_error", "drift")  # columns that could predict damage
CLEAR = 2.0  # standard errors above 0 of a clear damage
GAP = 0.3  # an outlier's rank of damage is above its rank of error by this share of all


@dataclass(frozen=True, eq=False)
class DamageReport:
    """The outcome of a measurement of damage.

    Attributes:
        units: one row per unit, columns as in `DamageRecord`.
        summary: settings; the loss without a change; the sum of all damages, and that of all units at once; how well
            errors predict damage; limits of trust.
    """

    units: pd.DataFrame
    summary: dict[str, Any]

    @classmethod
    def from_records(cls, records: Sequence[DamageRecord], **settings: Any) -> DamageReport:
        """Builds the table, and adds its results to the settings."""
        table = records_table([record for record in records if record.unit != WHOLE], DamageRecord)
        whole = next((record for record in records if record.unit == WHOLE), None)
        error = math.nan if whole is None else whole.standard_error
        base = None if table.empty else float(table["loss"].iloc[0] - table["delta_loss"].iloc[0])
        ranks = {name: rank_correlation(table, name) for name in PREDICTORS}
        results: dict[str, Any] = {
            "base_loss": base,
            "base_perplexity": None if base is None else perplexity_of(torch.tensor([base], dtype=torch.float32)),
            "units_measured": len(table),
            "sum_of_damages": float(table["damage"].sum()),
            "together": None if whole is None else whole.damage,
            "together_standard_error": error if math.isfinite(error) else None,
            "correlation": {name: rank and rank.value for name, rank in ranks.items()},
            "correlation_interval": {name: rank and [rank.low, rank.high] for name, rank in ranks.items()},
            "outliers": list(outliers(table)["unit"]),
            "cautions": verdicts.cautions(table, "unit"),
        }
        return cls(table, {**settings, **results})


def rank_correlation(table: pd.DataFrame, predictor: str = "held_out_error") -> Interval | None:
    """Spearman's ρ between a predictor and damage over the units of a table; see `rose.verdicts.rank_correlation`."""
    return verdicts.rank_correlation(table[predictor], table["damage"])


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman's ρ of each of `PREDICTORS` with damage, with its interval, or None.

    A row for all units, each projection, each third of the depth, and the mean within decoder blocks; `group` and
    `name` say which.
    """
    groups: list[tuple[str, str, pd.DataFrame]] = [("all", "", table)]
    if table["projection"].ne("").any():
        groups += [("projection", str(name), rows) for name, rows in table.groupby("projection", sort=False)]
    depth = int(table["block_index"].max()) + 1
    for part in range(3):
        low, high = part * depth // 3, (part + 1) * depth // 3
        rows = table[table["block_index"].between(low, high - 1)]
        name = f"decoder blocks {low} to {high - 1}" if high - low > 1 else f"decoder block {low}"
        groups.append(("depth", name, rows))
    result = [
        {"group": group, "name": name, "units": len(rows), **{p: rank_correlation(rows, p) for p in PREDICTORS}}
        for group, name, rows in groups
        if len(rows)
    ]
    within = [rows for _, rows in table.groupby("block_index") if len(rows) > 2]
    if within:
        means: dict[str, Interval | None] = {}
        for predictor in PREDICTORS:
            ranks = filter(None, (rank_correlation(rows, predictor) for rows in within))
            mean = verdicts.mean_interval([rank.value for rank in ranks])  # correlations end at ±1
            means[predictor] = mean and replace(mean, low=max(mean.low, -1.0), high=min(mean.high, 1.0))
        result.append({"group": "within a decoder block", "name": "mean", "units": len(within), **means})
    return pd.DataFrame(result)


def outliers(table: pd.DataFrame, predictor: str = "held_out_error", count: int = 5) -> pd.DataFrame:
    """Units with a small error and a large damage, the widest `gap` first.

    The rank of their damage is above that of their error by at least `GAP` of all ranks, and the damage above 0 by
    `CLEAR` standard errors, which a single window does not have.
    """
    damage = table["damage"]
    clear = damage > CLEAR * table["standard_error"]
    gap = (damage.rank() - table[predictor].rank()) / max(len(table) - 1, 1)
    rows = table.assign(gap=gap)[clear & (gap >= GAP)]
    return rows.sort_values("gap", ascending=False, kind="stable").head(count).reset_index(drop=True)


class DamageFolder(MeasurementFolder[DamageRecord]):
    """The folder of a measurement of damage: a row per unit, and at the end one for all units at once."""

    kind = DamageRecord
    key = ("unit",)
    holds = "measurement of damage", "damages"
    summaries = ("summary.json",)

    def summarize(self, settings: dict[str, Any]) -> dict[str, str]:
        summary = DamageReport.from_records(self.rows, **settings, embedding_norms=self.norms).summary
        return {"summary.json": json.dumps(finite(summary), indent=1)}
