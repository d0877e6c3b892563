"""The way of a first visit: start, measure, look at all layers, choose one, look into it. On the packaged model."""

import re
from dataclasses import dataclass

import pytest
from playwright.sync_api import Page, expect
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import rose
from tests.browser.conftest import (
    COLUMNAR_LAYER,
    OpenPage,
    choose,
    chosen_layer,
    click_mark,
    expect_finding,
    measure,
    rows,
    section,
    settle,
)


@dataclass(frozen=True)
class Expected:
    """What the engine says about the columnar layer, without the app."""

    relative_range: float
    sparsegpt: float
    rose: float


@pytest.fixture(scope="module")
def expected(packaged: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> Expected:
    model, tokenizer = packaged
    tokens = rose.load_tokens("packaged", tokenizer, samples=6, length=256, seed=0)
    statistics = rose.collect_statistics(model, tokens[:4], layers=[COLUMNAR_LAYER])[COLUMNAR_LAYER]
    weight = model.get_submodule(COLUMNAR_LAYER).weight
    errors = {name: rose.prune_layer(weight, statistics, method=name) for name in ("sparsegpt", "rose")}
    plan = errors["rose"].plan
    return Expected(
        plan.relative_range,
        errors["sparsegpt"].relative_error,
        errors["rose"].relative_error,
    )


def background(page: Page) -> str:
    return page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")


def shown_range(page: Page, above: float) -> float:
    """The relative range of the columnar layer, from the line that says what it is."""
    line = page.get_by_text(
        re.compile(rf"^18 · self_attn\.o_proj, 576 × 576 weights in .*: columnar, relative range 0\.\d+ > {above:g}\. ")
    )
    expect(line).to_be_visible()
    return float(re.findall(r"relative range (0\.\d+)", line.inner_text())[0])


def test_from_the_start_to_one_layer(open_page: OpenPage, expected: Expected) -> None:
    page = open_page("", "samples=4&length=256&held_out=2&seed=0")
    assert background(page) == "rgb(255, 255, 255)"

    # Start: the estimate is there before the run, and follows the choices.
    estimate = page.get_by_text(re.compile(r"layers, .* tokens: about"))
    expect(estimate).to_contain_text("210 layers, 1 536 tokens")
    choose(page, "Layers", "Layers by name")
    names = page.get_by_role("textbox", name="Names")
    names.fill(f"{COLUMNAR_LAYER} model.layers.0.self_attn.*")
    names.press("Enter")
    expect(estimate).to_contain_text("Five layers")
    settle(page)
    measure(page)

    # Layers: one of the five stands out; a threshold above it leaves none.
    page.get_by_role("link", name="See all layers at a glance").click()
    expect(page.get_by_role("heading", name="Layers: which are columnar, and does order matter there?")).to_be_visible()
    expect(page.get_by_text("One of five layers is columnar above 0.5: 18 · self_attn.o_proj.")).to_be_visible()
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

    # Layer: its key figures, and the threshold that was moved on the other page.
    page.get_by_role("link", name="See 18 · self_attn.o_proj in depth").click()
    expect(page.get_by_role("heading", name="Layer: what makes it columnar, or not?")).to_be_visible()
    assert shown_range(page, above=0) == pytest.approx(expected.relative_range, abs=2e-3)


def test_sections_of_a_layer(open_page: OpenPage, measured: str, expected: Expected) -> None:
    page = open_page("layer", f"{measured}&layer={COLUMNAR_LAYER}", "dark")
    assert background(page) == "rgb(20, 18, 26)"
    assert shown_range(page, above=0.5) == pytest.approx(expected.relative_range, abs=2e-3)
    expect_finding(
        page, "^Columnar because block 4 .head 8. loses .*% of what block 0 loses per column: its inputs are weak$"
    )
    section(page, "Order and prices")
    expect_finding(page, "^Two-level: pruning starts in block ")
    expect_finding(page, "^Every order has the same mean log price, ", at=1)
    section(page, "Error")
    expect_finding(page, " less error than SparseGPT$")
    page.get_by_text("More: weights, spectrum, blocks, other layers, checks").click()
    settle(page)
    errors = re.fullmatch(r"SparseGPT (0\.\d+), ROSE (0\.\d+)", rows(page)[0][1])
    assert errors is not None
    assert [float(error) for error in errors.groups()] == pytest.approx([expected.sparsegpt, expected.rose], rel=0.02)

    # A click on a bar marks its block in all figures.
    section(page, "Blocks")
    expect_finding(page, f"^Columnar: relative range {expected.relative_range:.3f}, above 0.5$", at=1)
    click_mark(page, page.get_by_test_id("stPlotlyChart").nth(1).locator(".barlayer .point").nth(1))
    settle(page)
    expect(page).to_have_url(re.compile(r"block=Block\+1"))
    expect(page.get_by_role("combobox", name="Block")).to_have_value("Block 1")


def test_two_sessions_do_not_disturb_each_other(open_page: OpenPage, measured: str) -> None:
    first = open_page("layers", f"{measured}&layer={COLUMNAR_LAYER}")
    second = open_page("layers", f"{measured}&layer=model.layers.0.self_attn.q_proj&threshold=0.2")
    second.get_by_role("slider", name=re.compile("Columnar above")).press("End")
    expect(second.get_by_text("layers is columnar above 1")).to_be_visible()
    first.reload()
    settle(first)
    expect(first.get_by_text("layers are columnar above 0.5")).to_be_visible()
    expect(chosen_layer(first)).to_have_value("18 · self_attn.o_proj")
