"""The page Learn: an answer is shown after a guess, and edits of the board can be undone."""

import pytest
from streamlit.testing.v1 import AppTest

from app.lessons import example
from app.lessons.story import LESSONS
from tests.app.tiny_study import figures, open_page, texts

PAGE = "views/learn.py"
LABELS = [f"{number} · {lesson.title}" for number, lesson in enumerate(LESSONS)]


def lesson(number: int, **query: str) -> AppTest:
    return open_page(PAGE, lesson=str(number), **query)


@pytest.mark.parametrize("number", [number for number, lesson in enumerate(LESSONS) if lesson.question])
def test_answer_is_shown_after_a_guess(number):
    app, question = lesson(number), LESSONS[number].question
    before = texts(app)
    app.button(key="lesson-reveal").click().run()
    assert texts(app) != before
    assert f"The answer: it is *{question.answers[question.right]}*" in texts(app)
    app.button(key="lesson-again").click().run()
    for guess, verdict in ((0, f"it is *{question.answers[question.right]}*"), (question.right, "right.")):
        app.button_group[-1].set_value(question.answers[guess]).run()
        app.button(key="lesson-reveal").click().run()
        assert f"You said *{question.answers[guess]}*: {verdict}" in texts(app)
        app.button(key="lesson-again").click().run()
        assert texts(app) == before


def test_link_restores_choices():
    app = lesson(1, lesson_alike="0.9", lesson_removed="1")
    assert f"with help {example.remove_one(0.9, 1).cost:.2f} stays" in texts(app)
    app.select_slider(key="lesson_alike").set_value(0.0).run()
    assert f"with help {example.remove_one(0.0, 1).cost:.2f} stays" in texts(app)


def test_board_edits_can_be_undone():
    app = lesson(7)
    app.button(key="board-ROSE").click().run()
    board = app.session_state["lesson_board"]
    assert board["order"] == tuple(example.plan().permutation.tolist())
    app.button(key="board-undo").click().run()
    assert app.session_state["lesson_board"]["order"] == tuple(range(9))
    assert app.button(key="board-undo").disabled
    weights = ((9.0, *example.WEIGHT[0][1:]), *example.WEIGHT[1:])
    app.session_state["lesson_board"] = {"order": tuple(range(9)), "weights": weights, "past": []}
    app.run()
    assert f"{example.prune(tuple(range(9)), weight=weights).relative_error:.3g}" in figures(app)[0]
    app.button(key="board-reset").click().run()
    assert app.session_state["lesson_board"]["weights"] == example.WEIGHT
