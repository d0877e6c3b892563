"""Impossible paths are refused in one sentence; files are written whole, with the usual mode."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import rose
from app.runs.kept_copies import saved_checkpoint
from app.study.preflight import can_stream
from rose.diffusion.loading import load_diffusion
from rose.files import beside, check_small, reachable, write_atomically
from rose.model.load.tokens import text_file
from rose.output import check_file, check_folder, check_output, new_file, new_folder, write_file
from rose.report import read_runs
from tests.refusals import refused

READERS = [reachable, rose.load_model, load_diffusion, read_runs, saved_checkpoint, can_stream]


@pytest.mark.parametrize("read", [*READERS, lambda path: text_file(f"{path}.txt")])
@pytest.mark.parametrize("path", ["x" * 5000, "a\0b"], ids=["too long", "null byte"])
def test_impossible_file_names_are_refused(read: Callable[[str], object], path: str) -> None:
    refused(r"check the path|neither a folder|no report.json|no model in", read, path)


def test_failing_to_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    write_atomically(path, b"old")

    def fail(*_args: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_new_files_have_the_usual_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "umask", lambda _mask: pytest.fail("the umask belongs to all threads"))
    (tmp_path / "plain").touch()
    write_atomically(tmp_path / "report.json", b"{}")
    with new_folder(tmp_path / "out") as folder:
        (folder / "private").touch(mode=0o600)
    for path in (tmp_path / "report.json", tmp_path / "out" / "private"):
        assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no room")])
def test_an_empty_folder_is_filled_or_left_empty(tmp_path, monkeypatch, error):
    move, moved = os.replace, []

    def stop(source: Path, target: Path) -> None:
        if moved:
            raise error
        moved.append(move(source, target))

    monkeypatch.setattr(os, "replace", stop)
    with suppress(KeyboardInterrupt, rose.RoseError), new_folder(tmp_path) as folder:
        (folder / "templates").mkdir()
        (folder / "config.json").write_text("{}")
    assert moved
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("check", [check_output, check_folder, check_file, check_small, rose.load_model])
def test_names_that_are_not_utf_8_are_refused(check: Callable[[Path], Any], tmp_path: Path) -> None:
    place = tmp_path / os.fsdecode(b"half\xff")
    refused(r"half\\udcff' is not UTF-8; choose or make another\.$", check, place)
    assert not list(tmp_path.iterdir())


def test_a_new_file_replaces_nothing(tmp_path: Path) -> None:
    place, other = tmp_path / "model.gguf", tmp_path / "found.json"
    with pytest.raises(rose.RoseError, match="already exists"), new_file(place) as temporary:  # noqa: PT012
        temporary.write_text("ours")
        place.write_text("theirs")
    assert place.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [place]
    with new_file(other) as temporary:
        temporary.write_text("ours")
        refused("being written by another process", write_file, other, "theirs")
    refused("already exists", write_file, other, "theirs")
    assert other.read_text() == "ours"


def test_results_are_put_beside_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model" / "part").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "model")
    assert beside(Path("."), "-f16") == tmp_path / "model-f16"
    assert beside(Path("part/.."), "-f16") == tmp_path / "model-f16"
    assert beside(Path("part"), "-f16") == Path("part-f16")
    assert beside(Path("/"), "-f16") == Path("/-f16")
