"""Parts that methods share: pruning by a sweep or a mask, and the measured result."""

from dataclasses import replace
from math import nan

import torch
from torch import Tensor

from rose.errors import RoseError
from rose.layer import error
from rose.layer.forecast import Prices
from rose.layer.hessian import damped_hessian, factorize
from rose.layer.loss import block_sums, smallest, smallest_per_group, smallest_per_row
from rose.layer.methods import LayerResult, Settings, check_mask
from rose.layer.order import Order, OrderPlan, make_order, plan_order
from rose.layer.pattern import Pattern
from rose.layer.rounding import plan_rounding, revise
from rose.layer.statistics import InputStatistics
from rose.layer.sweep import TILE, sweep, visited_budget


def _plan(weight: Tensor, statistics: InputStatistics, settings: Settings) -> OrderPlan:
    same = settings.cache if settings.cache and settings.cache.is_of(weight) else None
    known = same.plan if same else None  # read once: another thread may replace it
    if known and (known.inputs, known.pattern, known.block_size) == (statistics, settings.pattern, settings.block_size):
        return replace(known, threshold=settings.threshold, damping=settings.damping)
    plan = plan_order(
        weight,
        statistics,
        sparsity=settings.pattern,
        block_size=settings.block_size,
        threshold=settings.threshold,
        damping=settings.damping,
    )
    if same:
        same.plan = plan
    return plan


def errors_in_order(
    weight: Tensor, pruned: Tensor, statistics: InputStatistics, damping: float, order: Order, measures: bool
) -> tuple[Tensor, Tensor]:
    """Errors of Ŵ, (out, in), under U for this order: of each column, (in,), in original order, and of each block as
    visited, (blocks,). NaN without `measures`."""
    visited = weight.new_full((weight.shape[1],), nan, dtype=torch.float32)
    if measures:
        damped, factor = factorize(statistics, damping, order.permutation)
        change = error.difference(weight, pruned).masked_fill_(damped.dead, 0)
        visited = error.column_error(change if order.is_natural else change[:, order.permutation], factor)
    return visited[order.inverse], block_sums(visited, order.widths)


def _relative_error(weight: Tensor, pruned: Tensor, statistics: InputStatistics, settings: Settings) -> float:
    if not settings.measures:
        return nan
    dense = settings.cache.energy(weight, statistics) if settings.cache else None
    return error.relative_error(weight, pruned, statistics.hessian, dense)


def prune_by_sweep(
    weight: Tensor,
    statistics: InputStatistics,
    settings: Settings,
    *,
    order: str,
    budget: str,
    sum_saliency: str | None = None,
) -> LayerResult:
    """Sweeps by this order and budget unless the settings override them, and rounds kept weights in the same sweep.
    `sum_saliency` chooses masks by w² (H_jj + 1/[H⁻¹]_jj), with H⁻¹ of the whole "layer" or of the columns
    "remaining"."""
    plan = _plan(weight, statistics, settings)
    visited = make_order(plan, settings.order if settings.order is not None else order)
    chosen = settings.budget if settings.budget is not None else budget
    pattern = settings.pattern
    damped, factor = factorize(statistics, settings.damping, visited.permutation)
    live = weight.float()
    if pattern.ratio > 0:
        # Dead columns carry no signal: removing their weights costs nothing, so they go first.
        live = live.masked_fill(damped.dead, 0)
    divisor = factor.diagonal()
    if sum_saliency:
        # H⁻¹ = UᵀU; the inverse for the columns from j on has U_jj² as its first entry.
        inverse = factor.square().sum(0) if sum_saliency == "layer" else divisor.square()
        divisor = (damped.matrix.diagonal()[visited.permutation] + 1 / inverse).rsqrt()
    counts = visited_budget(chosen, live, divisor, pattern, visited)
    rounder = None
    if settings.grid:
        rounder = plan_rounding(live, settings.grid, visited, factor, damped.dead, pattern.of or TILE)
    traced = (damped.matrix, settings.trace != "errors") if settings.trace else None
    swept = sweep(live, factor, visited, pattern, counts, divisor, traced, rounder, settings.zeros)
    # A dead column costs nothing, also if it is only rounded.
    columns = swept.column_error.masked_fill(damped.dead, 0)
    del live, rounder  # each is as large as the layer; free them
    pruned = swept.weight.to(weight.dtype)
    pruning = rounding = None
    if settings.grid:
        both = error.relative_error(weight, pruned, statistics.hessian)
        rounding = both * error.ratio(swept.kept_error, float(swept.column_error.sum(dtype=torch.float64)))
        pruning = both - rounding
    return LayerResult(
        weight=pruned,
        mask=swept.mask,
        relative_error=_relative_error(weight, pruned, statistics, settings),
        column_error=columns,
        block_error=block_sums(columns[visited.permutation], visited.widths),
        plan=plan,
        order=visited,
        budget=chosen if isinstance(chosen, str) else "own",
        damping=damped.damping,
        added_damping=damped.added,
        trace=swept.trace,
        prices=Prices.of(visited, factor, damped),
        pruning_error=pruning,
        rounding_error=rounding,
    )


def round_kept(weight: Tensor, statistics: InputStatistics, result: LayerResult, settings: Settings) -> LayerResult:
    """Rounds the kept weights of a result, by a sweep with its mask in descending H_jj, and then `revise`. Both
    approximate the weights of the method; zeros stay 0. `weight` is the dense W, (out, in)."""
    assert settings.grid is not None
    order = make_order(replace(result.plan, pattern=Pattern(0.0)), "hessian")  # N:M groups need not stay whole here
    damped, factor = factorize(statistics, result.damping, order.permutation)
    unrounded = result.weight.float()
    removed = result.mask if settings.zeros is None else result.mask | settings.zeros
    mask = removed | (unrounded == 0)
    rounder = plan_rounding(unrounded, settings.grid, order, factor, damped.dead, 1)
    swept = sweep(unrounded, factor, order, settings.pattern, (), rounder=rounder, mask=mask)
    steps = rounder.steps.index_select(0, order.inverse)
    rounded = revise(unrounded, swept.weight, mask, damped.matrix, steps, settings.grid).to(weight.dtype)
    dense = error.quadratic_form(weight, statistics.hessian)
    pruning, both = (
        error.relative_error(weight, pruned, statistics.hessian, dense) for pruned in (result.weight, rounded)
    )
    columns, blocks = errors_in_order(weight, rounded, statistics, damped.damping, result.order, settings.measures)
    return replace(
        result,
        weight=rounded,
        mask=removed,
        relative_error=both if settings.measures else nan,
        column_error=columns,
        block_error=blocks,
        damping=damped.damping,
        added_damping=damped.added,
        pruning_error=pruning,
        rounding_error=both - pruning,
    )


def prune_by_score(
    weight: Tensor, statistics: InputStatistics, settings: Settings, score: Tensor, *, budget: str
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
        return smallest_per_group(score, pattern)
    if budget == "row":
        return smallest_per_row(score, pattern.count(score.shape[1]))
    return smallest(score, pattern.count(score.numel()))


def prune_by_mask(
    weight: Tensor, statistics: InputStatistics, settings: Settings, mask: Tensor, *, budget: str
) -> LayerResult:
    """Sets the masked weights to zero and leaves the others as they are; see `measured_result`. Raises RoseError: a
    mask that is not bool, or not of W's shape."""
    check_mask(mask, weight)
    return measured_result(weight, weight.masked_fill(mask, 0), mask, statistics, settings, budget=budget)


def measured_result(
    weight: Tensor,
    pruned: Tensor,
    mask: Tensor,
    statistics: InputStatistics,
    settings: Settings,
    *,
    budget: str,
    low_rank: tuple[Tensor, Tensor] | None = None,
) -> LayerResult:
    """The result of a method that does not sweep. Its column errors belong to a sweep in natural order. `weight` and
    `pruned` are W and Ŵ, (out, in). `mask` is True where removed, beside factors in the sparse part."""
    plan = _plan(weight, statistics, settings)
    damped, natural = damped_hessian(statistics, settings.damping), make_order(plan, "natural")
    columns, blocks = errors_in_order(weight, pruned, statistics, settings.damping, natural, settings.measures)
    return LayerResult(
        weight=pruned,
        mask=mask,
        relative_error=_relative_error(weight, pruned, statistics, settings),
        column_error=columns,
        block_error=blocks,
        plan=plan,
        order=natural,
        budget=budget,
        damping=damped.damping,
        added_damping=damped.added,
        low_rank=low_rank,
    )
