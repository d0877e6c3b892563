"""Pruned models on disk: folders, and the .zip files that runs keep for download. No Streamlit here."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rose
from app import words
from app.jobs import Job
from app.runs.finished import REPORT, read_report
from rose.files import reachable

if TYPE_CHECKING:
    from app.runs.pruning import PruningRun


@dataclass(frozen=True)
class Checkpoint:
    name: str
    place: Path


def kept_checkpoints(runs: Sequence[PruningRun], model: str) -> dict[str, Checkpoint]:
    found: dict[str, Checkpoint] = {}
    for run in reversed(runs):
        for copy in reversed(run.copies):
            if run.setup.model == model and copy.checkpoint is not None and copy.checkpoint.exists():
                name = words.unused(copy.label, found)
                found[name] = Checkpoint(name, copy.checkpoint)
    return found


def saved_checkpoint(path: str) -> Checkpoint:
    """A folder that the user names; RoseError where it is no checkpoint."""
    place = reachable(path.strip())
    if not (place / "config.json").is_file():
        raise rose.RoseError(
            f"There is no model in {place}; give a folder that `rose prune` or `rose slim` has written."
        )
    if (place / REPORT).is_file():
        with contextlib.suppress(rose.RoseError):  # a model without a readable report can be read all the same
            return Checkpoint(read_report(place / REPORT)[-1].name, place)
    return Checkpoint(place.resolve().name[:40], place)


def save_packed(model: Any, tokenizer: Any, folder: Path, report: rose.RunReport, job: Job) -> Path:
    """Writes a checkpoint as one file, named after `folder`, which is gone afterwards."""
    archive = folder.with_name(folder.name + ".zip")
    try:
        rose.save_model(model, tokenizer, folder, report=report)
        pack(folder, archive, job)
    except BaseException:
        archive.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return archive


def pack(folder: Path, archive: Path, job: Job) -> None:
    """Stored, not compressed: weights hardly shrink, and it would take minutes."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        for file in sorted(folder.iterdir()):
            job.check()
            packed.write(file, f"{folder.name}/{file.name}")


@contextlib.contextmanager
def unpacked(place: Path, job: Job) -> Iterator[Path]:
    """The folder of a checkpoint; of what `pack` has packed, a temporary one."""
    if not zipfile.is_zipfile(place):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="rose-unpacked-") as folder:
        with zipfile.ZipFile(place) as packed:
            if sum(entry.file_size for entry in packed.infolist()) > place.stat().st_size:
                raise rose.RoseError(f"{place} would unpack to more than its own size; rose packs none such.")
            for entry in packed.infolist():
                job.check()
                with packed.open(entry) as source, (Path(folder) / Path(entry.filename).name).open("wb") as copy:
                    shutil.copyfileobj(source, copy)
        yield Path(folder)
