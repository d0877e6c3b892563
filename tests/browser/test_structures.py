"""Heads and channels in a browser: a tiny model is measured, made smaller, compared, and its download loads."""

import zipfile
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import expect
from transformers import AutoModelForCausalLM

from tests.browser.conftest import OpenPage, expect_finding, rows, section, settle, tiny_setup


def test_a_model_is_made_smaller_from_the_button_to_the_download(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page("structures", urlencode(tiny_setup(tmp_path)))
    expect_finding(page, "costs least")  # of the example
    section(page, "A smaller copy")
    button = page.get_by_role("button", name="Make a smaller copy")
    expect(button).to_be_enabled()
    button.click()
    download = page.get_by_role("button", name="Checkpoint, ")
    expect(download).to_be_visible()
    settle(page)
    dense, slim = rows(page)
    assert dense[0] == "Dense"
    assert slim[0] == "obs, 20\u202f% out"
    parameters = [int("".join(filter(str.isdigit, one[3]))) for one in (dense, slim)]
    assert parameters[1] < parameters[0]
    assert all(float(cells[1].partition(",")[0]) > 1 for cells in (dense, slim))
    with page.expect_download() as waiting:
        download.click()
    with zipfile.ZipFile(waiting.value.path()) as packed:
        packed.extractall(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "slim-obs-0.2")
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters[1]
