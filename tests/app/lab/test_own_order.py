"""User orders and shares: parsed, refused, and restored by undo."""

import re
from types import SimpleNamespace

import pytest
import torch

import rose
from app.lab.your_order import OwnOrder, leading, read_columns, read_shares, sorted_by, write_columns, write_shares


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


def test_the_fourth_curve_is_chosen_by_calibration_error():
    errors = ((0.9, 0.9), (0.9, 0.9), (0.9, 0.9), (0.5, 0.1), (0.4, 0.3), (0.6, 0.2))  # calibration, held out
    every = [SimpleNamespace(result=SimpleNamespace(relative_error=a), error=b) for a, b in errors]
    assert leading(every) == (*every[:3], every[4])


def test_undo_restores_order_and_shares():
    plan = rose.plan_order(torch.rand(4, 6), torch.eye(6), sparsity=0.5, block_size=4)
    first = OwnOrder(tuple(range(6)))
    moved = first.to(columns=(4, 5, 0, 1, 2, 3))
    shared = moved.to(budget=(0.3, 0.2))
    assert shared.to(budget=(0.3, 0.2)) is shared
    assert shared.undone().columns == moved.columns
    assert shared.undone().undone().undone() == first
    order = moved.order(plan)
    assert (order.permutation.tolist(), order.widths) == ([4, 5, 0, 1, 2, 3], (4, 2))
    assert sorted_by(plan, "pivot") == tuple(rose.make_order(plan, "pivot").permutation.tolist())
