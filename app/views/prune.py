"""Prune: what does the whole model lose?"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

import rose
from app import components, session, shared, words
from app.components.work import follow
from app.figures import methods as figures
from app.forms import study_form
from app.forms.prune_choices import choose
from app.forms.widgets import priced, start_button
from app.lab import race_of_solvers
from app.results import prune_results as results
from app.results import tune_panel
from app.runs.checkpoints import RESERVE, free_space
from app.runs.pruning import PruningRun
from app.runs.request import PruneRequest
from app.study.setup import Setup, weights_size
from rose.recipe import Recipe

SECTIONS: dict[str, Callable[..., Any]] = {
    "Perplexity": results.summary,
    "Layers": results.layers,
    "Texts": results.texts,
    "Zero-shot": results.accuracies,
    "Downloads": results.downloads,
    race_of_solvers.TITLE: race_of_solvers.draw,
}


def draw() -> None:
    st.title("Prune: what does the whole model lose?")
    components.edited_setup()
    components.require_weights()
    setup, run = session.setup(), session.pruning()
    with st.expander(
        "What to prune, and how to evaluate it",
        expanded=run is None,
        icon=":material/tune:",
        key="prune-settings",
        on_change="rerun",
    ):
        request = choose(setup)
        _recipes(setup, request)
    _offer(setup, request, run)
    _others()
    if run is not None:
        results.of_another_setup(run)
        _follow(run)
    if run is not None and run.dense is not None:
        results.what_to_ship(run, run.models)
        tune_panel.draw(run, lambda: shared.skeleton(run.setup.model))
    view = components.section({name: name for name in SECTIONS}, "prune_view", "Results")
    if view == race_of_solvers.TITLE:
        race_of_solvers.draw(run)
    elif run is not None and run.dense is None and run.job.status != "running":
        st.info("This run ended before a model was evaluated, so there are no results.")
    elif run is None or run.dense is None:
        st.info("Results appear here as soon as the dense model and the first pruned copy have been evaluated.")
    else:
        SECTIONS[view](run, run.models)


def _recipes(setup: Setup, request: PruneRequest) -> None:
    """A recipe a copy, for a terminal and for Python."""
    with st.popover("Recipe", icon=":material/description:", key="prune-recipe"):
        if not request.cases:
            st.caption("Choose at least one method, sparsity, target and number of bits.")
            return
        case = request.cases[0]
        if len(request.cases) > 1:
            case = st.selectbox("Copy", request.cases, format_func=lambda case: case.label, key="prune-recipe-of")
        try:
            components.recipe(Recipe((request.recipe(setup, case),)), case.name)
        except rose.RoseError as problem:
            st.caption(words.plain(str(problem)))


def _offer(setup: Setup, request: PruneRequest, run: PruningRun | None) -> None:
    cost, problem = priced(setup, request)
    own = session.own_pruning()
    if not problem and own is not run and own is not None and own.job.status == "running":
        problem = "Your own run goes on; go back to it below, under the other runs, to cancel it first."
    running = session.sees_at_work(run)
    icon = ":material/content_cut:"
    right = start_button("Prune", "prune-start", _start, request, problem=problem, running=running, icon=icon)
    if cost is not None and not problem:
        right.caption(
            f"{words.sentence(words.count(len(request.cases), 'copy', 'copies'))}, "
            f"{words.count(cost.layers, 'layer')} each: about {components.lasting(cost)}. Memory "
            f"besides the model: {words.size(weights_size(cost, setup.dtype))} for the copy being pruned, "
            f"{words.size(cost.memory)} for its calibration. {_disk(request, weights_size(cost, setup.dtype))}"
        )
        with right:
            study_form.say_hub(setup, replace(setup, text=request.evaluate))


def _disk(request: PruneRequest, weights: int) -> str:
    """What the checkpoints take of the disk, and where."""
    if request.keep == "none":
        return ""
    copies = len(request.sparsities) * len(request.bits) if request.keep == "best" else len(request.cases)
    if request.keep != "folder" and free_space() < weights + RESERVE:
        return f"No checkpoint will be kept: {tempfile.gettempdir()} has only {words.size(free_space())} free."
    where = request.folder if request.keep == "folder" else tempfile.gettempdir()
    kept = words.sentence(words.count(copies, "checkpoint"))
    return f"{kept}, {words.size(copies * weights)}, in {words.plain(where)}."


def _start(request: PruneRequest) -> None:
    st.session_state["prune-settings"] = False  # makes room for the results
    session.start_pruning(request)


def _others() -> None:
    """Buttons for the server's other runs: a run outlives the page that started it."""
    others = [
        (name, run)
        for name, run in list(shared.prunings().items())
        if run is not session.pruning() and (run.job.status == "running" or run.copies)
    ]
    if not others:
        return
    with st.expander(f"Other runs on this server ({len(others)})", icon=":material/history:"):
        for name, run in reversed(others):
            doing = f"{100 * run.fraction:.0f} % done" if run.job.status == "running" else run.job.status
            methods = ", ".join(rose.METHODS[method].label for method in run.request.methods)
            st.button(
                f"{words.plain(run.setup.model)}: {methods} at {', '.join(run.request.sparsities)}, {doing}",
                key=f"prune-run-{name}",
                on_click=session.follow_pruning,
                args=(name,),
                width="stretch",
            )


def _follow(run: PruningRun) -> None:
    finished = words.count(len(run.copies), "model")
    rest = " before a copy was finished; temporary files are deleted."
    if run.copies:
        kept = [str(place) for place in run.checkpoints.values() if run.request.keep == "folder"]
        rest = f" after {finished}; the numbers of finished models are below, and temporary files are deleted."
        rest += f" Written: {', '.join(kept)}." if kept else ""
    follow(run, "prune", rest, found=lambda: (len(run.copies), run.dense is None), more=lambda: _timeline(run))
    if run.job.status == "failed" and run.copies:
        st.info(
            f"{words.sentence(finished)} finished before that; numbers and requested checkpoints are below.",
            icon=":material/inventory_2:",
        )


def _timeline(run: PruningRun) -> None:
    pruned = list(run.pruned)
    if not run.layers:
        return
    label = f"This copy so far: {len(pruned)} of {run.layers} layers"
    with st.expander(label, key="prune-timeline", on_change="rerun") as shown:
        if shown.open:
            table = pd.DataFrame(pruned, columns=["layer", "relative_error", "seconds"])
            drawing = figures.progress_timeline(table, run.layers, theme=session.theme())
            components.show(drawing, "prune-timeline-figure")


draw()
