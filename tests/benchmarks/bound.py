"""How far solvers are from the best mask there could be: python -m tests.benchmarks.bound --text TEXT --output FILE.

For some rows of each layer, the error that a solver reaches on the calibration tokens, damping included as it sees it,
and what no mask with as many weights in that row can be below. A line of the file for each layer and method, as it
comes.

For one row w of a layer, H and k kept weights the layer problem is min (w − u)ᵀH(w − u) over u with k non-zeros. Split
H = (H − D) + D with D diagonal and H − D positive semidefinite. The part of D is separable, and there u_j² may be
replaced by u_j²/z_j with 0 ≤ z_j ≤ 1, Σ z_j = k, which is u_j² where z_j = 1 and forces u_j = 0 where z_j = 0: the
perspective relaxation (Frangioni and Gentile 2006; for sparse regression Xie and Deng, arXiv 1806.03756). It is convex,

    g(z) = min_u (w − u)ᵀ(H − D)(w − u) + Σ_j D_j (w_j² − 2 w_j u_j + u_j²/z_j),

and its minimum is no larger than the error of the best mask. Any z proves a bound, since g is above its tangent plane,
whose minimum over the z allowed is a choice of k columns.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import rose
from tests.benchmarks.common import MODEL, Rows, arguments

METHODS = ("sparsegpt", "rose_dealt", "rose_admm", "alps")
DAMPING = 0.01
STEPS = 200  # at most, of alternating between u and z
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


def lower_bound(weight: Tensor, hessian: Tensor, kept: Tensor) -> Tensor:
    """Lower bounds on (w − u)ᵀH(w − u) for each row w over all u with so many non-zeros, (rows,) float64.

    Args:
        weight: W, (rows, in).
        hessian: H, (in, in), positive definite: damped, as a solver takes it.
        kept: non-zeros of each row, (rows,), between 1 and `in`.
    """
    h = hessian.double()
    part = separable_part(h)
    return torch.stack(
        [_row_bound(row, h, part, int(number)) for row, number in zip(weight.double(), kept, strict=True)]
    )


def _row_bound(row: Tensor, hessian: Tensor, part: Tensor, kept: int) -> Tensor:
    target = hessian @ row
    rest = hessian - torch.diag(part)
    energy = row @ target
    z = torch.full_like(row, kept / len(row))
    best = torch.zeros((), dtype=row.dtype, device=row.device)
    for _ in range(STEPS):
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


def main() -> None:
    options = arguments(
        __doc__,
        output=Path,
        model=MODEL,
        text="packaged",
        samples=16,
        length=512,
        sparsity="0.7",
        layers=[f"model.layers.{block}.*" for block in (0, 12, 18, 24)],
        rows=4,  # of each layer, evenly spaced
    )
    model, tokenizer = rose.load_model(options.model)
    tokens = rose.load_tokens(options.text, tokenizer, samples=options.samples, length=options.length)
    statistics = rose.collect_statistics(model, tokens, layers=options.layers)
    found = Rows(options.output, ["layer", "method"])
    for layer in rose.prunable_layers(model):
        if layer.name not in statistics:
            continue
        hessian, weight = statistics[layer.name].hessian, layer.weight.float()
        damped = hessian.double().clone()
        damped.diagonal().add_(DAMPING * damped.diagonal().mean())
        rows = torch.linspace(0, len(weight) - 1, options.rows).long()
        for method in METHODS:
            if (layer.name, method) in found:
                continue
            pruned = rose.prune_layer(weight, statistics[layer.name], method=method, sparsity=options.sparsity).weight
            change = (pruned - weight)[rows].double()
            kept = (pruned[rows] != 0).sum(1).clamp(min=1)  # fewer would only cost more
            reached = float((change @ damped * change).sum())
            bound = float(lower_bound(weight[rows], damped, kept).sum())
            shares = {"reached": reached, "bound": bound, "share": bound / reached}
            found.add(layer=layer.name, projection=layer.projection, method=method, **shares)
    table = found.table().pivot_table(index="method", columns="projection", values="share", margins=True)
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()
