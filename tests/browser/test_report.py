"""The HTML report draws its figures from the disk, without a network."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from app.results import html_report
from tests.app.results.made_reports import made_report, saved


@pytest.mark.parametrize("width", [1280, 480])
def test_the_report_needs_no_network(browser: Browser, tmp_path: Path, width: int) -> None:
    output, runs = tmp_path / "report.html", {"sparsegpt": 1, "rose": 0.8}
    folders = [str(saved(tmp_path / name, made_report(name, factor))) for name, factor in runs.items()]
    html_report.write_report(folders, output)
    context = browser.new_context(offline=True, viewport={"width": width, "height": 800})
    page = context.new_page()
    errors, asked = list[str](), list[str]()
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(output.as_uri())
    figures = page.locator("figure")
    expect(page.locator("body[data-drawn]")).to_be_attached()
    assert figures.count() == 7
    for figure in figures.all():
        expect(figure.locator(".cartesianlayer .subplot").first).to_be_attached()
        box = figure.bounding_box() or {}
        assert box["width"] <= width
        assert box["height"] > 100
    expect(page.get_by_role("heading", name="has the lower held-out error in all six layers")).to_be_visible()
    expect(page.locator("noscript")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not errors, errors
    assert asked == [output.as_uri()]
    context.close()
