"""The HTML report repeats the findings of runs, stays small, and escapes foreign text."""

import base64
import copy
import gzip
import html
import json
import re
from dataclasses import asdict, replace
from typing import Any

import pytest

import rose
from app import words
from app.results import html_report, naming, pairs
from rose import cli
from rose.layer.order import visited_blocks
from rose.recipe import Recipe
from rose.recipe.steps import Analyze
from rose.report import read_runs
from rose.rows import csv_text
from tests.app.results.made_reports import made_report, made_run, saved
from tests.app.tiny_study import COLUMNAR, measured_study


def figures(text: str) -> list[dict]:
    return [json.loads(script) for script in re.findall(r"<script type='application/json'>(.*?)</script>", text)]


def test_one_run_with_its_findings_figures_settings_and_recipe(tmp_path, capsys):
    report = made_report(made_with={"torch": "9.9"}, block_size=32).with_recipe(run="prune", model="tiny")
    folder = saved(tmp_path / "run", report)
    output = tmp_path / "report.html"
    assert cli.main(["report", str(folder), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    text = output.read_text()
    assert len(text.encode()) < html_report.LIMIT
    for sentence in (
        "SparseGPT at 0.7 takes perplexity from 20.0 to 30.0, 1.50 times the dense model's.",
        "is 0.400 on average over six layers, highest in 2 · o_proj (0.600).",
        "SparseGPT at 0.7 found one of six layers columnar (blocks of 32).",
        "After the last decoder block the drift of SparseGPT at 0.7 from the dense model is 0.300",
    ):
        assert sentence in html.unescape(text)
        assert sentence in printed
    assert len(figures(text)) == 4  # errors, relative range, drift, where it arises
    assert all(figure["layout"]["title"] == {} or "title" not in figure["layout"] for figure in figures(text))
    assert "recipe: 1\nrun: prune\nmodel: tiny\n" in text
    assert "torch 9.9" in text
    assert "<td>calibration" not in text


def test_report_omits_figures_beyond_its_limit(monkeypatch):
    report = html_report.report_of(made_report().runs)
    whole = html_report.to_html(report)
    monkeypatch.setattr(html_report, "LIMIT", len(whole.encode()) - 1)
    text = html_report.to_html(report)
    assert len(text.encode()) <= html_report.LIMIT
    assert figures(text) == figures(whole)[:-1]
    assert "1 of 4 figures are left out" in text
    monkeypatch.setattr(html_report, "LIMIT", 1000)
    with pytest.raises(rose.RoseError, match="report fewer runs"):
        html_report.to_html(report)


def test_long_layer_tables_are_compressed(monkeypatch):
    report = html_report.report_of(made_report().runs)
    assert "All layers, six rows" in html_report.to_html(report)
    monkeypatch.setattr(html_report, "ROWS", 5)
    text = html_report.to_html(report)
    assert "All layers" not in text
    (packed,) = re.findall("<a download='layers.csv.gz' href='data:application/gzip;base64,(.*?)'>", text)
    assert gzip.decompress(base64.b64decode(packed)).decode() == csv_text(report.layers)
    assert len(figures(text)) == 4


def test_infinite_perplexity_is_reported():
    """A file holds no infinity, and a missing number must not read as if nothing had been evaluated."""
    runs = [made_run(evaluated_on="packaged"), made_run("rose", evaluated_on="packaged", perplexity_after=None)]
    sentence = "ROSE at 0.7 takes perplexity from 20.0 to no finite number: weights or outputs are NaN or infinite."
    assert sentence in html_report.report_of(runs).findings
    assert pairs.says_perplexities(runs) == sentence
    assert html_report.run_findings(made_run(perplexity_after=None))[0].startswith("The held-out")
    then = made_report("rose")  # evaluated after both stages, not between them
    slimmed, _ = replace(made_report(ratio=0.2, evaluated_on="packaged"), then=then).runs
    assert pairs.says_lost(slimmed) == ""


def test_infinite_errors_are_not_missing(tmp_path):
    report = made_report()
    report.layers["held_out_error"] = float("inf")
    for runs in (report.runs, read_runs(str(saved(tmp_path, report)))):
        assert "In all six layers the held-out error is infinite." in html_report.report_of(runs).findings
        assert not any("nothing was held out" in remark for remark in runs[0].remarks)


def test_missing_accuracy_and_infinite_drift_are_omitted(tmp_path):
    tasks = [{"task": "wikitext", "questions": 9, "accuracy": None}, {"task": "piqa", "questions": 9, "accuracy": 0.5}]
    drift = [{"block_index": 0, "drift": float("inf"), "passed_on": 0.0, "arisen": 0.1}]
    report = made_report(zero_shot=tasks, drift=drift)
    (run,) = report.runs
    assert read_runs(str(saved(tmp_path, report)))[0].drift == run.drift == []
    sentence = "SparseGPT at 0.7 answers 50.0\u202f% correctly, the mean over one zero-shot task."
    assert sentence in html_report.run_findings(run)
    drawings = html_report.report_of([run]).drawings
    alone = html_report.report_of([made_run(zero_shot=tasks[:1])]).drawings
    assert len(alone) == len(drawings) + 1  # of drift
    (both,) = [drawing for drawing in drawings if drawing.alt.startswith("Bar chart of zero-shot")]
    assert both.data["task"].tolist() == ["piqa"]


def test_table_cells_format_numbers():
    cells = {0.2: "0.2000", 1e-5: "1.000 × 10⁻⁵", 1234567.8: "1.235 × 10⁶", 210.0: "210", 1e22: "1.000 × 10²²"}
    cells |= {float("inf"): "∞", float("nan"): "–", True: "yes"}
    assert [html_report._cell(value) for value in cells] == list(cells.values())


def test_dense_experts_are_excluded_from_means():
    report = made_report()
    report.layers.loc[:2, ["sparsity", "relative_error", "held_out_error"]] = 0.0
    (run,) = report.runs
    mean = report.layers.loc[3:, "held_out_error"].mean()
    both = pairs.pair(run, run)
    assert both.rows("held_out_error")["first"].mean() == pytest.approx(mean)
    assert len(both.rows("sparsity")) == len(report.layers)
    assert pairs.NUMBERS["Mean held-out error"](run) == pytest.approx(mean)
    (finding,) = [text for text in html_report.run_findings(run) if "on average" in text]
    assert f"{words.number(mean)} on average over three layers" in finding


def test_foreign_markup_is_escaped():
    evil = "</script><img src=x onerror=alert(1)>"
    report = made_report(model=evil, calibration=evil, evaluated_on=evil, command=evil, made_with={evil: evil})
    rows = [{"task": evil, "questions": 10, "accuracy": 0.5}]
    text = html_report.to_html(html_report.report_of(report.with_summary(zero_shot=rows).runs))
    assert "onerror" in text
    assert "<img" not in text
    for figure in figures(text):
        assert "<img" not in json.dumps(figure)
    assert len(re.findall("</script>", text)) == len(re.findall("<script", text))
    assert "default-src &#x27;none&#x27;" in text or "default-src 'none'" in text


def test_bad_report_requests_are_refused(tmp_path, capsys):
    folder, other = (str(saved(tmp_path / name, made_report(width=width))) for name, width in (("a", 8), ("b", 16)))
    for folders, name, says in (
        ([folder], "report.pdf", "ends in .html"),
        ([folder], "nowhere/report.html", "name a file in a folder that exists"),
        ([folder, other], "report.html", "different shapes"),
    ):
        assert cli.main(["report", *folders, "--output", str(tmp_path / name)]) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_paper_figures_round_trip(tmp_path):
    study = measured_study()
    plan = study.plan(COLUMNAR)
    (run, *_) = naming.runs_of_study(study, 0.5, COLUMNAR)
    paper = run.paper
    natural, ordered = (study.prune(COLUMNAR, method="sparsegpt", order=order) for order in ("natural", "two_level"))
    assert paper.curves["two_level"][-1] == pytest.approx(ordered.relative_error, rel=1e-4)
    assert dict(paper.positions)[paper.place] == pytest.approx(natural.relative_error, rel=1e-4)
    assert paper.block == int(plan.loss_per_column.argmax())
    assert len(paper.positions) == len(plan.block_width)
    assert paper.visited == visited_blocks(plan, plan.order)
    assert [paper.losses[at] for at in paper.visited] == sorted(paper.losses, reverse=True)
    report = html_report.report_of([run])
    axes = [drawing.figure.layout.xaxis.title.text for drawing in report.drawings]
    expected = ["pruned blocks", f"position at which block {paper.block} is pruned", "sparsity"]
    assert [axis.partition(" (")[0] for axis in axes[2:]] == expected
    analysis = made_report(methods=["sparsegpt"], paper=asdict(paper))
    del analysis.summary["method"]
    assert read_runs(str(saved(tmp_path / "whole", analysis)))[0].paper == paper


def test_recipe_of_a_study_names_its_layers():
    study = copy.copy(measured_study())
    study.setup = study.setup.changed(layers="*.o_proj model.layers.0.*")
    runs = naming.runs_of_study(study, 0.5)
    (text,) = html_report.report_of(runs).recipes.values()
    asked: Any = Recipe.parse(text).spec
    assert isinstance(asked, Analyze)
    assert (asked.layers, asked.threshold) == (("*.o_proj", "model.layers.0.*"), 0.5)
    assert (asked.model, asked.samples, asked.held_out) == ("tiny", 8, 2)
    assert asked.methods == ("sparsegpt", "rose", "rose_global")
