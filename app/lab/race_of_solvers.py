"""How the methods get there, on the chosen layer: a sweep, its refit, stages and ADMM race each other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import streamlit as st

from app import components, words
from app.components import URL
from app.figures import sweeps as figures
from app.lab.controls import label
from app.runs.pruning import PruningRun
from app.study.solvers import LABELS, Watched, offered, watched
from app.study.study import Study
from rose.layer.registry import order_names

TITLE = "How the methods get there"
STEP = 1.0  # products


def draw(run: PruningRun | None) -> None:
    """`run` is the one on the page, which may have pruned other layers than the study has."""
    study, layer = components.require_layer("Here the solvers behind the methods race each other on one layer")
    solvers = offered(study)
    st.caption(description(layer, solvers, run))
    left, stage = st.columns((1, 2.7))
    orders = [name for name in order_names() if name != "random"]
    with left:
        names = st.pills(
            "Solvers", solvers, selection_mode="multi", default=solvers, key="race_solvers", bind=URL,
            format_func=LABELS.__getitem__, wrap=True,
        )  # fmt: skip
        order = st.selectbox(
            "Order of the sweeps",
            orders,
            format_func=label,
            key="race_solver_order",
            bind=URL,
            help="Natural is SparseGPT's order; ROSE dealt deals costly columns over the blocks. ADMM has no order.",
        )
    with stage:
        if not names:
            st.info("Choose at least one solver on the left.")
            return
        pieces = [partial(watched, study, layer, name, order) for name in names]
        if not components.finished(pieces, "solvers", (study.created, layer, order, tuple(names)), "solver"):
            return
    ways, called = {name: watched(study, layer, name, order) for name in names}, labels(order)
    most = max(float(way.table["work"].iloc[-1]) for way in ways.values())
    last = round(most / STEP + 0.5) * STEP
    with left:
        if (st.session_state.get("race_work") or 0) > last:  # of a wider layer
            st.session_state.race_work = last
        work = st.slider("Work so far (products W·H)", 0.0, last, last, STEP, "%.0f", key="race_work", bind=URL)
        shown = components.choose("Mask of", {name: LABELS[name] for name in names}, "race_mask_of", default=names[-1])
        since = components.choose("Changed since", {"step": "Its last step", "sweep": "The sweep"}, "race_mask_since")
    with stage:
        tables = {solver: (called[solver], way.table) for solver, way in ways.items()}
        has_held_out = study.held_out_statistics(layer) is not None
        drawn = figures.solver_race(tables, work, held_out=has_held_out, **components.look(layer))
        components.show(drawn, "solver-race")
        _mask(study, layer, ways[shown], shown, order, since, work)


def labels(order: str) -> dict[str, str]:
    """Labels of the solvers; solvers that sweep have their order in the label, as it decides their error."""
    return {name: text if name == "admm" else f"{text}, {label(order).lower()} order" for name, text in LABELS.items()}


def description(layer: str, solvers: Sequence[str], run: PruningRun | None) -> str:
    """The solvers' steps, the methods that use them, and whether the run has pruned the layer."""
    is_other = run is not None and not any((copy.layers["layer"] == layer).any() for copy in run.copies)
    return (
        f"{words.sentence(words.count(len(solvers), 'solver'))} remove the same number of weights from "
        f"**{words.short_layer(layer)}**{', a layer of your study that this run did not prune' if is_other else ''}. "
        "SparseGPT sweeps once in natural order, ROSE once in two-level order where a layer is columnar. ROSE dealt "
        "sweeps once in dealt order, then refits; ROSE ADMM uses ADMM."
        + (" No method prunes in five stages; they are here to compare." if "stages" in solvers else "")
    )


def _mask(study: Study, layer: str, way: Watched, solver: str, order: str, since: str, work: float) -> None:
    state = way.at(work)
    if state < 0:
        components.info(f"{LABELS[solver]} has no mask yet. Move the slider on.")
        return
    before, since_label = way.mask(state - 1), "its last step" if state else "the dense layer"
    if since == "sweep":
        before, since_label = watched(study, layer, "sweep", order).mask(0), "the sweep"
    options = components.look(layer, solver=LABELS[solver], step=str(way.table["step"].iloc[state]), since=since_label)
    components.show(figures.mask_changes(way.mask(state), before, **options), "mask-changes")
