"""Start: choose a model and a calibration text, see what the run will take, and measure the layers."""

from typing import Any
from urllib.parse import urlsplit

import pandas as pd
import streamlit as st
from huggingface_hub import constants

import rose
from app import components, session, shared, words
from app.figures import overview
from app.study import form, preflight
from app.study.preflight import Preflight
from app.study.setup import Setup, weights_size
from app.study.study import Study
from rose.model.load.models import is_hub_id, load_skeleton

HUB = urlsplit(constants.ENDPOINT).netloc
SETTINGS = "start-settings"
NAMED = 5  # most columnar layers that are listed


def draw() -> None:
    st.title("Start: which model do you want to see inside?")
    text, learn = st.columns([2, 1], vertical_alignment="center")
    learn.page_link("views/learn.py", label="New to pruning? Learn how", icon=":material/school:")
    study = session.study()
    is_there = study is not None and study.is_measured
    text.markdown(
        "Every layer below was pruned and measured: see which weights go, what that costs, and where the order matters."
        if is_there
        else "Choose a model and a text, and see in every layer which weights go and what that costs."
    )
    if study is not None:
        picture(study)
    ended_early = study is not None and study.job.status in ("failed", "cancelled") and not study.is_measured
    if study is not None and ended_early and st.session_state.get("start_reopened") != study.created:
        st.session_state.start_reopened = study.created
        st.session_state[SETTINGS] = True  # once: what to change is there
    label = "Set-up" if study is None else "Change set-up"
    with st.expander(
        label, expanded=study is None, key=SETTINGS, on_change="rerun", icon=":material/tune:"
    ) as settings:
        left, right = st.columns([2, 1])
        with left:
            edited = form.choose(session.draft())
            session.choose_draft(edited)
        with right:
            run_card(edited, is_shown=bool(settings.open))
            recent()


def inspect(setup: Setup) -> Preflight | str:
    try:
        setup.check()
        skeleton = form.structure(setup.model)
        return form.problems()[setup.model] if skeleton is None else preflight.preflight(setup, skeleton)
    except rose.RoseError as problem:
        return str(problem)


def run_card(edited: Setup, *, is_shown: bool) -> None:
    """What the run will take, and the button; finding out takes seconds, and is done only where somebody sees it."""
    known, found = st.session_state.get("inspected", (None, None))
    fresh = known == edited
    study = session.study()
    with st.container(border=True):
        expected = st.container(key="start-expected")
        cannot = fresh and (isinstance(found, str) or (found is not None and not found.fits))
        own = study if study is not None and study.setup == edited else None
        outdated = own is not None and shared.is_outdated(own)
        ended = own is not None and own.job.status in ("running", "done") and not outdated
        st.button(
            "Measure layers",
            type="primary",
            icon=":material/play_arrow:",
            width="stretch",
            on_click=begin,
            args=(edited,),
            disabled=bool(cannot) or ended,
            help="These are being measured, or have been; change something above." if ended else None,
            key="measure",
        )
        if outdated:
            st.warning(
                "The files of this model or text have changed since; measure the layers again.",
                icon=":material/update:",
            )
        if fresh:
            with expected:
                show_preflight(edited, found)
    if not fresh and is_shown:
        # The button above works meanwhile.
        with expected, st.spinner("Estimating time and memory …"):
            st.session_state.inspected = (edited, inspect(edited))
        st.rerun()


def show_preflight(edited: Setup, found: Preflight | str) -> None:
    if isinstance(found, str):
        components.error(found)
        if edited.model not in form.problems():
            return
        if is_hub_id(edited.model):
            st.caption(f"Asking sends this name to {HUB}, which sends the model's configuration.")
            st.button("Ask the Hub", icon=":material/cloud_download:", on_click=ask_hub, args=(edited.model,))
        else:
            st.button("Try again", icon=":material/refresh:", on_click=look_again, args=(edited.model,))
        return
    tokens = words.whole((edited.samples + edited.held_out) * edited.length)
    st.markdown(
        f"**{words.sentence(words.count(found.cost.layers, 'layer'))}**, {tokens} tokens: about "
        f"**{components.lasting(found.cost)}** after loading, **{components.size(found.needed)}** "
        f"of memory of {components.size(found.available)} free."
    )
    if edited.stream:
        st.caption(
            f"The weights, {components.size(weights_size(found.cost, edited.dtype))}, stay on disk. In memory are one "
            "decoder block at a time and the statistics of all these layers."
        )
    if not found.fits:
        can_stream = preflight.can_stream(edited.model) and not edited.stream
        spare = ", or leave the weights on disk" if can_stream else ""
        components.error(
            f"This will not fit into memory. Choose fewer layers, fewer samples, bfloat16 or a smaller model{spare}.",
            ":material/memory:",
        )
    if asked := preflight.asked_of_hub(edited):
        st.caption(f"Measuring asks {HUB} for {words.plain(' and '.join(asked))}; what is not here yet is downloaded.")
    for warning in found.warnings:
        components.warning(warning)


def look_again(model: str) -> None:
    form.problems().pop(model, None)
    st.session_state.pop("inspected", None)


def ask_hub(model: str) -> None:
    """Downloads the model's configuration."""
    look_again(model)
    try:
        load_skeleton(model)
    except rose.RoseError as problem:
        form.problems()[model] = str(problem)


def begin(chosen: Setup) -> None:
    """Starts a run, and ends the one this session was waiting for."""
    former = session.study()
    if former is not None and former.setup != chosen and former.job.status == "running":
        session.leave(former.job)
    st.session_state.link_problem = ""
    st.session_state[SETTINGS] = False  # makes room for the map
    if chosen != session.draft():
        form.forget()
    session.choose_setup(chosen)
    session.start()


def picture(study: Study) -> None:
    """The map of the study, filling while it runs, and the ways into it."""

    def follow() -> None:
        if st.session_state.pop("start_open", False):
            st.switch_page("views/layer.py")
        table = session.overview(study)
        left, right = st.columns([5, 2])
        with right:
            beside(study, table)
        with left:
            if table.empty:
                st.info("The first layers appear here as soon as they are measured.")
                return
            names: dict[str, Any] = {"layers": study.layer_names, "left_out": study.left_out}
            drawing = overview.model_map(table, **names, **components.look_over())
            components.show(drawing, "start-map", on_select=lambda: components.pick_layer("start-map"))

    components.while_measured(study, follow)


def beside(study: Study, table: pd.DataFrame) -> None:
    whose = "Example: " if study.is_example else ""
    st.markdown(f"**{whose}{words.plain(form.describe(study.setup))}**")
    if not table.empty:
        columnar = int(table["is_columnar"].sum())
        among = words.word(columnar) if columnar else "none"
        st.markdown(f"**{len(table)} of {len(study.expected)} layers measured**, {among} columnar")
    components.study_status(study, "start")
    if study.job.status == "failed" and study.can_go_on:
        others = {"go_on": True}
        st.button("Measure the other layers", icon=":material/skip_next:", on_click=session.start, kwargs=others)
    for layer, why in study.failed.items():
        components.warning(f"{words.short_layer(layer)} was left out: {why}", ":material/error:")
    if study.left_dense:
        none = words.count(len(study.left_dense), "layer")
        st.caption(
            f"No calibration token was routed to {none} of experts, which stay dense; more samples may reach them."
        )
    if table.empty:
        return
    best = table.sort_values("relative_range", ascending=False, kind="stable").head(NAMED)
    if study.is_measured:
        st.button(
            "Explore the example" if study.is_example else "Explore the most columnar layer",
            type="primary",
            icon=":material/travel_explore:",
            width="stretch",
            on_click=look_into,
            args=(str(best["layer"].iloc[0]),),
            key="explore",
        )
    st.caption("Most columnar" + ("" if study.is_measured else " so far") + ", with their relative range")
    for place, (name, value) in enumerate(zip(best["layer"], best["relative_range"], strict=True)):
        st.button(
            f"{words.short_layer(name)}: {value:.2f}",
            key=f"start-layer-{place}",
            width="stretch",
            on_click=look_into,
            args=(name,),
        )
    st.page_link("views/layers.py", label="See all layers at a glance", icon=":material/grid_on:")
    st.page_link("views/layer.py", label="See one layer in depth", icon=":material/layers:")
    if study.is_example:
        st.caption(example_note(study))


def look_into(layer: str) -> None:
    session.choose_layer(layer)
    st.session_state.start_open = True


def example_note(study: Study) -> str:
    assert study.kept is not None
    text = f"It came with the app, measured with {study.kept.made_with}. "
    if not study.kept.is_exact:
        return text + "The packaged text of your Python differs, so each layer is measured again on it when opened."
    return text + (
        f"{words.sentence(words.count(len(study.kept.calibration), 'layer'))} open as soon as the model is loaded, the "
        "others once their inputs are collected."
    )


def recent() -> None:
    others = [setup for setup in session.recent_setups() if setup != session.setup()]
    if not others:
        return
    st.caption("Recent")
    for place, setup in enumerate(others):
        st.button(
            words.plain(form.describe(setup)), key=f"recent-{place}", icon=":material/history:", width="stretch",
            on_click=begin, args=(setup,),
        )  # fmt: skip


draw()
