"""The needs of a page: a measured study, a layer, the model's weights. A page without them says how to get them."""

from collections.abc import Callable, Mapping
from functools import partial
from html import escape
from typing import Any

import streamlit as st

from app import session, shared, words
from app.components.choices import section
from app.components.work import UNASKED, ended, error, info, live, may_begin, progress, warning, while_running
from app.jobs import Job
from app.runs import example as packaged
from app.study.preflight import asked_of_hub, collecting
from app.study.setup import Setup
from app.study.study import InputsRun, Study
from app.words import count, duration, sentence, short_layer
from rose import RoseError

FAILED_NAMED = 5  # layers
EXPLORE = "views/explore.py"


def require_study(purpose: str) -> Study:
    """The current study, or an empty state that says what to do; the page ends there."""
    study = session.study()
    if study is None or not study.layer_names:
        if study is not None and study.job.status == "running":
            st.info("The model is loading; results appear here as soon as the first layers are measured.")
            wait_for(study, lambda: bool(study.layer_names))
        else:
            with st.container(border=True, height=280, horizontal_alignment="center", vertical_alignment="center"):
                st.markdown(f"**{purpose}**", width="content")
                measure_button("Measure the layers of a model", key="measure-first", type="primary")
        st.stop()
    return study


def measure_button(label: str = "Measure a model", key: str = "measure-open", **look: Any) -> None:
    """Opens the dialog, with the settings of the chosen set-up."""
    st.button(label, icon=":material/add:", key=key, on_click=session.ask_for_model, **look)


def head(sections: Mapping[str, tuple[str, Any]] | None = None, key: str = "") -> str:
    """The first row of a page: its sections, the model and text that it works with, and the button that changes them.

    Returns the chosen section.
    """
    setup, chosen = session.setup(), ""
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="page-head"):
        if sections:
            chosen = section(sections, key)
        text = f"{words.model_name(setup.model)}, {words.text_name(setup.calibration)}"
        line = f"{text}, {setup.samples} × {setup.length} tokens, seed {setup.seed}"
        st.html(f'<span class="choice">{escape(line)}</span>', width="content")
        st.button("Change", key="change-model", type="tertiary", icon=":material/tune:", on_click=session.ask_for_model)
    return chosen


def require_weights() -> None:
    if session.setup().stream:
        st.info(
            "The weights of this model stay on disk, and this page needs all of them in memory. A terminal can prune "
            "it as it is, with `rose prune --stream`; or choose a set-up with the weights in memory.",
            icon=":material/hard_drive:",
        )
        st.stop()


def example(subject: str, of: str = "") -> None:
    """Says that the page shows the packaged example, and how that was made."""
    setup = packaged.SETUP
    origin = f"Measured on {setup.held_out} × {setup.length} other tokens. " if not of else ""
    of = of or f" of {setup.model}, calibrated on only {setup.tokens}"
    st.caption(f"Example: {subject}{of}.", help=f"{origin}Comes with the app; made with {packaged.made_with()}.")


def _collect(study: Study, layer: str) -> None:
    """Collects the inputs of one layer of a study from disk; asks first where that takes long or asks the Hub."""
    run: InputsRun | None = st.session_state.get("layer_inputs")
    if run is None or (run.subject, run.layer) != (study.subject, layer) or run.job.abandoned:
        try:
            model = shared.skeleton(study.setup.model)
            seconds = 0.0 if study.has_stored(layer) else collecting(study.setup, model, [layer])
        except RoseError:
            info(f"This needs the weights and inputs of {short_layer(layer)}, and the model is not on this machine.")
            measure_button("Measure this model", key="measure-here")
            return
        reason, hub_names = f"Pictures of {short_layer(layer)} need its inputs.", asked_of_hub(study.setup)
        if hub_names:
            reason += f" Collecting them asks the Hub for {' and '.join(hub_names)}."
            seconds = max(seconds, UNASKED + 1)
        if not may_begin(seconds, reason, "Collect the inputs", "collect-inputs", (study.subject, layer)):
            return
        if run is not None:
            session.leave(run.job)
        run = st.session_state["layer_inputs"] = InputsRun(study, layer)
        run.job.watch(session.viewer())
        run.job.start().wait(1.0)  # what is read in a moment is shown at once
    if study.has(layer):
        st.rerun()
    if run.job.status == "running":
        info(f"Pictures of {short_layer(layer)} appear here as soon as its inputs are collected.")
        while_running(run.job, partial(progress, run, "waiting"), 0.5)
        return
    ended(run.job, ".")
    again: dict[str, Any] = {"on_click": st.session_state.pop, "args": ("layer_inputs",)}
    st.button("Try again", icon=":material/refresh:", key="collect-again", **again)


def offer_inputs(setup: Setup, key: str) -> None:
    """The button that collects the inputs of all layers of a set-up."""
    try:
        seconds = collecting(setup, shared.skeleton(setup.model), setup.layers)
    except RoseError:
        measure_button("Choose a model", key=f"{key}-choose")
        return
    label = f"Collect the inputs of your set-up, about {duration(max(1.0, seconds))}"
    st.button(label, icon=":material/input:", key=key, on_click=session.start)


def inputs_of(study: Study, layer: str) -> bool:
    """Whether a layer's weights and inputs are here; else says what is missing, and collects them where that is
    quick."""
    if study.has(layer):
        return True
    if layer in study.failed:
        error(f"This layer could not be measured: {study.failed[layer]}")
    elif layer in study.left_dense:
        st.info("No calibration token was routed to this expert, so it stays dense; more samples may reach it.")
    elif study.job.status == "running":
        info(f"Pictures of {short_layer(layer)} appear here as soon as its inputs are collected.")
        wait_for(study, lambda: study.has(layer))
    elif any(record.layer == layer for record in study.measurements.records):
        _collect(study, layer)
    else:
        warning(f"The run ended before it reached {layer}; measure the model again.")
    return False


def wait_for(study: Study, ready: Callable[[], bool]) -> None:
    """Redraws the page once the run, whose progress the header shows, has ended or `ready()` holds, when it must not
    call this."""

    def poll() -> None:
        if ready():
            st.rerun()

    while_running(study.job, poll)


def while_measured(job: Job, draw: Callable[[], None]) -> None:
    """A part of the page that fills while a job measures; the job's end redraws the page."""
    if job.status == "running":
        while_running(job, draw, 2.0)
    else:
        live(draw, None)


def left_out(study: Study) -> None:
    """Why the first few layers could not be measured: hundreds of experts may fail alike."""
    for layer, why in list(study.failed.items())[:FAILED_NAMED]:
        error(f"{short_layer(layer)} could not be measured: {why}")
    if (rest := len(study.failed) - FAILED_NAMED) > 0:
        error(f"{sentence(count(rest, 'other layer'))} could not be measured either.")
