"""Why a layer is columnar: the block that stands out, and its cause. Also the numbers of the ROSE paper's figure 1
(arXiv 2603.05878) for one layer.

The relative range is high if one block loses much more, or much less, than the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, log
from typing import Any, Literal

import torch
from torch import Tensor

from rose.layer.error import quadratic_form, ratio
from rose.layer.loss import loss_per_column
from rose.layer.methods import LayerResult, prune_layer
from rose.layer.order import Order, make_order, move_block, plan_order, visited_blocks
from rose.layer.pattern import Pattern
from rose.layer.profile import Profile
from rose.layer.settings import SharedSettings
from rose.layer.statistics import InputStatistics

APART = 1.25  # factor below which a block's weights or inputs count as typical
NOTHING = 1e-12  # stands for 0 where a ratio is taken as a logarithm
LEADS = 2.0  # a cause stands alone if its logarithm is this many times the other's
Cause = Literal["inputs", "weights", "both", "neither"]


@dataclass(frozen=True)
class Outlier:
    """The block that makes a layer columnar, or would."""

    block: int  # the block whose loss per column has the most extreme ratio to the median block's
    is_strong: bool  # whether it loses more than the median block; else less
    other: int  # the block at the other end
    ratio: float  # of losses per column, `block` over `other`
    # mean norm of its weight columns and inputs, over the median of the other blocks' means
    weight_norm: float
    input_norm: float
    cause: Cause  # which of the two deviates in the direction of the loss
    # attention heads in the block that deviate with it; none if the inputs are not heads' outputs
    heads: tuple[int, ...] = ()


def outlier(profile: Profile, size: int, head_width: int | None = None) -> Outlier | None:
    """The block that stands out among blocks of this size; None for a single block, or if no block loses anything.
    Heads of `head_width` columns lie side by side; None for other inputs."""
    widths = profile.widths(size)
    loss = loss_per_column(profile.column_loss(size), widths).double()
    if len(loss) < 2 or loss.max() <= 0:
        return None
    log_loss = loss.clamp(min=loss.max() * NOTHING).log()  # of a block without any loss, too
    above = log_loss - log_loss.quantile(0.5)
    is_strong = bool(above.max() >= -above.min())
    ends = int(loss.argmax()), int(loss.argmin())
    block, other = ends if is_strong else ends[::-1]
    sign = 1.0 if is_strong else -1.0
    by_weight = _against_others(profile.weight_norm, widths, block)
    by_input = _against_others(profile.input_norm, widths, block)
    # Logarithms, positive in the direction of the loss.
    weights, inputs = (sign * log(max(norm, NOTHING)) for norm in (by_weight, by_input))
    cause: Cause = "inputs" if inputs > LEADS * max(weights, 0.0) else "both"
    if max(weights, inputs) < log(APART):
        cause = "neither"
    elif weights > LEADS * max(inputs, 0.0):
        cause = "weights"
    return Outlier(
        block=block,
        is_strong=is_strong,
        other=other,
        ratio=float(loss[block] / loss[other]) if loss[other] > 0 else inf,
        weight_norm=by_weight,
        input_norm=by_input,
        cause=cause,
        heads=_heads_of(profile.importance, widths, block, sign, head_width),
    )


def _against_others(norm: Tensor, widths: Sequence[int], block: int) -> float:
    """Mean of a block over the median of the other blocks' means; 1 where all are 0."""
    means = torch.stack([part.double().mean() for part in norm.split(list(widths))])
    rest = torch.cat([means[:block], means[block + 1 :]]).quantile(0.5)
    return float(means[block] / rest) if rest > 0 else inf if means[block] > 0 else 1.0


def _heads_of(
    importance: Tensor, widths: Sequence[int], block: int, sign: float, head_width: int | None
) -> tuple[int, ...]:
    """The block's heads whose importance deviates at least half as much as the furthest head's. Loss does not show
    this: a strong head loses little if a weak head in the same block gives up the weights."""
    if not head_width or len(importance) % head_width:
        return ()
    score = importance.double()
    middle = max(NOTHING, float(torch.stack([part.mean() for part in score.split(list(widths))]).quantile(0.5)))
    start = sum(widths[:block])
    end, far = start + widths[block], {}
    for head in range(start // head_width, -(-end // head_width)):
        inside = score[max(start, head * head_width) : min(end, (head + 1) * head_width)]
        far[head] = sign * log(max(float(inside.mean()) / middle, NOTHING))
    return tuple(head for head, distance in far.items() if distance >= max(far.values()) / 2)


CURVES = ("natural", "two_level", *(f"random:{seed}" for seed in range(5)))
BARS = ("natural", "columns", "blocks", "two_level")
LEVELS = (0.6, 0.7, 0.8, 0.9)
WIDEST = 2048  # columns of a layer that the program chooses: some forty sweeps of it take a minute at most
MOST_BLOCKS = 4096  # in a file that is read
MOST_POSITIONS = 16  # tried for the costliest block, evenly spaced among more blocks


@dataclass(frozen=True)
class PaperFigures:
    """One layer's numbers; errors are relative, on calibration inputs."""

    layer: str
    curves: dict[str, list[float]]  # by order, the error before the sweep and after each block, (blocks + 1,)
    losses: list[float]  # loss per column of each block in natural order
    visited: list[int]  # the blocks as two-level order visits them
    # the costliest block, per column, and its position in natural order, from 0
    block: int
    place: int
    positions: list[tuple[int, float]]  # position and final error, all others in natural order
    bars: list[tuple[str, float, float]]  # order, sparsity and final error of every bar


def paper_figures(layer: str, weight: Tensor, statistics: InputStatistics, settings: SharedSettings) -> PaperFigures:
    """Makes some forty sweeps of one layer, W (out, in), by the pattern, block size and damping of the settings."""
    plan = plan_order(weight, statistics, sparsity=settings.pattern, block_size=settings.block_columns)
    energy, block = quadratic_form(weight, statistics.hessian), int(plan.loss_per_column.argmax())

    def sweep(order: str | Order, sparsity: float | Pattern = settings.pattern) -> LayerResult:
        return prune_layer(
            weight,
            statistics,
            method="sparsegpt",
            order=order,
            trace="errors",
            sparsity=sparsity,
            block_size=settings.block_columns,
            damping=settings.damping,
        )

    def curve(order: str) -> list[float]:
        result = sweep(order)
        assert result.trace is not None
        return [ratio(error, energy) for error in result.trace.error_so_far(result.added_damping).tolist()]

    moved = [move_block(plan, "natural", block, to) for to in range(len(plan.block_width))]
    count = min(len(moved), MOST_POSITIONS)
    tried = torch.linspace(0, len(moved) - 1, count, dtype=torch.float32).round().int().tolist()
    return PaperFigures(
        layer=layer,
        curves={order: curve(order) for order in CURVES},
        losses=plan.loss_per_column.tolist(),
        visited=[at for at in visited_blocks(plan, make_order(plan, "two_level")) if at is not None],
        block=block,
        place=block,
        positions=[(at, sweep(moved[at]).relative_error) for at in sorted({*tried, block})],
        bars=[(order, level, sweep(order, level).relative_error) for level in LEVELS for order in BARS],
    )


def read_paper_figures(stored: Mapping[str, Any]) -> PaperFigures:
    """Reads what `dataclasses.asdict` made; raises ValueError, KeyError or TypeError for anything else."""
    curves = {str(order): [_error(error) for error in curve] for order, curve in stored["curves"].items()}
    bars = [(str(order), float(level), _error(error)) for order, level, error in stored["bars"]]
    places = [(int(at), _error(error)) for at, error in stored["positions"]]
    losses, visited = [_error(loss) for loss in stored["losses"]], [int(at) for at in stored["visited"]]
    block, place = int(stored["block"]), int(stored["place"])
    paper = PaperFigures(str(stored["layer"]), curves, losses, visited, block, place, places, bars)
    ends = {len(curve) for curve in paper.curves.values()}
    is_whole = set(curves) == set(CURVES) and {order for order, *_ in bars} == set(BARS) and len(ends) == 1
    is_whole &= sorted(visited) == list(range(len(losses))) and ends == {len(losses) + 1}
    if not is_whole or min(ends) < 2 or paper.place not in dict(places) or not 0 <= paper.block < MOST_BLOCKS:
        raise ValueError("its figures of orders are incomplete")
    return paper


def _error(value: Any) -> float:
    if not 0 <= (number := float(value)) < 1e30:
        raise ValueError("an error of its orders is not a number from 0 on")
    return number
