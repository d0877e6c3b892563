"""Checks of the packaged model's layers in a browser."""

from playwright.sync_api import expect

from tests.browser.conftest import COLUMNAR_LAYER, OpenPage, expect_finding, rows, settle


def test_checks_of_a_columnar_layer(open_page: OpenPage, measured: str) -> None:
    page = open_page("layer", f"{measured}&layer={COLUMNAR_LAYER}&layer_more=true&more=Trust", "dark")
    page.get_by_role("button", name="Measure this layer").click()
    expect(page.get_by_text("Measured on 1024 tokens")).to_be_visible()
    settle(page)
    assert {cells[1] for cells in rows(page)} >= {"Measures agree", "Over-fitting", "Finite inputs"}
    expect_finding(page, "Three measurements of the error differ by at most", at=1)
    expect_finding(page, "held-out error is .* times the calibration error", at=2)
