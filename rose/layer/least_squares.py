"""The least-squares problem of a layer, min tr((W − Ŵ) M (W − Ŵ)ᵀ): on a fixed mask, and with a pull towards given
weights, which ADMM solves again and again."""

from __future__ import annotations

import torch
from torch import Tensor

from rose.interrupt import stop_point
from rose.layer.hessian import cholesky


def solve_on_support(weight: Tensor, mask: Tensor, matrix: Tensor, start: Tensor, steps: int) -> Tensor:
    """Conjugate gradients towards the kept weights that minimise tr((W − Ŵ) M (W − Ŵ)ᵀ) for a fixed mask.

    All rows at once, each with its own step sizes, preconditioned by the diagonal of M. The error never rises.

    Args:
        weight: W, (out, in) float32.
        mask: True = removed, (out, in).
        matrix: M, (in, in), definite.
        start: (out, in); only its kept entries are used.
        steps: at most; fewer once the residual has fallen by 1e-6.
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
        stop_point()
        step = direction @ matrix
        curvature = (direction * step).sum(1, keepdim=True)
        length = torch.where(curvature > 0, norm / curvature, 0)
        solution = solution + length * direction
        residual = residual - (length * step).masked_fill(mask, 0)
        scaled = residual / diagonal
        last, norm = norm, (residual * scaled).sum(1, keepdim=True)
        direction = scaled + torch.where(last > 0, norm / last, 0) * direction
    return solution


def shifted_inverse(matrix: Tensor, penalty: float) -> Tensor:
    """(M + ρ I)⁻¹, (in, in), by a Cholesky factorization for each ρ; M is float32 and definite, ρ at least 0. ALPS
    decomposes M into eigenvectors in float64, which takes as long as nine of these inverses."""
    factor, is_definite = cholesky(_raised(matrix, penalty))
    if not is_definite:  # by less than float32 tells
        return torch.cholesky_inverse(torch.linalg.cholesky(_raised(matrix.double(), penalty))).to(matrix)
    return torch.cholesky_inverse(factor)


def _raised(matrix: Tensor, penalty: float) -> Tensor:
    raised = matrix.clone()
    raised.diagonal().add_(penalty)
    return raised
