"""Copies of the whole model: what does it lose?"""

import tempfile
from functools import partial

import streamlit as st

import rose
from app import components, session, shared, words
from app.components.work import follow
from app.forms.prune_choices import choose
from app.forms.widgets import attempt, start_button
from app.runs import example
from app.runs.kept_copies import RESERVE, free_space
from app.runs.pruning import PruneRequest, PruningRun
from app.sections import copy_results as results
from app.study.setup import Setup, weights_size
from rose.model.estimate import Cost


def draw() -> None:
    setup, run = session.setup(), session.pruning()
    with st.expander(
        "What to prune and how to evaluate it", icon=":material/tune:", key="prune-settings", on_change="rerun"
    ):
        request = choose(setup)
    _offer(setup, request, run)
    _others()
    if run is not None:
        _follow(run)
    shown = example.pruning() if run is None or (run.dense is None and run.job.status != "running") else run
    if shown is run:
        results.of_another_setup(run)
    if shown.dense is None:
        st.info("Results appear here as soon as the dense model has been evaluated.")
        return
    if shown is not run:
        components.example("pruned copies")
    results.what_you_get(shown, shown.models)
    if shown is run:
        results.tune(run, lambda: shared.skeleton(run.setup.model))


def _offer(setup: Setup, request: PruneRequest, run: PruningRun | None) -> None:
    cost, problem = attempt(partial(_price, setup, request))
    own_run = session.pruning("own_pruning")
    if not problem and own_run is not run and own_run is not None and own_run.job.status == "running":
        problem = "Your own run goes on; choose it under the other runs below to cancel it first."
    takes = ""
    if cost is not None:
        copies = words.sentence(words.count(request.count, "copy", "copies"))
        weights = weights_size(cost, setup.dtype)
        takes = (
            f"{copies} by {words.listing([rose.METHODS[name].label for name in request.methods])}, "
            f"{words.count(cost.layers, 'layer')} each: about {components.lasting(cost)}, "
            f"{words.size(weights + cost.memory)} besides the model. {_disk(request, weights)}"
        )
    start_button(
        "Prune", "prune-start", _start, request, icon=":material/content_cut:", problem=problem,
        running=session.sees_at_work(run), takes=takes, asking=[setup, setup.changed(calibration=request.evaluate)],
        recipes=attempt(partial(request.cases, setup))[0] or (),
    )  # fmt: skip


def _price(setup: Setup, request: PruneRequest) -> Cost:
    skeleton = shared.skeleton(setup.model)
    request.check(setup, skeleton)
    return request.estimate(setup, skeleton)


def _disk(request: PruneRequest, weights: int) -> str:
    """Size and folder of the checkpoints."""
    if request.keep == "none":
        return ""
    where = request.folder if request.keep == "folder" else tempfile.gettempdir()
    if request.keep != "folder" and free_space() < weights + RESERVE:
        return f"No checkpoint will be kept: {where} has only {words.size(free_space())} free."
    copies = len(request.sparsities) * len(request.grids) if request.keep == "best" else request.count
    checkpoints = words.sentence(words.count(copies, "checkpoint"))
    return f"{checkpoints}, {words.size(copies * weights)}, in {words.plain(where)}."


def _start(request: PruneRequest) -> None:
    st.session_state["prune-settings"] = False  # makes room for the results
    session.start_pruning(request)


def _others() -> None:
    """The server's other runs: a run outlives the page that started it."""
    runs = {
        name: run
        for name, run in reversed(list(shared.prunings().items()))
        if run is not session.pruning() and (run.job.status == "running" or run.copies)
    }
    if not runs:
        return

    def label(name: str) -> str:
        run = runs[name]
        doing = f"{100 * run.fraction:.0f}\u202f% done" if run.job.status == "running" else run.job.status
        methods = ", ".join(rose.METHODS[method].label for method in run.request.methods)
        return f"{run.setup.model}: {methods} at {', '.join(run.request.sparsities)}, {doing}"

    st.selectbox(
        f"Other runs on this server ({len(runs)})",
        list(runs),
        None,
        format_func=label,
        key="prune-other",
        on_change=lambda: session.follow_pruning(st.session_state.pop("prune-other")),
        placeholder="Choose a run to see it",
    )


def _follow(run: PruningRun) -> None:
    finished = words.count(len(run.copies), "copy", "copies")
    rest = " before a copy was finished; temporary files are deleted."
    if run.copies:
        places = [str(place) for place in run.checkpoints.values() if run.request.keep == "folder"]
        rest = f" after {finished}, whose numbers are below; temporary files are deleted."
        rest += f" Written: {', '.join(places)}." if places else ""
    follow(run, "prune", rest, state=lambda: (len(run.copies), run.dense is None))
    if run.job.status == "failed" and run.copies:
        st.caption(f"{words.sentence(finished)} finished before that; numbers and requested checkpoints are below.")
