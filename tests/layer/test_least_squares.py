"""The kept weights of a mask against least squares row by row, and refits of what methods have found."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

import rose
from rose.layer.error import quadratic_form
from rose.layer.hessian import shifted_inverse, solve_on_support
from rose.layer.methods.rose_dealt import refit
from tests.layer.helpers import damped_by_hand, make_layer


def case(seed: int, rows: int = 16, columns: int = 32, tokens: int = 120) -> tuple[Tensor, Tensor]:
    """W and correlated inputs, so that compensation matters."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5 + 0.5 * torch.eye(columns)
    inputs = torch.randn(tokens, columns, generator=generator) @ mixing
    return torch.randn(rows, columns, generator=generator), inputs


def damped_hessian(inputs: Tensor) -> Tensor:
    hessian = inputs.double().T @ inputs.double()
    return hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)


def least_squares(weight: Tensor, mask: Tensor, matrix: Tensor) -> Tensor:
    """Row by row in float64: M = RᵀR turns the quadratic form into a least-squares problem on the kept columns."""
    root = np.linalg.cholesky(matrix.double().numpy()).T
    best = np.zeros(weight.shape)
    for i, (row, gone) in enumerate(zip(weight.double().numpy(), mask.numpy(), strict=True)):
        best[i, ~gone] = np.linalg.lstsq(root[:, ~gone], root @ row, rcond=None)[0]
    return torch.from_numpy(best)


def least_of_all_masks(weight: Tensor, matrix: Tensor, count: int) -> float:
    """The error of the best mask that removes so many weights, with its best weights."""
    chosen = torch.tensor(list(itertools.combinations(range(weight.numel()), count)))
    masks = torch.zeros(len(chosen), weight.numel(), dtype=torch.bool).scatter_(1, chosen, True)
    return min(
        quadratic_form(weight - least_squares(weight, mask, matrix).float(), matrix.float())
        for mask in masks.view(-1, *weight.shape)
    )


def smallest_of_runs(matrix: np.ndarray, count: int, of: int) -> np.ndarray:
    """The `count` smallest entries: of the whole, or of every run of `of` entries of a row where `of` is not 0."""
    runs = np.abs(matrix).reshape(-1, of or matrix.size)
    mask = np.zeros(runs.shape, dtype=bool)
    np.put_along_axis(mask, np.argsort(runs, axis=1, kind="stable")[:, :count], True, axis=1)
    return mask.reshape(matrix.shape)


def error_of(result: rose.LayerResult) -> float:
    return float(result.column_error.sum())


@pytest.mark.parametrize("penalty", [0.1, 1e-8])  # the second is lost in float32, where the matrix is singular
def test_shifted_inverse(penalty):
    matrix = torch.block_diag(torch.ones(2, 2), torch.ones(3, 3))
    exact = torch.linalg.inv(matrix.double() + penalty * torch.eye(5))
    torch.testing.assert_close(shifted_inverse(matrix, penalty), exact.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_solve_is_least_squares_on_the_support(seed):
    weight, inputs = case(seed)
    matrix = damped_hessian(inputs)
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    solved = solve_on_support(weight, mask, matrix.float(), weight, steps=200)
    torch.testing.assert_close(solved.double(), least_squares(weight, mask, matrix), rtol=1e-3, atol=1e-4)
    assert solved[mask].eq(0).all()
    # First-order optimality: no kept weight can improve.
    slope = ((weight - solved).double() @ matrix).masked_fill(mask, 0)
    assert slope.abs().max() < 1e-4 * (weight.double() @ matrix).abs().max()


def test_every_step_of_the_solve_lowers_the_error():
    weight, inputs = case(4)
    matrix = damped_hessian(inputs).float()
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(4)) < 0.6
    errors = [
        quadratic_form(weight - solve_on_support(weight, mask, matrix, weight, steps), matrix) for steps in range(20)
    ]
    assert all(after <= before * (1 + 1e-5) for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


# ---- refits


@pytest.mark.parametrize("sparsity", [0.5, 0.8, "2:4"])
@pytest.mark.parametrize("dead", [(), (3, 11)])
def test_refit_is_least_squares(sparsity, dead):
    layer = make_layer(rows=10, seed=1, dead=dead, loud=4)
    swept = layer.prune(method="sparsegpt", order="dealt", sparsity=sparsity)
    result = layer.prune(method="rose_dealt", sparsity=sparsity)
    assert torch.equal(result.mask, swept.mask)
    assert result.weight[result.mask].eq(0).all()
    matrix = damped_by_hand(layer, result.added_damping)
    live = layer.weight.double().masked_fill((layer.inputs == 0).all(0), 0)
    best = least_squares(live, result.mask, matrix)
    torch.testing.assert_close(result.weight.double(), best, rtol=1e-2, atol=2e-3)
    least = torch.einsum("ij,jk,ik->", live - best, matrix, live - best).item()
    assert least * (1 - 1e-4) <= float(result.column_error.sum()) <= least * (1 + 1e-3)
    assert float(result.column_error.sum()) < float(swept.column_error.sum())
    assert float(result.block_error.sum()) == pytest.approx(float(result.column_error.sum()), rel=1e-5)


@pytest.mark.parametrize("method", ["wanda", "magnitude", "sparsegpt", "dsnot"])
def test_a_refit_helps_every_method(method):
    layer = make_layer(rows=10, seed=2)
    before = layer.prune(method=method, sparsity=0.6)
    after = refit(layer.weight, layer.statistics, before)
    assert after.relative_error < before.relative_error
    assert after.method == method
    assert torch.equal(after.mask, before.mask)


def test_order_and_budget_apply_to_rose_dealt():
    layer = make_layer(rows=10, seed=3)
    result = layer.prune(method="rose_dealt", sparsity=0.6, order="natural", budget="block")
    assert torch.equal(result.mask, layer.prune(method="sparsegpt", sparsity=0.6).mask)
    assert (result.order.name, result.budget) == ("natural", "block")
