"""Learn: why the order of pruning matters, and how much, in ten lessons. Works before any model is loaded."""

from typing import Any

import streamlit as st

from app import components, glossary, session, words
from app.figures.style import Drawing
from app.lessons import board, projector
from app.lessons.story import LESSONS, Lesson, Question, Slider

LABELS = [f"{number} · {lesson.title}" for number, lesson in enumerate(LESSONS)]
HEIGHT, ROOM = projector.STAGE, 170  # pixels of text and stage, and above and below them where a screen has more
TALL = f"""<style>
:has(> :is(.st-key-lesson-text, .st-key-lesson-stage)) {{
  flex-basis: max({HEIGHT}px, 100vh - {ROOM}px) !important; height: max({HEIGHT}px, 100vh - {ROOM}px) !important;
}}
.st-key-lesson-stage :is([data-testid="stCaptionContainer"], p) {{ margin-bottom: 0 !important; }}
@media (max-width: 640px) {{
  :has(> :is(.st-key-lesson-text, .st-key-lesson-stage)) {{ flex-basis: auto !important; height: auto !important; }}
  .st-key-lesson-stage [class*="st-key-learn-"]:has(.stPlotlyChart) {{ height: 420px; flex: none; }}
  /* Stage, controls, text: a hand on a slider sees what changes. The row that turns lessons stays in reach. */
  .stColumn:has(.st-key-lesson-text), .stColumn :has(.st-key-lesson-text), .st-key-lesson-text {{ display: contents; }}
  .st-key-lesson-text > * {{ order: 2; flex: 0 0 100%; }}
  .st-key-lesson-text > :is(.st-key-lesson-written, :has(.st-key-lesson-written)) {{ order: 3; }}
  .st-key-lesson-text > :is(.st-key-lesson-asked, :has(.st-key-lesson-asked)) {{ order: 4; }}
  .stColumn:has(.st-key-lesson-stage) {{ order: 1; }}
  .st-key-lesson-row {{ position: fixed; inset: auto 0 0; z-index: 9; padding: 6px; background: Canvas; }}
  .st-key-lesson-row {{ flex-wrap: nowrap; }}
  .st-key-lesson-row .st-key-lesson {{ flex: 1; min-width: 0; width: auto !important; }}
  .st-key-lesson-row > :is(.st-key-lesson-project, :has(.dots), :has(.stSpace)) {{ display: none; }}
  .st-key-lesson-row :is(.st-key-lesson-previous, .st-key-lesson-next) p {{ display: none; }}
}}
.dots {{ display: flex; gap: 10px; }}
.dots i {{ width: 9px; height: 9px; border-radius: 5px; background: #8884; }}
.dots .done {{ background: var(--primary); }}
</style>"""


def draw() -> None:
    projector.draw()
    lesson = LESSONS[navigate()]
    components.live(lambda: draw_lesson(lesson), None)


def navigate() -> int:
    """One row: how far the lessons have got, the lesson, the projector, back and forth; returns the lesson."""
    if st.session_state.get("lesson") not in LABELS:
        asked = st.query_params.get("lesson")  # the number of a lesson, or its label
        st.session_state.lesson = next((label for label in LABELS if asked in (label, label.split()[0])), LABELS[0])
    index = LABELS.index(st.session_state.lesson)
    dots = "".join(f'<i class="{"done" if place <= index else ""}"></i>' for place in range(len(LESSONS)))
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="lesson-row"):
        st.html(f'<div class="dots" aria-hidden="true">{dots}</div>', width="content")
        st.selectbox("Lesson", LABELS, key="lesson", label_visibility="collapsed", width=230, bind=components.URL)
        projector.button()
        st.space("stretch")
        for key, by, help in (("previous", -1, "Page Up"), ("next", 1, "Page Down")):
            there = 0 <= index + by < len(LABELS)
            label = LESSONS[index + by].title if there else "Previous" if by < 0 else "Next"
            st.button(
                label, icon=f":material/arrow_{'back' if by < 0 else 'forward'}:", key=f"lesson-{key}", help=help,
                on_click=turn, args=(by,), disabled=not there, type="primary" if by > 0 and there else "secondary",
                icon_position="left" if by < 0 else "right",
            )  # fmt: skip
    return LABELS.index(st.session_state.lesson)


def turn(by: int) -> None:
    # Counted from the session's page, so that two quick clicks turn two pages.
    index = LABELS.index(st.session_state.lesson)
    st.session_state.lesson = LABELS[min(max(index + by, 0), len(LABELS) - 1)]


def draw_lesson(lesson: Lesson) -> None:
    left, right = st.columns((1, 1.3 if projector.is_on() else 1.5), gap="large")
    if not projector.is_on():
        st.html(TALL)
    text = left.container(height=HEIGHT, border=False, key="lesson-text")
    stage = right.container(height=HEIGHT, border=False, key="lesson-stage")
    guess = st.session_state.get(f"told-{lesson.title}") if lesson.question else ""
    state = "before" if guess is None else "after"
    with text:
        written = st.container(key="lesson-written")
        controls = [c for c in lesson.controls if isinstance(c, Slider) or c.shown in ("always", state)]
        values = {c.key: c.default if isinstance(c, Slider) else c.first for c in lesson.controls}
        for control, place in zip(controls, st.columns(len(controls)) if controls else [], strict=True):
            with place:
                values[control.key] = choose(control)
        with st.container(key="lesson-asked"):
            if lesson.question:
                ask(lesson.title, lesson.question, guess)
            proves = lesson.proof and st.toggle(lesson.proof[0], key=f"proof-{lesson.title}")
    screen = lesson.screen(values, guess is not None)
    with written:
        st.title(screen.claim, anchor=False)
        shown = lesson.proof[1] if lesson.proof and proves else screen.text
        st.markdown(glossary.marked(words.held(shown)), unsafe_allow_html=True)
        if screen.stage is None:
            board.buttons()
    with stage:
        if screen.stage is None:
            board.draw()
        show(board.compared() if screen.stage is None else screen.stage(theme=session.theme()))


def choose(control: Any) -> Any:
    key = f"lesson_{control.key}"
    if not isinstance(control, Slider):
        return components.choose(control.label, control.options, key, default=control.first)
    return st.select_slider(
        control.label, control.values, control.default, format_func=control.show, key=key, bind=components.URL
    )


def ask(title: str, question: Question, guess: str | None) -> None:
    """Takes a guess, or none from a class that votes by hands; then shows the answer. Space presses the button."""

    def tell(answer: str | None) -> None:
        st.session_state[f"told-{title}"] = answer

    if guess is None:
        chosen = st.pills(question.asks, question.answers, key=f"guess-{title}")
        st.button("Reveal", type="primary", key="lesson-reveal", on_click=tell, args=(chosen or "",))
    else:
        right = question.answers[question.right]
        verdict = f"You said *{guess}*: " if guess else "The answer: "
        verdict += "right." if guess == right else f"it is *{right}*."
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(verdict, width="content")
            st.button("Guess again", icon=":material/replay:", key="lesson-again", on_click=tell, args=(None,))


def show(drawing: Drawing) -> None:
    """The figure, as high as the stage has room; on a projector as high as it is."""
    if projector.is_on():
        drawing.figure.update_layout(hovermode=False)  # the pointer's place does not fit the enlarged figure
        projector.fit("learn-figure", drawing)
    components.show(drawing, "learn-figure", height="content" if projector.is_on() else "stretch")


draw()
