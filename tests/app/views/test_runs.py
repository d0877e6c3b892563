"""Compare runs: folders of the command line beside runs of the server; what is drawn is what their reports say."""

import json
from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest

import rose
from app import shared
from app.results.drift_sections import DRIFT, ORIGIN, REPAIR
from app.results.pairs import MOST
from app.runs.pruning import PruningRun
from app.study.setup import Setup
from tests.app.results.made_reports import made_report, made_tuning, saved
from tests.app.results.test_seeds import CSV
from tests.app.tiny_study import ended, figures, open_on, open_page, texts, titles

PAGE = "views/runs.py"
BASE, OURS = "tiny · SparseGPT · 0.7 · six layers", "tiny · ROSE · 0.7 · six layers"


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
    assert f"One run is here, {BASE}" in "\n".join(text.value for text in app.text)
    app.text_input(key="runs_path").set_value("/nowhere").run()
    assert "no report.json in /nowhere" in app.error[0].value


def test_one_that_cannot_be_read_does_not_hide_the_others(server: deque[rose.RunReport], tmp_path: Path) -> None:
    server.append(made_report())
    saved(tmp_path / "whole", made_report("rose", 0.8, seed=1))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "report.json").write_text("{")
    app = open_page(PAGE, runs_path=str(tmp_path))
    assert app.multiselect(key="runs").options == [OURS, BASE]
    assert "Left out" in app.main.warning[0].value
    assert not app.error
    assert not app.expander[0].warning  # which is closed where there is something to compare


def test_a_run_of_the_command_line_beside_one_of_the_server(server: deque[rose.RunReport], tmp_path: Path) -> None:
    server.append(made_report())
    app = open_page(PAGE, runs_path=str(saved(tmp_path / "by_hand", made_report("rose", 0.8, seed=1))))
    assert app.multiselect(key="runs").value == [BASE, OURS]
    assert app.multiselect(key="runs").proto.max_selections == MOST
    assert "has the lower held-out error in all six layers; on average it is 20 % lower" in titles(app)[0]
    assert "measured on different windows (see Settings)" in texts(app)  # their seeds differ
    app.segmented_control(key="runs_as").set_value("difference").run()
    assert "Of six layers ROSE at 0.7 (by_hand) is lower in six;" in texts(app)
    assert "−0.120 (2 · self_attn.o_proj)" in texts(app)

    app.segmented_control(key="runs_view").set_value("Maps").run()
    assert "Both runs have the highest held-out error in 2 · self_attn.o_proj: 0.600 and 0.480" in titles(app)[0]
    app.segmented_control(key="runs_view").set_value("Numbers").run()
    table = app.dataframe[0].value.set_index("")
    assert table.loc["Perplexity"].tolist() == ["30.0", "28.0 (−6.7 %)"]
    first, second = table.loc["Columnar layers"]
    assert second == first  # what is the same is not compared
    app.segmented_control(key="runs_view").set_value("Settings").run()
    assert app.dataframe[0].value["Setting"].tolist() == ["method", "seed"]
    assert not app.exception, app.exception


def test_what_is_shown_unasked_is_fit_to_be_compared(server: deque[rose.RunReport]) -> None:
    """Not a run of fewer layers, of other shapes, or at another sparsity: it would win by having pruned less."""
    alone = [made_report("wanda", blocks=2), made_report("magnitude", sparsity="0.5"), made_report("dsnot", width=16)]
    server += [made_report("rose", 0.8), made_report(), *alone]
    app = open_page(PAGE)
    assert len(app.multiselect(key="runs").options) == 5
    assert app.multiselect(key="runs").value == [BASE, OURS]
    assert "different windows" not in texts(app)


def test_different_shapes_are_refused(server: deque[rose.RunReport]) -> None:
    server += [made_report(), made_report(width=16)]
    app = open_page(PAGE)
    assert app.multiselect(key="runs").value == [BASE]
    assert "Choose a second run" in texts(app)
    app.multiselect(key="runs").set_value([BASE, f"{BASE}, run 2"]).run()
    assert "different shapes" in app.error[0].value
    app.multiselect(key="runs").set_value([]).run()
    assert "Choose at least one run." in texts(app)


def test_two_models_stand_side_by_side(server: deque[rose.RunReport]) -> None:
    server += [made_report("rose", 2.0, blocks=2, model="small/one"), made_report(blocks=5, width=16, model="two")]
    chosen = ["two · SparseGPT · 0.7 · ten layers", "one · ROSE · 0.7 · four layers"]
    app = open_page(PAGE, runs_view="Maps")
    app.multiselect(key="runs").set_value(chosen).run()
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
    app = open_page(PAGE, runs="gone · ROSE · 0.7 · six layers", runs_measure="nothing")
    assert app.multiselect(key="runs").value == [BASE, OURS]
    assert app.selectbox(key="runs_measure").value == "held_out_error"
    assert len(figures(app)) == 1


def test_a_study_holds_runs(placed: None, study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "reports", lambda: deque())
    monkeypatch.setattr(shared, "studies", lambda: {study.setup: study})  # no others, of other tests
    app = open_page(PAGE, study)
    assert app.multiselect(key="runs").value == [
        f"tiny · {name} (study) · 0.7 · 21 layers" for name in ("SparseGPT", "ROSE", "ROSE global")
    ]
    overview = study.overview(0.5)
    lower = int((overview["held_out_rose"] < overview["held_out_sparsegpt"]).sum())
    assert lower
    assert f"has the lower held-out error in {('no', 'one', 'two', 'three')[lower]} of 21 layers" in titles(app)[0]
    app.selectbox(key="runs_b").set_value("ROSE global at 0.7 (study)").run()
    assert "ROSE global at 0.7 (study) has the lower held-out error in" in titles(app)[0]


def test_a_choice_follows_its_run_when_names_change(server: deque[rose.RunReport]) -> None:
    server += [made_report(perplexity_after=30.0), made_report(perplexity_after=40.0)]
    app = open_page(PAGE, runs_view="Numbers")
    app.multiselect(key="runs").set_value([f"{BASE}, run 2", BASE]).run()
    before = app.dataframe[0].value
    server.append(made_report(perplexity_after=70.0))
    app.run()
    assert app.multiselect(key="runs").value == [f"{BASE}, run 3", f"{BASE}, run 2"]
    shown = app.dataframe[0].value
    assert shown.to_numpy().tolist() == before.to_numpy().tolist()


def test_hidden_states_of_runs_of_the_server_and_of_a_folder(server: deque[rose.RunReport], tmp_path: Path) -> None:
    reports = {"layer": made_report(target="layer"), "dense": made_report(factor=0.8)}
    server.append(reports["layer"])
    saved(tmp_path / "saved", reports["dense"])
    saved(tmp_path / "without", made_report("rose", drift=[]))
    app = open_page(PAGE, runs_path=str(tmp_path), runs_view=DRIFT)
    layer, dense = "SparseGPT at 0.7, target layer", "SparseGPT at 0.7 (saved)"
    drawn = json.loads(figures(app)[0])
    assert [trace["name"] for trace in drawn["data"]] == [layer, dense]
    assert [trace["line"]["dash"] for trace in drawn["data"]] == ["dash", "solid"]
    assert "as they have no drift: ROSE at 0.7" in texts(app)
    ends = {target: report.summary["drift"][-1]["drift"] for target, report in reports.items()}
    assert f"from {ends['layer']:.3g}" in titles(app)[0]

    app.segmented_control(key="runs_view").set_value(ORIGIN).run()
    app.selectbox(key="runs_origin").set_value(dense).run()
    assert not app.exception, app.exception
    assert [trace["name"] for trace in json.loads(figures(app)[0])["data"]][:2] == ["passed on", "arisen in the block"]
    app.segmented_control(key="runs_view").set_value(REPAIR).run()
    assert len(figures(app)) == 1
    app.multiselect(key="runs").set_value(["tiny · ROSE · 0.7 · six layers"]).run()
    assert "None of these runs has drift" in texts(app)


def test_two_targets_are_compared_and_then_shown(setup: Setup, server: deque[rose.RunReport]) -> None:
    server += [made_report(), made_report("rose")]
    app = open_on(replace(setup, sparsity="0.5"), PAGE, runs_view=DRIFT)
    app.multiselect(key="runs").set_value([OURS]).run()
    app.session_state["runs-sources"] = True
    app.run()
    app.button(key="compare-targets").click().run()
    run: PruningRun = ended(app.session_state["comparing"])
    app.run()
    assert not app.exception, app.exception
    assert [report.summary["target"] for report in list(server)[2:]] == ["layer", "dense"]
    assert len(app.multiselect(key="runs").value) == 2
    assert "target dense" in figures(app)[0].replace("\\u003cbr\\u003e", " ")
    for outcome in run.copies:
        assert f"{outcome.name}: {outcome.perplexity:.3g}" in texts(app)


def test_results_over_seeds(server: deque[rose.RunReport], tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(CSV)
    app = open_page(PAGE, runs_view="Over seeds")
    assert "python -m rose compare" in texts(app)
    app.text_input(key="seeds_path").set_value(str(file)).run()
    assert "ROSE 23.0 ± 3.00, SparseGPT 30.0 ± 0" in texts(app)
    assert "ROSE has the lowest mean perplexity" in figures(app)[0]
    app.segmented_control(key="seeds_sparsity").set_value("2:4").run()
    assert "ROSE 15.0 ± 0" in texts(app)
    app.text_input(key="seeds_path").set_value(str(tmp_path)).run()
    assert "There is no file" in app.error[0].value


def test_beside_a_tuned_copy_totals_come_first_and_no_measure_by_itself(server: deque[rose.RunReport]) -> None:
    tuned = made_tuning(dict.fromkeys(made_report().layers["layer"], 0.1))
    better = made_report("rose", 0.8, tuned=tuned, perplexity_after=25.0).without_errors()
    server += [
        made_report(),
        made_report("rose", 0.8),
        better,
        made_report(tuned=tuned).without_errors(),
    ]  # on offer the last one comes first
    app = open_page(PAGE, runs_view="Difference")
    ours = "tiny · ROSE, tuned · 0.7 · six layers"
    assert app.multiselect(key="runs").value[:2] == [BASE, OURS]
    assert app.selectbox(key="runs_measure").value == "held_out_error"
    app.multiselect(key="runs").set_value([BASE, ours, OURS]).run()
    assert app.selectbox(key="runs_b").value == "ROSE at 0.7"
    app.multiselect(key="runs").set_value([BASE, ours]).run()
    assert not app.exception, app.exception
    assert "Tuning measures no errors of layers" in texts(app)
    assert "choose ROSE at 0.7, untuned, for those" in texts(app)
    assert app.selectbox(key="runs_measure").label == "A map of another number"
    assert app.dataframe[0].value.set_index("").loc["Perplexity"].tolist() == ["30.0", "25.0 (−16.7 %)"]
    assert not figures(app)
    app.selectbox(key="runs_measure").set_value("relative_range").run()
    assert len(figures(app)) == 1


def test_runs_of_different_environments_stand_side_by_side(server: deque[rose.RunReport]) -> None:
    server += [made_report(environment="AMD, 1 thread"), made_report("rose", 0.8, environment="ARM, 1 thread")]
    app = open_page(PAGE, runs_view="Numbers")
    assert app.multiselect(key="runs").value == [OURS]  # of its environment, there is no other
    app.multiselect(key="runs").set_value([BASE, OURS]).run()
    why = "SparseGPT at 0.7 and ROSE at 0.7 differ in environment (AMD, 1 thread; ARM, 1 thread), so they are neither"
    assert app.dataframe[0].value.set_index("").loc["Perplexity"].tolist() == ["30.0", "28.0"]
    assert why in texts(app)
    app.segmented_control(key="runs_view").set_value("Difference").run()
    assert why in app.error[0].value
    app.segmented_control(key="runs_view").set_value("Maps").run()
    assert "The highest held-out error is in 2 · self_attn.o_proj of SparseGPT at 0.7, 0.600" in titles(app)[0]
    assert why in texts(app)
    assert "Two models" not in texts(app)
    assert not app.exception, app.exception


def test_a_few_weights_more_or_less_are_no_difference(server: deque[rose.RunReport]) -> None:
    server += [made_report("rose", 1.0002, removed_fraction=0.699999), made_report(removed_fraction=0.700003)]
    table = open_page(PAGE, runs_view="Numbers").dataframe[0].value.set_index("")
    assert table.loc["Weights removed"].tolist() == ["70.00 %", "70.00 %"]
    assert table.loc["Perplexity"].tolist() == ["30.000", "30.002 (+0.0067 %)"]


@pytest.mark.parametrize("view", ["Difference", "Maps"])
def test_cautions_stand_below_layers_too(server: deque[rose.RunReport], view: str) -> None:
    server += [made_report("rose", 0.1), made_report("sparsegpt", 1.0)]
    for report in server:
        report.layers.loc[0, "held_out_error"] = 9 * report.layers.loc[0, "relative_error"]
    assert "the held-out error is more than" in texts(open_page(PAGE, runs_view=view))
