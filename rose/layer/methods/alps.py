"""ALPS (Meng et al. 2024, algorithms 1 and 2): ADMM on the damped layer problem, then conjugate gradients on the
support."""

import torch
from torch import Tensor

from rose.interrupt import stop_point
from rose.layer.hessian import damped_hessian
from rose.layer.least_squares import shifted_inverse, solve_on_support
from rose.layer.methods import PLAIN, Context
from rose.layer.methods.toolkit import mask_by_score, prune_by_score, result_of
from rose.layer.pattern import Pattern
from rose.layer.result import LayerResult
from rose.layer.settings import LayerSettings
from rose.layer.statistics import InputStatistics

FIRST_PENALTY = 0.1
LEAST_PENALTY, MOST_PENALTY = 1e-6, 1e6
ITERATIONS = 300
CHECK_EVERY = 3  # iterations between comparisons of the support
SETTLED_AFTER, SETTLED = 30, 0.0003  # from this iteration on, a smaller change of the support ends the search
FINAL_STEPS = 10  # of conjugate gradients


def alps(weight: Tensor, statistics: InputStatistics, settings: LayerSettings, context: Context = PLAIN) -> LayerResult:
    """Support by `find_support`, weights by `solve_on_support`; the mask is layer-wide, or N:M."""
    if settings.pattern.ratio == 0:
        return prune_by_score(weight, statistics, settings, weight, budget="layer")
    damped = damped_hessian(statistics, settings.damping)
    live = weight.float().masked_fill(damped.dead, 0)
    scale = damped.matrix.diagonal().sqrt()
    matrix = damped.matrix / scale / scale.unsqueeze(1)
    matrix.diagonal()[damped.dead] = 1  # a unit diagonal, whatever the scale of H
    mask, start = find_support(live * scale, matrix, settings.pattern)
    pruned = solve_on_support(live, mask, damped.matrix, start / scale, FINAL_STEPS).to(weight.dtype)
    return result_of(weight, pruned, mask, statistics, settings, budget="layer")


def find_support(weight: Tensor, matrix: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """ADMM between B, which fits the outputs, and D, a sparse copy of B, under a growing penalty ρ.

    B = (W M − V + ρ D)(M + ρ I)⁻¹, D = B + V/ρ without its smallest entries, V += ρ (B − D). Every third iteration ρ
    grows by 1.3, 1.2 or 1.1, the more the support still changes. A support that never moves restarts with ρ/5.

    W is (out, in) float32; M, (in, in), definite with a unit diagonal. Returns the mask of D, True = removed, (out,
    in), and B, (out, in), the start of the final solve.
    """
    target = weight @ matrix
    removed = mask_by_score(weight.abs(), pattern, "layer")
    remaining = max(1, removed.numel() - int(removed.sum()))
    start = weight.masked_fill(removed, 0)
    penalty, has_moved = FIRST_PENALTY, False
    free, sparse, dual, last = weight, start, torch.zeros_like(weight), removed
    inverse = shifted_inverse(matrix, penalty)
    for iteration in range(1, ITERATIONS + 1):
        stop_point()
        free = (target - dual + penalty * sparse) @ inverse
        shifted = free + dual / penalty
        removed = mask_by_score(shifted.abs(), pattern, "layer")
        sparse = shifted.masked_fill(removed, 0)
        dual = dual + penalty * (free - sparse)
        if iteration % CHECK_EVERY:
            continue
        changed = int((removed != last).sum())
        last = removed
        if changed / remaining > 0.005:
            has_moved = True
            penalty *= 1.3 if changed / remaining > 0.1 else 1.2
        elif has_moved:
            if not changed or (iteration > SETTLED_AFTER and changed / remaining < SETTLED):
                break
            penalty *= 1.1
        else:
            penalty /= 5
            if penalty < LEAST_PENALTY:
                break
            sparse, dual = start, torch.zeros_like(weight)
        penalty = min(penalty, MOST_PENALTY)
        inverse = shifted_inverse(matrix, penalty)
    return removed, free
