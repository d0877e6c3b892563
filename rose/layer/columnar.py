"""How a layer is columnar: the block that stands out, and why.

The relative range is high where one block loses much more than the others, and where one loses much less.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log
from typing import Literal

import torch
from torch import Tensor

from rose.layer.order import OrderPlan

APART = 1.25  # factor below which a block's weights or inputs count as typical
NOTHING = 1e-12  # stands for 0 where a ratio is taken as a logarithm
LEADS = 2.0  # times as far out, in logarithms, as the other must a cause be to be named alone
Cause = Literal["inputs", "weights", "both", "neither"]


@dataclass(frozen=True)
class Outlier:
    """The block that makes a layer columnar, or would.

    Attributes:
        block: its loss per column lies furthest from the median block's, as a ratio.
        is_strong: whether it loses more than the median block; else less.
        other: the block at the other end.
        ratio: loss per column of `block` over that of `other`.
        weight_norm, input_norm: mean norm of its weight columns and inputs, over the median of the other blocks' means.
        cause: which of the two lies out the way the loss does.
        heads: attention heads in the block that lie out with it; none where inputs are no heads' outputs.
    """

    block: int
    is_strong: bool
    other: int
    ratio: float
    weight_norm: float
    input_norm: float
    cause: Cause
    heads: tuple[int, ...] = ()


def outlier(plan: OrderPlan, weight: Tensor, input_norm: Tensor, heads: int = 0) -> Outlier | None:
    """The block that stands out; None where no block is worth more than another. `input_norm` is the root mean
    square of each input, (in,); `heads` lie side by side in the columns, 0 for other inputs."""
    loss = plan.loss_per_column.double().cpu()
    if len(loss) < 2 or loss.max() <= 0:
        return None
    size = loss.clamp(min=loss.max() * NOTHING).log()  # of a block without any loss, too
    above = size - size.quantile(0.5)
    is_strong = bool(above.max() >= -above.min())
    ends = int(loss.argmax()), int(loss.argmin())
    block, other = ends if is_strong else ends[::-1]
    sign = 1.0 if is_strong else -1.0
    by_weight = _against_others(weight.float().norm(dim=0), plan.block_width, block)
    by_input = _against_others(input_norm, plan.block_width, block)
    return Outlier(
        block=block,
        is_strong=is_strong,
        other=other,
        ratio=float(loss[block] / loss[other]) if loss[other] > 0 else inf,
        weight_norm=by_weight,
        input_norm=by_input,
        cause=_cause(sign * log(max(by_weight, NOTHING)), sign * log(max(by_input, NOTHING))),
        heads=_heads_of(plan, block, sign, heads),
    )


def _against_others(norm: Tensor, widths: tuple[int, ...], block: int) -> float:
    """Mean of a block over the median of the other blocks' means; 1 where all are 0."""
    means = torch.stack([part.double().mean() for part in norm.cpu().split(list(widths))])
    rest = torch.cat([means[:block], means[block + 1 :]]).quantile(0.5)
    return float(means[block] / rest) if rest > 0 else inf if means[block] > 0 else 1.0


def _cause(by_weight: float, by_input: float) -> Cause:
    """Arguments: logarithms of how far weights and inputs lie out, positive the way the loss does."""
    if max(by_weight, by_input) < log(APART):
        return "neither"
    if by_input > LEADS * max(by_weight, 0.0):
        return "inputs"
    return "weights" if by_weight > LEADS * max(by_input, 0.0) else "both"


def _heads_of(plan: OrderPlan, block: int, sign: float, heads: int) -> tuple[int, ...]:
    """The block's heads at least half as far out, by importance, as the furthest of them. Loss would not do: a
    strong head loses little where a weak one gives up weights in its place."""
    columns = plan.column_loss.numel()
    if not heads or columns % heads:
        return ()
    score, widths = plan.importance.double().mean(0).cpu(), list(plan.block_width)
    middle = max(NOTHING, float(torch.stack([part.mean() for part in score.split(widths)]).quantile(0.5)))
    width, start = columns // heads, sum(widths[:block])
    end, far = start + widths[block], {}
    for head in range(start // width, -(-end // width)):
        inside = score[max(start, head * width) : min(end, (head + 1) * width)]
        far[head] = sign * log(max(float(inside.mean()) / middle, NOTHING))
    return tuple(head for head, distance in far.items() if distance >= max(far.values()) / 2)
