"""Pruning runs match the engine, leave the shared model unchanged, and leave no files behind."""

import gc
import itertools
import json
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import rose
from app.results.pairs import accuracy_table, layer_table, model_table
from app.runs.copies import file_name
from app.runs.kept_copies import RESERVE
from app.runs.pruning import PruneRequest, PruningRun
from app.study.setup import Setup
from app.study.study import LoadedModel
from rose import cli
from rose.layer.pattern import Grid
from rose.model.load.models import load_skeleton
from rose.model.measure.perplexity import continue_prompt
from rose.model.measure.zero_shot import zero_shot
from rose.model.settings import PruneSettings
from rose.recipe import Recipe
from rose.tensor_files import digest
from tests.app.tiny_study import finish
from tests.refusals import refused
from tests.tasks import write_task

REQUEST = PruneRequest(("sparsegpt", "rose"), ("0.5", "2:4"), windows=3, window_length=16, prompt="Hello", new_tokens=4)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary checkpoints go in these tests."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def finished(setup: Setup, request: PruneRequest, load: Callable[[], LoadedModel], status: str = "done") -> PruningRun:
    return finish(PruningRun(setup, request, load), status)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_numbers_match_the_engine_and_the_best_are_kept(setup, loaded, temporary, tmp_path):
    before = weights(loaded.model)
    run = finished(setup, replace(REQUEST, keep="best"), lambda: loaded)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(loaded.model), strict=True))
    assert not loaded.lock.locked()
    assert run.fraction == 1.0
    drawn = rose.load_tokens("packaged", loaded.tokenizer, samples=6, length=32, seed=0)
    windows = REQUEST.evaluated(loaded.tokenizer, setup, (drawn[:4], drawn[4:]))
    used = {tuple(run) for window in drawn.tolist() for run in zip(*(window[at:] for at in range(16)), strict=False)}
    assert windows.shape == (3, 16)
    assert not used & {tuple(window) for window in windows.tolist()}
    with pytest.raises(rose.RoseError, match="After the calibration windows, packaged has"):
        replace(REQUEST, windows=10**6).evaluated(loaded.tokenizer, setup, (drawn[:4], drawn[4:]))
    assert run.dense.perplexity == pytest.approx(rose.perplexity(loaded.model, windows), rel=1e-6)
    assert run.dense.summary["continuation"] == continue_prompt(loaded.model, loaded.tokenizer, "Hello", new_tokens=4)
    pairs = [("sparsegpt", "0.5"), ("rose", "0.5"), ("sparsegpt", "2:4"), ("rose", "2:4")]
    assert [(outcome.method, outcome.asked) for outcome in run.copies] == pairs
    for outcome in run.copies:
        model, tokenizer = rose.load_model(setup.model)
        options = {"method": outcome.method, "sparsity": outcome.asked, "block_size": 16}
        report = rose.prune_model(model, drawn[:4], held_out=drawn[4:], **options)
        for name in ("relative_error", "held_out_error", "sparsity"):
            assert list(outcome.layers[name]) == pytest.approx(list(report.layers[name]), rel=1e-4)
        assert outcome.perplexity == pytest.approx(rose.perplexity(model, windows), rel=1e-4)
        assert outcome.summary["continuation"] == continue_prompt(model, tokenizer, "Hello", new_tokens=4)
    table = model_table(run.models)
    assert list(table["method"]) == ["dense", "sparsegpt", "rose", "sparsegpt", "rose"]
    assert list(table["ratio_to_dense"]) == pytest.approx([p / run.dense.perplexity for p in table["perplexity"]])
    assert list(table["removed_fraction"]) == pytest.approx([0, 0.5, 0.5, 0.5, 0.5], abs=1e-3)
    assert layer_table(run.copies).groupby("asked").size().to_dict() == {"0.5": 2 * 3 * 7, "2:4": 2 * 3 * 7}
    results = [copy.result for copy in run.copies]
    best = [min(some, key=lambda result: result.value).name for some in (results[:2], results[2:])]
    copies = [copy for copy in run.copies if run.kept(copy)]
    assert [copy.name for copy in copies] == best
    assert [copy.asked for copy in copies] == ["0.5", "2:4"]
    place = run.checkpoints[best[1]]
    assert sorted(folder.name for folder in place.parent.iterdir()) == sorted(map(file_name, copies))
    assert rose.RunReport.load(place).summary["perplexity_after"] == copies[1].perplexity
    # When nobody holds the run any more, its checkpoints go.
    del run
    gc.collect()
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("keep", ["all", "folder"])
def test_cancel_leaves_nothing_behind(keep, setup, loaded, temporary, tmp_path):
    before = weights(loaded.model)
    run = PruningRun(setup, replace(REQUEST, keep=keep, folder=str(tmp_path / "out")), lambda: loaded)
    stopping = {"all": "Pruning by ROSE at 2:4", "folder": "Pruning by SparseGPT at 0.5"}[keep]
    run._say = lambda doing: run.job.leave("test") if doing == stopping else None  # type: ignore[method-assign]
    finish(run, "cancelled")
    assert len(run.copies) == (3 if keep == "all" else 0)
    assert not list(temporary.iterdir())
    assert not (tmp_path / "out").exists()
    assert not loaded.lock.locked()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(loaded.model), strict=True))


def test_failure_leaves_finished_checkpoints_and_nothing_half_done(setup, loaded, monkeypatch):
    save = rose.save_model

    def full_at_the_second(model: Any, tokenizer: Any, folder: Path, **more: Any) -> None:
        save(model, tokenizer, folder, **more)
        if folder.name == "rose-0.5":
            shutil.rmtree(folder)
            raise rose.RoseError("The disk is full.")

    monkeypatch.setattr(rose, "save_model", full_at_the_second)
    run = finished(setup, replace(REQUEST, keep="all"), lambda: loaded, status="failed")
    (outcome,) = run.copies
    assert [path.name for path in run.checkpoints[outcome.name].parent.iterdir()] == ["sparsegpt-0.5"]


@pytest.mark.parametrize(("free", "says"), [("memory", "of memory, and 1 kB are free; wait"), ("disk", "make room")])
def test_runs_that_do_not_fit_are_refused(free, says, setup, loaded, tmp_path, monkeypatch):
    if free == "memory":
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    else:
        monkeypatch.setattr("shutil.disk_usage", lambda _place: SimpleNamespace(free=RESERVE + 1000))
        request = replace(REQUEST, methods=("magnitude",), sparsities=("0.5",), prompt="", windows=1, keep="best")
        assert finished(setup, request, lambda: loaded).checkpoints == {}  # nothing temporary is kept
    asked = replace(REQUEST, keep="folder", folder=str(tmp_path / "out"))
    run = finished(setup, asked, lambda: loaded, "failed")
    assert says in run.job.message
    assert (run.dense, (tmp_path / "out").exists()) == (None, False)


def test_one_copy_is_held_at_a_time(setup, loaded, monkeypatch):
    copies, original = list[weakref.ref](), PruningRun._copy

    def watched(run: PruningRun, *arguments: Any) -> nn.Module:
        gc.collect()
        assert not any(copy() is not None for copy in copies)
        model = original(run, *arguments)
        copies.append(weakref.ref(model))
        return model

    monkeypatch.setattr(PruningRun, "_copy", watched)
    finished(setup, replace(REQUEST, sparsities=("0.5",)), lambda: loaded)
    assert len(copies) == 2


def test_perplexity_of_a_user_text(setup, loaded, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("abcdefgh" * 20)
    request = PruneRequest(("magnitude",), ("0.5",), evaluate=str(text), windows=2, window_length=8)
    run = finished(setup, request, lambda: loaded)
    windows = loaded.tokenizer("abcdefgh" * 2, return_tensors="pt")["input_ids"].view(2, 8)
    assert run.dense.perplexity == pytest.approx(rose.perplexity(loaded.model, windows), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"methods": ()}, "at least one method"),
        ({"methods": ("magic",)}, "no method named 'magic'"),
        ({"keep": "folder"}, "path of a folder"),
        ({"sparsities": ("0.5", "3:7")}, "3:7 needs a block size divisible by 7"),
        ({"shared": PruneSettings(layers=("*.nothing",))}, "nothing"),
        ({"evaluate": " "}, "path of the text"),
        ({"tasks": ("sums",), "task_folder": "/nowhere"}, "There is no folder /nowhere"),
        ({"window_length": 257}, "Samples of 257 tokens are longer than the model's 256 positions"),
    ],
)
def test_bad_requests_are_refused_before_any_work(change, words, setup, monkeypatch):
    refused(words, replace(REQUEST, **change).check, setup, load_skeleton(setup.model))
    monkeypatch.setattr("app.runs.pruning.is_installed", lambda: False)
    with pytest.raises(rose.RoseError, match=r"pip install -r requirements-eval\.txt"):
        replace(REQUEST, tasks=("sums",)).check(setup, load_skeleton(setup.model))


def test_recipes_ask_for_the_same_run(setup):
    setup = setup.changed(calibration="my text.txt", seed=3, held_out=1, damping=0.02, dtype="bfloat16")
    shared = PruneSettings(layers=("*.o_proj", "model.layers.0.*"), threshold=0.4)
    request = replace(REQUEST, evaluate="ptb", windows=7, window_length=32, shared=shared, grids=(Grid(4, 32),))
    expected = {"model": setup.model, "dtype": "bfloat16", "calibration": "my text.txt", "samples": 4, "length": 32}
    expected |= {"seed": 3, "held_out": 1, "threshold": 0.4, "block_size": 16, "damping": 0.02, "bits": 4, "group": 32}
    expected |= {"layers": ("*.o_proj", "model.layers.0.*"), "evaluate": "ptb", "windows": 7}
    cases = request.cases(setup)
    asked = [(case.sparsity, case.method) for case in cases]
    assert asked == list(itertools.product(request.sparsities, request.methods))
    assert len(cases) == request.count
    for case in cases:
        assert {name: getattr(case, name) for name in expected} == expected
        assert Recipe.parse(str(Recipe(case)), f"output={case.output}").spec == case
    other = replace(request, window_length=16)  # windows of another length are no command's
    assert other.cases(setup)[0].evaluate is None


def test_recipe_gives_the_same_weights_on_the_command_line(setup, loaded, tmp_path):
    request = replace(REQUEST, sparsities=("0.5",), grids=(Grid(4, "row"),), keep="folder", folder=f"{tmp_path}/app")
    finished(setup, request, lambda: loaded)
    refused("already exists", request.check, setup, load_skeleton(setup.model))
    for case in request.cases(setup):
        Recipe(case).write(tmp_path)
        name = case.output.name
        assert cli.main(["run", str(tmp_path), f"output={tmp_path / name}"]) == 0
        ours, theirs = (load_file(folder / name / "model.safetensors") for folder in (tmp_path, tmp_path / "app"))
        assert digest(ours) == digest(theirs)
        assert (tmp_path / name / "recipe.yaml").read_text() == (tmp_path / "recipe.yaml").read_text()


def test_estimate_counts_every_pair(setup):
    skeleton = load_skeleton(setup.model)
    request = replace(REQUEST, methods=("rose",), sparsities=("0.5",))
    cost, four = request.estimate(setup, skeleton), REQUEST.estimate(setup, skeleton)
    assert 2 * cost.seconds < four.seconds < 4 * cost.seconds  # the dense model is judged once
    assert (four.memory, four.layers) == (cost.memory, 21)
    for slow in ({"methods": ("oats",)}, {"tasks": ("sums",)}):
        assert replace(request, **slow).estimate(setup, skeleton).seconds > cost.seconds


def test_every_model_answers_the_tasks(setup, loaded, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", None)
    choices = ["two", "three"]
    write_task(tmp_path, [{"question": f"{n} and one is", "choices": choices, "answer": n % 2} for n in range(6)])
    changes = {"methods": ("magnitude",), "sparsities": ("0.5",), "prompt": ""}
    asked = replace(REQUEST, **changes, tasks=("sums",), task_folder=str(tmp_path), questions=4)
    run = finished(setup, asked, lambda: loaded)
    expected = zero_shot(loaded.model, loaded.tokenizer, tasks=["sums"], task_folder=tmp_path, limit=4)
    pd.testing.assert_frame_equal(run.dense.zero_shot, expected[list(run.dense.zero_shot)], check_dtype=False)
    table = accuracy_table(run.models)
    assert table["run"].tolist() == ["Dense", run.copies[0].name]
    assert table["questions"].tolist() == [4, 4]
    (row,) = json.loads(run.copies[0].to_json())["results"]["zero_shot"]
    assert (row["task"], row["accuracy"], row["accuracy_norm"]) == ("sums", table["accuracy"].iloc[1], None)
