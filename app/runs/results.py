"""What can be said of results: of two models on the same windows, and of many runs from a file over their seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import IO

import pandas as pd
from scipy import stats

from rose import RoseError

NUMBERS = ("perplexity", "mean_held_out_error", "seconds")


def read_results(source: str | IO[bytes]) -> pd.DataFrame:
    """Reads a CSV file with the columns method, sparsity, seed, perplexity, mean_held_out_error and seconds.

    Further columns are left out. A missing held-out error is allowed.
    """
    wanted = ["method", "sparsity", "seed", *NUMBERS]
    try:
        table = pd.read_csv(source, usecols=wanted, dtype={"method": str, "sparsity": str})[wanted]
    except (OSError, ValueError) as problem:
        raise RoseError(
            f"The file cannot be read as CSV with the columns {', '.join(wanted)} ({problem}); check the path."
        ) from problem
    if table.empty:
        raise RoseError("The file holds no runs yet.")
    table[wanted[2:]] = table[wanted[2:]].apply(pd.to_numeric, errors="coerce")
    bad = table[["method", "sparsity", "seed", "perplexity"]].isna().any(axis=1)
    if bad.any():
        raise RoseError(f"Row {int(bad.idxmax()) + 1} has no method, sparsity, seed or perplexity; correct the file.")
    odd = ~table["perplexity"].between(1, 1e300) | ~table["method"].str.fullmatch(r"[\w .:,/+()@×-]{1,200}")
    if odd.any():
        raise RoseError(f"Row {int(odd.idxmax()) + 1} has no such method or perplexity; correct the file.")
    return table


def time_and_perplexity(table: pd.DataFrame, sparsity: str) -> pd.DataFrame:
    """One row per method at one sparsity: mean, `lowest` and `highest` perplexity, and the median of `seconds`, as a
    pause of the machine makes single times too long.
    """
    groups = table[table["sparsity"] == sparsity].groupby("method", sort=False)
    perplexity = groups["perplexity"]
    means = groups.agg(perplexity=("perplexity", "mean"), seconds=("seconds", "median"))
    return means.assign(lowest=perplexity.min(), highest=perplexity.max()).reset_index()


CONFIDENCE = 0.95


@dataclass(frozen=True)
class Ratio:
    """Perplexity of one model over that of another on the same windows, with its 95 % confidence interval.

    It is exp of the windows' mean difference and of its paired t interval: 0 to infinity for a single window.
    """

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether chance over windows is an unlikely explanation: the interval does not hold 1."""
        return not self.low <= 1 <= self.high


def perplexity_ratio(losses: Sequence[float], others: Sequence[float]) -> Ratio:
    """Compares two models window by window (paired t interval of the mean difference; Student 1908)."""
    gaps = pd.Series(losses, dtype=float) - pd.Series(others, dtype=float)
    mean = float(gaps.mean())
    if len(gaps) < 2:
        return Ratio(exp(mean), 0.0, float("inf"))
    error = float(gaps.std(ddof=1)) / len(gaps) ** 0.5
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(gaps) - 1)) * error
    return Ratio(exp(mean), exp(mean - reach), exp(mean + reach))
