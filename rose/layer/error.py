"""Three independent ways to measure what pruning did to a layer; they must agree.

1. The quadratic form tr(ΔW H ΔWᵀ), from the Hessian alone.
2. The sum over a sweep of e², exact under the damped Hessian (see `sweep`): it equals the quadratic form
   plus λ‖ΔW‖².
3. The direct ‖(W − Ŵ)Xᵀ‖² on tokens, which needs no Hessian. On held-out tokens it shows over-fitting.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rose.layer.statistics import PANEL, InputStatistics


def quadratic_form(change: Tensor, hessian: Tensor) -> float:
    """tr(ΔW H ΔWᵀ), the squared error of the layer's outputs; ΔW (out, in), H (in, in). H is symmetric, so each panel
    below the diagonal is multiplied once and counted twice."""
    change, hessian = change.float(), hessian.to(change.device, torch.float32)
    total = torch.zeros((), dtype=torch.float64, device=change.device)
    for start in range(0, len(hessian), PANEL):
        end = min(start + PANEL, len(hessian))
        panel = change[:, start:end]
        below = change[:, end:] @ hessian[end:, start:end]
        product = torch.addmm(below, panel, hessian[start:end, start:end], beta=2)
        # Only the final sum is in float64: a sum of millions of float32 terms would lose digits.
        total += (product * panel).sum(dtype=torch.float64)
    return float(total)


def relative_error(weight: Tensor, pruned: Tensor, hessian: Tensor, dense: float | None = None) -> float:
    """tr(ΔW H ΔWᵀ) / tr(W H Wᵀ); 0 where the layer put out nothing before and puts out nothing now. `dense`: tr(W H
    Wᵀ), if known already."""
    dense = quadratic_form(weight, hessian) if dense is None else dense
    return ratio(quadratic_form(difference(weight, pruned), hessian), dense)


def difference(weight: Tensor, pruned: Tensor) -> Tensor:
    """W − Ŵ in float32, (out, in), without a float32 copy of either that would be in memory beside it."""
    return weight.to(torch.float32, copy=True).sub_(pruned)


def ratio(change: float, dense: float) -> float:
    """change / dense of two energies; 0 if both are 0, and at least 0, although rounding can make `change` negative."""
    if dense <= 0:
        return 0.0 if change <= 0 else float("inf")
    return max(change, 0.0) / dense


def direct_error(weight: Tensor, pruned: Tensor, inputs: Tensor) -> float:
    """‖(W − Ŵ)Xᵀ‖² on inputs of shape (tokens, in)."""
    return float((inputs.float() @ difference(weight, pruned).T).square().sum(dtype=torch.float64))


def sweep_error(column_error: Tensor, change: Tensor, added: float) -> float:
    """The undamped error of a sweep, from its e²: Σ e² − λ‖ΔW‖²."""
    damped = float(column_error.sum(dtype=torch.float64))
    return damped - added * float(change.float().square().sum(dtype=torch.float64))


def column_error(change: Tensor, factor: Tensor) -> Tensor:
    """Error at each column when the columns after it may still compensate, (in,), for any ΔW, (out, in): the squares
    of ΔW U⁻¹, as H = U⁻¹U⁻ᵀ. `factor` is U, (in, in), for the order of ΔW's columns."""
    solved = torch.linalg.solve_triangular(factor, change.float(), upper=True, left=False)
    return solved.square().sum(0)


# In SmolLM2-135M, 0.5 % of the channels carry at least 94 % of the input in 11 and 28 . down_proj over three draws, and
# at most 85 % in any other layer; in Qwen2.5-Coder-0.5B at most 43 % (docs/lab-notes/engine.md).
FEW = 0.005  # share of the channels, at least one channel
NEARLY_ALL = 0.9  # share of trace(H)


@dataclass(frozen=True)
class MassiveActivation:
    """The few channels that carry nearly all of a layer's input, and the error over all other channels."""

    channels: tuple[int, ...]  # the fewest with at least `NEARLY_ALL` of trace(H), the most active first
    share: float  # of trace(H)
    first_share: float  # share of the channels' squares at the first position of windows; NaN if positions are unknown
    error: float  # tr(ΔW H' ΔWᵀ) / tr(W H' Wᵀ), where H' is H without their rows and columns

    @classmethod
    def find(
        cls, weight: Tensor, pruned: Tensor, statistics: InputStatistics, hessian: Tensor | None = None
    ) -> MassiveActivation | None:
        """None in a layer without massive activations. W and Ŵ are (out, in); `hessian`, (in, in), is of the inputs
        that the error is on, if these differ."""
        channels = massive_channels(statistics.diagonal)
        if not channels:
            return None
        share = float(statistics.diagonal[list(channels)].sum() / statistics.diagonal.sum())
        first = statistics.first_share(channels)
        inputs = statistics.hessian if hessian is None else hessian
        mask = torch.ones(weight.shape[1], device=inputs.device)
        mask[list(channels)] = 0  # with zero weights, H's rows and columns add nothing
        weight, pruned = weight.to(inputs.device), pruned.to(inputs.device)
        change = quadratic_form(difference(weight, pruned).mul_(mask), inputs)
        return cls(channels, share, first, ratio(change, quadratic_form(weight.float() * mask, inputs)))


def massive_channels(diagonal: Tensor) -> tuple[int, ...]:
    """The fewest channels that carry at least `NEARLY_ALL` of the input by diag(H), (in,), the most active first. The
    result is empty if more than `FEW` of all channels are needed, or all inputs were 0."""
    total = float(diagonal.sum(dtype=torch.float64))
    if not total > 0:
        return ()
    values, order = diagonal.double().sort(descending=True, stable=True)
    carried = values[: max(1, int(FEW * len(values)))].cumsum(0) / total
    needed = int((carried < NEARLY_ALL).sum()) + 1
    return tuple(order[:needed].tolist()) if needed <= len(carried) else ()
