"""Hidden-state error by depth."""

from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from app import components, session, shared, words
from app.figures import depth as figures
from app.runs import depth, finished
from app.runs.finished import FinishedRun
from app.runs.pruning import PruningRun
from app.runs.widgets import follow, left_out, priced, saved

PRUNE_PAGE = "views/prune.py"
DRIFT, ORIGIN, REPAIR = "Drift", "Where it arises", "What is repaired"
SECTIONS = {name: name for name in (DRIFT, ORIGIN, REPAIR)}
COMPARING = "comparing"  # the place of this session's latest comparison
SHOWN = 6  # runs that are shown if nobody chooses; more lines cannot be told apart


def draw() -> None:
    st.title("Depth: hidden-state error by depth")
    components.edited_setup()
    comparison: PruningRun | None = st.session_state.get(COMPARING)
    if comparison is not None:
        copies = comparison.copies
        rest = f" after {words.count(len(copies), 'copy', 'copies')}; what is finished is shown."
        follow(comparison, "depth", rest, found=lambda: len(copies))
    with st.expander(
        "More runs: open a saved one, or run a comparison", icon=":material/folder_open:", key="depth-sources"
    ):
        left, right = st.columns([2, 1], vertical_alignment="bottom")
        with left:
            opened = _opened()
    here = [run for report in list(shared.reports()) for run in finished.runs_of(report) if run.drift]
    named = finished.name_apart([*here, *opened])
    if not named:
        _empty()
        return
    with right:
        _compare_button()
    known = {name: run.identity for name, run in named.items()}
    chosen = _choose(known)
    if not chosen:
        st.info("Choose at least one run.")
        return
    table = depth.drift_table([named[name] for name in chosen])
    with st.container(horizontal=True, vertical_alignment="center"):
        view = components.section(SECTIONS, "depth_view", width="content")
        option = _option(view, {name: known[name] for name in chosen})
    if view == DRIFT:
        components.show(figures.drift_curves(table, scale=option, theme=session.theme()), "depth-drift", wide=True)
        st.caption(
            "Drift 0: the hidden states are those of the dense model. Drift 1: they are as far away as if there were "
            "none. The output head reads those after the last decoder block."
        )
    elif view == ORIGIN:
        components.show(
            figures.drift_shares(table[table["run"] == option], theme=session.theme()), "depth-origin", wide=True
        )
        st.caption(
            "Passed on: the drift that the block would hand on with its dense weights. Arisen: what pruning its layers "
            "changes. Both are squared distances, so they add up only where the two are uncorrelated; layers that "
            "repair earlier errors cancel part of them."
        )
    else:
        components.show(figures.cancelled_shares(table, theme=session.theme()), "depth-repair", wide=True)
        st.caption(
            "Passed on: the drift that the block would hand on with its dense weights. With target dense the weights "
            "change such that what arises works against it."
        )
    _facts(table)


def _opened() -> list[FinishedRun]:
    runs = saved(
        "depth_path",
        "Folders of saved runs",
        partial(finished.read_runs, skip=left_out),
        "Folders written by `rose prune`, `rose slim` or the Prune page, or one that holds several such folders; "
        "separated by semicolons. The runs need held-out tokens: drift is measured on them.",
    )
    without = ", ".join(run.name for run in runs if not run.drift)
    if without:
        st.caption(
            f"Left out, as they have no drift: {words.plain(without)}. It is measured while layers are pruned, with "
            "held-out tokens."
        )
    return [run for run in runs if run.drift]


def _choose(identities: dict[str, Any]) -> list[str]:
    names = list(identities)
    state = st.session_state
    known = components.keep_choice("depth_runs", identities)
    if "depth_runs" not in state:  # the page has been left
        state.depth_runs = names[-SHOWN:]
    elif new := [name for name in names if name not in known]:  # they join what is shown
        state.depth_runs = [*state.depth_runs, *new][-SHOWN:]
    return st.multiselect(
        "Runs to compare",
        names,
        key="depth_runs",
        help="Runs on this server, and saved ones. Target layer: each layer keeps its own output on the pruned inputs, "
        "as in the papers. Target dense: it aims at the dense model's output, and so repairs what came before it.",
    )


def _empty() -> None:
    with st.container(border=True, horizontal_alignment="center", gap="small"):
        st.markdown("**How far the hidden states of a pruned model move from the dense model's, block by block**")
        st.markdown(
            "Compare two targets on the chosen model: each layer keeps its own output, as in the papers, or "
            "compensates for the layers before it. Copies pruned on the Prune page appear here too, and so do saved "
            "runs opened above."
        )
        with st.container(width=420):
            _compare_button()
        st.page_link(PRUNE_PAGE, label="Prune copies of the model", icon=":material/content_cut:")


def _compare_button() -> None:
    setup, request = depth.small_comparison(session.setup())
    running = st.session_state.get(COMPARING)
    cost, problem = priced(setup, request)
    if setup.stream:
        cost, problem = None, "The weights of this model stay on disk; a comparison needs them in memory."
    st.button(
        f"Compare two targets{'' if cost is None else ', about ' + components.lasting(cost)}",
        key="depth-compare",
        type="primary",
        icon=":material/play_arrow:",
        on_click=lambda: session.start_run(
            COMPARING, session.new_pruning(setup, request), "waterfall_chart: Comparing targets"
        ),
        disabled=bool(problem) or (running is not None and running.job.status == "running"),
        width="stretch",
        help=words.plain(problem)
        or f"SparseGPT at {setup.sparsity} with target layer and with target dense, on {setup.samples} × "
        f"{setup.length} tokens of {setup.text}, drift on {setup.held_out} held-out samples of it.",
    )


def _option(view: str, runs: dict[str, Any]) -> Any:
    """What can be chosen in a section: the scale of drift, or the run whose shares are shown."""
    if view == DRIFT:
        scales = {"linear": "linear", "log": "log"}
        return components.choose("Scale", scales, "depth_scale", label_visibility="collapsed", width="content")
    if view == ORIGIN and len(runs) > 1:
        components.keep_choice("depth_run", runs)
        return st.selectbox("Run", list(runs), key="depth_run", label_visibility="collapsed")
    return next(iter(runs))


def _facts(table: pd.DataFrame) -> None:
    runs = table.drop_duplicates("run")
    facts = {"Perplexity of the runs shown": "perplexity", "Damping μ of their corrections": "target_damping"}
    for name, column in facts.items():
        known = runs.dropna(subset=[column])
        if len(known):
            pairs = zip(known["run"], known[column], strict=True)
            listed = "; ".join(f"{run}: {words.number(float(value))}" for run, value in pairs)
            st.caption(words.plain(f"{name}: {listed}."))


draw()
