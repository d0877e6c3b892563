"""The order lab's section that compares orders at several sparsities."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import components, session, words
from app.components import URL
from app.figures import order_lab as figures
from app.lab.controls import COLUMNS, choose_budget, choose_orders, label, outcomes
from app.lab.sweeps import Sweep
from app.study.study import Study

LEVELS = ("0.5", "0.6", "0.7", "0.8", "0.9")


def draw(study: Study, layer: str) -> None:
    left, stage = st.columns(COLUMNS)
    with left:
        orders = choose_orders("lab_bar_orders", ["natural", "columns", "blocks", "two_level"], seed_key="lab_bar_seed")
        levels = st.pills(
            "Sparsity", LEVELS, selection_mode="multi", default=list(LEVELS[1:]), key="lab_levels", bind=URL, wrap=True,
            format_func=lambda level: words.percent(float(level), 0),
        )  # fmt: skip
        budget = choose_budget("lab_bar_budget")
        st.caption("Natural order is the baseline: dashed, and always measured.")
    with stage:
        if not levels:
            st.info("Choose at least one sparsity on the left.")
            return
        shown = ["natural", *(order for order in orders if order != "natural")]
        sweeps = [Sweep(order, budget, level) for level in levels for order in shown]
        made = outcomes(study, layer, sweeps, "lab-sparsity")
        if made is None:
            return
        table = pd.DataFrame(
            {
                "order": [one.sweep.order_name for one in made],
                "sparsity": [float(one.sweep.sparsity or 0) for one in made],
                "relative_error": [one.error for one in made],
            }
        )
        drawn = figures.order_bars(table, budget=budget, layer=words.short_layer(layer), theme=session.theme())
        components.show(drawn, "lab-bars")
        wide = table.pivot(index="order", columns="sparsity", values="relative_error").loc[shown]
        wide.columns = [words.percent(level, 0) for level in wide.columns]
        wide.index = [label(order) for order in wide.index]
        st.dataframe(wide.rename_axis("Order").style.format("{:.5f}"), alt="Final error by order and sparsity")
