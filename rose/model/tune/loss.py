"""Distance between next-token distributions of the pruned and the dense model, with its gradient by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ROWS = 16  # tokens whose distributions are made at once, small enough for the processor's cache


class _Divergence(torch.autograd.Function):
    """Sum over tokens of KL(dense ‖ pruned) by logits, (tokens, vocabulary) each; the gradient is the difference of the
    distributions, so no float32 copy of all logits is kept."""

    @staticmethod
    def forward(ctx: Any, pruned: Tensor, dense: Tensor) -> Tensor:
        gradient, total = torch.empty_like(pruned), torch.zeros((), dtype=torch.float32, device=pruned.device)
        for logits, target, slot in zip(pruned.split(ROWS), dense.split(ROWS), gradient.split(ROWS), strict=True):
            log_q = nn.functional.log_softmax(logits.float(), 1)
            log_p = nn.functional.log_softmax(target.float(), 1)
            p = log_p.exp()
            total += (p * (log_p - log_q)).sum()
            slot.copy_(log_q.exp_().sub_(p))
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(above[0]), None  # of no further use, and large


def divergence(pruned: Tensor, dense: Tensor) -> Tensor:
    """Sum over tokens of KL(dense ‖ pruned), in nats; logits of (windows, length, vocabulary)."""
    return _Divergence.apply(pruned.flatten(0, 1), dense.flatten(0, 1))


def cross_entropy(logits: Tensor, windows: Tensor) -> Tensor:
    """Sum over tokens of the loss of next tokens, in nats; logits (windows, length, vocabulary), windows (windows,
    length)."""
    ahead = logits[:, :-1].float().flatten(0, 1)
    return nn.functional.cross_entropy(ahead, windows[:, 1:].flatten(), reduction="sum")
