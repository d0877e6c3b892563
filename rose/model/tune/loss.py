"""How far the next-token distributions of a pruned model are from those of the dense one, with the gradient by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ROWS = 16  # tokens whose distributions are made at once, which then stay in the processor's own memory


class _Divergence(torch.autograd.Function):
    """Sum over tokens of KL(dense ‖ pruned) by logits, (tokens, vocabulary) each; its gradient is the difference of the
    two distributions, so that no float32 copy of all logits is ever kept."""

    @staticmethod
    def forward(ctx: Any, pruned: Tensor, dense: Tensor) -> Tensor:
        gradient, total = torch.empty_like(pruned), torch.zeros((), dtype=torch.float32, device=pruned.device)
        for own, wanted, slot in zip(pruned.split(ROWS), dense.split(ROWS), gradient.split(ROWS), strict=True):
            found = nn.functional.log_softmax(own.float(), 1)
            aim = nn.functional.log_softmax(wanted.float(), 1)
            share = aim.exp()
            total += (share * (aim - found)).sum()
            slot.copy_(found.exp_().sub_(share))
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
    """Sum over tokens of the loss of next tokens, in nats; logits (windows, length, vocabulary), tokens without the
    vocabulary's dimension."""
    ahead = logits[:, :-1].float().flatten(0, 1)
    return nn.functional.cross_entropy(ahead, windows[:, 1:].flatten(), reduction="sum")
