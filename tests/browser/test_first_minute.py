"""The first minute in a browser: the example, Back, reloads, downloads, and narrow screens."""

import itertools
import re
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.browser.conftest import COLUMNAR_LAYER, OpenPage, choose, chosen_layer, expect_finding, settle

PAGES = (
    *("Start", "Learn", "Layers", "Layer", "Order lab", "Prune", "Make it smaller"),
    *("Heads and channels", "Compare runs", "Layer sensitivity", "Your text", "Check a checkpoint", "Diffusion"),
)
SERIOUS = ("serious", "critical")


def test_from_a_cold_start_into_the_example(open_page: OpenPage) -> None:
    page = open_page()
    expect_finding(page, "^Four of 210 layers are columnar")
    measure = page.get_by_role("button", name="Measure layers")
    expect(measure).to_be_disabled()
    expect(page.get_by_text("Measured already; change something to measure again.")).to_be_visible()
    expect(page.get_by_role("combobox", name=re.compile("^Model"))).to_be_in_viewport()
    page.get_by_role("link", name="Explore the example").click()
    expect(page.get_by_text(re.compile(r"Held-out error: SparseGPT 0\.\d+, ROSE 0\.\d+, "))).to_be_visible()
    expect(chosen_layer(page)).to_have_value("18 · self_attn.o_proj")


def test_figures_follow_the_theme_and_no_toolbar_covers_them(open_page: OpenPage, measured: str) -> None:
    page = open_page("layers", measured)
    figure = page.locator(".js-plotly-plot .main-svg").first
    for scheme, colour in (("light", "255, 255, 255"), ("dark", "20, 18, 26"), ("light", "255, 255, 255")):
        page.emulate_media(color_scheme=scheme)
        expect(figure).to_have_css("background-color", f"rgb({colour})")
    chart = page.get_by_test_id("stPlotlyChart").first
    chart.hover()
    expect(chart.locator(".modebar")).to_be_hidden()


def test_each_visit_and_choice_is_undone_by_one_press_of_back(open_page: OpenPage, measured: str) -> None:
    page = open_page("", f"{measured}&layer={COLUMNAR_LAYER}", first=True)
    at_first = page.evaluate("history.length")
    page.get_by_role("link", name="Layers", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Layers: ")
    settle(page)
    choose(page, "Map of", "Condition number of H")
    expect_finding(page, "^Condition number of H is highest in ")
    settle(page)
    shown = page.url
    page.get_by_role("link", name="Layer", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Layer: ")
    settle(page)
    assert page.evaluate("history.length") == at_first + 2
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Layers: ")
    settle(page)
    assert page.url == shown
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Start: ")
    page.go_forward()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Layers: ")
    settle(page)
    chosen_layer(page).click()
    chosen_layer(page).fill("0 · self_attn.q_proj")
    chosen_layer(page).press("Enter")
    expect(page).to_have_url(re.compile("layer=model.layers.0.self_attn.q_proj"))  # the box shows it before the server
    settle(page)
    page.go_back()
    expect(chosen_layer(page)).to_have_value("18 · self_attn.o_proj")


def test_pictures_from_the_download_menu(open_page: OpenPage, measured: str) -> None:
    page = open_page("layers", f"{measured}&layer={COLUMNAR_LAYER}")
    page.get_by_test_id("stPopoverButton").filter(has_text="Download").first.click()
    for form, begins in (("SVG", b"<svg"), ("PNG", b"\x89PNG")):  # the menu stays open after the first
        with page.expect_download() as waiting:
            page.get_by_role("button", name=f"Figure, {form}").click()
        assert waiting.value.suggested_filename == f"layers-map.{form.lower()}"
        content = Path(waiting.value.path()).read_bytes()
        assert content.startswith(begins)
        if form == "SVG":  # as drawn where the page's font is not at hand, no text is cut off
            alone = page.context.new_page()
            alone.set_content(f"<body style='margin: 0'>{content.decode()}")
            places = "texts => texts.map(text => text.getBoundingClientRect()).map(box => [box.left, box.right])"
            lefts, rights = zip(*alone.locator("text").evaluate_all(places), strict=True)
            assert min(lefts) >= 0
            assert max(rights) <= alone.evaluate("document.querySelector('svg').getBoundingClientRect().width")


def test_page_down_scrolls_and_narrow_screens_show_titles(open_page: OpenPage, measured: str) -> None:
    page = open_page("layers", f"{measured}&layer={COLUMNAR_LAYER}")
    slider = page.get_by_role("slider", name=re.compile("Columnar above"))
    slider.focus()
    page.keyboard.press("PageDown")
    page.wait_for_function("document.querySelector('[data-testid=stMain]').scrollTop > 0")
    settle(page)
    assert slider.input_value() == "0.5"
    page.set_viewport_size({"width": 480, "height": 800})
    page.reload()
    settle(page)
    expect(page.get_by_role("combobox", name="Map of")).to_be_in_viewport(ratio=1)
    title = page.locator(".figure-title").first
    expect(title).to_contain_text(re.compile("layers? (is|are) columnar"))
    expect(title).to_be_in_viewport(ratio=1)
    assert title.evaluate("node => node.scrollWidth <= node.clientWidth")


def test_links_show_the_focus_of_the_keyboard(open_page: OpenPage) -> None:
    page = open_page()
    for link in (page.get_by_role("link", name="Layers", exact=True), page.get_by_role("link", name="Learn how")):
        while not link.evaluate("link => link === document.activeElement"):
            page.keyboard.press("Tab")
        expect(link).to_have_css("outline-style", "solid")


def test_pages_have_no_serious_violation_of_accessibility(open_page: OpenPage, measured: str) -> None:
    page, axe = open_page("", measured), Axe()

    def serious(**options: object) -> list[tuple[str, str]]:
        violations = axe.run(page, options={"resultTypes": ["violations"]} | options).response["violations"]
        return [(rule["id"], rule["nodes"][0]["html"]) for rule in violations if rule["impact"] in SERIOUS]

    for name, scheme in zip(PAGES, itertools.cycle(("dark", "light"))):  # the next page opens in this page's last one
        page.get_by_role("link", name=name, exact=True).click()
        expect(page.get_by_role("heading", level=1)).to_contain_text(name)
        settle(page)
        assert not serious(), name
        page.emulate_media(color_scheme=scheme)
        expect(page.get_by_test_id("stApp")).to_have_css("color-scheme", scheme)
        settle(page)
        for _ in range(40):  # texts change their colours a moment after the page
            if not (bad := serious(runOnly=["color-contrast"])):  # the rule that depends on the theme
                break
            page.wait_for_timeout(250)
        assert not bad, (name, scheme)
