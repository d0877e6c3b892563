"""The command line on a tiny checkpoint: calls of the engine, printed lines, files, and refusals."""

import errno
import json
import os
import re
import shutil
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rose
from rose import cli
from rose.commands import shared
from rose.model import estimate
from rose.model.measure.comparison import ComparisonFolder, ComparisonRow
from rose.model.measure.perplexity import plain_english
from rose.model.network.precision import Precision
from rose.model.run import one_layer
from rose.output import check_file
from rose.structured import plan
from rose.wording import apart
from tests.refusals import refused
from tests.tasks import write_task
from tests.tiny import save_tiny_llama

CALIBRATION = ["--samples", "4", "--length", "48", "--held-out", "2", "--block-size", "16"]
COMPARE = "compare --evaluate packaged --methods wanda --seeds 0"


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


def printed(capsys: pytest.CaptureFixture[str], stream: str = "err") -> str:
    """What a command has printed, as one line."""
    return " ".join(getattr(capsys.readouterr(), stream).split())


def prune(checkpoint: str, output: Path, *more: str) -> int:
    return run("prune", "--model", checkpoint, *CALIBRATION, "--output", output, *more)


def test_a_tuned_copy_keeps_its_tokenizer(checkpoint, tmp_path, capsys):
    assert prune(checkpoint, tmp_path / "pruned", "--method", "wanda", "--sparsity", "0.5") == 0
    (tmp_path / "pruned" / "chat_template.jinja").write_text("{{ 'mine' }}")
    tune = ["--dense", checkpoint, "--samples", "4", "--length", "48", "--held-out", "0"]
    assert run("tune", tmp_path / "pruned", *tune, "--output", tmp_path / "tuned") == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "tuned").chat_template == "{{ 'mine' }}"


def test_prune_measures_perplexity_before_and_after(checkpoint, text, tmp_path, capsys):
    assert prune(checkpoint, tmp_path / "out", "--evaluate", str(text), "--windows", "3") == 0
    summary = rose.RunReport.load(tmp_path / "out").summary
    before, after = apart(summary["perplexity_before"], summary["perplexity_after"])
    assert f"from {before} to {after}, " in printed(capsys, "out")
    assert [len(summary[f"losses_{stage}"]) for stage in ("before", "after")] == [3, 3]
    model, tokenizer = rose.load_model(checkpoint)
    windows = rose.load_tokens(str(text), tokenizer, samples=3, length=48, seed=None)
    assert summary["perplexity_before"] == pytest.approx(rose.perplexity(model, windows), rel=1e-5)


def test_prune_ends_with_what_it_cost_on_two_texts_and_what_to_do_next(checkpoint, tmp_path, capsys):
    assert prune(checkpoint, tmp_path / "out") == 0
    report, model = rose.RunReport.load(tmp_path / "out"), rose.load_model(str(tmp_path / "out"))[0]
    said = printed(capsys, "out")
    english = plain_english(model, rose.load_model(checkpoint)[1])
    english = english[: max(1, report.summary["windows"] * report.summary["length"] // english.shape[1])]
    assert report.summary["perplexity_second_after"] == pytest.approx(rose.perplexity(model, english), rel=1e-5)
    for text in ("", "_second"):
        before, after = apart(*(report.summary[f"perplexity{text}_{stage}"] for stage in ("before", "after")))
        assert f"from {before} to {after}, " in said
    assert "Perplexity on held-out calibration text" in said
    assert "Next: rose tune" in said


def test_a_model_is_saved_if_its_evaluation_fails(checkpoint, text, tmp_path, monkeypatch):
    measure = shared.Evaluation.measure

    def fails(evaluation, model, stage, of=""):
        if stage == "after":
            raise rose.RoseError("no memory left")
        return measure(evaluation, model, stage, of)

    monkeypatch.setattr(shared.Evaluation, "measure", fails)
    assert prune(checkpoint, tmp_path / "out", "--evaluate", str(text), "--windows", "3") == 2
    rose.load_model(str(tmp_path / "out"))
    summary = rose.RunReport.load(tmp_path / "out").summary
    assert summary["perplexity_before"] > 1
    assert summary["perplexity_after"] is None


def test_analyze_prints_and_writes_every_layer(checkpoint, tmp_path, capsys):
    output = tmp_path / "analysis"
    arguments = ["--methods", "sparsegpt,rose,wanda,rose", "--threshold", "0", "--split", "--output", output]
    assert run("analyze", "--model", checkpoint, *CALIBRATION, *arguments) == 0
    shown = capsys.readouterr().out
    assert "21 of 21 layers are columnar (relative range above 0)" in shown
    assert "sparsity 0.7, blocks of 16, 4 × 48 tokens of" in shown
    table = pd.read_csv(output / "layers.csv")
    assert len(table) == 63
    assert (table["mask_error"] <= table["relative_error"] + 1e-6).all()
    assert "Mask's share: what an exact refit leaves of the calibration error" in shown
    summary = rose.RunReport.load(output).summary
    assert summary["methods"] == ["sparsegpt", "rose", "wanda"]
    assert summary["threshold"] == 0
    assert summary["paper"]["layer"] == table.loc[table["relative_range"].idxmax(), "layer"]
    assert f"Orders were tried on {summary['paper']['layer']}, the most columnar layer of at most 2048" in shown


def test_evaluate_measures_tasks(checkpoint, tmp_path, capsys):
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
    for place, message in (("missing/a.csv", "folder that exists"), ("accuracy.csv", "accuracy.csv already exists")):
        assert run(*asked, "--output", tmp_path / place) == 2
        assert message in capsys.readouterr().err


def test_compare_writes_rows_and_summaries(checkpoint, text, tmp_path, capsys):
    output = tmp_path / "comparison"
    common = ["compare", "--model", checkpoint, *CALIBRATION, "--evaluate", text, "--windows", "2", "--output", output]
    methods = ["--methods", "wanda,sparsegpt@random:1/layer", "--sparsity", "0.5,2:4"]
    assert run(*common, *methods, "--seeds", "0,1") == 0
    rows = pd.read_csv(output / "rows.csv")
    assert len(rows) == len(rows.drop_duplicates(["method", "sparsity", "seed"])) == 8
    errors = rows[["mean_held_out_target_error", "drift"]]
    assert (errors > 0).all(None)
    assert errors["drift"].nunique() > 4
    summary = pd.read_csv(output / "summary.csv").set_index(["method", "sparsity"])
    values = rows[(rows["method"] == "wanda") & (rows["sparsity"] == "2:4")]["perplexity"]
    assert summary.loc[("wanda", "2:4"), "perplexity"] == pytest.approx(values.mean())
    assert summary.loc[("wanda", "2:4"), "spread"] == pytest.approx((values.max() - values.min()) / 2)
    shown = capsys.readouterr().out
    assert "…" not in shown  # a terminal of 80 columns shows every number whole
    assert all(f"{line.perplexity:.1f} ± {line.spread:.1f}" in shown for line in summary.itertuples())
    assert run(*common, *methods, "--seeds", "0", "--damping", "0.1") == 2
    assert "other settings" in capsys.readouterr().err


def test_launched_processes_share_a_comparison(checkpoint, text, tmp_path, monkeypatch, capsys):
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


def test_rows_of_two_processes_are_kept_once(tmp_path):
    (tmp_path / "settings.jsonabc.tmp").write_text("{")  # half-written by a process that was killed
    folders = [ComparisonFolder(tmp_path, {"model": "tiny"}) for _ in range(2)]
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "settings.json"}
    for seed, folder in [*enumerate([*folders, *folders]), (3, folders[0])]:
        folder.add(ComparisonRow("rose", "0.5", seed, 4 / 3, 1.1 + 2.2, 0.2, None, 0.5, 1.5, 100))
    rows = ComparisonFolder(tmp_path, {"model": "tiny"}).rows
    assert [row.seed for row in rows] == [0, 1, 2, 3]
    assert {(row.perplexity, row.dense_perplexity) for row in rows} == {(4 / 3, 1.1 + 2.2)}


ON_A_GPU = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))


@pytest.mark.parametrize("exhaust", [lambda: bytearray(2**62), lambda: torch.empty(10**14), ON_A_GPU])
def test_too_little_memory_is_one_sentence_and_status_2(checkpoint, tmp_path, monkeypatch, capsys, exhaust):
    monkeypatch.setattr(rose, "prune_model", lambda *_, **__: exhaust())
    assert prune(checkpoint, tmp_path / "out") == 2
    assert "There was not enough memory; fewer --samples, --dtype bfloat16 and --stream" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_closed_output_keeps_the_exit_status(monkeypatch):
    """As in `rose models | head -1`: 1 would mean that a check has found something wrong."""
    for stream, command, status in (("stdout", ["models"], 0), ("stderr", ["app", "--port", "0"], 2)):
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "w") as nobody, monkeypatch.context() as only:
            only.setattr(sys, stream, nobody)
            assert cli.main(command) == status
            assert cli.main(command) == status


def test_an_interrupted_prune_exits_130_and_resumes_from_its_checkpoint(checkpoint, tmp_path, monkeypatch, capsys):
    folder, work, calls = tmp_path / "kept", one_layer.prune_with, []

    def interrupt(*arguments, **options):
        calls.append(None)
        if len(calls) in (1, 11):  # at once, and in the second of three decoder blocks
            raise KeyboardInterrupt
        return work(*arguments, **options)

    monkeypatch.setattr(one_layer, "prune_with", interrupt)
    assert prune(checkpoint, tmp_path / "out") == 130
    assert "cancelled; nothing was written" in printed(capsys)
    assert list(tmp_path.iterdir()) == []
    assert prune(checkpoint, tmp_path / "out", "--checkpoint", str(folder)) == 130
    assert f"the same command resumes from {folder}" in printed(capsys)
    assert not (tmp_path / "out").exists()
    assert prune(checkpoint, tmp_path / "out", "--checkpoint", str(folder)) == 0
    assert len(calls) == 11 + 14
    assert prune(checkpoint, tmp_path / "other", "--checkpoint", str(folder), "--sparsity", "0.5") == 2
    assert "belongs to another run" in printed(capsys)


@pytest.mark.parametrize(
    ("command", "work"),
    [
        ("analyze --block-size 16", "Analyzing"),
        ("prune --block-size 16", "Pruning"),
        ("slim --prune 0.5", "Slimming and pruning"),
    ],
)
def test_long_runs_print_an_estimate_first(checkpoint, tmp_path, capsys, monkeypatch, command, work):
    asked = [*command.split(), "--model", checkpoint, *CALIBRATION[:-2], "--output"]
    assert run(*asked, tmp_path / "short") == 0
    assert "by estimate" not in capsys.readouterr().err
    monkeypatch.setattr(estimate, "matmul_rate", lambda: 1e5)
    monkeypatch.setattr(plan, "matmul_rate", lambda: 1e5)
    assert run(*asked, tmp_path / "long") == 0
    cost = r"about [\d.]+ (s|min|h) and [\d.]+ (kB|MB) besides the model, by estimate"
    assert re.search(f"^{work}: {cost}$", capsys.readouterr().err, re.M)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("prune", "Pruning takes, besides the model, about"),
        ("prune --stream", "Pruning takes, at the peak, besides Python and its libraries, "),
        ("slim --prune 0.5", "Slimming and pruning takes, besides the model, about"),
        ("analyze", "Analyzing takes, besides the model, about"),
        (f"{COMPARE} --windows 1", "Comparing takes, besides the model, about"),
    ],
)
def test_runs_that_need_too_much_memory_are_refused(checkpoint, tmp_path, capsys, monkeypatch, command, says):
    loaded = rose.load_model(checkpoint, stream="--stream" in command)
    monkeypatch.setattr(rose, "load_model", lambda *_given, **_more: loaded)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Namespace(available=1000))
    assert run(*command.split(), "--model", checkpoint, *CALIBRATION[:-2], "--output", tmp_path / "out") == 2
    assert re.search(f"{says}.*and 1 kB are free; give fewer --samples", printed(capsys))
    assert not list(tmp_path.glob("out/*.safetensors"))


LATE = [
    ("--layers nothing*", "No prunable layer is named"),
    ("--sparsity 3:5 --block-size 15", "model.layers.0.self_attn.q_proj: "),
    ("--dtype float16 --compute bfloat16", "load the model in bfloat16"),
]
REFUSED = {  # the options of a command and the sentence, by the work that must not have begun
    "rose.load_model": [
        ("prune --option speed", "NAME=VALUE"),
        ("prune --allocation owl --sparsity 2:4", "2:4 fixes the ratio"),
        ("prune --allocation random", "must be one of uniform, owl, sensitivity"),
        ("prune --checkpoint out", "--checkpoint must not be inside --output"),
        ("prune --length 1", "length must be a whole number from 2 to 1048576"),
        ("prune --held-out -1", "held_out must be a whole number from 0 to 65536"),
        ("prune --calibration absent.txt", "There is no file absent.txt"),
        ("prune --calibration short.txt", "short.txt has 5 bytes, too few to calibrate"),
        ("analyze --calibration notes.md", "Unknown text 'notes.md'"),
        ("check x y --methods wanda", "Without --calibration TEXT, a check looks at"),
        ("check x y --samples 64 --seed 1", "leave --samples and --seed out"),
        ("diffuse sample --prompts a --classes Bag", "both say what to draw"),
        ("diffuse sample --classes ,", "--classes names nothing"),
        ("compare --evaluate packaged --allocation owl --sparsity 0.5,2:4", "2:4"),
        ("compare --evaluate packaged --methods rose@natural:5", "no order named"),
        ("evaluate --evaluate packaged --limit 3", "--limit and --task-folder need --tasks"),
        ("evaluate --evaluate packaged --task-folder x", "--limit and --task-folder need --tasks"),
        ("evaluate --tasks --windows 2 --length 8", "uses --length and --windows"),
        ("evaluate --tasks --compute auto", "Only the perplexity on --evaluate uses --compute"),
        ("evaluate", "Say what to measure"),
        ("slim --target layer --target-damping 1", "Only target dense"),
        ("slim --prune 8:16 --multiple 8", "needs widths divisible by 16; give --multiple 16."),
        ("slim --method depth --parts heads --target dense", "out --parts and --target."),
        ("slim --method depth --multiple 16 --damping 1", "damping and --multiple"),
        ("slim --prune-method wanda", "--prune-method needs --prune"),
    ],
    "rose.commands.shared.calibration": [  # which reads the text
        ("slim --ratio 0.99", "do not hold that much"),
        ("slim --multiple 999", "no smaller multiple of 999"),
        ("slim --method depth --ratio 0.9999", "is all of them"),
        ("slim --model pruned", "would fill its zeros"),
        ("slim --length 100000", "longer than the model's 256 positions"),
        ("prune --length 100000", "longer than the model's 256 positions"),
        ("prune --evaluate packaged --windows 1", "out will take about 576 kB, and 1 kB are free there"),
        ("slim --ratio 0.3", "are free there; make room"),
    ],
    "rose.commands.shared.window_losses": [(f"prune --evaluate packaged {more}", message) for more, message in LATE],
    "rose.model.measure.comparison.window_losses": [(f"{COMPARE} {more}", message) for more, message in LATE],
}


@pytest.mark.parametrize(("work", "given", "message"), [(work, *row) for work, rows in REFUSED.items() for row in rows])
def test_bad_requests_are_refused_first(checkpoint, tmp_path, monkeypatch, capsys, work, given, message):
    command, *more = given.split()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(work, lambda *_args, **_more: pytest.fail("the work has begun"))
    (tmp_path / "short.txt").write_text("short")
    if "free" in message:
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: Namespace(free=1000))
    if "pruned" in more:
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        for layer in rose.prunable_layers(model):
            layer.weight[:, ::2] = 0
        model.save_pretrained(tmp_path / "pruned")
        AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path / "pruned")
    loads = [] if work == "rose.load_model" else ["--model", checkpoint, *CALIBRATION[:-2]]
    output = [] if command in ("evaluate", "check") else ["--output", "out"]
    assert run(command, *loads, *more, *output) == 2
    assert message in printed(capsys)
    assert not (tmp_path / "out").exists() or "comparison" in work  # whose folder keeps rows as they come


def slim(checkpoint: str, output: Path, *more: str) -> int:
    return run("slim", "--model", checkpoint, *CALIBRATION[:-2], "--multiple", "8", "--output", output, *more)


@pytest.mark.parametrize(("chosen", "targets"), [((), ("layer", "dense")), (("--target", "layer"), ("layer", "layer"))])
def test_slim_and_prune_are_in_one_report(checkpoint, tmp_path, capsys, chosen, targets):
    settings = ("--ratio", "0.3", "--prune", "2:4", "--prune-method", "wanda", *chosen)
    assert slim(checkpoint, tmp_path / "both", *settings, "--evaluate", "packaged", "--windows", "2") == 0
    shown = printed(capsys, "out")
    assert "Then 50.0 % of the weights of 21 layers pruned by wanda" in shown
    assert shown.count("Drift of the residual stream after the last pruned decoder block") == 2  # of each step its own
    report = rose.RunReport.load(tmp_path / "both")
    before, after = apart(report.summary["perplexity_before"], report.summary["perplexity_after"])
    assert f"from {before} to {after}, " in shown
    assert report.then.summary["sparsity"] == "2:4"
    assert (report.summary["target"], report.then.summary["target"]) == targets
    assert report.layers["part"].notna().sum() == 3  # the channels of three decoder blocks


WINDOWS = ["--samples", "2", "--length", "32", "--held-out", "2"]
DAMAGE = [*WINDOWS, "--block-size", "16", "--method", "sparsegpt"]


def test_damage_writes_rows_and_goes_on_with_equal_settings_only(checkpoint, tmp_path, capsys, monkeypatch):
    output = tmp_path / "damage"
    command = ["damage", "--model", checkpoint, *DAMAGE, "--sparsity", "0.5", "--units", "blocks", "--output", output]
    assert run(*command) == 0
    assert list(pd.read_csv(output / "rows.csv")["unit"]) == ["model.layers.0", "model.layers.1", "model.layers.2", "*"]
    assert "All at once cost" in capsys.readouterr().out
    assert run(*command, "--seed", "7") == 2
    assert "other settings: seed was 0 there and is 7 now" in capsys.readouterr().err
    monkeypatch.setattr(Precision, "environment", lambda *_: "another machine")  # rounds in another way
    assert run(*command) == 2
    assert "other settings" in capsys.readouterr().err


def test_folders_with_other_files_are_refused_unchanged(tmp_path):
    settings, data, mine = {"settings.json": '{"editor": "mine"}'}, {"important.tmp": "data"}, {"summary.md": "mine"}
    damage = {"settings.json": '{"model": "tiny", "units": "blocks"}'}
    for number, files in enumerate([settings, data, mine, settings | data | mine | {"launch.json": "{}"}, damage]):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(content)
        refused("holds no comparison", ComparisonFolder, folder, {"model": "tiny", "windows": "4"})
        assert {path.name: path.read_text() for path in folder.iterdir()} == files


def test_a_tilde_in_a_path_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for command in ("report x", "export x", "evaluate --tasks", "prune", "slim", "diffuse sample"):
        assert cli._read([*command.split(), "--output=~/x"])[0].output == tmp_path / "x"
    assert cli._read(["check", "x", "y", "--json=~/x"])[0].json_file == tmp_path / "x"
    asked, _ = cli._read(["prune", "--output=~/x", "--checkpoint=~/x/kept"])
    refused("must not be inside --output", shared.check_saving, asked)


def test_empty_arguments_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for given in (["--output", ""], ["--output="], ["--model", "", "--output", "x"]):
        assert run("prune", *given) == 2
        assert f"The value after {given[0].rstrip('=')} is empty" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_unwritable_files_are_refused_first(tmp_path, monkeypatch):
    def full(**_options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    refused(r"Read-only file system.*choose another folder", check_file, tmp_path / "rows.csv")
