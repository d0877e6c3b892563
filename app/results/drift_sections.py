"""Compare runs by hidden-state error: drift by depth, where it arises, what is repaired; and two targets compared."""

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from app import components, session, words
from app.components.work import follow
from app.figures import drift as figures
from app.forms import study_form
from app.forms.widgets import priced
from app.results import drift
from app.runs.pruning import PruningRun
from rose import RunReport

DRIFT, ORIGIN, REPAIR = "Hidden-state error by depth", "Where it arises", "What is repaired"
SECTIONS = (DRIFT, ORIGIN, REPAIR)
DRIFT_SCALE = (
    "Drift 0: the hidden states are those of the dense model. Drift 1: the difference is as large as the dense hidden "
    "states themselves."
)
COMPARING = "comparing"  # the place of this session's latest comparison


def draw(view: str, runs: Sequence[RunReport]) -> None:
    known = [run for run in runs if run.drift]
    if not known:
        st.info(
            "None of these runs has drift: how far the hidden states of a pruned model move from the dense model's, "
            "block by block. Prune with held-out tokens (--held-out 4), or compare two targets above."
        )
        return
    if without := ", ".join(run.name for run in runs if not run.drift):
        st.caption(
            f"Left out, as they have no drift: {words.plain(without)}. It is measured while layers are pruned, with "
            "held-out tokens."
        )
    if view != DRIFT:
        known = [run for run in known if drift.knows_origin(run)]
        if not known:
            st.info(
                "Of these runs only the drift is known, not where it arises: that is measured while a model is pruned."
            )
            return
    {DRIFT: _drift, ORIGIN: _origin, REPAIR: _repair}[view](drift.drift_table(known), known)


def _drift(table: pd.DataFrame, runs: Sequence[RunReport]) -> None:
    scale = components.choose("Scale", {"linear": "linear", "log": "log"}, "runs_scale")
    finding = drift.drift_finding(runs)
    drawing = figures.drift_curves(table, scale=scale, finding=finding, theme=session.theme())
    components.show(drawing, "runs-drift")
    st.caption(f"{DRIFT_SCALE} The output head reads those after the last decoder block.")
    _facts(table)


def _origin(table: pd.DataFrame, runs: Sequence[RunReport]) -> None:
    run = runs[0].name
    if len(runs) > 1:
        known = {one.name: one.identity for one in runs}
        components.keep_choice("runs_origin", known)
        run = st.selectbox("Run", list(known), key="runs_origin", bind=components.URL)
    components.show(figures.drift_shares(table[table["run"] == run], theme=session.theme()), "runs-origin")
    st.caption(
        "Passed on: the drift that the block would hand on with its dense weights. Arisen: what pruning its layers "
        "changes. Both are squared distances, so they add up only where the two are uncorrelated; layers that "
        "repair earlier errors cancel part of them."
    )


def _repair(table: pd.DataFrame, runs: Sequence[RunReport]) -> None:
    drawing = figures.cancelled_shares(table, problem=drift.drift_problem(runs), theme=session.theme())
    components.show(drawing, "runs-repair")
    st.caption(
        "Passed on: the drift that the block would hand on with its dense weights. With target dense, weights "
        "change so that the drift arising in a block works against the drift passed on."
    )
    _facts(table)


def _facts(table: pd.DataFrame) -> None:
    runs = table.drop_duplicates("run")
    facts = {"Perplexity of the runs shown": "perplexity", "Damping μ of their corrections": "target_damping"}
    for name, column in facts.items():
        known = runs.dropna(subset=[column])
        if len(known):
            pairs = zip(known["run"], known[column], strict=True)
            listed = "; ".join(f"{run}: {words.number(float(value))}" for run, value in pairs)
            st.caption(words.plain(f"{name}: {listed}."))


def follow_comparison() -> None:
    comparison: PruningRun | None = st.session_state.get(COMPARING)
    if comparison is not None:
        copies = comparison.copies
        rest = f" after {words.count(len(copies), 'copy', 'copies')}; what is finished is shown."
        follow(comparison, "comparison", rest, found=lambda: len(copies))


def compare_button() -> None:
    """Starts a comparison of two targets on the set-up of this session."""
    setup, request = drift.small_comparison(session.setup())
    running = st.session_state.get(COMPARING)
    cost, problem = priced(setup, request)
    if setup.stream:
        cost, problem = None, "The weights of this model stay on disk; a comparison needs them in memory."

    def begin() -> None:
        st.session_state["runs-usual"] = st.session_state.get("runs")  # so that what is shown follows the new runs
        what = "waterfall_chart: Comparing targets"
        session.start_run(COMPARING, session.new_pruning(setup, request), what)

    st.button(
        f"Compare two targets{'' if cost is None else ', about ' + components.lasting(cost)}",
        key="compare-targets",
        icon=":material/play_arrow:",
        on_click=begin,
        disabled=bool(problem) or (running is not None and running.job.status == "running"),
        width="stretch",
        help=words.plain(problem)
        or f"SparseGPT at {setup.sparsity} with target layer and with target dense, on {setup.samples} × "
        f"{setup.length} tokens of {words.text_name(setup.text)}, drift on {setup.held_out} held-out samples of it. "
        "Target layer: each layer keeps its own output on the pruned inputs, as in the papers. Target dense: it "
        "aims at the dense model's output, and so repairs what came before it.",
    )
    study_form.say_hub(setup)
