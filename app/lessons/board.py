"""The board of lesson 7: a small layer whose weights and order are in the hands of whoever looks at it.

Streamlit has no matrix whose columns can be dragged, so this is one component: it shows what Python has computed, and
sends back an order or a weight. Columns move by pointer and by arrow keys.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from app import session
from app.figures import lessons as figures
from app.figures.style import Drawing
from app.lessons import example

KEY, STATE = "lesson-board", "lesson_board"
LARGEST = 9.9  # of a weight
FILES = Path(__file__).parent
_board = st.components.v2.component(
    "board_of_columns", html='<table class="board"></table>', isolate_styles=False,
    css=(FILES / "board.css").read_text(encoding="utf-8"), js=(FILES / "board.js").read_text(encoding="utf-8"),
)  # fmt: skip


def state() -> dict[str, Any]:
    """Order, weights, and what they were before the last changes."""
    return st.session_state.setdefault(STATE, {"order": example.NATURAL, "weights": example.WEIGHT, "past": []})


def change(order: Sequence[int] | None = None, weights: example.Weights | None = None) -> None:
    """Takes another order or other weights, unless it is none, or they are none."""
    now = state()
    before = now["order"], now["weights"]
    if order is not None and sorted(order) == list(example.NATURAL):
        now["order"] = tuple(order)
    now["weights"] = weights or now["weights"]
    if (now["order"], now["weights"]) != before:
        now["past"].append(before)


def undo() -> None:
    now = state()
    now["order"], now["weights"] = now["past"].pop()


def buttons() -> None:
    """Known orders, and the way back."""
    now = state()
    orders = {"Natural": "natural", "ROSE": "two_level", "Pivot": "pivot"}
    with st.container(horizontal=True, gap="xsmall"):
        for label, order in orders.items():
            st.button(label, key=f"board-{label}", on_click=change, args=(example.order(order, now["weights"]),))
        st.button("Undo", type="tertiary", key="board-undo", on_click=undo, disabled=not now["past"])
        st.button("Reset", type="tertiary", key="board-reset", on_click=change, args=(example.NATURAL, example.WEIGHT))


def draw() -> None:
    """The board itself."""
    order, weights = state()["order"], state()["weights"]
    result = example.prune(order, weight=weights)
    after = {"after": result.weight.tolist(), "removed": result.mask.tolist(), "prices": example.prices(order)}
    data = {"order": list(order), "weights": weights} | after
    _board(key=KEY, data=data, on_order_change=_moved, on_weight_change=_typed)


def compared() -> Drawing:
    """The error of the board's order among errors of other orders."""
    order, weights = state()["order"], state()["weights"]
    random = [example.prune(name, weight=weights).relative_error for name in example.RANDOM]
    marked = {"natural": example.NATURAL, "two_level": example.order("two_level", weights), "custom": order}
    errors = {name: example.prune(columns, weight=weights).relative_error for name, columns in marked.items()}
    return figures.error_strip(random, errors, theme=session.theme())


def _moved() -> None:
    if (order := st.session_state[KEY].order) is not None:
        change([int(column) for column in order])


def _typed() -> None:
    if (weight := st.session_state[KEY].weight) is None:
        return
    row, column, value = weight
    if math.isfinite(value):
        rows = [list(weights) for weights in state()["weights"]]
        rows[int(row)][int(column)] = round(min(max(float(value), -LARGEST), LARGEST), 1)
        change(weights=tuple(map(tuple, rows)))
