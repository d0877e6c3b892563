"""The order lab's section that moves one block, at first the costliest, to every position in turn."""

from __future__ import annotations

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

import rose
from app import components, words
from app.figures import orders as figures
from app.lab.controls import choose_budget, choose_error, label, of_error, outcomes
from app.lab.sweeps import WHOLE_BLOCK_ORDERS, PlannedSweep, frame
from app.study.study import Study
from rose.layer.order import visited_blocks
from rose.layer.paper import positions


def _moved_block(losses: list[float], worst: int) -> int:
    """The block to move; the link carries it by labels that fit any layer."""
    labels = {"costliest": "The costliest"} | {str(b): f"Block {b}" for b in range(len(losses))}
    if st.session_state.get("lab_moved", "costliest") not in labels:
        st.session_state.lab_moved = "costliest"  # the former layer had more blocks
    chosen = st.selectbox(
        "Block to move", list(labels), format_func=labels.__getitem__, key="lab_moved", bind=components.URL
    )
    block = int(chosen) if chosen in labels and chosen != "costliest" else worst
    st.caption(f"Block {block} would lose {words.number(losses[block])} per column.")
    return block


def draw(study: Study, layer: str, left: DeltaGenerator, stage: DeltaGenerator) -> None:
    plan = study.plan(layer)
    losses, worst = plan.loss_per_column.tolist(), int(plan.loss_per_column.argmax())
    with left:
        block = _moved_block(losses, worst)
        base = st.selectbox(
            "All others in",
            WHOLE_BLOCK_ORDERS,
            format_func=label,
            key="lab_others",
            bind=components.URL,
            help="Orders that keep every column in its block",
        )
        error_on = choose_error(study, layer, "lab_position_error")
        budget = choose_budget("lab_position_budget")
        st.caption(
            f"Block {worst} would lose most per column. One sweep for each of {len(losses)} positions; the other "
            f"blocks keep their relative order."
        )
    with stage:
        if len(losses) < 2:
            st.info("This layer has a single block, which has only one position; choose a smaller block size.")
            return
        sweeps = [PlannedSweep(order, budget) for order in positions(plan, base, block)]
        made = outcomes(study, layer, sweeps, "lab-position")
        if made is None:
            return
        table, look = of_error(frame(made).assign(position=range(len(made))), error_on, layer)
        place = visited_blocks(plan, rose.make_order(plan, base)).index(block)
        drawn = figures.position_curve(table, block=block, base=base, place=place, **look)
        components.show(drawn, "lab-positions")
