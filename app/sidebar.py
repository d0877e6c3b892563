"""Around every page: the set-up at hand, the run in progress, and the layer that all pages show."""

from __future__ import annotations

import streamlit as st

from app import components, session, shared, words
from app.study.study import Study


def draw() -> None:
    """Draws the sidebar below the navigation."""
    study = session.study()
    with st.sidebar:
        if st.session_state.plugin_problem:
            st.error(st.session_state.plugin_problem, icon=":material/extension_off:")
        _running()
        if study is None:
            st.caption("No model measured yet.")
            return
        setup = study.setup
        st.caption(
            f"**{setup.model}**, {setup.text}, {setup.samples} × {setup.length} tokens, seed {setup.seed}, "
            f"sparsity {setup.sparsity}, block size {setup.block_size}"
        )
        if study.layer_names:
            _choose_layer(study)
        _status(study)


def _choose_layer(study: Study) -> None:
    names = study.layer_names
    if session.layer() not in names:
        # An output projection shows best what the app is about.
        session.choose_layer(next((name for name in names if name.endswith(("o_proj", "out_proj"))), names[0]))
    st.session_state.layer_widget = session.layer()
    st.selectbox(
        "Layer",
        names,
        key="layer_widget",
        format_func=words.short_layer,
        on_change=lambda: session.choose_layer(st.session_state.layer_widget),
        help="Every page shows this layer. Type to search.",
    )


def _running() -> None:
    """Keeps this session's background work alive on every page, and says how far it is."""
    session.pruning()  # a browser that has come back, to whatever page, keeps the files of its run
    if not session.running_jobs():
        return

    def poll() -> None:
        for job, tell in session.running_jobs():
            job.watch(session.viewer())
            st.caption(tell())

    components.live(poll, 1.0)


def _status(study: Study) -> None:
    if study.job.status == "done":
        layers = words.sentence(words.count(len(study.layer_names), "layer"))
        st.caption(f":material/check_circle: {layers} measured")
        if shared.is_outdated(study):
            st.warning("Its files have been replaced since: start page, Measure layers.", icon=":material/update:")
        return

    started_running = study.job.status == "running"

    def poll() -> None:
        components.job_status(study.job, "study")
        if started_running and study.job.status != "running":
            st.rerun()  # the whole page: what it shows is final now

    components.live(poll, 1.0 if started_running else None)
