"""The sweep: mask and compensate, block by block (SparseGPT, Frantar and Alistarh 2023, algorithm 1).

Notation as in that paper: U is the upper Cholesky factor of the inverse Hessian, e = w_j / U_jj the error
of a removed weight, and removing it costs e². Later columns absorb what they can: w_{j:} −= e · U_{j,j:}.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rose.layer.error import quadratic_form
from rose.layer.loss import block_starts, block_sums
from rose.layer.order import Order
from rose.layer.pattern import Pattern, smallest, smallest_per_group

# Columns that compensate one another one at a time; the rest of the block follows them at once, by a matrix product,
# instead of being read and written for each. On one core 16 was as fast as 32 and faster than 8.
TILE = 16


@dataclass(frozen=True)
class SweepTrace:
    """A recorded sweep, one entry per block, in the order visited.

    Attributes:
        weights: (blocks + 1, out, in) float32, original column order: before the sweep, and after each block.
        removed: (blocks,) weights removed.
        error: (blocks,) Σ e² of the block; their running sum is the error against pruned blocks.
        lost: (blocks,) what removing the block's weights would have cost with nothing to compensate.
            Free columns are at their optimum before each block, so the cost is δ H_bb δᵀ without cross terms.
        compensated: (blocks,) lost − error.
    """

    weights: Tensor
    removed: Tensor
    error: Tensor
    lost: Tensor

    @property
    def compensated(self) -> Tensor:
        return self.lost - self.error


@dataclass(frozen=True)
class Sweep:
    """What a sweep returns.

    Attributes:
        weight: pruned and compensated, (out, in) float32, original column order.
        mask: True = removed, (out, in), original column order.
        column_error: Σ_rows e², (in,), original column order.
        block_error: the same per block, (blocks,), in the order visited.
        trace: the recorded sweep, None unless a Hessian was given for it.
    """

    weight: Tensor
    mask: Tensor
    column_error: Tensor
    block_error: Tensor
    trace: SweepTrace | None


def block_budget(pattern: Pattern, rows: int, widths: Sequence[int]) -> list[int]:
    """The same ratio in every block: how many weights each gives up (SparseGPT, ROSE)."""
    return [pattern.count(rows * width) for width in widths]


def layer_budget(
    weight: Tensor, factor: Tensor, pattern: Pattern, order: Order, divisor: Tensor | None = None
) -> list[int]:
    """One threshold on the saliency over the layer, before the sweep: how many weights of each block fall under it.

    Args:
        weight: (out, in), original column order.
        factor: U for `order`, (in, in).
        divisor: as in `sweep`.
    """
    saliency = (weight[:, order.permutation] / (factor.diagonal() if divisor is None else divisor)).square()
    mask = smallest(saliency, pattern.count(saliency.numel()))
    return [int(block.sum()) for block in mask.split(list(order.widths), dim=1)]


def sweep(
    weight: Tensor,
    factor: Tensor,
    order: Order,
    pattern: Pattern,
    counts: Sequence[int],
    trace_hessian: Tensor | None = None,
    divisor: Tensor | None = None,
) -> Sweep:
    """Prunes one layer in the given order.

    Args:
        weight: W, (out, in) float32, dead columns already zero; not changed.
        factor: U for `order`, (in, in).
        order: columns and block widths as visited.
        pattern: for N:M the mask is chosen inside each group just before its first column, from compensated
            weights, and `counts` is not used.
        counts: weights to remove from each visited block.
        trace_hessian: damped H, (in, in), original order; given where a trace is wanted.
        divisor: d where the mask is to be chosen by (w/d)² and not by w²/U_jj², (in,), in the order visited.
    """
    # Transposed: each column of W is then a contiguous row, and compensation is a rank-1 update of rows below.
    wt = weight.T.index_select(0, order.permutation)
    mask = torch.zeros_like(wt, dtype=torch.bool)
    errors = torch.empty(wt.shape[0], device=wt.device)
    divisor = factor.diagonal() if divisor is None else divisor
    record = None if trace_hessian is None else _Recorder(wt, order, trace_hessian)
    for start, width, count in zip(block_starts(order.widths), order.widths, counts, strict=True):
        end = start + width
        before = wt[start:end].clone() if record else None
        within = factor[start:end, start:end]
        e = _prune_block(wt[start:end], mask[start:end], within, divisor[start:end], pattern, count)
        wt[end:].addmm_(factor[start:end, end:].T, e, alpha=-1)
        wt[start:end].masked_fill_(mask[start:end], 0)
        errors[start:end] = e.square().sum(1)
        if record and before is not None:
            record.block(wt, before, mask[start:end], start, float(errors[start:end].sum()))
    inverse = order.inverse
    return Sweep(
        weight=wt.T[:, inverse].contiguous(),
        mask=mask.T[:, inverse].contiguous(),
        column_error=errors[inverse],
        block_error=block_sums(errors, order.widths),
        trace=record.trace() if record else None,
    )


def _prune_block(wt: Tensor, mask: Tensor, factor: Tensor, divisor: Tensor, pattern: Pattern, count: int) -> Tensor:
    """Masks one block and compensates within it, in place; returns its errors E, (width, out).

    Args:
        wt: the block's weights, transposed, (width, out).
        mask: to be filled, (width, out).
        factor: U of the block, (width, width).
        divisor: of weights in the saliency, (width,).
    """
    width = len(wt)
    diagonal, divisor = factor.diagonal().unsqueeze(1), divisor.unsqueeze(1)
    if not pattern.is_grouped:
        mask.copy_(smallest((wt / divisor).square(), count))
    errors = torch.empty_like(wt)
    compensate = _tile_at_once if wt.is_cuda else _tile_by_column
    for start in range(0, width, pattern.of or TILE):
        end = min(start + (pattern.of or TILE), width)
        if pattern.is_grouped:
            saliency = (wt[start:end] / divisor[start:end]).square()
            mask[start:end] = smallest_per_group(saliency.T, pattern).T
        scale = mask[start:end] / diagonal[start:end]  # 1/U_jj where removed, 0 where kept
        compensate(wt[start:end], scale, factor[start:end, start:end], errors[start:end])
        wt[end:].addmm_(factor[start:end, end:].T, errors[start:end], alpha=-1)
    return errors


def _tile_by_column(wt: Tensor, scale: Tensor, factor: Tensor, errors: Tensor) -> None:
    """e_j = scale_j · w_j, and w_{j:} −= e_j · U_{j,j:}, column after column, in place: the fastest on a CPU.

    Args:
        wt: the tile's weights, transposed, (width, out).
        scale: 1/U_jj of a removed weight, 0 of a kept one, (width, out).
        factor: U of the tile, (width, width).
        errors: to be filled, (width, out).
    """
    for j in range(len(wt)):
        torch.mul(wt[j], scale[j], out=errors[j])
        wt[j + 1 :].addr_(factor[j, j + 1 :], errors[j], alpha=-1)


def _tile_at_once(wt: Tensor, scale: Tensor, factor: Tensor, errors: Tensor) -> None:
    """The same by one triangular system for each row: e_j + scale_j Σ_{i<j} U_ij e_i = scale_j w_j.

    Rows remove different weights, so each has its own system; a GPU solves many small ones in parallel, where a loop
    over columns would launch two kernels for each. Arguments as for `_tile_by_column`.
    """
    earlier = factor.triu(1).T
    systems = scale.T.unsqueeze(2) * earlier  # (out, width, width), below the diagonal, which is 1
    right = (scale * wt).T.unsqueeze(2)
    errors.copy_(torch.linalg.solve_triangular(systems, right, upper=False, unitriangular=True).squeeze(2).T)
    wt.addmm_(earlier, errors, alpha=-1)


class _Recorder:
    """Collects a `SweepTrace`; kept apart so that an untraced sweep pays nothing."""

    def __init__(self, wt: Tensor, order: Order, hessian: Tensor) -> None:
        self.inverse = order.inverse
        self.hessian = hessian[order.permutation][:, order.permutation]
        self.weights = [self._natural(wt)]
        self.removed: list[int] = []
        self.error: list[float] = []
        self.lost: list[float] = []

    def _natural(self, wt: Tensor) -> Tensor:
        return wt.T[:, self.inverse].clone()

    def block(self, wt: Tensor, before: Tensor, mask: Tensor, start: int, error: float) -> None:
        """`before`: the block as it stood when its turn came, (width, out); `mask`: what it gave up."""
        end = start + len(mask)
        self.weights.append(self._natural(wt))
        self.removed.append(int(mask.sum()))
        self.error.append(error)
        self.lost.append(quadratic_form((before * mask).T, self.hessian[start:end, start:end]))

    def trace(self) -> SweepTrace:
        return SweepTrace(
            torch.stack(self.weights), torch.tensor(self.removed), torch.tensor(self.error), torch.tensor(self.lost)
        )
