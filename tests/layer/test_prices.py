"""The law of prices, and budgets of one's own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rose
from rose.layer.forecast import price_columns
from rose.layer.order import plan_from_importance
from tests.layer.helpers import ORDERS, Layer, damped_by_hand, layers, make_layer


def log_determinant(layer: Layer, added: float) -> float:
    return float(torch.linalg.slogdet(damped_by_hand(layer, added)).logabsdet)


@pytest.mark.parametrize("order", [*ORDERS, "rose"])
@given(layer=layers(), block_size=st.integers(1, 40))
def test_every_order_has_the_same_sum_of_log_prices(layer, block_size, order):
    plan = rose.plan_order(layer.weight, layer.statistics, block_size=block_size, damping=0.1)
    prices = price_columns(plan, order)
    assert prices.log_total == pytest.approx(log_determinant(layer, plan.damped.added), rel=1e-4, abs=1e-3)
    assert prices.level * len(prices.price) == pytest.approx(prices.log_total)


@pytest.mark.parametrize("order", [*ORDERS, "rose"])
@given(layer=layers(unit=4), sparsity=st.sampled_from(["2:4", "1:4"]))
def test_groups_stay_whole_and_keep_the_sum(layer, sparsity, order):
    plan = rose.plan_order(layer.weight, layer.statistics, sparsity=sparsity, block_size=8, damping=0.1)
    prices = price_columns(plan, order)
    groups = prices.order.permutation.view(-1, 4)
    assert torch.equal(groups, groups[:, :1] + torch.arange(4))
    assert prices.log_total == pytest.approx(log_determinant(layer, plan.damped.added), rel=1e-4, abs=1e-3)


def test_a_price_is_what_later_columns_cannot_explain():
    layer = make_layer()
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    result = layer.prune(method="sparsegpt", order=order)
    hessian = damped_by_hand(layer, result.added_damping)[order][:, order]
    for step, price in enumerate(result.prices.price.tolist()):
        alone, later = hessian[step, step], slice(step + 1, None)
        explained = hessian[step, later] @ torch.linalg.solve(hessian[later, later], hessian[later, step])
        assert price == pytest.approx(float(alone - explained), rel=1e-3)
    assert torch.allclose(result.prices.alone, hessian.diagonal(), rtol=1e-5)
    assert result.prices.price[-1] == pytest.approx(float(hessian[-1, -1]), rel=1e-5)


def by_hand(hessian: torch.Tensor, unit: int, least: bool) -> list[int]:
    """Groups in the order in which their block of the Schur complement has the largest or least determinant."""
    groups = [list(range(start, start + unit)) for start in range(0, len(hessian), unit)]
    picked: list[int] = []
    while groups:
        sizes = []
        for group in groups:
            block = hessian[group][:, group]
            if picked:
                across = hessian[picked][:, group]
                block = block - across.T @ torch.linalg.solve(hessian[picked][:, picked], across)
            sizes.append(float(torch.linalg.slogdet(block).logabsdet))
        picked += groups.pop(sizes.index(min(sizes) if least else max(sizes)))
    return picked


@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
@pytest.mark.parametrize("name", ["pivot", "min_pivot", "pivot_weighted", "greedy"])
def test_pivot_orders_pick_by_what_is_left_unexplained(name, sparsity):
    layer = make_layer(rows=9)
    plan = rose.plan_order(layer.weight, layer.statistics, sparsity=sparsity, block_size=8)
    unit, hessian = plan.pattern.of or 1, damped_by_hand(layer, plan.damped.added)
    if name == "pivot_weighted":
        size = layer.weight.double().norm(dim=0)
        hessian = size[:, None] * hessian * size
    if name == "greedy":
        picked = by_hand(torch.linalg.inv(hessian), unit, least=False)
    else:
        picked = by_hand(hessian, unit, least=name == "min_pivot")
        groups = torch.tensor(picked).view(-1, unit).flip(0)
        picked = groups.flatten().tolist()
    assert rose.make_order(plan, name).permutation.tolist() == picked


def test_the_inverse_order_begins_with_what_all_others_explain():
    layer = make_layer()
    plan = rose.plan_order(layer.weight, layer.statistics, block_size=8)
    diagonal = torch.linalg.inv(damped_by_hand(layer, plan.damped.added)).diagonal()
    assert rose.make_order(plan, "inverse").permutation.tolist() == diagonal.argsort(descending=True).tolist()


@pytest.mark.parametrize("name", ["inverse", "pivot", "pivot_weighted", "min_pivot", "greedy"])
def test_orders_by_h_need_h_and_take_dead_columns_first(name):
    layer = make_layer(dead=[3, 20])
    plan = rose.plan_order(layer.weight, layer.statistics, block_size=8)
    visited = rose.make_order(plan, name).permutation.tolist()
    first = visited[-2:] if name == "min_pivot" else visited[:2]  # the least variance goes last there
    assert sorted(first) == [3, 20]
    with pytest.raises(rose.RoseError, match="made from importance alone"):
        rose.make_order(plan_from_importance(plan.importance, block_size=8), name)


def test_a_registered_order_may_read_h():
    layer = make_layer()

    @rose.register_order("by_h")
    def by_h(plan: rose.OrderPlan, ascending: bool) -> torch.Tensor:
        return rose.sort_columns(plan, plan.damped.matrix.square().sum(0), ascending)

    wanted = layer.hessian.square().sum(0).argsort(descending=True)
    assert torch.equal(layer.prune(method="sparsegpt", order="by_h", damping=0).order.permutation, wanted)


@given(layer=layers(), ratio=st.floats(0, 1), block_size=st.integers(1, 40), seed=st.integers(0, 9))
def test_custom_shares_are_kept(layer, ratio, block_size, seed):
    rows, columns = layer.weight.shape
    widths = rose.plan_order(layer.weight, layer.statistics, block_size=block_size).block_width
    most = torch.tensor(widths, dtype=torch.float64) / columns
    shares = most * torch.rand(len(widths), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    shares = shares * ratio / shares.sum() if shares.sum() > 0 else shares
    if (shares > most).any() or shares.sum() == 0:
        shares = most * ratio
    result = layer.prune(
        method="sparsegpt", order="pivot", sparsity=ratio, block_size=block_size, budget=shares.tolist(), damping=0.1
    )
    assert result.budget == "own"
    assert int(result.mask.sum()) == round(ratio * rows * columns)
    assert (result.shares - shares).abs().max() * rows * columns <= 1 + 1e-6


def test_the_shares_that_the_threshold_takes_give_its_result_again():
    layer = make_layer(loud=8)
    threshold = layer.prune(method="sparsegpt", budget="layer")
    own = layer.prune(method="sparsegpt", budget=threshold.shares)
    assert torch.equal(own.weight, threshold.weight)
    assert not torch.equal(layer.prune(method="sparsegpt").weight, threshold.weight)


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
    with pytest.raises(rose.RoseError, match=says):
        make_layer().prune(method="sparsegpt", sparsity=sparsity, budget=budget)
