"""Records of folders: the runs that they hold, their names, and their settings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import rose
from app.results import naming, pairs
from app.results.drift import drift_table
from app.runs.kept_copies import saved_checkpoint
from rose import cli
from rose.report import read_runs
from tests.app.results.made_reports import made_report, made_run, saved
from tests.tiny import save_tiny_llama

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


def test_a_pruned_folder_is_read_as_it_was_written(tmp_path: Path) -> None:
    report = made_report()
    (run,) = read_runs(str(saved(tmp_path / "here", report)))
    assert (run.name, run.kind, run.method) == ("SparseGPT at 0.7", "prune", "sparsegpt")
    assert run.by_layer["held_out_error"].tolist() == report.layers["held_out_error"].tolist()
    assert run.summary["drift"] == report.summary["drift"]
    assert run.zero_shot is None
    assert list(naming.name_apart([run])) == ["SparseGPT at 0.7 (here)"]
    assert [type(value) for value in run.drift[0].values()] == [int, float, float, float]


def test_layers_left_dense_beside_rounded_ones_count_in_no_mean() -> None:
    report = made_report()
    report.layers["sparsity"], report.layers["rounding_error"] = 0.0, [None, *[0.1] * 5]
    (run,) = report.runs
    assert len(run.pruned) == len(run.by_layer) - 1


def test_a_folder_of_folders_gives_all_runs_and_an_analysis_one_for_each_method(tmp_path: Path) -> None:
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


def test_a_slimmed_model_tells_what_is_gone() -> None:
    run, blocks = slim_record(SLIM_ROW), slim_record(method="depth")
    assert (run.name, run.kind) == ("Slim by obs, 20 % out", "slim")
    assert run.by_layer["sparsity"].tolist() == pytest.approx([0.2])
    assert run.by_layer["projection"].tolist() == ["self_attn.o_proj"]
    assert blocks.by_layer.empty
    assert not pairs.pair(run, blocks).measures


def test_ratios_have_names_of_their_own() -> None:
    """By which results are ranked."""
    assert [slim_record(ratio=ratio).asked for ratio in (0.12, 0.125, 0.004)] == ["12 % out", "12.5 % out", "0.4 % out"]


def test_a_check_says_what_was_found_and_nothing_of_held_out_errors() -> None:
    """Its errors are against the dense model, with held-out ones beside them, and nothing is known to be fitted."""
    report = made_report(remarks=["Few tokens."])
    report.layers["held_out_error"] = float("nan")
    checked = report.with_recipe(run="check")
    assert checked.remarks == ["Few tokens."]


def test_a_run_says_all_that_its_report_does() -> None:
    """Of layers, of windows, of targets, and what slimming says itself, which is of any length."""
    report = made_report(padded_windows=3, remarks=["Another share than asked."])
    report.layers["zeros_before"], report.layers["target"] = 0.5, "layer"
    report.layers.loc[0, "is_damping_raised"] = True
    (run,) = report.runs
    assert set(report.remarks) | {"Another share than asked."} == set(pairs.cautions_of([run]))
    assert "more than 5 % of the weights were zero before" in " ".join(report.remarks)


def test_what_was_slimmed_and_then_pruned_is_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Each stage has its own layers, drift and perplexity, and the report says so."""
    model, output = str(save_tiny_llama(tmp_path / "tiny")), tmp_path / "out"
    options = ["--model", model, "--samples", "4", "--length", "32", "--held-out", "2", "--prune-method", "sparsegpt"]
    options += ["--evaluate", "packaged", "--windows", "2", "--output", str(output)]
    assert cli.main(["slim", "--ratio", "0.3", "--prune", "0.5", *options]) == 0
    report = rose.RunReport.load(output)
    whole, second = report.summary, report.then.summary
    slimmed, pruned = read_runs(str(output))
    assert (slimmed.kind, pruned.kind) == ("slim", "prune")
    assert pruned.name == f"{slimmed.name}, then SparseGPT at 0.5"
    assert slimmed.summary["perplexity_after"] == whole["perplexity_slimmed"]
    assert pruned.summary["perplexity_after"] == whole["perplexity_after"]
    assert len(pruned.layers) == second["layers"] == 21
    assert slimmed.by_layer["sparsity"].between(0.01, 0.99).all()
    table = drift_table([slimmed, pruned])
    ends = table.groupby("run", sort=False)["drift"].last()
    assert ends[[slimmed.name, pruned.name]].tolist() == [each["drift"][-1]["drift"] for each in (whole, second)]
    capsys.readouterr()
    assert cli.main(["report", str(output), "--output", str(tmp_path / "report.html")]) == 0
    said = capsys.readouterr().out
    assert f"the drift of {pruned.name} from the slimmed model is" in said.replace("\n", " ")
    assert saved_checkpoint(str(output)).name == pruned.name


def test_accuracies_are_taken_from_the_file_beside_the_report(tmp_path: Path) -> None:
    saved(tmp_path, made_report())
    table = pd.DataFrame({"task": ["piqa"], "questions": [10], "accuracy": [0.5], "accuracy_error": [0.1]})
    table.to_csv(tmp_path / "zero_shot.csv", index=False)
    (run,) = read_runs(str(tmp_path))
    assert run.zero_shot is not None
    assert run.zero_shot["accuracy"].tolist() == [0.5]
    (tmp_path / "zero_shot.csv").write_text("a,b\n1,2\n")
    with pytest.raises(rose.RoseError, match="zero-shot table names no task"):
        read_runs(str(tmp_path))


@pytest.mark.parametrize(("target", "says"), [("layer", ", target layer"), ("dense", ""), ("", "")])
def test_a_target_is_named_only_where_the_report_says_it(target: str, says: str) -> None:
    run = made_report(target=target)
    assert (run.target, run.name) == (target, f"SparseGPT at 0.7{says}")
    assert (", target layer" in naming.label(run)) == bool(says)


def test_one_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    made_report().save(tmp_path / "whole")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "report.json").write_text("{}")
    with pytest.raises(rose.RoseError, match="broken"):
        read_runs(str(tmp_path))
    problems: list[rose.RoseError] = []
    (run,) = read_runs(str(tmp_path), problems.append)
    assert run.place == str(tmp_path / "whole")
    assert [str(tmp_path / "broken") in str(problem) for problem in problems] == [True]


def test_no_report_and_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(rose.RoseError, match=r"no report\.json in .*; give a folder"):
        read_runs(str(tmp_path))


def test_a_name_from_a_file_holds_nothing_that_a_page_obeys() -> None:
    (run,) = replace(made_report(sparsity="[x](http://a)<b>"), place="/tmp/![a](b)<i>").runs
    (name,) = naming.name_apart([run])
    assert not set(name.replace("(", "", 1)) & set("<>[]!`$*")


def test_pruned_and_slimmed_runs_stand_in_one_table_of_drift() -> None:
    """A slimmed one has a ratio and no sparsity."""
    slim = slim_record(SLIM_ROW, drift=[{"block_index": 0, "drift": 0.1, "passed_on": 0.0, "arisen": 0.1}])
    table = drift_table([made_report(), made_report(drift=[]), slim])
    assert table["sparsity"].tolist() == [*["0.7"] * 3, "20 % out"]
    assert table["drift"].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.1])
    assert table["cancelled"].tolist() == pytest.approx([-0.05, -0.1, -0.15, 0.0])


def test_names_say_what_tells_runs_apart() -> None:
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
