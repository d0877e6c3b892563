"""Start: choose a model, see what measuring its layers will take, and go on from the map of its layers."""

from typing import Any

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

import rose
from app import components, session, shared, words
from app.figures import maps
from app.forms import recipes, study_form
from app.forms.widgets import say_hub
from app.study import preflight
from app.study.preflight import Preflight
from app.study.setup import Setup, weights_size
from app.study.study import Study

MORE = "start-more"


def draw() -> None:
    st.title("Start: which model do you want to see inside?")
    with st.container(key="start-form"):
        chosen = study_form.choose(session.draft())
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            button = st.container(width="content")
            with st.popover("More", icon=":material/tune:", key=MORE, help="Calibration text, block size, damping"):
                edited = Setup.edited(**chosen, **study_form.choose_more(chosen["model"]))
            with st.container(width="content"):
                recipes.drop_recipe()
        expected = st.container(key="start-expected")
        earlier = [other for other in st.session_state.get("recent", []) if other != session.setup()]
        for place, setup in enumerate(earlier):
            label, icon = words.plain(study_form.describe(setup)), ":material/history:"
            st.button(
                label, key=f"recent-{place}", icon=icon, type="tertiary", on_click=study_form.measure, args=(setup,)
            )
    session.choose_draft(edited)
    study = session.study()
    estimating = offer(button, expected, edited, study)
    if study is not None:
        picture(study)
    if estimating:  # last: it takes seconds, and the button works meanwhile
        with expected, st.spinner("Estimating time and memory …"):
            st.session_state.inspected = (edited, inspect(edited))
        st.rerun()


def inspect(setup: Setup) -> Preflight | str:
    try:
        setup.check()
        skeleton = study_form.structure(setup.model)
        return study_form.problems()[setup.model] if skeleton is None else preflight.preflight(setup, skeleton)
    except rose.RoseError as problem:
        return str(problem)


def offer(button: DeltaGenerator, expected: DeltaGenerator, edited: Setup, study: Study | None) -> bool:
    """The button, and what the run will take or why it cannot run; whether that is still to be estimated.

    Nothing is promised beside a run: its own progress says how long it takes.
    """
    estimated, estimate = st.session_state.get("inspected", (None, None))
    matching = study if study is not None and study.setup == edited else None
    outdated = matching is not None and shared.is_outdated(matching)
    running = matching is not None and matching.job.status == "running" and not matching.is_restored
    there = matching is not None and not outdated and (matching.is_measured or running)
    cannot = estimated == edited and (isinstance(estimate, str) or not estimate.fits)
    button.button(
        "Measure layers",
        type="primary",
        icon=":material/play_arrow:",
        on_click=study_form.measure,
        args=(edited,),
        disabled=there or cannot,
        key="measure",
    )
    with expected:
        if outdated:
            st.warning("The files of this model or text have changed since; measure again.", icon=":material/update:")
        if there and not running:
            st.caption("Measured already; change something to measure again.")
        elif not there and estimated == edited:
            show_estimate(edited, estimate)
    return not there and estimated != edited


def show_estimate(edited: Setup, estimate: Preflight | str) -> None:
    if isinstance(estimate, str):
        components.error(estimate)
        if edited.model in study_form.problems():
            study_form.offer_to_find(edited.model)
        return
    tokens = words.whole((edited.samples + edited.held_out) * edited.length)
    st.markdown(
        f"**{words.sentence(words.count(estimate.cost.layers, 'layer'))}**, {tokens} tokens: about "
        f"**{components.lasting(estimate.cost)}** after loading, **{words.size(estimate.needed)}** "
        f"of memory of {words.size(estimate.available)} free."
    )
    if edited.stream:
        weights = words.size(weights_size(estimate.cost, edited.dtype))
        st.caption(f"The weights, {weights}, stay on disk; one decoder block at a time is in memory.")
    if not estimate.fits:
        can_stream = preflight.can_stream(edited.model) and not edited.stream
        spare = ", or leave the weights on disk" if can_stream else ""
        components.error(
            f"This will not fit into memory. Choose fewer layers, fewer samples, bfloat16 or a smaller model{spare}.",
            ":material/memory:",
        )
    say_hub(edited)
    for warning in estimate.warnings:
        components.warning(warning)


def picture(study: Study) -> None:
    """How far the run is, the map that it fills, and what one can do next."""

    def follow() -> None:
        components.study_status(study, "start")
        table = study.overview(session.threshold())
        left, right = st.columns([5, 1.6])
        with right:
            beside(study, table)
        with left:
            if table.empty:
                if study.job.status == "running":
                    st.info("The first layers appear here as soon as they are measured.")
                return
            names: dict[str, Any] = {"layers": study.layer_names, "left_out": study.left_out}
            drawing = maps.model_map(table, **names, conditions=study.setup.conditions, **components.look_over())
            if study.setup != session.draft():
                st.caption(f"Measured before: {words.plain(study_form.describe(study.setup))}.")
            components.show(drawing, "start-map", on_select=components.pick_layer, fill=(430, "640px"))

    components.while_measured(study.job, follow)


def beside(study: Study, table: pd.DataFrame) -> None:
    if not study.is_measured and not table.empty:
        st.markdown(f"**{len(table)} of {len(study.expected)} layers measured**")
    if study.job.status == "failed" and study.can_go_on:
        st.button(
            "Measure the other layers", icon=":material/skip_next:", on_click=session.start, kwargs={"go_on": True}
        )
    components.left_out(study)
    if study.left_dense:
        dense = words.count(len(study.left_dense), "layer")
        st.caption(
            f"No calibration token was routed to {dense} of experts, which stay dense; more samples may reach them."
        )
    if study.is_measured and not table.empty:
        best_name = (
            "the most columnar layer" if table["is_columnar"].any() else "the layer with the highest relative range"
        )
        best = {"layer": str(study.most_columnar())}
        with st.container(key="explore"):
            label, icon = f"Explore {'the example' if study.is_example else best_name}", ":material/travel_explore:"
            st.page_link("views/layer.py", label=label, icon=icon, width="stretch", query_params=best)
        st.page_link("views/layers.py", label="See all layers", icon=":material/grid_on:")
        st.page_link("views/prune.py", label="Prune this model", icon=":material/content_cut:")
    st.page_link("views/learn.py", label="Learn how pruning works", icon=":material/school:")
    if study.is_example and study.kept is not None:
        st.caption("A finished example.", help=f"Comes with the app; measured with {study.kept.made_with}.")


draw()
