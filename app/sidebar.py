"""Beside every page: the current set-up, the run in progress, and the chosen layer."""

import streamlit as st

from app import components, session, shared, words
from app.study.study import Study


def draw() -> None:
    study = session.study()
    with st.sidebar:
        if st.session_state.plugin_problem:
            components.error(st.session_state.plugin_problem, ":material/extension_off:")
        _running()
        if study is None:
            model = words.plain(session.setup().model)
            st.caption(f"The layers of **{model}** are not measured with the chosen set-up.")
            return
        setup = study.setup
        st.caption(
            f"**{words.plain(setup.model)}**, {words.plain(setup.text)}, {setup.samples} × {setup.length} tokens, "
            f"seed {setup.seed}, sparsity {setup.sparsity}, block size {setup.block_size}"
        )
        if study.layer_names:
            _choose_layer(study)
        _status(study)


def _choose_layer(study: Study) -> None:
    names = study.layer_names
    if session.layer() not in names or (st.session_state.get("layer_by_default") and study.is_measured):
        session.choose_layer(study.most_columnar() or names[0], by_default=True)
    linked = st.session_state.pop("linked_layer", None)
    if linked is not None and linked not in names:
        st.session_state.link_problem += (
            f" The link asks for the layer {linked}, which was not measured here; another one is shown."
        )
    st.session_state.layer_widget = session.layer()
    st.selectbox(
        "Layer",
        names,
        key="layer_widget",
        format_func=words.short_layer,
        on_change=lambda: session.choose_layer(st.session_state.layer_widget),
        help="The pages about single layers show this one. Type to search.",
    )


def _running() -> None:
    """Keeps this session's background work alive on every page, and shows its progress."""
    session.pruning()  # a run that a link names is followed on every page
    if not session.running_jobs():
        return

    def poll() -> None:
        for job, tell in session.running_jobs():
            job.watch(session.viewer())
            st.caption(tell())

    components.live(poll, 1.0)


def _status(study: Study) -> None:
    if study.is_measured:
        layers = words.sentence(words.count(len(study.expected), "layer"))
        st.caption(f":material/check_circle: {layers} measured")
        if shared.is_outdated(study):
            st.warning(
                "Its files have changed since: measure the layers again on the start page.", icon=":material/update:"
            )
    if study.job.status == "running":
        components.while_running(study.job, lambda: components.study_status(study, "study"))
    elif not study.is_measured:
        components.study_status(study, "study")
