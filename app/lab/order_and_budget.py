"""The order lab's section that separates the effects of order and budget."""

from __future__ import annotations

import streamlit as st

from app import components
from app.figures import orders as figures
from app.lab.controls import BUDGETS, choose_orders, outcomes
from app.lab.sweeps import PlannedSweep, frame
from app.study.study import Study

SHOWN = ["two_level", "dealt", "random", "global", "pivot"]


def draw(study: Study, layer: str) -> None:
    orders = choose_orders("lab_matrix_orders", ["natural", *SHOWN])
    grouped = study.plan(layer).pattern.is_grouped
    if grouped:
        st.caption(
            f"Under {study.plan(layer).pattern} every group gives up the same number of weights, so both budgets agree."
        )
    names = ["natural", *(order for order in orders if order != "natural")]
    results = outcomes(
        study, layer, [PlannedSweep(order, budget) for order in names for budget in BUDGETS], "lab-budget"
    )
    if results is None:
        return
    table, look = frame(results), components.look(layer)
    held_out = table["held_out_error"].notna().all()
    look["layer"] += f" on {'held-out' if held_out else 'calibration'} tokens"
    table = table.assign(relative_error=table["held_out_error"]) if held_out else table
    components.show(figures.order_budget_matrix(table, **look), "lab-matrix")
