"""A layer by its columns, and when it becomes columnar: the four numbers of each column that decide it, and the
relative range at other sparsities and block sizes. A finished study keeps them of every layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rose.layer.loss import block_widths
from rose.layer.order import Order, OrderPlan, half_width, left_out, plan_from_importance, sort_two_level
from rose.layer.pattern import parse_sparsity

SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
HEADS = (0.5, 1.0, 2.0, 4.0)  # a block holds, of the block sizes
HEAD_WIDTH = 64  # columns, in models whose heads are not known
MOST_ROWS = 1024  # of W, evenly spaced, that ranges at other settings are measured on
ROWS_OF_SPREAD = 128  # for the spread of these ranges over draws of text


def block_sizes(head_width: int | None) -> tuple[int, ...]:
    """The block sizes of a profile's ranges, in columns, for heads of this width."""
    return tuple(int(heads * (head_width or HEAD_WIDTH)) for heads in HEADS)


@dataclass(frozen=True, eq=False)
class Profile:
    """Attributes:
    weight_norm: ‖W_j‖, (in,).
    input_norm: the root mean square of input j, √(H_jj / tokens), (in,).
    importance: the mean of S over rows, (in,).
    losses: column loss, (block sizes, in), at one sparsity.
    sizes: the block size of each row of `losses`, in columns; the plan's own comes first.
    ranges: (sparsities, block sizes, 3): relative range and its 95 % interval over draws of text, at `SPARSITIES` and
        `block_sizes` of the model; NaN where the interval is not known.
    """

    weight_norm: Tensor
    input_norm: Tensor
    importance: Tensor
    losses: Tensor
    sizes: tuple[int, ...]
    ranges: Tensor

    def widths(self, size: int) -> tuple[int, ...]:
        return block_widths(len(self.weight_norm), size)

    def column_loss(self, size: int) -> Tensor:
        """(in,), with blocks of this size where that was measured, else with the plan's own."""
        return self.losses[self.sizes.index(size) if size in self.sizes else 0]

    def order(self, size: int, unit: int = 1) -> Order:
        """Two-level order; groups of `unit` columns stay whole."""
        return sort_two_level(self.column_loss(size), self.widths(size), unit)

    def pack(self) -> dict[str, Tensor]:
        """Tensors for a file; columns as float16, relative to the largest of their kind."""
        columns = torch.stack([self.weight_norm, self.input_norm, self.importance, *self.losses]).float()
        largest = columns.amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return {
            "columns": (columns / largest).half(),
            "largest": largest.flatten(),
            "sizes": torch.tensor(self.sizes),
            "ranges": self.ranges.half(),
        }

    @classmethod
    def unpack(cls, parts: Mapping[str, Tensor]) -> Profile:
        weights, inputs, importance, *losses = parts["columns"].float() * parts["largest"].unsqueeze(1)
        sizes = tuple(int(size) for size in parts["sizes"])
        return cls(weights, inputs, importance, torch.stack(losses), sizes, parts["ranges"].float())


def profile(weight: Tensor, plan: OrderPlan, sizes: Sequence[int], *, has_heads: bool = False) -> Profile:
    """The profile of a layer, W (out, in), from its plan. `sizes`: block sizes of the ranges; losses are measured at
    all of them where the columns belong to heads."""
    assert plan.inputs is not None
    losses, at = [plan.column_loss], [plan.block_size]
    for size in sizes if has_heads and not plan.pattern.is_grouped else ():
        if size != plan.block_size:
            other = plan_from_importance(plan.importance, sparsity=plan.pattern, block_size=size)
            losses.append(other.column_loss)
            at.append(size)
    return Profile(
        weight_norm=weight.float().norm(dim=0).cpu(),
        input_norm=plan.inputs.mean_square.sqrt().cpu(),
        importance=plan.importance.mean(0).cpu(),
        losses=torch.stack(losses).cpu(),
        sizes=tuple(at),
        ranges=range_grid(plan, sizes),
    )


def range_grid(plan: OrderPlan, sizes: Sequence[int], sparsities: Sequence[float] = SPARSITIES) -> Tensor:
    """Relative range and its 95 % interval, as `OrderPlan.interval`, at each sparsity and block size:
    (sparsities, sizes, 3). Of a layer with more than `MOST_ROWS` output channels, that many are looked at."""
    score, groups = plan.importance.cpu(), plan.inputs.by_group if plan.inputs else None
    result = torch.full((len(sparsities), len(sizes), 3), float("nan"))
    rows, few = score[:: math.ceil(len(score) / MOST_ROWS)], score[:: math.ceil(len(score) / ROWS_OF_SPREAD)]
    for place, size in enumerate(sizes):
        widths = block_widths(score.shape[1], size)
        exact = _ranges(rows, sparsities, widths)
        result[:, place, 0] = torch.from_numpy(exact)
        if groups is not None:
            half = half_width([_ranges(few * scale, sparsities, widths) for scale in left_out(groups.cpu())])
            result[:, place, 1] = torch.from_numpy((exact - half).clip(0, 1))
            result[:, place, 2] = torch.from_numpy((exact + half).clip(0, 1))
    return result


def _ranges(score: Tensor, sparsities: Sequence[float], widths: Sequence[int]) -> np.ndarray:
    """Relative ranges of S, (out, in), (sparsities,): one selection for all of them."""
    losses = np.zeros((len(sparsities), len(widths)))
    for place, block in enumerate(score.split(list(widths), dim=1)):
        flat = block.reshape(-1).numpy()
        counts = [parse_sparsity(sparsity).count(flat.size) for sparsity in sparsities]
        ordered = np.partition(flat, [max(0, count - 1) for count in counts])  # left of each place all are smaller
        losses[:, place] = np.concatenate([[0.0], ordered.cumsum(dtype=np.float64)])[counts] / widths[place]
    largest = losses.max(1)
    return np.divide(largest - losses.min(1), largest, out=np.zeros_like(largest), where=largest > 0)
