"""The order lab's section that goes through one sweep block by block."""

from __future__ import annotations

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

import rose
from app import components, words
from app.components import URL
from app.figures import order_lab as figures
from app.figures import sweep
from app.lab.controls import choose_budget, label
from app.lab.sweeps import LARGEST_TRACE, ratio, trace_bytes
from app.study.study import Study
from rose.layer.order import order_names, visited_blocks


def draw(study: Study, layer: str, left: DeltaGenerator, stage: DeltaGenerator) -> None:
    count = len(study.plan(layer).block_width)
    with left:
        known = order_names()
        order = st.selectbox(
            "Order", known, index=known.index("two_level"), format_func=label, key="lab_sweep_order", bind=URL
        )
        if order == "random":
            seed = st.number_input("Seed of the random order", 0, 9999, 0, key="lab_sweep_seed", bind=URL)
            order = f"random:{seed}"
        budget = choose_budget("lab_sweep_budget")
        if (st.session_state.get("lab_step") or 0) > count:  # of a layer with more blocks, or of a link
            st.session_state.lab_step = count
        playing = bool(st.session_state.get("lab_play"))
        step = st.slider(
            "Blocks pruned",
            0,
            count,
            min(1, count),
            key="lab_step",
            bind=URL,
            disabled=playing,
            help="While the figure plays, its own slider says which step is shown." if playing else None,
        )
        show = components.choose("Show", {"weights": "|W|", "change": "Change"}, "lab_show")
        play = st.toggle(
            "Play in the browser",
            key="lab_play",
            bind=URL,
            help="All steps as frames, with play and pause; columns as visited",
        )
        arrange = components.choose(
            "Columns", {"visited": "As visited", "natural": "Natural"}, "lab_arrange", disabled=play
        )
    with stage:
        needed = trace_bytes(study, layer)
        if needed > LARGEST_TRACE:
            components.warning(
                f"Recording this sweep would take {components.size(needed)}; choose a larger block size on the start "
                "page, or a smaller layer."
            )
            return

        def traced() -> rose.LayerResult:
            return study.prune(layer, order=order, budget=budget, trace=True)

        if not components.finished([traced], "lab-sweep", (study.created, layer, order, budget)):
            return
        result = traced()
        trace = result.trace
        assert trace is not None
        options = components.look(layer, show=show, added=result.added_damping)
        if play:
            components.show(sweep.sweep_animation(trace, result.order, **options), "lab-animation")
        else:
            components.show(sweep.sweep_frame(trace, result.order, step, arrange=arrange, **options), "lab-frame")
        marked = step - 1 if step and not play else None
        drawn = figures.damage_split(trace, result.order, result.plan, step=marked, **components.look(layer))
        components.show(drawn, "lab-damage")
    with left:
        if not play:  # the browser alone knows which step it shows
            step_numbers(result, trace, step)


def step_numbers(result: rose.LayerResult, trace: rose.SweepTrace, step: int) -> None:
    """Exact values of the block that was pruned last."""
    if step == 0:
        st.caption("Nothing is pruned yet. Move the slider.")
        return
    index = step - 1
    lost, kept = float(trace.lost[index]), float(trace.error[index])
    block = visited_blocks(result.plan, result.order)[index]
    rows = {
        "Just pruned": "mixed" if block is None else f"block {block}",
        "Weights removed": words.whole(int(trace.removed[index])),
        "Loss without compensation": words.number(lost),
        "Compensated": f"{words.number(lost - kept)} ({words.percent(1 - ratio(kept, lost), 0)})",
        "Remains, damping included": words.number(kept),
        "Error so far, without damping": words.number(float(trace.error_so_far(result.added_damping)[step])),
    }
    st.markdown("\n".join(f"- {name}: **{value}**" for name, value in rows.items()))
