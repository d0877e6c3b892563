"""Masks without compensation: magnitude, Wanda, and DSnoT, which refines a start mask without touching the weights
(Zhang et al. 2024, "Dynamic Sparse No Training"). Removed weights shift a row's mean output by e = Σ D, D = W · mean
input; each cycle swaps two weights to push e towards 0."""

import torch
from torch import Tensor

from rose.errors import RoseError
from rose.interrupt import stop_point
from rose.layer.hessian import damped_hessian
from rose.layer.loss import importance
from rose.layer.methods import PLAIN, Context
from rose.layer.methods.toolkit import mask_by_score, prune_by_mask, prune_by_score
from rose.layer.pattern import Pattern
from rose.layer.result import LayerResult
from rose.layer.settings import LayerSettings
from rose.layer.statistics import InputStatistics

CYCLES = 50
TOLERANCE = 0.1  # of |e|, in units of the layer's output


def wanda(
    weight: Tensor, statistics: InputStatistics, settings: LayerSettings, context: Context = PLAIN
) -> LayerResult:
    """|W|·sqrt(mean x_j²), compared within each output row (Sun et al. 2024, section 3)."""
    score = importance(weight, statistics.mean_square)
    return prune_by_score(weight, statistics, settings, score, budget="row")


def magnitude(
    weight: Tensor, statistics: InputStatistics, settings: LayerSettings, context: Context = PLAIN
) -> LayerResult:
    """|W|, compared over the whole layer."""
    return prune_by_score(weight, statistics, settings, weight.float().abs(), budget="layer")


def dsnot(
    weight: Tensor, statistics: InputStatistics, settings: LayerSettings, context: Context = PLAIN
) -> LayerResult:
    """Start mask per row, with dead columns, then `refine_mask`. The published runs refine attention layers only; this
    refines any layer."""
    if statistics.mean.isnan().any():
        raise RoseError("DSnoT needs the mean of the inputs, which a Hessian does not hold; give InputStatistics.")
    dense, start = weight.float(), settings.method_options["start"]
    if start == "sparsegpt":
        score = (dense / damped_hessian(statistics, settings.damping).natural_factor.diagonal()).square()
    else:
        score = dense.abs() if start == "magnitude" else importance(dense, statistics.mean_square)
    # A dead column has 1 + λ on its damped diagonal, which is large or small beside others as H is scaled.
    mask = mask_by_score(score.masked_fill(statistics.dead, 0), settings.pattern, "row")
    mask = refine_mask(dense, statistics, mask, settings.pattern)
    return prune_by_mask(weight, statistics, settings, mask, budget="row")


def refine_mask(weight: Tensor, statistics: InputStatistics, mask: Tensor, pattern: Pattern) -> Tensor:
    """Regrows and prunes row by row until |e| ≤ 0.1, for at most 50 cycles (equations 4 to 7).

    The removed weight with the largest sign(e) · D / variance regrows. The kept weight with the smallest Wanda score
    and D of the other sign goes. Under N:M this weight is in the regrown weight's group and has any sign. A row stops
    before e would change its sign. Each weight moves at most once, as in the authors' program.

    W is (out, in) float32; the mask, True = removed, is not changed. Returns a mask, (out, in) bool, with the same
    number of removed weights in every row (and N:M group).
    """
    mask = mask.clone()
    moved = torch.zeros_like(mask)
    drift = weight * statistics.mean  # D
    regrow_score = drift / statistics.variance.clamp_min(torch.finfo(torch.float32).tiny)
    prune_score = importance(weight, statistics.mean_square)
    e = (drift * mask).sum(1)
    first_sign = e.sign()
    rows = (e.abs() > TOLERANCE).nonzero().squeeze(1)
    group = torch.arange(weight.shape[1], device=weight.device) // (pattern.of or 1)
    for _ in range(CYCLES):
        if not len(rows):
            break
        stop_point()
        sign = e[rows].sign().unsqueeze(1)
        directed = drift[rows] * sign
        fresh = ~moved[rows]
        may_regrow = mask[rows] & fresh & (directed > 0)
        may_prune = ~mask[rows] & fresh
        if pattern.is_grouped:
            grouped = may_prune.view(len(rows), -1, pattern.of)  # the pruned weight must be of the same group
            may_regrow &= grouped.any(-1, keepdim=True).expand_as(grouped).flatten(1)
        regrown = torch.where(may_regrow, regrow_score[rows] * sign, -torch.inf).argmax(1)
        may_prune &= group == group[regrown].unsqueeze(1) if pattern.is_grouped else directed < 0
        pruned = torch.where(may_prune, prune_score[rows], torch.inf).argmin(1)
        after = e[rows] + drift[rows, pruned] - drift[rows, regrown]
        goes_on = may_regrow.any(1) & may_prune.any(1)
        if pattern.is_grouped:
            goes_on &= after.sign() == first_sign[rows]
        rows, regrown, pruned, after = rows[goes_on], regrown[goes_on], pruned[goes_on], after[goes_on]
        mask[rows, regrown] = False
        mask[rows, pruned] = True
        moved[rows, regrown] = moved[rows, pruned] = True
        e[rows] = after
        rows = rows[after.abs() > TOLERANCE]
    return mask
