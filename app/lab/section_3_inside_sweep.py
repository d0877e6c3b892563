"""The order lab's section that goes through one sweep block by block, or two side by side."""

from __future__ import annotations

from functools import partial

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

import rose
from app import components, words
from app.components import URL
from app.figures import orders as figures
from app.figures.sweeps import sweep_film, sweep_frame
from app.lab.controls import choose_budget, label
from app.lab.player import Player
from app.lab.sweeps import LARGEST_TRACE, dense_energy, inside, times, trace_bytes
from app.study.study import Study
from rose.layer.order import visited_blocks
from rose.layer.registry import order_names

PLAYER = Player("lab", first=1)
ALONE = "none"  # no second sweep beside the first
TALL = "<style>.st-key-lab-sweep { height: clamp(480px, 100vh - 320px, 900px); flex: none; }</style>"


def draw(study: Study, layer: str, left: DeltaGenerator, stage: DeltaGenerator) -> None:
    blocks = len(study.plan(layer).block_width)
    with left:
        pairs = _choose_sweeps()
        show = components.choose("Show", {"weights": "|W|", "change": "Change"}, "lab_show")
        arrange = components.choose("Columns", {"visited": "As visited", "natural": "Natural"}, "lab_arrange")
    with stage:
        needed = len(pairs) * trace_bytes(study, layer)
        if needed > LARGEST_TRACE:
            components.warning(
                f"Recording this would take {words.size(needed)}; choose a larger block size on the start page, "
                "or a smaller layer."
            )
            return
        pieces = [partial(inside, study, layer, order, budget) for order, budget in pairs]
        if not components.finished(pieces, "lab-sweep", (study.created, layer, *pairs)):
            return
        results = {pair: study.prune(layer, order=pair[0], budget=pair[1], trace=True) for pair in pairs}
        made, energy, look = list(results.values()), dense_energy(study, layer), components.look(layer)
        step = PLAYER.step(blocks)
        PLAYER.controls(blocks, lambda: sweep_film(made, energy, show=show, **look))
        st.html(TALL)
        drawn = sweep_frame(made, step, energy, show=show, arrange=arrange, **look)
        components.show(drawn, "lab-sweep", height="stretch")
        for (order, budget), result in results.items():
            marked = step - 1 if step else None
            drawn = figures.damage_split(result, inside(study, layer, order, budget), step=marked, **look)
            components.show(drawn, f"lab-damage-{budget}-{order.partition(':')[0]}")
    with left:
        for result in made:
            step_numbers(result, step)


def _choose_sweeps() -> list[tuple[str, str]]:
    """Order and budget of the sweep, and of another beside it where one is chosen."""
    known = order_names()
    order = st.selectbox(
        "Order", known, index=known.index("two_level"), format_func=label, key="lab_sweep_order", bind=URL
    )
    budget = choose_budget("lab_sweep_budget")
    others = {ALONE: "Nothing", "order": "Natural order", "budget": "The other budget"}
    beside = components.choose("Beside it", others, "lab_sweep_beside")
    if order == "random":
        seed = st.number_input("Seed of the random order", 0, 9999, 0, key="lab_sweep_seed", bind=URL)
        order = f"random:{seed}"
    other = {"order": ("natural", budget), "budget": (order, "layer" if budget == "block" else "block")}
    return list(dict.fromkeys([(order, budget), *([other[beside]] if beside in other else [])]))


def step_numbers(result: rose.LayerResult, step: int) -> None:
    """Exact values of the block that was pruned last."""
    if step == 0:
        st.caption("Nothing is pruned yet. Press Play, or move the slider.")
        return
    trace, index = figures.trace_of(result), step - 1
    lost, kept = float(trace.lost[index]), float(trace.error[index])
    block = visited_blocks(result.plan, result.order)[index]
    st.markdown(f"**{figures.sweep_style(result).label}**")
    rows = {
        "Just pruned": "mixed" if block is None else f"block {block}",
        "Weights removed": words.whole(int(trace.removed[index])),
        "Loss without compensation": words.number(lost),
        "Compensated": f"{words.number(lost - kept)} ({words.percent(1 - times(kept, lost), 0)})",
        "Remains, damping included": words.number(kept),
        "Error so far, without damping": words.number(float(trace.error_so_far(result.added_damping)[step])),
    }
    st.markdown("\n".join(f"- {name}: **{value}**" for name, value in rows.items()))
