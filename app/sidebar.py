"""Beside every page: the current set-up, the run in progress, and where it counts the chosen layer and the sparsity."""

from typing import Any

import streamlit as st

from app import components, session, shared, words
from app.forms import study_form
from app.forms.widgets import attempt, say_hub
from app.lab import race_of_solvers
from app.study import preflight
from app.study.setup import Setup
from app.study.study import Study
from rose import RoseError

START = ""  # the path of the page that has all this in its own form
DIFFUSION = "diffusion"  # which has another model, and its own set-up
OF_ONE_LAYER = ("layers", "layer", "order_lab")  # pages to which the chosen layer matters


def draw(page: str) -> None:
    """`page` is the path of the page that is shown."""
    study = session.study()
    with st.sidebar:
        if st.session_state.plugin_problem:
            components.error(st.session_state.plugin_problem, ":material/extension_off:")
        _running()
        chooses = page in OF_ONE_LAYER and study is not None and bool(study.layer_names)
        is_told = page not in (START, DIFFUSION)
        if is_told:
            _setup(session.setup(), is_measured=study is not None, with_sparsity=not chooses)
        if study is None:
            return
        if study.layer_names:
            _follow_layer(study)
            # The page Prune shows the race of solvers on the chosen layer.
            view = st.session_state.get("prune_view", st.query_params.get("prune_view"))
            if chooses or (page == "prune" and view == race_of_solvers.TITLE):
                _choose_layer(study)
        if chooses:
            _choose_sparsity(study)
        if page == DIFFUSION and study.job.status == "running":  # or it would stop, as if nobody watched
            st.caption(f"Layers of **{words.plain(study.setup.model)}**")
            is_told = True
        if is_told:
            _status(study)


def _setup(setup: Setup, *, is_measured: bool, with_sparsity: bool) -> None:
    model, sparsity = f"**{words.plain(setup.model)}**", f", sparsity {setup.sparsity}" if with_sparsity else ""
    text = words.plain(words.text_name(setup.calibration))
    summary = f"Your set-up: {model}, {text}, {setup.samples} × {setup.length} tokens, seed {setup.seed}{sparsity}"
    unmeasured = f"The layers of {model} are not measured with the chosen set-up."
    with st.container(gap=None):
        st.caption(f"{summary}, block size {setup.block_size}" if is_measured else unmeasured)
        st.page_link(components.START_PAGE, label="Change on Start", icon=":material/tune:")


def _follow_layer(study: Study) -> None:
    """Keeps to a layer that is there: the most columnar one until somebody chooses."""
    names = study.layer_names
    if session.layer() not in names or (st.session_state.get("layer_by_default") and study.is_measured):
        session.choose_layer(study.most_columnar() or names[0], by_default=True)
    linked = st.session_state.pop("linked_layer", None)
    if linked is not None and linked not in names:
        st.session_state.link_problem += (
            f" The link asks for the layer {linked}, which was not measured here; another layer is shown."
        )


def _choose_layer(study: Study) -> None:
    st.session_state.layer_widget = session.layer()
    st.selectbox(
        "Layer",
        study.layer_names,
        key="layer_widget",
        format_func=words.short_layer,
        on_change=lambda: session.choose_layer(st.session_state.layer_widget),
        help="The pages about single layers show this one. Type to search.",
    )


def _choose_sparsity(study: Study) -> None:
    """Another sparsity is shown at once if it has been measured; else a button measures it."""
    setup = study.setup
    of, sparsity = st.session_state.get("asked_sparsity", (setup, setup.sparsity))
    sparsity = sparsity if of == setup else setup.sparsity
    st.session_state.sparsity_widget = sparsity
    study_form.choose_sparsity("sparsity_widget", sparsity, on_change=_ask_sparsity)
    try:
        other = setup.changed(sparsity=sparsity)
        if other == setup:
            return
        estimate = preflight.preflight(other, shared.skeleton(other.model), has_inputs=study.calibration.complete)
    except RoseError as problem:
        components.error(problem)
        return
    inputs = "their inputs are known" if study.calibration.complete else "their inputs are collected first"
    layers = words.count(estimate.cost.layers, "layer")
    st.caption(
        f"Not measured at {words.plain(sparsity)}: {layers}, about {components.lasting(estimate.cost)}; {inputs}."
        + ("" if estimate.fits else " They will not fit into memory.")
    )
    if not study.calibration.complete:
        say_hub(other)
    begin: dict[str, Any] = {"on_click": study_form.measure, "args": (other,), "disabled": not estimate.fits}
    look: dict[str, Any] = {"icon": ":material/play_arrow:", "width": "stretch"}
    st.button(f"Measure at {words.plain(sparsity)}", key="measure-sparsity", **begin, **look)


def _ask_sparsity() -> None:
    setup, sparsity = session.setup(), st.session_state.sparsity_widget
    st.session_state.asked_sparsity = (setup, sparsity or setup.sparsity)
    other, _ = attempt(lambda: setup.changed(sparsity=sparsity or setup.sparsity))
    study = None if other is None else shared.find(other)
    if study is not None and study.is_measured:
        study_form.forget()
        session.choose_setup(other)


def _running() -> None:
    """Keeps this session's background work alive on every page, and shows its progress."""
    session.pruning()  # a run that a link names is followed on every page
    if not session.running():
        return

    def poll() -> None:
        for run, label in session.running():
            run.job.watch(session.viewer())
            st.caption(f":material/{label}, {100 * run.fraction:.0f}\u202f% done")

    components.live(poll, 1.0)


def _status(study: Study) -> None:
    if study.is_measured:
        layers = words.sentence(words.count(len(study.expected), "layer"))
        st.caption(f":material/check_circle: {layers} measured")
        if shared.is_outdated(study):
            changed = "Its files have changed since: measure the layers again on the start page."
            components.warning(changed, ":material/update:")
    if study.job.status == "running":
        with st.container(key="sidebar-progress"):
            components.while_running(study.job, lambda: components.study_status(study, "study"))
    elif not study.is_measured:
        components.study_status(study, "study")
