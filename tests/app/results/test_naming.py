"""Finished runs come in one form from folders and studies; a folder that somebody else wrote is checked."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import rose
from app.results import naming, pairs
from app.results.drift import drift_problem, drift_table
from app.runs.checkpoints import saved_checkpoint
from rose import cli, verdicts
from rose.wording import short_text
from tests.app.results.made_reports import made_report, saved
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


def made_run(*arguments: Any, **summary: Any) -> rose.RunReport:
    (run,) = made_report(*arguments, **summary).runs
    return run


def report_file(folder: Path, summary: object, layers: object) -> Path:
    (folder / "report.json").write_text(json.dumps({"version": 2, "recipe": {}, "results": summary, "layers": layers}))
    return folder


def test_a_pruned_folder_is_read_as_it_was_written(tmp_path: Path) -> None:
    report = made_report()
    (run,) = naming.read_runs(str(saved(tmp_path / "here", report)))
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
    rose.RunReport(both, {"methods": ["sparsegpt", "rose"], "sparsity": "0.7", "model": "tiny"}).save(tmp_path / "b")
    runs = naming.read_runs(str(tmp_path))
    assert [(run.kind, run.method) for run in runs] == [
        ("prune", "sparsegpt"),
        ("study", "sparsegpt"),
        ("study", "rose"),
    ]
    assert runs[2].summary["mean_held_out_error"] == pytest.approx(0.2)
    assert len(naming.name_apart(runs)) == 3


def test_a_slimmed_model_is_read_with_what_went(tmp_path: Path) -> None:
    (run,) = naming.read_runs(str(report_file(tmp_path, {"method": "obs", "ratio": 0.2}, [SLIM_ROW])))
    assert (run.name, run.kind) == ("Slim by obs, 20 % out", "slim")
    assert run.by_layer["sparsity"].tolist() == pytest.approx([0.2])
    assert run.by_layer["projection"].tolist() == ["self_attn.o_proj"]
    report_file(tmp_path, {"method": "depth", "ratio": 0.2}, [])
    (blocks,) = naming.read_runs(str(tmp_path))
    assert blocks.by_layer.empty
    assert not pairs.pair(run, blocks).measures


def test_slimmed_models_of_different_ratios_have_different_names(tmp_path: Path) -> None:
    """Names are amounts, too, by which results are ranked."""
    names = [
        naming.read_runs(str(report_file(tmp_path, {"method": "obs", "ratio": ratio}, [SLIM_ROW])))[0].asked
        for ratio in (0.12, 0.125, 0.004)
    ]
    assert names == ["12 % out", "12.5 % out", "0.4 % out"]


def test_a_check_says_what_was_found_and_nothing_of_held_out_errors() -> None:
    """Its errors are against the dense model, with held-out ones beside them, and nothing is known to be fitted."""
    report = made_report(remarks=["Few tokens."])
    report.layers["held_out_error"] = float("nan")
    checked = report.with_summary(checkpoint="pruned/")
    assert checked.remarks == ["Few tokens."]


def test_environments_are_compared_to_the_last_word() -> None:
    """Their ends, versions and number format, decide as much as the processor does."""
    where = "AMD EPYC, 1 thread, torch 2.13.0+cpu, transformers 5.24.0, "
    one, same, other = (
        made_report(environment=where + end, evaluated_on="text").runs[0] for end in ("float32", "float32", "bfloat16")
    )
    assert one.setup.differs(same.setup) == ""
    assert one.setup.differs(other.setup) == f"environment ({where}float32; {where}bfloat16)"
    assert short_text("Intel(R) Xeon(R) Processor, 1 thread") == "Intel Xeon Processor, 1 thread"
    here, there = (made_run(model=f"/{folder}/final").setup for folder in "ab")
    assert here.differs(there) == "dense model (·a·final and ·b·final)"
    longer = made_report(environment=where + "float32", evaluated_on="text", length=32).runs[0]
    assert "windows" in one.setup.differs(longer.setup)


def test_runs_of_different_environments_are_not_subtracted() -> None:
    def run(method: str, factor: float, where: str | None) -> rose.RunReport:
        rows = [{"task": "piqa", "questions": 10, "accuracy": 0.5}]
        return made_run(method, factor, environment=where, zero_shot=rows)

    one, other, unknown = run("sparsegpt", 1, "AMD, float32"), run("rose", 0.8, "ARM, float32"), run("rose", 0.9, None)
    both = pairs.pair(one, other)
    assert both.problem == both.elsewhere
    assert both.problem.startswith(
        "SparseGPT at 0.7 and ROSE at 0.7 differ in environment (AMD, float32; ARM, float32), so they are neither"
    )
    assert both.rows("held_out_error").empty
    assert [len(rows) for rows in both.apart("held_out_error")] == [6, 6]
    assert not pairs.pair(one, unknown).problem
    for second, has_points in ((other, False), (unknown, True)):
        table = pairs.accuracies(one, second)
        assert table is not None
        assert ("points" in table) == has_points
    again = replace(other, called="again")
    assert pairs.usual_choice([other, one, again]) == [other, again]


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
    whole = rose.RunReport.load(output).summary
    slimmed, pruned = naming.read_runs(str(output))
    assert (slimmed.kind, pruned.kind) == ("slim", "prune")
    assert pruned.name == f"{slimmed.name}, then SparseGPT at 0.5"
    assert slimmed.summary["perplexity_after"] == whole["perplexity_slimmed"]
    assert pruned.summary["perplexity_after"] == whole["perplexity_after"]
    assert len(pruned.layers) == whole["pruned"]["layers"] == 21
    assert set(slimmed.by_layer["projection"]) == {"mlp.down_proj"}
    assert slimmed.by_layer["sparsity"].between(0.01, 0.99).all()
    table = drift_table([slimmed, pruned])
    ends = table.groupby("run", sort=False)[["drift", "perplexity"]].last()
    assert ends.loc[slimmed.name].tolist() == [whole["drift"][-1]["drift"], whole["perplexity_slimmed"]]
    assert ends.loc[pruned.name].tolist() == [whole["pruned"]["drift"][-1]["drift"], whole["perplexity_after"]]
    capsys.readouterr()
    assert cli.main(["report", str(output), "--output", str(tmp_path / "report.html")]) == 0
    said = capsys.readouterr().out
    assert f"the drift of {pruned.name} from the slimmed model is" in said.replace("\n", " ")
    assert saved_checkpoint(str(output)).name == pruned.name


def test_accuracies_are_taken_from_the_file_beside_the_report(tmp_path: Path) -> None:
    saved(tmp_path, made_report())
    table = pd.DataFrame({"task": ["piqa"], "questions": [10], "accuracy": [0.5], "accuracy_error": [0.1]})
    table.to_csv(tmp_path / "zero_shot.csv", index=False)
    (run,) = naming.read_runs(str(tmp_path))
    assert run.zero_shot is not None
    assert run.zero_shot["accuracy"].tolist() == [0.5]
    (tmp_path / "zero_shot.csv").write_text("a,b\n1,2\n")
    with pytest.raises(rose.RoseError, match="zero-shot table names no task"):
        naming.read_runs(str(tmp_path))


ROW = json.loads(made_report(blocks=1).to_json())["layers"][0]
PRUNED = {"method": "sparsegpt", "sparsity": "0.7"}


@pytest.mark.parametrize(
    ("known", "target", "says"),
    [({"target": "layer"}, "layer", ", target layer"), ({"target": "dense"}, "dense", ""), ({}, "", "")],
)
def test_a_target_is_named_only_where_the_report_says_it(known: dict, target: str, says: str, tmp_path: Path) -> None:
    (run,) = naming.read_runs(str(report_file(tmp_path, PRUNED | known, [ROW])))
    assert (run.target, run.name) == (target, f"SparseGPT at 0.7{says}")
    assert (", target layer" in naming.label(run)) == bool(says)


def test_one_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    saved(tmp_path / "whole", made_report())
    (tmp_path / "broken").mkdir()
    report_file(tmp_path / "broken", PRUNED, "rows")
    with pytest.raises(rose.RoseError, match="broken"):
        naming.read_runs(str(tmp_path))
    said: list[rose.RoseError] = []
    (run,) = naming.read_runs(str(tmp_path), said.append)
    assert run.place == str(tmp_path / "whole")
    assert [str(tmp_path / "broken") in str(problem) for problem in said] == [True]


def test_no_report_and_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(rose.RoseError, match=r"no report\.json in .*; give a folder"):
        naming.read_runs(str(tmp_path))
    (tmp_path / "report.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(rose.RoseError, match="not a report written by rose"):
        naming.read_runs(str(tmp_path))
    (tmp_path / "report.json").write_text("[" * 200_000)
    with pytest.raises(rose.RoseError, match=r"report\.json"):
        naming.read_runs(str(tmp_path))


def test_a_name_from_a_file_holds_nothing_that_a_page_obeys() -> None:
    (run,) = replace(made_report(sparsity="[x](http://a)<b>"), place="/tmp/![a](b)<i>").runs
    (name,) = naming.name_apart([run])
    assert not set(name.replace("(", "", 1)) & set("<>[]!`$*")


def test_two_runs_are_put_side_by_side() -> None:
    one, two = made_run(), made_run("rose", 0.8)
    both = pairs.pair(one, two)
    rows = both.rows("held_out_error")
    assert len(rows) == 6
    assert both.left_out == 0
    assert verdicts.sides(rows) == (6, 0)
    first, second = rows["first"], rows["second"]
    ratios = verdicts.mean_ratio(first, second), verdicts.mean_ratio(second, first)
    assert [ratio and ratio.value for ratio in ratios] == pytest.approx([0.8, 1 / 0.8])
    assert verdicts.sides(both.rows("relative_range")) == (0, 0)
    told = pairs.in_words(
        pd.DataFrame({"number": ["Perplexity", pairs.COUNT], "A": [23.08, 4.0], "B": [23.12, float("nan")]})
    )
    assert told[["A", "B"]].to_numpy().tolist() == [["23.08", "23.12"], ["4", "–"]]
    numbers = pairs.numbers([one, two]).set_index("number")
    assert numbers.loc["Perplexity"].tolist() == [30.0, 28.0]
    assert numbers.loc["Drift after the last decoder block"].tolist() == pytest.approx([0.3, 0.24])
    assert "Zero-shot accuracy, mean" not in numbers.index
    assert pairs.settings([one, two], only_different=True)["setting"].tolist() == ["method"]
    assert "sparsity" in pairs.settings([one, two])["setting"].tolist()
    sized = made_run(plain_bytes=9, packed_bytes=5, mean_target_error=0.1, mean_rounding_error=0.2)
    assert pairs.settings([one, sized], only_different=True).empty


def test_models_of_different_shapes_are_refused_and_chosen_layers_are_not() -> None:
    one = made_run()
    assert re.search(r"different shapes: model.* is 8 × 8 .* 16 × 8", pairs.pair(one, made_run(width=16)).problem)
    other = pairs.pair(one, made_run(blocks=4, model="another"))
    assert "different models, 6 layers in one and 8 in the other" in other.problem
    some = made_report()
    some = rose.RunReport(some.layers[some.layers["projection"] == "mlp.down_proj"], some.summary)
    assert pairs.pair(one, some.runs[0]).left_out == 3


def test_perplexities_on_different_windows_are_told_apart() -> None:
    one = made_run()
    same, other = made_run("rose"), made_run("rose", perplexity_before=25.0)
    assert pairs.says_perplexities([one, same]).startswith("SparseGPT at 0.7 and ROSE at 0.7 are identical")
    said = pairs.says_perplexities([one, other])
    assert said == "Not ranked: SparseGPT at 0.7 and ROSE at 0.7 differ in evaluation windows, or dense model."
    assert pairs.says_perplexities([one, made_run("rose", perplexity_after=None)]) == ""


def test_accuracies_of_both_by_task() -> None:
    def run(accuracy: float, **more: object) -> rose.RunReport:
        rows = [{"task": "piqa", "questions": 10, "accuracy": accuracy} | more]
        return made_run(zero_shot=rows)

    table = pairs.accuracies(run(0.5), run(0.6))
    assert table is not None
    assert table["points"].tolist() == pytest.approx([10.0])
    assert pairs.accuracies(run(0.5), run(0.6, questions=20)) is None


def test_mean_accuracies_are_over_the_tasks_that_all_runs_answered() -> None:
    one = {"task": "piqa", "questions": 10, "accuracy": 0.5}
    easy = {"task": "boolq", "questions": 10, "accuracy": 0.9}
    both = [made_run(zero_shot=[one]), made_run(zero_shot=[one | {"accuracy": 0.4}, easy])]
    assert pairs.numbers(both).set_index("number").loc[pairs.ACCURACY].tolist() == pytest.approx([0.5, 0.4])
    apart = pairs.numbers([made_run(zero_shot=[one]), made_run(zero_shot=[easy])])
    assert pairs.ACCURACY not in apart["number"].tolist()


def test_drift_of_saved_runs_is_what_their_reports_say(tmp_path: Path) -> None:
    """Pruned and slimmed runs stand in one table; a slimmed one has a ratio and no sparsity."""
    saved(tmp_path / "pruned", made_report())
    saved(tmp_path / "without", made_report(drift=[]))
    (tmp_path / "slim").mkdir()
    drift = [{"block_index": 0, "drift": 0.1, "passed_on": 0.0, "arisen": 0.1}]
    report_file(tmp_path / "slim", {"method": "obs", "ratio": 0.2, "drift": drift}, [SLIM_ROW])
    table = drift_table(naming.read_runs(str(tmp_path)))
    assert table["sparsity"].tolist() == [*["0.7"] * 3, "20 % out"]
    assert table["drift"].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.1])
    assert table["cancelled"].tolist() == pytest.approx([-0.05, -0.1, -0.15, 0.0])


def test_drifts_of_runs_that_removed_different_amounts_are_not_ranked() -> None:
    one, same, less = made_run(), made_run("rose"), made_run("wanda", sparsity="0.5")
    assert drift_problem([one, same]) == ""
    assert drift_problem([one, same, less]) == "different amounts were asked of the runs (0.7 and 0.5)"


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
    table = drift_table(list(naming.name_apart([one, part]).values()))
    assert table.groupby("run")["calibration"].first().nunique() == 2  # so that the two are not called a pair
