"""The recommended smaller copy for each of three goals, from rows of `rose.smaller.table`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rose.verdicts.comparison import rank
from rose.wording import count, listing, number, percent, sentence, size

if TYPE_CHECKING:
    from rose.smaller.table import Row

SAME_QUALITY, HALF, FASTER = "same quality", "half the bytes", "twice as fast"
GOALS = (SAME_QUALITY, HALF, FASTER)
EQUAL = 1.01  # times the dense perplexity: a copy of the same quality has its whole interval below this
TWICE = 2.0  # times the dense speed
ZEROS = "Zeros alone make no file smaller: sizes are of files that transformers and llama.cpp read."
MUCH_WORSE = 2.0  # times the dense perplexity: above this no copy is called sound or recommended


@dataclass(frozen=True)
class Recommendation:
    """A goal, and the row that reaches it best."""

    goal: str
    key: str  # key of the row; "" if nothing pays
    name: str
    text: str  # a sentence that says why
    is_complete: bool = True  # whether every row that could reach the goal has been measured


def recommend(rows: Sequence[Row]) -> list[Recommendation]:
    """A recommendation for each goal, from measured rows alone; the first row is the model as it is.

    - Same quality: the fewest bytes among rows whose whole interval is at most `EQUAL` on both texts.
    - Half the bytes: the lowest perplexity on the first text among rows of at most half the bytes. Among rows without a
      clear difference from the lowest, the row with the fewest bytes. The second text has no part in that choice.
    - Twice as fast: the same among rows whose interval of reading or writing speed lies above `TWICE`.

    A row of more than `MUCH_WORSE` times the dense perplexity on either text is never recommended.
    """
    if not rows or not rows[0].is_measured:
        return []
    dense, *copies = rows
    return [_recommend(goal, dense, copies) for goal in GOALS]


def says_stored(dense: Row) -> str:
    """A sentence for a checkpoint whose files are smaller than its weights in 16 bits; else ""."""
    if dense.stored is None or dense.stored >= dense.bytes:
        return ""
    return (
        f"The checkpoint's own file has {size(dense.stored)}: its weights are rounded already. Rounding them again "
        f"costs less than rounding other models; copies are compared with the same weights in {size(dense.bytes)}."
    )


def _recommend(goal: str, dense: Row, rows: Sequence[Row]) -> Recommendation:
    measured = [row for row in rows if row.is_measured]
    reaching = [row for row in measured if _reaches(goal, row, dense)]
    is_complete = not any(not row.is_measured and _may_reach(goal, row, dense) for row in rows)
    limit = MUCH_WORSE  # on both texts; None and NaN fail it
    paying = [row for row in reaching if (row.times or math.inf) <= limit and (row.second_times or math.inf) <= limit]
    if not paying:
        why = "no way reaches it" if not reaching else f"{listing([row.name for row in reaching])} lose too much"
        if estimates := len(rows) - len(measured):
            why += f" (by estimates for {count(estimates, 'way')})"
        so_far = f"{sentence(goal)}: no way that was measured so far reaches it."
        text = f"{sentence(goal)}: nothing pays here; {why}." if is_complete else so_far
        return Recommendation(goal, "", "", text, is_complete)
    best = min(paying if goal == SAME_QUALITY else _lowest(paying), key=lambda row: row.bytes)
    text = f"{sentence(goal)}: {best.name}, {_facts(best, dense)}."
    text += "" if goal == SAME_QUALITY or len(paying) == 1 else " The first text has chosen among several."
    text += "" if is_complete else " Ways that are not measured yet may do better."
    return Recommendation(goal, best.key, best.name, text, is_complete)


def _reaches(goal: str, row: Row, dense: Row) -> bool:
    if goal == SAME_QUALITY:
        return row.bytes < dense.bytes and max(row.times_high or math.inf, row.second_high or math.inf) <= EQUAL
    if goal == HALF:
        return row.bytes <= dense.bytes / 2
    return max(row.prefill_low or 0.0, row.decoding_low or 0.0) >= TWICE


def _may_reach(goal: str, row: Row, dense: Row) -> bool:
    """Whether the row may reach the goal by its estimates."""
    if goal == SAME_QUALITY:
        return (row.times_low or math.inf) <= EQUAL
    if goal == HALF:
        return row.bytes <= dense.bytes / 2 and (row.times_low or 0.0) <= MUCH_WORSE
    return (row.prefill_gain or 1.0) >= TWICE


def _lowest(rows: Sequence[Row]) -> list[Row]:
    """The row of the lowest perplexity on the first text, and those without a clear difference from it."""
    (ranking,) = rank([row.result() for row in rows])
    verdicts = zip(ranking.results[1:], ranking.verdicts, strict=True)
    alike = {ranking.results[0].method} | {result.method for result, verdict in verdicts if verdict.kind != "better"}
    return [row for row in rows if row.key in alike]


def _facts(row: Row, dense: Row) -> str:
    share = f"{size(row.bytes)} as {row.smallest}, {percent(row.bytes / dense.bytes, 0)} of {size(dense.bytes)}"
    if dense.stored and dense.stored < row.bytes:
        share += f" but more than the file itself, {size(dense.stored)}"
    first, second = number(row.times or math.nan), number(row.second_times or math.nan)
    gains = [number(gain) for gain in (row.prefill_gain, row.decoding_gain) if gain]
    speed = f", reads and writes {listing(gains)} times as fast" if gains else ""
    return f"{share}; perplexity × {first} and × {second} on the two texts{speed}"
