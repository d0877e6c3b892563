"""A recorded sweep, and what compensation by a block alone would have left."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rose.layer.error import quadratic_form
from rose.layer.loss import block_sums
from rose.layer.order import Order


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


def trace_sweep(
    start: Tensor, W: Tensor, M: Tensor, E: Tensor, U: Tensor, *, order: Order, hessian: Tensor, keep_weights: bool
) -> SweepTrace:
    """The trace of a sweep that has ended: after k columns the weights were W_0 − E_{:,:k} U_{:k,:}.

    Args:
        start: W_0; the other matrices are as `rose.layer.sweep.sweep` leaves them.
        hessian: the damped H, (in, in), in original column order.
        keep_weights: whether the trace holds weights.
    """
    now, stop = start.clone(), 0
    weights, lost, moved = [order.restore(start)] * keep_weights, [], []
    for columns, width in zip(order.permutation.split(list(order.widths)), order.widths, strict=True):
        block = slice(stop, stop := stop + width)
        lost.append(quadratic_form(now[:, block] * M[:, block], hessian[columns][:, columns]))
        now[:, stop:].addmm_(E[:, block], U[block, stop:], alpha=-1)
        now[:, block] = W[:, block]
        moved.append(float((now - start).square().sum(dtype=torch.float64)))
        if keep_weights:
            weights.append(order.restore(now))
    return SweepTrace(
        weights=torch.stack(weights) if weights else start.new_empty(0, *start.shape),
        removed=block_sums(M.sum(0), order.widths).cpu(),
        error=block_sums(E.square().sum(0), order.widths).cpu(),
        lost=torch.tensor(lost, dtype=torch.float32),
        moved=torch.tensor(moved, dtype=torch.float64),
    )
