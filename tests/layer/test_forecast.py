"""Forecasts against the sweeps that they foretell."""

import pytest
import torch
from hypothesis import given

import rose
from rose.layer.forecast import ROWS
from rose.layer.registry import order_names
from tests.layer.helpers import block_sizes, layers, make_layer, ratios

PAIRS = [(order, budget) for order in ("natural", "two_level", "random:1", "pivot") for budget in ("block", "layer")]


@pytest.mark.parametrize("order", [*order_names(), "rose"])
@pytest.mark.parametrize("budget", ["block", "layer"])
@given(layer=layers(), ratio=ratios, block_size=block_sizes)
def test_a_forecast_of_few_rows_is_their_sweep(layer, ratio, block_size, order, budget):
    """With at most as many rows as are swept anyway, nothing is left to foretell."""
    settings = {"order": order, "budget": budget, "sparsity": ratio, "block_size": block_size, "damping": 0.1}
    told = rose.forecast(layer.weight, layer.statistics, **settings)
    result = layer.prune(method="sparsegpt", **settings)
    assert torch.equal(told.order.permutation, result.order.permutation)
    assert told.error == pytest.approx(result.relative_error, rel=0.02, abs=1e-4)
    assert torch.allclose(told.shares, result.shares)
    assert float(told.block_error.sum()) == pytest.approx(told.error)


@pytest.mark.parametrize("sparsity", [0.5, 0.7, "2:4"])
def test_a_sample_of_rows_foretells_the_error_of_all(sparsity):
    layer = make_layer(rows=16 * ROWS, columns=96, tokens=400, loud=24)
    basic = {"sparsity": sparsity, "block_size": 16}
    told = rose.forecasts(layer.weight, layer.statistics, PAIRS, **basic)
    first = layer.prune(method="sparsegpt", **basic)
    for (order, budget), one in zip(PAIRS, told, strict=True):
        result = layer.prune(method="sparsegpt", order=order, budget=budget, **basic)
        assert one.error == pytest.approx(result.relative_error, rel=0.15), (order, budget)
        gain, measured = one.error / told[0].error, result.relative_error / first.relative_error
        assert gain == pytest.approx(measured, rel=0.1), (order, budget)
        assert torch.equal(one.prices.price, result.prices.price)
        assert (one.shares - result.shares).abs().max() < 1e-6


def test_dead_columns_cost_nothing_in_a_forecast():
    layer = make_layer(rows=2 * ROWS, dead=range(8))
    told = rose.forecast(layer.weight, layer.statistics, block_size=8, sparsity=0.5)
    assert told.block_error[0] == 0
    assert told.error == pytest.approx(layer.prune(method="sparsegpt", sparsity=0.5).relative_error, rel=0.2)


@pytest.mark.parametrize("order", ["natural", "pivot"])
def test_the_best_shares_cost_no_more_than_those_of_the_threshold(order):
    layer = make_layer(rows=3 * ROWS, columns=64, tokens=200, loud=16)
    best = rose.best_shares(layer.weight, layer.statistics, order=order, block_size=16)
    threshold = rose.forecast(layer.weight, layer.statistics, order=order, budget="layer", block_size=16)
    assert best.budget == "best"
    assert best.error <= threshold.error
    assert float(best.shares.sum()) == pytest.approx(0.7, abs=1e-4)
    swept = layer.prune(method="sparsegpt", order=order, block_size=16, budget=best.shares)
    assert swept.relative_error == pytest.approx(best.error, rel=0.1)


def test_the_best_shares_of_independent_blocks_are_those_of_the_threshold():
    """Blocks that do not help each other: the next weight must cost the same in both, as under the threshold."""
    weight = torch.randn(ROWS, 16, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([1.0] * 8 + [3.0] * 8)
    hessian = torch.diag(scale.square())
    best = rose.best_shares(weight, hessian, block_size=8, sparsity=0.5, damping=0)
    threshold = rose.forecast(weight, hessian, budget="layer", block_size=8, sparsity=0.5, damping=0)
    assert torch.allclose(best.shares, threshold.shares, atol=0.01)


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_nothing_is_left_to_share_where_all_or_nothing_goes(sparsity):
    layer = make_layer()
    best = rose.best_shares(layer.weight, layer.statistics, sparsity=sparsity, block_size=8)
    assert best.shares.tolist() == [sparsity / 4] * 4


def test_bad_forecasts_are_refused():
    layer = make_layer()
    for work, says in (
        (lambda: rose.forecast(layer.weight, layer.statistics, budget="most"), "must be one of block, layer"),
        (lambda: rose.best_shares(layer.weight, layer.statistics, sparsity="2:4", block_size=8), "cannot be chosen"),
    ):
        with pytest.raises(rose.RoseError, match=says):
            work()
