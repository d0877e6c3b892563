"""Blocks of columns, of a layer whose last block is narrower, and the steps at which an order visits them."""

import torch

import rose
from rose.layer.order import block_of, blocks_of, visited_blocks

WIDTHS = (4, 4, 2)


def test_blocks_of_columns() -> None:
    assert blocks_of(WIDTHS, [0, 3, 4, 7, 8, 9]).tolist() == [0, 0, 1, 1, 2, 2]
    assert block_of(WIDTHS, 8) == 2


def test_blocks_visited_by_whole_and_by_mixed_orders() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 10, generator=generator)
    weight[:, 8:] *= 5  # the narrow block would lose most
    plan = rose.plan_order(weight, torch.eye(10), sparsity=0.5, block_size=4)
    assert plan.block_width == WIDTHS
    assert visited_blocks(plan, rose.make_order(plan, "natural")) == [0, 1, 2]
    assert visited_blocks(plan, rose.make_order(plan, "two_level")) == plan.block_order.tolist()
    assert plan.block_order[0] == 2
    mixed = rose.Order(torch.tensor([0, 4, 1, 5, 2, 3, 8, 9, 6, 7]), (4, 2, 2, 2), "custom")
    assert visited_blocks(plan, mixed) == [None, 0, 2, 1]
