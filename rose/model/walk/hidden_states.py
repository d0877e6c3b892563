"""Hidden states between decoder blocks, a tensor per batch of samples: in memory, or in files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from rose.files import READ_AGAIN, TEMPORARY, explained, sync
from rose.tensor_files import DamagedFile, read_tensors, write_tensors


class Activations(Protocol):
    """The inputs of one decoder block, batch by batch, for some streams ("calibration", "held_out").

    A batch is read before the one that replaces it is written; `advance` ends a round of writing.
    """

    def read(self, stream: str, batch: int) -> Tensor: ...

    def write(self, stream: str, batch: int, hidden: Tensor) -> None: ...

    def advance(self, index: int) -> None:
        """What was written since the last call are the inputs of decoder block `index`, all of them."""


class MemoryActivations:
    """In memory. What is written takes the place of what was read, so that nothing is held twice."""

    def __init__(self) -> None:
        self._streams: dict[str, dict[int, Tensor]] = {}

    def read(self, stream: str, batch: int) -> Tensor:
        return self._streams[stream][batch]

    def write(self, stream: str, batch: int, hidden: Tensor) -> None:
        self._streams.setdefault(stream, {})[batch] = hidden

    def advance(self, index: int) -> None:
        pass


class DiskActivations:
    """In files below a folder: one folder per decoder block, renamed once it is complete; the newest `keep` remain."""

    def __init__(self, folder: Path, keep: int = 1) -> None:
        self.folder, self.keep = folder, keep
        self._current: Path | None = None
        self._pending = folder / f"activations{TEMPORARY}"

    def read(self, stream: str, batch: int) -> Tensor:
        assert self._current is not None
        with explained(self.folder, READ_AGAIN, "read"):
            try:
                return read_tensors(_file(self._current, stream, batch))[0]["hidden"]
            except DamagedFile as problem:
                raise OSError(str(problem)) from problem

    def write(self, stream: str, batch: int, hidden: Tensor) -> None:
        with explained(self.folder):
            self._pending.mkdir(parents=True, exist_ok=True)
            write_tensors(_file(self._pending, stream, batch), {"hidden": hidden})

    def advance(self, index: int) -> None:
        with explained(self.folder):
            target = self._of(index)
            if target.exists():
                shutil.rmtree(target)
            os.rename(self._pending, target)
            sync(self.folder)
            self._current = target
            for old in sorted(self._all().values())[: -self.keep]:
                shutil.rmtree(old)

    def resume(self, newest: int, batches: Mapping[str, int]) -> int | None:
        """Goes back to the newest complete inputs of a block up to `newest`, and removes all others; None where there
        are none.

        `batches`: how many each stream must have.
        """
        found = None
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._pending.exists():
                shutil.rmtree(self._pending)  # of a run that was killed
            for index, folder in sorted(self._all().items(), reverse=True):
                if found is None and index <= newest and _whole(folder, batches):
                    found, self._current = index, folder
                else:
                    shutil.rmtree(folder)
        return found

    def clear(self) -> None:
        """Removes everything."""
        for folder in self._all().values():
            shutil.rmtree(folder, ignore_errors=True)
        self._current = None

    def _of(self, index: int) -> Path:
        return self.folder / f"activations-{index:05d}"

    def _all(self) -> dict[int, Path]:
        return {int(path.name.partition("-")[2]): path for path in self.folder.glob("activations-?????")}


def _file(folder: Path, stream: str, batch: int) -> Path:
    return folder / f"{stream}-{batch:05d}.safetensors"


def _whole(folder: Path, batches: Mapping[str, int]) -> bool:
    try:
        for stream, count in batches.items():
            for batch in range(count):
                read_tensors(_file(folder, stream, batch))
    except DamagedFile:
        return False
    return True
