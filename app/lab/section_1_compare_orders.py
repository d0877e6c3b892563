"""The order lab's section that compares orders and budgets, as curves and as a table."""

from __future__ import annotations

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import components, words
from app.figures import orders as figures
from app.lab.controls import BUDGETS, choose_orders, outcomes
from app.lab.sweeps import BASELINE, PlannedSweep, SweepResult, dense_energy, table
from app.study.study import Study


def draw(study: Study, layer: str, left: DeltaGenerator, stage: DeltaGenerator) -> None:
    with left:
        orders = choose_orders("lab_orders", ["natural", "two_level", "random", "global"])
        budgets = st.segmented_control(
            "Budgets",
            list(BUDGETS),
            selection_mode="multi",
            default=list(BUDGETS),
            format_func=BUDGETS.__getitem__,
            key="lab_budgets",
            bind=components.URL,
        )
        st.caption(
            "Block: every block gives up the same share. Layer: one threshold for the whole layer; the total is the "
            "same. Natural order and block budget are SparseGPT, the baseline of the table; two-level order and block "
            "budget are ROSE where the layer is columnar; global order and layer budget are ROSE global."
        )
    sweeps = [PlannedSweep(order, budget) for order in orders for budget in budgets]
    with stage:
        if not sweeps:
            st.info("Choose at least one order and one budget on the left.")
            return
        made = outcomes(study, layer, [*sweeps, PlannedSweep(*BASELINE)], "lab-compare")
        if made is None:
            return
        *shown, base = made
        results = {figures.run_name(one.result): one.result for one in shown}
        drawn = figures.error_curve(
            figures.relative_curves(results, dense_energy(study, layer)), **components.look(layer)
        )
        components.show(drawn, "lab-curves")
        _numbers(shown, base)
        _why_random_wins(study, layer, shown)


def _why_random_wins(study: Study, layer: str, shown: list[SweepResult]) -> None:
    """Where most random orders end below ROSE's: what blocks must give up in both, under both budgets."""
    under_block = {one.result.order.name: one.error for one in shown if one.sweep.budget == "block"}
    seeds = sorted((name for name in under_block if name.startswith("random:")), key=under_block.__getitem__)
    wins = [name for name in seeds if under_block[name] < under_block.get("two_level", 0.0)]
    if len(wins) <= len(seeds) / 2 or study.plan(layer).pattern.is_grouped:  # of N:M every block gives up the same
        return
    sweeps = [PlannedSweep(order, budget) for order in ("two_level", seeds[len(seeds) // 2]) for budget in BUDGETS]
    made = outcomes(study, layer, sweeps, "lab-given-up")
    if made is None:
        return
    st.subheader("Why random order ends lower here: what every block gives up, before compensation", anchor=False)
    results = {figures.run_name(one.result): one.result for one in made}
    drawn = figures.given_up(results, dense_energy(study, layer), **components.look(layer))
    components.show(drawn, "lab-given-up")


def _numbers(shown: list[SweepResult], base: SweepResult) -> None:
    made, number = table(shown, base), st.column_config.NumberColumn
    there = "Relative to SparseGPT's, held out"
    st.dataframe(
        made.drop(columns="sparsity"),
        hide_index=True,
        column_config={
            "sweep": "Sweep",
            "order": "Order",
            "budget": "Budget",
            "relative_error": number("Final error", format="%.5f", help="‖ΔW Xᵀ‖² / ‖W Xᵀ‖² on calibration tokens"),
            "seeds": "Lowest to highest seed",
            "to_baseline": number("÷ baseline", format="%.3f", help="Relative to SparseGPT; below 1: less error"),
            "held_out_error": number("Held out", format="%.5f", help="The same on tokens not used to prune"),
            "held_out_to_baseline": number("÷ baseline, held out", format="%.3f", help=there),
        },
        alt="Final errors of these orders and budgets, lowest first",
    )
    best, worst = made.iloc[0], made.iloc[-1]
    text = (
        f"Lowest: {best['sweep']}, {best['to_baseline']:.3f} times the error of the baseline, SparseGPT "
        f"({base.error:.5f}); highest: {worst['sweep']}, {worst['to_baseline']:.3f} times. Each removes "
        f"{words.percent(float(made['sparsity'].mean()))} of the weights. "
    )
    if "held_out_error" not in made:
        text += "This set-up has no held-out tokens; ask for some on the start page to see over-fitting. "
    st.caption(text)
