"""Damping, dead columns, and the factor of the inverse."""

import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rose
from rose.layer.hessian import IN_PANELS, DampedHessian, cholesky, condition_number, damp, damped_hessian, spectrum
from rose.layer.statistics import PANEL
from tests.layer.helpers import layers, make_layer


@given(layer=layers(), damping=st.sampled_from([0.01, 0.1]), seed=st.integers(0, 99))
def test_factor_of_the_inverse_in_any_order(layer, damping, seed):
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
def test_factor_wider_than_a_panel(columns, natural):
    damped = damp(make_layer(rows=1, columns=columns, tokens=2 * columns).hessian)
    permutation = torch.arange(columns) if natural else torch.arange(columns).flip(0)
    factor = damped.natural_factor if natural else damped.inverse_factor(permutation)
    inverse = torch.linalg.inv(damped.matrix[permutation][:, permutation].double())
    expected = torch.linalg.cholesky(inverse, upper=True)
    torch.testing.assert_close(factor.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("columns", [IN_PANELS - 1, IN_PANELS, IN_PANELS + PANEL + 37])
def test_cholesky_factor_in_panels(columns):
    inputs = torch.randn(2 * columns, columns, generator=torch.Generator().manual_seed(0))
    matrix = inputs.T @ inputs / len(inputs)
    lower, is_definite = cholesky(matrix.clone())
    assert is_definite
    assert torch.equal(lower, lower.tril())
    torch.testing.assert_close(lower.double(), torch.linalg.cholesky(matrix.double()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("column", [3, IN_PANELS - 1])
def test_no_cholesky_factor_in_panels_of_an_indefinite_matrix(column):
    matrix = torch.eye(IN_PANELS)
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


def test_indefinite_hessian_is_an_error():
    hessian = torch.tensor([[1.0, 5.0], [5.0, 1.0]])
    with pytest.raises(rose.RoseError, match="cannot be factorized even with a damping"):
        damp(hessian)


@pytest.mark.parametrize("damping", [-0.01, float("nan"), float("inf"), True, None, "0.01"])
def test_bad_damping_is_refused(damping):
    with pytest.raises(rose.RoseError, match="Damping must be a number of at least 0"):
        damp(torch.eye(2), damping)


def test_pivots_that_are_noise_are_refused_in_every_order():
    matrix = torch.diag(torch.tensor([1.0, 1.0, 1e-9]))
    lower = torch.linalg.cholesky(matrix.flip(0, 1))
    damped = DampedHessian(matrix, torch.zeros(3, dtype=torch.bool), 0.0, 0.0, float(matrix.diagonal().mean()), lower)
    with pytest.raises(rose.RoseError, match="too close to singular for this column order"):
        damped.inverse_factor(torch.tensor([2, 0, 1]))


def test_spectrum_and_condition_number():
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
    assert [one() is not None for one in made] == [False, False, True, True]
