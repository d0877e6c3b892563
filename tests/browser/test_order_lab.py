"""The order lab in a browser, on a columnar layer of the packaged model: what a person reads there."""

import re
from urllib.parse import parse_qs, urlencode, urlparse

from playwright.sync_api import Page, expect

from tests.browser.conftest import COLUMNAR_LAYER, OpenPage, metric, settle


def lab(open_page: OpenPage, measured: str, section: str, scheme: str = "light") -> Page:
    query = f"{measured}&{urlencode({'layer': COLUMNAR_LAYER, 'lab_section': section})}"
    page = open_page("order_lab", query, scheme)
    expect(page.get_by_role("heading", name="Order lab: does the pruning order matter?")).to_be_visible()
    expect(page.get_by_role("radio", name=section)).to_be_checked()
    return page


def tile(page: Page, label: str) -> float:
    return float(metric(page, label).inner_text())


def test_curves_and_table(open_page: OpenPage, measured: str) -> None:
    page = lab(open_page, measured, "Compare orders")
    lowest = page.get_by_text("Lowest: ")
    expect(lowest).to_be_visible()
    times = [float(x) for x in re.findall(r"(\d\.\d{3}) times", lowest.inner_text())]
    assert times[0] < 0.9 < 1.0 <= times[1]  # on this layer an order saves more than a tenth, and another costs
    expect(page.locator(".main-svg .scatterlayer .trace")).to_have_count(10)  # two random bands with their means
    expect(page.get_by_text("Each removes 70.0 % of the weights.")).to_be_visible()


def test_a_link_to_the_former_race_of_solvers_leads_to_it(open_page: OpenPage, measured: str) -> None:
    page = open_page("order_lab", f"{measured}&lab_section=Race+of+solvers&lab_work=2.0")
    expect(page.get_by_role("heading", name="Prune: what does the whole model lose?")).to_be_visible()
    expect(page.get_by_role("radio", name="How the methods get there")).to_be_checked()
    expect(page).to_have_url(re.compile(r"race_work=2\.0"))


def test_an_order_of_ones_own(open_page: OpenPage, measured: str) -> None:
    page = lab(open_page, measured, "Your own order")
    natural, two_level = tile(page, "Natural order"), tile(page, "Two-level order")
    assert two_level != natural == tile(page, "Your order")  # on so few held-out tokens either may be lower
    page.get_by_role("button", name="last_page").click()
    expect(page.get_by_text("1 → 2 → 3 → 4 → 0")).to_be_visible()
    settle(page)
    last = tile(page, "Your order")
    assert last > natural  # the costliest block finds no help at the end
    link = page.url
    assert parse_qs(urlparse(link).query)["own"] == ["natural:1.2.3.4.0"]
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("0 → 1 → 2 → 3 → 4")).to_be_visible()
    settle(page)
    assert tile(page, "Your order") == natural
    # The link restores the order in another session.
    other = open_page("order_lab", urlparse(link).query)
    expect(other.get_by_text("1 → 2 → 3 → 4 → 0")).to_be_visible()
    settle(other)
    assert tile(other, "Your order") == last


def test_scrubbing_by_keyboard(open_page: OpenPage, measured: str) -> None:
    page = lab(open_page, measured, "Inside a sweep", "dark")
    expect(page.get_by_text("448 of 576 columns are still free")).to_be_visible()
    page.locator(".st-key-lab_step").get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_text("320 of 576 columns are still free")).to_be_visible()
    settle(page)
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_text(re.compile(r" 0 of 576 columns are still free"))).to_be_visible()
    expect(page.get_by_text("Loss without compensation")).to_be_visible()
    expect(page.get_by_text("of the error", exact=False).first).to_be_visible()


def test_every_position_of_the_costliest_block(open_page: OpenPage, measured: str) -> None:
    page = lab(open_page, measured, "Where should the costliest block go?")
    caption = page.get_by_text("The error is lowest")
    expect(caption).to_contain_text("of 5.")
    low, high = (float(x) for x in re.findall(r"(\d\.\d+), at position", caption.inner_text()))
    assert low < high


def test_bars_and_matrix(open_page: OpenPage, measured: str) -> None:
    page = lab(open_page, measured, "By sparsity")
    expect(page.get_by_text("Mean over four sparsities", exact=False)).to_be_visible()
    page.get_by_role("radio", name="Order and budget").click()
    expect(page.get_by_text("Order alone (under the block budget) saves at most", exact=False)).to_be_visible()
    settle(page)
    expect(page).to_have_url(re.compile(r"lab_section=Order\+and\+budget"))
