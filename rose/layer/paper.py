"""The figures of the ROSE paper for one layer, in numbers: what the order of its sweep does to its error.

arXiv 2603.05878: Figure 1a, the error as blocks are pruned; Figure 1c, the error by the position of the costliest block;
the bars of orders at several sparsities.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rose.layer.error import quadratic_form, ratio
from rose.layer.methods import LayerResult, Settings, make_settings, prune_with
from rose.layer.order import Order, OrderPlan, make_order, move_block, plan_order, visited_blocks
from rose.layer.pattern import Pattern
from rose.layer.statistics import InputStatistics

CURVES = ("natural", "two_level", *(f"random:{seed}" for seed in range(5)))
BARS = ("natural", "columns", "blocks", "two_level")
LEVELS = (0.6, 0.7, 0.8, 0.9)
MOST_POSITIONS = 16  # of the costliest block; of more blocks some are tried, evenly spaced


@dataclass(frozen=True)
class PaperFigures:
    """One layer's numbers; errors are relative, on calibration inputs.

    Attributes:
        layer: its name.
        relative_range, threshold: of its plan.
        block_loss, block_width: left to right.
        curves: by order, the error before the sweep and after each block, (blocks + 1,).
        block: the costliest one, per column.
        place: its position in natural order, from 0.
        positions: final error by its position, all others in natural order.
        bars: order, sparsity and final error of every bar.
    """

    layer: str
    relative_range: float
    threshold: float
    block_loss: list[float]
    block_width: list[int]
    curves: dict[str, list[float]]
    block: int
    place: int
    positions: dict[int, float]
    bars: list[tuple[str, float, float]]


def positions(plan: OrderPlan, base: str, block: int) -> list[Order]:
    """`base`, an order that keeps blocks whole, with this original block moved to every position in turn."""
    order = make_order(plan, base)
    step = visited_blocks(plan, order).index(block)
    return [move_block(plan, order, step, to) for to in range(len(order.widths))]


def paper_figures(layer: str, weight: Tensor, statistics: InputStatistics, settings: Settings) -> PaperFigures:
    """Makes some forty sweeps of one layer.

    Args:
        layer: its name.
        weight: W, (out, in).
        statistics: of its inputs.
        settings: pattern, block size, damping and threshold of the sweeps.
    """
    plan = plan_order(
        weight, statistics, sparsity=settings.pattern, block_size=settings.block_size, threshold=settings.threshold
    )
    energy, block = quadratic_form(weight, statistics.hessian), int(plan.loss_per_column.argmax())

    def sweep(order: str | Order, sparsity: float | Pattern = settings.pattern, trace: bool = False) -> LayerResult:
        sizes = {"sparsity": sparsity, "block_size": settings.block_size, "damping": settings.damping}
        own = make_settings("sparsegpt", order=order, trace="errors" if trace else False, **sizes)  # type: ignore[arg-type]
        return prune_with(weight, statistics, own)

    def curve(order: str) -> list[float]:
        result = sweep(order, trace=True)
        assert result.trace is not None
        return [ratio(error, energy) for error in result.trace.error_so_far(result.added_damping).tolist()]

    moved = positions(plan, "natural", block)
    tried = torch.linspace(0, len(moved) - 1, min(len(moved), MOST_POSITIONS)).round().int().tolist()
    place = visited_blocks(plan, make_order(plan, "natural")).index(block)
    return PaperFigures(
        layer=layer,
        relative_range=plan.relative_range,
        threshold=plan.threshold,
        block_loss=plan.block_loss.tolist(),
        block_width=list(plan.block_width),
        curves={order: curve(order) for order in CURVES},
        block=block,
        place=place,
        positions={at: sweep(moved[at]).relative_error for at in sorted({*tried, place})},
        bars=[(order, level, sweep(order, level).relative_error) for level in LEVELS for order in BARS],
    )
