"""Hidden states of two saved runs in a browser, from an old link to their folder to every section."""

import re
from pathlib import Path
from urllib.parse import urlencode

import pytest
import torch
from playwright.sync_api import expect

import rose
from tests.browser.conftest import OpenPage, expect_finding, section, settle
from tests.tiny import save_tiny_llama

DENSE = "SparseGPT at 0.5 (dense)"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each target."""
    folder, runs = str(save_tiny_llama(tmp_path_factory.mktemp("tiny"))), tmp_path_factory.mktemp("runs")
    tokens = torch.randint(3, 60, (12, 32), generator=torch.Generator().manual_seed(0))
    for target in ("layer", "dense"):
        model, _ = rose.load_model(folder)
        options = {"method": "sparsegpt", "sparsity": 0.5, "block_size": 16, "target": target}
        rose.prune_model(model, tokens[:8], held_out=tokens[8:], **options).save(runs / target)  # type: ignore[arg-type]
    return runs


def test_saved_runs_are_compared_in_every_section(saved: Path, open_page: OpenPage) -> None:
    page = open_page("depth", urlencode({"depth_path": str(saved)}), "dark")  # the former page
    expect(page.get_by_role("heading", name="Compare runs: how do they differ?")).to_be_visible()
    main = page.get_by_test_id("stMain")
    drift = {
        name: rose.RunReport.from_json((saved / name / "report.json").read_text()).summary["drift"]
        for name in ("layer", "dense")
    }
    ends = {name: entries[-1]["drift"] for name, entries in drift.items()}
    expect_finding(
        page, f"target dense takes the last decoder block's drift from {ends['layer']:.3g} to {ends['dense']:.3g}"
    )
    expect(main.get_by_text("Drift 0: the hidden states are those of the dense model.")).to_be_visible()
    expect(main.get_by_text(f"Damping μ of their corrections: {DENSE}:")).to_be_visible()

    section(page, "Where it arises")
    settle(page)
    most = max(drift["layer"], key=lambda entry: entry["arisen"])["block_index"]
    expect_finding(page, f"^Decoder block {most} adds most")

    section(page, "What is repaired")
    settle(page)
    expect_finding(page, f"^{re.escape(DENSE)} cancels the most: ")
    expect(main.get_by_text("Mean over decoder blocks:")).to_be_visible()
