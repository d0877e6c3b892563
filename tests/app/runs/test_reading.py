"""A text is read by the dense model and by checkpoints, and the tables say what the models said."""

import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

import rose
from app import words
from app.jobs import Job
from app.runs import reading
from app.runs.checkpoints import Checkpoint, pack, saved_checkpoint, unpacked
from app.runs.reading import DENSE, TextReading
from app.study.setup import Setup
from app.study.study import LoadedModel
from rose.model.measure.surprise import encode_text, read_text
from tests.app.tiny_study import finish
from tests.tiny import save_tiny_llama

TEXT = "A rose is a rose.\nIs it?"


def read(folder: Path, checkpoints: list[Checkpoint], text: str = TEXT, status: str = "done") -> TextReading:
    def load() -> LoadedModel:
        return LoadedModel(*rose.load_model(str(folder)), threading.Lock())

    return finish(TextReading(Setup(model=str(folder)), text, checkpoints, load), status)


def test_dense_and_pruned_read_the_same_text(folder: Path, pruned_folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "pruned.zip"
    pack(pruned_folder, archive, Job(lambda _job: None))
    run = read(folder, [Checkpoint("folder", pruned_folder), Checkpoint("zip", archive)])
    assert list(run.readings) == [DENSE, "folder", "zip"]
    model, tokenizer = rose.load_model(str(pruned_folder))
    expected = read_text(model, encode_text(tokenizer, TEXT).tokens).losses
    for name in ("folder", "zip"):
        np.testing.assert_allclose(run.readings[name].losses, expected, rtol=1e-5)
    encoded = run.encoded
    assert encoded is not None
    table = reading.token_table(encoded, run.readings)
    assert len(table) == len(TEXT) - 1  # nothing predicts the first
    np.testing.assert_allclose(table["folder"] - table[DENSE], table["folder − dense"])
    assert table["token"].tolist()[16] == "↵"
    assert table["before"].iloc[-1] == "A rose is a rose.↵Is it"
    more = int((table["folder − dense"] > 0).sum())
    said = reading.finding(encoded, run.readings[DENSE], "folder", run.readings["folder"])
    assert f"at {words.word(more)} of {len(TEXT) - 1} tokens" in said
    chances = reading.next_tokens(run, 3, run.readings)
    assert len(chances) == 10
    assert chances["folder, chance"].is_monotonic_decreasing
    assert 0 < chances[f"{DENSE}, chance"].sum() < 1


def test_what_cannot_be_read_says_why(folder: Path, pruned_folder: Path, tmp_path: Path) -> None:
    assert "more than 256" in read(folder, [], "a" * 600, "failed").job.message
    other = save_tiny_llama(tmp_path / "other", bos=True)
    run = read(folder, [Checkpoint("other", other)], status="failed")
    assert "into other tokens" in run.job.message
    assert list(run.readings) == [DENSE]
    with pytest.raises(rose.RoseError, match="There is no model in"):
        saved_checkpoint(str(tmp_path))
    assert saved_checkpoint(str(pruned_folder)).name == "Magnitude at 0.5"


def test_an_archive_is_unpacked_into_its_own_folder_only(tmp_path: Path) -> None:
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("../../outside.txt", "no")
    with unpacked(archive, Job(lambda _job: None)) as folder:
        assert [path.name for path in folder.iterdir()] == ["outside.txt"]
    assert not folder.exists()
