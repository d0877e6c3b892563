"""Least squares for the kept weights of a layer, by conjugate gradients, and the inverses that ADMM needs."""

import torch
from torch import Tensor

from rose.interrupt import stop_point
from rose.layer.panels import cholesky


def solve_on_support(
    weight: Tensor, mask: Tensor, matrix: Tensor, start: Tensor, steps: int, cross: Tensor | None = None
) -> Tensor:
    """Finds by conjugate gradients the kept weights that minimise tr((W − Ŵ) M (W − Ŵ)ᵀ + 2 C (W − Ŵ)ᵀ) for a fixed
    mask. C = GᵀX_p, (out, in), of a gap G to a dense target, is 0 by default.

    All rows at once, each with its own step sizes, preconditioned by the diagonal of M. The error never rises. W is
    (out, in) float32; the mask (out, in), True = removed; M (in, in), definite. Only the kept entries of `start`, (out,
    in), are used. It stops before `steps` once the residual has fallen by 1e-6.
    """
    diagonal = matrix.diagonal()
    solution = start.masked_fill(mask, 0)
    residual = (weight - solution) @ matrix
    residual = (residual if cross is None else residual + cross).masked_fill(mask, 0)
    scaled = residual / diagonal
    direction = scaled
    norm = (residual * scaled).sum(1, keepdim=True)  # squared norm of each row's residual
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
    raised = matrix.clone()
    raised.diagonal().add_(penalty)
    factor, is_definite = cholesky(raised)
    if not is_definite:  # not definite by less than float32 can represent
        raised = matrix.double()
        raised.diagonal().add_(penalty)
        factor = torch.linalg.cholesky(raised)
    return torch.cholesky_inverse(factor).to(matrix)
