"""Checks of the packaged model's layers: numbers that a person can compare."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import COLUMNAR_LAYER, OpenPage, expect_finding, rows, section, settle


def measure_layer(page: Page) -> None:
    page.get_by_role("button", name="Measure this layer").click()
    expect(page.get_by_text("Measured on 1024 tokens")).to_be_visible()
    settle(page)


def test_three_measures_of_a_columnar_layer(open_page: OpenPage, measured: str) -> None:
    query = f"{measured}&layer={COLUMNAR_LAYER}&layer_more=true&more=Trust&trust=Three+measures"
    page = open_page("layer", query, "dark")
    measure_layer(page)
    errors, held_out = {}, {}
    for cells in rows(page):
        three = [float(cell) for cell in cells[2:5]]
        assert max(three) - min(three) < 1e-3 * max(three)
        assert "pass" in cells[0]
        errors[cells[1]], held_out[cells[1]] = float(cells[6]), float(cells[7])
    # On this layer the order helps, and a layer-wide budget more, also on tokens that no fit has seen.
    assert 0 < errors["ROSE global"] < errors["ROSE"] < errors["SparseGPT"] < errors["Wanda"] < 1
    assert held_out["ROSE global"] < held_out["SparseGPT"] < held_out["Wanda"]
    expect(page.get_by_text("Three measurements of the error differ by at most")).to_be_visible()

    section(page, "Over-fitting")
    curve = rows(page)
    assert [cells[0] for cells in curve] == ["256", "512", "1024"]
    fitted, unseen = ([float(cells[i]) for cells in curve] for i in (1, 2))
    assert fitted == sorted(fitted)
    assert unseen == sorted(unseen, reverse=True)
    assert unseen[-1] == pytest.approx(held_out["ROSE"], abs=2e-4)

    section(page, "Sparsity")
    promised = {cells[1]: (cells[4], cells[5], cells[6]) for cells in rows(page)}
    assert promised["ROSE"] == ("block", "5", "0")
    assert promised["ROSE global"] == ("layer", "1", "0")
    assert promised["Wanda"] == ("row", "576", "0")


def test_all_layers(open_page: OpenPage, measured: str) -> None:
    page = open_page("layers", f"{measured}&layers_trust=true")
    expect_finding(page, r"Twelve layers: none fails, (\w+ needs? review), (\w+|none) pass(es)?")
    expect(page.get_by_text("needed more damping than requested")).to_have_count(0)  # no damping was raised
