"""The Prune page on the packaged model: a short run from the button to the numbers, on small settings."""

import json
import re
import zipfile
from pathlib import Path
from urllib.parse import urlencode

import pytest
import torch
from playwright.sync_api import Page, expect

import rose
from tests.browser.conftest import OpenPage, rows, section, settle, tiny_setup

# The model is in memory once a set-up of it has been measured, so runs begin at once.
SMALL = {
    "prune_layers": "model.layers.0.self_attn.*",
    "prune_windows": "2",
    "prune_keep": "none",  # the packaged model is half a gigabyte
}


def prune(page: Page) -> None:
    """Presses the button and waits for the end of the run."""
    button, before = page.get_by_role("button", name="Prune", exact=True), page.url
    button.click()
    # A new run changes the link. Other work has a Cancel button too, and an example or an earlier run has a table.
    expect(page).not_to_have_url(before)
    settle(page)
    expect(button).to_be_enabled()
    settle(page)


def test_perplexity_texts_and_report(open_page: OpenPage) -> None:
    query = SMALL | {"prune_sparsities": "2:4", "prune_methods": "SparseGPT", "length": "64"}
    page = open_page("prune", urlencode(query), "dark")
    expect(page.get_by_text("four layers each: about")).to_be_visible()
    prune(page)

    expect(page.get_by_test_id("stTable").filter(visible=True).locator("tbody tr")).to_have_count(2)
    dense, pruned = rows(page)
    assert (dense[0], pruned[0]) == ("Dense", "SparseGPT at 2:4")
    before, after = (float(cells[1].partition(",")[0]) for cells in (dense, pruned))
    assert 2 < before < 200
    expect(page.get_by_text("2 × 64 tokens of held-out calibration text")).to_be_visible()

    section(page, "Texts")
    prompt, *written = page.get_by_test_id("stCode").all_inner_texts()
    assert prompt.strip() == "Python is a programming language that"
    assert len(written) == 2
    assert all(text.strip() for text in written)

    section(page, "What you get")
    page.get_by_text("Take a copy away").click()
    page.locator(".st-key-prune-downloads").get_by_role("button").click()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Record, JSON").click()
    report = json.loads(Path(waiting.value.path()).read_text())
    assert report["results"]["perplexity_after"] == pytest.approx(after, rel=0.01)
    assert len(report["layers"]) == 4


def test_a_copy_is_downloaded_and_carried_to_a_text(open_page: OpenPage, tmp_path: Path) -> None:
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
        page.get_by_role("button", name="Checkpoint, ").click()
    page.keyboard.press("Escape")
    name = f"{method.lower()}-2-4"
    assert waiting.value.suggested_filename == f"{name}.zip"
    with zipfile.ZipFile(waiting.value.path()) as packed:
        packed.extractall(tmp_path)
    model, _ = rose.load_model(str(tmp_path / name))
    weight = model.get_parameter("model.layers.2.mlp.down_proj.weight")
    assert (weight.view(len(weight), -1, 4).ne(0).sum(-1) <= 2).all()

    card.get_by_text("As a smaller file: packed, or GGUF for llama.cpp").click()
    card.get_by_role("button", name="Write the file").click()
    with page.expect_download() as waiting:
        card.get_by_role("button", name=f"{name}-packed.zip, ").click()
    with zipfile.ZipFile(waiting.value.path()) as packed:
        packed.extractall(tmp_path)
    unpacked, _ = rose.load_model(str(tmp_path / f"{name}-packed"))
    assert torch.equal(unpacked.get_parameter("model.layers.2.mlp.down_proj.weight"), weight)

    card.get_by_role("link", name="Read a text with it").click()
    settle(page)
    page.get_by_text("Read a text of your own").click()
    page.get_by_role("textbox", name="Your text").fill("A rose is a rose.")
    page.get_by_role("textbox", name="Your text").press("Control+Enter")
    settle(page)
    page.get_by_role("button", name="Read", exact=True).click()
    expect(page.get_by_text(f"{method} at 2:4 is more surprised than the dense model at")).to_be_visible()


def test_cancel_after_leaving_and_reloading_the_page(open_page: OpenPage, measured: str) -> None:
    query = SMALL | {"prune_layers": "*", "prune_prompt": "", "prune_methods": "SparseGPT"}
    page = open_page("prune", f"{measured}&{urlencode(query)}")
    cancel, said = page.get_by_role("button", name="Cancel"), page.get_by_text("Cancelled before a copy was finished")
    page.get_by_role("button", name="Prune", exact=True).click()
    expect(cancel).to_be_visible()
    # The run goes on while other pages are looked at, and says so there.
    page.get_by_role("link", name="Start").click()
    expect(page.get_by_text("% done")).to_be_visible()
    page.get_by_role("link", name="Prune", exact=True).click()
    expect(cancel).to_be_visible()
    page.reload()
    expect(cancel).to_be_visible()
    other = open_page("prune", page.url.partition("?")[2])
    expect(other.get_by_role("button", name="Cancel")).to_be_visible()
    cancel.click()
    # In the other session too, at once: it may have ended before we look.
    expect(other.get_by_text(re.compile("Cancelling|Cancelled before a copy was finished")).first).to_be_visible()
    expect(said).to_be_visible()
    page.reload()
    expect(said).to_be_visible()
