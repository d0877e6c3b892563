"""Learn: from a weight matrix to ROSE in twelve steps, with live numbers. Works before any model is loaded."""

from collections.abc import Callable
from functools import partial

import streamlit as st

import rose
from app import components
from app.lessons import generated, orders, projector, stage, texts

STEPS: dict[str, Callable[[], None]] = {
    "Importance": partial(stage.example_step, "importance", texts.importance_lesson, losses=False, mask=False),
    "Pre-pruning": partial(stage.example_step, "pre-pruning", texts.pre_pruning_lesson, losses=False, mask=True),
    "Losses": partial(stage.example_step, "losses", texts.loss_lesson, losses=True, mask=True),
    "Order": stage.order_step,
    "Compensation": partial(orders.sweep_step, columnar=True),
    "When order does not matter": partial(orders.sweep_step, columnar=False),
    "Strength": generated.strength_step,
    "Two effects": orders.effects_step,
    "Between layers": generated.depth_step,
    "Sizes": generated.sizes_step,
    "Basis": generated.basis_step,
    "Three ways to compensate": generated.tuning_step,
}
LABELS = [f"{number} {title}" for number, title in enumerate(STEPS, 1)]


def draw() -> None:
    projector.draw()
    with st.container(key="lesson-head"):
        st.title("Learn: how does ROSE choose an order?")
        index = LABELS.index(choose_lesson())

    def body() -> None:
        try:
            list(STEPS.values())[index]()
        except rose.RoseError as problem:
            components.error(problem)

    orders.PLAYER.live(body)
    back, middle, forth = st.columns([1, 3, 1], vertical_alignment="center")
    back.button(
        "Previous",
        icon=":material/arrow_back:",
        key="lesson-previous",
        on_click=turn,
        args=(-1,),
        disabled=index == 0,
        help="Page Up",
        width="stretch",
    )
    with middle.container(horizontal=True, horizontal_alignment="center", vertical_alignment="center"):
        if projector.is_on():
            st.caption(f"{LABELS[index]}, of {len(LABELS)}", width="content")
        projector.button()
    forth.button(
        "Next",
        icon=":material/arrow_forward:",
        icon_position="right",
        key="lesson-next",
        on_click=turn,
        args=(1,),
        disabled=index == len(STEPS) - 1,
        help="Page Down",
        type="primary",
        width="stretch",
    )


def choose_lesson() -> str:
    first = None if "lesson" in st.session_state else LABELS[0]  # a default and a value set by hand exclude each other
    labels = {label: label for label in LABELS}
    return components.section(labels, "lesson", "Step", default=first, on_change=turned, wrap=True) or LABELS[0]


def turn(by: int) -> None:
    # From where the session stands, not from where the button was drawn: two quick clicks turn two pages.
    here = LABELS.index(st.session_state.lesson)
    st.session_state.lesson = LABELS[min(max(here + by, 0), len(LABELS) - 1)]
    turned()


def turned() -> None:
    """Callback: another lesson starts from the beginning."""
    orders.PLAYER.rewind()
    st.session_state.lesson_ended = st.session_state.lesson_bet = None


draw()
