"""Methods of one sweep, see `rose.layer.sweep`: SparseGPT, ISC, ROSE, ROSE global and measured order. ROSE dealt refits
all kept weights after its sweep by conjugate gradients (the last stage of ALPS, Meng et al. 2024, section 3.3)."""

from dataclasses import replace
from math import nan

import torch
from torch import Tensor

from rose.layer import error
from rose.layer.hessian import damped_hessian
from rose.layer.least_squares import solve_on_support
from rose.layer.methods import PLAIN, Context
from rose.layer.methods.toolkit import prune_by_sweep
from rose.layer.result import LayerResult
from rose.layer.settings import LayerSettings
from rose.layer.statistics import InputStatistics

REFIT_STEPS = 8  # the error then is within 0.3 % of its limit on layers of the packaged model


def sparsegpt(
    weight: Tensor, statistics: InputStatistics, settings: LayerSettings, context: Context = PLAIN
) -> LayerResult:
    """Natural order, block budget."""
    return prune_by_sweep(weight, statistics, settings, context, order="natural", budget="block")


def isc(weight: Tensor, statistics: InputStatistics, settings: LayerSettings, context: Context = PLAIN) -> LayerResult:
    """Natural order, block budget; masks by the sum of the saliencies of Optimal Brain Damage and Surgeon (Shao et
    al. 2024). The authors' program adds 1/U_jj in place of 1/U_jj², which depends on the scale of H."""
    inverse = str(settings.method_options["inverse"])
    return prune_by_sweep(weight, statistics, settings, context, order="natural", budget="block", sum_saliency=inverse)


def rose(weight: Tensor, statistics: InputStatistics, settings: LayerSettings, context: Context = PLAIN) -> LayerResult:
    """Two-level order where the layer is columnar, else natural; block budget."""
    return prune_by_sweep(weight, statistics, settings, context, order="rose", budget="block")


def rose_global(
    weight: Tensor, statistics: InputStatistics, settings: LayerSettings, context: Context = PLAIN
) -> LayerResult:
    """Global order, descending column loss of a layer-wide pre-pruning; layer budget."""
    return prune_by_sweep(weight, statistics, settings, context, order="global", budget="layer")


# SparseGPT, ROSE and rose_global, and their orders with the other budget if that can win. The first of equals wins.
CANDIDATES = (
    ("natural", "block"),
    ("two_level", "block"),
    ("natural", "layer"),
    ("two_level", "layer"),
    ("global", "layer"),
    ("hessian", "layer"),
)


def measured(
    weight: Tensor, statistics: InputStatistics, settings: LayerSettings, context: Context = PLAIN
) -> LayerResult:
    """Sweeps by each of `CANDIDATES`, narrowed by the settings, and keeps the least calibration error. That error is a
    minimum; the error on held-out inputs, which no method sees, is not."""
    best, least, seen = None, float("inf"), set()
    for candidate, usual in CANDIDATES:
        order, budget = candidate if settings.order is None else settings.order, settings.budget or usual
        # Both budgets are the same under N:M, so each order is tried once.
        key = (candidate if settings.order is None else "", "" if settings.pattern.is_grouped else budget)
        if key in seen:
            continue
        seen.add(key)
        tried = settings.changed(order=order, budget=budget)
        result = prune_by_sweep(
            weight, statistics, tried, replace(context, trace=False), order="natural", budget="block"
        )
        measured_error = error.relative_error(weight, result.weight, statistics.hessian)
        if best is None or measured_error < least:
            best, least = result, measured_error
    assert best is not None
    if not context.trace:
        return best
    # Traces are large; only the winner's is recorded, in a second sweep.
    again = settings.changed(order=best.order, budget=best.budget)
    return prune_by_sweep(weight, statistics, again, context, order="natural", budget="block")


def rose_dealt(
    weight: Tensor, statistics: InputStatistics, settings: LayerSettings, context: Context = PLAIN
) -> LayerResult:
    """Dealt order and block budget unless the settings override them, then `refit`. Dealt blocks are alike, so equal
    shares suit them."""
    unrounded = settings.changed(bits=None, group=None)  # the refit needs unrounded weights, rounded after it
    swept = prune_by_sweep(weight, statistics, unrounded, context, order="dealt", budget="block")
    return refit(weight, statistics, swept)


def refit(weight: Tensor, statistics: InputStatistics, result: LayerResult) -> LayerResult:
    """Solves for the kept weights of any result without factors; `weight` is the dense W. Its errors are not measured
    yet, and a trace ends before the refit."""
    if not result.mask.any():
        return result  # nothing to compensate; dead columns do not change
    damped = damped_hessian(statistics, result.damping)
    live = weight.float().masked_fill(damped.dead, 0)
    solved = solve_on_support(live, result.mask, damped.matrix, result.weight.float(), REFIT_STEPS).to(weight.dtype)
    # The column errors of the sweep do not hold for the refitted weights.
    return replace(result, weight=solved, relative_error=nan, column_error=torch.full_like(result.column_error, nan))
