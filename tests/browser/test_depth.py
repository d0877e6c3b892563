"""Drift of two saved runs in a browser."""

from pathlib import Path
from urllib.parse import urlencode

import pytest
import torch

import rose
from tests.browser.conftest import OpenPage, expect_finding, settle
from tests.tiny import save_tiny_llama


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


def test_drift_of_saved_runs_is_compared(saved: Path, open_page: OpenPage) -> None:
    page = open_page("runs", urlencode({"runs_path": str(saved), "runs_view": "Drift"}), "dark")
    ends = {name: rose.RunReport.load(saved / name).summary["drift"][-1]["drift"] for name in ("layer", "dense")}
    expect_finding(page, f"brings the last decoder block's drift from {ends['layer']:.3g} to {ends['dense']:.3g}")
    page.get_by_text("Where drift arises and how much is repaired").click()
    settle(page)
    expect_finding(page, "^Decoder block .* adds most", at=1)
    expect_finding(page, "cancels the most: ", at=2)
