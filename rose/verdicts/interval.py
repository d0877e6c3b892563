"""Intervals: how sure a mean, a ratio of paired numbers, a difference or a rank correlation is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit

from rose.wording import number

CONFIDENCE = 0.95  # of every interval
FINEST = 6  # decimals of its bounds, by which an interval is judged
WIDE = 2.0  # ratio of the bounds from which on two digits are enough
STRONG, WEAK = 0.7, 0.3  # rank correlations from which on one number tells the other, or partly


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval; `neutral` is its value where there is no difference."""

    value: float
    low: float
    high: float
    neutral: float = 1.0

    @property
    def is_clear(self) -> bool:
        """Whether chance is an unlikely explanation: the interval does not hold `neutral`, nor touches it by what is
        printed."""
        return round(self.low, FINEST) > self.neutral or round(self.high, FINEST) < self.neutral  # not of NaN

    @property
    def bounds(self) -> str:
        """ "1.020 to 1.062", of a wide ratio "0.39 to 8.1"; with as many digits as tell a bound from `neutral`, so
        that what is printed never contradicts `is_clear`."""
        return f"{self._text(self.low)} to {self._text(self.high)}"

    @property
    def value_text(self) -> str:
        return self._text(self.value)

    def __str__(self) -> str:
        return f"{self.value_text} ({self.bounds})"

    def _text(self, value: float) -> str:
        value = round(value, FINEST)
        if not self.neutral:
            decimals = next((most for most in range(2, FINEST + 1) if round(value, most)), 2)
            return f"{value:z.{decimals}f}".replace("-", "−")
        fewest = 2 if self.high > WIDE * self.low else 4 if value >= 1 else 3
        rounded = {digits: float(f"{value:.{digits - 1}e}") for digits in range(fewest, FINEST + 2)}
        return number(value, next((digits for digits, one in rounded.items() if one != self.neutral), fewest))


def paired_ratio(logs: Sequence[float], others: Sequence[float]) -> Interval:
    """How many times one is the other: exp of the mean difference of paired logarithms and of its t interval.

    Of losses a token of each window, the ratio of two perplexities (Student 1908). A single pair says nothing of
    chance: 0 to infinity.
    """
    with np.errstate(invalid="ignore"):  # infinity less infinity
        gaps = np.asarray(logs, np.float64) - np.asarray(others, np.float64)
    middle = float(gaps.mean())
    found = mean_interval(gaps) if np.isfinite(gaps).all() else None
    ends = [middle, -math.inf, math.inf] if found is None else [found.value, found.low, found.high]
    with np.errstate(over="ignore"):
        return Interval(*(float(one) for one in np.exp(ends)))


def mean_ratio(first: pd.Series, second: pd.Series) -> Interval | None:
    """Geometric mean of second / first over layers, the same back and forth, with its interval; None where a number is
    not above 0, or none is there. Layers in which one is not known, or both are 0, have no ratio."""
    both = pd.DataFrame({"first": first, "second": second}).astype(float).dropna()
    both = both[both.any(axis=1)]
    if both.empty or (both <= 0).any(axis=None):
        return None
    return paired_ratio(*np.log(both[["second", "first"]].to_numpy().T))


def difference(one: float, error: float, other: float, other_error: float) -> Interval:
    """other − one, of two independent means with standard errors, such as two accuracies."""
    reach = float(ndtri((1 + CONFIDENCE) / 2)) * math.hypot(error, other_error)
    return Interval(other - one, other - one - reach, other - one + reach, 0.0)


def mean_interval(values: Sequence[float] | np.ndarray) -> Interval | None:
    """The mean of what is finite with its t interval; None for fewer than 2 values."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    if len(known) < 2:
        return None
    middle = float(known.mean())
    error = float(known.std(ddof=1)) / math.sqrt(len(known))
    reach = float(stdtrit(len(known) - 1, (1 + CONFIDENCE) / 2)) * error
    return Interval(middle, middle - reach, middle + reach, 0.0)


def rank_correlation(one: pd.Series, other: pd.Series) -> Interval | None:
    """Spearman's ρ of the pairs that are known, with its interval by Fisher's z and the standard error of Bonett and
    Wright (2000); None for fewer than 3 pairs, or where one of the two is constant. Of 3 or 4, anything from −1 to 1,
    as chance alone ranks 4 alike in one of 24 cases; around a ρ of 1 as around one half a step below, the smallest
    change of ranks."""
    known = pd.DataFrame({"one": one, "other": other}).dropna()
    if len(known) < 3 or (known.nunique() < 2).any():
        return None
    rho = float(known["one"].rank().corr(known["other"].rank()))
    if (size := len(known)) < 5:
        return Interval(rho, -1.0, 1.0, 0.0)
    reach = float(ndtri((1 + CONFIDENCE) / 2)) * math.sqrt((1 + rho**2 / 2) / (size - 3))
    most = 1 - 6 / (size * (size**2 - 1))
    middle = math.atanh(min(max(rho, -most), most))
    return Interval(rho, math.tanh(middle - reach), math.tanh(middle + reach), 0.0)


def says_correlation(who: str, what: str, found: Interval | None) -> str:
    """Whether one number tells another over layers or blocks: "Held-out error partly tells which layers the loss
    depends on: rank correlation 0.45 (0.10 to 0.70)". `what`: that which follows "tells"."""
    if found is None:
        return f"{who}: too few different values to say whether it tells {what}"
    how = "clearly tells" if found.value >= STRONG else "partly tells" if found.value >= WEAK else "hardly tells"
    if not found.is_clear:
        how = "does not clearly tell"
    elif found.value < 0:
        how = "tells the wrong way round"
    return f"{who} {how} {what}: rank correlation {found}"
