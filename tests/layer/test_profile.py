"""The profile of a layer: columns as a plan has them, and ranges as plans at other settings have them."""

import pytest
import torch

import rose
from rose.layer.profile import HEADS, SPARSITIES, Profile, block_sizes, profile

HEAD = 16


@pytest.fixture(scope="module")
def layer() -> tuple[torch.Tensor, rose.InputStatistics]:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(48, 96, generator=generator), torch.randn(16, 20, 96, generator=generator)
    inputs *= torch.rand(6, generator=generator).repeat_interleave(HEAD)
    inputs[..., 7] = 0.0
    statistics = rose.InputStatistics(96)
    statistics.update(inputs)
    return weight, statistics


def made(layer, **options) -> tuple[Profile, rose.OrderPlan]:
    plan = rose.plan_order(*layer, **{"sparsity": 0.7, "block_size": 32} | options)
    return profile(layer[0], plan, block_sizes(HEAD), has_heads=True), plan


def test_ranges_and_losses_are_those_of_plans(layer):
    result, _ = made(layer)
    for row, sparsity in enumerate(SPARSITIES):
        for column, heads in enumerate(HEADS):
            size = int(heads * HEAD)
            plan = rose.plan_order(*layer, sparsity=sparsity, block_size=size)
            expected = plan.relative_range, *plan.interval
            assert result.ranges[row, column].tolist() == pytest.approx(expected, abs=1e-5)
            if sparsity == 0.7:
                torch.testing.assert_close(result.column_loss(size), plan.column_loss)
                order = rose.make_order(plan, "two_level")
                assert torch.equal(result.order(size).permutation, order.permutation)
                assert result.order(size).widths == order.widths


def test_columns_are_those_of_the_plan(layer):
    result, plan = made(layer)
    torch.testing.assert_close(result.weight_norm, layer[0].norm(dim=0))
    torch.testing.assert_close(result.input_norm, (plan.hessian_diagonal / layer[1].tokens).sqrt())
    torch.testing.assert_close(result.importance, plan.importance.mean(0))
    assert torch.equal(result.column_loss(5), plan.column_loss)  # not measured: the plan's own


def test_groups_stay_whole(layer):
    result, plan = made(layer, sparsity="2:4")
    assert result.sizes == (32,)
    assert torch.equal(result.order(32, 4).permutation, rose.make_order(plan, "two_level").permutation)


def test_a_file_keeps_a_profile_to_a_thousandth(layer):
    result, _ = made(layer)
    again = Profile.unpack(result.pack())
    assert again.sizes == result.sizes
    for name in ("weight_norm", "input_norm", "importance", "losses", "ranges"):
        torch.testing.assert_close(getattr(again, name), getattr(result, name), rtol=1e-3, atol=1e-3, msg=name)


def test_without_groups_of_windows_there_is_no_interval(layer):
    plan = rose.plan_order(layer[0], layer[1].hessian, sparsity=0.7, block_size=32)
    ranges = profile(layer[0], plan, block_sizes(HEAD)).ranges
    assert ranges[..., 0].isfinite().all()
    assert ranges[..., 1:].isnan().all()
