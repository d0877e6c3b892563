"""Refit: solves for all kept weights of a sweep at once, for the mask that it chose.

A sweep compensates only in columns still to come: a weight it has passed stays fixed, whatever is removed later. For a
fixed mask the best weights solve a least-squares problem; a few steps of conjugate gradients come close (the last stage
of ALPS, Meng et al. 2024, section 3.3).
"""

from __future__ import annotations

from dataclasses import replace
from math import nan

from torch import Tensor

from rose.layer import error
from rose.layer.hessian import DampedHessian
from rose.layer.loss import block_sums
from rose.layer.methods import LayerResult, Settings, register
from rose.layer.methods.alps import solve_on_support
from rose.layer.methods.toolkit import damped_hessian, sweep_and_factor
from rose.layer.statistics import InputStatistics

STEPS = 8  # the error then is within 0.3 % of its limit on layers of the packaged model


@register(
    "rose_dealt",
    "ROSE dealt",
    "Ours: costly columns dealt evenly over the blocks, then all kept weights refitted at once for the mask found.",
    sweeps=True,
    work=4,
    matrices=((4, 12),),
)
def rose_dealt(weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """Dealt order and block budget (or any others), then `refit`.

    After a refit the order hardly matters for compensation, so it can serve the masks: they are chosen best when every
    block holds the same mixture of columns.
    """
    swept, damped, factor = sweep_and_factor(weight, statistics, settings, order="dealt", budget="block")
    return _refit(weight, statistics, swept, damped, factor, settings.measures)


def refit(weight: Tensor, statistics: InputStatistics, result: LayerResult) -> LayerResult:
    """Solves for the kept weights of a result; works after any method that only removes weights.

    Column and block errors are those of the new weights, under U for the order of the result. A trace is that of the
    sweep and ends before the refit.

    Args:
        weight: W before pruning, (out, in).
        statistics: those that the result was made with.
        result: not changed.
    """
    damped = damped_hessian(statistics, result.damping)
    return _refit(weight, statistics, result, damped, damped.inverse_factor(result.order.permutation))


def _refit(
    weight: Tensor,
    statistics: InputStatistics,
    result: LayerResult,
    damped: DampedHessian,
    factor: Tensor,
    measures: bool = True,
) -> LayerResult:
    if not result.mask.any():
        return result  # nothing to compensate; dead columns stay as they are too
    live = weight.float().masked_fill(damped.dead, 0)
    solved = solve_on_support(live, result.mask, damped.matrix, result.weight.float(), STEPS).to(weight.dtype)
    if not measures:  # what the sweep did to columns is not what these weights do
        return replace(
            result, weight=solved, column_error=result.column_error * nan, block_error=result.block_error * nan
        )
    order = result.order
    change = (live - solved.float())[:, order.permutation]
    columns = error.column_error(change, factor)
    return replace(
        result,
        weight=solved,
        relative_error=error.relative_error(weight, solved, statistics.hessian),
        column_error=columns[order.inverse],
        block_error=block_sums(columns, order.widths),
    )
