"""A lesson beside its stage, and the steps on the paper's worked example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st
import torch
from streamlit.delta_generator import DeltaGenerator

import rose
from app import components, session
from app.figures import losses as figures
from app.figures.style import Drawing
from app.lessons import projector, subjects, texts
from app.lessons.texts import Lesson

# Of text and stage, pixels: nothing below them moves from step to step, and on a screen of 1280 × 800 nothing is cut.
HEIGHT = 560
PLAYED = 424  # of them, for what is played, below the player's controls
ROOM = 240  # pixels above and below them, on a screen that has more
BARE = "<style>.st-key-lesson-stage .modebar-container { display: none; }</style>"  # it would cover names
TALL = f"""<style>
:has(> :is(.st-key-lesson-text, .st-key-lesson-stage)) {{
  flex-basis: max({HEIGHT}px, 100vh - {ROOM}px) !important; height: max({HEIGHT}px, 100vh - {ROOM}px) !important;
}}
@media (max-width: 640px) {{
  :has(> :is(.st-key-lesson-text, .st-key-lesson-stage)) {{ flex-basis: auto !important; height: auto !important; }}
  .st-key-lesson-stage [class*="st-key-learn-"]:has(.stPlotlyChart) {{ height: 400px; flex: none; }}
}}
</style>"""


def sides() -> tuple[DeltaGenerator, DeltaGenerator]:
    """Where the text stands, and where the figure."""
    left, right = st.columns((1, 1.55))
    height = projector.STAGE if projector.is_on() else HEIGHT
    st.html(BARE if projector.is_on() else BARE + TALL)
    return (
        left.container(height=height, border=False, key="lesson-text"),
        right.container(height=height, border=True, key="lesson-stage"),
    )


def tell(lesson: Lesson) -> None:
    st.header(lesson.claim, anchor=False)
    for formula in lesson.formulas:
        st.latex(formula)
    st.markdown(lesson.text)


def show(drawing: Drawing, key: str) -> None:
    """The figure, as high as the stage has room; on a projector as high as it is."""
    if projector.is_on():
        drawing.figure.update_layout(hovermode=False)  # the pointer's place is not that of the enlarged figure
        projector.fit(f"learn-{key}", drawing.figure.layout.height)
    components.show(drawing, f"learn-{key}", height="content" if projector.is_on() else "stretch")


# Steps 1 to 4: the worked example


def example_step(key: str, lesson: Callable[[rose.OrderPlan], Lesson], *, losses: bool, mask: bool) -> None:
    plan = subjects.example()
    left, stage = sides()
    with left:
        tell(lesson(plan))
    with stage:
        show(_example(plan, losses=losses, mask=mask), key)


def reveal_button(told: bool, guess: object, reveal: Callable[[Any], None]) -> None:
    """Tells the answer once there is a guess, or takes guess and answer back; on a projector, space presses it."""
    if told:
        st.button("Guess again", icon=":material/replay:", key="lesson-again", on_click=reveal, args=(None,))
    else:
        st.button("Reveal", type="primary", disabled=guess is None, key="lesson-reveal", on_click=reveal, args=(guess,))


def order_step() -> None:
    """Predict, then reveal."""
    plan, state = subjects.example(), st.session_state
    left, stage = sides()
    revealed, guess = bool(state.get("lesson_revealed")), state.get("lesson_guess")

    def reveal(guess: int | None) -> None:
        # Assigned by hand: the widget that made the guess is gone on the next run, and its value with it.
        state.lesson_guess, state.lesson_revealed = guess, guess is not None

    with left:
        tell(texts.order_lesson(plan, guess if revealed else None))
        if not revealed:
            blocks = range(len(plan.block_width))
            guess = st.pills("Your guess", blocks, format_func=lambda b: f"Block {b + 1}", key="lesson_guess")
        reveal_button(revealed, guess, reveal)
    with stage:
        show(_example(plan, losses=revealed, mask=True, ordered=revealed), "order")


def _example(plan: rose.OrderPlan, *, losses: bool, mask: bool, ordered: bool = False) -> Drawing:
    """The example in natural or two-level order; with its losses, the block that loses most is marked."""
    natural = torch.arange(len(plan.permutation)), torch.arange(len(plan.block_width))
    columns, blocks = (plan.permutation, plan.block_order) if ordered else natural
    lost, losing = plan.potential_loss > 0, plan.block_loss[blocks]
    finding = f"{int(lost.sum())} of {lost.numel()} weights would go" if mask else ""
    if ordered:
        finding = f"Pruned in the order {', '.join(str(j + 1) for j in columns.tolist())}"
    elif losses:
        finding = f"Block {int(losing.argmax()) + 1} would lose most: {float(losing.max()):.1f}"
    drawing = figures.number_matrix(
        plan.importance[:, columns],
        [plan.block_width[int(b)] for b in blocks],
        removed=lost[:, columns] if mask else None,
        column_loss=plan.column_loss[columns] if losses else None,
        block_loss=losing if losses else None,
        columns=columns.tolist(),
        marked_block=int(losing.argmax()) if losses else None,
        finding=finding,
        theme=session.theme(),
    )
    # One height and one left edge in every step; the rows give way to the losses when these come.
    drawing.figure.update_layout(height=468, margin={"l": 110, "t": 100})
    drawing.figure.update_yaxes(automargin=False)
    return drawing
