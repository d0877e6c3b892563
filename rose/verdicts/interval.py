"""Intervals of a mean, a ratio of paired numbers, a difference or a rank correlation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit

from rose.wording import number

CONFIDENCE = 0.95  # of every interval
FINEST = 6  # decimals of bounds for `is_clear`
WIDE, NARROW = 2.0, 0.03  # above this ratio of the bounds two digits are enough; below this width a third decimal tells
STRONG, WEAK = 0.7, 0.3  # from these rank correlations on, one number predicts the other well, or partly


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval; `neutral` is the value that means no difference."""

    value: float
    low: float
    high: float
    neutral: float = 1.0

    @property
    def is_clear(self) -> bool:
        """Whether the interval, as printed, excludes `neutral`."""
        return round(self.low, FINEST) > self.neutral or round(self.high, FINEST) < self.neutral  # not of NaN

    @property
    def bounds(self) -> str:
        """ "1.02 to 1.06"; "0.39 to 8.1" for a wide ratio. Digits suffice to tell bounds from `neutral`."""
        return f"{self._text(self.low)} to {self._text(self.high)}"

    @property
    def value_text(self) -> str:
        return self._text(self.value, self.is_clear)

    def __str__(self) -> str:
        return f"{self.value_text} ({self.bounds})"

    def _text(self, value: float, is_apart: bool = True) -> str:
        value = round(value, FINEST) or value
        if not self.neutral:
            decimals = next((most for most in range(2, FINEST + 1) if round(value, most)), 2)
            return f"{value:z.{decimals}f}".replace("-", "−")
        decimals = 3 if self.high - self.low < NARROW else 2
        fewest = 2 if self.high > WIDE * self.low else decimals + (round(value, decimals) >= 1)
        digits_apart = (
            digits for digits in range(fewest, FINEST + 2) if float(f"{value:.{digits - 1}e}") != self.neutral
        )
        return number(value, next(digits_apart, fewest) if is_apart else fewest)


def paired_ratio(logs: Sequence[float], other_logs: Sequence[float]) -> Interval:
    """exp of the mean difference of paired logarithms, with its t interval (Student 1908). For losses per token of each
    window it is the ratio of two perplexities. A single pair has the interval 0 to infinity."""
    with np.errstate(invalid="ignore"):  # infinity less infinity
        gaps = np.asarray(logs, np.float64) - np.asarray(other_logs, np.float64)
    middle = float(gaps.mean())
    interval = mean_interval(gaps) if np.isfinite(gaps).all() else None
    ends = [middle, -math.inf, math.inf] if interval is None else [interval.value, interval.low, interval.high]
    with np.errstate(over="ignore"):
        return Interval(*(float(end) for end in np.exp(ends)))


def mean_ratio(first: pd.Series, second: pd.Series) -> Interval | None:
    """Geometric mean of second / first over layers, with its interval; None without layers or for numbers of 0 or less.
    Layers with an unknown number, or two zeros, are left out."""
    both = pd.DataFrame({"first": first, "second": second}).astype(float).dropna()
    both = both[both.any(axis=1)]
    if both.empty or (both <= 0).any(axis=None):
        return None
    return paired_ratio(*np.log(both[["second", "first"]].to_numpy().T))


def difference(first: float, first_error: float, second: float, second_error: float) -> Interval:
    """second − first, for two independent means with standard errors, such as accuracies."""
    reach = float(ndtri((1 + CONFIDENCE) / 2)) * math.hypot(first_error, second_error)
    return Interval(second - first, second - first - reach, second - first + reach, 0.0)


def mean_interval(values: Sequence[float] | np.ndarray) -> Interval | None:
    """The mean of finite values with its t interval; None for fewer than 2."""
    finite = np.asarray(values, np.float64)
    finite = finite[np.isfinite(finite)]
    if len(finite) < 2:
        return None
    middle = float(finite.mean())
    error = float(finite.std(ddof=1)) / math.sqrt(len(finite))
    reach = float(stdtrit(len(finite) - 1, (1 + CONFIDENCE) / 2)) * error
    return Interval(middle, middle - reach, middle + reach, 0.0)


def rank_correlation(first: pd.Series, second: pd.Series) -> Interval | None:
    """Spearman's ρ of complete pairs; its interval by Fisher's z with the error of Bonett and Wright (2000).

    None for fewer than 3 pairs or a constant column. The interval of 3 or 4 pairs is −1 to 1, because chance often
    ranks them alike. A ρ of 1 gets the interval of the value half a step of ranks below.
    """
    pairs = pd.DataFrame({"first": first, "second": second}).dropna()
    if len(pairs) < 3 or (pairs.nunique() < 2).any():
        return None
    rho = float(pairs["first"].rank().corr(pairs["second"].rank()))
    if (size := len(pairs)) < 5:
        return Interval(rho, -1.0, 1.0, 0.0)
    reach = float(ndtri((1 + CONFIDENCE) / 2)) * math.sqrt((1 + rho**2 / 2) / (size - 3))
    most = 1 - 6 / (size * (size**2 - 1))
    middle = math.atanh(min(max(rho, -most), most))
    return Interval(rho, math.tanh(middle - reach), math.tanh(middle + reach), 0.0)


def says_correlation(who: str, target: str, correlation: Interval | None) -> str:
    """Whether one number predicts another over layers or blocks: "Held-out error partly tells which layers the loss
    depends on: rank correlation 0.45 (0.10 to 0.70)". `target` follows "tells"."""
    if correlation is None:
        return f"{who}: too few different values to say whether it tells {target}"
    how = "clearly tells" if correlation.value >= STRONG else "partly tells"
    if not correlation.is_clear:
        how = "does not clearly tell"
    elif correlation.value < WEAK:
        how = "hardly tells" if correlation.value >= 0 else "tells the wrong way round"
    return f"{who} {how} {target}: rank correlation {correlation}"
