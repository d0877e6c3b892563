"""The order lab in a browser, on a columnar layer of the packaged model: columns and shares are dragged."""

import re
from urllib.parse import urlencode, urlparse

from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import COLUMNAR_LAYER, OpenPage, settle


def lab(open_page: OpenPage, measured: str, **query: str) -> tuple[Page, Locator]:
    page = open_page("order_lab", f"{measured}&{urlencode({'layer': COLUMNAR_LAYER} | query)}")
    strip = page.locator("canvas[role=application]")
    expect(strip).to_be_visible()
    settle(page)
    return page, strip


def drag(page: Page, strip: Locator, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From one place to another, in parts of the strip's width and pixels from its top."""
    box = strip.bounding_box()
    assert box is not None
    (x, y), (to_x, to_y) = ((box["x"] + across * box["width"], box["y"] + down) for across, down in (start, end))
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(to_x, to_y, steps=6)
    page.mouse.up()


def error(page: Page) -> str:
    """One's own error, at the end of its line."""
    return page.locator(".annotation-text").filter(has_text="Yours").text_content() or ""


def test_columns_and_shares_are_dragged_and_a_link_restores_the_order(open_page: OpenPage, measured: str) -> None:
    page, strip = lab(open_page, measured)
    natural = error(page)
    drag(page, strip, (0.95, 60), (0.95, 60))  # a click chooses the last block
    drag(page, strip, (0.95, 60), (0.0, 60))
    expect(page).to_have_url(re.compile(r"own=512-575%2C0-511"))
    settle(page)
    moved = error(page)
    assert moved != natural
    link = urlparse(page.url).query
    drag(page, strip, (0.3, 180), (0.3, 220))
    expect(page.get_by_role("combobox", name="Shares of blocks")).to_have_value("Your own")
    settle(page)
    assert error(page) != moved
    page.get_by_role("button", name="Undo").click()
    settle(page)
    assert error(page) == moved
    assert error(lab(open_page, link)[0]) == moved


def test_columns_move_by_keyboard(open_page: OpenPage, measured: str) -> None:
    page, strip = lab(open_page, measured)
    strip.focus()
    page.keyboard.press("End")  # the first block goes last
    expect(page).to_have_url(re.compile(r"own=128-575%2C0-127"))
