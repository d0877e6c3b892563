"""Where the compensation of a sweep comes from: the block that is pruned, or the blocks after it.

A column is helped by all columns not pruned yet: those to its right inside its block, and all later blocks. The last
block has only the former. What they do alone is the same sweep with H of the block instead of H of all free columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rose.layer.hessian import damp
from rose.layer.order import Order
from rose.layer.sweep import SweepTrace


def error_inside(trace: SweepTrace, order: Order, mask: Tensor, hessian: Tensor, added: float) -> Tensor:
    """Σ e² that each block would have had if only its own columns could compensate, (blocks,) float64.

    With the masks of the sweep and the weights that each block had when its turn came. In the last block this is the
    sweep's own error.

    Args:
        trace: with weights.
        order: of the sweep.
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
