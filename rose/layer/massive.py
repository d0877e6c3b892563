"""Massive activations: layers in which very few input channels carry nearly all of the input.

In trained transformers some channels are thousands of times as active as others, mostly at the first
position of a window, where attention rests (Sun, Chen, Kolter and Liu 2024, "Massive Activations in Large Language
Models", arXiv 2402.17762). They make up trace(H). Damping, which is relative to it, then outweighs the other channels,
and the layer's relative error says little of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rose.layer.error import difference, quadratic_form, ratio
from rose.layer.statistics import InputStatistics

# In SmolLM2-135M, 0.5 % of the channels carry at least 94 % of the input in 11 and 28 . down_proj over three draws, and
# at most 85 % in any other layer; in Qwen2.5-Coder-0.5B at most 43 % (docs/lab-notes/engine.md).
FEW = 0.005  # share of the channels, at least one channel
NEARLY_ALL = 0.9  # share of trace(H)


@dataclass(frozen=True)
class MassiveActivation:
    """The few channels that carry nearly all of a layer's input, and the error over all other channels."""

    channels: tuple[int, ...]  # the fewest with at least `NEARLY_ALL` of trace(H), the most active first
    share: float  # of trace(H)
    first_share: float  # of their squares, at the first position of windows; NaN where positions are not known
    error: float  # tr(ΔW H' ΔWᵀ) / tr(W H' Wᵀ), where H' is H without their rows and columns

    @classmethod
    def find(
        cls, weight: Tensor, pruned: Tensor, statistics: InputStatistics, hessian: Tensor | None = None
    ) -> MassiveActivation | None:
        """None in a layer without massive activations.

        Args:
            weight, pruned: W and Ŵ, (out, in).
            statistics: of the inputs.
            hessian: (in, in), of the inputs that the error is on, where they are others.
        """
        channels = massive_channels(statistics.diagonal)
        if not channels:
            return None
        share = float(statistics.diagonal[list(channels)].sum() / statistics.diagonal.sum())
        first = statistics.first_share(channels)
        inputs = statistics.hessian if hessian is None else hessian
        return cls(channels, share, first, error_without(weight, pruned, inputs, channels))


def massive_channels(diagonal: Tensor) -> tuple[int, ...]:
    """The fewest channels that carry at least `NEARLY_ALL` of the input, the most active first; none where more than
    `FEW` of all channels are needed, or no input was.

    Args:
        diagonal: diag(H), (in,).
    """
    total = float(diagonal.sum(dtype=torch.float64))
    if not total > 0:
        return ()
    values, order = diagonal.double().sort(descending=True, stable=True)
    carried = values[: max(1, int(FEW * len(values)))].cumsum(0) / total
    needed = int((carried < NEARLY_ALL).sum()) + 1
    return tuple(order[:needed].tolist()) if needed <= len(carried) else ()


def error_without(weight: Tensor, pruned: Tensor, hessian: Tensor, channels: tuple[int, ...]) -> float:
    """The relative error over the inputs of all channels but these, see `MassiveActivation.error`."""
    mask = torch.ones(weight.shape[1], device=hessian.device)
    mask[list(channels)] = 0  # of zero weights H's rows and columns count nothing
    weight, pruned = weight.to(hessian.device), pruned.to(hessian.device)
    change = quadratic_form(difference(weight, pruned).mul_(mask), hessian)
    return ratio(change, quadratic_form(weight.float() * mask, hessian))
