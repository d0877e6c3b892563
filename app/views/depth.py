"""Depth: where does the model lose its way?"""

from __future__ import annotations

import pandas as pd
import streamlit as st

import rose
from app import components, session, shared, words
from app.components import URL
from app.figures import depth as figures
from app.runs import depth
from app.runs.pruning import PruningRun
from app.runs.request import estimate

PRUNE_PAGE = "views/prune.py"
DRIFT, ORIGIN, REPAIR = "Drift", "Where it arises", "What is repaired"
SECTIONS = {name: name for name in (DRIFT, ORIGIN, REPAIR)}
SHOWN = 6  # runs that are shown if nobody chooses; more lines cannot be told apart


def draw() -> None:
    st.title("Depth: where does the model lose its way?")
    comparison = session.comparing()
    if comparison is not None:
        _follow(comparison)
    named = depth.name_runs([*(report for report in shared.reports() if depth.has_drift(report)), *_opened()])
    if not named:
        _empty()
        return
    chosen = _choose(named)
    if not chosen:
        st.info("Choose at least one run.")
        return
    table = depth.drift_table({name: named[name] for name in chosen})
    view = components.section(SECTIONS, "depth_view")
    {DRIFT: _drift, ORIGIN: _origin, REPAIR: _repair}[view](table)
    _perplexities(table)


# Runs


def _opened() -> list[rose.RunReport]:
    """The reports of the saved runs that the user names."""
    with st.expander("Runs", icon=":material/folder_open:", key="depth-sources"):
        one, two = st.columns([2, 1], vertical_alignment="bottom")
        path = one.text_input(
            "Open a saved run: its folder",
            key="depth_path",
            bind=URL,
            placeholder="pruned/",
            help="The folder that `rose prune` or the Prune page has written, or one that holds several such folders. "
            "It must have been given held-out tokens: drift is measured on them.",
        )
        with two:
            _compare_button()
        st.caption("Runs of the Prune page of this server are in the list below as soon as a copy is finished.")
        if not path.strip():
            return []
        try:
            return depth.read_reports(path)
        except rose.RoseError as problem:
            st.error(str(problem), icon=":material/error:")
            return []


def _choose(named: dict[str, rose.RunReport]) -> list[str]:
    names = list(named)
    state = st.session_state
    if state.get("depth_names") != names:  # new runs join what is shown
        known = state.get("depth_names", [])
        kept = [name for name in state.get("depth_runs", []) if name in names]
        state.depth_runs = (kept + [name for name in names if name not in known])[-SHOWN:]
        state.depth_names = names
    return st.multiselect("Runs to compare", names, key="depth_runs", help="Prune more copies on the Prune page.")


def _empty() -> None:
    with st.container(border=True, horizontal_alignment="center", gap="small"):
        st.markdown("**How far the hidden states of a pruned model have moved from the dense model's, block by block**")
        st.markdown(
            "Compare two targets on the chosen model: each layer keeps its own output, as in the papers, or makes up "
            "for the layers before it. Or prune on the Prune page, or open a saved run above."
        )
        st.page_link(PRUNE_PAGE, label="Prune copies of the model", icon=":material/content_cut:")


def _compare_button() -> None:
    setup, request = depth.small_comparison(session.setup())
    running = session.comparing()
    problem, cost = "", ""
    try:
        skeleton = shared.skeleton(setup.model)
        request.check(setup, skeleton)
        cost = f"about {components.duration(max(1.0, estimate(skeleton, setup, request).seconds))}"
    except rose.RoseError as wrong:
        problem = str(wrong)
    st.button(
        f"Compare two targets{', ' + cost if cost else ''}",
        key="depth-compare",
        type="primary",
        icon=":material/play_arrow:",
        on_click=session.start_comparing,
        args=(setup, request),
        disabled=bool(problem) or (running is not None and running.job.status == "running"),
        width="stretch",
        help=problem
        or f"SparseGPT at {setup.sparsity} with target layer and with target dense, on {setup.samples} × "
        f"{setup.length} tokens of {setup.text}, drift on {setup.held_out} held-out samples of {setup.model}.",
    )


def _follow(run: PruningRun) -> None:
    """The small comparison at work, or how it ended where it was not finished."""
    status, finished = run.job.status, len(run.copies)
    if status == "failed":
        st.error(run.job.message, icon=":material/error:")
    elif status == "cancelled":
        components.stopped(run.job, f" after {words.count(finished, 'copy', 'copies')}; what is finished is shown.")
    if status != "running":
        return

    def poll() -> None:
        run.job.watch(session.viewer())
        left = "" if run.remaining is None else f", about {components.duration(run.remaining)} left"
        st.progress(run.fraction, text=f"{run.doing}. {components.duration(run.seconds)} so far{left}")
        components.cancel_button(run.job, "depth")
        if run.job.status != "running" or len(run.copies) != finished:
            st.rerun()

    components.live(poll, 1.0)


# Sections


def _drift(table: pd.DataFrame) -> None:
    scale = components.choose("Scale", {"linear": "linear", "log": "log"}, "depth_scale", label_visibility="collapsed")
    components.show(figures.drift_curves(table, scale=scale, theme=session.theme()), "depth-drift")


def _origin(table: pd.DataFrame) -> None:
    names = list(dict.fromkeys(table["run"]))
    run = st.selectbox("Run", names, key="depth_run", label_visibility="collapsed") if len(names) > 1 else names[0]
    components.show(figures.drift_shares(table[table["run"] == run], theme=session.theme()), "depth-origin")
    st.caption(
        "Passed on: what the block's dense weights would have made of the drift that it received. Arisen: what pruning "
        "its layers changed. Both are squared distances, so they add up to the drift only where they are unrelated."
    )


def _repair(table: pd.DataFrame) -> None:
    components.show(figures.repaired_shares(table, theme=session.theme()), "depth-repair")


def _perplexities(table: pd.DataFrame) -> None:
    known = table.drop_duplicates("run").dropna(subset=["perplexity"])
    if len(known):
        listed = ", ".join(
            f"{run} {words.number(float(value))}" for run, value in zip(known["run"], known["perplexity"], strict=True)
        )
        st.caption(f"Perplexity of the runs shown: {listed}.")


draw()
