"""The lessons in a browser: keyboard, and a board whose columns move by pointer and arrow keys."""

import itertools
from urllib.parse import urlencode

from playwright.sync_api import expect

from tests.app.views.test_learn import LABELS
from tests.browser.conftest import OpenPage, settle

SHOWN = ".st-key-lesson input >> nth=0"  # names the lesson on screen; for a moment the row before stands below it


def lesson(number: int, **query: str) -> str:
    return urlencode({"lesson": LABELS[number]} | query)


def test_lessons_turn_by_keyboard_and_stay_in_their_place(open_page: OpenPage) -> None:
    page, places = open_page("learn", lesson(1)), []
    expect(page.get_by_role("heading", name="One weight goes, others make up for it")).to_be_visible()
    for number in range(2, 6):
        settle(page)
        box = page.locator(".st-key-lesson-stage").bounding_box()
        assert box
        places.append((box["x"], box["y"], box["height"]))
        assert box["y"] + box["height"] <= 800, "of the screen"
        page.keyboard.press("PageDown")
        expect(page.locator(SHOWN)).to_have_value(LABELS[number])
    assert len(set(places)) == 1
    page.keyboard.press("PageUp")
    expect(page.locator(SHOWN)).to_have_value(LABELS[4])


def test_columns_move_by_pointer_and_by_arrow_keys_and_weights_are_typed(open_page: OpenPage) -> None:
    page = open_page("learn", lesson(7))
    heads = page.locator(".board thead button")
    first, last = (head.bounding_box() or {} for head in (heads.first, heads.last))
    page.mouse.move(last["x"] + 5, last["y"] + 5)
    page.mouse.down()
    page.mouse.move(first["x"] + 5, first["y"] + 5, steps=4)
    page.mouse.up()
    expect(heads.first).to_have_text("8")
    settle(page)
    heads.first.focus()
    page.keyboard.press("ArrowRight")
    expect(heads.nth(1)).to_have_text("8")
    settle(page)
    page.keyboard.press("ArrowRight")  # the moved column has kept the focus
    expect(heads.nth(2)).to_have_text("8")
    settle(page)
    page.get_by_role("button", name="Undo").click()
    expect(heads.nth(1)).to_have_text("8")
    settle(page)
    weight = page.get_by_role("textbox", name="Weight of output 0, column 8")
    weight.fill("-0.1")
    weight.press("Enter")
    expect(page.locator(".board .gone").filter(has=weight)).to_be_visible()
    assert heads.all_inner_texts() == ["0", "8", "1", "2", "3", "4", "5", "6", "7"]


def test_a_phone_shows_the_stage_first_and_its_slider_below(open_page: OpenPage) -> None:
    page = open_page("learn", lesson(2))
    page.set_viewport_size({"width": 390, "height": 800})
    settle(page)
    parts = (".st-key-lesson-stage", ".st-key-lesson_pruned", ".st-key-lesson-written")
    boxes = [page.locator(part).bounding_box() for part in parts]
    assert all(upper["y"] + upper["height"] <= lower["y"] for upper, lower in itertools.pairwise(boxes))
    expect(page.locator(".st-key-lesson-next button:visible")).to_be_in_viewport(ratio=1)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
