"""ROSE ADMM: the mask revised a few times under a rising penalty, on correlations shrunk where tokens are few.

ALPS and others solve the layer problem by ADMM (Meng et al. 2024; Boža 2024, arXiv 2401.02938). Ours are the fixed
schedule, which needs a few Cholesky factorizations, and the shrinkage against fitting few tokens.
"""

from collections.abc import Callable
from math import gcd

import torch
from torch import Tensor, nn

from rose.interrupt import stop_point
from rose.layer.hessian import damped_hessian
from rose.layer.least_squares import shifted_inverse, solve_on_support
from rose.layer.loss import kth_smallest
from rose.layer.methods import PLAIN, Context
from rose.layer.methods.toolkit import mask_by_score, prune_by_score, result_of
from rose.layer.pattern import Pattern
from rose.layer.result import LayerResult
from rose.layer.settings import LayerSettings
from rose.layer.statistics import InputStatistics

# Chosen on layers of the packaged model at 70 %; docs/lab-notes/solvers.md has the results of other constants.
FIRST_PENALTY, LAST_PENALTY = 0.2, 1.0  # relative to the diagonal of H; lower penalties do not settle in time
ITERATIONS = 20  # per unit of effort
FINAL_STEPS = 3  # of conjugate gradients; the last iterate is nearly solved
SAMPLE = 2**15  # entries of a sample that gives the threshold
MOST_SHRINKAGE = 0.5
UNKNOWN_TOKENS = 0.05  # shrinkage for a Hessian without its number of tokens


def rose_admm(
    weight: Tensor, statistics: InputStatistics, settings: LayerSettings, context: Context = PLAIN
) -> LayerResult:
    """Mask by `find_mask`, then conjugate gradients on the kept weights; the mask is layer-wide, or N:M."""
    if settings.pattern.ratio == 0:
        return prune_by_score(weight, statistics, settings, weight, budget="layer")
    damped = damped_hessian(statistics, settings.damping)
    scale = damped.matrix.diagonal().sqrt()
    scaled = weight.float().masked_fill(damped.dead, 0) * scale
    correlations = shrunk_correlations(damped.matrix, statistics.tokens)
    schedule = penalties(int(settings.method_options["effort"]))
    mask, start = find_mask(scaled, correlations, settings.pattern, schedule, dtype=context.products)
    pruned = (solve_on_support(scaled, mask, correlations, start, FINAL_STEPS) / scale).to(weight.dtype)
    return result_of(weight, pruned, mask, statistics, settings, budget="layer")


def shrunk_correlations(hessian: Tensor, tokens: int) -> Tensor:
    """H with a unit diagonal, (in, in), its other entries divided by 1 + min(columns/tokens, MOST_SHRINKAGE). This
    is linear shrinkage (Ledoit and Wolf 2004) with an intensity by shape; 1 token stands for an unknown number."""
    shrinkage = UNKNOWN_TOKENS if tokens <= 1 else min(len(hessian) / tokens, MOST_SHRINKAGE)
    scale = hessian.diagonal().sqrt()
    correlations = hessian / scale / (scale.unsqueeze(1) * (1 + shrinkage))
    correlations.fill_diagonal_(1)
    return correlations


def penalties(effort: int) -> list[float]:
    """ρ of every iteration: a few equal runs that rise geometrically, from a lower first ρ for more effort."""
    iterations, runs = ITERATIONS * effort, 3 + effort
    first = FIRST_PENALTY / effort**0.5
    return [first * (LAST_PENALTY / first) ** (i * runs // iterations / (runs - 1)) for i in range(iterations)]


def find_mask(
    weight: Tensor,
    matrix: Tensor,
    pattern: Pattern,
    schedule: list[float],
    seen: Callable[[Tensor], None] | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """ADMM between B, which fits the outputs, and D, a sparse copy of B, with the scaled dual U.

    B = W + (D − U − W) ρ (M + ρ I)⁻¹, D = B + U without its smallest entries, U += B − D. D is the kept part of S =
    B + U and U the removed part, so S alone is the state.

    W is (out, in) float32; M, (in, in), definite with a unit diagonal. `schedule` holds ρ of every iteration, after
    which `seen` is called with S. `dtype` is the format of the product; later iterations repair the rounding of
    bfloat16. Returns the mask, True = removed, (out, in), and D, (out, in).
    """
    sparse = state = _keep_largest(weight, pattern)  # U is 0
    last, inverse = 0.0, matrix
    for penalty in schedule:
        stop_point()
        if penalty != last:
            inverse = shifted_inverse(matrix, penalty).mul_(penalty).to(dtype)
            if last:
                state = sparse + (state - sparse) * (last / penalty)  # U is the dual divided by ρ
            last = penalty
        shifted = (state - sparse).add_(weight)  # U + W
        reflected = sparse - shifted
        if dtype == torch.float32:
            state = shifted.addmm_(reflected, inverse)  # B + U
        else:
            state = shifted.add_(reflected.to(dtype) @ inverse)
        sparse = _keep_largest(state, pattern)
        if seen is not None:
            seen(state)
    mask = mask_by_score(state.abs(), pattern, "layer")
    return mask, state.masked_fill(mask, 0)


def _keep_largest(state: Tensor, pattern: Pattern) -> Tensor:
    """S without its smallest entries; large layers take the threshold from a sample, in a tenth of the time."""
    if pattern.is_grouped:
        return state.masked_fill(mask_by_score(state.abs(), pattern, "layer"), 0)
    score = state.abs().flatten()
    step = score.numel() // SAMPLE
    while step > 1 and gcd(step, state.shape[1]) > 1:  # otherwise the sample would hold only some columns
        step -= 1
    sample = score[:: max(step, 1)].contiguous()
    count = pattern.count(len(sample))
    return nn.functional.hardshrink(state, float(kth_smallest(sample, count))) if count else state
