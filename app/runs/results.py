"""What can be said of results: of two models on the same windows, and of many runs from a file over their seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf
from typing import IO

import pandas as pd
from scipy import stats

from rose import RoseError
from rose.files import check_small
from rose.layer.pattern import parse_sparsity
from rose.model.measure.comparison import over_seeds

NUMBERS = ("perplexity", "mean_held_out_error", "seconds")


def read_results(source: str | IO[bytes]) -> pd.DataFrame:
    """Reads a CSV file with the columns method, sparsity, seed, perplexity, mean_held_out_error and seconds.

    Further columns are left out. The held-out error may be missing, and, of a pruned model that does not work any more,
    the perplexity may be infinite or missing too: `rose compare` writes such rows.

    Raises:
        RoseError: no such file, or a row that no run can have come to, with its number.
    """
    wanted = ["method", "sparsity", "seed", *NUMBERS]
    if isinstance(source, str):
        check_small(source)
    try:
        table = pd.read_csv(source, usecols=wanted, dtype={"method": str, "sparsity": str})[wanted]
    except (OSError, ValueError) as problem:
        raise RoseError(
            f"The file cannot be read as CSV with the columns {', '.join(wanted)} ({problem}); check the path."
        ) from problem
    if table.empty:
        raise RoseError("The file holds no runs yet.")
    given = table[wanted[2:]].notna()
    table[wanted[2:]] = table[wanted[2:]].apply(pd.to_numeric, errors="coerce")
    missing = table[["method", "sparsity", "seed"]].isna().any(axis=1)
    numbers = table["seed"].between(0, 2**63) & (table["seed"] % 1 == 0)
    for name, least, most in (("perplexity", 1, inf), ("mean_held_out_error", 0, inf), ("seconds", 0, 1e12)):
        numbers &= table[name].between(least, most) | ~given[name]
    names = table["method"].str.fullmatch(r"[\w .:,/+()@×-]{1,200}") & table["sparsity"].map(_is_sparsity)
    odd = missing | ~numbers | ~names.astype(bool)
    if odd.any():
        raise RoseError(f"Row {int(odd.idxmax()) + 1} is none that a run can come to; correct the file.")
    return table


def _is_sparsity(text: object) -> bool:
    try:
        parse_sparsity(str(text))
    except RoseError:
        return False
    return True


def time_and_perplexity(table: pd.DataFrame, sparsity: str) -> pd.DataFrame:
    """One row per method at one sparsity: mean, `lowest` and `highest` perplexity, and the median of `seconds`, as a
    pause of the machine makes single times too long. The mean is not finite where that of a seed is not.
    """
    rows = table[table["sparsity"] == sparsity]
    groups = rows.groupby("method", sort=False)
    found = over_seeds(rows, ["perplexity"]).set_index("method")[["perplexity"]]
    found["seconds"] = groups["seconds"].median()
    return found.assign(lowest=groups["perplexity"].min(), highest=groups["perplexity"].max()).reset_index()


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
