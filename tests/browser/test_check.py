"""Check a checkpoint in a browser: a broken one is named, the chosen layer and the view are in the link."""

import re
from pathlib import Path
from urllib.parse import urlencode

import torch
from playwright.sync_api import expect

import rose
from rose.model.network.layers import prunable_layers
from tests.browser.conftest import OpenPage, choose, expect_finding, section, settle, tiny_setup

BROKEN = "model.layers.1.mlp.up_proj"


def broken_checkpoint(dense: str, folder: Path) -> Path:
    """2:4 by magnitude, one group of which keeps three weights."""
    model, tokenizer = rose.load_model(dense)
    with torch.no_grad():
        for layer in prunable_layers(model):
            weight = layer.module.get_parameter("weight")
            groups = weight.unflatten(1, (-1, 4))
            groups.scatter_(2, groups.abs().topk(2, largest=False).indices, 0)
            if layer.name == BROKEN:
                weight[7, 16:20] = torch.tensor([0.1, 0.2, 0.3, 0.0])
    rose.save_model(model, tokenizer, folder / "broken")
    return folder / "broken"


def test_a_broken_checkpoint_is_found_and_a_link_shows_it_to_others(open_page: OpenPage, tmp_path: Path) -> None:
    setup = tiny_setup(tmp_path)
    query = setup | {"check_path": str(broken_checkpoint(setup["model"], tmp_path))}
    page = open_page("check", urlencode(query))
    page.get_by_test_id("stMain").get_by_role("button", name=re.compile("Check, about")).click()
    expect(page.get_by_text("pattern broken: 1 of").first).to_be_visible()
    expect_finding(page, "[Ww]rong layers? lies? in decoder block")
    section(page, "One layer")
    expect_finding(page, "Compensation recovered|worse than its mask|A refit would")
    choose(page, "Layer, the worst first", "1 · mlp.up_proj")
    expect_finding(page, "Row 7 keeps three of columns 16 to 19, where 2:4 allows two", at=1)
    settle(page)

    other = open_page("check", page.url.partition("?")[2], "dark")
    expect_finding(other, "Row 7 keeps three", at=1)
    section(other, "Drift")
    expect_finding(other, "the drift is")
    other.get_by_role("link", name="Compare it").click()
    expect(other.get_by_text(re.compile(r"broken \(checked\)")).first).to_be_visible()
