"""A lesson beside its stage, and the steps on the paper's worked example."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

import rose
from app import components, session
from app.figures import learn as figures
from app.figures.style import Drawing
from app.lessons import projector, subjects, texts
from app.lessons.texts import Lesson

# Of text and stage, pixels: nothing below them moves from step to step, and on a screen of 1280 × 800 nothing is cut.
HEIGHT = 560


def sides() -> tuple[DeltaGenerator, DeltaGenerator]:
    """Where the text stands, and where the figure."""
    left, right = st.columns((1, 1.55))
    height = projector.STAGE if projector.is_on() else HEIGHT
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
    if projector.is_on():
        drawing.figure.update_layout(hovermode=False)  # the pointer's place is not that of the enlarged figure
        projector.fit(f"learn-{key}", drawing.figure.layout.height)
    components.show(drawing, f"learn-{key}")


# Steps 1 to 4: the worked example


def example_step(key: str, lesson: Callable[[rose.OrderPlan], Lesson], *, losses: bool, mask: bool) -> None:
    plan = subjects.example()
    left, stage = sides()
    with left:
        tell(lesson(plan))
    with stage:
        show(_example(plan, losses=losses, mask=mask), key)


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
        if revealed:
            st.button("Guess again", icon=":material/replay:", key="lesson-again", on_click=reveal, args=(None,))
        else:
            blocks = range(len(plan.block_width))
            guess = st.pills("Your guess", blocks, format_func=lambda b: f"Block {b + 1}", key="lesson_guess")
            st.button(
                "Reveal",
                type="primary",
                disabled=guess is None,
                key="lesson-reveal",
                on_click=reveal,
                args=(guess,),
            )
    with stage:
        show(_ordered(plan) if revealed else _example(plan, losses=False, mask=True), "order")


def _example(plan: rose.OrderPlan, *, losses: bool, mask: bool) -> Drawing:
    """The example in natural order; with its losses, the block that loses most is marked."""
    lost, worst = plan.potential_loss > 0, int(plan.block_loss.argmax())
    finding = f"{int(lost.sum())} of {lost.numel()} weights would go" if mask else ""
    if losses:
        finding = f"Block {worst + 1} would lose most: {float(plan.block_loss.max()):.1f}"
    drawing = figures.number_matrix(
        plan.importance,
        plan.block_width,
        removed=lost if mask else None,
        column_loss=plan.column_loss if losses else None,
        block_loss=plan.block_loss if losses else None,
        marked_block=worst if losses else None,
        finding=finding,
        theme=session.theme(),
    )
    return _steady(drawing)


def _ordered(plan: rose.OrderPlan) -> Drawing:
    """The example with its columns in two-level order."""
    order = plan.permutation
    drawing = figures.number_matrix(
        plan.importance[:, order],
        [plan.block_width[int(b)] for b in plan.block_order],
        removed=(plan.potential_loss > 0)[:, order],
        column_loss=plan.column_loss[order],
        block_loss=plan.block_loss[plan.block_order],
        columns=order.tolist(),
        marked_block=0,
        finding=f"Pruned in the order {', '.join(str(j + 1) for j in order.tolist())}",
        theme=session.theme(),
    )
    return _steady(drawing)


def _steady(drawing: Drawing) -> Drawing:
    """Keeps the matrix at the same place in every step, with or without losses below it."""
    drawing.figure.update_layout(height=428, margin={"l": 110, "t": 100})
    drawing.figure.update_yaxes(range=[5.9, -0.6], automargin=False)
    return drawing
