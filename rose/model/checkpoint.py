"""A pruning run that can be killed at any moment and resumed, with the same result to the bit.

The folder holds

    run.json                    what the run is: settings, digests of tokens and of the dense weights
    allocation.safetensors      the pattern of each layer
    block-00007.safetensors     pruned weights of one decoder block's layers, their records, the time spent so far
    activations-00008/          the inputs of the decoder block that comes next, a file per batch

Every file is written under a temporary name, forced to the disk and renamed, so that a kill leaves whole files only.
Hidden states are stored because recomputing them would take up to a third of the run; read back, they are the same
bits. If they are missing or damaged, the pruned blocks are run again: only the weights are indispensable.

Several processes of one run share a folder, so they must see the same files: the first writes weights, and each stores
the hidden states of its own samples in a folder of its own, such as 1-of-4/.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout
from torch import Tensor, nn

from rose.errors import RoseError
from rose.layer.methods import Settings
from rose.layer.pattern import Pattern
from rose.model.activations import Activations, DiskActivations, MemoryActivations
from rose.model.distributed import all_agree, from_first, place, processes
from rose.model.durable import GOES_ON, TEMPORARY, DamagedFile, digest, explained, read_tensors, write_tensors
from rose.model.forward import bos_in_front
from rose.model.residence import residence_of
from rose.model.structure import LEFT, RIGHT, PrunableLayer, low_rank_tensors
from rose.report import LayerRecord, write_atomically

logger = logging.getLogger(__name__)

FORMAT = 1  # raise it where an older folder would no longer give the same weights


class Storage:
    """What a run stores of its finished decoder blocks and hidden states: here nothing outside memory.

    Attributes:
        done: decoder blocks below this one are finished.
        seconds: spent on them.
        activations: where hidden states are kept.
    """

    def __init__(self) -> None:
        self.done, self.seconds = 0, 0.0
        self.activations: Activations = MemoryActivations()

    def patterns(self, compute: Callable[[], dict[str, Pattern]]) -> dict[str, Pattern]:
        """Patterns of the layers, computed on the dense model unless they are known."""
        return compute()

    def restore(self, layers: Sequence[PrunableLayer]) -> list[LayerRecord]:
        """Writes the pruned weights of finished blocks into the model and returns their records."""
        return []

    def start(self, batches: Mapping[str, int]) -> int | None:
        """The decoder block whose inputs are kept, if any are; `batches`: how many there must be of each stream."""
        return None

    def add(self, index: int, layers: Sequence[PrunableLayer], records: Sequence[LayerRecord], seconds: float) -> None:
        """Keeps a finished decoder block; `seconds`: spent since the run began."""

    def finish(self) -> None:
        """Called when the run is over."""


class DiskStorage(Storage):
    """Stores pruned weights in a folder, because memory does not hold them; the run cannot be resumed.

    Raises, from every method:
        RoseError: the folder cannot be read or written any more.
    """

    remedy = "make room or choose another folder for the output, and start the run again."

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.finished: set[int] = set()

    def add(self, index: int, layers: Sequence[PrunableLayer], records: Sequence[LayerRecord], seconds: float) -> None:
        texts = json.dumps([dataclasses.asdict(record) for record in records])
        with explained(self.folder, self.remedy):
            weights = {layer.name: layer.weight for layer in layers}
            factors = low_rank_tensors((layer.name, layer.module) for layer in layers)
            write_tensors(self._path(index), weights | factors, records=texts, seconds=repr(seconds))
        self.finished.add(index)

    def weights(self, index: int) -> dict[str, Tensor]:
        """Pruned weights of a finished decoder block by layer name; nothing for another one."""
        if index not in self.finished:
            return {}
        try:
            found = read_tensors(self._path(index))[0]
            return {name: tensor for name, tensor in found.items() if not name.endswith((LEFT, RIGHT))}
        except DamagedFile as problem:
            raise RoseError(f"{problem}, although the run had written it; start the run again.") from problem

    def _path(self, index: int) -> Path:
        return self.folder / f"block-{index:05d}.safetensors"


class Checkpoint(DiskStorage):
    """Stores all that a stopped run needs to be resumed; see the module."""

    remedy = GOES_ON

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        own = folder if processes() == 1 else folder / f"{place()}-of-{processes()}"
        self.activations: DiskActivations = DiskActivations(own)

    def patterns(self, compute: Callable[[], dict[str, Pattern]]) -> dict[str, Pattern]:
        known = from_first(self._read_patterns)
        if known is not None:
            return known
        found = compute()  # nothing is restored yet, so the model is dense
        from_first(partial(self._write_patterns, found))
        return found

    @property
    def _patterns_path(self) -> Path:
        return self.folder / "allocation.safetensors"

    def _read_patterns(self) -> dict[str, Pattern] | None:
        try:
            known = json.loads(read_tensors(self._patterns_path)[1]["patterns"])
        except DamagedFile:
            return None
        return {name: Pattern(*values) for name, values in known.items()}

    def _write_patterns(self, found: Mapping[str, Pattern]) -> None:
        text = json.dumps({name: dataclasses.astuple(pattern) for name, pattern in found.items()})
        with explained(self.folder):
            write_tensors(self._patterns_path, {}, patterns=text)

    def restore(self, layers: Sequence[PrunableLayer]) -> list[LayerRecord]:
        records: list[LayerRecord] = []
        for index, chosen in blocks_of(layers).items():
            if not self._path(index).exists():
                break
            try:
                weights, facts = read_tensors(self._path(index))
            except DamagedFile as problem:
                logger.warning("%s; decoder block %d is pruned again", problem, index)
                break
            for layer in chosen:
                if not layer.weight.is_meta:  # a streamed block is laid over when it is read
                    layer.write(weights[layer.name])
                if layer.name + LEFT in weights:
                    layer.keep_low_rank((weights[layer.name + LEFT], weights[layer.name + RIGHT]))
            self.finished.add(index)
            records += [LayerRecord(**record) for record in json.loads(facts["records"])]
            self.done, self.seconds = index + 1, float(facts["seconds"])
        return records

    def start(self, batches: Mapping[str, int]) -> int | None:
        found = self.activations.resume(self.done, batches)
        return found if all_agree(found) else None

    def add(self, index: int, layers: Sequence[PrunableLayer], records: Sequence[LayerRecord], seconds: float) -> None:
        from_first(partial(super().add, index, layers, records, seconds))
        self.finished.add(index)

    def finish(self) -> None:
        self.activations.clear()  # weights and records stay: the same command ends at once
        if place() == 0:
            for folder in self.folder.glob("*-of-*"):
                shutil.rmtree(folder, ignore_errors=True)


def blocks_of(layers: Sequence[PrunableLayer]) -> dict[int, list[PrunableLayer]]:
    """The layers by decoder block, in the order of the blocks."""
    found: dict[int, list[PrunableLayer]] = {}
    for layer in layers:
        found.setdefault(layer.block_index, []).append(layer)
    return dict(sorted(found.items()))


@contextmanager
def open_checkpoint(
    model: nn.Module, folder: str | Path | None, run: Callable[[], Mapping[str, Any]]
) -> Iterator[Storage]:
    """The checkpoint in this folder, new or begun; without a folder, one that keeps no more than it must.

    Args:
        model: a streamed one reads the pruned weights back from here.
        folder: new, empty, or that of the same run.
        run: describes the run, see `describe_run`; only asked where there is a folder.

    Raises:
        RoseError: the folder belongs to another run, is in use, or cannot be written.
    """
    residence = residence_of(model)
    if folder is None:
        if residence.scratch is None:
            yield Storage()
        else:
            scratch = DiskStorage(residence.scratch)
            residence.overlay(scratch.weights, scratch.finished, None)
            yield scratch
        return
    folder = Path(folder)
    lock = FileLock(folder / "lock")
    try:
        from_first(partial(_begin, folder, lock, run))
        kept = Checkpoint(folder)
        residence.overlay(kept.weights, kept.finished, folder.resolve())
        yield kept
    finally:
        lock.release()


def _begin(folder: Path, lock: BaseFileLock, run: Callable[[], Mapping[str, Any]]) -> None:
    """Locks the folder for this run. The system releases the lock when the process ends, however it ends."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout as problem:
            raise RoseError(f"Another run is using the checkpoint in {folder}; wait for it to end.") from problem
    _claim(folder, json.loads(json.dumps(run())))


def _claim(folder: Path, run: Mapping[str, Any]) -> None:
    """Removes unfinished files of a killed run, and checks that the folder belongs to this run."""
    path = folder / "run.json"
    with explained(folder):
        begun = path.exists()
        for leftover in folder.glob(f"*{TEMPORARY}" if begun else f"run.json*{TEMPORARY}"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        if not begun:
            if any(item.name != "lock" for item in folder.iterdir()):
                raise RoseError(f"{folder} is not empty and holds no checkpoint; choose another folder.")
            write_atomically(path, json.dumps(run, indent=1).encode())
            return
    try:
        before = json.loads(path.read_text())
        changed = [name for name in {**run, **before} if run.get(name) != before.get(name)]
    except (ValueError, TypeError) as problem:
        raise RoseError(f"{path} is damaged; choose another folder, or remove this one.") from problem
    if changed:
        raise RoseError(
            f"The checkpoint in {folder} belongs to another run: {_difference(changed[0], run, before)}. "
            "Choose another folder, or the settings that it was begun with."
        )


def _difference(name: str, run: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    if name == "model":
        return "the model's weights differ (it must be loaded dense, as it was when the run began)"
    if name in ("tokens", "held_out", "layers", "format"):
        return f"the {name.replace('_', '-')} differ"
    return f"{name.replace('_', ' ')} was {before.get(name)} there and is {run.get(name)} now"


def describe_run(
    model: nn.Module,
    tokens: Tensor,
    held_out: Tensor | None,
    layers: Sequence[PrunableLayer],
    settings: Settings,
    **others: Any,
) -> dict[str, Any]:
    """Everything that the pruned weights depend on, except the machine and library versions, as JSON values."""
    return {
        "format": FORMAT,
        "method": settings.method,
        **others,
        "pattern": dataclasses.astuple(settings.pattern),
        "block_size": settings.block_size,
        "damping": settings.damping,
        "threshold": settings.threshold,
        "order": settings.order,
        "budget": settings.budget,
        "options": dict(settings.options),
        "layers": [layer.name for layer in layers],
        "bos_token": bos_in_front(model, tokens),
        "tokens": digest({"tokens": tokens}),
        "held_out": None if held_out is None else digest({"tokens": held_out}),
        "model": residence_of(model).fingerprint(),
    }
