"""ALPS: the layer problem by ADMM, then conjugate gradients on the support it found (Meng et al. 2024, "ALPS:
Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models", algorithms 1 and 2).

It minimises the same tr(ΔW H ΔWᵀ), damped, that a sweep does, but revises its mask many times and updates all kept
weights at once, at many times the cost.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rose.layer.hessian import cholesky
from rose.layer.methods import LayerResult, Settings, register
from rose.layer.methods.toolkit import damped_hessian, mask_by_score, measured_result, prune_by_mask
from rose.layer.pattern import Pattern
from rose.layer.statistics import InputStatistics

FIRST_PENALTY = 0.1
LEAST_PENALTY, MOST_PENALTY = 1e-6, 1e6
ITERATIONS = 300
CHECK_EVERY = 3  # iterations between two comparisons of the support
SETTLED_AFTER, SETTLED = 30, 0.0003  # from this iteration on, so small a change of the support ends the search
FINAL_STEPS = 10  # of conjugate gradients


@register(
    "alps",
    "ALPS",
    "ADMM on the whole layer, then conjugate gradients on the kept weights (Meng et al. 2024); slow, low error.",
    work=18,
    matrices=((8, 6), (4, 15)),
)
def alps(weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """Support by `find_support`, weights by `solve_on_support`; the mask is layer-wide, or N:M."""
    if settings.pattern.ratio == 0:
        nothing = torch.zeros_like(weight, dtype=torch.bool)
        return prune_by_mask(weight, statistics, settings, nothing, budget="layer")
    damped = damped_hessian(statistics, settings.damping)
    live = weight.float().masked_fill(damped.dead, 0)
    scale = damped.matrix.diagonal().sqrt()
    matrix = damped.matrix / scale / scale.unsqueeze(1)
    matrix.diagonal()[damped.dead] = 1  # of whatever scale H is, to the last bit
    mask, start = find_support(live * scale, matrix, settings.pattern)
    pruned = solve_on_support(live, mask, damped.matrix, start / scale, FINAL_STEPS).to(weight.dtype)
    return measured_result(weight, pruned, mask, statistics, settings, budget="layer")


def find_support(weight: Tensor, matrix: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """ADMM between B, free to fit the outputs, and D, a sparse copy of it, under a penalty ρ that grows.

    B = (W M − V + ρ D)(M + ρ I)⁻¹, D = B + V/ρ without its smallest entries, V += ρ (B − D). Every third iteration
    ρ grows by a factor of 1.3, 1.2 or 1.1 as the support still changes by more than 10 %, by more than 0.5 %, or by
    less. If it changes by less than 0.5 % from the start, ρ was too large, and the search restarts with a fifth of it.

    Args:
        weight: W, (out, in) float32.
        matrix: M, (in, in), definite, with a unit diagonal.

    Returns:
        Mask of D, True = removed, (out, in); and B, (out, in), from which to start the final solve.
    """
    target = weight @ matrix
    removed = mask_by_score(weight.abs(), pattern, "layer")
    kept = max(1, removed.numel() - int(removed.sum()))
    start = weight.masked_fill(removed, 0)
    penalty, has_moved = FIRST_PENALTY, False
    free, sparse, dual, last = weight, start, torch.zeros_like(weight), removed
    inverse = shifted_inverse(matrix, penalty)
    for iteration in range(1, ITERATIONS + 1):
        free = (target - dual + penalty * sparse) @ inverse
        shifted = free + dual / penalty
        removed = mask_by_score(shifted.abs(), pattern, "layer")
        sparse = shifted.masked_fill(removed, 0)
        dual = dual + penalty * (free - sparse)
        if iteration % CHECK_EVERY:
            continue
        changed = int((removed != last).sum())
        last = removed
        if changed / kept > 0.005:
            has_moved = True
            penalty *= 1.3 if changed / kept > 0.1 else 1.2
        elif has_moved:
            if not changed or (iteration > SETTLED_AFTER and changed / kept < SETTLED):
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


def shifted_inverse(matrix: Tensor, penalty: float) -> Tensor:
    """(M + ρ I)⁻¹, (in, in), from a Cholesky factor of its own for every ρ.

    The authors decompose M into eigenvectors once, in float64: as long as nine such inverses, and then each costs as
    much as one of these.

    Args:
        matrix: M, (in, in) float32, definite.
        penalty: ρ, at least 0.
    """
    factor, is_definite = cholesky(_raised(matrix, penalty))
    if not is_definite:  # by less than float32 tells
        return torch.cholesky_inverse(torch.linalg.cholesky(_raised(matrix.double(), penalty))).to(matrix)
    return torch.cholesky_inverse(factor)


def _raised(matrix: Tensor, penalty: float) -> Tensor:
    raised = matrix.clone()
    raised.diagonal().add_(penalty)
    return raised


def solve_on_support(weight: Tensor, mask: Tensor, matrix: Tensor, start: Tensor, steps: int) -> Tensor:
    """Conjugate gradients towards the kept weights that minimise tr((W − Ŵ) M (W − Ŵ)ᵀ) for a fixed mask.

    All rows at once, each with its own step sizes, preconditioned by the diagonal of M. The error never rises, so
    it can follow any method; in full it reaches the least-squares solution that the mask allows.

    Args:
        weight: W, (out, in) float32.
        mask: True = removed, (out, in).
        matrix: M, (in, in), definite.
        start: where to begin, (out, in); only its kept entries are used.
        steps: at most so many; fewer once the residual has fallen by 1e-6.
    """
    diagonal = matrix.diagonal()
    solution = start.masked_fill(mask, 0)
    residual = ((weight - solution) @ matrix).masked_fill(mask, 0)
    scaled = residual / diagonal
    direction = scaled
    norm = (residual * scaled).sum(1, keepdim=True)  # squared, of each row's residual
    enough = norm * 1e-12
    for _ in range(steps):
        if (norm <= enough).all():
            break
        step = direction @ matrix
        curvature = (direction * step).sum(1, keepdim=True)
        length = torch.where(curvature > 0, norm / curvature, 0)
        solution = solution + length * direction
        residual = residual - (length * step).masked_fill(mask, 0)
        scaled = residual / diagonal
        last, norm = norm, (residual * scaled).sum(1, keepdim=True)
        direction = scaled + torch.where(last > 0, norm / last, 0) * direction
    return solution
