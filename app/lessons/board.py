"""The board of lesson 7: a small layer whose weights and order are in the hands of whoever looks at it.

Streamlit has no matrix whose columns can be dragged, so this is one component: it shows what Python has computed, and
sends back an order or a weight. Columns move by pointer and by arrow keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import streamlit as st

from app import session
from app.figures import lessons as figures
from app.figures.style import Drawing
from app.lessons import example

KEY, STATE = "lesson-board", "lesson_board"
NATURAL = tuple(range(9))
RANDOM = tuple(f"random:{seed}" for seed in range(60))
LARGEST = 9.9  # of a weight
STYLE = """
.board { border-collapse: separate; border-spacing: 0 2px; width: 100%; table-layout: fixed; touch-action: none;
  color: var(--st-text-color); font-size: 0.85rem; text-align: center; }
.board th, .board td { padding: 1px 2px; }
.board th:first-child { width: 4.2rem; text-align: left; font-weight: 400; }
.board thead button { width: 100%; min-height: 2rem; cursor: grab; border-radius: 6px; font: inherit; font-weight: 700;
  color: inherit; background: var(--st-secondary-background-color); border: 1px solid var(--st-border-color); }
.board thead button.held { outline: 3px solid #f0338a; }
.board .edge { border-left: 3px solid var(--st-text-color); }
.board input { width: 100%; box-sizing: border-box; font: inherit; text-align: center; color: inherit; padding: 1px 0;
  background: transparent; border: 1px solid var(--st-border-color); border-radius: 4px; }
.board .gone input { text-decoration: line-through; opacity: 0.75; }
.board .gone { background: rgba(128, 135, 150, 0.3); }
.board small { display: block; font-size: 0.75rem; line-height: 1.1rem; }
"""
SCRIPT = """
export default ({data, parentElement, setTriggerValue}) => {
  const place = parentElement.querySelector(".board"), text = (value) => value.toFixed(1).replace("-", "−");
  const focused = document.activeElement?.dataset?.column;
  place.replaceChildren();
  const row = (part, name) => {
    const line = place.appendChild(document.createElement(part)).appendChild(document.createElement("tr"));
    line.appendChild(Object.assign(document.createElement("th"), {textContent: name, scope: "row"}));
    return line;
  };
  const cell = (line, at, kind = "td") => {
    const made = line.appendChild(document.createElement(kind));
    if (at % 3 === 0) made.className = "edge";
    return made;
  };
  const move = (column, to) => {
    const order = data.order.filter((other) => other !== column);
    order.splice(Math.min(Math.max(to, 0), order.length), 0, column);
    if (order.join() !== data.order.join()) setTriggerValue("order", order);
  };
  const head = row("thead", "column");
  data.order.forEach((column, at) => {
    const button = cell(head, at, "th").appendChild(document.createElement("button"));
    button.textContent = column + 1;
    button.dataset.column = column;
    button.ariaLabel = `Column ${column + 1}, step ${at + 1}: arrow keys move it`;
    button.onkeydown = (event) => {
      const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
      if (by) { event.preventDefault(); move(column, at + by); }
    };
    button.onpointerdown = (event) => { button.setPointerCapture(event.pointerId); button.classList.add("held"); };
    button.onpointerup = (event) => {
      button.classList.remove("held");
      const centres = [...head.querySelectorAll("button")].map((one) => one.getBoundingClientRect())
        .map((box) => box.left + box.width / 2);
      const others = centres.filter((_, other) => other !== at);
      move(column, others.filter((centre) => centre < event.clientX).length);
    };
    if (String(column) === focused) button.focus();
  });
  data.weights.forEach((weights, output) => {
    const line = row("tbody", `output ${output + 1}`);
    data.order.forEach((column, at) => {
      const shown = cell(line, at), gone = data.removed[output][column];
      if (gone) shown.classList.add("gone");
      const input = shown.appendChild(document.createElement("input"));
      Object.assign(input, {inputMode: "decimal", value: text(weights[column])});
      input.ariaLabel = `Weight of output ${output + 1}, column ${column + 1}`;
      input.onchange = () => {
        const value = Number(input.value.replace("−", "-").replace(",", "."));
        if (Number.isFinite(value)) setTriggerValue("weight", [output, column, value]);
        else input.value = text(weights[column]);
      };
      const after = shown.appendChild(document.createElement("small"));
      after.textContent = gone ? "gone" : `→ ${text(data.after[output][column])}`;
    });
  });
  const prices = row("tfoot", "price d");
  data.prices.forEach((price, at) => { cell(prices, at).textContent = price.toFixed(2); });
};"""
_board = st.components.v2.component(
    "board_of_columns", html='<table class="board"></table>', css=STYLE, js=SCRIPT, isolate_styles=False
)


def state() -> dict[str, Any]:
    """Order, weights, and what they were before the last changes."""
    return st.session_state.setdefault(STATE, {"order": NATURAL, "weights": example.WEIGHT, "past": []})


def change(order: Sequence[int] | None = None, weights: example.Weights | None = None) -> None:
    """Takes another order or other weights, unless it is none, or they are none."""
    now = state()
    before = now["order"], now["weights"]
    if order is not None and sorted(order) == list(NATURAL):
        now["order"] = tuple(order)
    now["weights"] = weights or now["weights"]
    if (now["order"], now["weights"]) != before:
        now["past"].append(before)


def change_weight(row: int, column: int, value: float) -> None:
    if not math.isfinite(value):
        return
    rows = [list(weights) for weights in state()["weights"]]
    rows[row][column] = round(min(max(value, -LARGEST), LARGEST), 1)
    change(weights=tuple(map(tuple, rows)))


def undo() -> None:
    now = state()
    now["order"], now["weights"] = now["past"].pop()


def buttons() -> None:
    """Known orders, and the way back."""
    now = state()
    orders = {"Natural": NATURAL, "ROSE": _columns("two_level"), "Pivot": _columns("pivot")}
    with st.container(horizontal=True, gap="xsmall"):
        for label, order in orders.items():
            st.button(label, key=f"board-{label}", on_click=change, args=(order,))
        st.button("Undo", type="tertiary", key="board-undo", on_click=undo, disabled=not now["past"])
        st.button("Reset", type="tertiary", key="board-reset", on_click=change, args=(NATURAL, example.WEIGHT))


def draw() -> None:
    """The board itself."""
    order, weights = state()["order"], state()["weights"]
    result = example.prune(order, weight=weights)
    data = {
        "order": list(order), "weights": weights, "after": result.weight.tolist(), "removed": result.mask.tolist(),
        "prices": example.prices(order),
    }  # fmt: skip
    _board(key=KEY, data=data, on_order_change=_moved, on_weight_change=_typed)


def compared() -> Drawing:
    """The error of the board's order among errors of other orders."""
    order, weights = state()["order"], state()["weights"]
    random = [example.prune(name, weight=weights).relative_error for name in RANDOM]
    marked = {"natural": NATURAL, "two_level": _columns("two_level"), "custom": order}
    errors = {name: example.prune(columns, weight=weights).relative_error for name, columns in marked.items()}
    return figures.error_strip(random, errors, theme=session.theme())


def _columns(order: str) -> tuple[int, ...]:
    """The columns as a named order visits them."""
    return tuple(example.prune(order, weight=state()["weights"]).order.permutation.tolist())


def _moved() -> None:
    if (order := st.session_state[KEY].order) is not None:
        change([int(column) for column in order])


def _typed() -> None:
    if (weight := st.session_state[KEY].weight) is not None:
        row, column, value = weight
        change_weight(int(row), int(column), float(value))
