"""Which block a column lies in, and which one a sweep visits when. No drawing here, and no Streamlit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import rose


def block_of(widths: Sequence[int], column: int) -> int:
    """The block that holds a column."""
    return int(blocks_of(widths, [column])[0])


def blocks_of(widths: Sequence[int], columns: Any) -> np.ndarray:
    """The block that holds each of these columns."""
    return np.searchsorted(np.cumsum(widths), np.asarray(columns), side="right")


def visited_blocks(plan: rose.OrderPlan, order: rose.Order) -> list[int | None]:
    """The original block visited at each step; None where a step takes columns of several."""
    steps = np.split(blocks_of(plan.block_width, order.permutation), np.cumsum(order.widths)[:-1])
    return [int(step[0]) if (step == step[0]).all() else None for step in steps]
