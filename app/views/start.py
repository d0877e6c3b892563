"""Start: choose a model and a calibration text, see what the run will take, and measure the layers."""

from typing import Any

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

import rose
from app import components, session, shared, words
from app.figures import maps
from app.forms import recipe_form, study_form
from app.study import preflight
from app.study.preflight import Preflight
from app.study.setup import Setup, weights_size
from app.study.study import Study

SETTINGS = "start-settings"
TOP = 3  # layers that are linked while others are measured


def draw() -> None:
    st.title("Start: which model do you want to see inside?")
    text, learn = st.columns([2, 1], vertical_alignment="center")
    learn.page_link("views/learn.py", label="New to pruning? Learn how", icon=":material/school:")
    text.markdown(
        "Choose a model, and see in every layer which weights go, what that costs, and where the order matters."
    )
    with st.container(border=True, key="start-form"):
        what = study_form.choose(session.draft())
        card = st.container()
        label = "More: calibration text and tokens, block size, damping, number format"
        with st.expander(label, key=SETTINGS, on_change="rerun", icon=":material/tune:"):
            edited = Setup(**what, **study_form.choose_more(what["model"]))
            recipe_form.drop()
        recent()
    session.choose_draft(edited)
    study = session.study()
    with card:
        expected = run_card(edited, study)
    if study is not None:
        picture(study)
    if expected is not None:  # last: it takes seconds, and the button works meanwhile
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


def run_card(edited: Setup, study: Study | None) -> DeltaGenerator | None:
    """The button, and beside it what the run will take or why there is none; returns where an estimate is to appear."""
    known, found = st.session_state.get("inspected", (None, None))
    own = study if study is not None and study.setup == edited else None
    outdated = own is not None and shared.is_outdated(own)
    why = "" if own is None or outdated else why_not(own)
    fresh = known == edited or bool(why)
    cannot = not why and fresh and (isinstance(found, str) or not found.fits)
    left, right = st.columns([1, 4], vertical_alignment="center")
    left.button(
        "Measure layers",
        type="primary",
        icon=":material/play_arrow:",
        width="stretch",
        on_click=begin,
        args=(edited,),
        disabled=cannot or bool(why),
        key="measure",
    )
    expected = right.container(key="start-expected")
    with expected:
        if outdated:
            st.warning(
                "The files of this model or text have changed since; measure the layers again.",
                icon=":material/update:",
            )
        if why:
            st.caption(why)
        elif fresh:
            show_preflight(edited, found)
    return None if fresh else expected


def why_not(study: Study) -> str:
    """Why these layers cannot be measured now, as they are there already; empty where they can."""
    if study.job.status == "running" and not study.is_restored:
        return "These layers are being measured."
    if not study.is_measured:
        return ""
    setup, text = study.setup, words.plain(words.text_name(study.setup.text))
    return (
        f"These layers are already measured on {setup.samples} × {setup.length} tokens of {text}; the results are "
        "below. To measure others, change the model, the sparsity, the layers, or a setting under More."
    )


def show_preflight(edited: Setup, found: Preflight | str) -> None:
    if isinstance(found, str):
        components.error(found)
        if edited.model in study_form.problems():
            study_form.offer_to_find(edited.model)
        return
    tokens = words.whole((edited.samples + edited.held_out) * edited.length)
    st.markdown(
        f"**{words.sentence(words.count(found.cost.layers, 'layer'))}**, {tokens} tokens: about "
        f"**{components.lasting(found.cost)}** after loading, **{words.size(found.needed)}** "
        f"of memory of {words.size(found.available)} free."
    )
    if edited.stream:
        st.caption(
            f"The weights, {words.size(weights_size(found.cost, edited.dtype))}, stay on disk. In memory are one "
            "decoder block at a time and the statistics of all these layers."
        )
    if not found.fits:
        can_stream = preflight.can_stream(edited.model) and not edited.stream
        spare = ", or leave the weights on disk" if can_stream else ""
        components.error(
            f"This will not fit into memory. Choose fewer layers, fewer samples, bfloat16 or a smaller model{spare}.",
            ":material/memory:",
        )
    study_form.say_hub(edited)
    for warning in found.warnings:
        components.warning(warning)


def begin(chosen: Setup) -> None:
    """Starts a run, and ends the one this session was waiting for."""
    st.session_state[SETTINGS] = False  # makes room for the map
    if chosen != session.draft():
        study_form.forget()
    session.measure(chosen)


def picture(study: Study) -> None:
    """The map of the study, filling while it runs, and the ways into it."""

    def follow() -> None:
        table = session.overview(study)
        left, right = st.columns([5, 2])
        with right:
            beside(study, table)
        with left:
            if table.empty:
                if study.job.status == "running":
                    st.info("The first layers appear here as soon as they are measured.")
                return
            names: dict[str, Any] = {"layers": study.layer_names, "left_out": study.left_out}
            drawing = maps.model_map(table, **names, **components.look_over())
            if study.setup != session.draft():
                st.caption(f"Measured before: {words.plain(study_form.describe(study.setup))}.")
            components.show(drawing, "start-map", on_select=components.pick_layer, fill=(500, "640px"))

    components.while_measured(study.job, follow)


def beside(study: Study, table: pd.DataFrame) -> None:
    if not table.empty:
        columnar = int(table["is_columnar"].sum())
        among = words.word(columnar) if columnar else "none"
        st.markdown(f"**{len(table)} of {len(study.expected)} layers measured**, {among} columnar")
    components.study_status(study, "start")
    if study.job.status == "failed" and study.can_go_on:
        others = {"go_on": True}
        st.button("Measure the other layers", icon=":material/skip_next:", on_click=session.start, kwargs=others)
    components.left_out(study)
    if study.left_dense:
        none = words.count(len(study.left_dense), "layer")
        st.caption(
            f"No calibration token was routed to {none} of experts, which stay dense; more samples may reach them."
        )
    if table.empty:
        return
    if study.is_measured:
        most = "most columnar layer" if table["is_columnar"].any() else "layer with the highest relative range"
        what = "the example" if study.is_example else f"the {most}"
        best = {"layer": str(study.most_columnar())}
        with st.container(key="explore"):
            icon = ":material/travel_explore:"
            st.page_link("views/layer.py", label=f"Explore {what}", icon=icon, width="stretch", query_params=best)
    elif study.job.status == "running":
        st.caption("Highest relative range so far")
        for row in table.nlargest(TOP, "relative_range").itertuples():
            label = words.plain(f"{words.short_layer(row.layer)}, {row.relative_range:.3f}")
            st.page_link("views/layer.py", label=label, query_params={"layer": row.layer})
    st.page_link("views/layers.py", label="See all layers at a glance", icon=":material/grid_on:")
    if study.is_example:
        st.caption(example_note(study))


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
    st.caption("Recent set-ups")
    for place, setup in enumerate(others):
        st.button(
            words.plain(study_form.describe(setup)), key=f"recent-{place}", icon=":material/history:", width="stretch",
            on_click=begin, args=(setup,),
        )  # fmt: skip


draw()
