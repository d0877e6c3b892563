"""The steps that prune a layer, generated or measured, in several orders: played block by block, and by budget."""

from __future__ import annotations

import time
from functools import partial

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import components, session, words
from app.components import URL
from app.figures import order_lab as figures
from app.figures.race import race_animation, sweep_race
from app.lab import sweeps
from app.lessons import subjects, texts
from app.lessons.stage import show, sides, tell
from app.lessons.subjects import LayerDesign, Subject
from app.study.study import Study
from rose.layer.methods import BUDGETS

SPEEDS = {1.0: "1×", 0.5: "½×", 2.0: "2×", 4.0: "4×"}
TICK = 1.2  # seconds a block is shown while a sweep plays at speed 1
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
        st.caption("A generated layer. Once a model is measured, you can choose a real one.")
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
    """Says which real layer the stage shows."""
    study, plan = subject.study, subject.plan
    if study is None:
        return
    measured = study.records()["layer"].nunique()
    word = f"{'highest' if columnar else 'lowest'} relative range"
    if columnar and plan.is_columnar and subjects.blocks_move(plan):
        word += " of a columnar layer whose blocks change places"
    st.caption(
        f"**{words.short_layer(subject.name)}** of {words.plain(study.setup.model)}: the {word}, "
        f"{plan.relative_range:.2f}, of {words.count(measured, 'measured layer')}."
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
    step = played_step(blocks)
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
        play_controls(blocks).download_button(
            ":material/download:",
            lambda: components.as_html(race_animation(results, subject.energy, **look)),
            "sweep.html",
            on_click="ignore",
            key="lesson-animation",
            help="The whole sweep as one HTML file that plays in any browser, without a network",
            width="stretch",
        )
        show(sweep_race(results, step, subject.energy, height=376, show_end=ended, **look), "race")


def played_step(blocks: int) -> int:
    """The step to show now; one more where the sweep plays and the tick has passed."""
    state = st.session_state
    # The step of a link: the widget that is bound to it is drawn only after the step has been used.
    linked = st.query_params.get("lesson_step", "0")
    step = min(state.get("lesson_at", int(linked) if linked.isdecimal() else 0), blocks)
    if playing() and time.monotonic() - state.lesson_ticked >= 0.8 * tick():
        step, state.lesson_ticked = min(step + 1, blocks), time.monotonic()
        if step == blocks:
            state.lesson_playing = False
    state.lesson_at = state.lesson_step = step
    return step


def playing() -> bool:
    return bool(st.session_state.get("lesson_playing"))


def tick() -> float:
    """Seconds a block is shown at the chosen speed."""
    return TICK / (st.session_state.get("lesson_speed") or 1.0)


def play(blocks: int) -> None:
    state = st.session_state
    state.lesson_playing, state.lesson_ticked = not playing(), 0.0 if playing() else time.monotonic()
    if playing() and state.get("lesson_at", 0) >= blocks:
        state.lesson_at = 0


def moved() -> None:
    """The slider has been moved by hand, which ends the play, or a busy browser repeats what it showed a moment ago."""
    state = st.session_state
    is_recent = time.monotonic() - state.get("lesson_ticked", 0.0) < 5 * TICK
    if not (is_recent and state.lesson_at - 3 < state.lesson_step < state.lesson_at):
        state.lesson_playing, state.lesson_at = False, state.lesson_step


def go(by: int, blocks: int) -> None:
    state = st.session_state
    state.lesson_playing, state.lesson_at = False, min(max(state.lesson_at + by, 0), blocks)


def play_controls(blocks: int) -> DeltaGenerator:
    """Play and pause, one block back or forward, position and speed; gives the place beside them."""
    start, back, forth, where, speed, beside = st.columns([2.1, 0.8, 0.8, 2.6, 1.5, 0.8], vertical_alignment="bottom")
    step, label, icon = st.session_state.lesson_at, "Play", "play_arrow"
    if playing():
        label, icon = "Pause", "pause"
    start.button(label, icon=f":material/{icon}:", key="lesson-play", on_click=play, args=(blocks,), width="stretch")
    for place, way, by, end in ((back, "back", -1, 0), (forth, "forth", 1, blocks)):
        place.button(
            f":material/chevron_{'left' if by < 0 else 'right'}:",
            key=f"lesson-{way}",
            help=f"One block {'back' if by < 0 else 'forward'}",
            on_click=go,
            args=(by, blocks),
            disabled=step == end,
            width="stretch",
        )
    where.slider("Blocks pruned", 0, blocks, key="lesson_step", on_change=moved, bind=URL)
    speed.selectbox("Speed", list(SPEEDS), format_func=SPEEDS.__getitem__, key="lesson_speed")
    return beside


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
