"""The order lab's section that compares orders and budgets, as curves and as a table."""

from __future__ import annotations

import streamlit as st

from app import components, session, words
from app.components import URL
from app.figures import order_lab as figures
from app.lab.controls import COLUMNS, DAMPING_NOTE, budget_label, choose_orders, outcomes
from app.lab.sweeps import BASELINE, Outcome, Sweep, dense_energy, table
from app.study.study import Study
from rose.layer.methods import BUDGETS

LEGEND_LINE = 22  # pixels; the legend stands below the plot, a line for each sweep


def draw(study: Study, layer: str) -> None:
    left, stage = st.columns(COLUMNS)
    with left:
        orders = choose_orders("lab_orders", ["natural", "two_level", "random", "global"], seed_key="lab_seed")
        budgets = st.segmented_control(
            "Budgets",
            BUDGETS,
            selection_mode="multi",
            default=["block", "layer"],
            format_func=budget_label,
            key="lab_budgets",
            bind=URL,
        )
        st.caption(
            "Block: every block gives up the same share. Layer: one threshold for the whole layer; the total is the "
            "same. Natural order with the block budget is SparseGPT, the baseline of the table."
        )
    sweeps = [Sweep(order, budget) for order in orders for budget in budgets]
    with stage:
        if not sweeps:
            st.info("Choose at least one order and one budget on the left.")
            return
        made = outcomes(study, layer, [*sweeps, Sweep(*BASELINE)], "lab-compare")
        if made is None:
            return
        *shown, base = made
        results = {one.sweep.run_name: one.result for one in shown}
        energy = dense_energy(study, layer)
        drawn = figures.error_curve(results, energy, layer=words.short_layer(layer), theme=session.theme())
        components.show(drawn, "lab-curves", height=380 + LEGEND_LINE * len(results))
        outcome_table(shown, base)


def outcome_table(shown: list[Outcome], base: Outcome) -> None:
    made = table(shown, base)
    number = st.column_config.NumberColumn
    st.dataframe(
        made.drop(columns="sparsity"),
        hide_index=True,
        column_config={
            "order": "Order",
            "budget": "Budget",
            "relative_error": number("Final error", format="%.5f", help="‖ΔW Xᵀ‖² / ‖W Xᵀ‖² on calibration tokens"),
            "to_baseline": number("÷ base", format="%.3f", help="Relative to SparseGPT; below 1: less error"),
            "held_out_error": number("Held out", format="%.5f", help="The same on tokens not used to prune"),
            "held_out_to_baseline": number("÷ base, held out", format="%.3f", help="Relative to SparseGPT's, held out"),
        },
        alt="Final errors of these orders and budgets, lowest first",
    )
    best, worst = made.iloc[0], made.iloc[-1]
    text = (
        f"Lowest: {best['order']} with the {best['budget']} budget, {best['to_baseline']:.3f} times the error of the "
        f"baseline, SparseGPT ({base.error:.5f}); highest: {worst['order']} with the {worst['budget']} budget, "
        f"{worst['to_baseline']:.3f} times. Each removes {words.percent(float(made['sparsity'].mean()))} of "
        "the weights. "
    )
    if "held_out_error" not in made:
        text += "This set-up has no held-out tokens; ask for some on the start page to see over-fitting. "
    st.caption(text + DAMPING_NOTE)
