"""How far from the best: a lower bound on the error that any mask and any weights can reach.

For one row w of a layer, H and k kept weights the layer problem is min (w − u)ᵀH(w − u) over u with k non-zeros. Split
H = (H − D) + D with D diagonal and H − D positive semidefinite. The part of D is separable, and there u_j² may be
replaced by u_j²/z_j with 0 ≤ z_j ≤ 1, Σ z_j = k, which is u_j² where z_j = 1 and forces u_j = 0 where z_j = 0: the
perspective relaxation (Frangioni and Gentile 2006; for sparse regression Xie and Deng, arXiv 1806.03756). It is convex,

    g(z) = min_u (w − u)ᵀ(H − D)(w − u) + Σ_j D_j (w_j² − 2 w_j u_j + u_j²/z_j),

and its minimum is no larger than the error of the best mask. Any z proves a bound, since g is above its tangent plane,
whose minimum over the z allowed is a choice of k columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rose.errors import RoseError

STEPS = 200
SMALLEST = 1e-7  # z of a column that is all but removed; 0 would divide by zero
WITHIN = 1e-3  # of the bound: how far above it g may still be


def separable_part(hessian: Tensor) -> Tensor:
    """D, (in,), with H − diag(D) positive semidefinite: the largest multiple of 1/diag(H⁻¹).

    1/(H⁻¹)_jj is what removing column j alone costs per squared weight, so that D is large where H is.

    Args:
        hessian: H, (in, in), positive definite.
    """
    own = 1 / torch.linalg.inv(hessian).diagonal()
    scale = own.sqrt()
    return own * torch.linalg.eigvalsh(hessian / scale[:, None] / scale)[0].clamp(min=0)


def lower_bound(weight: Tensor, hessian: Tensor, kept: Tensor, *, steps: int = STEPS) -> Tensor:
    """Lower bounds on (w − u)ᵀH(w − u) for each row w over all u with so many non-zeros, (rows,) float64.

    Args:
        weight: W, (rows, in).
        hessian: H, (in, in), positive definite: damped, as a solver takes it.
        kept: non-zeros of each row, (rows,), between 1 and `in`.
        steps: at most, of alternating between u and z; fewer where the bound is within 0.1 % of what it can be.

    Raises:
        RoseError: `kept` has another shape or leaves its range.
    """
    columns = weight.shape[1]
    if kept.shape != weight.shape[:1] or bool(((kept < 1) | (kept > columns)).any()):
        raise RoseError(f"Each of {len(weight)} rows must keep between 1 and {columns} weights.")
    h = hessian.double()
    part = separable_part(h)
    return torch.stack(
        [_row_bound(row, h, part, int(number), steps) for row, number in zip(weight.double(), kept, strict=True)]
    )


def _row_bound(row: Tensor, hessian: Tensor, part: Tensor, kept: int, steps: int) -> Tensor:
    target = hessian @ row
    rest = hessian - torch.diag(part)
    energy = row @ target
    z = torch.full_like(row, kept / len(row))
    best = torch.zeros((), dtype=row.dtype, device=row.device)
    for _ in range(steps):
        u = torch.cholesky_solve(target[:, None], torch.linalg.cholesky(rest + torch.diag(part / z)))[:, 0]
        value = energy - target @ u
        slope = part * (u / z).square()  # −∂g/∂z
        best = torch.maximum(best, value + slope @ z - slope.topk(kept).values.sum())
        if value - best <= WITHIN * value:
            break
        z = _share_out(part.sqrt() * u.abs(), kept).clamp(min=SMALLEST)
    return best


def _share_out(strength: Tensor, kept: int) -> Tensor:
    """The z that minimizes Σ strength²/z: z_j = min(1, t · strength_j) with Σ z_j = kept."""
    ordered = strength.sort(descending=True).values
    tail = ordered.flip(0).cumsum(0).flip(0)  # of the columns from here on
    full = torch.arange(kept, device=strength.device)  # so many columns at 1
    rates = (kept - full) / tail[:kept].clamp(min=torch.finfo(strength.dtype).tiny)
    fits = rates * ordered[:kept] <= 1  # true from the first number that is large enough
    rate = rates[int(fits.to(torch.int8).argmax())] if bool(fits.any()) else rates[-1]
    return (rate * strength).clamp(max=1)
