"""The page Prune in a browser: files are downloaded, and a run outlives its page until it is cancelled."""

import json
import re
import zipfile
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Page, expect

import rose
from tests.browser.conftest import OpenPage, settle, tiny_setup


def prune(page: Page) -> None:
    """Presses the button and waits for the end of the run."""
    button, before = page.get_by_role("button", name="Prune", exact=True), page.url
    button.click()
    # A new run changes the link. Other work has a Cancel button too, and an example or an earlier run has a table.
    expect(page).not_to_have_url(before)
    settle(page)
    expect(button.first).to_be_enabled()  # for a moment the button of the drawing before stands beside it
    settle(page)


def test_a_copy_and_its_record_are_downloaded(open_page: OpenPage, tmp_path: Path) -> None:
    query = tiny_setup(tmp_path) | {
        "prune_methods": ["Magnitude", "ROSE"],
        "prune_sparsities": "2:4",
        "prune_windows": "2",
    }
    page = open_page("prune", urlencode(query, doseq=True))
    prune(page)
    page.get_by_text("Take a copy away").click()
    card = page.locator(".st-key-prune-take")
    method = card.get_by_role("combobox").input_value().removesuffix(" at 2:4")
    assert method in ("Magnitude", "ROSE")
    page.locator(".st-key-prune-downloads").get_by_role("button").click()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Record, JSON").click()
    assert json.loads(Path(waiting.value.path()).read_text())["recipe"]["method"] == method.lower()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Checkpoint, ").click()
    page.keyboard.press("Escape")
    name = f"{method.lower()}-2-4"
    assert waiting.value.suggested_filename == f"{name}.zip"
    with zipfile.ZipFile(waiting.value.path()) as packed:
        packed.extractall(tmp_path)
    model, _ = rose.load_model(str(tmp_path / name))
    weight = model.get_parameter("model.layers.2.mlp.down_proj.weight")
    assert (weight.view(len(weight), -1, 4).ne(0).sum(-1) <= 2).all()


def test_cancel_after_leaving_and_reloading_the_page(open_page: OpenPage, measured: str) -> None:
    query = {"prune_windows": "2", "prune_keep": "none", "prune_prompt": ""}
    query |= {"prune_methods": "SparseGPT"}
    page = open_page("prune", f"{measured}&{urlencode(query)}")
    cancel = page.locator(".st-key-prune-cancel button").last
    cancelled = page.get_by_text("Cancelled before a copy was finished")
    page.get_by_role("button", name="Prune", exact=True).click()
    expect(cancel).to_be_visible()
    # The run goes on while other pages are looked at, and says so there.
    page.get_by_role("link", name="Learn", exact=True).click()
    expect(page.get_by_text("% done")).to_be_visible()
    page.get_by_role("link", name="Prune", exact=True).click()
    expect(cancel).to_be_visible()
    page.reload()
    expect(cancel).to_be_visible()
    other = open_page("prune", page.url.partition("?")[2])
    expect(other.locator(".st-key-prune-cancel button").last).to_be_visible()
    cancel.click()
    # In the other session too, at once: it may have ended before we look.
    expect(other.get_by_text(re.compile("Cancelling|Cancelled before a copy was finished")).first).to_be_visible()
    expect(cancelled).to_be_visible()
    page.reload()
    expect(cancelled).to_be_visible()
