"""The order lab in a browser, on a columnar layer of the packaged model: blocks are dragged."""

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


def place(strip: Locator, across: float) -> tuple[float, float]:
    """A point on the handles, at this part of the strip's columns."""
    box = strip.bounding_box()
    assert box is not None
    return box["x"] + 64 + across * (box["width"] - 64), box["y"] + 194


def drag(page: Page, strip: Locator, start: float, end: float) -> None:
    page.mouse.move(*place(strip, start))
    page.mouse.down()
    page.mouse.move(*place(strip, end), steps=6)
    page.mouse.up()


def says(page: Page) -> str:
    """What one's own bar is called."""
    return page.locator(".annotation-text").filter(has_text="Yours").last.text_content() or ""


def test_a_dragged_block_snaps_and_a_link_restores_the_order(open_page: OpenPage, measured: str) -> None:
    page, strip = lab(open_page, measured)
    assert "natural order" in says(page)
    drag(page, strip, 0.95, 0.02)  # the narrow last block goes first, though it is let go beside the edge
    moved = r"own=512-575%2F0-127%2F128-255%2F256-383%2F384-511"
    expect(page).to_have_url(re.compile(moved))
    settle(page)
    assert "block 4 first" in says(page)
    link = urlparse(page.url).query
    drag(page, strip, 0.05, 0.06)  # a click moves nothing
    settle(page)
    expect(page).to_have_url(re.compile(moved))
    page.get_by_role("button", name="Undo").click()
    settle(page)
    assert "natural order" in says(page)
    assert "block 4 first" in says(lab(open_page, link)[0])


def test_blocks_move_by_keyboard(open_page: OpenPage, measured: str) -> None:
    page, strip = lab(open_page, measured)
    strip.focus()
    page.keyboard.press("End")  # the first block goes last
    expect(page).to_have_url(re.compile("own=128-255%2F256-383%2F384-511%2F512-575%2F0-127"))
