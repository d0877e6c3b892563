"""The order lab's section that tells the effect of the order from that of the budget."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import components, session, words
from app.figures import order_lab as figures
from app.lab.controls import COLUMNS, choose_orders, kind, outcomes
from app.lab.sweeps import Sweep
from app.study.study import Study
from rose.layer.methods import BUDGETS


def draw(study: Study, layer: str) -> None:
    left, stage = st.columns(COLUMNS)
    with left:
        orders = choose_orders(
            "lab_matrix_orders",
            ["natural", "two_level", "columns", "blocks", "hessian", "random", "global"],
        )
        held_out = {"held_out": "Held-out"} if study.held_out_statistics(layer) is not None else {}
        error_on = components.choose("Error on", {"calibration": "Calibration"} | held_out, "lab_matrix_kind")
        st.markdown(
            "An order has two effects. **Compensation**: columns pruned early have more free columns left to absorb "
            "their error. **Budget**: a block that must give up the same share as every other cannot protect important "
            "columns. Down a column only the order changes, along a row only the budget."
        )
    with stage:
        shown = ["natural", *(order for order in orders if order != "natural")]
        sweeps = [Sweep(order, budget) for order in shown for budget in BUDGETS]
        made = outcomes(study, layer, sweeps, "lab-budget")
        if made is None:
            return
        table = pd.DataFrame(
            {
                "order": [kind(one.sweep.order_name) for one in made],
                "budget": [one.sweep.budget for one in made],
                "relative_error": [one.error if error_on == "calibration" else one.held_out_error for one in made],
            }
        )
        name = words.short_layer(layer) + (" on held-out tokens" if error_on == "held_out" else "")
        components.show(figures.order_budget_matrix(table, layer=name, theme=session.theme()), "lab-matrix")
