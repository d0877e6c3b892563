"""The head of every page: work that goes on, with a button to cancel it, and what is wrong with a link or a plugin."""

import streamlit as st

from app import session, shared, words
from app.components.work import KEPT, ended, error, info, live, progress, warning
from app.study.study import Study


def draw() -> None:
    state = st.session_state
    if state.plugin_problem:
        error(state.plugin_problem, ":material/extension_off:")
    if sentence := state.pop("recipe_used", ""):
        info(sentence, icon=":material/description:")
    session.pruning()  # a run that a link names is followed on every page
    study = session.study()
    if study is not None:
        session.keep_layer(study)
    if study is not None and study.job.status == "running":
        session.follow(study, f"grid_on: Measuring {words.plain(study.setup.model)}")
    elif study is not None and not study.is_restored:
        ended(study.job, KEPT)
    if study is not None and study.is_measured and shared.is_outdated(study):
        warning("The files of this model or text have changed since; measure the layers again.", ":material/update:")
    if state.link_problem:
        warning(state.link_problem, ":material/link_off:")
    if session.running():
        live(_lines, 1.0)


def _lines() -> None:
    """A line for each piece of work; the whole page is drawn again once a study has ended."""
    running = session.running()
    for place, (run, label) in enumerate(running):
        if isinstance(run, Study):
            progress(run, f"head-{place}")
        else:
            run.job.watch(session.viewer())
            st.caption(f":material/{label}, {100 * run.fraction:.0f}\u202f% done")
    ended = [run for run in st.session_state.get("in_head", []) if run.job.status != "running"]
    st.session_state.in_head = [run for run, _ in running if isinstance(run, Study)]
    if ended:
        st.rerun()
