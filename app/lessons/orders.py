"""The steps that prune a layer, generated or measured, in several orders: played block by block, and by budget."""

from __future__ import annotations

from functools import partial

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import components, session, words
from app.figures import orders as figures
from app.figures.sweeps import sweep_film, sweep_frame
from app.lab import sweeps
from app.lab.player import Player
from app.lessons import subjects, texts
from app.lessons.stage import PLAYED, show, sides, tell
from app.lessons.subjects import LayerDesign, Subject
from app.study.study import Study
from rose.layer.defaults import BUDGETS

PLAYER = Player("lesson")
COLUMNAR = LayerDesign(strength=3.0)
FLAT = LayerDesign(strength=0.0, seed=10)  # with others chance may make a visible difference


# The layer


def choose_subject(columnar: bool, note: DeltaGenerator) -> Subject:
    """The generated layer, which is the same for every class, unless the user asks for a measured one.

    `note` takes what is to be said while the measured one is not there yet.
    """
    generated = subjects.generated(COLUMNAR if columnar else FLAT)
    measured = _measured(columnar)
    if measured is None:
        st.caption("A generated layer; measure a model to choose a real one.")
        return generated
    kinds = {"generated": "Generated layer", "real": "Real layer"}
    if components.section(kinds, "lesson_kind", "Layer") != "real":
        return generated
    study, layer = measured
    if study.has(layer):
        return subjects.real(study, session.plan(study, layer), layer)
    with note:
        if components.can_have_inputs(study):
            components.info(
                f"{words.short_layer(layer)} appears as soon as its inputs are collected; until then a generated layer "
                "is shown."
            )
            components.wait_for(study, lambda: study.has(layer), shown=False)
    return generated


def _measured(columnar: bool) -> tuple[Study, str] | None:
    """The layer of `subjects.examples` to show, if it can be recorded; its inputs may have to be collected first."""
    study = session.study()
    found = subjects.examples(study, session.overview(study)) if study is not None else None
    if study is None or found is None:
        return None
    layer = found[0] if columnar else found[1]
    is_small = not study.has(layer) or sweeps.trace_bytes(study, layer) <= sweeps.LARGEST_TRACE
    return (study, layer) if is_small else None


def where_from(subject: Subject, columnar: bool) -> None:
    """Says which real layer the picture shows."""
    study, plan = subject.study, subject.plan
    if study is None:
        return
    measured = study.records()["layer"].nunique()
    which, among = f"one with the {'highest' if columnar else 'lowest'} relative range", ""
    if columnar and plan.is_columnar and subjects.blocks_move(plan):
        which, among = f"columnar {which}", " among those whose blocks change places"
    st.caption(
        f"**{words.short_layer(subject.name)}** of {words.plain(study.setup.model)}: of "
        f"{words.count(measured, 'measured layer')}, the {which} ({plan.relative_range:.2f}){among}."
    )


# Steps 5 and 6: two sweeps


def sweep_step(columnar: bool) -> None:
    """Two sweeps, block by block; the result is told only after the user has seen the end."""
    left, stage = sides()
    with left:
        note, text = st.container(), st.container()
        subject = choose_subject(columnar, note)
    orders = ("natural", "two_level")
    with stage:
        pieces = [partial(subject.prune, order, "block", True) for order in orders]
        if not components.finished(pieces, f"learn-sweeps-{columnar}", subject.signature):
            return
    natural, ordered = (subject.prune(order, "block", True) for order in orders)
    blocks = len(natural.order.widths)
    step = PLAYER.step(blocks)
    seen = (subject.name, columnar)
    if step == blocks:
        st.session_state.lesson_ended = seen
    ended = st.session_state.get("lesson_ended") == seen
    with text:
        tell(texts.sweep_lesson(subject, natural, ordered, step, ended, st.session_state.get("lesson_bet")))
        if not ended:
            bets = texts.BETS
            st.pills("Your guess, before you play", list(bets), format_func=bets.__getitem__, key="lesson_bet")
    with left:
        where_from(subject, columnar)
    with stage:
        look, results = components.look(subject.name), (natural, ordered)
        PLAYER.controls(blocks, lambda: sweep_film(results, subject.energy, **look))
        show(sweep_frame(results, step, subject.energy, show_end=ended, height=PLAYED, **look), "race")


# Step 8: two effects


def effects_step() -> None:
    left, stage = sides()
    with left:
        note, text = st.container(), st.container()
        subject = choose_subject(True, note)
    with stage:
        pairs = [(order, budget) for order in subjects.SEPARATED for budget in BUDGETS]
        pieces = [partial(subject.prune, *pair, False) for pair in pairs]
        if not components.finished(pieces, "learn-effects", subject.signature):
            return
        errors = {pair: subject.prune(*pair, False).relative_error for pair in pairs}
        rows = [(*pair, error) for pair, error in errors.items()]
        table = pd.DataFrame(rows, columns=["order", "budget", "relative_error"])
        show(figures.order_budget_matrix(table, **components.look(subject.name)), "effects")
    with text:
        tell(texts.effects_lesson(subject, errors))
    with left:
        where_from(subject, True)
