"""The order lab's section on prices: how orders deal out one total, and how well a forecast knows what follows."""

from __future__ import annotations

from functools import partial

import pandas as pd
import streamlit as st

import rose
from app import components
from app.figures import orders as figures
from app.lab.controls import label, outcomes
from app.lab.sweeps import PlannedSweep
from app.study.study import Study
from rose.layer.registry import order_names

FORESEEN = [
    (order, budget)
    for order in ("natural", "two_level", "dealt", "random:0", "global", "pivot")
    for budget in ("block", "layer")
]
YOURS = "custom"


def draw(study: Study, layer: str) -> None:
    plan = study.plan(layer)
    draft = st.session_state.get("lab_own") if st.session_state.get("lab_own_place") == (study.created, layer) else None
    with st.container(horizontal=True, vertical_alignment="bottom"):
        names = [name for name in order_names() if name != "random"]
        chosen = st.multiselect(
            "Orders",
            [*names, *([YOURS] if draft else [])],
            default=["natural", "two_level", "pivot", *([YOURS] if draft and draft.past else [])],
            format_func=label,
            key="lab_price_orders",
        )
        blocks = ["none", *map(str, range(len(plan.block_width)))]
        if st.session_state.get("lab_price_block") not in blocks:
            st.session_state.lab_price_block = "none"
        block = st.selectbox(
            "Columns of block",
            blocks,
            key="lab_price_block",
            bind=components.URL,
            help="Marked on every line.",
            width=150,
        )
    lines = {name: study.prices(layer, draft.order(plan) if name == YOURS and draft else name) for name in chosen}
    if not lines:
        st.info("Choose at least one order.")
        return
    look = components.look(layer, marked_block=None if block in (None, "none") else int(block))
    components.show(figures.price_lines(lines, widths=plan.block_width, **look), "lab-prices")
    forecast(study, layer)


def forecast(study: Study, layer: str) -> None:
    """Forecasts of six orders under both budgets, against their sweeps."""
    pairs = FORESEEN[::2] if study.plan(layer).pattern.is_grouped else FORESEEN
    compute = partial(foretold, study, layer, pairs)
    signature = (study.created, layer, "forecast")
    if not components.finished([compute] if not study.knows(("forecast", layer)) else [], "lab-forecast", signature):
        return
    results = outcomes(study, layer, [PlannedSweep(*pair) for pair in pairs], "lab-forecast-sweeps")
    if results is None:
        return
    rows = [
        (order.partition(":")[0], budget, foreseen, sweep.error)
        for (order, budget), foreseen, sweep in zip(pairs, compute(), results, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["order", "budget", "forecast", "measured"])
    tokens = "calibration" if study.held_out_statistics(layer) is None else "held-out"
    components.show(figures.forecast_scatter(table, tokens=tokens, **components.look(layer)), "lab-forecast")


def foretold(study: Study, layer: str, pairs: list[tuple[str, str]]) -> list[float]:
    """Errors of these orders and budgets before any sweep; remembered."""

    def compute() -> list[float]:
        forecasts = rose.forecasts(study.weight(layer), study.statistics(layer), pairs, **study.layer_options())
        return [forecast.error for forecast in forecasts]

    return study.remember(("forecast", layer), compute)
