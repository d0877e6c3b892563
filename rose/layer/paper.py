"""The figures of the ROSE paper (arXiv 2603.05878, figure 1) for one layer, in numbers: error and losses by block,
error by the position of the costliest block, and the bars of orders at several sparsities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rose.layer.error import quadratic_form, ratio
from rose.layer.methods import LayerResult, Settings, prune_layer
from rose.layer.order import Order, OrderPlan, make_order, move_block, plan_order, visited_blocks
from rose.layer.pattern import Pattern
from rose.layer.statistics import InputStatistics

CURVES = ("natural", "two_level", *(f"random:{seed}" for seed in range(5)))
BARS = ("natural", "columns", "blocks", "two_level")
LEVELS = (0.6, 0.7, 0.8, 0.9)
WIDEST = 2048  # columns of a layer that nobody has chosen: some forty sweeps of it take seconds, or a minute
MOST_BLOCKS = 4096  # of a layer, where a file says so
MOST_POSITIONS = 16  # of the costliest block; of more blocks some are tried, evenly spaced


@dataclass(frozen=True)
class PaperFigures:
    """One layer's numbers; errors are relative, on calibration inputs.

    Attributes:
        curves: by order, the error before the sweep and after each block, (blocks + 1,).
        losses: loss per column of each block in natural order.
        visited: the blocks as two-level order visits them.
        block, place: the costliest block, per column, and its position in natural order, from 0.
        positions: position and final error, all others in natural order.
        bars: order, sparsity and final error of every bar.
    """

    layer: str
    curves: dict[str, list[float]]
    losses: list[float]
    visited: list[int]
    block: int
    place: int
    positions: list[tuple[int, float]]
    bars: list[tuple[str, float, float]]


def positions(plan: OrderPlan, base: str, block: int) -> list[Order]:
    """`base`, an order that keeps blocks whole, with this original block moved to every position in turn."""
    order = make_order(plan, base)
    step = visited_blocks(plan, order).index(block)
    return [move_block(plan, order, step, to) for to in range(len(order.widths))]


def paper_figures(layer: str, weight: Tensor, statistics: InputStatistics, settings: Settings) -> PaperFigures:
    """Makes some forty sweeps of one layer, W (out, in), by the pattern, block size and damping of the settings."""
    plan = plan_order(weight, statistics, sparsity=settings.pattern, block_size=settings.block_size)
    energy, block = quadratic_form(weight, statistics.hessian), int(plan.loss_per_column.argmax())

    def sweep(order: str | Order, sparsity: float | Pattern = settings.pattern) -> LayerResult:
        return prune_layer(
            weight,
            statistics,
            method="sparsegpt",
            order=order,
            trace="errors",
            sparsity=sparsity,
            block_size=settings.block_size,
            damping=settings.damping,
        )

    def curve(order: str) -> list[float]:
        result = sweep(order)
        assert result.trace is not None
        return [ratio(error, energy) for error in result.trace.error_so_far(result.added_damping).tolist()]

    moved = positions(plan, "natural", block)
    tried = (
        torch.linspace(0, len(moved) - 1, min(len(moved), MOST_POSITIONS), dtype=torch.float32).round().int().tolist()
    )
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
