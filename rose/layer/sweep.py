"""The sweep: mask and compensate, block by block (SparseGPT, Frantar and Alistarh 2023, algorithm 1).

U is the upper Cholesky factor of H⁻¹. Removing w_j costs e², e = w_j / U_jj, and later columns take w_{j:} −= e ·
U_{j,j:}.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rose.errors import RoseError, check_choice
from rose.layer.error import quadratic_form
from rose.layer.hessian import damp
from rose.layer.loss import block_starts, block_sums, smallest, smallest_per_group
from rose.layer.order import Order
from rose.layer.pattern import BUDGETS, Pattern
from rose.layer.rounding import Rounder, inverse_of, round_each

# Columns that compensate each other in turn. The rest of the block follows in one matrix product, and is read and
# written once. On one core 16 was as fast as 32 and faster than 8.
TILE = 16
ROWS = 64  # rows read at a time to find the threshold of budget "layer"; their counts must fit eight bits
ROUNDING = 1e-6  # relative, of two float32 products; bounds of |w| are widened by it
SHARES_WITHIN = 0.005  # how far the sum of shares may be off, because people type rounded numbers


@dataclass(frozen=True)
class SweepTrace:
    """A recorded sweep, one entry per block, in the order visited.

    Attributes:
        weights: (blocks + 1, out, in) float32, original column order: before the sweep and after each block; (0,
            out, in) where only errors were recorded.
        removed: (blocks,) weights removed.
        error: (blocks,) Σ e² of the block, rounding included.
        lost: (blocks,) cost of removing the block's weights without compensation, under the damped H. Free columns
            are at their optimum before each block, so it is δ H_bb δᵀ without cross terms.
        moved: (blocks,) float64, ‖W_k − W_0‖² of all live weights after the block.
    """

    weights: Tensor
    removed: Tensor
    error: Tensor
    lost: Tensor
    moved: Tensor

    @property
    def compensated(self) -> Tensor:
        return self.lost - self.error

    def error_so_far(self, added: float) -> Tensor:
        """tr(ΔW H ΔWᵀ) before the sweep and after each block, (blocks + 1,) float64: Σ e² less λ‖ΔW‖², λ = `added`,
        absolute."""
        undamped = self.error.double().cumsum(0) - added * self.moved
        return torch.cat([undamped.new_zeros(1), undamped.clamp(min=0)])  # rounding may give less than 0


@dataclass(frozen=True)
class Sweep:
    """What a sweep returns."""

    weight: Tensor  # pruned and compensated, (out, in) float32, original column order
    mask: Tensor  # True = removed, (out, in), original column order
    column_error: Tensor  # Σ_rows e², (in,), original column order
    trace: SweepTrace | None  # None without a Hessian for it
    kept_error: float = 0.0  # Σ e² of kept weights, 0 unless they are rounded


def visited_budget(
    budget: str | Sequence[float], weight: Tensor, divisor: Tensor, pattern: Pattern, order: Order
) -> list[int]:
    """How many weights each visited block gives up. "block": the same ratio of each (SparseGPT, ROSE). "layer": those
    below one threshold on the saliency of the whole layer, set before the sweep. Shares: each its share. W, (out, in),
    is in original column order; `divisor` as in `sweep`."""
    if not isinstance(budget, str):
        return own_budget(budget, weight.shape[0], order.widths, pattern)
    if budget == "block" or pattern.is_grouped:  # N:M fixes how many weights each group gives up
        return [pattern.count(weight.shape[0] * width) for width in order.widths]
    count = pattern.count(weight.numel())
    removed = _removed_of_columns(weight, divisor, count, order) if weight.device.type == "cpu" else None
    if removed is None:
        removed = smallest((weight[:, order.permutation] / divisor).square_(), count).sum(0)
    return block_sums(removed, order.widths).tolist()


@np.errstate(over="ignore")  # infinite saliencies are the largest, as in torch
def _removed_of_columns(weight: Tensor, divisor: Tensor, count: int, order: Order) -> Tensor | None:
    """How many of the `count` smallest (w/d)² each column has, (in,), in the order visited; ties as in `smallest`. None
    if the bounds below miss the threshold.

    Nothing as large as W is allocated, which would take longer than the arithmetic. A sample of rows gives two bounds
    of the threshold. Entries below the lower bound are counted, and the rest is selected from the entries between.
    """
    w, d, steps = (part.numpy() for part in (weight, divisor[order.inverse], order.inverse))
    sample = np.square(w[:: 1 + len(w) // ROWS] / d).ravel()
    rank, off = count / w.size * len(sample), 2 * len(sample) ** 0.5  # this is four standard deviations at 50 %
    ranks = [int(min(max(0, at), len(sample) - 1)) for at in (rank - off, rank + off)]
    low, high = np.partition(sample, ranks)[ranks]
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
    if not low < threshold <= high:  # the sample missed it, or too many entries are equal to it
        return None
    smaller, ties = score < threshold, np.flatnonzero(score == threshold)
    by_place = (place - column + steps[column])[ties].argsort()
    ties = ties[by_place][: missing - int(smaller.sum())]
    removed += np.bincount(np.concatenate([column[smaller], column[ties]]), minlength=len(d))
    return torch.from_numpy(removed)[order.permutation]


def check_budget(budget: object, pattern: Pattern) -> str | tuple[float, ...]:
    """A budget by name, or its shares as numbers. Raises RoseError unless shares sum to the sparsity."""
    if isinstance(budget, str):
        check_choice("The budget", budget, BUDGETS)
        return budget
    if pattern.is_grouped:
        raise RoseError(f"{pattern} fixes what every block gives up; choose a ratio for a budget of your own.")
    try:
        numbers = tuple(float(share) for share in budget)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise RoseError(f"A budget is 'block', 'layer' or a list of shares, one a block, not {budget!r}.") from None
    if not all(0 <= share <= 1 for share in numbers):  # also catches NaN
        raise RoseError("A share of a budget is a part of the layer's weights, a number from 0 to 1.")
    if abs(sum(numbers) - pattern.ratio) > SHARES_WITHIN:
        raise RoseError(f"The shares of a budget must sum to the sparsity {pattern}, not to {sum(numbers):.4g}.")
    return numbers


def own_budget(shares: Sequence[float], rows: int, widths: Sequence[int], pattern: Pattern) -> list[int]:
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


def sweep(
    weight: Tensor,
    factor: Tensor,
    order: Order,
    pattern: Pattern,
    counts: Sequence[int],
    divisor: Tensor | None = None,
    traced: tuple[Tensor, bool] | None = None,
    rounder: Rounder | None = None,
    mask: Tensor | None = None,
    few_rows: bool = False,
) -> Sweep:
    """Prunes one layer in the given order, and rounds kept weights if there is a `rounder`.

    Args:
        weight: W, (out, in) float32, dead columns already zero; not changed.
        factor: U for `order`, (in, in).
        order: columns and block widths as visited.
        pattern: N:M, which needs no `counts`, chooses the mask of each group just before its first column.
        counts: weights to remove from each visited block.
        divisor: d, (in,), in the order visited, to choose masks by (w/d)² in place of w²/U_jj².
        traced: damped H, (in, in), original order, for a trace, and whether the trace holds weights.
        rounder: rounds kept weights as their column is swept; later columns compensate the rounding.
        mask: a given mask, (out, in), original column order, in place of pattern and counts.
        few_rows: solves a tile at once, which is faster below about 100 rows. N:M chooses the masks of its groups
            at once, too.
    """
    # Transposed: each column of W is then a contiguous row, and compensation is a rank-1 update of rows below.
    wt = weight.T.index_select(0, order.permutation)
    is_fixed = mask is not None
    mask = torch.zeros_like(wt, dtype=torch.bool) if mask is None else mask.T.index_select(0, order.permutation)
    errors, of_kept = torch.empty(wt.shape[0], device=wt.device), wt.new_zeros((), dtype=torch.float64)
    divisor = factor.diagonal() if divisor is None else divisor
    record = None if traced is None else _TraceRecorder(wt, order, *traced)
    budgets = [0] * len(order.widths) if is_fixed else counts
    for start, width, count in zip(block_starts(order.widths), order.widths, budgets, strict=True):
        end = start + width
        choice = None if is_fixed else _Choice(pattern, count, divisor[start:end].unsqueeze(1), few_rows)
        before = wt[start:end].clone() if record else None
        within = factor[start:end, start:end]
        rounds = rounder and rounder.part(start, end)
        e = _prune_block(wt[start:end], mask[start:end], within, choice, rounds, few_rows or wt.is_cuda)
        wt[end:].addmm_(factor[start:end, end:].T, e, alpha=-1)
        wt[start:end].masked_fill_(mask[start:end], 0)
        errors[start:end] = e.square().sum(1)
        if rounder:
            of_kept += e.masked_fill(mask[start:end], 0).square().sum(dtype=torch.float64)
        if record and before is not None:
            record.block(wt, before, mask[start:end], start, float(errors[start:end].sum()))
    inverse = order.inverse
    return Sweep(
        weight=wt.T[:, inverse].contiguous(),
        mask=mask.T[:, inverse].contiguous(),
        column_error=errors[inverse],
        trace=record.trace() if record else None,
        kept_error=float(of_kept),
    )


@dataclass(frozen=True)
class _Choice:
    """The removed weights of a block, by (w/d)², d (width, 1): `count` of its weights, or N:M, group by group or tile
    by tile."""

    pattern: Pattern
    count: int
    divisor: Tensor
    by_tile: bool

    @property
    def step(self) -> int:
        """How many columns `reach` serves."""
        if not self.pattern.is_grouped:
            return TILE
        group = self.pattern.of
        return group * max(1, TILE // group) if self.by_tile else group

    def reach(self, wt: Tensor, mask: Tensor, start: int) -> None:
        """Fills the mask just before this column: for a whole block at its first column, or under N:M for a step. Both
        `wt` and `mask` are the block's, (width, out), with weights compensated so far."""
        if self.pattern.is_grouped:
            group = slice(start, start + self.step)
            mask[group] = smallest_per_group((wt[group] / self.divisor[group]).square().T, self.pattern).T
        elif start == 0:
            mask.copy_(smallest((wt / self.divisor).square(), self.count))


def _prune_block(
    wt: Tensor, mask: Tensor, factor: Tensor, choice: _Choice | None, rounder: Rounder | None, at_once: bool
) -> Tensor:
    """Masks one block and compensates within it, in place; returns its errors E, (width, out). `wt` and `mask` are
    transposed, (width, out); `choice`, if given, fills the mask. `factor` is U of the block."""
    width, diagonal = len(wt), factor.diagonal().unsqueeze(1)
    errors = torch.empty_like(wt)
    compensate = _tile_at_once if at_once else _tile_by_column
    step = choice.step if choice else TILE
    for start in range(0, width, step):
        end = min(start + step, width)
        if choice:
            choice.reach(wt, mask, start)
        scale = mask[start:end] / diagonal[start:end]  # 1/U_jj where removed, 0 where kept
        within = factor[start:end, start:end]
        if rounder:
            rounder.reach(wt, mask, start)
            _tile_rounded(wt[start:end], mask[start:end], within, errors[start:end], rounder.part(start, end))
        else:
            compensate(wt[start:end], scale, within, errors[start:end])
        wt[end:].addmm_(factor[start:end, end:].T, errors[start:end], alpha=-1)
    return errors


def _tile_rounded(wt: Tensor, mask: Tensor, factor: Tensor, errors: Tensor, rounder: Rounder) -> None:
    """e_j = (w_j − q_j)/U_jj and w_{j+1:} −= e_j · U_{j,j+1:}, column by column, in place; q_j is 0 where w_j is
    removed, else rounded. Arguments as for `_tile_by_column`, with the tile's mask, (width, out)."""
    steps = rounder.steps.masked_fill(mask, 0)  # without a step a weight becomes 0
    inverses, diagonal = inverse_of(steps), factor.diagonal().tolist()
    for j in range(len(wt)):
        q = round_each(wt[j], steps[j], inverses[j], rounder.grid)
        torch.sub(wt[j], q, out=errors[j]).div_(diagonal[j])
        wt[j] = q
        wt[j + 1 :].addr_(factor[j, j + 1 :], errors[j], alpha=-1)


def _tile_by_column(wt: Tensor, scale: Tensor, factor: Tensor, errors: Tensor) -> None:
    """e_j = scale_j · w_j and w_{j:} −= e_j · U_{j,j:}, column by column, in place: the fastest on a CPU. Weights,
    errors (which it fills) and `scale` of the tile are transposed, (width, out). `scale` is 1/U_jj for a removed weight
    and 0 for a kept weight; U is (width, width)."""
    for j in range(len(wt)):
        torch.mul(wt[j], scale[j], out=errors[j])
        wt[j + 1 :].addr_(factor[j, j + 1 :], errors[j], alpha=-1)


def _tile_at_once(wt: Tensor, scale: Tensor, factor: Tensor, errors: Tensor) -> None:
    """As `_tile_by_column`, by one triangular system for each row: e_j + scale_j Σ_{i<j} U_ij e_i = scale_j w_j. Rows
    remove different weights, so each has its own system; a GPU solves many in parallel."""
    earlier = factor.T
    systems = scale.T.unsqueeze(2) * earlier  # (out, width, width), below the diagonal, which is read as 1
    right = (scale * wt).T.unsqueeze(2)
    errors.copy_(torch.linalg.solve_triangular(systems, right, upper=False, unitriangular=True).squeeze(2).T)
    wt.addmm_(earlier, errors, alpha=-1)


class _TraceRecorder:
    """Collects a `SweepTrace`; a class of its own, so that an untraced sweep spends no time on it."""

    def __init__(self, wt: Tensor, order: Order, hessian: Tensor, keep_weights: bool) -> None:
        self.inverse = order.inverse
        self.hessian = hessian[order.permutation][:, order.permutation]
        self.start, self.keep_weights = wt.clone(), keep_weights
        self.weights = [wt.T[:, self.inverse]] if keep_weights else []
        self.removed: list[int] = []
        self.error: list[float] = []
        self.lost: list[float] = []
        self.moved: list[float] = []

    def block(self, wt: Tensor, before: Tensor, mask: Tensor, start: int, error: float) -> None:
        """`before`: the block just before its turn, (width, out); `mask`: its removed weights."""
        end = start + len(mask)
        if self.keep_weights:
            self.weights.append(wt.T[:, self.inverse])
        self.moved.append(float((wt - self.start).square().sum(dtype=torch.float64)))
        self.removed.append(int(mask.sum()))
        self.error.append(error)
        self.lost.append(quadratic_form((before * mask).T, self.hessian[start:end, start:end]))

    def trace(self) -> SweepTrace:
        columns, rows = self.start.shape
        return SweepTrace(
            weights=torch.stack(self.weights) if self.weights else self.start.new_empty(0, rows, columns),
            removed=torch.tensor(self.removed),
            error=torch.tensor(self.error, dtype=torch.float32),
            lost=torch.tensor(self.lost, dtype=torch.float32),
            moved=torch.tensor(self.moved, dtype=torch.float64),
        )


def error_inside(trace: SweepTrace, order: Order, mask: Tensor, hessian: Tensor, added: float) -> Tensor:
    """Σ e² of each block, (blocks,) float64, if only its own columns compensated, with its masks and weights at its
    turn. The trace has weights; mask and undamped H are in original column order; `added` is λ, absolute, of the
    sweep."""
    totals = []
    for before, columns in zip(trace.weights, order.permutation.split(list(order.widths)), strict=False):
        block_hessian = hessian[columns][:, columns].float()
        block_hessian.diagonal().add_(added)
        factor = damp(block_hessian, 0.0).natural_factor
        wt, removed, total = before[:, columns].T.clone(), mask[:, columns].T, 0.0
        for j in range(len(columns)):
            error = wt[j] * removed[j] / factor[j, j]
            wt[j:].addr_(factor[j, j:], error, alpha=-1)
            total += float(error.square().sum(dtype=torch.float64))
        totals.append(total)
    return torch.tensor(totals, dtype=torch.float64)
