"""The dense model and checkpoints read one text, and the tables show their losses."""

import threading
from pathlib import Path

import numpy as np
import torch

import rose
from app import words
from app.runs import reading
from app.runs.kept_copies import saved_checkpoint
from app.runs.reading import DENSE, TextReading
from app.study.setup import Setup
from app.study.study import LoadedModel
from rose.model.measure.perplexity import Reading, encode_text, read_text
from tests.app.tiny_study import finish
from tests.refusals import refused
from tests.tiny import save_tiny_llama

TEXT = "A rose is a rose.\nIs it?"


def read(folder: Path, checkpoints: dict[str, Path], text: str = TEXT, status: str = "done") -> TextReading:
    def load() -> LoadedModel:
        return LoadedModel(*rose.load_model(str(folder)), threading.Lock())

    return finish(TextReading(Setup(model=str(folder)), text, checkpoints, load), status)


def test_dense_and_pruned_read_the_same_text(folder, pruned_folder):
    run = read(folder, {"folder": pruned_folder})
    assert list(run.readings) == [DENSE, "folder"]
    model, tokenizer = rose.load_model(str(pruned_folder))
    expected = read_text(model, encode_text(tokenizer, TEXT).tokens).losses
    np.testing.assert_allclose(run.readings["folder"].losses, expected, rtol=1e-5)
    encoded = run.encoded
    table = reading.token_table(encoded, run.readings)
    assert len(table) == len(TEXT) - 1  # nothing predicts the first
    np.testing.assert_allclose(table["folder"] - table[DENSE], table["folder − dense"])
    assert table["token"].tolist()[16] == "↵"
    assert table["before"].iloc[-1] == "A rose is a rose.↵Is it"
    more = int((table["folder − dense"] > 0).sum())
    sentence = reading.finding(run.readings[DENSE], "folder", run.readings["folder"])
    assert f"at {words.word(more)} of {len(TEXT) - 1} tokens" in sentence
    chances = reading.next_tokens(run, 3, run.readings)
    assert len(chances) == 10
    assert chances["folder, chance"].is_monotonic_decreasing
    assert 0 < chances[f"{DENSE}, chance"].sum() < 1


def test_model_with_nan_losses_is_named(folder, monkeypatch):
    nothing = Reading(torch.tensor([0.5, torch.nan]), torch.zeros(3, 1), torch.zeros(3, 1))
    monkeypatch.setattr(reading, "read_text", lambda *_arguments, **_options: nothing)
    run = read(folder, {}, status="failed")
    assert run.job.message.startswith("Dense gives some tokens no number")
    assert not run.readings


def test_unreadable_inputs_are_refused(folder, pruned_folder, tmp_path):
    assert "more than 256" in read(folder, {}, "a" * 600, "failed").job.message
    other = save_tiny_llama(tmp_path / "other", bos=True)
    run = read(folder, {"other": other}, status="failed")
    assert "into other tokens" in run.job.message
    assert list(run.readings) == [DENSE]
    refused("There is no model in", saved_checkpoint, str(tmp_path))
    (tmp_path / "adapter_config.json").touch()
    refused("holds an adapter; merge it into its model first", saved_checkpoint, str(tmp_path))
    assert saved_checkpoint(str(pruned_folder)) == ("Magnitude at 0.5", pruned_folder)
