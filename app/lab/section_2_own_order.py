"""The order lab's section in which people make an order of their own, block by block."""

from __future__ import annotations

from math import isnan
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

import rose
from app import components, words
from app.figures import losses
from app.figures import orders as figures
from app.lab.controls import choose_budget, label, outcomes
from app.lab.sweeps import (
    BASELINE,
    WHOLE_BLOCK_ORDERS,
    PlannedSweep,
    SweepResult,
    arrange,
    dense_energy,
    read_own,
    times,
    write_own,
)
from app.study.study import Study
from rose import verdicts
from rose.layer.order import visited_blocks
from rose.layer.registry import order_names


def own_state(study: Study, layer: str, plan: rose.OrderPlan) -> dict[str, Any]:
    """The current order and its history: {"base", "steps", "past"}; a fresh one for every layer."""
    place = (study.created, layer)
    state = st.session_state.get("lab_own")
    if state is None or state["place"] != place:
        linked = read_own(st.query_params.get("own", ""), plan) if state is None else None
        base, steps = linked or ("natural", list(range(len(plan.block_width))))
        state = st.session_state.lab_own = {"place": place, "base": base, "steps": steps, "past": []}
    return state


def change_own(base: str, steps: list[int]) -> None:
    """Callback: changes the order; the former one can be restored."""
    state = st.session_state.lab_own
    if (base, steps) != (state["base"], state["steps"]):
        state["past"] = [*state["past"], (state["base"], state["steps"])]
        state["base"], state["steps"] = base, steps


def move_own(block: int, to: int) -> None:
    state = st.session_state.lab_own
    steps = [step for step in state["steps"] if step != block]
    steps.insert(to, block)
    change_own(state["base"], steps)


def undo_own() -> None:
    state = st.session_state.lab_own
    *state["past"], (state["base"], state["steps"]) = state["past"]


def draw(study: Study, layer: str, left: DeltaGenerator, stage: DeltaGenerator) -> None:
    plan = study.plan(layer)
    state = own_state(study, layer, plan)
    with left:
        block, budget = own_controls(plan, state)
    order = arrange(plan, state["base"], state["steps"])
    st.query_params["own"] = write_own(state["base"], state["steps"])
    sweeps = [
        PlannedSweep(order, budget),
        PlannedSweep("natural", budget),
        PlannedSweep("two_level", budget),
        PlannedSweep(*BASELINE),
    ]
    with stage:
        made = outcomes(study, layer, sweeps, "lab-own")
        if made is None:
            return
        yours, natural, ordered, base = made
        against = [("SparseGPT", base), ("natural order", natural), ("two-level order", ordered)]
        against = against[1:] if base.sweep.key == natural.sweep.key else against
        tiles = st.columns(1 + len(against))
        for place, (name, one) in zip(tiles, [("your order", yours), *against], strict=True):
            tile(place, words.sentence(name), one, base)
        # Where nothing has been moved, the order is still the named one.
        results = {figures.run_name(one.result): one.result for one in (natural, ordered)} | {"custom": yours.result}
        look, marked = components.look(layer), block if state["base"] in WHOLE_BLOCK_ORDERS else None
        energy = dense_energy(study, layer)
        sparsegpt = float(figures.relative_curves({"natural": base.result}, energy)["natural"][-1])  # added up alike
        drawn = figures.error_curve(
            figures.relative_curves(results, energy), reference=("SparseGPT", sparsegpt), **look
        )
        components.show(drawn, "lab-own-curve")
        components.show(losses.order_picture(plan, order, marked_block=marked, **look), "lab-own-picture")


def tile(place: DeltaGenerator, name: str, one: SweepResult, base: SweepResult) -> None:
    """The final error on held-out tokens, where there are any, and in small that on calibration tokens."""
    is_base, errors = one.sweep.key == base.sweep.key, [(one.error, base.error)]
    if not isnan(one.held_out_error):
        errors.insert(0, (one.held_out_error, base.held_out_error))
    (error, reference), *other = errors
    change = times(error, reference) - 1
    colour: Any = "off" if abs(change) <= verdicts.SAME or is_base else "green" if change < 0 else "red"
    with place.container(border=True, height="stretch"):
        st.metric(name, f"{error:.5f}", against_base(error, reference, is_base), colour, delta_arrow="off")
        for error, reference in other:
            st.caption(f"Calibration: {error:.5f}, {against_base(error, reference, is_base)}")


def against_base(error: float, reference: float, is_base: bool) -> str:
    """The final error against SparseGPT's, which all per cent here are of.

    "21.1 % less": a tile has no room for its name, which the one beside it bears.
    """
    said = verdicts.says_change(error, reference, "SparseGPT", "").removesuffix(" than SparseGPT")
    return "SparseGPT" if is_base else said


def own_controls(plan: rose.OrderPlan, state: dict[str, Any]) -> tuple[int | None, str]:
    """Widgets that change the order; returns the block to move, None if it is not an original one, and the budget."""
    count = len(plan.block_width)
    st.session_state.lab_own_base = state["base"].partition(":")[0]
    st.selectbox(
        "Start from",
        order_names(),
        key="lab_own_base",
        format_func=label,
        on_change=lambda: change_own(st.session_state.lab_own_base, list(range(count))),
    )
    base = rose.make_order(plan, state["base"])
    visited = visited_blocks(plan, base)
    losses = [float(part.mean()) for part in plan.column_loss[base.permutation].split(list(base.widths))]

    def describe(step: int) -> str:
        name = f"#{step + 1}, mixed columns" if visited[step] is None else f"Block {visited[step]}"
        return f"{name} · loss {words.number(losses[step])} per column"

    if st.session_state.get("lab_own_block") not in range(count):
        st.session_state.lab_own_block = int(max(range(count), key=lambda step: losses[step]))
    chosen = st.selectbox("Block to move", range(count), key="lab_own_block", format_func=describe)
    now = state["steps"].index(chosen)
    if count > 1:
        st.session_state.lab_own_position = now + 1
        st.slider(
            "Position (1 is pruned first)",
            1,
            count,
            key="lab_own_position",
            on_change=lambda: move_own(chosen, st.session_state.lab_own_position - 1),
        )
    own_buttons(state, chosen, now)
    budget = choose_budget("lab_own_budget")
    sequence = " → ".join(f"#{s + 1}" if visited[s] is None else str(visited[s]) for s in state["steps"])
    st.caption(f"Blocks as visited: {sequence}")
    return visited[chosen], budget


def own_buttons(state: dict[str, Any], block: int, now: int) -> None:
    """Moves a block from position `now`, undoes the last change, or begins anew."""
    last = len(state["steps"]) - 1
    ways = {"first": ("first_page", 0), "earlier": ("chevron_left", now - 1)}
    ways |= {"later": ("chevron_right", now + 1), "last": ("last_page", last)}
    for place, (way, (icon, to)) in zip(st.columns(4), ways.items(), strict=True):
        place.button(
            f":material/{icon}:",
            key=f"lab-own-{way}",
            on_click=move_own,
            args=(block, to),
            disabled=now == (0 if way in ("first", "earlier") else last),
            help=way.capitalize(),
            width="stretch",
        )
    undo, reset = st.columns(2)
    undo.button(
        "Undo",
        icon=":material/undo:",
        key="lab-own-undo",
        on_click=undo_own,
        disabled=not state["past"],
        width="stretch",
    )
    natural = ("natural", list(range(last + 1)))
    reset.button(
        "Reset",
        icon=":material/restart_alt:",
        key="lab-own-reset",
        on_click=change_own,
        args=natural,
        disabled=(state["base"], state["steps"]) == natural,
        width="stretch",
    )
