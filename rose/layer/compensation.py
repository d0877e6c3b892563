"""The sources of a sweep's compensation: later columns of the same block, or later blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from rose.layer.hessian import damp
from rose.layer.order import Order
from rose.layer.sweep import SweepTrace


def error_inside(trace: SweepTrace, order: Order, mask: Tensor, hessian: Tensor, added: float) -> Tensor:
    """Σ e² of each block if only its own columns compensated, (blocks,) float64, with the masks and weights of its
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
