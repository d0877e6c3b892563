"""The command line, called as a user calls it, on a tiny checkpoint."""

import errno
import gc
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from argparse import Namespace
from contextlib import suppress
from functools import partial
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import rose
from rose import cli, verdicts
from rose.commands import analyze, saving, shared, terminal
from rose.commands.compare import _print as _print_methods
from rose.commands.damage import _print as _print_damage
from rose.commands.prune import _print_layers
from rose.commands.terminal import bar
from rose.model.estimate import duration
from rose.model.measure import comparison
from rose.model.measure import damage as damage_rows
from rose.model.measure.comparison import ComparisonFolder, ComparisonRow
from rose.model.measure.damage import DamageReport
from rose.model.network.precision import Precision
from rose.model.run import one_layer
from rose.output import check_file
from rose.recipe.steps import Prune
from rose.structured import plan
from rose.tensor_files import digest
from rose.wording import apart
from tests.tasks import write_task
from tests.tiny import BOS, save_tiny_llama

RESULTS = Path(__file__).parents[1] / "docs" / "results"
CALIBRATION = ["--samples", "4", "--length", "48", "--held-out", "2", "--block-size", "16"]
COMPARE_ONE = ["compare", "--methods", "wanda", "--seeds", "0", "--evaluate", "packaged", "--windows", "1"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_llama(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    return path


def run(*arguments: str | Path) -> int:
    return cli.main([str(argument) for argument in arguments])


def prune(checkpoint: str, output: Path, *more: str) -> int:
    return run("prune", "--model", checkpoint, *CALIBRATION, "--output", output, *more)


def test_models_lists_the_packaged_model_and_every_method(capsys):
    assert run("models") == 0
    shown = capsys.readouterr().out
    assert "smollm2-135m" in shown
    for method in rose.METHODS:
        assert method in shown


@pytest.mark.parametrize("method", list(rose.METHODS))
def test_prune_writes_a_checkpoint_that_loads_and_a_report_that_tells_the_truth(checkpoint, tmp_path, method):
    output = tmp_path / "pruned"
    assert prune(checkpoint, output, "--method", method, "--sparsity", "0.5") == 0
    model = AutoModelForCausalLM.from_pretrained(output)
    table = pd.read_csv(output / "layers.csv")
    assert len(table) == 21
    for layer, sparsity in zip(table["layer"], table["sparsity"], strict=True):
        zeros = (model.get_submodule(layer).weight == 0).float().mean().item()
        if method == "oats":  # its low-rank part fills the zeros, and whole ranks of tiny matrices are coarse
            assert sparsity == pytest.approx(0.5, abs=0.05)
        else:
            assert zeros == pytest.approx(sparsity, abs=1e-6)
            assert sparsity == pytest.approx(0.5, abs=1e-3)
    summary = rose.RunReport.load(output).summary
    assert summary["method"] == method
    assert summary["samples"] == 4
    assert (table["held_out_error"] > 0).all()
    ids = AutoTokenizer.from_pretrained(output)("hello", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=3, min_new_tokens=3, do_sample=False).shape == (1, 8)


@pytest.mark.parametrize("computes", ["bfloat16", "float32"])
def test_a_copy_has_the_format_of_the_checkpoint_or_says_what_keeps_it(
    computes, checkpoint, tmp_path, capsys, monkeypatch
):
    model, tokenizer = rose.load_model(checkpoint, dtype="bfloat16")
    rose.save_model(model, tokenizer, tmp_path / "stored")
    monkeypatch.setenv("ROSE_COMPUTE", computes)
    assert prune(str(tmp_path / "stored"), tmp_path / "pruned", "--method", "wanda", "--sparsity", "0.5") == 0
    tune = ["--dense", tmp_path / "stored", "--samples", "4", "--length", "48", "--held-out", "0"]
    assert run("tune", tmp_path / "pruned", *tune, "--output", tmp_path / "tuned") == 0
    said = " ".join(capsys.readouterr().err.split())
    for copy in ("pruned", "tuned"):
        assert {str(tensor.dtype) for tensor in load_file(tmp_path / copy / "model.safetensors").values()} == {
            f"torch.{computes}"
        }
    assert rose.RunReport.load(tmp_path / "pruned").summary["dtype"] == computes
    wider = "The copy will be in float32, twice the bytes; --dtype bfloat16 keeps bfloat16"
    assert said.count(wider) == (computes == "float32")  # what is tuned has float32 already


@pytest.mark.parametrize("sparsity", ["0", "0.005"])
def test_tuning_of_nothing_is_refused_before_anything_is_read(sparsity, tmp_path, capsys):
    asked = ["--model", "nowhere", "--sparsity", sparsity, "--tune", "1", "--output", tmp_path / "out"]
    assert run("prune", *asked) == 2
    assert f"sparsity {sparsity} prunes less than 1 %" in " ".join(capsys.readouterr().err.split())


def test_a_tuned_copy_keeps_the_tokenizer_of_what_was_tuned(checkpoint, tmp_path, capsys):
    assert prune(checkpoint, tmp_path / "pruned", "--method", "wanda", "--sparsity", "0.5") == 0
    (tmp_path / "pruned" / "chat_template.jinja").write_text("{{ 'mine' }}")
    tune = ["--dense", checkpoint, "--samples", "4", "--length", "48", "--held-out", "0"]
    assert run("tune", tmp_path / "pruned", *tune, "--output", tmp_path / "tuned") == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "tuned").chat_template == "{{ 'mine' }}"


def test_prune_measures_perplexity_before_and_after(checkpoint, text, tmp_path, capsys):
    assert prune(checkpoint, tmp_path / "out", "--evaluate", str(text), "--windows", "3") == 0
    shown = capsys.readouterr().out
    summary = rose.RunReport.load(tmp_path / "out").summary
    before, after = apart(summary["perplexity_before"], summary["perplexity_after"])
    assert f"from {before} to {after}, " in " ".join(shown.split())
    assert [len(summary[f"losses_{stage}"]) for stage in ("before", "after")] == [3, 3]
    model, tokenizer = rose.load_model(checkpoint)
    windows = rose.load_tokens(str(text), tokenizer, samples=3, length=48, seed=None)
    assert summary["perplexity_before"] == pytest.approx(rose.perplexity(model, windows), rel=1e-5)
    after, _ = rose.load_model(str(tmp_path / "out"))
    assert summary["perplexity_after"] == pytest.approx(rose.perplexity(after, windows), rel=1e-4)


def test_a_model_is_saved_though_its_evaluation_fails(checkpoint, text, tmp_path, monkeypatch):
    measure = saving.Outcome.measure

    def fails(outcome, model, stage, of=""):
        if stage == "after":
            raise rose.RoseError("no memory left")
        return measure(outcome, model, stage, of)

    monkeypatch.setattr(saving.Outcome, "measure", fails)
    assert prune(checkpoint, tmp_path / "out", "--evaluate", str(text), "--windows", "3") == 2
    rose.load_model(str(tmp_path / "out"))
    summary = rose.RunReport.load(tmp_path / "out").summary
    assert summary["perplexity_before"] > 1
    assert summary["perplexity_after"] is None


@pytest.mark.parametrize("start", ["model.layers.", "model.language_model.layers."])
@pytest.mark.parametrize("summary", [{}, {"bits": 4}], ids=["as-they-are", "rounded"])
def test_numbers_of_layers_are_not_cut_where_names_are_long(capsys, start, summary):
    names = [f"{start}{block}.{layer}" for block in (0, 11) for layer in ("self_attn.q_proj", "mlp.down_proj")]
    measured = ["relative_range", "relative_error", "held_out_error", "held_out_target_error"]
    values = {
        name: 0.000511 + column / 1e4 for column, name in enumerate([*measured, "pruning_error", "rounding_error"])
    }
    table = pd.DataFrame({"layer": names, "sparsity": 0.5, **values})
    _print_layers(rose.RunReport(table.assign(rounding_error=0.000617), {"target": "dense", **summary}))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    assert all(name in shown or (name.removeprefix(start) in shown and f"without {start}" in shown) for name in names)
    assert shown.count("0.000617") == (4 if summary else 0)
    assert ["rounding" in shown, "range" in shown] == [bool(summary), not summary]


def test_prune_tells_what_the_residual_stream_has_lost_and_where_it_is_not_made_good(checkpoint, tmp_path, capsys):
    said = {}
    for name, more in {"all": [], "queries": ["--layers", "*q_proj"], "own": ["--target", "layer"]}.items():
        assert prune(checkpoint, tmp_path / name, *more) == 0
        said[name] = " ".join(capsys.readouterr().out.split())
        summary = rose.RunReport.load(tmp_path / name).summary
        assert ("of the dense model's" in said[name]) == (name != "own")
        if name != "own":
            assert f"{summary['mean_target_error']:.4f} of the dense model's" in said[name]
            assert f"last pruned decoder block, on held-out tokens: {summary['drift'][-1]['drift']:.4f}" in said[name]
    lost = "In 3 of 3 decoder blocks no pruned layer is known to write into the residual stream, so"
    assert [lost in text for text in said.values()] == [False, True, False]


def test_the_command_line_prunes_as_python_does(checkpoint, tmp_path):
    chosen = ["--method", "rose_global", "--layers", "*o_proj", "--seed", "3", "--bits", "3", "--group", "row"]
    assert prune(checkpoint, tmp_path / "out", *chosen) == 0
    model, tokenizer = rose.load_model(checkpoint)
    tokens = rose.load_tokens("packaged", tokenizer, samples=6, length=48, seed=3)
    words = {"layers": ["*o_proj"], "block_size": 16, "bits": 3, "group": "row"}
    rose.prune_model(model, tokens[:4], method="rose_global", **words)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, expected in model.state_dict().items():
        assert torch.equal(written.state_dict()[name], expected), name


def test_windows_begin_as_the_tokenizer_begins_text(text, tmp_path, capsys):
    folder = str(save_tiny_llama(tmp_path / "model", bos=True))
    kept = str(tmp_path / "kept")
    model, tokenizer = rose.load_model(folder)
    found = {}
    for bos in ("auto", "never"):
        evaluation = ["--evaluate", str(text), "--windows", "3", "--bos", bos]
        assert prune(folder, tmp_path / bos, "--layers", "*o_proj", *evaluation) == 0
        found[bos] = rose.RunReport.load(tmp_path / bos).summary
        windows = rose.load_tokens(str(text), tokenizer, samples=3, length=48, seed=None, bos=bos)
        assert found[bos]["perplexity_before"] == pytest.approx(rose.perplexity(model, windows), rel=1e-5)
    assert [found[bos]["bos"] for bos in found] == ["auto", "never"]
    assert [found[bos]["bos_token"] for bos in found] == [BOS, None]
    assert found["auto"]["mean_relative_error"] != found["never"]["mean_relative_error"]
    assert found["auto"]["perplexity_before"] != found["never"]["perplexity_before"]
    assert prune(folder, tmp_path / "one", "--checkpoint", kept) == 0
    capsys.readouterr()
    assert prune(folder, tmp_path / "two", "--checkpoint", kept, "--bos", "never") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"belongs to another run: bos token was {BOS} there and is None now" in said
    assert run("evaluate", "--model", folder, "--text", text, "--length", "48", "--bos", "always") == 0
    analysis = ["--bos", "never", "--layers", "*o_proj", "--output", tmp_path / "table"]
    assert run("analyze", "--model", folder, *CALIBRATION, *analysis) == 0
    summary = rose.RunReport.load(tmp_path / "table").summary
    assert (summary["bos"], summary["bos_token"]) == ("never", None)


def test_a_tokenizer_without_bos_says_so(checkpoint, capsys):
    assert run("evaluate", "--model", checkpoint, "--text", "packaged", "--length", "32", "--bos", "always") == 2
    assert "no beginning-of-sequence token" in capsys.readouterr().err


def test_analyze_prints_and_writes_every_layer(checkpoint, tmp_path, capsys):
    output = tmp_path / "analysis"
    arguments = ["--methods", "sparsegpt,rose,wanda,rose", "--threshold", "0", "--output", output]
    assert run("analyze", "--model", checkpoint, *CALIBRATION, *arguments) == 0
    shown = capsys.readouterr().out
    assert "21 of 21 layers are columnar" in shown
    assert "model.layers.2.mlp.down_proj" in shown
    table = pd.read_csv(output / "layers.csv")
    assert len(table) == 63
    assert set(table["method"]) == {"sparsegpt", "rose", "wanda"}
    summary = rose.RunReport.load(output).summary
    assert summary["methods"] == ["sparsegpt", "rose", "wanda"]
    assert summary["threshold"] == 0
    assert {"sparsity", "block_size", "damping", "calibration", "samples", "length", "dtype"} <= summary.keys()
    assert summary["environment"].endswith(summary["compute"])
    assert summary["paper"]["layer"] == table.loc[table["relative_range"].idxmax(), "layer"]
    assert f"Orders were tried on {summary['paper']['layer']}, the most columnar layer of at most 2048" in shown


def test_analyze_says_where_it_tries_no_orders(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(analyze, "WIDEST", 63)  # o_proj has 64 columns
    chosen = ["--layers", "*o_proj", "--methods", "magnitude", "--output", tmp_path / "analysis"]
    assert run("analyze", "--model", checkpoint, *CALIBRATION, *chosen) == 0
    assert "No orders were tried: that takes a single process, and a layer" in capsys.readouterr().out
    monkeypatch.undo()
    chosen[-1] = tmp_path / "alike"
    assert run("analyze", "--model", checkpoint, *CALIBRATION, *chosen, "--sparsity", "0") == 0
    assert "No orders were tried: blocks of columns lose alike in every layer" in capsys.readouterr().out


def test_analyze_tells_how_far_its_numbers_can_be_trusted(checkpoint, tmp_path, capsys):
    short = tmp_path / "short.txt"
    short.write_text("One and its square 1. " * 4)
    drawn = ["--calibration", short, *CALIBRATION, "--held-out", "0", "--layers", "*down_proj"]
    assert run("analyze", "--model", checkpoint, *drawn) == 0
    shown = capsys.readouterr().out
    assert "its 4 windows of 48 overlap" in shown
    assert "nothing was held out" in shown


def test_analyze_without_errors_compares_none(checkpoint, capsys):
    assert run("analyze", "--model", checkpoint, *CALIBRATION, "--sparsity", "0", "--layers", "*o_proj") == 0
    shown = capsys.readouterr().out
    assert "Mean held out error over layers" in shown
    assert "nan" not in shown


def test_evaluate_measures_tasks_and_says_what_it_lacks(checkpoint, tmp_path, capsys):
    questions = [{"question": "Water is", "choices": ["wet", "dry"], "answer": k % 2} for k in range(6)]
    write_task(tmp_path, questions, "water")
    asked = ["evaluate", "--model", checkpoint, "--tasks", "water", "--task-folder", tmp_path]
    assert run(*asked, "--limit", "4", "--output", tmp_path / "accuracy.csv", "--json", tmp_path / "all.json") == 0
    (answered,) = json.loads((tmp_path / "all.json").read_text())["accuracies"]
    assert (answered["task"], answered["accuracy"]) == ("water", 0.5)
    # The answer is the same every time and right in every second question.
    assert "Mean accuracy 0.5000 over 1 tasks" in capsys.readouterr().out
    written = pd.read_csv(tmp_path / "accuracy.csv")
    assert written[["task", "questions", "accuracy"]].values.tolist() == [["water", 4, 0.5]]
    assert run(*asked, "--output", tmp_path / "missing" / "accuracy.csv") == 2
    assert "in a folder that exists" in capsys.readouterr().err
    assert run(*asked, "--output", tmp_path) == 2
    assert "in a folder that exists" in capsys.readouterr().err
    assert run(*asked, "--output", tmp_path / "accuracy.csv") == 2
    assert "accuracy.csv already exists; choose another name, or remove it." in capsys.readouterr().err


def test_evaluate_prints_the_perplexity(checkpoint, text, tmp_path, capsys):
    written = tmp_path / "found.json"
    assert run("evaluate", "--model", checkpoint, "--text", text, "--length", "32", "--json", written) == 0
    model, tokenizer = rose.load_model(checkpoint)
    value = rose.perplexity(model, rose.load_tokens(str(text), tokenizer, samples=None, length=32, seed=None))
    assert f"{value:.3f}" in capsys.readouterr().out
    found = json.loads(written.read_text())
    assert found["perplexity"] == pytest.approx(value)
    assert math.exp(sum(found["losses"]) / len(found["losses"])) == pytest.approx(value)
    assert (found["model"], found["text"], found["dtype"]) == (checkpoint, str(text), "float32")


def test_compare_goes_on_where_it_was_interrupted(checkpoint, text, tmp_path, capsys, monkeypatch):
    output = tmp_path / "comparison"
    common = ["compare", "--model", checkpoint, *CALIBRATION, "--evaluate", text, "--windows", "2", "--output", output]
    methods = ["--methods", "wanda,sparsegpt@random:1/layer", "--sparsity", "0.5,2:4"]
    assert run(*common, *methods, "--seeds", "0") == 0
    first = (output / "rows.csv").read_text()
    monkeypatch.chdir(Path(text).parent)
    near = [Path(text).name if one == text else one for one in common]
    assert run(*near, *methods, "--seeds", "0,1") == 0
    assert json.loads((output / "settings.json").read_text())["evaluate"] == str(text)
    assert (output / "rows.csv").read_text().startswith(first)
    rows = pd.read_csv(output / "rows.csv")
    assert len(rows) == 8
    assert len(rows.drop_duplicates(["method", "sparsity", "seed"])) == 8
    errors = rows[["mean_held_out_target_error", "drift"]]
    assert (errors > 0).all(None)
    assert errors["drift"].nunique() > 4
    summary = pd.read_csv(output / "summary.csv").set_index(["method", "sparsity"])
    values = rows[(rows["method"] == "wanda") & (rows["sparsity"] == "2:4")]["perplexity"]
    assert summary.loc[("wanda", "2:4"), "perplexity"] == pytest.approx(values.mean())
    assert summary.loc[("wanda", "2:4"), "spread"] == pytest.approx((values.max() - values.min()) / 2)
    assert "| sparsegpt@random:1/layer |" in (output / "summary.md").read_text()
    shown = capsys.readouterr().out
    assert "…" not in shown  # a terminal of 80 columns shows every number whole
    for line in summary.reset_index().itertuples():
        assert f"{line.perplexity:.1f} ± {line.spread:.1f}" in shown
    assert run(*common, *methods, "--seeds", "0", "--damping", "0.1") == 2
    assert "other settings" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["rose@natural/layer", "sparsegpt:layer", "rose@random:3/global:layer"])
def test_names_of_compared_methods_break_between_their_parts(capsys, method):
    measured = {"mean_relative_error": 0.05, "mean_held_out_error": 0.061, "drift": 0.312, "removed_fraction": 0.6}
    row = partial(ComparisonRow, method, "0.6", dense_perplexity=12.0, seconds=123.0, peak_memory=10**9, **measured)
    _print_methods([row(seed=seed, perplexity=31.0 + seed) for seed in range(3)], "Perplexity")
    table = capsys.readouterr().out.partition("At 0.6")[0]
    assert max(map(len, table.splitlines())) <= 80
    assert all(part in table.split() for part in re.sub(r"(?=@|:\D)", " ", method).split()) or method in table.split()
    assert all(number in table for number in ("32.0 ± 1.0", "0.0500", "0.0610", "0.312"))


def test_damage_tells_what_may_tell_it_whole(capsys):
    table = pd.read_csv(RESULTS / "damage-layers.csv").query("unit != '*' and block_index < 4")
    _print_damage(DamageReport(table, {"together": -0.0002, "sum_of_damages": 1.0, "base_loss": 2.5, "cautions": []}))
    shown = capsys.readouterr().out
    assert "All at once cost −0.000200 nats per token" in shown
    ranked = shown.partition("Rank correlation with damage")[2]
    for name in ("held out error", "output error", "drift"):
        found = verdicts.rank_correlation(table[name.replace(" ", "_")], table["damage"])
        assert re.search(rf"{name} +{re.escape(str(found))}", ranked)
    assert "…" not in ranked
    assert " –" not in ranked


@pytest.mark.parametrize("refused", [True, False])
def test_no_bar_stays_of_what_never_began(refused):
    for share, stays in ((0.0, False), (1.0, True)):
        shown = io.StringIO()
        with suppress(rose.RoseError), bar(Console(file=shown), "Writing") as follow:
            follow(share)
            if refused:
                raise rose.RoseError("Not this one.")
        assert ("Writing" in shown.getvalue()) == stays


def test_a_bar_says_what_a_share_is_of():
    shown = io.StringIO()
    with bar(Console(file=shown, width=120), "Packing") as follow:
        follow(1.0, "Packing model.safetensors")
    assert "Packing model.safetensors" in shown.getvalue()


def test_a_log_without_a_terminal_tells_progress(monkeypatch):
    monkeypatch.setattr(terminal, "MINUTE", 0)
    shown = io.StringIO()
    with bar(Console(file=shown), "Pruning") as follow:
        follow(rose.Progress("prune", 0, 30, None, None, 29, 210, 30 / 210, 1.0, None))
        assert re.match(r"Pruning: 30 of 210, 0 s, about 0 s left\n", shown.getvalue())


def test_compare_rounds_as_prune_does(checkpoint, text, tmp_path, capsys):
    common = ["compare", "--model", checkpoint, *CALIBRATION, "--evaluate", text, "--windows", "2", "--seeds", "0"]
    common += ["--methods", "sparsegpt", "--sparsity", "0.5", "--output", tmp_path / "comparison"]
    rounding = ["--bits", "4", "--group", "row"]
    assert run(*common, *rounding) == 0
    assert "kept weights in 4 bits" in capsys.readouterr().out
    more = ["--calibration", "packaged", "--method", "sparsegpt", "--sparsity", "0.5", "--seed", "0"]
    assert prune(checkpoint, tmp_path / "pruned", *more, *rounding, "--evaluate", text, "--windows", "2") == 0
    summary = rose.RunReport.load(tmp_path / "pruned").summary
    (row,) = pd.read_csv(tmp_path / "comparison" / "rows.csv").itertuples()
    assert row.perplexity == pytest.approx(summary["perplexity_after"], rel=1e-6)
    assert run(*common) == 2  # without bits it is another comparison
    assert "other settings" in capsys.readouterr().err


def test_processes_of_a_launcher_share_the_runs_of_a_comparison(checkpoint, text, tmp_path, monkeypatch, capsys):
    common = ["compare", "--model", checkpoint, *CALIBRATION, "--evaluate", text, "--windows", "2"]
    common += ["--methods", "wanda,magnitude,sparsegpt", "--sparsity", "0.5", "--seeds", "0"]
    assert run(*common, "--output", tmp_path / "alone") == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    counts = []
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        capsys.readouterr()
        assert run(*common, "--output", tmp_path / "shared") == 0
        shown = capsys.readouterr()
        assert ("Rows and summaries" in shown.out) == (rank == 0)
        counts.append(len(pd.read_csv(tmp_path / "shared" / "rows.csv")))
    assert counts == [1, 3]
    columns = ["method", "sparsity", "seed", "perplexity", "mean_relative_error", "mean_held_out_error"]
    alone, shared = (pd.read_csv(tmp_path / x / "rows.csv").sort_values("method")[columns] for x in ("alone", "shared"))
    assert alone.reset_index(drop=True).equals(shared.reset_index(drop=True))


def test_rows_of_two_processes_are_both_kept_and_a_row_measured_twice_once(tmp_path):
    folders = [ComparisonFolder(tmp_path, {"model": "tiny"}) for _ in range(2)]
    for seed, folder in [*enumerate([*folders, *folders]), (3, folders[0])]:
        folder.add(ComparisonRow("rose", "0.5", seed, 4 / 3, 1.1 + 2.2, 0.2, None, 0.5, 1.5, 100))
    rows = ComparisonFolder(tmp_path, {"model": "tiny"}).rows
    assert [row.seed for row in rows] == [0, 1, 2, 3]
    assert {(row.perplexity, row.dense_perplexity) for row in rows} == {(4 / 3, 1.1 + 2.2)}


BAD = {
    "calibration": (["--calibration", "missing.txt"], "There is no file missing.txt"),
    "source": (["--calibration", "shakespeare"], "Unknown text"),
    "length": (["--length", "1"], "length must be a whole number from 2 to 1048576"),
    "too long": (["--length", "300"], "longer than the model"),
    "held out": (["--held-out", "-1"], "held_out must be a whole number from 0 to 65536"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_status_2(checkpoint, tmp_path, capsys, case):
    arguments, expected = BAD[case]
    assert prune(checkpoint, tmp_path / "out", *arguments) == 2
    shown = capsys.readouterr().err
    assert expected in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--layers", "nothing*"], "No prunable layer is named"),
        (["--sparsity", "3:5", "--block-size", "15"], "model.layers.0.self_attn.q_proj: "),
        (["--dtype", "float16", "--compute", "bfloat16"], "load the model in bfloat16"),
    ],
)
def test_what_a_model_refuses_is_told_before_its_perplexity_is_measured(
    checkpoint, tmp_path, capsys, monkeypatch, more, message
):
    def measure(*_args, **_more):
        raise AssertionError("nothing should be measured")

    monkeypatch.setattr(rose, "perplexity", measure)
    monkeypatch.setattr(comparison, "perplexity", measure)
    assert prune(checkpoint, tmp_path / "out", "--evaluate", "packaged", *more) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    settings = ["--methods", "wanda", "--seeds", "0", "--output", str(tmp_path / "compared"), *CALIBRATION]
    assert run("compare", "--model", checkpoint, "--evaluate", "packaged", *settings, *more) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_output_folder_with_something_in_it_is_refused_before_any_work(checkpoint, tmp_path, capsys):
    (tmp_path / "kept.txt").write_text("precious")
    assert prune(checkpoint, tmp_path) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert (tmp_path / "kept.txt").read_text() == "precious"


def on_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("exhaust", [lambda: bytearray(2**62), lambda: torch.empty(10**14), on_a_gpu])
def test_too_little_memory_is_one_sentence_and_status_2(checkpoint, tmp_path, monkeypatch, capsys, exhaust):
    monkeypatch.setattr(rose, "prune_model", lambda *_, **__: exhaust())
    assert prune(checkpoint, tmp_path / "out") == 2
    assert "There was not enough memory; fewer --samples, --dtype bfloat16 and --stream" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_prune_writes_nothing_and_exits_130(checkpoint, tmp_path, monkeypatch, capsys):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(rose, "prune_model", interrupt)
    assert prune(checkpoint, tmp_path / "out") == 130
    assert list(tmp_path.iterdir()) == []
    capsys.readouterr()
    assert prune(checkpoint, tmp_path / "out", "--checkpoint", str(tmp_path / "kept")) == 130
    assert "cancelled; nothing was written" in capsys.readouterr().err


def test_output_that_nobody_reads_any_more_changes_no_exit_status(monkeypatch):
    """As in `rose models | head -1`: 1 would mean that a check has found something wrong."""
    for stream, command, status in (("stdout", ["models"], 0), ("stderr", ["app", "--port", "0"], 2)):
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "w") as nobody, monkeypatch.context() as only:
            only.setattr(sys, stream, nobody)
            assert cli.main(command) == status
            assert cli.main(command) == status


def test_a_checkpoint_goes_on_where_the_run_was_interrupted(checkpoint, tmp_path, monkeypatch, capsys):
    assert prune(checkpoint, tmp_path / "straight") == 0
    kept, work, calls = tmp_path / "kept", one_layer.prune_with, []

    def interrupt(*arguments, **options):
        calls.append(None)
        if len(calls) == 10:  # in the second of three decoder blocks
            raise KeyboardInterrupt
        return work(*arguments, **options)

    monkeypatch.setattr(one_layer, "prune_with", interrupt)
    assert prune(checkpoint, tmp_path / "out", "--checkpoint", str(kept)) == 130
    assert f"the same command resumes from {kept}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert prune(checkpoint, tmp_path / "out", "--checkpoint", str(kept)) == 0
    assert len(calls) == 10 + 14
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "straight" / file).read_bytes()
    assert prune(checkpoint, tmp_path / "other", "--checkpoint", str(kept), "--sparsity", "0.5") == 2
    assert "belongs to another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (["analyze", "--block-size", "16"], "Analyzing"),
        (["prune", "--block-size", "16"], "Pruning"),
        (["slim", "--prune", "0.5"], "Slimming and pruning"),
    ],
    ids=["analyze", "prune", "slim"],
)
def test_long_work_says_before_what_it_will_take(checkpoint, tmp_path, capsys, monkeypatch, command, what):
    sizes = ["--model", checkpoint, "--samples", "4", "--length", "48", "--held-out", "2"]
    assert run(*command, *sizes, "--output", tmp_path / "short") == 0
    said = capsys.readouterr()
    assert "by estimate" not in said.err
    monkeypatch.setattr(duration, "matmul_rate", lambda: 1e5)
    monkeypatch.setattr(plan, "matmul_rate", lambda: 1e5)
    assert run(*command, *sizes, "--output", tmp_path / "long") == 0
    told = capsys.readouterr()
    cost = r"about [\d.]+ (s|min|h) and [\d.]+ (kB|MB) besides the model, by estimate"
    assert re.search(f"^{what}: {cost}$", told.err, re.M)
    assert "by estimate" not in told.out


def test_an_estimate_says_what_it_leaves_out(checkpoint, text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(duration, "matmul_rate", lambda: 1e5)
    more = ["--rotate", "heads", "--evaluate", text, "--windows", "1", "--checkpoint", tmp_path / "kept"]
    parts = ["--allocation", "sensitivity", "--layers", "*o_proj"]
    for output, less in (("one", ""), ("other", f"; less, as {tmp_path / 'kept'} holds some of it already")):
        assert prune(checkpoint, tmp_path / output, *more, *parts) == 0
        without = "without measuring sensitivities, rotating heads and measuring perplexity"
        assert f", by estimate {without}{less}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (COMPARE_ONE, r"Comparing: about [\d.]+ (s|min|h) and [\d.]+ (kB|MB) besides the model"),
        (["damage", "--units", "blocks"], r"Measuring: about [\d.]+ (s|min|h)"),
    ],
    ids=["compare", "damage"],
)
def test_long_measurements_say_before_what_they_will_take(checkpoint, tmp_path, capsys, monkeypatch, command, what):
    sizes = ["--model", checkpoint, *CALIBRATION, "--sparsity", "0.5", "--layers", "*o_proj", "--output"]
    assert run(*command, *sizes, tmp_path / "short") == 0
    assert "estimate" not in capsys.readouterr().err
    monkeypatch.setattr(duration, "matmul_rate", lambda: 1e5)
    assert run(*command, *sizes, tmp_path / "long") == 0
    assert re.search(f"^{what}, by estimate$", capsys.readouterr().err, re.M)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["prune"], "Pruning takes, besides the model, about"),
        (["prune", "--stream"], "Pruning takes, at the peak, besides Python and its libraries, "),
        (["slim", "--prune", "0.5"], "Slimming and pruning takes, besides the model, about"),
        (["analyze"], "Analyzing takes, besides the model, about"),
        (COMPARE_ONE, "Comparing takes, besides the model, about"),
    ],
    ids=lambda given: given[0] + "-stream" * ("--stream" in given) if isinstance(given, list) else "",
)
def test_a_run_that_does_not_fit_into_memory_is_refused(checkpoint, tmp_path, capsys, monkeypatch, command, says):
    loaded = rose.load_model(checkpoint, stream="--stream" in command)
    monkeypatch.setattr(rose, "load_model", lambda *_given, **_more: loaded)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Namespace(available=1000))
    sizes = CALIBRATION[: -2 if "slim" in command else None]  # it has no blocks of columns
    assert run(*command, "--model", checkpoint, *sizes, "--output", tmp_path / "out") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert says in said
    assert "and 1 kB are free; give fewer --samples" in said
    assert not list(tmp_path.glob("out/*.safetensors"))


def test_streaming_gives_the_same_files_and_table(checkpoint, tmp_path, capsys):
    for name, more in (("whole", []), ("streamed", ["--stream"])):
        assert prune(checkpoint, tmp_path / name, "--bits", "4", "--group", "row", *more) == 0
        assert run("analyze", "--model", checkpoint, *CALIBRATION, "--output", tmp_path / f"{name}-table", *more) == 0
        assert capsys.readouterr().err.count(" MB at the peak, besides Python and its libraries") == 2 * len(more)
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("whole", "streamed"))
    for name, expected in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], expected), name
    tables = [pd.read_csv(tmp_path / f"{name}-table" / "layers.csv") for name in ("whole", "streamed")]
    assert tables[0].drop(columns="seconds").equals(tables[1].drop(columns="seconds"))
    gc.collect()  # a streamed model takes its scratch folder along, here or when the process ends
    assert sorted(path.name for path in tmp_path.iterdir()) == ["streamed", "streamed-table", "whole", "whole-table"]


def test_heads_are_rotated_where_that_gains_and_the_report_says_where(checkpoint, tmp_path, capsys):
    rotated = ["--rotate", "heads", "--checkpoint", tmp_path / "kept"]
    for name, more in (
        ("whole", []),
        ("again", rotated),
        ("resumed", rotated),
        ("streamed", [*rotated[:2], "--stream"]),
    ):
        method = ["--method", "sparsegpt", "--sparsity", "0.5"]
        assert prune(checkpoint, tmp_path / name, *method, *(more or rotated[:2])) == 0
        said = " ".join(capsys.readouterr().err.split())
        summary = rose.RunReport.load(tmp_path / name).summary
        layers = summary["rotated_heads"]["layers"]
        assert summary["rotate"] == "heads"
        assert f"Rotated the heads of {len(layers)} of 3 output projections" in said
    digests = {
        digest(AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict())
        for name in ("whole", "again", "resumed", "streamed")
    }
    assert len(digests) == 1
    assert prune(checkpoint, tmp_path / "other", *method, "--checkpoint", tmp_path / "kept") == 2
    assert "rotated heads was learned there and is None now" in " ".join(capsys.readouterr().err.split())
    table = ["--rotate", "heads", "--output", tmp_path / "table", "--layers", "*o_proj"]
    assert run("analyze", "--model", checkpoint, *CALIBRATION, *table) == 0
    assert "rotated_heads" in rose.RunReport.load(tmp_path / "table").summary


def test_python_dash_m_rose_reports_bad_input_in_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "rose", "evaluate", "--model", "./nowhere", "--text", "packaged"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "rose: There is no folder or file ./nowhere; check the path.\n"
    assert done.stdout == ""


COMPARE = ["compare", "--evaluate", "packaged"]
CHEAP = {  # refused before a model is loaded: the command's options, what is said
    "sparsity": (["prune", "--sparsity", "7"], "from 0 to 1"),
    "method": (["prune", "--method", "rosé"], "no method named"),
    "block size": (["prune", "--block-size", "0"], "block_size must be a whole number of at least 1, not '0'"),
    "order": (["prune", "--method", "rose", "--order", "sideways"], "no order named"),
    "option": (["prune", "--option", "speed"], "NAME=VALUE"),
    "option of another method": (["prune", "--option", "rank_ratio=0.3"], "no option"),
    "allocation of N:M": (["prune", "--allocation", "owl", "--sparsity", "2:4"], "2:4 fixes the ratio"),
    "allocation": (["prune", "--allocation", "random"], "must be one of uniform, owl, sensitivity"),
    "alpha": (["prune", "--allocation", "sensitivity:2"], "number from 0 to 1, not '2'"),
    "damping": (["prune", "--damping", "-1"], "damping must be a number of at least 0"),
    "seed": (["prune", "--seed", "9" * 20], "seed must be a whole number from 0"),
    "checkpoint": (["prune", "--checkpoint", "out"], "--checkpoint must not be inside --output"),
    "checkpoint below": (["slim", "--checkpoint", "out/kept"], "--checkpoint must not be inside --output"),
    "streamed": (["prune", "--stream", "--evaluate", "packaged"], "--evaluate needs the whole model in memory"),
    "text": (["prune", "--calibration", "absent.txt"], "There is no file absent.txt"),
    "short text": (["prune", "--calibration", "short.txt"], "short.txt has 5 bytes, too few to calibrate"),
    "kind of text": (["analyze", "--calibration", "notes.md"], "Unknown text 'notes.md'"),
    "text to evaluate on": (["prune", "--evaluate", "absent.jsonl"], "There is no file absent.jsonl"),
    "windows of nothing": (["prune", "--windows", "3"], "--windows counts those of --evaluate"),
    "methods of nothing": (
        ["check", "smollm2-135m", "x", "--methods", "wanda"],
        "Without --calibration TEXT a check goes by the weights",
    ),
    "windows of no check": (["check", "x", "y", "--samples", "64", "--seed", "1"], "leave --samples and --seed out"),
    "two that say what to draw": (["diffuse", "sample", "--prompts", "a", "--classes", "Bag"], "both say what to draw"),
    "windows": (
        ["prune", "--evaluate", "packaged", "--windows", "0"],
        "windows must be a whole number of at least 1, not '0'",
    ),
    "samples": (["slim", "--samples", "0"], "samples must be a whole number from 1 to 65536, not '0'"),
    "samples that judge": (
        ["prune", "--samples", "1", "--rotate", "heads"],
        "give at least 2 calibration samples, not 1",
    ),
    "length": (
        ["evaluate", "--text", "packaged", "--length", "1"],
        "length must be a whole number from 2 to 1048576",
    ),
    "no method": (["analyze", "--methods", ","], "methods must be a list of names"),
    "threshold": (["analyze", "--threshold", "3"], "threshold on the relative range"),
    "one of the patterns": ([*COMPARE, "--allocation", "owl", "--sparsity", "0.5,2:4"], "2:4"),
    "order of one method": ([*COMPARE, "--methods", "rose@natural:5"], "no order named"),
    "block size of all": ([*COMPARE, "--block-size", "0"], "block_size"),
    "limit": (["evaluate", "--text", "packaged", "--limit", "3"], "--limit and --task-folder are for --tasks"),
    "task folder": (["evaluate", "--text", "packaged", "--task-folder", "x"], "--limit and --task-folder are for"),
    "windows of no text": (
        ["evaluate", "--tasks", "--windows", "2", "--length", "8"],
        "--windows and --length belong to the perplexity on --text",
    ),
    "format of no text": (["evaluate", "--tasks", "--compute", "auto"], "--compute belong to the perplexity on --text"),
    "nothing to measure": (["evaluate"], "Say what to measure"),
    "ratio": (["slim", "--ratio", "2"], "ratio must be a number above 0 and below 1"),
    "structured method": (
        ["slim", "--method", "nothing"],
        "method must be one of obs, slimllm, wanda, magnitude, depth, not 'nothing'",
    ),
    "slim's damping": (["slim", "--damping", "-1"], "damping must be"),
    "damping of target layer": (["slim", "--target", "layer", "--target-damping", "1"], "Only target dense"),
    "pattern": (["slim", "--prune", "5:4"], "5:4"),
    "multiple": (["slim", "--prune", "8:16"], "needs widths divisible by 16; give --multiple 16."),
    "depth": (["slim", "--method", "depth", "--parts", "heads", "--target", "dense"], "leave out --parts, --target."),
    "widths of depth": (
        ["slim", "--method", "depth", "--multiple", "16", "--damping", "1"],
        "out --damping, --multiple.",
    ),
    "negative seed": (["slim", "--seed", "-1"], "seed must be a whole number from 0 to 9223372036854775807, not '-1'"),
    "prune method": (["slim", "--prune", "0.5", "--prune-method", "nothing"], "nothing"),
    "prune method alone": (["slim", "--prune-method", "wanda"], "--prune-method is for --prune"),
    "packages": (["diffuse", "prune", "--packages", "0"], "packages must be a whole number"),
}


@pytest.mark.parametrize("case", CHEAP)
def test_a_typing_mistake_does_not_cost_the_loading_of_a_model(tmp_path, monkeypatch, capsys, case):
    arguments, message = CHEAP[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rose, "load_model", lambda *_args, **_more: pytest.fail("loaded a model first"))
    (tmp_path / "short.txt").write_text("short")
    output = [] if arguments[0] in ("evaluate", "check") else ["--output", "out"]
    assert run(*arguments, *output) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        ("slim", ["--ratio", "0.99"], "do not hold that much"),
        ("slim", ["--multiple", "999"], "no smaller multiple of 999"),
        ("slim", ["--method", "depth", "--ratio", "0.9999"], "is all of them"),
        ("slim", ["--model", "pruned"], "would fill its zeros"),
        ("slim", ["--length", "100000"], "longer than the model's 256 positions"),
        ("prune", ["--length", "100000"], "longer than the model's 256 positions"),
        ("prune", ["--evaluate", "packaged", "--windows", "1"], "out will take about 576 kB, and 1 kB are free there"),
        ("slim", ["--ratio", "0.3"], "are free there; make room"),
    ],
)
def test_what_cannot_be_done_is_told_before_a_text_is_read(
    checkpoint, tmp_path, monkeypatch, capsys, command, more, message
):
    if "free" in message:
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: Namespace(free=1000))
    if more[1] == "pruned":
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        for layer in rose.prunable_layers(model):
            layer.weight[:, ::2] = 0
        model.save_pretrained(tmp_path / "pruned")
        AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path / "pruned")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shared, "calibration", lambda *_args: pytest.fail("has read a text first"))
    assert run(command, "--model", checkpoint, "--length", "48", *more, "--output", "out") == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_check_the_wrong_way_round_is_told_so(checkpoint, tmp_path, capsys):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    for layer in rose.prunable_layers(model):
        layer.weight[:, ::2] = 0
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path)
    run("check", tmp_path, checkpoint)
    assert "Were the two given the other way round?" in capsys.readouterr().out
    run("check", checkpoint, tmp_path)
    assert "the other way round" not in capsys.readouterr().out


def test_a_comparison_that_measured_nothing_leaves_its_folder_to_the_next(checkpoint, tmp_path, capsys):
    output = tmp_path / "comparison"
    settings = [*CALIBRATION, "--windows", "2", "--methods", "wanda", "--sparsity", "0.5", "--seeds", "0"]
    asked = ["compare", "--evaluate", "packaged", "--output", output, *settings]
    assert run(*asked, "--model", tmp_path / "nowhere") == 2
    assert run(*asked, "--model", checkpoint) == 0
    assert run(*asked, "--model", checkpoint, "--compute", "float32") == 2
    assert "other settings" in capsys.readouterr().err
    folder = ComparisonFolder(tmp_path / "two", {"model": "one"})
    ComparisonFolder(tmp_path / "two", {"model": "other"})
    with pytest.raises(rose.RoseError, match="other settings"):
        folder.add(ComparisonFolder(output, json.loads((output / "settings.json").read_text())).rows[0])


def test_rows_of_a_model_that_was_replaced_are_not_compared_with(tmp_path, capsys):
    model, output = tmp_path / "model", tmp_path / "comparison"
    settings = [*CALIBRATION, "--windows", "2", "--methods", "magnitude", "--sparsity", "0.5", "--output", output]
    asked = ["compare", "--evaluate", "packaged", "--model", model, *settings, "--seeds"]
    save_tiny_llama(model, hidden=32)
    assert run(*asked, "0") == 0
    rows = (output / "rows.csv").read_text()
    copy = AutoModelForCausalLM.from_pretrained(model)
    next(layer for layer in rose.prunable_layers(copy)).weight[:, ::2] = 0  # its embeddings are the dense ones
    copy.save_pretrained(model)
    assert run(*asked, "0,1") == 2
    assert "as those of a pruned or tuned copy do" in " ".join(capsys.readouterr().err.split())
    save_tiny_llama(model, hidden=32, seed=1)
    assert run(*asked, "0,1") == 2
    assert "are those of another model" in " ".join(capsys.readouterr().err.split())
    assert (output / "rows.csv").read_text() == rows


def test_what_a_killed_comparison_left_half_written_is_no_obstacle(tmp_path):
    (tmp_path / "settings.jsonabc.tmp").write_text("{")
    assert ComparisonFolder(tmp_path, {"model": "tiny"}).rows == []
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "settings.json"}


def slim(checkpoint: str, output: Path, *more: str) -> int:
    return run("slim", "--model", checkpoint, *CALIBRATION[:-2], "--multiple", "8", "--output", output, *more)


def test_slim_writes_a_smaller_checkpoint(checkpoint, tmp_path, capsys):
    assert slim(checkpoint, tmp_path / "slim", "--ratio", "0.3", "--evaluate", "packaged", "--windows", "2") == 0
    shown = " ".join(capsys.readouterr().out.split())
    report = rose.RunReport.load(tmp_path / "slim").summary
    before, after = apart(report["perplexity_before"], report["perplexity_after"])
    assert f"from {before} to {after}, " in shown
    assert "for any program that uses transformers" in shown
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "slim")
    assert sum(parameter.numel() for parameter in model.parameters()) == report["kept_parameters"]
    weights = [Path(folder) / "model.safetensors" for folder in (checkpoint, tmp_path / "slim")]
    sizes = [path.stat().st_size for path in weights]
    assert sizes[1] / sizes[0] == pytest.approx(report["kept_parameters"] / report["parameters"], abs=0.02)
    table = pd.read_csv(tmp_path / "slim" / "layers.csv")
    assert {len(table)} == {3 * table["part"].nunique()}


@pytest.mark.parametrize(("chosen", "targets"), [((), ("layer", "dense")), (("--target", "layer"), ("layer", "layer"))])
def test_slim_and_prune_in_one_report(checkpoint, tmp_path, capsys, chosen, targets):
    settings = ("--ratio", "0.3", "--prune", "2:4", "--prune-method", "wanda", *chosen)
    assert slim(checkpoint, tmp_path / "both", *settings, "--evaluate", "packaged", "--windows", "2") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Then 50.0 % of the weights of 21 layers pruned by wanda" in shown
    assert shown.count("Drift of the residual stream after the last pruned decoder block") == 2  # of each step its own
    report = rose.RunReport.from_json((tmp_path / "both" / "report.json").read_text())
    assert report.then.summary["sparsity"] == "2:4"
    assert (report.summary["target"], report.then.summary["target"]) == targets
    assert report.summary["perplexity_slimmed"] != report.summary["perplexity_after"]
    assert report.layers["part"].notna().sum() == 3  # the channels of three decoder blocks
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "both")
    for layer in rose.prunable_layers(model):
        assert layer.weight.reshape(-1, 4).eq(0).sum(1).eq(2).all()


def test_slim_streams_and_resumes(checkpoint, tmp_path, capsys):
    settings = ("--ratio", "0.3", "--prune", "0.5", "--checkpoint", str(tmp_path / "kept"))
    assert slim(checkpoint, tmp_path / "slim", *settings, "--stream") == 0
    assert re.search(r"Slimming and pruning: about [\d.]+ MB at the peak, besides Python", capsys.readouterr().err)
    assert (tmp_path / "kept" / "pruned" / "block-00000.safetensors").exists()
    assert slim(checkpoint, tmp_path / "again", *settings, "--stream") == 0
    whole = ("--ratio", "0.3", "--prune", "0.5")
    assert slim(checkpoint, tmp_path / "whole", *whole) == 0
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("whole", "slim", "again")]
    assert len({digest(model.state_dict()) for model in models}) == 1


def test_slim_says_before_the_run_that_shapes_will_differ(checkpoint, tmp_path, capsys):
    assert slim(checkpoint, tmp_path / "slim", "--ratio", "0.3", "--allocation", "cost") == 0
    told = capsys.readouterr()
    assert "plain transformers does not" in " ".join(told.err.split())
    assert "for rose.load_model" in " ".join(told.out.split())


def test_slim_refuses_heads_too_narrow_for_the_pattern_before_the_run(tmp_path, capsys):
    narrow = str(save_tiny_llama(tmp_path / "narrow", hidden=32))
    pattern = ("--prune", "8:16", "--multiple", "16", "--ratio", "0.3")
    assert slim(narrow, tmp_path / "slim", *pattern) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "heads have 8 columns each; give --parts channels" in told
    assert "Slimming" not in told
    assert slim(narrow, tmp_path / "slim", *pattern, "--parts", "channels") == 0


# ---- damage

WINDOWS = ["--samples", "2", "--length", "32", "--held-out", "2"]
DAMAGE = [*WINDOWS, "--block-size", "16", "--method", "sparsegpt"]


def test_damage_writes_rows_as_they_come_and_resumes(checkpoint, tmp_path, capsys, monkeypatch):
    output = tmp_path / "damage"
    command = ["damage", "--model", checkpoint, *DAMAGE, "--sparsity", "0.5", "--units", "blocks", "--output", output]
    real, calls = damage_rows.DamageFolder.add, 0

    def stopped(folder, *rows):
        nonlocal calls
        calls += len(rows)
        real(folder, *rows)
        if rows and calls == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(damage_rows.DamageFolder, "add", stopped)
    assert run(*command) == 130
    assert f"the same command resumes from {output}" in " ".join(capsys.readouterr().err.split())
    first = pd.read_csv(output / "rows.csv")
    assert list(first["unit"]) == ["model.layers.0", "model.layers.1"]
    assert run(*command) == 0
    rows = pd.read_csv(output / "rows.csv")
    assert list(rows["unit"]) == ["model.layers.0", "model.layers.1", "model.layers.2", "*"]
    pd.testing.assert_frame_equal(rows.head(2), first)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["together"] == rows["damage"].iloc[-1]
    assert summary["sum_of_damages"] == pytest.approx(rows["damage"].iloc[:3].sum())
    assert summary["method"] == "sparsegpt"
    shown = capsys.readouterr().out
    assert "All at once cost" in shown
    assert run(*command) == 0  # nothing is left to measure
    assert pd.read_csv(output / "rows.csv").equals(rows)
    assert run(*command, "--seed", "7") == 2
    assert "other settings: seed was 0 there and is 7 now" in capsys.readouterr().err
    monkeypatch.setattr(Precision, "environment", lambda *_: "another machine")  # rounds in another way
    assert run(*command) == 2
    assert "other settings" in capsys.readouterr().err


def test_damage_of_a_model_in_bfloat16_was_computed_in_it(checkpoint, tmp_path):
    command = ["damage", "--model", checkpoint, *DAMAGE, "--units", "blocks", "--dtype", "bfloat16"]
    assert run(*command, "--output", tmp_path) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["environment"].endswith(", bfloat16")


def test_who_restores_prunes_by_no_method(checkpoint, tmp_path, capsys):
    assert prune(checkpoint, tmp_path / "pruned", "--method", "wanda", "--sparsity", "0.6") == 0
    command = ["damage", "--model", checkpoint, *WINDOWS, "--units", "blocks", "--restore", tmp_path / "pruned"]
    refused = ["--method", "wanda", "--block-size", "16", "--output", tmp_path / "refused"]
    assert run(*command, *refused) == 2
    assert "leave --block-size and --method out" in " ".join(capsys.readouterr().err.split())
    assert run(*command, "--output", tmp_path / "out") == 0
    assert "All at once give back" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["method"], summary["sparsity"]) == (None, None)


def test_a_folder_of_something_else_is_refused_and_left_as_it_is(tmp_path):
    settings = {"settings.json": '{"editor": "mine"}'}
    others = {"launch.json": "{}", "important.tmp": "data", "summary.md": "mine"}
    damage = {"settings.json": '{"model": "tiny", "units": "blocks"}'}
    cases = [settings, {"important.tmp": "data"}, {"summary.md": "mine"}, settings | others, damage]
    for number, files in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(content)
        with pytest.raises(rose.RoseError, match="holds no comparison"):
            ComparisonFolder(folder, {"model": "tiny", "windows": "4"})
        assert {path.name: path.read_text() for path in folder.iterdir()} == files


def test_damage_is_measured_in_one_process(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert run("damage", "--model", checkpoint, *CALIBRATION, "--output", tmp_path / "out") == 2
    assert "one process" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_are_no_markup(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("[bold]").symlink_to(checkpoint)
    assert run("evaluate", "--model", "./[bold]", "--text", "packaged", "--windows", "1", "--length", "16") == 0
    assert "Perplexity of ./[bold] on packaged" in capsys.readouterr().out
    assert run("evaluate", "--model", "[/x]", "--text", "packaged") == 2
    assert run("prune", "--model", checkpoint, *CALIBRATION, "--output", "[/red]") == 0
    assert "are in [/red]" in capsys.readouterr().out
    shown = io.StringIO()
    with bar(Console(file=shown, width=100), "Drawing with [/x]") as follow:
        follow(1.0)
    assert "Drawing with [/x]" in shown.getvalue()


def test_paths_are_in_the_home_folder_also_where_the_shell_leaves_that_to_us(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    commands = [
        ["report", "x"],
        ["pack", "x"],
        ["export", "x"],
        ["evaluate"],
        ["prune"],
        ["slim"],
        ["diffuse", "sample"],
    ]
    for command in [*commands, ["diffuse", "evaluate"]]:
        needed = ["--tasks"] if command == ["evaluate"] else []
        assert cli._read([*command, *needed, "--output=~/x"])[0].output == tmp_path / "x"
    assert cli._read(["check", "x", "y", "--json=~/x"])[0].json_file == tmp_path / "x"
    asked, _ = cli._read(["prune", "--output=~/x", "--checkpoint=~/x/kept"])
    with pytest.raises(rose.RoseError, match="must not be inside --output"):
        saving.check(asked)


def test_a_report_names_its_model_and_text_by_whole_paths(checkpoint, text, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(checkpoint).parent)
    asked, _ = cli._read(["prune", "--model", "./model", "--calibration", os.path.relpath(text), "--output", "x"])
    header = shared.origin(asked)
    assert header["model"] == checkpoint
    assert Path(header["calibration"]).is_absolute()
    assert Path(header["calibration"]).samefile(text)
    monkeypatch.chdir(checkpoint)
    named = partial(Prune, output="x")
    assert named(model="../model").to_dict()["model"] == checkpoint  # or another folder could not go on
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(checkpoint)
    Path("model").mkdir()
    assert Path(named(model="link/../model").to_dict()["model"]).samefile(checkpoint)
    Path("packaged").touch()
    assert named().to_dict()["calibration"] == "packaged"


def test_what_is_empty_is_refused_instead_of_taken_for_the_working_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for given in (["--output", ""], ["--output="], ["--model", "", "--output", "x"]):
        assert run("prune", *given) == 2
        assert f"What is given after {given[0].rstrip('=')} is empty" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_an_option_that_a_command_has_not_is_refused_by_that_command(capsys):
    for command, more in ((["check", "a", "b"], "--dense"), (["diffuse", "prune", "--output", "x"], "--windows")):
        with pytest.raises(SystemExit, match="2"):
            run(*command, more)
        name = " ".join(one for one in command if one in ("check", "diffuse", "prune"))
        assert f"rose {name}: error: unrecognized arguments: {more}" in capsys.readouterr().err


def test_what_nobody_has_foreseen_is_no_verdict(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(rose, "load_model", lambda *_args, **_more: [][0])
    assert run("check", checkpoint, checkpoint) == cli.UNFORESEEN != 1
    assert "IndexError" in capsys.readouterr().err


def test_output_in_letters_that_the_system_does_not_have(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    with suppress(SystemExit):
        run("--version")
    terminal.say("more …, \udc80")
    sys.stdout.flush()
    assert rb"more \u2026, \udc80" in written.getvalue()


def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch):
    def full(**_options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(rose.RoseError, match=r"Read-only file system.*choose another folder"):
        check_file(tmp_path / "rows.csv")


def test_a_report_does_not_take_the_place_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.html").write_text("mine")
    assert cli.main(["report", str(tmp_path), "--output", str(tmp_path / "notes.html")]) == 2
    assert "already exists; choose another name, or remove it" in capsys.readouterr().err
    assert (tmp_path / "notes.html").read_text() == "mine"
