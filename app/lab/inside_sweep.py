"""The order lab's section that plays one sweep, or two side by side, and splits what each block costs."""

from __future__ import annotations

from functools import partial

import streamlit as st

from app import components, words
from app.components import URL
from app.figures import orders as figures
from app.figures.sweeps import sweep_film
from app.lab.controls import BUDGETS, label
from app.lab.sweeps import LARGEST_TRACE, dense_energy, inside, trace_bytes
from app.study.study import Study
from rose.layer.registry import order_names

ALONE = "none"  # no second sweep beside the first


def draw(study: Study, layer: str) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        pairs = _choose_sweeps()
        show = components.choose("Show", {"weights": "|W|", "change": "Change"}, "lab_show")
    needed = len(pairs) * trace_bytes(study, layer)
    if needed > LARGEST_TRACE:
        components.warning(
            f"Recording this would take {words.size(needed)}; choose a larger block size on the start page, or a "
            "smaller layer."
        )
        return
    pieces = [partial(inside, study, layer, order, budget) for order, budget in pairs]
    if not components.finished(pieces, "lab-sweep", (study.created, layer, *pairs)):
        return
    results = {pair: study.prune(layer, order=pair[0], budget=pair[1], trace=True) for pair in pairs}
    look = components.look(layer)
    components.show(sweep_film(list(results.values()), dense_energy(study, layer), show=show, **look), "lab-sweep")
    for (order, budget), result in results.items():
        drawn = figures.damage_split(result, inside(study, layer, order, budget), **look)
        components.show(drawn, f"lab-damage-{budget}-{order.partition(':')[0]}")


def _choose_sweeps() -> list[tuple[str, str]]:
    """Order and budget of the sweep, and of the sweep chosen to compare."""
    orders = [name for name in order_names() if name != "random"]
    order = st.selectbox(
        "Order", orders, index=orders.index("two_level"), format_func=label, key="lab_sweep_order", bind=URL, width=180
    )
    budget = components.choose("Shares of blocks", BUDGETS, "lab_sweep_budget")
    comparisons = {ALONE: "Nothing", "order": "Natural order", "budget": "The other shares"}
    beside = components.choose("Beside it", comparisons, "lab_sweep_beside")
    other = {"order": ("natural", budget), "budget": (order, "layer" if budget == "block" else "block")}
    return list(dict.fromkeys([(order, budget), *([other[beside]] if beside in other else [])]))
