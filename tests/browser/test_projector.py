"""Lessons on a projector: a clicker turns them wherever the focus is, and nothing of a lesson is cut off."""

import re
from urllib.parse import urlencode

from playwright.sync_api import expect

from app.lessons.story import LESSONS
from tests.app.views.test_learn import LABELS
from tests.browser.conftest import OpenPage, settle
from tests.browser.test_learn import SHOWN

# Of a lesson's text and of its stage: how far they can be scrolled, which is what does not fit.
HIDDEN_IN = """(name => {
    const parts = [...document.querySelectorAll(`.st-key-${name}, .st-key-${name} *, :has(> .st-key-${name})`)];
    const boxes = parts.filter(part => ["auto", "scroll"].includes(getComputedStyle(part).overflowY));
    return Math.max(0, ...boxes.map(box => box.scrollHeight - box.clientHeight));
})"""
SIZES = ((1280, 800), (1920, 1080))


def test_a_clicker_turns_lessons_wherever_the_focus_is(open_page: OpenPage) -> None:
    page = open_page("learn", urlencode({"lesson": LABELS[4], "projector": "on"}))
    expect(page.get_by_test_id("stTopNav")).to_be_hidden()
    slider = page.locator(".st-key-lesson_trade").get_by_role("slider")
    slider.focus()
    page.keyboard.press("ArrowRight")  # a swap, not a lesson
    expect(page.locator(".figure-title b")).to_have_text(re.compile("Price of column 0 ×"), use_inner_text=True)
    settle(page)
    page.keyboard.press("PageUp")
    expect(page.locator(SHOWN)).to_have_value(LABELS[3])
    settle(page)
    page.keyboard.press("ArrowRight")
    expect(page.locator(SHOWN)).to_have_value(LABELS[4])
    settle(page)
    page.keyboard.press("Escape")
    expect(page.get_by_test_id("stTopNav")).to_be_visible()


def test_space_shows_an_answer_before_it_turns_the_lesson(open_page: OpenPage) -> None:
    page = open_page("learn", urlencode({"lesson": LABELS[3], "projector": "on"}))
    page.keyboard.press(" ")
    expect(page.get_by_text("The answer: it is hardly any.")).to_be_visible()
    settle(page)
    page.keyboard.press(" ")
    expect(page.locator(SHOWN)).to_have_value(LABELS[4])


def test_no_part_of_a_lesson_is_cut_off(open_page: OpenPage) -> None:
    page = open_page("learn", urlencode({"projector": "on"}))
    for label, lesson in zip(LABELS, LESSONS, strict=True):
        expect(page.locator(SHOWN)).to_have_value(label)
        settle(page)
        if lesson.question:
            page.get_by_role("radio", name=lesson.question.answers[0]).click()
            page.get_by_role("button", name="Reveal").click()
            expect(page.get_by_role("button", name="Guess again")).to_be_visible()
            settle(page)
        for width, height in SIZES:
            page.set_viewport_size({"width": width, "height": height})
            for part in ("lesson-text", "lesson-stage"):
                page.wait_for_function(f"{HIDDEN_IN}({part!r}) <= 1")  # figures follow the window a moment later
            expect(page.locator(".st-key-lesson-next button:visible")).to_be_in_viewport(ratio=1)
        page.keyboard.press("PageDown")
