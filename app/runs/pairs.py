"""Two finished runs side by side: their layers, their totals, and the settings that differ. No Streamlit here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

import rose
from app import words
from app.runs.finished import SLIM, FinishedRun, settings_of

MEASURES = {  # column of the layers -> in words, as they follow "the"
    "held_out_error": "held-out error",
    "relative_error": "error on calibration",
    "held_out_target_error": "held-out error against the dense model",
    "target_error": "error against the dense model on calibration",
    "relative_range": "relative range",
    "sparsity": "sparsity",
}
SAME = 1e-9  # relative difference below which two numbers are the same


class DifferentModels(rose.RoseError):
    """Runs of which the layers do not correspond: their maps can be looked at side by side, not subtracted."""


@dataclass(frozen=True)
class Pair:
    """Two runs of which the layers match.

    Attributes:
        first, second: the runs, with names that differ.
        layers: of the layers that both have: layer, block_index, projection, and `COLUMN_first` and `COLUMN_second`.
        left_out: layers that only one of them has.
    """

    first: FinishedRun
    second: FinishedRun
    layers: pd.DataFrame
    left_out: int

    @property
    def measures(self) -> dict[str, str]:
        """Those of `MEASURES` that both runs know for some layer."""
        return {name: label for name, label in MEASURES.items() if len(self.rows(name))}

    def rows(self, measure: str) -> pd.DataFrame:
        """The layers for which both know this number, as layer, block_index, projection, first, second."""
        if self.layers.empty:
            return pd.DataFrame(columns=["layer", "block_index", "projection", "first", "second"])
        table = self.layers[["layer", "block_index", "projection", f"{measure}_first", f"{measure}_second"]]
        return table.set_axis([*table.columns[:3], "first", "second"], axis=1).dropna().reset_index(drop=True)


def pair(first: FinishedRun, second: FinishedRun) -> Pair:
    """Puts two runs side by side.

    Raises:
        DifferentModels: their layers have different shapes, or they have none in common.
    """
    columns = list(MEASURES)
    one, two = first.layers, second.layers
    if one.empty or two.empty:
        return Pair(first, second, pd.DataFrame(), 0)
    both = one.merge(two, on="layer", suffixes=("_first", "_second"), sort=False)
    left_out = len(one) + len(two) - 2 * len(both)
    for name in ("rows", "columns"):
        known = both.dropna(subset=[f"{name}_first", f"{name}_second"])
        wrong = known[known[f"{name}_first"] != known[f"{name}_second"]]
        if len(wrong):
            at = wrong.iloc[0]
            sizes = [f"{at[f'rows_{which}']:.0f} × {at[f'columns_{which}']:.0f}" for which in ("first", "second")]
            raise DifferentModels(
                f"These are models of different shapes: {at['layer']} is {sizes[0]} in one and {sizes[1]} in the "
                "other; choose runs on models of the same shape."
            )
    if both.empty:
        raise DifferentModels("These runs have no layer in common; choose runs on models of the same shape.")
    names = [run.summary.get("model") for run in (first, second)]
    if names[0] != names[1] and left_out and SLIM not in (first.kind, second.kind):
        raise DifferentModels(
            f"These are different models, {len(one)} layers in one and {len(two)} in the other; choose runs on models "
            "of the same shape."
        )
    kept = ["layer", *(f"{name}_{which}" for name in columns for which in ("first", "second"))]
    where = both[["block_index_first", "projection_first"]].set_axis(["block_index", "projection"], axis=1)
    return Pair(first, second, pd.concat([both[kept[:1]], where, both[kept[1:]]], axis=1), left_out)


def rows_apart(first: FinishedRun, second: FinishedRun, measure: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The layers of two different models that know this number, each as layer, block_index, projection, value."""
    columns = ["layer", "block_index", "projection", measure]
    one, two = (
        run.layers[columns].set_axis([*columns[:3], "value"], axis=1).dropna().reset_index(drop=True)
        if measure in run.layers
        else pd.DataFrame(columns=[*columns[:3], "value"])
        for run in (first, second)
    )
    return one, two


def measures_apart(first: FinishedRun, second: FinishedRun) -> dict[str, str]:
    """Those of `MEASURES` that both runs know for some layer of theirs."""
    return {
        name: label for name, label in MEASURES.items() if all(len(rows) for rows in rows_apart(first, second, name))
    }


def mean_change(first: np.ndarray, second: np.ndarray) -> float:
    """Geometric mean of second / first, minus 1: the same change back and forth. NaN where a number is not above 0."""
    if not len(first) or (first <= 0).any() or (second <= 0).any():
        return math.nan
    return float(np.exp(np.mean(np.log(second) - np.log(first))) - 1)


def sides(rows: pd.DataFrame) -> tuple[int, int]:
    """In how many layers the second has less, and in how many more."""
    gap = rows["second"] - rows["first"]
    differs = gap.abs() > SAME * rows[["first", "second"]].abs().max(axis=1)
    return int((differs & (gap < 0)).sum()), int((differs & (gap > 0)).sum())


# Totals


def _drift_end(run: FinishedRun) -> Any:
    return run.summary["drift"][-1]["drift"] if run.has_drift else None


def _zero_shot_mean(run: FinishedRun) -> Any:
    return None if run.zero_shot is None else float(run.zero_shot["accuracy"].mean())


def _mean(run: FinishedRun, column: str) -> Any:
    values = run.pruned[column].dropna() if column in run.layers else []
    return float(np.mean(values)) if len(values) else None


def _removed(run: FinishedRun) -> Any:
    return run.summary.get("removed_fraction")


COUNT = "Columnar layers"
NUMBERS = {
    "Perplexity": lambda run: run.summary.get("perplexity_after"),
    "Perplexity of the dense model": lambda run: run.summary.get("perplexity_before"),
    "Zero-shot accuracy, mean": _zero_shot_mean,
    "Drift after the last decoder block": _drift_end,
    "Mean held-out error": lambda run: _mean(run, "held_out_error"),
    "Mean error on calibration": lambda run: _mean(run, "relative_error"),
    "Mean held-out error against the dense model": lambda run: _mean(run, "held_out_target_error"),
    "Weights removed": _removed,
    COUNT: lambda run: run.summary.get("columnar_layers"),
    "Seconds": lambda run: run.summary.get("seconds"),
}


def numbers(first: FinishedRun, second: FinishedRun) -> pd.DataFrame:
    """Totals of both, and by how much the second differs from the first: number, first, second, change."""
    rows = []
    for name, read in NUMBERS.items():
        one, two = (as_number(read(run)) for run in (first, second))
        if not (math.isnan(one) and math.isnan(two)):
            rows.append({"number": name, "first": one, "second": two, "change": two / one - 1 if one > 0 else math.nan})
    return pd.DataFrame(rows, columns=["number", "first", "second", "change"])


def said(name: str, value: float) -> str:
    """A total in words: counts are whole."""
    return words.whole(int(value)) if name == COUNT and value.is_integer() else words.number(value)


def as_number(value: Any) -> float:
    """NaN for what is not a number."""
    try:
        return math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan


def windows_differ(first: FinishedRun, second: FinishedRun) -> bool:
    """Whether both have a perplexity, but on different text: the dense model's own tells."""
    before, after = (
        [as_number(run.summary.get(name)) for run in (first, second)]
        for name in ("perplexity_before", "perplexity_after")
    )
    if any(map(math.isnan, after)):
        return False
    return any(map(math.isnan, before)) or abs(before[0] - before[1]) > 1e-3 * before[0]


def accuracies(first: FinishedRun, second: FinishedRun) -> pd.DataFrame | None:
    """Zero-shot accuracy by task where both have some: task, questions, first, second, change in points."""
    if first.zero_shot is None or second.zero_shot is None:
        return None
    both = first.zero_shot.merge(second.zero_shot, on=["task", "questions"], suffixes=("_first", "_second"))
    if both.empty:
        return None
    table = both[["task", "questions", "accuracy_first", "accuracy_second"]]
    table = table.set_axis(["task", "questions", "first", "second"], axis=1)
    return table.assign(points=100 * (table["second"] - table["first"]))


def settings(first: FinishedRun, second: FinishedRun, *, only_different: bool = True) -> pd.DataFrame:
    """Settings of both: setting, first, second; "–" where a run does not have it."""
    one, two = settings_of(first), settings_of(second)
    rows = [(name, one.get(name, "–"), two.get(name, "–")) for name in dict.fromkeys([*one, *two])]
    rows = [row for row in rows if not only_different or row[1] != row[2]]
    return pd.DataFrame(rows, columns=["setting", "first", "second"])
