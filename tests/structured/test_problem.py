"""Cost, greedy choice and compensation against brute force on tokens."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor

from rose.structured.methods import correlation, unit_covariances
from rose.structured.parts import Shape
from rose.structured.problem import Problem, error, greedy, recover, set_cost, unit_costs

UNITS, WIDTH, OUT, TOKENS = 6, 2, 5, 200


def make_problem(width: int = WIDTH, units: int = UNITS, with_bias: bool = True) -> tuple[Problem, Tensor]:
    """A problem with correlated inputs of uneven size and a mean, and the tokens it comes from."""
    generator = torch.Generator().manual_seed(3)
    columns = width * units
    x = torch.randn(TOKENS, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    x = x * torch.linspace(0.2, 2, columns) + torch.linspace(-1, 2, columns)
    weight = torch.randn(OUT, columns, generator=generator)
    problem = Problem(weight, x.T @ x / TOKENS, x.mean(0), Shape(1, units), width, with_bias, damping=1e-6)
    return problem, x


def best_error(problem: Problem, x: Tensor, stays: Tensor) -> float:
    """Least mean ‖Wx − Ŵx_K − b‖² that any weights of the kept columns reach, by least squares on the tokens."""
    inputs = x[:, problem.columns_of(stays)].double()
    if problem.with_bias:
        inputs = torch.cat([inputs, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    y = (x @ problem.weight.T).double()
    return float((y - inputs @ torch.linalg.lstsq(inputs, y).solution).square().sum() / len(x))


def without(*gone: int) -> Tensor:
    stays = torch.ones(UNITS, dtype=torch.bool)
    stays[list(gone)] = False
    return stays


@pytest.mark.parametrize("with_bias", [True, False])
def test_the_cost_of_a_set_is_the_least_error_on_tokens(with_bias):
    problem, x = make_problem(with_bias=with_bias)
    for gone in [*combinations(range(UNITS), 1), *combinations(range(UNITS), 3)]:
        expected = best_error(problem, x, without(*gone))
        assert set_cost(problem, without(*gone)) == pytest.approx(expected, rel=2e-3)
        weight, bias = recover(problem, without(*gone), "exact")
        assert (weight[:, ~problem.columns_of(without(*gone))] == 0).all()
        assert error(problem.weight, weight, bias, problem.second, problem.mean) == pytest.approx(expected, rel=2e-3)
    costs = unit_costs(problem).tolist()
    assert costs == pytest.approx([set_cost(problem, without(unit)) for unit in range(UNITS)], rel=1e-3)


def test_a_raised_damping_is_reported_after_any_factorization():
    problem, _ = make_problem()
    few = torch.randn(3, UNITS * WIDTH, generator=torch.Generator().manual_seed(0))
    singular = replace(problem, second=few.T @ few, mean=few.mean(0) * 0, damping=0.0)
    assert singular.used_damping == 0
    inverse = singular.coarse().inverse
    assert singular.used_damping > 0
    assert inverse is singular.inverse
    assert problem.inverse is not None
    assert problem.used_damping == problem.damping


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("width", [1, WIDTH])
def test_dead_units_cost_nothing_and_are_removed_first(width, with_bias):
    problem, _ = make_problem(width, with_bias=with_bias)
    dead = problem.columns[[1, 4]].flatten()
    live = torch.ones(len(problem.mean)).index_fill(0, dead, 0)
    problem = replace(problem, second=problem.second * torch.outer(live, live), mean=problem.mean * live)
    assert unit_costs(problem)[[1, 4]].tolist() == [0, 0]
    assert set_cost(problem, without(1, 4)) == 0
    for gone in [torch.zeros(UNITS, dtype=torch.bool), ~without(0)]:  # two ways to compute
        pool = (~gone).nonzero().flatten()
        order, costs = greedy(problem, 3, [pool], gone)
        assert sorted(order[:2].tolist()) == [1, 4]
        assert costs[:2].tolist() == [0, 0]
        assert costs[2] > 0


@pytest.mark.parametrize("width", [1, WIDTH])
def test_greedy_removes_the_cheapest_unit_and_its_costs_add_up(width):
    problem, _ = make_problem(width)
    order, costs = greedy(problem, 4, [torch.arange(UNITS)], torch.zeros(UNITS, dtype=torch.bool))
    gone: list[int] = []
    for step, unit in enumerate(order.tolist()):
        prices = {other: set_cost(problem, without(*gone, other)) for other in range(UNITS) if other not in gone}
        assert unit == min(prices, key=prices.__getitem__)
        gone.append(unit)
        assert float(costs[: step + 1].sum()) == pytest.approx(set_cost(problem, without(*gone)), rel=1e-3)


def test_greedy_costs_of_many_columns_add_up():
    problem, _ = make_problem(width=1, units=150)
    pool, none = torch.arange(150), torch.zeros(150, dtype=torch.bool)
    order, costs = greedy(problem, 100, [pool], none)
    gone = none.clone()
    gone[order] = True
    assert len(set(order.tolist())) == 100
    assert float(costs.sum()) == pytest.approx(set_cost(problem, ~gone), rel=5e-3)


def test_greedy_removes_equally_many_from_every_pool():
    problem, _ = make_problem()
    order, _ = greedy(problem, 2, [torch.arange(3), torch.arange(3, 6)], torch.zeros(UNITS, dtype=torch.bool))
    assert sorted(int(unit) // 3 for unit in order) == [0, 0, 1, 1]


def test_each_recovery_lowers_the_error_further():
    problem, x = make_problem()
    stays = without(1, 4)
    y = x @ problem.weight.T
    errors = []
    for how in ("none", "bias", "linear", "exact"):
        weight, bias = recover(problem, stays, how)
        direct = (y - x @ weight.T - (0 if bias is None else bias)).square().sum() / len(x)
        errors.append(error(problem.weight, weight, bias, problem.second, problem.mean))
        assert errors[-1] == pytest.approx(float(direct), rel=1e-3)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[-2]


def test_correlations_match_those_of_the_outputs():
    problem, x = make_problem()
    stays = without(0, 3)
    y, part = x @ problem.weight.T, x[:, problem.columns_of(stays)] @ problem.weight[:, problem.columns_of(stays)].T
    expected = sum(abs(float(torch.corrcoef(torch.stack([y[:, j], part[:, j]]))[0, 1])) for j in range(OUT))
    assert correlation(unit_covariances(problem), stays) == pytest.approx(expected, rel=1e-4)
