"""A first visit in a browser: measure a model, look at all layers, and choose one."""

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


def test_from_the_dialog_to_one_layer(open_page: OpenPage) -> None:
    page = open_page("", "samples=4&length=256&held_out=2&seed=0")
    page.get_by_role("button", name="Measure a model").click()
    choose(page, "Layers", "Layers by name")
    names = page.get_by_role("textbox", name="Names")
    names.fill(f"{COLUMNAR_LAYER} model.layers.0.self_attn.*")
    names.press("Enter")
    expect(page.get_by_text(re.compile(r"Five layers.* tokens: about"))).to_be_visible()
    settle(page)
    page.get_by_role("dialog").get_by_role("button", name="Only choose it").click()
    settle(page)
    measure(page)
    expect_finding(page, "^One of five layers is columnar")
    thumb = page.get_by_role("slider", name=re.compile("Columnar above"))
    expect(thumb).to_have_count(1)
    thumb.press("End")
    expect_finding(page, "^None of five layers is columnar")
    thumb.press("Home")
    expect_finding(page, "^All five layers are columnar")
    settle(page)
    expect(page).to_have_url(re.compile("threshold=0"))

    # A click on the rightmost mark of the scatter, of the highest relative range, chooses its layer.
    marks = page.locator(".st-key-explore-scatter .scatterlayer .points path.point").all()
    click_mark(page, max(marks, key=lambda mark: (mark.bounding_box() or {})["x"]))
    expect(chosen_layer(page)).to_have_value("18 · o_proj")
    settle(page)
    page.get_by_role("radio", name="½ head").click()
    expect(page).to_have_url(re.compile("what_block=32"))


def test_a_section_shows_the_chosen_layer_weight_by_weight(open_page: OpenPage, measured: str) -> None:
    page = open_page("", f"{measured}&layer={COLUMNAR_LAYER}", "dark")
    section(page, "Errors of the methods")
    expect_finding(page, " less error than SparseGPT$", at=5)
    section(page, "Losses, weight by weight")
    choose(page, "Show", "Column loss by block")
    expect_finding(page, "^Column [0-9]+ in block [0-9] would lose most", at=5)
    choose(page, "Block outlined", "1")
    settle(page)
    expect(page).to_have_url(re.compile("block=1"))
