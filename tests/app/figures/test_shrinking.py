"""Shrinking that hides no column."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from app.figures import shapes


@given(
    arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.floats(0, 100, width=32)),
    st.integers(1, 12),
)
def test_shrinking_keeps_maximum_and_sum(values, limit):
    largest = shapes.shrink(values, limit)
    assert max(largest.array.shape) <= limit
    for row, column in np.ndindex(*largest.array.shape):
        cell = values[
            row * largest.rows : (row + 1) * largest.rows, column * largest.columns : (column + 1) * largest.columns
        ]
        assert largest.array[row, column] == cell.max()
    assert shapes.shrink(values.astype(np.float64), limit, "sum").array.sum() == pytest.approx(
        values.sum(dtype=np.float64)
    )


def test_one_strong_column_survives():
    weight = torch.zeros(1200, 1100, dtype=torch.bfloat16)
    weight[:, 777] = 3
    shrunk = shapes.shrink(weight)
    assert shrunk.array.shape == (400, 367)
    assert (shrunk.array.max(0) == 3).nonzero()[0].tolist() == [777 // 3]
    assert shrunk.note == "each cell is the maximum of 3 × 3 weights"


def test_cells_whose_text_would_be_too_long_are_shrunk_further():
    # Plotly escapes every slash of the base64; these floats are full of them.
    slashes = np.frombuffer(b"\xff\xff\x7f\x3f" * 512 * 512, np.float32).reshape(512, 512)
    shrunk = shapes.shrink(slashes)
    chart = shapes.Chart()
    chart.cells(shrunk, "x")
    assert len(chart.figure.to_json()) < 2_000_000
    assert shrunk.note == f"each cell is the maximum of {shrunk.rows} × 1 weights"
    assert shrunk.rows > 1


def test_outliers_do_not_darken_everything_else():
    values = np.ones((100, 100))
    values[0, 0] = 50
    top, note = shapes.ceiling(values)
    assert top == 1
    assert note == "; colours end at 1.00, the largest is 50.0"
    assert shapes.ceiling(np.linspace(0, 1, 100)) == (1, "")
    assert shapes.ceiling(np.zeros(4)) == (1, "")
