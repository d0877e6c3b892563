"""What a page needs before it can draw: a measured study, a layer, the model's weights; or what to do to get them."""

from collections.abc import Callable

import streamlit as st

from app import session
from app.components.work import KEPT, ended, error, info, live, progress, warning, while_running
from app.jobs import Job
from app.runs import example as packaged
from app.study.preflight import asked_of_hub
from app.study.study import Study
from app.words import count, sentence, short_layer, text_name

START_PAGE = "views/start.py"
FAILED_NAMED = 5  # layers


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
                st.page_link(START_PAGE, label="Choose a model and measure its layers", icon=":material/play_arrow:")
        st.stop()
    return study


def require_weights() -> None:
    if session.setup().stream:
        st.info(
            "The weights of this model stay on disk, and this page needs all of them in memory. A terminal can prune "
            "it as it is, with `rose prune --stream`; or choose a set-up with the weights in memory.",
            icon=":material/hard_drive:",
        )
        st.page_link(START_PAGE, label="Change the set-up", icon=":material/tune:")
        st.stop()


def example(subject: str, of: str = "") -> None:
    """Says that the page shows the packaged example, and how that was made."""
    setup = packaged.SETUP
    tokens = f"{setup.samples} × {setup.length} tokens of {text_name(setup.text)}"
    of = of or f" of {setup.model}, calibrated on {tokens} and measured on {setup.held_out} × {setup.length} others"
    st.caption(
        f"Example: {subject}{of}.",
        help=f"Comes with the app; made with {packaged.made_with()}.",
    )


def begin_restored(study: Study) -> None:
    """Collects the inputs that a study from disk lacks; ends the page where that ended early, or would ask the Hub."""
    hub_names = asked_of_hub(study.setup)
    if study.job.status == "kept" or (study.is_restored and study.job.abandoned):
        if not hub_names:
            session.start()
            st.rerun()
    elif not study.is_restored or study.job.status not in ("failed", "cancelled"):
        return
    ends = {"cancelled": "was cancelled.", "failed": f"failed: {study.job.message}"}
    why = ends.get(study.job.status, f"asks the Hub for {' and '.join(hub_names)}.")
    warning(f"This needs the inputs of layers. Collecting them {why}", ":material/input:")
    st.button("Collect the inputs", icon=":material/input:", on_click=session.start, key="collect-inputs")
    st.stop()


def require_layer(purpose: str, numbers: Callable[[Study, str], None] | None = None) -> tuple[Study, str]:
    """The current study and the chosen layer, measured; else the page ends with a sentence that says what is missing.

    `numbers` draws what a measured layer's numbers tell while its inputs are still collected.
    """
    study = require_study(purpose)
    layer = session.layer()
    if layer is None or layer not in study.layer_names:
        st.info("Choose a layer in the sidebar.")
    elif layer in study.failed:
        error(f"This layer could not be measured: {study.failed[layer]}")
    elif layer in study.left_dense:
        st.info("No calibration token was routed to this expert, so it stays dense; more samples may reach it.")
    elif study.has(layer):
        return study, layer
    else:
        _wait_for_layer(study, layer, numbers)
    st.stop()


def _wait_for_layer(study: Study, layer: str, numbers: Callable[[Study, str], None] | None) -> None:
    begin_restored(study)
    if study.job.status != "running":
        warning(f"The run ended before it reached {layer}; start it again on the start page.")
        return
    if any(record.layer == layer for record in study.measurements.records):
        if numbers:
            numbers(study, layer)
        info(f"Pictures of {short_layer(layer)} appear here as soon as its inputs are collected.")
    else:
        info(f"{short_layer(layer)} has not been measured yet; it appears here as soon as it is.")
    wait_for(study, lambda: study.has(layer))


def wait_for(study: Study, ready: Callable[[], bool]) -> None:
    """Shows progress, and redraws the page once the run has ended or `ready()` holds, when it must not call this."""

    def poll() -> None:
        study_status(study, "waiting")
        if ready():
            st.rerun()

    while_running(study.job, poll)


def while_measured(job: Job, draw: Callable[[], None]) -> None:
    """A part of the page that fills while a job measures; `select_layer` in it, and the job's end, redraw the page."""

    def follow() -> None:
        if st.session_state.pop("layer_picked", False):
            st.rerun()
        draw()

    if job.status == "running":
        while_running(job, follow, 2.0)
    else:
        live(follow, None)


def left_out(study: Study) -> None:
    """Why the first few layers could not be measured: hundreds of experts may fail alike."""
    for layer, why in list(study.failed.items())[:FAILED_NAMED]:
        error(f"{short_layer(layer)} could not be measured: {why}")
    if (rest := len(study.failed) - FAILED_NAMED) > 0:
        error(f"{sentence(count(rest, 'other layer'))} could not be measured either.")


def study_status(study: Study, key: str) -> None:
    """Progress of a study; a restored study shows progress only while it collects inputs."""
    if study.job.status == "running":
        progress(study, key)
    elif not study.is_restored:
        ended(study.job, KEPT)
