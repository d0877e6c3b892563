"""Runs beside each other: names, pairs that are compared, and pairs that are refused."""

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import rose
from app.results import naming, pairs
from app.results.pairs import drift_table
from rose import verdicts
from rose.report import read_runs
from tests.app.results.made_reports import made_report, made_run, saved

SLIM_ROW = {"block_index": 0, "part": "heads", "layer": "model.layers.0.self_attn.o_proj", "method": "obs"}
SLIM_ROW |= {"parameters": 100, "kept_parameters": 80, "relative_error": 0.03, "held_out_error": None, "seconds": 0.1}


def slim_record(*rows: dict[str, Any], **recipe: Any) -> rose.RunReport:
    return rose.RunReport(pd.DataFrame(rows), {}, {"run": "slim", "method": "obs", "ratio": 0.2} | recipe)


def test_analysis_has_one_run_for_each_method(tmp_path):
    saved(tmp_path / "a", made_report())
    both = pd.concat([made_report().layers, made_report("rose", 0.5).layers], ignore_index=True)
    recipe = {"run": "analyze", "methods": ["sparsegpt", "rose"], "sparsity": "0.7", "model": "tiny"}
    rose.RunReport(both, {}, recipe).save(tmp_path / "b")
    runs = read_runs(str(tmp_path))
    assert [f"{run.kind} {run.method}" for run in runs] == ["prune sparsegpt", "study sparsegpt", "study rose"]
    assert pairs.numbers(runs[1:]).set_index("number").loc["Mean held-out error"].tolist() == pytest.approx([0.4, 0.2])
    assert len(naming.name_apart(runs)) == 3


def test_a_caution_that_runs_share_but_for_numbers_stands_once():
    runs: list[Any] = [SimpleNamespace(name=name, remarks=[f"In {name} of 9 layers x: y."]) for name in ("two", "six")]
    assert pairs.cautions_of(runs) == ["two: In two of 9 layers x: y. The same, with other numbers: six."]


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
    slim = slim_record(SLIM_ROW, drift=[{"block_index": 0, "drift": 0.1, "passed_on": 0.0, "arisen": 0.1}])
    table = drift_table([made_report(), made_report(drift=[]), slim])
    assert table["sparsity"].tolist() == [*["0.7"] * 3, "20 % out"]
    assert table["drift"].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.1])


def test_names_distinguish_runs():
    run, other, part = made_run(), made_run("rose", model="/models/other"), made_run(blocks=1)
    assert list(naming.name_apart([run, run])) == ["SparseGPT at 0.7", "SparseGPT at 0.7, run 2"]
    assert list(naming.name_apart([run, other])) == ["SparseGPT at 0.7 (tiny)", "ROSE at 0.7 (other)"]
    assert list(naming.name_apart([run, part])) == ["SparseGPT at 0.7 (six layers)", "SparseGPT at 0.7 (two layers)"]
    seeds = [f"SparseGPT at 0.7 (4 × 16 tokens, seed {seed})" for seed in (0, 1)]
    assert list(naming.name_apart([run, made_run(seed=1)])) == seeds
    places = [replace(run, place=place) for place in ("/a/pruned", "/b/pruned", "/b/other")]
    folders = ["a·pruned", "b·pruned", "other"]
    assert list(naming.name_apart(places)) == [f"SparseGPT at 0.7 ({folder})" for folder in folders]
    assert list(naming.labelled(places)) == [f"tiny · SparseGPT · 0.7 · six layers · {folder}" for folder in folders]


def test_runs_of_different_environments_are_not_subtracted():
    def run(method: str, factor: float, where: str | None) -> rose.RunReport:
        rows = [{"task": "piqa", "questions": 10, "accuracy": 0.5}]
        return made_run(method, factor, environment=where, zero_shot=rows)

    amd, arm, unknown = (run("sparsegpt", 1, "AMD, float32"), run("rose", 0.8, "ARM, float32"), run("rose", 0.9, None))
    both = pairs.pair(amd, arm)
    assert not both.problem
    assert "differ in environment (AMD, float32; ARM, float32), so they are neither" in both.apart
    numbers = both.rows("held_out_error")[["first", "second"]]
    assert (len(numbers), numbers.count().tolist()) == (12, [6, 6])
    assert not pairs.pair(amd, unknown).apart
    again = replace(arm, called="again")
    assert pairs.usual_choice([arm, amd, again]) == [arm, again]


def test_two_runs_are_put_side_by_side():
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
    table = pd.DataFrame({"number": ["Perplexity", pairs.COUNT], "A": [23.08, 4.0], "B": [23.12, float("nan")]})
    assert pairs.in_words(table)[["A", "B"]].to_numpy().tolist() == [["23.08", "23.12"], ["4", pairs.MISSING]]
    numbers = pairs.numbers([one, two]).set_index("number")
    assert numbers.loc["Perplexity"].tolist() == [30.0, 28.0]
    assert numbers.loc["Drift after the last decoder block"].tolist() == pytest.approx([0.3, 0.24])
    assert "Zero-shot accuracy, mean" not in numbers.index
    recipes = [run.with_recipe(method=run.method, sparsity="0.7") for run in (one, two)]
    assert pairs.settings(recipes, only_different=True)["setting"].tolist() == ["Method"]
    assert "Sparsity" in pairs.settings(recipes)["setting"].tolist()


def test_only_models_of_one_shape_are_paired():
    first = made_run()
    assert re.search(r"different shapes: model.* is 8 × 8 .* 16 × 8", pairs.pair(first, made_run(width=16)).problem)
    other = pairs.pair(first, made_run(blocks=4, model="another"))
    assert "different models with 6 and 8 layers" in other.problem
    some = made_report()
    some = rose.RunReport(some.layers[some.layers["projection"] == "mlp.down_proj"], some.summary)
    assert pairs.pair(first, some.runs[0]).left_out == 3


def test_perplexities_on_different_windows_are_not_ranked():
    first = made_run()
    same, other = made_run("rose"), made_run("rose", perplexity_before=25.0)
    assert pairs.says_perplexities([first, same]).startswith("SparseGPT at 0.7 and ROSE at 0.7 are identical")
    sentence = pairs.says_perplexities([first, other])
    assert sentence == "Not ranked: SparseGPT at 0.7 and ROSE at 0.7 differ in evaluation windows, or dense model."
    assert pairs.says_perplexities([first, made_run("rose", perplexity_after=None)]) == ""


def test_rounded_layers_count_as_pruned():
    report = made_report()
    report.layers["sparsity"], report.layers["rounding_error"] = 0.0, [None, *[0.1] * 5]
    assert len(report.runs[0].pruned) == len(report.runs[0].by_layer) - 1


def test_mean_accuracies_are_over_the_tasks_that_all_runs_answered():
    task = {"task": "piqa", "questions": 10, "accuracy": 0.5}
    easy = {"task": "boolq", "questions": 10, "accuracy": 0.9}
    both = [made_run(zero_shot=[task]), made_run(zero_shot=[task | {"accuracy": 0.4}, easy])]
    assert pairs.numbers(both).set_index("number").loc[pairs.ACCURACY].tolist() == pytest.approx([0.5, 0.4])
    apart = pairs.numbers([made_run(zero_shot=[task]), made_run(zero_shot=[easy])])
    assert pairs.ACCURACY not in apart["number"].tolist()


def test_every_pair_at_the_same_amount_has_a_verdict():
    losses, steps = np.array([3.0, 3.1, 2.9, 3.0]), np.array([1.0, 1.01, 1.02, 1.03])
    rises = {"sparsegpt": losses, "rose": losses, "wanda": losses + 0.5 * steps}
    runs = [
        made_run(name, losses_after=rise.tolist(), perplexity_after=float(np.exp(rise.mean())))
        for name, rise in rises.items()
    ]
    rows = {row["Perplexity of"]: row["at 0.7"] for row in pairs.verdict_table(pairs.results_of(runs))}
    assert rows.keys() == {"ROSE / SparseGPT", "Wanda / SparseGPT", "Wanda / ROSE"}
    assert rows["ROSE / SparseGPT"] == "="
    assert rows["Wanda / ROSE"].startswith("1.66")
    other = replace(pairs.results_of(runs)[0], name="SparseGPT at 0.5", amount="0.5")
    assert len(pairs.verdict_table([*pairs.results_of(runs), other])) == 3
