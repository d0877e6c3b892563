"""Kept copies as files: a file holds the copy, and unfinished files are removed."""

import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

import rose
from app.runs.kept_copies import RESERVE, FileRun, forms, named_apart, size_of, written_beside, zipped
from rose.layer.pattern import Grid
from rose.output import PARTIAL, check_output
from tests.app.tiny_study import ended
from tests.model.ship.test_export import CONFIGURATIONS, logits, save


def test_copies_with_the_same_name_are_distinguished_by_their_folders():
    places = {"/one/half": "ROSE", "/two/broken": "ROSE", "/wanda": "Wanda", "/x": "dense"}
    copies = [(name, Path(place)) for place, name in places.items()]
    assert list(named_apart(copies, ["dense"])) == ["ROSE (half)", "ROSE (broken)", "Wanda", "dense, run 2"]


def test_checkpoint_is_zipped_with_its_folders(tmp_path):
    folder = tmp_path / "copy"
    (folder / "additional_chat_templates").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")
    with zipped(folder) as file, zipfile.ZipFile(file) as archive:
        assert archive.read("copy/additional_chat_templates/rag.jinja") == b"{{ documents }}"
        assert archive.read("copy/config.json") == b"{}"
    assert size_of(folder) == 2 + 15


def test_little_disk_space_is_refused(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("shutil.disk_usage", lambda _place: SimpleNamespace(free=RESERVE + 1))
    with pytest.raises(rose.RoseError, match=r"will take about .* are free there"):
        zipped(tmp_path)
    run = FileRun(tmp_path, "f16")
    run.job.start()
    assert "will take about" in ended(run, "failed").job.message


def test_checkpoint_is_replaced_despite_leftovers(tmp_path):
    folder, left = tmp_path / "copy", tmp_path / f"{PARTIAL}dead" / "copy"
    for one in (folder, left, tmp_path / "copy-new"):  # the last belongs to a person
        one.mkdir(parents=True)
        (one / "config.json").write_text("old")
    with written_beside(folder, replaces=True) as place:
        check_output(place)
        place.mkdir()
        (place / "config.json").write_text("new")
        assert (folder / "config.json").read_text() == "old"
    assert (folder / "config.json").read_text() == "new"
    with pytest.raises(rose.RoseError), written_beside(folder, replaces=True):
        raise rose.RoseError("No space left.")
    assert (folder / "config.json").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "copy-new"]


@pytest.mark.parametrize("form", forms(Grid(4)))
def test_file_holds_the_copy(form, tmp_path):
    model = save(CONFIGURATIONS["llama"](), tmp_path / "copy", 4)
    run = FileRun(tmp_path / "copy", form)
    run.job.start()
    ended(run)
    with run.open() as file:
        (tmp_path / run.offer()[0]).write_bytes(file.read())
    place = tmp_path / run.offer()[0]
    loaded, _ = rose.load_model(str(place))
    expected, of_the_copy = logits(model), logits(loaded)
    tolerance = {"f16": 3e-3, "q4_0": 0.2}[form]  # embeddings are rounded
    assert torch.allclose(of_the_copy, expected, rtol=0.0, atol=tolerance * float(expected.abs().max()))
    assert f"14 layers are exact in {form}." in " ".join(run.remarks)


def test_failed_and_cancelled_files_leave_nothing(tmp_path, monkeypatch):
    wrong = FileRun(tmp_path / "nowhere", "f16")
    wrong.job.start()
    assert "nowhere" in ended(wrong, "failed").job.message
    monkeypatch.setattr(FileRun, "_tell", Mock(side_effect=rose.Cancelled))
    save(CONFIGURATIONS["llama"](), tmp_path / "copy", None)
    for form in forms(None):
        run = FileRun(tmp_path / "copy", form)
        run.job.start()
        ended(run, "cancelled")
        assert run.place is None
        assert not list(run._temporary().iterdir())
