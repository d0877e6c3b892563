"""The order lab's section that tells the effect of the order from that of the budget."""

from __future__ import annotations

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import components
from app.figures import orders as figures
from app.lab.controls import BUDGETS, choose_error, choose_orders, of_error, outcomes, with_natural
from app.lab.sweeps import PlannedSweep, frame
from app.study.study import Study


def draw(study: Study, layer: str, left: DeltaGenerator, stage: DeltaGenerator) -> None:
    with left:
        known = ["natural", "two_level", "columns", "blocks", "hessian", "random", "global"]
        orders = choose_orders("lab_matrix_orders", known)
        error_on = choose_error(study, layer, "lab_matrix_kind")
        st.markdown(
            "An order has two effects. **Compensation**: columns pruned early have more free columns left to absorb "
            "their error. **Budget**: a block that must give up the same share as every other cannot protect important "
            "columns. Down a column only the order changes, along a row only the budget."
        )
    with stage:
        sweeps = [PlannedSweep(order, budget) for order in with_natural(orders) for budget in BUDGETS]
        made = outcomes(study, layer, sweeps, "lab-budget")
        if made is None:
            return
        table, look = of_error(frame(made), error_on, layer)
        components.show(figures.order_budget_matrix(table, **look), "lab-matrix")
