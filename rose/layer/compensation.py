"""Where the compensation of a sweep comes from: later columns of the same block, or later blocks.

The block's own part is the same sweep with H of the block instead of H of all free columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rose.layer.hessian import damp
from rose.layer.order import Order
from rose.layer.sweep import SweepTrace


def error_inside(trace: SweepTrace, order: Order, mask: Tensor, hessian: Tensor, added: float) -> Tensor:
    """Σ e² of each block if only its own columns compensated, (blocks,) float64, with the masks and weights of its
    turn.

    Args:
        trace: with weights.
        mask: True = removed, (out, in), original column order.
        hessian: H, (in, in), undamped, original column order.
        added: λ, absolute, of the sweep (`LayerResult.added_damping`).
    """
    totals = []
    for before, columns in zip(trace.weights, order.permutation.split(list(order.widths)), strict=False):
        own = hessian[columns][:, columns].float()
        own.diagonal().add_(added)
        factor = damp(own, 0.0).natural_factor
        wt, removed, total = before[:, columns].T.clone(), mask[:, columns].T, 0.0
        for j in range(len(columns)):
            error = wt[j] * removed[j] / factor[j, j]
            wt[j:].addr_(factor[j, j:], error, alpha=-1)
            total += float(error.square().sum(dtype=torch.float64))
        totals.append(total)
    return torch.tensor(totals, dtype=torch.float64)
