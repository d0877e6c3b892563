"""Tuning of a kept copy: zeros stay, the copy is stored and judged as others, and no judged text is trained on."""

import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import rose
from app.results import naming, pairs
from app.results.pairs import layer_table
from app.runs import copies
from app.runs.copies import Tuning, kept_checkpoints
from app.runs.pruning import PruneRequest, PruningRun
from app.study.setup import Setup
from app.study.study import LoadedModel
from rose.model.defaults import TUNING
from rose.model.load.tokens import load_apart
from rose.model.settings import TuneSettings
from rose.report import read_runs
from rose.rows import ERRORS
from tests.app.results.made_reports import made_report, made_run, made_tuning
from tests.app.tiny_study import finish, tune_one_epoch

REQUEST = PruneRequest(("sparsegpt",), ("0.7",), windows=3, window_length=16, prompt="Hello", new_tokens=2, keep="best")
TUNED = "SparseGPT at 0.7, tuned 8 steps"


@pytest.fixture(scope="module")
def pruned(setup: Setup, loaded: LoadedModel, text: Path) -> PruningRun:
    return finish(PruningRun(setup.changed(calibration=str(text)), REQUEST, lambda: loaded))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of steps that no clock decides."""
    monkeypatch.setattr("rose.model.load.tokens.TUNING", TUNING._replace(samples=16))
    tune_one_epoch(monkeypatch, 1e-4)


def zeros(folder: Path | None) -> list[torch.Tensor]:
    return [layer.weight == 0 for layer in rose.prunable_layers(rose.load_model(str(folder))[0])]


def test_tuned_copy_stands_beside_the_others(pruned, loaded, tmp_path, monkeypatch):
    before = [parameter.detach().clone() for parameter in loaded.model.parameters()]
    told: list[rose.RunReport] = []
    pruned._publish = told.append
    (source,) = pruned.copies
    for _ in range(2):  # the second takes the place of the first
        run = finish(Tuning(pruned, source.name, 3.0, lambda: loaded))
    assert all(map(torch.equal, before, loaded.model.parameters()))
    copy = run.copy
    assert [copy.name for copy in pruned.copies] == [source.name, TUNED]
    assert all(map(torch.equal, zeros(pruned.kept(source)), zeros(pruned.kept(copy))))
    summary = run.report.summary
    assert summary["zeros"] == summary["zeros_before"] == sum(int(mask.sum()) for mask in zeros(pruned.kept(copy)))
    windows = REQUEST.evaluated(loaded.tokenizer, pruned.setup, pruned.setup.draw(loaded.tokenizer))
    tuned_model = rose.load_model(str(pruned.kept(copy)))[0]
    assert copy.perplexity == pytest.approx(rose.perplexity(tuned_model, windows), rel=1e-5)
    assert summary["held_out_after"] < summary["held_out_before"]
    assert copy.result.seconds == pytest.approx(source.result.seconds + summary["seconds"])
    assert copy.result.losses != source.result.losses
    assert list(pruned.tunable) == [source.name]
    with monkeypatch.context() as patch:
        patch.setitem(pruned.checkpoints, f"{source.name}, 4 bits", pruned.kept(source))
        patch.setattr(pruned, "copies", [copy.with_recipe(bits=4) for copy in pruned.copies])
        assert not pruned.tunable
        assert [copy.name for copy in pruned.untuned] == [f"{source.name}, 4 bits"]
    assert list(kept_checkpoints([pruned], pruned.setup.model)) == [TUNED, source.name]
    assert set(layer_table(pruned.copies)["method"]) == {"sparsegpt"}
    assert len(layer_table(pruned.copies)) == len(source.layers)
    assert told[-1] is copy  # as every page, file and report has it
    assert copy.recipe["tune"] == run.minutes
    copy.save(tmp_path / "tuned")
    for (shown_run,) in (told[-1].runs, read_runs(str(tmp_path / "tuned"))):
        assert shown_run.name == TUNED
        assert " · SparseGPT, tuned · 0.7 · " in naming.label(shown_run)
        assert shown_run.by_layer[list(ERRORS)].isna().all(axis=None)
        assert not shown_run.drift
        assert (shown_run.by_layer["change"] > 0).all()
        assert shown_run.by_layer["change"].tolist() == pytest.approx(run.report.layers["change"].tolist())
        assert shown_run.setup.dense == pytest.approx(pruned.dense.perplexity if pruned.dense else 0)
        result = pairs.result_of(shown_run)
        assert (result.value, result.seconds) == pytest.approx((copy.perplexity, copy.result.seconds))


def test_earlier_tuned_copy_is_replaced_last(pruned, loaded, monkeypatch):
    def tune(status: str) -> Tuning:
        return finish(Tuning(pruned, "SparseGPT at 0.7", 3.0, lambda: loaded), status)

    copy = tune("done").copy
    before = list(pruned.copies)
    with monkeypatch.context() as patch:
        patch.setattr(rose, "save_model", Mock(side_effect=rose.RoseError("No space left.")))
        assert tune("failed").job.message == "No space left."
    with monkeypatch.context() as patch:
        patch.setattr(copies, "free_space", lambda: 0)
        assert "The disk has no room for another checkpoint" in tune("failed").job.message
    assert pruned.copies == before
    assert zeros(pruned.kept(copy))
    shutil.rmtree(pruned.kept(copy))
    tune("done")
    assert zeros(pruned.kept(copy))


def stopping(monkeypatch: pytest.MonkeyPatch, run: Tuning, looks: int, stop: Callable[[], None]) -> None:
    """Stops a run once it has looked at held-out windows so often."""
    tell = run._tell

    def follow(tuner: copies.Tuner, progress: rose.Progress) -> None:
        if len(tuner.curve) == looks and not run._is_enough:
            stop()
        tell(tuner, progress)

    monkeypatch.setattr(run, "_tell", follow)


def test_stopping_early_keeps_the_best_step(pruned, loaded, monkeypatch):
    run = Tuning(pruned, "SparseGPT at 0.7", 3.0, lambda: loaded)
    stopping(monkeypatch, run, 3, run.cancel)
    finish(run)
    assert run.report.summary["kept_step"] == 2
    assert 2 <= run.report.summary["steps"] < 8
    assert " of 8 in " in run.says()
    assert run.copy.name in [copy.name for copy in pruned.copies]


@pytest.mark.parametrize("looks", [1, 3])
def test_cancelled_tuning_keeps_nothing(pruned, loaded, monkeypatch, looks):
    copies_before = list(pruned.copies)
    run = Tuning(pruned, "SparseGPT at 0.7", 3.0, lambda: loaded)
    stopping(monkeypatch, run, looks, run.cancel if looks == 1 else run.job.stop)
    finish(run, "cancelled")
    assert (run.copy, pruned.copies) == (None, copies_before)


def test_tuning_without_gain_keeps_the_copy(pruned, loaded, monkeypatch):
    monkeypatch.setattr(copies, "TuneSettings", lambda minutes, seed: TuneSettings(epochs=0.1, rate=9.0, seed=seed))
    copies_before = list(pruned.copies)
    run = finish(Tuning(pruned, "SparseGPT at 0.7", 3.0, lambda: loaded))
    assert (run.copy, pruned.copies) == (None, copies_before)
    assert "none was better than the start" in run.says()


def test_evaluated_text_is_not_trained_on(loaded, tmp_path):
    text = tmp_path / "letters.txt"
    text.write_text("".join(random.Random(0).choices("abcdefgh", k=4000)))
    evaluated = rose.load_tokens(str(text), loaded.tokenizer, length=32, samples=5, seed=4)
    apart = partial(load_apart, str(text), loaded.tokenizer, held_out=4, length=32, seed=0, apart_from=evaluated)
    left = [tuple(window) for tokens in apart(samples=999) for window in tokens.tolist()]
    assert 4000 // 32 - 2 * len(evaluated) <= len(set(left))
    runs = {tuple(window[at : at + 16]) for window in evaluated.tolist() for at in range(17)}
    assert not any(window[at : at + 16] in runs for window in left for at in range(17))


def test_tuning_records_are_validated():
    curve = [{"step": 0, "seconds": 1.0, "loss": None, "held_out": 2.0}]
    record = made_tuning({"model.layers.0.mlp.down_proj": 0.5}, curve=curve, seconds=118.0, minutes=2.0)
    run = made_run(tuned=record)
    assert (run.name, run.by_layer["change"].notna().sum()) == ("SparseGPT at 0.7, tuned 2 min", 1)
    short = made_run(tuned=record | {"seconds": 25.0})  # one step, and no room for another
    assert short.name == "SparseGPT at 0.7, tuned 25 s"
    for wrong in ({"steps": -1}, {"change": {"a": "<b>"}}, {"seconds": "soon"}, {"rate": float("inf")}):
        with pytest.raises(rose.RoseError, match="not a report written by rose"):
            rose.RunReport.from_json(made_report(tuned={**record, **wrong}).to_json())
