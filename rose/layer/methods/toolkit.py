"""Parts that methods share: pruning by a sweep, by a score or by a mask."""

from dataclasses import replace
from math import nan

import torch
from torch import Tensor

from rose.errors import RoseError
from rose.layer import error
from rose.layer.budget import count_by_block
from rose.layer.hessian import DampedHessian, damped_hessian, factorize
from rose.layer.loss import smallest
from rose.layer.methods import PLAIN, Context
from rose.layer.order import Order, OrderPlan, Prices, make_order, plan_order
from rose.layer.pattern import Pattern
from rose.layer.result import LayerResult, check_mask
from rose.layer.rounding import plan_rounding
from rose.layer.settings import LayerSettings
from rose.layer.statistics import InputStatistics
from rose.layer.sweep import Choice, sweep
from rose.layer.tiles import TILE, prune_in_tiles
from rose.layer.trace import trace_sweep


def plan_layer(weight: Tensor, statistics: InputStatistics, settings: LayerSettings) -> OrderPlan:
    """The plan of a layer W, (out, in)."""
    return plan_order(
        weight,
        statistics,
        sparsity=settings.pattern,
        block_size=settings.block_columns,
        damping=settings.damping,
        threshold=settings.threshold,
    )


def prune_by_sweep(
    weight: Tensor,
    statistics: InputStatistics,
    settings: LayerSettings,
    context: Context = PLAIN,
    *,
    order: str,
    budget: str,
    sum_saliency: str | None = None,
) -> LayerResult:
    """Sweeps by this order and budget unless the settings override them, and rounds kept weights in the same sweep.
    `sum_saliency` chooses masks by w² (H_jj + 1/[H⁻¹]_jj), with H⁻¹ of the whole "layer" or of the columns
    "remaining"."""
    plan, pattern = plan_layer(weight, statistics, settings), settings.pattern
    visited = make_order(plan, order if settings.order is None else settings.order)
    shares = budget if settings.budget is None else settings.budget
    damped, U = factorize(statistics, settings.damping, visited.permutation)
    live, choice, rounder = weight.float(), None, None
    if pattern.ratio > 0:
        # Dead columns carry no signal: removing their weights costs nothing, so they go first.
        live = live.masked_fill(damped.dead, 0)
        divisor = _sum_divisor(U, damped, visited, sum_saliency) if sum_saliency else U.diagonal()
        choice = Choice(pattern, divisor, count_by_block(shares, live, divisor, pattern, visited))
    if settings.grid:
        rounder = plan_rounding(live, settings.grid, visited, U, damped.dead, pattern.of or TILE)
    W, zeros = visited.visit(live), context.zeros
    M = torch.zeros_like(W, dtype=torch.bool) if zeros is None else visited.visit(zeros)
    before = W.clone() if context.trace else None
    del live, zeros  # each is as large as the layer
    E = sweep(W, M, U, visited.widths, choice, rounder.prune if rounder else prune_in_tiles)
    trace = None
    if before is not None:
        keep_weights = context.trace != "errors"
        trace = trace_sweep(before, W, M, E, U, order=visited, hessian=damped.matrix, keep_weights=keep_weights)
    columns, of_rounding = E.square_().sum(0)[visited.inverse], _share_of_kept(E, M) if rounder else None
    del E, before
    result = LayerResult(
        weight=visited.restore(W).to(weight.dtype),
        mask=visited.restore(M),
        plan=plan,
        order=visited,
        budget=shares if isinstance(shares, str) else "own",
        damping=damped.damping,
        added_damping=damped.added,
        column_error=columns.masked_fill(damped.dead, 0),  # also if a dead column is only rounded
        trace=trace,
        prices=Prices.of(visited, U, damped),
    )
    if of_rounding is None:
        return result
    both = error.relative_error(weight, result.weight, statistics.hessian)
    return replace(result, pruning_error=both * (1 - of_rounding), rounding_error=both * of_rounding)


def _sum_divisor(U: Tensor, damped: DampedHessian, order: Order, of: str) -> Tensor:
    """d with (w/d)² = w² (H_jj + 1/[H⁻¹]_jj), (in,), in the order visited."""
    # H⁻¹ = UᵀU; the inverse for the columns from j on has U_jj² as its first entry.
    inverse = U.square().sum(0) if of == "layer" else U.diagonal().square()
    return (damped.matrix.diagonal()[order.permutation] + 1 / inverse).rsqrt()


def _share_of_kept(squares: Tensor, mask: Tensor) -> float:
    """The share of e², (out, in), of kept weights, which are only rounded; the squares of removed weights become 0."""
    total = float(squares.sum(dtype=torch.float64))
    return error.ratio(float(squares.masked_fill_(mask, 0).sum(dtype=torch.float64)), total)


def prune_by_score(
    weight: Tensor, statistics: InputStatistics, settings: LayerSettings, score: Tensor, *, budget: str
) -> LayerResult:
    """Removes the weights with the smallest scores and leaves the others as they are; see `mask_by_score`."""
    mask = mask_by_score(score, settings.pattern, budget)
    return prune_by_mask(weight, statistics, settings, mask, budget=budget)


def mask_by_score(score: Tensor, pattern: Pattern, budget: str) -> Tensor:
    """Mask of the smallest of finite scores, True = removed, (out, in) bool: over the whole "layer", within each
    "row", or under N:M within each group. Raises RoseError for another budget."""
    if budget not in ("row", "layer"):
        raise RoseError(f"Scores are compared within each row or over the layer, not by the budget {budget!r}.")
    if pattern.is_grouped:
        return smallest(score, pattern.of - pattern.keep, pattern.of)
    if budget == "row":
        return smallest(score, pattern.count(score.shape[1]), score.shape[1])
    return smallest(score, pattern.count(score.numel()))


def prune_by_mask(
    weight: Tensor, statistics: InputStatistics, settings: LayerSettings, mask: Tensor, *, budget: str
) -> LayerResult:
    """Sets the masked weights to zero and leaves the others as they are; see `result_of`. Raises RoseError: a
    mask that is not bool, or not of W's shape."""
    check_mask(mask, weight)
    return result_of(weight, weight.masked_fill(mask, 0), mask, statistics, settings, budget=budget)


def result_of(
    weight: Tensor,
    pruned: Tensor,
    mask: Tensor,
    statistics: InputStatistics,
    settings: LayerSettings,
    *,
    budget: str,
    low_rank: tuple[Tensor, Tensor] | None = None,
) -> LayerResult:
    """The result of a method that does not sweep; `rose.prune_layer` adds its errors. `weight` and `pruned` are W and
    Ŵ, (out, in). `mask` is True where removed, beside factors in the sparse part."""
    plan = plan_layer(weight, statistics, settings)
    damped = damped_hessian(statistics, settings.damping)
    return LayerResult(
        weight=pruned,
        mask=mask,
        plan=plan,
        order=make_order(plan, "natural"),
        budget=budget,
        damping=damped.damping,
        added_damping=damped.added,
        column_error=torch.full_like(plan.column_loss, nan),
        low_rank=low_rank,
    )
