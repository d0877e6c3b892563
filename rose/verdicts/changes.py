"""How far numbers have moved: layers of two runs or methods, one error from another, perplexity from the dense
model's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from rose.verdicts.comparison import SAME, Result, Verdict, compare
from rose.verdicts.interval import mean_ratio
from rose.wording import apart, listing, number, out_of, percent, word

# In 69 of 72 runs of docs/results/headline.csv no window rises by more than 0.41 above the median one; in each of the
# other three one does by 1.04 to 2.49.
ODD = 0.75  # nats a token
SPREADS = 5  # and so many times the median distance from the median: at high sparsity, all windows differ more


def differing(rows: pd.DataFrame) -> pd.DataFrame:
    """The layers in which the second has less or more than the first; the others are identical by construction."""
    gap = (rows["second"] - rows["first"]).abs()
    return rows[gap > SAME * rows[["first", "second"]].abs().max(axis=1)]


def sides(rows: pd.DataFrame) -> tuple[int, int]:
    """In how many layers the second has less, and in how many more."""
    found = differing(rows)
    less = int((found["second"] < found["first"]).sum())
    return less, len(found) - less


def says_layers(rows: pd.DataFrame, names: tuple[str, str], measure: str) -> str:
    """ "ROSE at 0.7 has the lower held-out error in 180 of 210 layers; on average it is 14 % lower".

    `rows` have a number of two runs or methods, first and second, in each layer. The average is over the layers that
    differ: "… in four of 210 layers, and the same in 206; over the four that differ, on average it is 7.6 % lower".
    """
    less, more = sides(rows)
    if not less and not more:
        return f"{listing(names)} have the same {measure} in {out_of(len(rows), len(rows), 'layer')}"
    way, some = ("lower", less) if less >= more else ("higher", more)
    finding = f"{names[1]} has the {way} {measure} in {out_of(some, len(rows), 'layer')}"
    over = "on average" if len(rows) > 1 else "there"
    if same := len(rows) - less - more:
        finding += f", and the same in {word(same)}"
        left = less + more
        over = f"over the {word(left)} that differ, on average" if left > 1 else "there"
    found = differing(rows)
    ratio = mean_ratio(found["first"], found["second"])
    if ratio is None:
        return finding
    if not ratio.is_clear and len(found) > 1:
        return f"{finding}; {over} no clear difference"
    moved = ratio.value - 1
    on_average = "lower" if moved < 0 else "higher"
    share = percent(abs(moved), 0 if abs(moved) >= 0.095 else 1)
    return f"{finding}; {'' if on_average == way else 'yet '}{over} it is {share} {on_average}"


def says_change(value: float, reference: float, whose: str, what: str = "error") -> str:
    """ "16.9 % less error than SparseGPT", "the same error as SparseGPT"; per cent of the reference's number.

    The shorter "16.9 % less than SparseGPT" without a `what`.
    """
    moved = value / reference - 1 if reference else math.nan
    what = what and f"{what} "
    if math.isnan(moved) and value > 0:
        return f"more {what}than {whose}, which has none"
    if math.isnan(moved) or abs(moved) <= SAME:
        return f"the same {what}as {whose}"
    return f"{percent(abs(moved))} {'less' if moved < 0 else 'more'} {what}than {whose}"


def says_move(before: float, after: float, whose: str, verdict: Verdict) -> str:
    """ "from 12.98 to 13.04, 1.005 times the dense model's (95 % interval 1.001 to 1.009)", and where that is not clear
    over how many windows it is.

    `verdict` on the two, the one before first; `whose` is of the one before.
    """
    if verdict.kind == "identical":
        return f"from {number(before)} to the same, to the last digit"
    (one, two), ratio = apart(before, after), verdict.ratio
    times = number(after / before, 3 if abs(after / before - 1) > 0.05 else 4)
    if ratio is not None and ratio.is_clear and float(times) == 1:
        times = ratio.value_text
    said = f"from {one} to {two}, {times} times {whose}"
    if ratio is None:
        return said
    if ratio.is_clear:
        return f"{said} (95 % interval {ratio.bounds})"
    rests_on = verdict.reason.removesuffix(", paired")
    return f"{said} ({rests_on} {ratio.bounds}, no clear difference; more windows may tell)"


def says_perplexity(summary: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> list[str]:
    """How perplexity has moved from the dense model's, by the summary of a report: "from 12.98 to 13.04, …", and what
    windows that stand out have to do with it.

    Args:
        before: a summary whose `perplexity_before` is that before tuning, where a tuned model is told by that.
    """
    one, two = _perplexity(before or summary, "before"), _perplexity(summary, "after")
    if math.isnan(two.value):
        return [says_lost(one.value)]
    whose = "the dense model's" if before is None else "that before tuning"
    odd = "" if before else says_odd_windows(one.losses, two.losses)
    return [says_move(one.value, two.value, whose, compare(one, two)), *filter(None, [odd])]


def says_lost(before: float) -> str:
    """The move of a perplexity from this one to NaN or infinity."""
    return f"from {number(before)} to no finite number: weights or outputs are NaN or infinite"


def _perplexity(summary: Mapping[str, Any], stage: str) -> Result:
    return Result(stage, "", summary[f"perplexity_{stage}"], tuple(summary[f"losses_{stage}"] or ()))


def says_odd_windows(before: Sequence[float], after: Sequence[float]) -> str:
    """A sentence on the windows whose loss rose far more than the median one's; "" where there are none.

    What has happened to them is in docs/lab-notes/models.md. Losses are by window, in nats a token.
    """
    if not before or len(before) != len(after):
        return ""
    rise = np.subtract(after, before)
    above = rise - np.median(rise)
    odd = above > max(ODD, SPREADS * float(np.median(np.abs(above))))
    if not odd.any():
        return ""
    times = number(math.exp(above[odd].sum() / len(above)))
    most = ("up to " if odd.sum() > 1 else "") + number(above.max(), 2)
    return (
        f"In {out_of(int(odd.sum()), len(odd), 'window')} the loss rose by {most} nats a token more than in the median "
        f"one, which alone makes perplexity {times} times as high. In smaller models, pruning had removed the "
        "attention sink of such windows; this can happen where a text begins without a BOS."
    )
