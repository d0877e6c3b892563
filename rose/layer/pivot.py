"""Pivoted Cholesky factorization: which column is, among those not picked yet, the one with the largest variance that
the columns picked so far leave unexplained (LAPACK `pstrf`, Hammarling, Higham and Lucas 2007)."""

from __future__ import annotations

import torch
from scipy.linalg import lapack
from torch import Tensor


def pivoted(matrix: Tensor, unit: int = 1, smallest: bool = False) -> Tensor:
    """Columns in the order in which pivoted Cholesky picks them, (in,) int64; ties by index.

    Args:
        matrix: (in, in) float32, symmetric and semidefinite; not changed.
        unit: columns that stay together; a group's pivot is the determinant of its unexplained block.
        smallest: picks the least pivot each time, not the largest.
    """
    if unit == 1 and not smallest and matrix.device.type == "cpu":
        pivots = lapack.spstrf(matrix.numpy(), tol=0.0, lower=1)[1]
        return torch.from_numpy(pivots).long() - 1
    columns = len(matrix)
    groups = columns // unit
    rows = matrix.new_zeros(columns, columns)  # of the factor, one after another
    at = torch.arange(columns, device=matrix.device).view(groups, unit)
    left = matrix[at.unsqueeze(2), at.unsqueeze(1)].double()  # (groups, unit, unit): each group's unexplained block
    picked = torch.zeros(groups, dtype=torch.bool, device=matrix.device)
    order = torch.empty(groups, dtype=torch.int64, device=matrix.device)
    for step in range(groups):
        size = left.flatten().log() if unit == 1 else torch.linalg.slogdet(left).logabsdet
        # Not definite: all that is left of the group is rounding noise.
        size = (-size if smallest else size).nan_to_num_(torch.finfo(size.dtype).min).masked_fill_(picked, -torch.inf)
        order[step] = group = size.argmax()
        picked[group] = True
        done, chosen = step * unit, at[group]
        residual = matrix[chosen] - rows[:done, chosen].T @ rows[:done]
        block, failed = torch.linalg.cholesky_ex(residual[:, chosen])
        if failed:
            continue
        rows[done : done + unit] = torch.linalg.solve_triangular(block, residual, upper=False)
        new = rows[done : done + unit].view(unit, groups, unit).double()
        left -= torch.einsum("kgi,kgj->gij", new, new)
    return at[order].flatten()
