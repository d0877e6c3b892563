"""The Depth page: runs come from the server and from folders, and what is drawn is what their reports say."""

import json
from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from streamlit.testing.v1 import AppTest

import rose
from app import shared
from app.runs.pruning import PruningRun
from app.study.setup import Setup
from tests.app.tiny_study import ended, figures, open_on, texts, titles

PAGE = "views/depth.py"


@pytest.fixture(scope="module")
def reports(folder: Path) -> dict[str, rose.RunReport]:
    """By target, of the tiny model without half of its weights."""
    tokens = torch.randint(3, 60, (6, 16), generator=torch.Generator().manual_seed(0))
    found = {}
    for target in ("layer", "dense"):
        model, _ = rose.load_model(str(folder))
        found[target] = rose.prune_model(
            model, tokens[:4], method="sparsegpt", sparsity=0.5, block_size=16, target=target, held_out=tokens[4:]
        )
    return found


def opened(setup: Setup, **query: str) -> AppTest:
    return open_on(replace(setup, sparsity="0.5"), PAGE, **query)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> deque[rose.RunReport]:
    """The reports of the server, at first none."""
    known: deque[rose.RunReport] = deque()
    monkeypatch.setattr(shared, "reports", lambda: known)
    return known


def test_runs_of_the_server_and_of_a_folder_in_one_chart(
    setup: Setup, reports: dict[str, rose.RunReport], server: deque[rose.RunReport], tmp_path: Path
) -> None:
    server.append(reports["layer"])
    reports["dense"].save(tmp_path / "saved")
    app = opened(setup, depth_path=str(tmp_path / "saved"))
    layer, dense = "SparseGPT at 0.5, target layer", "SparseGPT at 0.5 (saved)"
    drawn = json.loads(figures(app)[0])
    assert [trace["name"] for trace in drawn["data"]] == [layer, dense]
    assert [trace["line"]["dash"] for trace in drawn["data"]] == ["dash", "solid"]
    ends = {target: report.summary["drift"][-1]["drift"] for target, report in reports.items()}
    assert f"from {ends['layer']:.3g}" in titles(app)[0]

    app.segmented_control(key="depth_view").set_value("Where it arises").run()
    app.selectbox(key="depth_run").set_value(dense).run()
    assert not app.exception, app.exception
    assert [trace["name"] for trace in json.loads(figures(app)[0])["data"]][:2] == ["passed on", "arisen in the block"]
    app.segmented_control(key="depth_view").set_value("What is repaired").run()
    assert len(figures(app)) == 1

    app.switch_page("views/start.py").run()
    app.switch_page(PAGE).run()
    assert layer in app.multiselect(key="depth_runs").value
    app.multiselect(key="depth_runs").set_value([]).run()
    assert "Choose at least one run." in texts(app)
    app.text_input(key="depth_path").set_value("/nowhere").run()
    assert "no report.json in /nowhere" in app.error[0].value


def test_an_empty_page_offers_a_comparison_that_fills_it(setup: Setup, server: deque[rose.RunReport]) -> None:
    app = opened(setup)
    assert "Compare two targets on the chosen model" in texts(app)
    assert not figures(app)
    app.button(key="depth-compare").click().run()
    run: PruningRun = ended(app.session_state["comparing"])
    app.run()
    assert not app.exception, app.exception
    assert [report.summary["target"] for report in server] == ["layer", "dense"]
    assert "target dense" in figures(app)[0].replace("\\u003cbr\\u003e", " ")
    for outcome in run.copies:
        assert f"{outcome.label}: {outcome.perplexity:.3g}" in texts(app)


def test_a_choice_follows_its_run_and_new_runs_join(
    setup: Setup, reports: dict[str, rose.RunReport], server: deque[rose.RunReport]
) -> None:
    server.extend([reports["layer"], reports["dense"]])
    app = opened(setup)
    names = app.multiselect(key="depth_runs").value
    app.multiselect(key="depth_runs").set_value(names[1:]).run()
    few = reports["dense"]
    server.append(rose.RunReport(few.layers.iloc[:2], few.summary))  # with it, names say how many layers
    app.run()
    chosen = app.multiselect(key="depth_runs").value
    assert len(chosen) == 2
    assert chosen[0].startswith(names[1])
    assert "(two layers" in chosen[1]
