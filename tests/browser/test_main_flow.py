"""A first visit in a browser: start, measure, look at all layers, and choose one."""

import re

from playwright.sync_api import expect

from tests.browser.conftest import (
    COLUMNAR_LAYER,
    OpenPage,
    choose,
    chosen_layer,
    click_mark,
    expect_finding,
    measure,
    section,
    settle,
)


def test_from_the_start_to_one_layer(open_page: OpenPage) -> None:
    page = open_page("", "samples=4&length=256&held_out=2&seed=0")
    choose(page, "Layers", "Layers by name")
    names = page.get_by_role("textbox", name="Names")
    names.fill(f"{COLUMNAR_LAYER} model.layers.0.self_attn.*")
    names.press("Enter")
    expect(page.get_by_text(re.compile(r"Five layers.* tokens: about"))).to_be_visible()
    settle(page)
    measure(page)

    page.get_by_role("link", name="See all layers").click()
    expect_finding(page, "^One of five layers is columnar")
    thumb = page.get_by_role("slider", name=re.compile("Columnar above"))
    thumb.press("End")
    none = "None of five layers is columnar above 1 (ROSE's own threshold, 0.5, gives one)."
    expect(page.get_by_text(none)).to_be_visible()
    thumb.press("Home")
    expect(page.get_by_text(re.compile("All five layers are columnar above 0"))).to_be_visible()
    settle(page)
    expect(page).to_have_url(re.compile("threshold=0"))

    # A click on the rightmost mark of the scatter, of the highest relative range, chooses its layer on all pages.
    marks = page.get_by_test_id("stPlotlyChart").nth(1).locator(".scatterlayer .points path.point").all()
    click_mark(page, max(marks, key=lambda mark: (mark.bounding_box() or {})["x"]))
    expect(chosen_layer(page)).to_have_value("18 · self_attn.o_proj")
    settle(page)
    expect(page).not_to_have_url(re.compile("layer="))  # the most columnar one, which a link without a layer shows
    page.get_by_role("link", name="Open 18 · self_attn.o_proj").click()
    expect(page.get_by_text(re.compile(r"columnar, relative range 0\.\d+ > 0\. "))).to_be_visible()


def test_a_click_on_a_bar_marks_its_block(open_page: OpenPage, measured: str) -> None:
    page = open_page("layer", f"{measured}&layer={COLUMNAR_LAYER}", "dark")
    section(page, "Error")
    expect_finding(page, " less error than SparseGPT$")
    page.get_by_text(re.compile("^More: ")).click()
    settle(page)
    section(page, "Blocks")
    expect_finding(page, r"^Columnar: relative range 0\.\d+, above 0.5$", at=1)
    click_mark(page, page.get_by_test_id("stPlotlyChart").nth(1).locator(".barlayer .point").nth(1))
    settle(page)
    expect(page).to_have_url(re.compile(r"block=Block\+1"))
    expect(page.get_by_role("combobox", name="Block")).to_have_value("Block 1")
