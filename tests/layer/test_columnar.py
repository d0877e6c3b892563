"""The cause of a columnar layer, weights or inputs, is found where it is planted."""

import pytest
import torch

import rose
from rose.layer.columnar import Outlier, outlier
from rose.layer.profile import Profile, profile

ROWS, BLOCK, BLOCKS = 32, 16, 5


def found(
    block: int, *, weights: float = 1.0, inputs: float = 1.0, head: int | None = None, columns: int = BLOCK
) -> Outlier:
    """Of a layer in which the weights and inputs of this block's first columns are so many times as large."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, BLOCK * BLOCKS, generator=generator)
    samples = torch.randn(400, BLOCK * BLOCKS, generator=generator)
    here = slice(block * BLOCK, block * BLOCK + columns)
    weight[:, here] *= weights
    samples[:, here] *= inputs
    statistics = rose.InputStatistics(BLOCK * BLOCKS)
    statistics.update(samples)
    plan = rose.plan_order(weight, statistics, sparsity=0.7, block_size=BLOCK)
    made = outlier(profile(weight, plan, ()), BLOCK, head)
    assert made.ratio == pytest.approx(float(plan.loss_per_column[made.block] / plan.loss_per_column[made.other]))
    assert plan.relative_range == pytest.approx(1 - (1 / made.ratio if made.is_strong else made.ratio))
    return made


@pytest.mark.parametrize(
    ("changes", "is_strong", "cause"),
    [
        ({"weights": 4.0}, True, "weights"),
        ({"inputs": 4.0}, True, "inputs"),
        ({"weights": 2.0, "inputs": 2.0}, True, "both"),
        ({"weights": 4.0, "inputs": 0.9}, True, "weights"),
        ({"weights": 0.2}, False, "weights"),
        ({"inputs": 0.25}, False, "inputs"),
        ({"inputs": 0.25, "weights": 1.3}, False, "inputs"),
        ({"weights": 0.5, "inputs": 0.5}, False, "both"),
        ({"inputs": 0.0}, False, "inputs"),
    ],
)
@pytest.mark.parametrize("block", [0, 3])
def test_the_outlying_block_is_reported_with_its_cause(block, changes, is_strong, cause):
    made = found(block, **changes)
    assert (made.block, made.is_strong, made.cause) == (block, is_strong, cause)
    assert made.weight_norm == pytest.approx(changes.get("weights", 1.0), rel=0.15)
    assert made.input_norm == pytest.approx(changes.get("inputs", 1.0), rel=0.15)


def test_a_flat_layer_has_no_cause():
    made = found(0)
    assert made.cause == "neither"
    assert 0.8 < made.ratio < 1.25


def test_only_outlying_heads_are_named():
    assert found(2, inputs=0.2, head=16).heads == (2,)  # as wide as blocks
    assert found(2, inputs=0.2, head=8).heads == (4, 5)
    assert found(2, inputs=0.1, head=8, columns=8).heads == (4,)
    assert found(2, inputs=0.2, head=11).heads == ()  # which does not divide the columns
    assert found(2, inputs=0.2).heads == ()


@pytest.mark.parametrize(("second", "heads"), [(2.0, (0,)), (4.0, (0, 1))])
def test_heads_less_than_half_as_far_out_are_not_named(second, heads):
    score = torch.ones(20)  # five blocks of two heads each
    score[:2], score[2:4] = 8.0, second
    made = outlier(Profile(score, torch.ones(20), score, score.unsqueeze(0), (4,), torch.empty(0)), 4, 2)
    assert (made.block, made.heads) == (0, heads)


def test_equal_blocks_have_no_outlier():
    weight, statistics = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), rose.InputStatistics(8)
    statistics.update(torch.ones(2, 3, 8))
    for options in ({"block_size": 8}, {"sparsity": 0.0, "block_size": 4}):
        plan = rose.plan_order(weight, statistics, **options)
        assert outlier(profile(weight, plan, ()), plan.block_size) is None
