"""The order lab's second section: one sweep, or two side by side, after any number of blocks."""

from functools import partial

import streamlit as st

from app import components, words
from app.components import URL
from app.figures.sweeps import sweep_state
from app.lab.sweeps import LARGEST_TRACE, Bench
from app.lab.your_order import SHARES, label
from rose.layer.registry import order_names

BESIDE = {"none": "nothing", "order": "natural order", "shares": "the other shares"}


def draw(bench: Bench) -> None:
    pairs = _choose(bench)
    needed = len(pairs) * bench.trace_bytes
    if needed > LARGEST_TRACE:
        components.warning(f"Recording this would take {words.size(needed)}; choose larger blocks, or a smaller layer.")
        return
    pieces = [partial(bench.traced, *pair) for pair in pairs]
    if components.finished(pieces, "lab-sweep", (bench.place, *pairs)):
        components.live(lambda: _state(bench, pairs), None)  # the slider draws the figure alone


def _choose(bench: Bench) -> list[tuple[str, str]]:
    """Order and budget of the sweep, and of the sweep beside it."""
    names = [name for name in order_names() if name != "random"]
    shares = {name: SHARES[name][0] for name in ("block", "layer")}
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="lab-inside"):
        with components.labelled("Order"):
            order = st.selectbox(
                "Order", names, names.index("two_level"), format_func=label, key="lab_sweep_order", bind=URL, width=190,
                label_visibility="collapsed",
            )  # fmt: skip
        budget = "block"
        if not bench.plan.pattern.is_grouped:
            with components.labelled("Shares"):
                budget = components.choose("Shares of blocks", shares, "lab_sweep_budget", label_visibility="collapsed")
        with components.labelled("Beside it"):
            beside = components.choose("Beside it", BESIDE, "lab_sweep_beside", label_visibility="collapsed")
    other = {"order": ("natural", budget), "shares": (order, "layer" if budget == "block" else "block")}
    return list(dict.fromkeys([(order, budget), *([other[beside]] if beside in other else [])]))


def _state(bench: Bench, pairs: list[tuple[str, str]]) -> None:
    results, blocks = [bench.traced(*pair) for pair in pairs], len(bench.plan.block_width)
    if not 0 <= st.session_state.get("lab_step", 0) <= blocks:
        del st.session_state.lab_step
    with components.labelled("Blocks pruned"):
        step = st.slider(
            "Blocks pruned", 0, blocks, blocks // 2, key="lab_step", bind=URL, width=420, label_visibility="collapsed"
        )
    components.show(sweep_state(results, step, bench.dense_energy, **components.look(bench.layer)), "lab-sweep")
