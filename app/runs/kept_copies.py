"""Pruned models on disk: folders that runs keep or users name, and files made of them. No Streamlit here."""

import contextlib
import os
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import rose
from app import words
from app.jobs import Job, Run, size_of
from rose.files import reachable
from rose.layer.pattern import Grid
from rose.model.load.stored import check_merged
from rose.model.ship.export import export_gguf
from rose.output import check_room, temporary_folder

RESERVE = 10**9  # bytes that checkpoints, and files made of them, leave free


def saved_checkpoint(path: str) -> tuple[str, Path]:
    """Name and folder of a checkpoint that the user names. Raises RoseError where there is none."""
    place = reachable(path.strip())
    check_merged(place)
    if not (place / "config.json").is_file():
        raise rose.RoseError(
            f"There is no model in {place}; give a folder that `rose prune` or `rose slim` has written."
        )
    with contextlib.suppress(rose.RoseError):  # a model without a readable report can be read all the same
        return rose.RunReport.load(place).runs[-1].name, place
    return place.resolve().name[:40], place


def named_apart(checkpoints: Sequence[tuple[str, Path]], used: Sequence[str]) -> dict[str, Path]:
    """Folders by distinct names: equal names get their folders, and used names a number."""
    alike, apart = Counter(name for name, _ in checkpoints), dict[str, Path]()
    for name, place in checkpoints:
        longer = f"{name} ({place.resolve().name[:40]})" if alike[name] > 1 else name
        apart[words.unused(longer, [*used, *apart])] = place
    return apart


@contextlib.contextmanager
def written_beside(folder: Path, replaces: bool) -> Iterator[Path]:
    """The place to write a checkpoint to. The checkpoint that it `replaces` stays until the new one is complete."""
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


def zipped(folder: Path) -> BinaryIO:
    """A checkpoint as one .zip file, which is deleted when it is closed. It is stored, not compressed: weights hardly
    shrink, and compression takes minutes. Raises RoseError where the disk has too little room."""
    check_room(tempfile.gettempdir(), size_of(folder), RESERVE)
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for file_path in sorted(folder.rglob("*")):  # a tokenizer's further templates are in a folder of their own
                archive.write(file_path, file_path.relative_to(folder.parent))
        file.seek(0)
        return open(os.dup(file.fileno()), "rb")


def forms(grid: Grid | None) -> dict[str, str]:
    """The types of GGUF files that a copy can be written in, with their labels; `grid` of its kept weights.

    q4_0 is offered only where it rounds nothing: otherwise it costs more accuracy than pruning on its grid does.
    """
    types = ("f16", "q4_0") if grid and grid.bits <= 4 else ("f16", "q8_0")
    return {kind: f"GGUF, {kind}" for kind in types}


class FileRun(Run):
    """A checkpoint written as a GGUF file of a type of `forms`, and read back."""

    def __init__(self, folder: Path, form: str) -> None:
        super().__init__()
        self.folder, self.form = folder, form
        self.place: Path | None = None  # the written file, once the run is done
        self.remarks: list[str] = []  # sentences on it

    def _run(self, job: Job) -> None:
        self._say("Reading the checkpoint")
        check_room(self._temporary(), size_of(self.folder), RESERVE)
        place = self._temporary() / f"{self.folder.name}-{self.form}.gguf"
        exported = export_gguf(str(self.folder), place, self.form, self._tell)
        self.remarks = exported.remarks(self.form)
        self.place, self.fraction = place, 1.0

    def _tell(self, share: float, tensor: str) -> None:
        self.fraction = share
        self._say(f"Writing {tensor}")

    def offer(self) -> tuple[str, int]:
        """Name and bytes of the file that a browser gets; call it once the run is done."""
        assert self.place is not None
        return self.place.name, self.place.stat().st_size

    def open(self) -> BinaryIO:
        assert self.place is not None
        return self.place.open("rb")
