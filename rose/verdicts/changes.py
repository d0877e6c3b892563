"""How far numbers moved: errors of layers between two runs, and perplexity from the dense model's."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from rose.verdicts.comparison import SAME, Result, Verdict, compare
from rose.verdicts.interval import mean_ratio
from rose.wording import apart, listing, number, out_of, percent, word

# In 69 of 72 runs of docs/results/headline.csv no window's rise exceeds the median rise by more than 0.41. In each of
# the other three, one window exceeds it by 1.04 to 2.49.
ODD = 0.75  # nats a token
SPREADS = 5  # and this many median distances, because all windows differ more at high sparsity


def differing(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of layers in which the two numbers differ."""
    gap = (rows["second"] - rows["first"]).abs()
    return rows[gap > SAME * rows[["first", "second"]].abs().max(axis=1)]


def sides(rows: pd.DataFrame) -> tuple[int, int]:
    """Numbers of layers in which the second number is lower, and higher."""
    differing_rows = differing(rows)
    less = int((differing_rows["second"] < differing_rows["first"]).sum())
    return less, len(differing_rows) - less


def says_layers(rows: pd.DataFrame, names: tuple[str, str], measure: str) -> str:
    """ "ROSE at 0.7 has the lower held-out error in 180 of 210 layers; on average it is 14 % lower".

    `rows` hold a number of two runs, first and second, for each layer. The average is over layers that differ.
    """
    less, higher = sides(rows)
    if not less and not higher:
        return f"{listing(names)} have the same {measure} in {out_of(len(rows), len(rows), 'layer')}"
    way, some = ("lower", less) if less >= higher else ("higher", higher)
    finding = f"{names[1]} has the {way} {measure} in {out_of(some, len(rows), 'layer')}"
    over = "on average" if len(rows) > 1 else "there"
    if same := len(rows) - less - higher:
        finding += f", and the same in {word(same)}"
        left = less + higher
        over = f"over the {word(left)} that differ, on average" if left > 1 else "there"
    differing_rows = differing(rows)
    ratio = mean_ratio(differing_rows["first"], differing_rows["second"])
    if ratio is None:
        return finding
    if not ratio.is_clear and len(differing_rows) > 1:
        return f"No clear difference in {measure}: {finding.replace(f'has the {way} {measure}', f'is {way}')}"
    moved = ratio.value - 1
    on_average = "lower" if moved < 0 else "higher"
    share = percent(abs(moved), 0 if abs(moved) >= 0.095 else 1)
    return f"{finding}; {'' if on_average == way else 'yet '}{over} it is {share} {on_average}"


def says_change(value: float, reference: float, reference_name: str, noun: str = "error") -> str:
    """ "17 % less error than SparseGPT", "the same error as SparseGPT"; "7.3 % less than …" without a noun."""
    moved = value / reference - 1 if reference else math.nan
    noun, digits = noun and f"{noun} ", int(abs(moved) < 0.0995)
    if math.isnan(moved) and value > 0:
        return f"more {noun}than {reference_name}, which has none"
    if math.isnan(moved) or abs(moved) <= SAME:
        return f"the same {noun}as {reference_name}"
    return f"{percent(abs(moved), digits)} {'less' if moved < 0 else 'more'} {noun}than {reference_name}"


def says_move(before: float, after: float, reference: str, verdict: Verdict) -> str:
    """ "from 12.98 to 13.04, 1.005 times the dense model's (95 % interval 1.001 to 1.009)", with the number of windows
    if that is not clear. `verdict` compares before with after.
    """
    if verdict.kind == "identical":
        return f"from {number(before)} to the same, to the last digit"
    (before_text, after_text), ratio = apart(before, after), verdict.ratio
    times = number(after / before, 3 if abs(after / before - 1) > 0.05 else 4) if ratio is None else ratio.value_text
    text = f"from {before_text} to {after_text}, {times} times {reference}"
    if ratio is None:
        return text
    if ratio.is_clear:
        return f"{text} (95 % interval {ratio.bounds})"
    rests_on = verdict.reason.removesuffix(", paired")
    return f"{text} ({rests_on} {ratio.bounds}, no clear difference; more windows may tell)"


def says_perplexity(summary: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> list[str]:
    """How perplexity moved, by the summary of a report: "from 12.98 to 13.04, …", and a sentence on odd windows.
    `before` is a summary whose `perplexity_before` was measured before tuning, to compare with that."""
    dense, copy = (
        Result(stage, "", of[f"perplexity_{stage}"], tuple(of[f"losses_{stage}"] or ()))
        for of, stage in ((before or summary, "before"), (summary, "after"))
    )
    if math.isnan(copy.value):
        return [says_lost(dense.value)]
    reference = "the dense model's" if before is None else "that before tuning"
    odd = "" if before else says_odd_windows(dense.losses, copy.losses)
    return [says_move(dense.value, copy.value, reference, compare(dense, copy)), *filter(None, [odd])]


def says_lost(before: float) -> str:
    """Text for a perplexity that has become NaN or infinite."""
    return f"from {number(before)} to no finite number: weights or outputs are NaN or infinite"


def says_odd_windows(before: Sequence[float], after: Sequence[float]) -> str:
    """A sentence on windows whose loss rose far more than the median (docs/lab-notes/models.md), or ""."""
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
