"""Damping, dead columns, factors of the inverse, and refits against least squares row by row."""

import itertools
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import rose
from rose.layer.error import quadratic_form, relative_error
from rose.layer.hessian import (
    DampedHessian,
    condition_number,
    damp,
    damped_hessian,
    spectrum,
)
from rose.layer.least_squares import shifted_inverse, solve_on_support
from rose.layer.methods.sparsegpt import refit
from rose.layer.panels import LARGE, cholesky
from rose.layer.statistics import PANEL
from tests.layer.helpers import damped_by_hand, layers, make_layer
from tests.refusals import refused


@given(layer=layers(), damping=st.sampled_from([0.01, 0.1]), seed=st.integers(0, 99))
def test_factor_of_the_inverse_is_right_in_any_order(layer, damping, seed):
    damped = damp(layer.hessian, damping)
    n = len(damped.matrix)
    permutation = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    factor = damped.inverse_factor(permutation)
    assert torch.equal(factor, factor.triu())
    assert (factor.diagonal() > 0).all()
    ordered = damped.matrix[permutation][:, permutation].double()
    product = factor.double().T @ factor.double() @ ordered
    torch.testing.assert_close(product, torch.eye(n, dtype=torch.float64), rtol=0, atol=2e-3)


@pytest.mark.parametrize("columns", [PANEL, PANEL + 1, 2 * PANEL + 37])
@pytest.mark.parametrize("natural", [True, False])
def test_factors_wider_than_a_panel_are_right(columns, natural):
    damped = damp(make_layer(rows=1, columns=columns, tokens=2 * columns).hessian)
    permutation = torch.arange(columns) if natural else torch.arange(columns).flip(0)
    factor = damped.natural_factor if natural else damped.inverse_factor(permutation)
    inverse = torch.linalg.inv(damped.matrix[permutation][:, permutation].double())
    expected = torch.linalg.cholesky(inverse, upper=True)
    torch.testing.assert_close(factor.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("columns", [LARGE - 1, LARGE, LARGE + PANEL + 37])
def test_cholesky_factor_in_panels_matches_torch(columns):
    inputs = torch.randn(2 * columns, columns, generator=torch.Generator().manual_seed(0))
    matrix = inputs.T @ inputs / len(inputs)
    lower, is_definite = cholesky(matrix.clone())
    assert is_definite
    assert torch.equal(lower, lower.tril())
    torch.testing.assert_close(lower.double(), torch.linalg.cholesky(matrix.double()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("column", [3, LARGE - 1])
def test_indefinite_matrices_have_no_cholesky_factor(column):
    matrix = torch.eye(LARGE)
    matrix[column, column] = -1
    assert not cholesky(matrix)[1]


def test_damping_is_relative_to_the_mean_diagonal():
    hessian = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    damped = damp(hessian, 0.1)
    assert damped.added == pytest.approx(0.2)
    assert damped.matrix.diagonal().tolist() == pytest.approx([1.2, 2.2, 3.2])
    assert torch.equal(hessian.diagonal(), torch.tensor([1.0, 2.0, 3.0]))  # H is not changed


def test_dead_columns_decouple():
    layer = make_layer(columns=6, dead=[1, 4])
    damped = damp(layer.hessian)
    assert damped.dead.tolist() == [False, True, False, False, True, False]
    assert damped.matrix[1, 1] == 1 + damped.added
    assert damped.matrix[1, [0, 2, 3, 4, 5]].eq(0).all()
    # Dead columns count in the mean as zeros, not as ones: λ must scale with H.
    assert damped.added == pytest.approx(0.01 * layer.hessian.diagonal().mean().item())


def test_damping_is_raised_tenfold_until_it_suffices():
    hessian = torch.eye(4)
    hessian[0, 1] = hessian[1, 0] = 1.05  # an eigenvalue of −0.05
    assert damp(hessian, 1e-3).damping == pytest.approx(0.1)
    assert damp(hessian, 0.04).damping == pytest.approx(0.4)
    assert damp(hessian, 0.0).damping == pytest.approx(0.1)  # from 1e-4 on
    assert damp(hessian, 0.06).damping == 0.06


def test_pivots_at_rounding_level_are_refused():
    matrix = torch.diag(torch.tensor([1.0, 1.0, 1e-9]))
    lower = torch.linalg.cholesky(matrix.flip(0, 1))
    damped = DampedHessian(matrix, torch.zeros(3, dtype=torch.bool), 0.0, 0.0, float(matrix.diagonal().mean()), lower)
    refused("too close to singular for this column order", damped.inverse_factor, torch.tensor([2, 0, 1]))


def test_spectrum_and_condition_number_match_the_eigenvalues():
    hessian = torch.diag(torch.tensor([4.0, 0.0, 1.0]))
    assert spectrum(hessian).tolist() == pytest.approx([4, 1, 0])
    # The dead column's 1 on the diagonal is ours and no eigenvalue of H.
    assert condition_number(hessian * 1e-3, damping=0) == pytest.approx(4)
    assert condition_number(hessian, damping=0.6) == pytest.approx(5 / 2)


def test_a_remembered_hessian_is_freed_with_its_statistics():
    statistics = make_layer().statistics
    first = damped_hessian(statistics, 0.01)
    assert damped_hessian(statistics, 0.01) is first
    assert damped_hessian(statistics, 0.02).damping == 0.02
    statistics.update(make_layer(seed=1).inputs)
    grown = damped_hessian(statistics, 0.02)
    assert not torch.equal(grown.matrix, first.matrix)
    assert torch.equal(grown.matrix, damp(statistics.hessian, 0.02).matrix)
    alive = weakref.ref(grown)
    del grown, statistics
    assert alive() is None


def test_at_most_two_hessians_are_remembered():
    many = [make_layer(seed=seed).statistics for seed in range(4)]
    made = [weakref.ref(damped_hessian(statistics, 0.01)) for statistics in many]
    assert [reference() is not None for reference in made] == [False, False, True, True]


def case(seed: int, rows: int = 16, columns: int = 32, tokens: int = 120) -> tuple[Tensor, Tensor]:
    """W and correlated inputs, so that compensation matters."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5 + 0.5 * torch.eye(columns)
    inputs = torch.randn(tokens, columns, generator=generator) @ mixing
    return torch.randn(rows, columns, generator=generator), inputs


def damped_inputs(inputs: Tensor) -> Tensor:
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
    best = (least_squares(weight, mask, matrix).float() for mask in masks.view(-1, *weight.shape))
    return min(quadratic_form(weight - kept, matrix.float()) for kept in best)


def smallest_of_runs(matrix: np.ndarray, count: int, of: int) -> np.ndarray:
    """The `count` smallest entries: of the whole, or of every run of `of` entries of a row where `of` is not 0."""
    runs = np.abs(matrix).reshape(-1, of or matrix.size)
    mask = np.zeros(runs.shape, dtype=bool)
    np.put_along_axis(mask, np.argsort(runs, axis=1, kind="stable")[:, :count], True, axis=1)
    return mask.reshape(matrix.shape)


def error_of(result: rose.LayerResult) -> float:
    return float(result.column_error.sum())


@pytest.mark.parametrize("penalty", [0.1, 1e-8])  # the second is lost in float32, where the matrix is singular
def test_shifted_inverse_matches_the_definition(penalty):
    matrix = torch.block_diag(torch.ones(2, 2), torch.ones(3, 3))
    exact = torch.linalg.inv(matrix.double() + penalty * torch.eye(5))
    torch.testing.assert_close(shifted_inverse(matrix, penalty), exact.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_solve_is_least_squares_on_the_support(seed):
    weight, inputs = case(seed)
    matrix = damped_inputs(inputs)
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    solved = solve_on_support(weight, mask, matrix.float(), weight, steps=48)
    torch.testing.assert_close(solved.double(), least_squares(weight, mask, matrix), rtol=1e-3, atol=1e-4)
    assert solved[mask].eq(0).all()
    # First-order optimality: no kept weight can improve.
    slope = ((weight - solved).double() @ matrix).masked_fill(mask, 0)
    assert slope.abs().max() < 1e-4 * (weight.double() @ matrix).abs().max()


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
def test_a_refit_lowers_the_error_of_every_method(method):
    layer = make_layer(rows=10, seed=2)
    before = layer.prune(method=method, sparsity=0.6)
    after = refit(layer.weight, layer.statistics, before)
    assert relative_error(layer.weight, after.weight, layer.hessian) < before.relative_error
    assert (after.method, after.mask.tolist()) == (method, before.mask.tolist())
