"""The Runs page: folders of the command line beside runs of the server, and what is drawn is what their reports say."""

import json
from collections import deque
from pathlib import Path

import pytest

import rose
from app import shared
from tests.app.runs.made_reports import made_report, saved
from tests.app.tiny_study import figures, open_page, texts, titles

PAGE = "views/runs.py"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> deque[rose.RunReport]:
    """The reports of the server, at first none."""
    known: deque[rose.RunReport] = deque()
    monkeypatch.setattr(shared, "reports", lambda: known)
    monkeypatch.setattr(shared, "studies", dict)
    monkeypatch.setattr(shared, "find", lambda _setup: None)
    return known


def test_an_empty_page_says_what_to_do(server: deque[rose.RunReport]) -> None:
    app = open_page(PAGE)
    assert "Open the folders of saved runs above" in "\n".join(text.value for text in app.text)
    server.append(made_report())
    app.run()
    assert "One run is here, SparseGPT at 0.7" in "\n".join(text.value for text in app.text)
    app.text_input(key="runs_path").set_value("/nowhere").run()
    assert "no report.json in /nowhere" in app.error[0].value


def test_one_that_cannot_be_read_does_not_hide_the_others(server: deque[rose.RunReport], tmp_path: Path) -> None:
    server.append(made_report())
    saved(tmp_path / "whole", made_report("rose", 0.8, seed=1))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "report.json").write_text("{")
    app = open_page(PAGE, runs_path=str(tmp_path))
    assert "ROSE at 0.7 (whole)" in app.selectbox(key="runs_a").options
    assert "Left out" in app.warning[0].value
    assert not app.error


def test_a_run_of_the_command_line_beside_one_of_the_server(server: deque[rose.RunReport], tmp_path: Path) -> None:
    server.append(made_report())
    path = str(saved(tmp_path / "by_hand", made_report("rose", 0.8, seed=1)))
    names = {"runs_a": "SparseGPT at 0.7", "runs_b": "ROSE at 0.7 (by_hand)"}
    app = open_page(PAGE, runs_path=path, **names)
    assert {key: app.selectbox(key=key).value for key in names} == names
    assert "has the lower held-out error in six of six layers; on average it is 20 % lower" in titles(app)[0]
    app.segmented_control(key="runs_as").set_value("B − A").run()
    assert "Of six layers ROSE at 0.7 (by_hand) is lower in six;" in texts(app)
    assert "−0.120 (2 · self_attn.o_proj)" in texts(app)

    app.segmented_control(key="runs_view").set_value("Both maps").run()
    assert "Both runs have the highest held-out error in 2 · self_attn.o_proj: 0.600 and 0.480" in titles(app)[0]
    app.segmented_control(key="runs_view").set_value("Numbers").run()
    table = app.dataframe[0].value.set_index("")
    assert table.loc["Perplexity"].tolist() == ["30.0", "28.0", "−6.7 %"]
    first, second, more = table.loc["Columnar layers"]
    assert int(more.replace("−", "-")) == int(second) - int(first)  # a count, not per cent
    app.segmented_control(key="runs_view").set_value("Drift").run()
    assert len(figures(app)) == 1
    app.segmented_control(key="runs_view").set_value("Settings").run()
    assert app.dataframe[0].value["Setting"].tolist() == ["method", "seed"]
    assert not app.exception, app.exception


def test_different_shapes_are_refused(server: deque[rose.RunReport], tmp_path: Path) -> None:
    server += [made_report(), made_report(width=16)]
    app = open_page(PAGE)
    assert "different shapes" in app.error[0].value
    app.selectbox(key="runs_b").set_value(app.selectbox(key="runs_a").value).run()
    assert "Choose two different runs." in texts(app)


def test_two_models_stand_side_by_side(server: deque[rose.RunReport]) -> None:
    server += [made_report("rose", 2.0, blocks=2, model="small/one"), made_report(blocks=5, width=16, model="two")]
    app = open_page(PAGE, runs_view="Both maps")
    assert not app.error
    said = titles(app)[0]
    assert "in 4 · self_attn.o_proj of SparseGPT at 0.7 (two, ten layers), 1.00" in said
    assert "in 1 · self_attn.o_proj of ROSE at 0.7 (one, four layers), 0.800" in said
    drawn = json.loads(figures(app)[0])
    maps = [trace for trace in drawn["data"] if trace["type"] == "heatmap"]
    assert [one["coloraxis"] for one in maps] == ["coloraxis", "coloraxis"]
    assert drawn["layout"]["coloraxis"]["cmax"] == 1.0
    assert drawn["layout"]["xaxis"]["range"] == [-0.5, 4.5]
    assert drawn["layout"]["xaxis2"]["range"] == [-0.5, 1.5]
    assert "no layer of one corresponds to one of the other" in texts(app)
    app.segmented_control(key="runs_view").set_value("Numbers").run()
    assert len(app.dataframe) == 1
    app.segmented_control(key="runs_view").set_value("Difference").run()
    assert "different" in app.error[0].value
    assert not app.exception, app.exception


def test_a_link_to_runs_that_are_gone_shows_others(server: deque[rose.RunReport]) -> None:
    server += [made_report(), made_report("rose", 0.8)]
    app = open_page(PAGE, runs_b="Gone at 0.7", runs_measure="nothing")
    assert app.selectbox(key="runs_b").value == "SparseGPT at 0.7"
    assert app.selectbox(key="runs_measure").value == "held_out_error"
    assert len(figures(app)) == 1


def test_a_study_holds_runs(placed: None, study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "reports", lambda: deque())
    monkeypatch.setattr(shared, "studies", lambda: {study.setup: study})  # no others, of other tests
    app = open_page(PAGE, study)
    assert app.selectbox(key="runs_a").options == [
        f"{name} at 0.7 (study)" for name in ("SparseGPT", "ROSE", "ROSE global")
    ]
    overview = study.overview(0.5)
    lower = int((overview["held_out_rose"] < overview["held_out_sparsegpt"]).sum())
    assert lower
    assert f"has the lower held-out error in {('no', 'one', 'two', 'three')[lower]} of 21 layers" in titles(app)[0]


def test_a_choice_follows_its_run_when_names_change(server: deque[rose.RunReport]) -> None:
    server += [made_report(perplexity_after=30.0), made_report(perplexity_after=40.0)]
    app = open_page(PAGE, runs_view="Numbers")
    names = {"runs_a": "SparseGPT at 0.7, run 2", "runs_b": "SparseGPT at 0.7"}
    for key, name in names.items():
        app.selectbox(key=key).set_value(name).run()
    before = app.dataframe[0].value
    server.append(made_report(perplexity_after=70.0))
    app.run()
    assert app.selectbox(key="runs_a").value == "SparseGPT at 0.7, run 3"
    assert app.selectbox(key="runs_b").value == "SparseGPT at 0.7, run 2"
    shown = app.dataframe[0].value
    assert shown.to_numpy().tolist() == before.to_numpy().tolist()
