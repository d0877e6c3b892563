"""Prices of columns, custom budgets, and forecasts against the sweeps that they predict."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rose
from rose.layer.budget import count_by_block
from rose.layer.error import relative_error
from rose.layer.forecast import ROWS, SAMPLES, _Factored, best_shares, forecast, forecasts, price_columns
from rose.layer.loss import smallest
from rose.layer.order import plan_from_importance
from rose.layer.registry import order_names
from tests.layer.helpers import ORDERS, Layer, block_sizes, damped_by_hand, layers, make_layer, ratios, statistics_of
from tests.refusals import refused


@pytest.mark.parametrize("order", [*ORDERS, "rose", "custom"])
@given(data=st.data(), seed=st.integers(0, 9), sparsity=st.sampled_from([0.7, "2:4", "1:4"]))
def test_every_order_has_the_same_sum_of_log_prices(data, seed, sparsity, order):
    unit = 1 if sparsity == 0.7 else 4
    layer, block_size = data.draw(layers(unit=unit)), unit * data.draw(st.integers(1, 40 // unit))
    plan = rose.plan_order(layer.weight, layer.statistics, sparsity=sparsity, block_size=block_size, damping=0.1)
    if order == "custom":
        shuffled = torch.randperm(len(plan.column_loss) // unit, generator=torch.Generator().manual_seed(seed))
        order = (shuffled[:, None] * unit + torch.arange(unit)).flatten()
    prices = price_columns(plan, order)
    groups = prices.order.permutation.view(-1, unit)
    assert torch.equal(groups, groups[:, :1] + torch.arange(unit))
    determinant = torch.linalg.slogdet(damped_by_hand(layer, plan.damped.added)).logabsdet
    assert prices.log_total == pytest.approx(float(determinant), rel=1e-4, abs=1e-3)
    columns, slack = len(prices.price), 1 + 1e-4
    assert columns * math.exp(prices.level) <= prices.total * slack  # the least sum is an even deal's
    assert (prices.price <= prices.alone * slack).all()  # the others only help


def test_the_price_of_a_column_is_its_residual_given_later_columns():
    layer = make_layer()
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    result = layer.prune(method="sparsegpt", order=order)
    hessian = damped_by_hand(layer, result.added_damping)[order][:, order]
    for step, price in enumerate(result.prices.price.tolist()):
        alone, later = hessian[step, step], slice(step + 1, None)
        explained = hessian[step, later] @ torch.linalg.solve(hessian[later, later], hessian[later, step])
        assert price == pytest.approx(float(alone - explained), rel=1e-3)
    assert torch.allclose(result.prices.alone, hessian.diagonal(), rtol=1e-5)


def by_hand(hessian: torch.Tensor, unit: int, least: bool) -> list[int]:
    """Groups in the order in which their block of the Schur complement has the largest or least determinant."""
    groups = [list(range(start, start + unit)) for start in range(0, len(hessian), unit)]
    picked: list[int] = []
    while groups:
        sizes = []
        for group in groups:
            across = hessian[picked][:, group]
            block = hessian[group][:, group] - across.T @ torch.linalg.solve(hessian[picked][:, picked], across)
            sizes.append(float(torch.linalg.slogdet(block).logabsdet))
        picked += groups.pop(sizes.index(min(sizes) if least else max(sizes)))
    return picked


@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
@pytest.mark.parametrize("name", ["pivot", "min_pivot", "pivot_weighted", "greedy"])
def test_pivot_orders_follow_the_remaining_variance(name, sparsity):
    layer = make_layer(rows=9)
    plan = rose.plan_order(layer.weight, layer.statistics, sparsity=sparsity, block_size=8)
    unit, hessian = plan.pattern.of or 1, damped_by_hand(layer, plan.damped.added)
    if name == "pivot_weighted":
        size = layer.weight.double().norm(dim=0)
        hessian = size[:, None] * hessian * size
    if name == "greedy":
        picked = by_hand(torch.linalg.inv(hessian), unit, least=False)
    else:
        groups = torch.tensor(by_hand(hessian, unit, least=name == "min_pivot")).view(-1, unit)
        picked = groups.flip(0).flatten().tolist()
    assert rose.make_order(plan, name).permutation.tolist() == picked


def test_the_inverse_order_begins_with_the_best_explained_column():
    layer = make_layer()
    plan = rose.plan_order(layer.weight, layer.statistics, block_size=8)
    diagonal = torch.linalg.inv(damped_by_hand(layer, plan.damped.added)).diagonal()
    assert rose.make_order(plan, "inverse").permutation.tolist() == diagonal.argsort(descending=True).tolist()


@pytest.mark.parametrize("name", ["inverse", "pivot", "pivot_weighted", "min_pivot", "greedy"])
def test_pivot_orders_need_h_and_put_dead_columns_first(name):
    layer = make_layer(dead=[3, 20])
    plan = rose.plan_order(layer.weight, layer.statistics, block_size=8)
    visited = rose.make_order(plan, name).permutation.tolist()
    first = visited[-2:] if name == "min_pivot" else visited[:2]  # the least variance goes last there
    assert sorted(first) == [3, 20]
    refused("made from importance alone", rose.make_order, plan_from_importance(plan.importance, block_size=8), name)


def test_a_registered_order_can_read_h():
    layer = make_layer()

    @rose.register_order("by_h")
    def by_h(plan: rose.OrderPlan, ascending: bool) -> torch.Tensor:
        return rose.sort_columns(plan, plan.damped.matrix.square().sum(0), ascending)

    expected = layer.hessian.square().sum(0).argsort(descending=True)
    assert torch.equal(layer.prune(method="sparsegpt", order="by_h", damping=0).order.permutation, expected)


@given(layer=layers(), ratio=st.floats(0, 1), block_size=st.integers(1, 40), seed=st.integers(0, 9))
def test_custom_shares_are_kept(layer, ratio, block_size, seed):
    rows, columns = layer.weight.shape
    widths = rose.plan_order(layer.weight, layer.statistics, block_size=block_size).block_width
    most = torch.tensor(widths, dtype=torch.float64) / columns
    shares = most * torch.rand(len(widths), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    shares = shares * ratio / shares.sum() if shares.sum() > 0 else shares
    if (shares > most).any() or shares.sum() == 0:
        shares = most * ratio
    settings = {"order": "pivot", "sparsity": ratio, "block_size": block_size, "damping": 0.1}
    result = layer.prune(method="sparsegpt", budget=shares.tolist(), **settings)
    assert result.budget == "own"
    assert int(result.mask.sum()) == round(ratio * rows * columns)
    assert (result.shares - shares).abs().max() * rows * columns <= 1 + 1e-6


@given(
    ratio=ratios,
    rows=st.sampled_from([5, 64, 700]),
    digits=st.sampled_from([0, 1, 3, 9]),
    order=st.sampled_from(ORDERS),
)
def test_the_threshold_takes_the_smallest_saliencies_with_ties_by_place(ratio, rows, digits, order):
    """Few digits make ties, of which 0 is the most frequent; in 700 rows a sample may miss the threshold."""
    layer = make_layer(rows=rows, loud=8, dead=[3])
    weight = layer.weight.mul(10**digits).round() / 10**digits
    plan = rose.plan_order(weight, layer.statistics, sparsity=ratio, block_size=10)
    visited = rose.make_order(plan, order)
    divisor = plan.factorized(visited)[1].diagonal()
    mask = smallest((weight[:, visited.permutation] / divisor).square(), plan.pattern.count(weight.numel()))
    counts = count_by_block("layer", weight, divisor, plan.pattern, visited)
    assert counts == [int(block.sum()) for block in mask.split(list(visited.widths), dim=1)]


@pytest.mark.parametrize(
    ("budget", "sparsity", "says"),
    [
        ([0.2, 0.2, 0.2], 0.7, r"sum to the sparsity 0\.7, not to 0\.6"),
        ([0.35, 0.35], 0.7, "one share for each of the 4 blocks, not 2"),
        ([0.3, 0.2, 0.1, 0.1], 0.7, r"Block 0 as visited holds 0\.25 .* cannot give up 0\.3"),
        ([-0.1, 0.8, 0, 0], 0.7, "a number from 0 to 1"),
        (["a"], 0.7, "'block', 'layer' or a list of shares"),
        ("most", 0.7, "must be one of block, layer"),
        ([0.125] * 4, "2:4", "2:4 fixes what every block gives up"),
    ],
)
def test_bad_budgets_are_refused(budget, sparsity, says):
    refused(says, make_layer().prune, method="sparsegpt", sparsity=sparsity, budget=budget)


PAIRS = [(order, budget) for order in ("natural", "two_level", "random:1", "pivot") for budget in ("block", "layer")]


@pytest.mark.parametrize("order", [*order_names(), "rose"])
@given(layer=layers(), ratio=ratios, block_size=block_sizes, budget=st.sampled_from(["block", "layer"]))
def test_a_forecast_of_few_rows_is_their_sweep(layer, ratio, block_size, order, budget):
    """With at most as many rows as are swept anyway, nothing is left to foretell."""
    settings = {"order": order, "budget": budget, "sparsity": ratio, "block_size": block_size, "damping": 0.1}
    told = forecast(layer.weight, layer.statistics, **settings)
    result = layer.prune(method="sparsegpt", **settings)
    assert torch.equal(told.order.permutation, result.order.permutation)
    assert told.error == pytest.approx(result.relative_error, rel=0.02, abs=1e-4)
    assert torch.allclose(told.shares, result.shares)
    assert float(told.block_error.sum()) == pytest.approx(told.error)


@pytest.mark.parametrize(("sparsity", "spread"), [(0.5, 0), (0.7, 0), ("2:4", 0), ("2:4", 4)])
def test_a_sample_of_rows_forecasts_the_error_of_all(sparsity, spread):
    layer = make_layer(rows=16 * ROWS, columns=96, tokens=400, loud=24)
    layer.weight.mul_((spread * torch.linspace(0, 1, 16 * ROWS) ** 20).exp().unsqueeze(1))
    basic = {"sparsity": sparsity, "block_size": 16}
    told = forecasts(layer.weight, layer.statistics, PAIRS, **basic)
    first = layer.prune(method="sparsegpt", **basic)
    for (order, budget), each in zip(PAIRS, told, strict=True):
        result = layer.prune(method="sparsegpt", order=order, budget=budget, **basic)
        assert each.error == pytest.approx(result.relative_error, rel=0.15)
        assert each.error / told[0].error == pytest.approx(result.relative_error / first.relative_error, rel=0.1)
        assert torch.equal(each.prices.price, result.prices.price)
        assert (each.shares - result.shares).abs().max() < 1e-6


def test_columns_over_fit_by_what_the_free_columns_explain():
    layer = make_layer(dead=[3])
    factored = _Factored.of(rose.plan_order(layer.weight, layer.statistics, damping=0.1), "pivot")
    visited, fitted = factored.order.permutation, factored.over_fitting.log() * SAMPLES * 96 / 2
    assert visited[0] == 3  # so that all later columns are live
    for step, parameters in enumerate(fitted.tolist(), 1):
        free = factored.damped.matrix.double()[visited[step:]][:, visited[step:]]
        expected = len(free) - factored.damped.added * free.inverse().trace()
        assert parameters == pytest.approx(float(expected), abs=1e-3)


def test_a_forecast_for_other_inputs_knows_that_one_threshold_over_fits():
    whole, settings = make_layer(rows=2 * ROWS, columns=96, tokens=4096), {"sparsity": 0.5, "block_size": 16}
    layer, held_out = Layer(whole.weight, whole.inputs[:128]), statistics_of(whole.inputs[128:]).hessian
    equal, threshold = forecasts(layer.weight, layer.statistics, PAIRS[:2], **settings)
    results = [layer.prune(method="sparsegpt", budget=budget, **settings) for budget in ("block", "layer")]
    measured = [relative_error(layer.weight, result.weight, held_out) for result in results]
    assert threshold.error < equal.error
    assert measured[1] > measured[0]
    assert threshold.held_out > equal.held_out
    assert math.isnan(forecast(layer.weight, layer.hessian).held_out)


@pytest.mark.parametrize("order", ["natural", "pivot"])
def test_the_best_shares_cost_no_more_than_those_of_the_threshold(order):
    layer = make_layer(rows=3 * ROWS, columns=64, tokens=200, loud=16)
    best = best_shares(layer.weight, layer.statistics, order=order, block_size=16)
    threshold = forecast(layer.weight, layer.statistics, order=order, budget="layer", block_size=16)
    assert best.budget == "best"
    assert best.held_out <= threshold.held_out
    assert float(best.shares.sum()) == pytest.approx(0.7, abs=1e-4)
    swept = layer.prune(method="sparsegpt", order=order, block_size=16, budget=best.shares)
    assert swept.relative_error == pytest.approx(best.error, rel=0.1)


def test_the_best_shares_of_independent_blocks_are_those_of_the_threshold():
    """Blocks that do not help each other: the next weight must cost the same in both, as under the threshold."""
    weight = torch.randn(ROWS, 16, generator=torch.Generator().manual_seed(0))
    hessian = torch.diag(torch.tensor([1.0] * 8 + [9.0] * 8))
    best = best_shares(weight, hessian, block_size=8, sparsity=0.5, damping=0)
    threshold = forecast(weight, hessian, budget="layer", block_size=8, sparsity=0.5, damping=0)
    assert torch.allclose(best.shares, threshold.shares, atol=0.01)


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_shares_at_sparsity_0_and_1_are_equal(sparsity):
    layer = make_layer()
    best = best_shares(layer.weight, layer.statistics, sparsity=sparsity, block_size=8)
    assert best.shares.tolist() == [sparsity / 4] * 4


def test_shares_of_groups_cannot_be_chosen():
    refused("cannot be chosen", best_shares, torch.ones(1, 8), torch.eye(8), sparsity="2:4", block_size=8)
