"""Budgets: how many weights each block of a sweep gives up."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rose.errors import RoseError
from rose.layer.loss import block_sums, smallest
from rose.layer.order import Order
from rose.layer.pattern import Pattern
from rose.layer.settings import SHARES_WITHIN

ROWS = 64  # rows read at a time to find a threshold; their counts must fit eight bits
ROUNDING = 1e-6  # relative, of two float32 products; bounds of |w| are widened by it


def count_by_block(
    budget: str | Sequence[float], weight: Tensor, divisor: Tensor, pattern: Pattern, order: Order
) -> list[int]:
    """How many weights each visited block gives up. "block": the same ratio of each (SparseGPT, ROSE). "layer": those
    below one threshold on the saliency (w/d)² of the whole layer, set before the sweep. Shares: each its share. W,
    (out, in), is in original column order; d, (in,), in the order visited."""
    if not isinstance(budget, str):
        return _by_shares(budget, weight.shape[0], order.widths, pattern)
    if budget == "block" or pattern.is_grouped:  # N:M fixes how many weights each group gives up
        return [pattern.count(weight.shape[0] * width) for width in order.widths]
    count = pattern.count(weight.numel())
    removed = _count_by_column(weight, divisor, count, order) if weight.device.type == "cpu" else None
    if removed is None:
        removed = smallest((weight[:, order.permutation] / divisor).square_(), count).sum(0)
    return block_sums(removed, order.widths).tolist()


def _by_shares(shares: Sequence[float], rows: int, widths: Sequence[int], pattern: Pattern) -> list[int]:
    """How many weights each visited block gives up for these shares of the layer's weights; the total is exact. Raises
    RoseError unless each block has one share, at most its size."""
    if len(shares) != len(widths):
        raise RoseError(f"The budget needs one share for each of the {len(widths)} blocks, not {len(shares)}.")
    columns = sum(widths)
    for number, (share, width) in enumerate(zip(shares, widths, strict=True)):
        if share > width / columns + SHARES_WITHIN / len(widths):
            raise RoseError(
                f"Block {number} as visited holds {width / columns:.4g} of the layer's weights and cannot give up "
                f"{share:.4g}."
            )
    total, sizes = pattern.count(rows * columns), [rows * width for width in widths]
    exact = [min(share * rows * columns, size) for share, size in zip(shares, sizes, strict=True)]
    counts = [int(count) for count in exact]
    # Weights left by rounding, and by an inexact sum, go to the blocks with the largest remainder that have room.
    while (missing := total - sum(counts)) != 0:
        step = 1 if missing > 0 else -1
        room = [b for b, count in enumerate(counts) if 0 <= count + step <= sizes[b]]
        room.sort(key=lambda b: step * (counts[b] - exact[b]))
        for block in room[: abs(missing)]:
            counts[block] += step
    return counts


@np.errstate(over="ignore")  # infinite saliencies are the largest, as in torch
def _count_by_column(weight: Tensor, divisor: Tensor, count: int, order: Order) -> Tensor | None:
    """How many of the `count` smallest (w/d)² each column has, (in,), in the order visited; ties as in `smallest`. None
    if the bounds below miss the threshold.

    Nothing as large as W is allocated, which would take longer than the arithmetic. Weights below the lower bound are
    counted, and the rest is selected from the weights between the bounds.
    """
    w, d, steps = (part.numpy() for part in (weight, divisor[order.inverse], order.inverse))
    low, high = _bounds(w, d, count)
    least, most = d * np.sqrt(low) * (1 - ROUNDING), d * np.sqrt(high) * (1 + ROUNDING)
    removed, places = np.zeros(len(d), np.int64), []
    for start in range(0, len(w), ROWS):
        size = np.abs(w[start : start + ROWS])
        below = size < least
        removed += below.sum(0, dtype=np.uint8)
        places.append(np.flatnonzero(below ^ (size <= most)) + start * len(d))
    place, missing = np.concatenate(places), count - int(removed.sum())
    column = place % len(d)
    score = np.square(w.ravel()[place] / d[column])
    threshold = np.partition(score, missing - 1)[missing - 1] if 0 < missing <= len(score) else -1
    if not low < threshold <= high:  # the sample missed it, or too many weights are equal to it
        return None
    smaller, ties = score < threshold, np.flatnonzero(score == threshold)
    by_place = (place - column + steps[column])[ties].argsort()
    ties = ties[by_place][: missing - int(smaller.sum())]
    removed += np.bincount(np.concatenate([column[smaller], column[ties]]), minlength=len(d))
    return torch.from_numpy(removed)[order.permutation]


def _bounds(w: np.ndarray, d: np.ndarray, count: int) -> np.ndarray:
    """Two bounds of the `count`-th smallest (w/d)², from a sample of rows."""
    sample = np.square(w[:: 1 + len(w) // ROWS] / d).ravel()
    rank, off = count / w.size * len(sample), 2 * len(sample) ** 0.5  # this is four standard deviations at 50 %
    ranks = [int(min(max(0, at), len(sample) - 1)) for at in (rank - off, rank + off)]
    return np.partition(sample, ranks)[ranks]
