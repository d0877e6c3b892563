"""What other programs do to weights, in plain torch."""

import torch
from torch import Tensor


def compensate(weight: Tensor, ratio: float = 0.7) -> Tensor:
    """A pruned weight as programs leave it: the smallest are zero, the others have moved."""
    order = weight.abs().flatten().argsort()
    pruned = weight * (1 + 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    pruned.view(-1)[order[: round(ratio * len(order))]] = 0
    return pruned


def q4_0(weight: Tensor) -> Tensor:
    """Symmetric blocks of 32, as in GGUF: zero stays zero."""
    blocks = weight.reshape(-1, 32)
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    step = (largest / -8).half().float()
    levels = torch.where(step == 0, 0, blocks / step).add(8.5).floor().clamp(0, 15) - 8
    return (levels * step).reshape(weight.shape)


def q4_1(weight: Tensor) -> Tensor:
    """Blocks of 32 with an offset: nearly no zero stays zero."""
    blocks = weight.reshape(-1, 32)
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    step, low = ((high - low) / 15).half().float(), low.half().float()
    levels = torch.where(step == 0, 0, (blocks - low) / step).add(0.5).floor().clamp(0, 15)
    return (levels * step + low).reshape(weight.shape)
