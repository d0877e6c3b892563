"""The lower bound against the best of all masks, where these can be tried, and where it is known to be exact."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

import rose
from tests.benchmarks.bound import lower_bound, separable_part


def layer(rows: int, columns: int, seed: int, tokens: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=generator)
    inputs = torch.randn(tokens, columns, generator=generator) @ (torch.eye(columns) + 0.2 * mixed)
    return torch.randn(rows, columns, generator=generator), inputs.T @ inputs


def least_error(row: Tensor, hessian: Tensor, kept: int) -> float:
    """Of all masks with so many weights, each with its optimal weights."""
    w, h = row.double(), hessian.double()
    errors = []
    for removed in combinations(range(len(w)), len(w) - kept):
        gone = list(removed)
        inverse = torch.linalg.inv(h)[gone][:, gone]
        errors.append(float(w[gone] @ torch.linalg.solve(inverse, w[gone])))
    return min(errors)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kept", [1, 3, 5, 7])
def test_no_mask_is_below_the_bound_and_the_best_is_near(seed: int, kept: int) -> None:
    weight, hessian = layer(3, 8, seed)
    bounds = lower_bound(weight, hessian, torch.full((3,), kept))
    best = torch.tensor([least_error(row, hessian, kept) for row in weight], dtype=torch.float64)
    assert (bounds <= best * (1 + 1e-9)).all()
    assert (bounds >= 0.25 * best).all()  # it says something


def test_exact_where_columns_do_not_interact() -> None:
    weight, _ = layer(4, 12, 0)
    diagonal = torch.linspace(1, 5, 12)
    kept = torch.tensor([1, 4, 8, 12])
    losses = (diagonal * weight.square()).sort(1).values
    expected = [float(row[: 12 - int(number)].sum()) for row, number in zip(losses, kept, strict=True)]
    torch.testing.assert_close(
        lower_bound(weight, torch.diag(diagonal), kept),
        torch.tensor(expected, dtype=torch.float64),
        rtol=2e-3,
        atol=1e-6,
    )


def test_what_is_split_off_leaves_a_positive_semidefinite_rest() -> None:
    _, hessian = layer(1, 16, 3)
    part = separable_part(hessian.double())
    least = torch.linalg.eigvalsh(hessian.double() - torch.diag(part))[0]
    assert (part > 0).all()
    assert abs(float(least)) < 1e-9 * float(hessian.diagonal().mean())


@pytest.mark.parametrize(("name", "least"), [("sparsegpt", 0.02), ("rose_admm", 0.1), ("alps", 0.1)])
def test_no_solver_is_below_the_bound(name: str, least: float) -> None:
    weight, hessian = layer(24, 32, 7, tokens=200)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(32)
    pruned = rose.prune_layer(weight, hessian, method=name, sparsity=0.6, block_size=16).weight
    change = (pruned - weight).double()
    reached = (change @ damped.double() * change).sum(1)
    kept = (pruned != 0).sum(1).clamp(min=1)
    bounds = lower_bound(weight, damped, kept)
    assert (bounds <= reached * (1 + 1e-6)).all()
    assert bounds.sum() > least * reached.sum()
