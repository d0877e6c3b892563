"""ROSE dealt: a sweep, then conjugate gradients on all kept weights for the sweep's mask (the last stage of ALPS,
Meng et al. 2024, section 3.3)."""

from __future__ import annotations

from dataclasses import replace
from math import nan

from torch import Tensor

from rose.layer import error
from rose.layer.hessian import damped_hessian, solve_on_support
from rose.layer.methods import LayerResult, Settings
from rose.layer.methods.toolkit import errors_in_order, prune_by_sweep
from rose.layer.statistics import InputStatistics

STEPS = 8  # the error then is within 0.3 % of its limit on layers of the packaged model


def rose_dealt(weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """Dealt order and block budget (or any others), then `refit`: dealt blocks are alike, which suits the choice of
    masks."""
    unrounded = replace(settings, grid=None)  # for the refit; what it keeps is rounded after it
    swept = prune_by_sweep(weight, statistics, unrounded, order="dealt", budget="block")
    return refit(weight, statistics, swept, measures=settings.measures)


def refit(weight: Tensor, statistics: InputStatistics, result: LayerResult, *, measures: bool = True) -> LayerResult:
    """Solves for the kept weights of any result without factors; `weight` is the dense W. Errors belong to the
    new weights, under U for the order of the result; a trace ends before the refit."""
    if not result.mask.any():
        return result  # nothing to compensate; dead columns stay as they are too
    damped = damped_hessian(statistics, result.damping)
    live = weight.float().masked_fill(damped.dead, 0)
    solved = solve_on_support(live, result.mask, damped.matrix, result.weight.float(), STEPS).to(weight.dtype)
    relative = error.relative_error(weight, solved, statistics.hessian) if measures else nan
    # What the sweep did to columns is not what these weights do.
    columns, blocks = errors_in_order(weight, solved.float(), statistics, result.damping, result.order, measures)
    return replace(result, weight=solved, relative_error=relative, column_error=columns, block_error=blocks)
