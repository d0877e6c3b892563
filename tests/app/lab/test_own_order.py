"""User orders and shares: moved, parsed, refused, and restored by undo."""

import re

import pytest
import torch

import rose
from app.lab.own_order import (
    OwnOrder,
    read_columns,
    read_order,
    read_shares,
    write_columns,
    write_order,
    write_shares,
)

NAMES = {"natural": "natural", "pivot": "pivot"}


@pytest.fixture(scope="module")
def plan() -> rose.OrderPlan:
    torch.manual_seed(0)
    return rose.plan_order(torch.rand(4, 10), torch.eye(10), sparsity=0.5, block_size=4)


def test_columns_round_trip():
    columns = (3, 4, 5, 0, 1, 2, 7, 6)
    assert write_columns(columns) == "3-5,0-2,7,6"
    assert read_columns("[3-5, 0-2;7 6]\n", 8) == columns
    assert read_columns("7-0", 8) == tuple(range(7, -1, -1))


def test_shares_are_converted_from_blocks_to_the_layer():
    shares = read_shares("50 %, 0.8 1", (4, 4, 2), 0.72)
    assert shares == pytest.approx((0.2, 0.32, 0.2))
    assert write_shares(shares, (4, 4, 2)) == "0.5000, 0.8000, 1.0000"


@pytest.mark.parametrize(
    ("read", "text", "says"),
    [
        (read_columns, "0 x", "'x' is no column number"),
        (read_columns, "0-1 9", "9 is beyond the last column, 3"),
        (read_columns, "0 1 1 2 3", "Column 1 is there twice"),
        (read_columns, "0-1", "2 of 4 columns are missing, such as 2"),
        (read_shares, "0.5", "There are 1 shares for 2 blocks"),
        (read_shares, "0.5 a", "A share is a number from 0 to 1"),
        (read_shares, "1.5 0", "shares lie between 0 and 1"),
        (read_shares, "nan 0.5", "shares lie between 0 and 1"),
        (read_shares, "0.2 0.2", "Together these shares remove 0.200 of the layer, but sparsity is 0.5"),
    ],
)
def test_bad_orders_and_shares_are_refused(read, text, says):
    with pytest.raises(rose.RoseError, match=re.escape(says)):
        read(text, *((4,) if read is read_columns else ((2, 2), 0.5)))


def test_a_moved_block_keeps_its_columns_its_width_and_its_share(plan):
    own = OwnOrder.natural(plan)
    assert own.widths == (4, 4, 2)
    moved = own.to(budget=(0.1, 0.3, 0.1)).moved([2, 0, 1])
    assert (moved.columns, moved.widths, moved.budget) == ((8, 9, *range(8)), (2, 4, 4), (0.1, 0.1, 0.3))
    order = moved.order(plan)
    assert (order.permutation.tolist(), order.widths) == ([8, 9, *range(8)], (2, 4, 4))
    assert moved.moved([1, 2, 0]).is_natural
    assert moved.sorted(plan, "natural").budget == "block", "the shares were those of other blocks"


@pytest.mark.parametrize(
    ("places", "says"),
    [
        ([0, 1, 2], "natural order"),
        ([2, 0, 1], "block 2 first"),
        ([1, 2, 0], "block 0 last"),
        ([0, 2, 1], "block 1 last"),
        ([2, 1, 0], "blocks moved"),
    ],
)
def test_an_order_says_what_was_moved(plan, places, says):
    assert OwnOrder.natural(plan).moved(places).says(plan, NAMES) == says


def test_an_order_says_its_rule(plan):
    own = OwnOrder.natural(plan).sorted(plan, "pivot")
    assert own.columns == tuple(rose.make_order(plan, "pivot").permutation.tolist())
    assert own.says(plan, NAMES) == ("natural order" if own.is_natural else "pivot order")
    mixed = OwnOrder((0, 4, *range(1, 4), *range(5, 10)), (4, 4, 2), rule="")
    assert mixed.says(plan, NAMES) == "mixed by hand"


def test_a_link_restores_columns_and_widths(plan):
    own = OwnOrder.natural(plan).moved([2, 0, 1])
    assert write_order(own) == "8-9/0-3/4-7"
    again = read_order(write_order(own), plan)
    assert (again.columns, again.widths) == (own.columns, own.widths)
    assert read_order("8-9,0-7", plan).widths == (4, 4, 2), "a link without blocks cuts them anew"
    with pytest.raises(rose.RoseError, match="missing"):
        read_order("8-9/0-3", plan)


def test_undo_restores_order_and_shares(plan):
    first = OwnOrder.natural(plan)
    moved = first.moved([2, 0, 1])
    shared = moved.to(budget=(0.1, 0.2, 0.2))
    assert shared.to(budget=(0.1, 0.2, 0.2)) == shared
    assert shared.undone().columns == moved.columns
    assert shared.undone().undone().undone() == first
