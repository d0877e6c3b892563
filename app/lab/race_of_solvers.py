"""How solvers lower the error of the chosen layer: a sweep, its refit, stages and ADMM, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import components, words
from app.components import URL
from app.figures import sweeps as figures
from app.lab.sections import label, single_orders
from app.runs import example
from app.runs.pruning import PruningRun
from app.study.study import Study, error_on
from rose.layer.pattern import parse_sparsity
from rose.layer.solvers import SOLVERS, watch_solver

LABELS = {"sweep": "One sweep", "refit": "Sweep and refit", "stages": "Five stages", "admm": "ADMM"}
SINCE = {"step": "Its last step", "sweep": "The sweep"}
TITLE = "How the methods get there"
STEP = 1.0  # products


def draw(run: PruningRun | None) -> None:
    """Draws the example's race until somebody asks for the chosen layer; `run`, on the page, may not have pruned it."""
    study, layer = components.require_layer("Here the solvers behind the methods race each other on one layer")
    is_grouped, subject = parse_sparsity(study.setup.sparsity).is_grouped, (study.subject, layer)
    is_asked = st.session_state.get("solvers-asked") == subject
    solvers = [name for name in SOLVERS if not (is_grouped and name == "stages")]  # stages cannot reach N:M
    shown = layer if is_asked else example.race()[0]
    if not is_asked:
        components.example(f"solvers on {words.short_layer(shown)}", ", in the study that comes with the app")
    st.caption(description(shown, run if is_asked else None))
    left, stage = st.columns((1, 2.7))
    with left:
        names = st.pills(
            "Solvers", solvers, selection_mode="multi", default=solvers, key="race_solvers", bind=URL,
            format_func=LABELS.__getitem__, wrap=True,
        )  # fmt: skip
        if is_asked:
            help = "Natural is SparseGPT's order; ROSE dealt deals costly columns over the blocks. ADMM has no order."
            look: dict[str, Any] = {"format_func": label, "key": "race_solver_order", "bind": URL, "help": help}
            order = st.selectbox("Order of the sweeps", single_orders(), **look)
        else:
            begin = partial(st.session_state.update, {"solvers-asked": subject})
            st.button("Run them on your layer", icon=":material/play_arrow:", key="solvers-begin", on_click=begin)
    with stage:
        if not names:
            st.info("Choose at least one solver on the left.")
        elif not is_asked:
            _race(shown, {name: table for name, table in example.race()[1].items() if name in names}, "natural", left)
        else:
            pieces = [partial(watched, study, layer, name, order) for name in names]
            if components.finished(pieces, "solvers", (study.subject, layer, order, tuple(names)), "solver"):
                ways = {name: watched(study, layer, name, order) for name in names}
                work = _race(layer, {name: way.table for name, way in ways.items()}, order, left)
                _mask(study, layer, ways, order, work, left)


def _race(layer: str, tables: dict[str, pd.DataFrame], order: str, left: DeltaGenerator) -> float:
    """Errors against work; returns the work chosen on the left."""
    last = round(max(float(table["work"].iloc[-1]) for table in tables.values()) / STEP + 0.5) * STEP
    if (st.session_state.get("race_work") or 0) > last:  # the value of a wider layer
        st.session_state.race_work = last
    work = left.slider("Work so far (products W·H)", 0.0, last, last, STEP, "%.0f", key="race_work", bind=URL)
    # Order decides the error of the solvers that sweep, so their labels name it.
    swept = f", {label(order).lower()} order"
    ways = {name: (LABELS[name] + (swept if name != "admm" else ""), table) for name, table in tables.items()}
    has_held_out = all(table["held_out_error"].notna().all() for table in tables.values())
    components.show(figures.solver_race(ways, work, held_out=has_held_out, **components.look(layer)), "solver-race")
    return work


def description(layer: str, run: PruningRun | None) -> str:
    """The methods that use the solvers, and whether the run has pruned the layer."""
    text = "SparseGPT and ROSE sweep once, ROSE dealt also refits, ROSE ADMM uses ADMM."
    if run is None or any((copy.layers["layer"] == layer).any() for copy in run.copies):
        return text
    return f"{text} This run did not prune {words.short_layer(layer)}, a layer of your study."


def _mask(study: Study, layer: str, ways: dict[str, Watched], order: str, work: float, left: DeltaGenerator) -> None:
    with left:
        solver = components.choose(
            "Mask of", {name: LABELS[name] for name in ways}, "race_mask_of", default=[*ways][-1]
        )
        since = components.choose("Changed since", SINCE, "race_mask_since")
    way = ways[solver]
    state = way.at(work)
    if state < 0:
        components.info(f"{LABELS[solver]} has no mask yet. Move the slider on.")
        return
    before, since_label = way.mask(state - 1), "its last step" if state else "the dense layer"
    if since == "sweep":
        before, since_label = watched(study, layer, "sweep", order).mask(0), "the sweep"
    options = components.look(layer, solver=LABELS[solver], step=str(way.table["step"].iloc[state]), since=since_label)
    components.show(figures.mask_changes(way.mask(state), before, **options), "mask-changes")


@dataclass(frozen=True)
class Watched:
    """The states of one solver."""

    table: pd.DataFrame  # a row for each state; "changed": mask entries that differ from the state before
    masks: list[np.ndarray]  # of each state, eight columns a number as `np.packbits` has them, (out, ⌈in/8⌉) uint8
    columns: int  # of the layer

    def mask(self, state: int) -> np.ndarray:
        """True = removed, (out, in) bool; nothing is removed before the first state, -1."""
        if state < 0:
            return np.zeros((len(self.masks[0]), self.columns), dtype=bool)
        return np.unpackbits(self.masks[state], axis=1, count=self.columns).astype(bool)

    def at(self, work: float) -> int:
        """The last state reached with this work; -1 if none."""
        return int((self.table["work"] <= work + 1e-9).sum()) - 1


def watched(study: Study, layer: str, solver: str, order: str) -> Watched:
    """Runs the solver, unless it has been run before."""
    order = "" if solver == "admm" else order  # ADMM has no order
    return study.remember(("solver", layer, solver, order), lambda: _watch(study, layer, solver, order or "natural"))


def _watch(study: Study, layer: str, solver: str, order: str) -> Watched:
    weight, statistics, held_out = study.weight(layer), study.statistics(layer), study.held_out_statistics(layer)
    states = watch_solver(solver, weight, statistics, order=order, **study.layer_options())
    rows, masks, last = [], [], None
    for state in states:
        mask = state.mask.cpu().numpy()
        masks.append(np.packbits(mask, axis=1))
        counts = int(mask.sum()), int((mask if last is None else mask != last).sum())
        errors = [error_on(inputs, weight, state.weight) for inputs in (statistics, held_out)]
        rows.append((state.step, state.work, state.is_complete, *counts, *errors))
        last = mask
    columns = ["step", "work", "is_complete", "removed", "changed", "relative_error", "held_out_error"]
    return Watched(pd.DataFrame(rows, columns=columns), masks, weight.shape[1])
