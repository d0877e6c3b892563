"""Records of folders: the runs that they hold, their names, and their settings."""

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

import rose
from app.results import naming, pairs
from app.results.pairs import drift_table
from rose.report import read_runs
from tests.app.results.made_reports import made_report, made_run, saved

SLIM_ROW = {
    "block_index": 0,
    "part": "heads",
    "layer": "model.layers.0.self_attn.o_proj",
    "method": "obs",
    "parameters": 100,
    "kept_parameters": 80,
    "relative_error": 0.03,
    "held_out_error": None,
    "seconds": 0.1,
}


def slim_record(*rows: dict[str, Any], **recipe: Any) -> rose.RunReport:
    return rose.RunReport(pd.DataFrame(rows), {}, {"run": "slim", "method": "obs", "ratio": 0.2} | recipe)


def test_analysis_has_one_run_for_each_method(tmp_path):
    saved(tmp_path / "a", made_report())
    both = pd.concat([made_report().layers, made_report("rose", 0.5).layers], ignore_index=True)
    rose.RunReport(
        both, {}, {"run": "analyze", "methods": ["sparsegpt", "rose"], "sparsity": "0.7", "model": "tiny"}
    ).save(tmp_path / "b")
    runs = read_runs(str(tmp_path))
    assert [(run.kind, run.method) for run in runs] == [
        ("prune", "sparsegpt"),
        ("study", "sparsegpt"),
        ("study", "rose"),
    ]
    assert pairs.numbers(runs[1:]).set_index("number").loc["Mean held-out error"].tolist() == pytest.approx([0.4, 0.2])
    assert len(naming.name_apart(runs)) == 3


def test_slimmed_model_reports_removed_parts():
    run, blocks = slim_record(SLIM_ROW), slim_record(method="depth")
    assert (run.name, run.kind) == ("Slim by obs, 20 % out", "slim")
    assert run.by_layer["sparsity"].tolist() == pytest.approx([0.2])
    assert run.by_layer["projection"].tolist() == ["self_attn.o_proj"]
    assert [slim_record(ratio=ratio).asked for ratio in (0.12, 0.125, 0.004)] == ["12 % out", "12.5 % out", "0.4 % out"]
    assert blocks.by_layer.empty
    assert not pairs.pair(run, blocks).measures


def test_accuracies_are_read_from_the_csv(tmp_path):
    saved(tmp_path, made_report())
    table = pd.DataFrame({"task": ["piqa"], "questions": [10], "accuracy": [0.5], "accuracy_error": [0.1]})
    table.to_csv(tmp_path / "zero_shot.csv", index=False)
    (run,) = read_runs(str(tmp_path))
    assert run.zero_shot["accuracy"].tolist() == [0.5]
    (tmp_path / "zero_shot.csv").write_text("a,b\n1,2\n")
    with pytest.raises(rose.RoseError, match="zero-shot table names no task"):
        read_runs(str(tmp_path))


def test_run_names_hold_no_markup():
    (run,) = replace(made_report(sparsity="[x](http://a)<b>"), place="/tmp/![a](b)<i>").runs
    (name,) = naming.name_apart([run])
    assert not set(name.replace("(", "", 1)) & set("<>[]!`$*")


def test_drift_table_holds_pruned_and_slimmed_runs():
    """A slimmed one has a ratio and no sparsity."""
    slim = slim_record(SLIM_ROW, drift=[{"block_index": 0, "drift": 0.1, "passed_on": 0.0, "arisen": 0.1}])
    table = drift_table([made_report(), made_report(drift=[]), slim])
    assert table["sparsity"].tolist() == [*["0.7"] * 3, "20 % out"]
    assert table["drift"].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.1])
    assert table["cancelled"].tolist() == pytest.approx([-0.05, -0.1, -0.15, 0.0])


def test_names_distinguish_runs():
    """Two models in one chart, or a run of a few layers among whole ones, must not look alike."""
    one, other, part = made_run(), made_run("rose", model="/models/other"), made_run(blocks=1)
    assert list(naming.name_apart([one, one])) == ["SparseGPT at 0.7", "SparseGPT at 0.7, run 2"]
    assert list(naming.name_apart([one, other])) == ["SparseGPT at 0.7 (tiny)", "ROSE at 0.7 (other)"]
    assert list(naming.name_apart([one, part])) == ["SparseGPT at 0.7 (six layers)", "SparseGPT at 0.7 (two layers)"]
    assert list(naming.name_apart([one, made_run(seed=1)])) == [
        "SparseGPT at 0.7 (4 × 16 tokens, seed 0)",
        "SparseGPT at 0.7 (4 × 16 tokens, seed 1)",
    ]
    places = [replace(one, place=place) for place in ("/a/pruned", "/b/pruned", "/b/other")]
    folders = ["a·pruned", "b·pruned", "other"]
    assert list(naming.name_apart(places)) == [f"SparseGPT at 0.7 ({folder})" for folder in folders]
    assert list(naming.labelled(places)) == [f"tiny · SparseGPT · 0.7 · six layers · {folder}" for folder in folders]
