"""OATS: a sparse plus a low-rank matrix in place of W (Zhang and Papyan 2025, "Outlier-Aware Pruning Through
Sparse and Low Rank Decomposition", algorithm 1)."""

import torch
from torch import Tensor

from rose.interrupt import stop_point
from rose.layer.methods import PLAIN, Context
from rose.layer.methods.toolkit import mask_by_score, prune_by_score, result_of
from rose.layer.pattern import Pattern
from rose.layer.result import LayerResult
from rose.layer.settings import LayerSettings
from rose.layer.statistics import InputStatistics

SPARE = 8  # directions tracked beyond the rank, so that the basis has a growing direction already
SUBSPACE_STEPS = 2


def oats(weight: Tensor, statistics: InputStatistics, settings: LayerSettings, context: Context = PLAIN) -> LayerResult:
    """W ≈ S + L, found on W · diag(a) with a_j = sqrt(mean of x_j²). With κ = 1 − ratio and rank ratio ρ, S keeps (1
    − ρ)κ of every row and L has rank ⌊ρκ · out·in/(out + in)⌋. Under N:M κ = (keep/of)/(1 − ρ): 2:4 with ρ = 0.25
    removes a third, not half."""
    pattern, rank_ratio = settings.pattern, float(settings.method_options["rank_ratio"])
    if pattern.ratio == 0:
        return prune_by_score(weight, statistics, settings, weight, budget="row")
    stored = 1 - pattern.ratio if not pattern.is_grouped else pattern.keep / pattern.of / (1 - rank_ratio or 1.0)  # κ
    rows, columns = weight.shape
    rank = int(rank_ratio * stored * rows * columns / (rows + columns))
    sparse_pattern = pattern if pattern.is_grouped else Pattern(1 - (1 - rank_ratio) * stored)
    norm = statistics.mean_square.sqrt()
    mask, left, right = decompose(
        weight.float() * norm, rank, sparse_pattern, int(settings.method_options["iterations"])
    )
    # A dead column is zero in both parts, so it needs no scale.
    scale = torch.where(norm > 0, 1 / norm, 0)
    right = right * scale
    low_rank = left @ right
    sparse = (weight.float() - low_rank).masked_fill(mask | (norm == 0), 0)
    pruned = (sparse + low_rank).to(weight.dtype)
    return result_of(weight, pruned, mask, statistics, settings, budget="row", low_rank=(left, right))


def decompose(matrix: Tensor, rank: int, pattern: Pattern, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Alternates L = best rank-r approximation of M − S, and S = M − L without its smallest entries. M is (out, in); a
    ratio holds in each row. Returns the mask of S (True = removed), and factors of L, (out, rank) and (rank, in)."""
    sparse, basis = torch.zeros_like(matrix), None
    for _ in range(iterations):
        stop_point()
        left, right, basis = _next_low_rank(matrix - sparse, rank, basis)
        rest = matrix - left @ right
        mask = mask_by_score(rest.abs(), pattern, "row")
        sparse = rest.masked_fill(mask, 0)
    return mask, left, right


def _next_low_rank(matrix: Tensor, rank: int, basis: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Factors of the best approximation by subspace iteration from the last basis, (out, rank + `SPARE`) with
    orthonormal columns, and the next basis; None for a narrow layer, where the iteration does not pay."""
    wide = rank + SPARE
    if rank == 0 or 4 * wide > min(matrix.shape):
        return *truncated_svd(matrix, rank), None
    if basis is None:
        leading = directions(matrix)[:, -wide:]
    else:
        leading = basis
        for _ in range(SUBSPACE_STEPS):
            leading = torch.linalg.qr(matrix @ (matrix.T @ leading)).Q
    projected = leading.T @ matrix
    turn = directions(projected)
    basis, projected = leading @ turn, turn.T @ projected
    return basis[:, SPARE:], projected[SPARE:], basis


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors (out, rank) and (rank, in) of the best approximation of this rank in the Frobenius norm. Eigenvectors of
    the smaller Gram matrix give them several times faster than a full SVD."""
    if matrix.shape[0] > matrix.shape[1]:
        left, right = truncated_svd(matrix.T, rank)
        return right.T, left.T
    leading = directions(matrix)[:, len(matrix) - rank :]
    return leading, leading.T @ matrix


def directions(matrix: Tensor) -> Tensor:
    """Eigenvectors of the Gram matrix M Mᵀ, (rows, rows), by ascending eigenvalue, for M (rows, columns).

    Computes in float64, as float32 underflows if a rest is nearly of low rank: its solver then finds NaN or nothing.
    """
    return torch.linalg.eigh((matrix @ matrix.T).double()).eigenvectors.to(matrix)
