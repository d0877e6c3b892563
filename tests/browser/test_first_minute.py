"""The first minute in a browser: the example, words, Back, downloads, narrow screens and accessibility."""

import itertools
import re
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.conftest import COLUMNAR_LAYER, OpenPage, choose, chosen_layer, expect_finding, settle

PAGES = ("Explore", "Learn", "Order lab", "Prune", "Make it smaller", "Check", "Glossary")
SERIOUS = ("serious", "critical")


def go(page: Page, name: str) -> None:
    """To another page, by the navigation on top."""
    page.get_by_role("link", name=name, exact=True).first.click()
    settle(page)


def test_the_example_stands_on_the_first_screen_and_words_explain_themselves(open_page: OpenPage) -> None:
    page = open_page()
    expect_finding(page, "^Four of 210 layers are columnar")
    expect_finding(page, "^18 · o_proj is columnar", at=2)
    for part in (".st-key-threshold-scale", ".st-key-layer-blocks", ".st-key-layer-errors-twice"):
        expect(page.locator(part).last).to_be_in_viewport()
    word = page.locator(".figure-title dfn", has_text="columnar").first
    expect(word.get_by_role("tooltip")).to_be_hidden()
    word.focus()
    expect(word.get_by_role("tooltip")).to_contain_text("Some blocks of the layer's columns would lose far more")
    go(page, "Glossary")
    expect(page.get_by_text("Pre-pruning").first).to_be_visible()


def test_keys_move_the_chosen_layer(open_page: OpenPage) -> None:
    page = open_page()
    expect(chosen_layer(page)).to_have_value("18 · o_proj")
    page.locator(".figure-title").first.click()
    page.keyboard.press("k")
    expect(chosen_layer(page)).to_have_value("18 · gate_proj")
    page.keyboard.press("j")
    expect(chosen_layer(page)).to_have_value("18 · o_proj")


def test_old_links_lead_to_sections(open_page: OpenPage) -> None:
    for old, view, name in (("runs", "prune", "Compare runs"), ("structures", "smaller", "Heads and channels")):
        page = open_page(old)
        expect(page).to_have_url(re.compile(f"/{view}"))
        expect(page.get_by_role("radio", name=name, exact=True)).to_be_checked()


def test_old_links_lead_to_explore(open_page: OpenPage, measured: str) -> None:
    for old in ("layers", "layer"):
        page = open_page(old, f"{measured}&layer=model.layers.18.mlp.up_proj")
        expect(page).to_have_url(re.compile(r"/\?.*layer=model.layers.18.mlp.up_proj"))
        expect(chosen_layer(page)).to_have_count(1)  # for a moment the page before stays beside it
        expect(chosen_layer(page)).to_have_value("18 · up_proj")


def test_figures_follow_the_theme(open_page: OpenPage, measured: str) -> None:
    page = open_page("", measured)
    figure = page.locator(".js-plotly-plot .main-svg").first
    for scheme, colour in (("light", "255, 255, 255"), ("dark", "20, 18, 26"), ("light", "255, 255, 255")):
        page.emulate_media(color_scheme=scheme)
        expect(figure).to_have_css("background-color", f"rgb({colour})")


def test_each_visit_and_choice_is_undone_by_one_press_of_back(open_page: OpenPage, measured: str) -> None:
    page = open_page("prune", f"{measured}&layer={COLUMNAR_LAYER}", first=True)
    at_first = page.evaluate("history.length")
    go(page, "Explore")
    choose(page, "Map of", "Condition number of H")
    expect_finding(page, "^Condition number of H is highest in ")
    expect(page).to_have_url(re.compile("metric=Condition"))  # written after the picture
    settle(page)
    shown = page.url
    go(page, "Order lab")
    assert page.evaluate("history.length") == at_first + 2
    page.go_back()
    expect_finding(page, "^Condition number of H is highest in ")
    settle(page)
    assert page.url == shown
    page.go_back()
    expect(page.get_by_role("button", name="Prune", exact=True)).to_be_visible()
    page.go_forward()
    expect_finding(page, "^Condition number of H is highest in ")
    settle(page)
    chosen_layer(page).click()
    chosen_layer(page).fill("0 · q_proj")
    chosen_layer(page).press("Enter")
    expect(page).to_have_url(re.compile("layer=model.layers.0.self_attn.q_proj"))  # the box shows it before the server
    settle(page)
    page.go_back()
    expect(chosen_layer(page)).to_have_value("18 · o_proj")


def test_a_figure_is_saved_by_its_own_button_and_by_its_menu(open_page: OpenPage, measured: str) -> None:
    page = open_page("", f"{measured}&layer={COLUMNAR_LAYER}")
    page.get_by_test_id("stPlotlyChart").first.hover()
    with page.expect_download() as waiting:
        page.locator(".modebar-btn").first.click()
    assert waiting.value.suggested_filename == "explore-map.png"
    assert Path(waiting.value.path()).read_bytes().startswith(b"\x89PNG")
    page.get_by_test_id("stPopoverButton").filter(has_text="Download").first.click()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Table, CSV").click()
    assert Path(waiting.value.path()).read_text().startswith("layer,block_index,projection,relative_range")


def test_narrow_screens_show_the_way_to_the_lessons_and_whole_titles(open_page: OpenPage) -> None:
    page = open_page()
    page.set_viewport_size({"width": 390, "height": 800})
    page.reload()
    settle(page)
    expect(page.get_by_role("link", name="New here? Learn how pruning works")).to_be_in_viewport(ratio=1)
    title = page.locator(".figure-title").first
    expect(title).to_contain_text(re.compile("layers? (is|are) columnar"))
    expect(title).to_be_in_viewport(ratio=1)
    assert page.get_by_test_id("stMain").evaluate("main => main.scrollWidth <= main.clientWidth")


def test_pages_have_no_serious_violation_of_accessibility(open_page: OpenPage, measured: str) -> None:
    page, axe = open_page("", measured), Axe()

    def serious(**options: object) -> list[tuple[str, str]]:
        violations = axe.run(page, options={"resultTypes": ["violations"]} | options).response["violations"]
        return [(rule["id"], rule["nodes"][0]["html"]) for rule in violations if rule["impact"] in SERIOUS]

    for name, scheme in zip(PAGES, itertools.cycle(("dark", "light"))):  # the next opens in the last scheme
        go(page, name)
        assert not serious(), name
        page.emulate_media(color_scheme=scheme)
        expect(page.get_by_test_id("stApp")).to_have_css("color-scheme", scheme)
        settle(page)
        for _ in range(40):  # texts change their colours a moment after the page
            if not (bad := serious(runOnly=["color-contrast"])):  # the rule that depends on the theme
                break
            page.wait_for_timeout(250)
        assert not bad, (name, scheme)
