"""Masks of the smallest entries, and pre-pruning: how much importance each column and each block would lose (ROSE,
arXiv 2603.05878, section 3).

Nothing is pruned here: |W|·‖x‖ cheaply estimates which columns the sweep will damage.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from rose.layer.pattern import Pattern


def kth_smallest(score: Tensor, count: int) -> Tensor:
    """The `count`-th smallest entry of every row, (..., columns) -> (..., 1). A selection: linear, unlike a sort."""
    if score.device.type == "cpu" and score.dtype == torch.float32:
        # NumPy selects with vector instructions, ten times as fast as torch.kthvalue.
        return torch.from_numpy(np.partition(score.detach().numpy(), count - 1)[..., count - 1 : count])
    return score.kthvalue(count, dim=-1, keepdim=True).values


def smallest(score: Tensor, count: int, of: int = 0) -> Tensor:
    """Mask of exactly `count` smallest entries, finite, of the whole tensor or of every `of` neighbours of its last
    dimension, such as a row or an N:M group; ties go to the lower index."""
    parts = score.reshape(-1, of or score.numel())
    if count <= 0:
        return torch.zeros_like(score, dtype=torch.bool)
    threshold = kth_smallest(parts, count)
    mask = parts <= threshold
    if int(mask.sum()) > threshold.numel() * count:  # ties
        mask, ties = parts < threshold, parts == threshold
        missing = count - mask.sum(-1, keepdim=True)
        mask |= ties & (ties.cumsum(-1) <= missing)
    return mask.view(score.shape)


def block_widths(columns: int, block_size: int) -> tuple[int, ...]:
    """Widths of the blocks of columns from left to right; the last one may be narrower."""
    full, rest = divmod(columns, block_size)
    return (block_size,) * full + ((rest,) if rest else ())


def block_starts(widths: Sequence[int]) -> list[int]:
    """First column of each block."""
    return [0, *accumulate(widths)][:-1]


def importance(weight: Tensor, mean_square: Tensor) -> Tensor:
    """S = |W| · sqrt(mean of x_j²), the score of Wanda (Sun et al. 2024, equation 1); (out, in)."""
    return weight.abs().float() * mean_square.sqrt()


def potential_loss(score: Tensor, pattern: Pattern, widths: Sequence[int]) -> Tensor:
    """L: S where pre-pruning would remove the weight, else 0 (ROSE, "pre-pruning"); (out, in). Each block, of these
    widths left to right, gives up its `round(ratio · size)` smallest S. Under N:M each group gives up its smallest."""
    if pattern.is_grouped:
        return score * smallest(score, pattern.of - pattern.keep, pattern.of)
    masks = [smallest(block, pattern.count(block.numel())) for block in score.split(list(widths), dim=1)]
    return score * torch.cat(masks, dim=1)


def block_sums(column_loss: Tensor, widths: Sequence[int]) -> Tensor:
    """Sum of column losses over each block, (blocks,)."""
    return torch.stack([block.sum() for block in column_loss.split(list(widths))])


def loss_per_column(column_loss: Tensor, widths: Sequence[int]) -> Tensor:
    """Block loss divided by the block's width, (blocks,): what blocks are compared by."""
    return block_sums(column_loss, widths) / torch.tensor(widths, device=column_loss.device)


def variance_between(column_loss: Tensor, width: int) -> float:
    """The share of the variance of column losses, (in,), that lies between heads of `width` neighbouring columns; 0
    where all columns lose alike."""
    losses = column_loss.double().view(-1, width)
    total = float(losses.var(correction=0))
    return float(losses.mean(1).var(correction=0)) / total if total > 0 else 0.0


def relative_range(block_loss: Tensor, widths: Sequence[int]) -> float:
    """(max − min) / max of block loss per column, so that a narrow block does not look cheap; 0 without any loss (ROSE,
    "relative range")."""
    per_column = block_loss / torch.tensor(widths, device=block_loss.device)
    largest = per_column.max().item()
    return (largest - per_column.min().item()) / largest if largest > 0 else 0.0
