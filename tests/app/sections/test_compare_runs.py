"""Compare runs: saved folders beside runs of the server, and figures of both."""

import re
from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

from app import shared
from app.registry import Registry
from app.results.pairs import MOST
from app.runs import example
from tests.app.results.made_reports import made_report, saved
from tests.app.tiny_study import figures, open_page, place, texts, titles

PAGE, HERE = "views/prune.py", {"prune_section": "Compare runs"}
BASE, OURS = "tiny · SparseGPT · 0.7 · six layers", "tiny · ROSE · 0.7 · six layers"
CSV = """method,sparsity,seed,perplexity,dense_perplexity,mean_held_out_error,seconds
rose,0.7,0,20,10,0.1,5
rose,0.7,1,26,10,0.3,7
sparsegpt,0.7,0,30,10,,5
rose,2:4,0,15,10,0.1,5
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, empty_registry: Registry) -> Callable[..., None]:
    """Adds reports to those of the server, at first none."""
    monkeypatch.setattr(shared, "find", lambda _setup: None)
    return lambda *reports: [shared.publish(report) for report in reports]


def chosen(app: AppTest, *labels: str, view: str = "") -> AppTest:
    app.multiselect(key="runs").set_value(list(labels)).run()
    if view:
        app.segmented_control(key="runs_view").set_value(view).run()
    return app


def test_page_opens_on_the_example(server):
    app = open_page(PAGE, **HERE)
    assert re.search("ROSE ADMM at 0.7 has the lowest perplexity, .* has 267, the dense model 35.7", texts(app))
    assert len(figures(app)) == 1
    assert app.segmented_control(key="runs_view").options == ["Map", "Numbers", "Drift"]
    drift = open_page(PAGE, **HERE, runs_view="Drift")
    drift.session_state["runs-origins"] = True
    assert re.search("^Decoder block .* adds most", titles(drift.run())[1])
    assert len(app.multiselect(key="runs").value) == 3
    assert len(app.multiselect(key="runs").options) == len(example.pruning().copies)
    assert "no report.json in /nowhere" in app.text_input(key="runs_path").set_value("/nowhere").run().error[0].value


def test_unreadable_folder_is_skipped_with_a_warning(server, tmp_path):
    server(made_report())
    saved(tmp_path / "whole", made_report("rose", 0.8, seed=1))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "report.json").write_text("{")
    app = open_page(PAGE, **HERE, runs_path=str(tmp_path))
    assert app.multiselect(key="runs").options == [OURS, BASE]
    assert "Left out" in app.main.warning[0].value
    assert not app.error


def test_saved_run_is_compared_with_a_server_run(server, tmp_path):
    server(made_report())
    app = open_page(PAGE, **HERE, runs_path=str(saved(tmp_path / "by_hand", made_report("rose", 0.8, seed=1))))
    assert app.multiselect(key="runs").value == [BASE, OURS]
    assert app.multiselect(key="runs").proto.max_selections == MOST
    assert "has the lower held-out error in all six layers; on average it is 20 % lower" in titles(app)[0]
    assert "comes from different windows of text" in texts(app)  # their seeds differ
    app.selectbox(key="runs_as").set_value("both").run()
    assert "Both runs have the highest held-out error in 2 · o_proj: 0.600 and 0.480" in titles(app)[0]
    app.segmented_control(key="runs_view").set_value("Numbers").run()
    assert app.table[0].value.set_index("").loc["Perplexity"].tolist() == ["30.0", "28.0"]
    assert app.table[0].value.set_index("").loc["Time, with any tuning"].tolist() == ["3 s", "3 s"]  # as on Prune
    assert any("that differ" in part.label for part in app.expander)


def test_default_runs_are_comparable(server):
    others = [made_report("wanda", blocks=2), made_report("magnitude", sparsity="0.5"), made_report("dsnot", width=16)]
    server(made_report("rose", 0.8), made_report(), *others)
    app = open_page(PAGE, **HERE)
    assert len(app.multiselect(key="runs").options) == 5
    assert app.multiselect(key="runs").value == [BASE, OURS]


def test_link_to_missing_runs_shows_others(server):
    server(made_report(), made_report("rose", 0.8))
    app = open_page(
        PAGE,
        **HERE,
        runs="gone · ROSE · 0.7 · six layers",
        runs_measure="nothing",
        runs_view="Maps",
    )
    assert app.multiselect(key="runs").value == [BASE, OURS]
    assert app.selectbox(key="runs_measure").value == "held_out_error"
    assert len(figures(app)) == 1


def test_methods_of_a_study_are_listed_as_runs(study, server):
    place(study)
    app = open_page(PAGE, study, **HERE)
    names = [f"tiny · {name} (study) · 0.7 · 21 layers" for name in ("SparseGPT", "ROSE", "ROSE global")]
    chosen(app, *names)
    lower = int((study.overview(0.5)["held_out_rose"] < study.overview(0.5)["held_out_sparsegpt"]).sum())
    assert f"in {('no', 'one', 'two', 'three')[lower]} of 21 layers" in titles(app)[0]
    app.selectbox(key="runs_b").set_value("ROSE global at 0.7 (study)").run()
    assert "ROSE global at 0.7 (study) " in titles(app)[0]


def test_choice_follows_its_run_after_renaming(server):
    server(made_report(perplexity_after=30.0), made_report(perplexity_after=40.0))
    app = chosen(open_page(PAGE, **HERE, runs_view="Numbers"), f"{BASE}, run 2", BASE)
    before = app.table[0].value
    server(made_report(perplexity_after=70.0))
    app.run()
    assert app.multiselect(key="runs").value == [f"{BASE}, run 3", f"{BASE}, run 2"]
    assert app.table[0].value.to_numpy().tolist() == before.to_numpy().tolist()


def test_file_of_seeds_is_drawn(server, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text(CSV)
    app = open_page(PAGE, **HERE, runs_path=str(file), runs_view="Over seeds")
    assert "ROSE has the lowest mean perplexity" in titles(app)[0]
    app.segmented_control(key="seeds_sparsity").set_value("2:4").run()
    assert "15.0" in titles(app)[0]
    app.text_input(key="runs_path").set_value(str(tmp_path / "none.csv")).run()
    assert "There is no file" in app.error[0].value
    assert app.segmented_control(key="runs_view").value == "Map"


def test_runs_of_different_environments_are_not_ranked(server):
    server(made_report(environment="AMD, 1 thread"), made_report("rose", 0.8, environment="ARM, 1 thread"))
    app = chosen(open_page(PAGE, **HERE), BASE, OURS, view="Map")
    assert "so they are neither ranked nor subtracted" in texts(app)
    assert app.selectbox(key="runs_as").options == ["Both maps"]
    assert "The highest held-out error is in 2 · o_proj of SparseGPT at 0.7, 0.600" in titles(app)[0]
