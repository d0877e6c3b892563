"""The lessons in a browser: turned by keyboard, with the paper's digits and with a real layer's."""

import re

from playwright.sync_api import expect

from tests.browser.conftest import OpenPage, settle


def test_worked_example_before_any_model(open_page: OpenPage) -> None:
    page = open_page("learn")
    expect(page.get_by_role("heading", name="A weight matters by its own size")).to_be_visible()
    below = page.get_by_role("button", name="Next").bounding_box()
    assert below is not None
    assert below["y"] + below["height"] <= 800  # of the screen
    page.keyboard.press("PageDown")
    expect(page.get_by_role("radio", name="2 Pre-pruning")).to_be_checked()
    expect(page.get_by_text("Block 3 must give up 1.6, 1.9, 3.9 and 4.2")).to_be_visible()
    settle(page)
    page.keyboard.press("PageDown")
    expect(page.get_by_text("The relative range r (block-loss spread) is 0.78")).to_be_visible()
    stage = page.get_by_test_id("stPlotlyChart")
    for loss in ("4.7", "2.6", "11.6"):
        expect(stage.get_by_text(loss, exact=True).first).to_be_visible()
    settle(page)
    page.keyboard.press("PageUp")
    expect(page.get_by_role("radio", name="2 Pre-pruning")).to_be_checked()


def test_predict_and_reveal(open_page: OpenPage) -> None:
    page = open_page("learn", "lesson=4+Order")
    reveal = page.get_by_role("button", name="Reveal")
    expect(reveal).to_be_disabled()
    page.get_by_role("radio", name="Block 2").click()
    expect(reveal).to_be_enabled()
    reveal.click()
    expect(page.get_by_text("You said block 2, which would lose 2.6. ROSE starts with block 3.")).to_be_visible()
    expect(page.get_by_text("Pruned in the order 8, 7, 9, 2, 1, 3, 6, 5, 4")).to_be_visible()


def test_a_sweep_plays_to_its_end(open_page: OpenPage, measured: str) -> None:
    page = open_page("learn", f"{measured}&lesson=5+Compensation&lesson_kind=Real+layer")
    expect(page.get_by_text(re.compile("of smollm2-135m: of .*one with the highest relative range"))).to_be_visible()
    expect(page.get_by_role("heading", name="how will they end?")).to_be_visible()
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    # Whichever step is seen first: a busy machine may draw none before the last.
    expect(page.get_by_text(re.compile(r"[1-5] of 5 blocks pruned"))).to_be_visible()
    expect(page.get_by_text("5 of 5 blocks pruned")).to_be_visible()
    saved = re.search(r"saves (\d+\.\d) % of the error", page.locator("h2").first.inner_text().replace("\xa0", " "))
    assert saved  # told once it has been seen
    assert float(saved.group(1)) > 5
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    page.get_by_role("button", name="One block back").click()
    expect(page.get_by_text("4 of 5 blocks pruned")).to_be_visible()


def test_strength_and_effects(open_page: OpenPage) -> None:
    page = open_page("learn", "lesson=7+Strength", "dark")
    expect(page.get_by_text("A generated layer of 64 × 96 weights")).to_be_visible()
    page.locator(".st-key-lesson_blocks").get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_text("A generated layer of 64 × 112 weights")).to_be_visible()
    cut = "all => all.map(one => one.scrollWidth - one.clientWidth)"
    assert max(page.locator(".st-key-lesson-text .katex-display").evaluate_all(cut)) <= 2  # KaTeX's own
    settle(page)
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_role("heading", name="An order has two effects")).to_be_visible()
    expect(page.get_by_text("Lowest: global order, layer budget")).to_be_visible()


def test_text_and_stage_stay_where_they_are(open_page: OpenPage) -> None:
    page = open_page("learn", "lesson=1+Importance")
    places = []
    for _ in range(4):
        settle(page)
        box = page.get_by_role("button", name="Next").bounding_box()
        assert box
        places.append((box["x"], box["y"]))
        page.get_by_role("button", name="Next").click()
    assert len({x for x, _ in places}) == 1
    heights = [y for _, y in places]
    assert max(heights) - min(heights) < 8  # the header settles by a few pixels after the first page
