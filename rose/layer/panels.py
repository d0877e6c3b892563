"""Cholesky factors and inverses of triangles, panel by panel: what torch computes, in less time."""

import torch
from torch import Tensor

from rose.layer.statistics import PANEL

LARGE = 1024  # from this number of columns on, a Cholesky factorization in panels is faster


def cholesky(matrix: Tensor) -> tuple[Tensor, bool]:
    """The lower Cholesky factor, (in, in), and whether it exists; `matrix`, symmetric, is overwritten. Large matrices
    are factorized in panels, as torch takes longer to clear the upper triangle (docs/lab-notes/engine.md)."""
    if len(matrix) < LARGE or matrix.is_cuda:
        lower, info = torch.linalg.cholesky_ex(matrix)
        return lower, not info.item()
    for start in range(0, len(matrix), PANEL):
        end = min(start + PANEL, len(matrix))
        first, info = torch.linalg.cholesky_ex(matrix[start:end, start:end])
        if info.item():
            return matrix, False
        matrix[start:end, start:end] = first.T
        matrix[end:, start:end] = 0
        panel = matrix[start:end, end:]
        panel.copy_(torch.linalg.solve_triangular(first, panel, upper=False))
        for row in range(end, len(matrix), PANEL):
            rows = slice(row - end, row - end + PANEL)
            matrix[row : row + PANEL, row:].addmm_(panel[:, rows].T, panel[:, row - end :], alpha=-1)
    return matrix.T, True


def reversed_inverse(lower: Tensor) -> Tensor:
    """The inverse of a lower triangular matrix, (in, in), with its rows and columns reversed: upper triangular."""
    size = len(lower)
    inverse = lower.new_zeros(size, size)
    for start in range(0, size, PANEL):
        width = min(PANEL, size - start)
        # Above its diagonal L⁻¹ is zero, so a panel of its columns needs only the rows below: a third of the work.
        identity = torch.eye(size - start, width, dtype=lower.dtype, device=lower.device)
        panel = torch.linalg.solve_triangular(lower[start:, start:], identity, upper=False)
        inverse[: size - start, size - start - width : size - start] = panel.flip(0, 1)
    return inverse
