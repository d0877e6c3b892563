"""Losses, relative range, and the orders drawn from them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import rose
from rose.layer.loss import block_starts, variance_between
from rose.layer.order import blocks_of, live_range, move_block, plan_from_importance, visited_blocks
from rose.layer.registry import order_names
from tests.layer.helpers import ORDERS, block_sizes, layers, make_layer, ratios
from tests.refusals import refused

IN_PLACE = ["natural", "columns", "columns_ascending"]  # blocks stay where they are
WHOLE_BLOCKS = [*IN_PLACE, "two_level", "two_level_ascending", "blocks", "blocks_ascending"]


def plan_with_block_losses(per_column: list[float], width: int = 4, last: int = 4) -> rose.OrderPlan:
    """One output row whose blocks lose this much per column; every weight goes, so that L = S."""
    widths = [width] * (len(per_column) - 1) + [last]
    score = torch.cat([torch.full((1, w), value) for value, w in zip(per_column, widths, strict=True)], dim=1)
    return plan_from_importance(score, torch.arange(1.0, score.shape[1] + 1), sparsity=1.0, block_size=width)


def block_numbers(order: rose.Order, block_size: int) -> list[Tensor]:
    return [columns // block_size for columns in order.permutation.split(list(order.widths))]


@given(layer=layers(), ratio=ratios, block_size=block_sizes)
def test_losses_match_the_definition(layer, ratio, block_size):
    plan = rose.plan_order(layer.weight, layer.statistics, sparsity=ratio, block_size=block_size)
    norm = layer.inputs.square().mean(0).sqrt()
    torch.testing.assert_close(plan.importance, layer.weight.abs() * norm)
    assert sum(plan.block_width) == layer.weight.shape[1]
    starts = block_starts(plan.block_width)
    for start, width, total in zip(starts, plan.block_width, plan.block_loss.tolist(), strict=True):
        block = plan.importance[:, start : start + width]
        count = round(ratio * block.numel())
        assert total == pytest.approx(block.flatten().sort().values[:count].sum().item(), rel=1e-4, abs=1e-6)
    torch.testing.assert_close(plan.column_loss, plan.potential_loss.sum(0))
    survives = plan.potential_loss == 0
    assert (plan.potential_loss[~survives] == plan.importance[~survives]).all()


def test_group_losses_are_the_smallest_of_each_group():
    score = torch.tensor([[4.0, 1.0, 3.0, 2.0, 5.0, 5.0, 7.0, 6.0]])
    plan = plan_from_importance(score, sparsity="2:4", block_size=8)
    assert plan.potential_loss.tolist() == [[0, 1, 0, 2, 5, 5, 0, 0]]


def test_relative_range():
    plan = plan_with_block_losses([4.0, 1.0, 2.0])
    assert plan.relative_range == pytest.approx(0.75)
    assert plan.is_columnar
    assert not plan_with_block_losses([4.0, 2.0, 2.0]).is_columnar  # 0.5 is not above 0.5
    assert plan_with_block_losses([0.0, 0.0, 0.0]).relative_range == 0.0
    assert plan_with_block_losses([0.0, 3.0]).relative_range == 1.0
    assert plan_with_block_losses([3.0]).relative_range == 0.0


def test_column_variation_is_relative_to_the_mean():
    plan = plan_from_importance(torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 3.0, 3.0]]), sparsity=1, block_size=2)
    assert plan.column_loss.tolist() == [2, 2, 4, 4]
    assert plan.column_variation == pytest.approx(1 / 3)
    assert plan_from_importance(torch.ones(2, 4), sparsity=0).column_variation == 0


def test_narrow_last_block_does_not_look_columnar():
    """SmolLM2's 576 = 4.5 × 128: the last block has half the columns and loses half as much."""
    layer = make_layer(rows=64, columns=576, tokens=64)
    flat = layer.weight.sign() * torch.rand_like(layer.weight).add(0.5)
    plan = rose.plan_order(flat, torch.eye(576), block_size=128)
    assert plan.block_width == (128,) * 4 + (64,)
    assert plan.block_loss[-1] < 0.6 * plan.block_loss[0]
    assert plan.relative_range < 0.1
    assert plan_with_block_losses([2.0, 2.0, 2.0], last=1).relative_range == 0.0


def test_relative_range_by_hand_with_a_narrow_last_block():
    """Half of each block goes. By sums, 3, 3.5 and 1.4, the layer would be columnar."""
    weight = torch.tensor([[1.0, 3.0, 2.0, 4.0, 0.7], [2.0, 4.0, 1.5, 5.0, 4.5]])
    inputs = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0])) * 5**0.5  # the mean of x² is 1, and 4 for the last
    plan = rose.plan_order(weight, rose.InputStatistics.from_hessian(inputs.T @ inputs, 5), sparsity=0.5, block_size=2)
    high, low = (2 + 1.5) / 2, 0.7 * 2 / 1
    assert plan.loss_per_column.tolist() == pytest.approx([(1 + 2) / 2, high, low])
    assert plan.relative_range == pytest.approx((high - low) / high)
    assert not plan.is_columnar


def test_threshold_is_adjustable_without_recomputing():
    plan = plan_with_block_losses([4.0, 2.0, 3.0])
    assert not plan.is_columnar
    lower = replace(plan, threshold=0.4)
    assert lower.is_columnar
    assert lower.threshold == 0.4
    assert visited_blocks(lower, lower.order) == [0, 2, 1]
    assert torch.equal(lower.permutation, rose.make_order(plan, "two_level").permutation)
    back = replace(lower, threshold=0.5)
    assert torch.equal(back.permutation, torch.arange(12))
    assert visited_blocks(back, back.order) == [0, 1, 2]


@pytest.mark.parametrize("name", ORDERS)
@given(layer=layers(), ratio=ratios, block_size=block_sizes)
def test_every_order_is_a_permutation(layer, ratio, block_size, name):
    plan = rose.plan_order(layer.weight, layer.statistics, sparsity=ratio, block_size=block_size)
    order = rose.make_order(plan, name)
    assert order.permutation.sort().values.tolist() == list(range(layer.weight.shape[1]))
    assert order.permutation.dtype == torch.int64
    assert torch.equal(order.permutation[order.inverse], torch.arange(layer.weight.shape[1]))
    assert sorted(order.widths) == sorted(plan.block_width)
    assert order.name == ("random:0" if name == "random" else name)


@pytest.mark.parametrize("name", WHOLE_BLOCKS)
@given(layer=layers(), ratio=ratios, block_size=block_sizes)
def test_blocks_stay_whole(layer, ratio, block_size, name):
    """Columns never leave their block, and a block that moves takes its width along."""
    plan = rose.plan_order(layer.weight, layer.statistics, sparsity=ratio, block_size=block_size)
    order = rose.make_order(plan, name)
    for numbers, width in zip(block_numbers(order, block_size), order.widths, strict=True):
        assert (numbers == numbers[0]).all()
        assert plan.block_width[int(numbers[0])] == width
    if name in IN_PLACE:
        assert order.widths == plan.block_width


@pytest.mark.parametrize("name", ORDERS)
@given(
    layer=layers(unit=4), pattern=st.sampled_from(["2:4", "1:4", "3:4", "0:4"]), block_size=st.sampled_from([4, 8, 128])
)
def test_groups_stay_whole(layer, pattern, block_size, name):
    plan = rose.plan_order(layer.weight, layer.statistics, sparsity=pattern, block_size=block_size)
    order = rose.make_order(plan, name)
    groups = order.permutation.view(-1, 4)
    assert (groups[:, 0] % 4 == 0).all()
    assert (groups - groups[:, :1] == torch.arange(4)).all()
    assert all(width % 4 == 0 for width in order.widths)


@given(layer=layers(), ratio=ratios, block_size=block_sizes)
def test_two_level_order_descends_on_both_levels(layer, ratio, block_size):
    plan = rose.plan_order(layer.weight, layer.statistics, sparsity=ratio, block_size=block_size)
    order = rose.make_order(plan, "two_level")
    per_block = plan.loss_per_column[[int(b[0]) for b in block_numbers(order, block_size)]]
    assert (per_block.diff() <= 0).all()
    for columns in order.permutation.split(list(order.widths)):
        lost = plan.column_loss[columns]
        assert (lost.diff() <= 0).all()
        ties = lost.diff() == 0
        assert (columns.diff()[ties] > 0).all()  # ties by index
    ascending = rose.make_order(plan, "two_level_ascending")
    for columns in ascending.permutation.split(list(ascending.widths)):
        assert (plan.column_loss[columns].diff() >= 0).all()


@given(layer=layers(), ratio=ratios)
def test_layerwide_orders_descend(layer, ratio):
    plan = rose.plan_order(layer.weight, layer.statistics, sparsity=ratio, block_size=8)
    score = plan.importance
    count = round(ratio * score.numel())
    threshold = score.flatten().sort().values[:count]
    cut = threshold[-1] if count else -1.0
    lost = torch.where(score <= cut, score, 0).sum(0)
    columns = rose.make_order(plan, "global").permutation
    assert (lost[columns].diff() <= 1e-5 * lost.max()).all()
    columns = rose.make_order(plan, "hessian").permutation
    assert (layer.statistics.diagonal[columns].diff() <= 0).all()
    columns = rose.make_order(plan, "hessian_ascending").permutation
    assert (layer.statistics.diagonal[columns].diff() >= 0).all()


def test_dealt_order_shares_the_costly_columns_out():
    """Blocks of 4, 4 and 2 columns: the narrow one takes its cards at a quarter and three quarters of the deal."""
    score = torch.arange(10.0, 0.0, -1.0)[None]
    plan = plan_from_importance(score, sparsity=1.0, block_size=4)
    order = rose.make_order(plan, "dealt")
    assert order.permutation.tolist() == [0, 3, 5, 8, 1, 4, 6, 9, 2, 7]
    assert order.widths == (4, 4, 2)
    ascending = rose.make_order(plan, "dealt_ascending")
    assert ascending.permutation.tolist() == [9, 6, 4, 1, 8, 5, 3, 0, 7, 2]


def test_all_zero_weight_keeps_the_natural_order():
    plan = rose.plan_order(torch.zeros(3, 10), torch.eye(10), block_size=4)
    assert plan.relative_range == 0.0
    assert not plan.is_columnar
    for name in order_names():
        if not name.startswith(("random", "dealt")):  # these mix equal columns on purpose
            assert rose.make_order(plan, name).permutation.tolist() == list(range(10)), name


def test_random_order_follows_its_seed():
    plan = plan_with_block_losses([1.0] * 8)
    first = rose.make_order(plan, "random:3")
    assert torch.equal(first.permutation, rose.make_order(plan, "random:3").permutation)
    assert not torch.equal(first.permutation, rose.make_order(plan, "random:4").permutation)
    assert torch.equal(rose.make_order(plan, "random").permutation, rose.make_order(plan, "random:0").permutation)


def test_custom_order_as_list_tensor_or_order():
    plan = plan_with_block_losses([1.0, 2.0])
    reversed_order = [7, 6, 5, 4, 3, 2, 1, 0]
    short = torch.tensor(reversed_order, dtype=torch.int32)
    for given_as in (reversed_order, torch.tensor(reversed_order), rose.Order(short, (4, 4), "mine")):
        order = rose.make_order(plan, given_as)
        assert (order.permutation.tolist(), order.permutation.dtype) == (reversed_order, torch.int64)
    assert rose.make_order(plan, reversed_order).widths == plan.block_width


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, 1, 2], "each of the 8 columns exactly once"),
        ([-1, 1, 2, 3, 4, 5, 6, 7], "each of the 8 columns exactly once"),
        (torch.arange(8).view(2, 4), "each of the 8 columns exactly once"),
        ([0.5, 1, 2, 3, 4, 5, 6, 7], "exactly once, by whole numbers"),
        ([[0, 1], [2]], "exactly once, by whole numbers"),
        (rose.Order(torch.arange(8), (4, 3), "x"), "add up to 8"),
        (rose.Order(torch.arange(8), (8, 0), "x"), "must be positive"),
        ("sideways", "There is no order named 'sideways'; choose one of natural, two_level"),
        ("random:x", "There is no order named"),
    ],
)
def test_bad_orders_are_refused(order, message):
    refused(message, rose.make_order, plan_with_block_losses([1.0, 2.0]), order)


@given(count=st.integers(1, 5), last=st.integers(1, 4), data=st.data())
def test_a_block_is_moved_with_its_width(count, last, data):
    plan = plan_with_block_losses([float(i) for i in range(1, count + 1)], last=last)
    step, to = data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, count - 1))
    order = rose.make_order(plan, "two_level")
    moved = move_block(plan, order, step, to)
    expected = list(zip(order.permutation.split(list(order.widths)), order.widths, strict=True))
    expected.insert(to, expected.pop(step))
    assert moved.permutation.tolist() == [column for columns, _ in expected for column in columns.tolist()]
    assert moved.widths == tuple(width for _, width in expected)
    # And back again.
    assert torch.equal(move_block(plan, moved, to, step).permutation, order.permutation)


GROUPS_OF_4 = rose.plan_order(torch.rand(2, 8), torch.eye(8), sparsity="2:4", block_size=4)
APART = "keep each group of 4 neighbouring columns together"


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda plan: move_block(plan, "natural", -1, 0), "blocks 0 to 1"),
        (lambda plan: move_block(plan, "natural", 0, 2), "blocks 0 to 1"),
        (lambda plan: move_block(plan, "natural", 0.5, 1), "blocks 0 to 1"),
        (lambda plan: rose.sort_columns(plan, torch.ones(2, 4)), "for each of the 8 columns"),
        (lambda plan: rose.sort_columns(plan, torch.ones(8) * torch.nan), "one number, not NaN"),
        (lambda plan: rose.sort_columns(plan, [1.0] * 8), "A score must be a torch tensor, not a list"),
        (lambda _: rose.make_order(plan_from_importance(torch.rand(2, 8)), "hessian"), "made from importance alone"),
        (lambda _: rose.make_order(torch.rand(2, 8), "natural"), r"a plan of rose\.plan_order, not from a Tensor"),
        (lambda _: rose.plan_order(torch.rand(2, 8), torch.eye(9)), "8 input columns but H has 9"),
        (lambda _: rose.plan_order(torch.rand(2, 8), torch.eye(8), threshold=1.1), "must lie between 0 and 1"),
        (lambda _: rose.make_order(GROUPS_OF_4, [1, 0, 2, 3, 4, 5, 6, 7]), APART),
        (lambda _: rose.make_order(GROUPS_OF_4, [2, 3, 4, 5, 0, 1, 6, 7]), APART),
        (lambda _: rose.make_order(GROUPS_OF_4, rose.Order(torch.arange(8), (2, 6), "x")), APART),
    ],
)
def test_bad_plans_moves_and_scores_are_refused(work, message):
    assert rose.make_order(GROUPS_OF_4, [4, 5, 6, 7, 0, 1, 2, 3]).permutation[0] == 4
    refused(message, work, plan_with_block_losses([1.0, 2.0]))


def test_dead_columns_are_left_out_of_the_range():
    weight = torch.ones(6, 12)
    weight[:, :4] = torch.arange(1.0, 5.0)
    inputs = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    inputs[:, 8:] = 0  # a whole block
    inputs[:, 0] = 0
    plan = rose.plan_order(weight, inputs.T @ inputs, sparsity=0.5, block_size=4)
    assert plan.relative_range == 1
    losses = []
    for block in (weight * inputs.square().mean(0).sqrt())[:, 1:8].split([3, 4], dim=1):
        losses.append(float(block.flatten().sort().values[: round(0.5 * block.numel())].sum()) / block.shape[1])
    # Of an H without its number of tokens S is another multiple, which a range does not see.
    assert live_range(plan) == pytest.approx((max(losses) - min(losses)) / max(losses), rel=1e-4)
    assert live_range(rose.plan_order(weight, torch.zeros(12, 12), block_size=4)) == 0


def test_steps_across_blocks_visit_no_block():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 10, generator=generator)
    weight[:, 8:] *= 5  # the narrow block would lose most
    plan = rose.plan_order(weight, torch.eye(10), sparsity=0.5, block_size=4)
    assert plan.block_width == (4, 4, 2)
    assert blocks_of(plan.block_width, [0, 3, 4, 7, 8, 9]).tolist() == [0, 0, 1, 1, 2, 2]
    assert visited_blocks(plan, rose.make_order(plan, "natural")) == [0, 1, 2]
    assert visited_blocks(plan, rose.make_order(plan, "two_level"))[0] == 2
    mixed = rose.Order(torch.tensor([0, 4, 1, 5, 2, 3, 8, 9, 6, 7]), (4, 2, 2, 2), "custom")
    assert visited_blocks(plan, mixed) == [None, 0, 2, 1]


def windows_of(spread: float, windows: int = 24, seed: int = 0) -> Tensor:
    """Inputs (windows, positions, in) of 32 channels; the loudness of the last eight differs between windows."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(windows, 40, 32, generator=generator)
    inputs[:, :, 24:] *= 2 * (spread * torch.randn(windows, 1, 1, generator=generator)).exp()
    return inputs


def plan_of(inputs: Tensor) -> rose.OrderPlan:
    statistics = rose.InputStatistics(32)
    for batch in inputs.split(5):
        statistics.update(batch)
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(9))
    return rose.plan_order(weight, statistics, sparsity=0.7, block_size=8)


@pytest.mark.parametrize("spread", [0.05, 0.3])
def test_the_interval_of_relative_range_holds_other_draws(spread):
    """The range of many windows lies in the intervals of 40 draws, in 95 % by intent; eight groups are few."""
    truth = plan_of(windows_of(spread, windows=3000, seed=1)).relative_range
    intervals = [plan_of(windows_of(spread, seed=seed)).interval for seed in range(2, 42)]
    assert sum(low <= truth <= high for low, high in intervals) >= 34
    widths = [high - low for low, high in intervals]
    assert 0 < sum(widths) / 40 < 0.35


def test_a_layer_is_undecided_where_its_interval_holds_the_threshold():
    plan = plan_of(windows_of(0.3))
    low, high = plan.interval
    assert low < plan.relative_range < high
    assert replace(plan, threshold=(low + high) / 2).is_undecided
    assert not replace(plan, threshold=high + 1e-3).is_undecided
    assert not replace(plan, threshold=low - 1e-3).is_undecided


def test_without_windows_no_interval_is_known():
    flat = rose.InputStatistics(32)
    flat.update(windows_of(0.3).flatten(0, 1))
    bare = rose.InputStatistics.from_hessian(flat.hessian)
    for inputs in (flat, bare):
        plan = rose.plan_order(torch.ones(4, 32), inputs, block_size=8)
        assert plan.interval is None
        assert not plan.is_undecided


def test_variance_between_heads():
    within = torch.tensor([1.0, -1.0]).repeat(8)
    heads = torch.tensor([3.0, 5.0]).repeat_interleave(8)
    assert variance_between(heads, 8) == 1
    assert variance_between(within, 8) == 0
    assert variance_between(heads + within, 8) == pytest.approx(0.5)
    assert variance_between(torch.ones(16), 8) == 0
