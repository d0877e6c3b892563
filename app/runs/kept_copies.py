"""Pruned models on disk: folders that runs keep or users name, and .zip files of them. No Streamlit here."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import rose
from app import words
from rose.files import reachable
from rose.model.load.stored import check_merged
from rose.output import check_room, temporary_folder
from rose.verdicts import Result, rank

RESERVE = 10**9  # bytes that checkpoints, and files made of them, leave free


@dataclass(frozen=True)
class Checkpoint:
    name: str
    place: Path


def saved_checkpoint(path: str) -> Checkpoint:
    """A folder that the user names; RoseError where it is no checkpoint."""
    place = reachable(path.strip())
    check_merged(place)
    if not (place / "config.json").is_file():
        raise rose.RoseError(
            f"There is no model in {place}; give a folder that `rose prune` or `rose slim` has written."
        )
    with contextlib.suppress(rose.RoseError):  # a model without a readable report can be read all the same
        return Checkpoint(rose.RunReport.load(place).runs[-1].name, place)
    return Checkpoint(place.resolve().name[:40], place)


def named_apart(checkpoints: Sequence[Checkpoint], used: Sequence[str] = ()) -> list[Checkpoint]:
    """With distinct names: equal names get their folders, and used names a number."""
    names, apart = list(used), []
    alike = Counter(checkpoint.name for checkpoint in checkpoints)
    for checkpoint in checkpoints:
        called = (
            checkpoint.name
            if alike[checkpoint.name] == 1
            else f"{checkpoint.name} ({checkpoint.place.resolve().name[:40]})"
        )
        names.append(words.unused(called, names))
        apart.append(Checkpoint(names[-1], checkpoint.place))
    return apart


@contextlib.contextmanager
def written_beside(folder: Path, replaces: bool) -> Iterator[Path]:
    """Where to write a checkpoint that shall be in this folder. One that it `replaces` goes once that is done, and
    stays where it fails."""
    if not replaces:
        yield folder
        return
    with temporary_folder(folder.parent) as beside:
        yield beside / folder.name
        folder.rename(beside / f"{folder.name}-former")
        (beside / folder.name).rename(folder)


def free_space() -> int:
    """Bytes free where runs keep checkpoints."""
    return shutil.disk_usage(tempfile.gettempdir()).free


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def zipped(folder: Path) -> BinaryIO:
    """A checkpoint as one .zip file, which is gone when it is closed; stored, not compressed: weights hardly shrink,
    and it would take minutes. Raises RoseError where it would leave too little room."""
    check_room(tempfile.gettempdir(), size_of(folder), RESERVE)
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for file_path in sorted(folder.rglob("*")):  # a tokenizer's further templates are in a folder of their own
                archive.write(file_path, file_path.relative_to(folder.parent))
        file.seek(0)
        return open(os.dup(file.fileno()), "rb")


def worth_keeping(results: Sequence[Result]) -> list[str]:
    """Names of those that are recommended."""
    return [ranking.results[0].name for ranking in rank(results)]
