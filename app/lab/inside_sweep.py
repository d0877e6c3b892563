"""The order lab's section that plays one sweep, or two side by side, and splits what each block costs."""

from __future__ import annotations

from functools import partial
from typing import Any

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
    pairs, show = _choose_sweeps()
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
        share, energy = inside(study, layer, order, budget), dense_energy(study, layer)
        drawn = figures.damage_split(result, share, energy=energy, **look)
        components.show(drawn, f"lab-damage-{budget}-{order.partition(':')[0]}")


def _choose_sweeps() -> tuple[list[tuple[str, str]], Any]:
    """Order and budget of the sweep, and of the sweep chosen to compare; and what is shown of weights."""
    places = iter(st.columns(4))

    def choose(title: str, options: dict[str, str], key: str, index: int = 0) -> Any:
        shown = options.__getitem__
        return next(places).selectbox(title, list(options), index, format_func=shown, key=key, bind=URL)

    orders = {name: label(name) for name in order_names() if name != "random"}
    order = choose("Order", orders, "lab_sweep_order", list(orders).index("two_level"))
    budget = choose("Shares of blocks", BUDGETS, "lab_sweep_budget")
    comparisons = {ALONE: "Nothing", "order": "Natural order", "budget": "The other shares"}
    beside = choose("Beside it", comparisons, "lab_sweep_beside")
    show = choose("Show", {"weights": "|W|", "change": "Change"}, "lab_show")
    other = {"order": ("natural", budget), "budget": (order, "layer" if budget == "block" else "block")}
    return list(dict.fromkeys([(order, budget), *([other[beside]] if beside in other else [])])), show
