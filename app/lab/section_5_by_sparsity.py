"""The order lab's section that compares orders at several sparsities."""

from __future__ import annotations

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import components, words
from app.figures import orders as figures
from app.lab.controls import choose_budget, choose_error, choose_orders, label, of_error, outcomes, with_natural
from app.lab.sweeps import PlannedSweep, frame
from app.study.study import Study

LEVELS = ("0.5", "0.6", "0.7", "0.8", "0.9")


def draw(study: Study, layer: str, left: DeltaGenerator, stage: DeltaGenerator) -> None:
    with left:
        orders = choose_orders("lab_bar_orders", ["natural", "columns", "blocks", "two_level"])
        levels = st.pills(
            "Sparsity",
            LEVELS,
            selection_mode="multi",
            default=list(LEVELS[1:]),
            key="lab_levels",
            bind=components.URL,
            wrap=True,
            format_func=lambda level: words.percent(float(level), 0),
        )
        error_on = choose_error(study, layer, "lab_bar_error")
        budget = choose_budget("lab_bar_budget")
        st.caption("Natural order is the baseline: dashed, and always measured.")
    with stage:
        if not levels:
            st.info("Choose at least one sparsity on the left.")
            return
        sweeps = [PlannedSweep(order, budget, level) for level in levels for order in with_natural(orders)]
        made = outcomes(study, layer, sweeps, "lab-sparsity")
        if made is None:
            return
        table, look = of_error(frame(made), error_on, layer)
        table = table.assign(sparsity=[float(one.sparsity or 0) for one in sweeps])
        components.show(figures.order_bars(table, budget=budget, **look), "lab-bars")
        # Means over random seeds, in the order of the bars.
        wide = table.pivot_table(index="order", columns="sparsity", values="relative_error", sort=False)
        wide = wide.sort_index(axis="columns").rename(index=label, columns=lambda level: words.percent(level, 0))
        st.dataframe(wide.rename_axis("Order").style.format("{:.5f}"), alt="Final error by order and sparsity")
