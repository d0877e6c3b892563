"""Order lab: what the order of pruning, and the budget that goes with it, do to one layer's error."""

from __future__ import annotations

import pandas as pd
import streamlit as st

import rose
from app import components, inside_sweep, lab, own_order, session, words
from app.components import URL
from app.figures import order_lab as figures
from app.lab import BASE_LINE, Outcome, Sweep
from app.lab_widgets import (
    COLUMNS,
    DAMPING_NOTE,
    budget_label,
    choose_budget,
    choose_orders,
    label,
    outcomes,
)
from app.study import Study
from rose.layer.methods import BUDGETS
from rose.layer.order import visited_blocks

SECTIONS = {
    "compare": "Compare orders",
    "own": "Your own order",
    "sweep": "Inside a sweep",
    "position": "Costliest block",
    "sparsity": "By sparsity",
    "budget": "Order and budget",
}
LEGEND_LINE = 22  # pixels; the legend stands below the plot, a line for each sweep
LEVELS = ("0.5", "0.6", "0.7", "0.8", "0.9")


# Compare orders


def compare(study: Study, layer: str) -> None:
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
            "same. Natural order with the block budget is SparseGPT, the base line of the table."
        )
    sweeps = [Sweep(order, budget) for order in orders for budget in budgets]
    with stage:
        if not sweeps:
            st.info("Choose at least one order and one budget on the left.")
            return
        made = outcomes(study, layer, [*sweeps, Sweep(*BASE_LINE)], "lab-compare")
        if made is None:
            return
        *shown, base = made
        results = {one.sweep.run_name: one.result for one in shown}
        energy = lab.dense_energy(study, layer)
        drawn = figures.error_curve(results, energy, layer=words.short_layer(layer), theme=session.theme())
        components.show(drawn, "lab-curves", height=380 + LEGEND_LINE * len(results))
        outcome_table(shown, base)


def outcome_table(shown: list[Outcome], base: Outcome) -> None:
    made = lab.table(shown, base)
    number = st.column_config.NumberColumn
    st.dataframe(
        made.drop(columns="sparsity"),
        hide_index=True,
        column_config={
            "order": "Order",
            "budget": "Budget",
            "relative_error": number("Final error", format="%.5f", help="‖ΔW Xᵀ‖² / ‖W Xᵀ‖² on calibration tokens"),
            "to_base_line": number("÷ base", format="%.3f", help="Relative to SparseGPT; below 1: less error"),
            "held_out_error": number("Held out", format="%.5f", help="The same on tokens not used to prune"),
            "held_out_to_base_line": number(
                "÷ base, held out", format="%.3f", help="Relative to SparseGPT's, held out"
            ),
        },
        alt="Final errors of these orders and budgets, lowest first",
    )
    best, worst = made.iloc[0], made.iloc[-1]
    text = (
        f"Lowest: {best['order']} with the {best['budget']} budget, {best['to_base_line']:.3f} times the error of the "
        f"base line, SparseGPT ({base.error:.5f}); highest: {worst['order']} with the {worst['budget']} budget, "
        f"{worst['to_base_line']:.3f} times. Each removes {words.percent(float(made['sparsity'].mean()))} of "
        "the weights. "
    )
    if "held_out_error" not in made:
        text += "This set-up has no held-out tokens; ask for some on the start page to see over-fitting. "
    st.caption(text + DAMPING_NOTE)


# Costliest block


def moved_block(losses: list[float], worst: int) -> int:
    """The block to move; the link carries it by labels that fit any layer."""
    labels = {"costliest": "The costliest"} | {str(b): f"Block {b}" for b in range(len(losses))}
    if st.session_state.get("lab_moved", "costliest") not in labels:
        st.session_state.lab_moved = "costliest"  # the former layer had more blocks
    chosen = st.selectbox("Block to move", list(labels), format_func=labels.__getitem__, key="lab_moved", bind=URL)
    block = int(chosen) if chosen in labels and chosen != "costliest" else worst
    st.caption(f"Block {block} would lose {words.number(losses[block])} per column.")
    return block


def position(study: Study, layer: str) -> None:
    plan = study.plan(layer)
    losses = plan.loss_per_column.tolist()
    worst = lab.costliest_block(plan)
    left, stage = st.columns(COLUMNS)
    with left:
        block = moved_block(losses, worst)
        base = st.selectbox(
            "All others in", lab.WHOLE_BLOCK_ORDERS, format_func=label, key="lab_others", bind=URL,
            help="Orders that keep every column in its block",
        )  # fmt: skip
        budget = choose_budget("lab_position_budget")
        st.caption(
            f"Block {worst} would lose most per column. One sweep for each of {len(losses)} positions; the others keep "
            "their order among themselves."
        )
    with stage:
        if len(losses) < 2:
            st.info("This layer has a single block, which has only one position; choose a smaller block size.")
            return
        orders = lab.positions(plan, base, block)
        made = outcomes(study, layer, [Sweep(order, budget) for order in orders], "lab-position")
        if made is None:
            return
        table = pd.DataFrame({"position": range(len(made)), "relative_error": [one.error for one in made]})
        if made[0].held_out_error is not None:
            table["held_out_error"] = [one.held_out_error for one in made]
        place = visited_blocks(plan, rose.make_order(plan, base)).index(block)
        drawn = figures.position_curve(
            table, block=block, base=base, place=place, layer=words.short_layer(layer), theme=session.theme()
        )
        components.show(drawn, "lab-positions")


# By sparsity


def sparsity(study: Study, layer: str) -> None:
    left, stage = st.columns(COLUMNS)
    with left:
        orders = choose_orders("lab_bar_orders", ["natural", "columns", "blocks", "two_level"], seed_key="lab_bar_seed")
        levels = st.pills(
            "Sparsity", LEVELS, selection_mode="multi", default=list(LEVELS[1:]), key="lab_levels", bind=URL, wrap=True,
            format_func=lambda level: words.percent(float(level), 0),
        )  # fmt: skip
        budget = choose_budget("lab_bar_budget")
        st.caption("Natural order is the base line: dashed, and always measured.")
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


# Order and budget


def budget(study: Study, layer: str) -> None:
    left, stage = st.columns(COLUMNS)
    with left:
        orders = choose_orders(
            "lab_matrix_orders",
            ["natural", "two_level", "columns", "blocks", "hessian", "random", "global"],
            seed_key="lab_matrix_seed",
        )
        held_out = {"held_out": "Held-out"} if study.held_out_statistics(layer) is not None else {}
        kind = components.choose("Error on", {"calibration": "Calibration"} | held_out, "lab_matrix_kind")
        st.markdown(
            "Two effects hide in an order. **Compensation**: columns pruned early find more free columns to repair the "
            "damage. **Budget**: a block that must give up the same share as every other cannot protect important "
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
                "order": [one.sweep.order_name for one in made],
                "budget": [one.sweep.budget for one in made],
                "relative_error": [one.error if kind == "calibration" else one.held_out_error for one in made],
            }
        )
        name = words.short_layer(layer) + (" on held-out tokens" if kind == "held_out" else "")
        components.show(figures.order_budget_matrix(table, layer=name, theme=session.theme()), "lab-matrix")


PAGES = {
    "compare": compare,
    "own": own_order.draw,
    "sweep": inside_sweep.draw,
    "position": position,
    "sparsity": sparsity,
    "budget": budget,
}

st.title("Order lab: does the pruning order matter?")
study, layer = components.require_layer("Here you try pruning orders on a real layer")
plan = study.plan(layer, session.threshold())
columnar = "columnar" if plan.is_columnar else "not columnar"
st.caption(
    f"**{words.short_layer(layer)}** · {plan.importance.shape[0]} × {plan.importance.shape[1]} weights in "
    f"{words.count(len(plan.block_width), 'block')} · sparsity {plan.pattern} · relative range "
    f"{plan.relative_range:.2f}, {columnar}"
)
section = components.section(SECTIONS, "lab_section")
if section != "own" and "own" in st.query_params:
    del st.query_params["own"]
if plan.pattern.is_grouped and section != "sparsity":
    st.caption(f"Under {plan.pattern} every group of columns gives up the same number: both budgets are the same.")
try:
    PAGES[section](study, layer)
except rose.RoseError as problem:
    st.error(str(problem), icon=":material/error:")
