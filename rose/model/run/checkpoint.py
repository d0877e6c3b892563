"""A pruning run that can be killed at any moment and resumed, with the same result to the bit.

The folder holds

    run.json                    what the run is: settings, digests of tokens and of the dense weights
    run-copy.json               the same again, as nothing tells it anew
    allocation.safetensors      what was decided on the dense model: the pattern of each layer, or the shapes to cut to
    block-00007.safetensors     pruned weights of one decoder block's layers, their records, the time spent so far
    activations-00008/          the inputs of the decoder block that comes next, a file per batch
    dense/activations-00008/    the same of the dense model, where targets are dense or drift is measured
    drift.json                  drift after each decoder block

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
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout
from torch import Tensor

from rose.errors import RoseError
from rose.files import GOES_ON, TEMPORARY, explained, reachable, write_atomically
from rose.model.network.heads import rotated_heads
from rose.model.network.identity import embedding_norms, language_part
from rose.model.network.layers import PrunableLayer
from rose.model.network.network import Network, padding
from rose.model.network.precision import Precision
from rose.model.run.settings import RunSettings, describe_layer
from rose.model.walk.dense_states import HELD_OUT, BlockDrift
from rose.model.walk.hidden_states import DiskActivations
from rose.model.walk.storage import FinishedBlock, Storage, lay_over
from rose.model.workers import Workers
from rose.tensor_files import DamagedFile, digest, facts_of, read_tensors, write_tensors
from rose.wording import count, word

logger = logging.getLogger(__name__)

DESCRIPTIONS = ("run.json", "run-copy.json")
EXPLAINS = ("command", "format", "parts", "streamed")  # what is told first, as more differs because of it
FORMAT = 10  # raise it where an older folder would no longer give the same weights


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

    def keep(
        self, index: int, tensors: Mapping[str, Tensor], records: Sequence[Mapping[str, Any]], seconds: float
    ) -> None:
        facts = {"records": json.dumps(list(records)), "seconds": repr(seconds), "weights": digest(tensors)}
        with explained(self.folder, self.remedy):
            write_tensors(self._path(index), tensors, **facts)
        self.finished.add(index)

    def read(self, index: int) -> dict[str, Tensor]:
        """What was kept of a finished decoder block; nothing for another one."""
        if index not in self.finished:
            return {}
        try:
            return read_tensors(self._path(index))[0]
        except DamagedFile as problem:
            raise RoseError(f"{problem}, although the run had written it; start the run again.") from problem

    def identity(self) -> str:
        """Identifies the tensors that were kept; times are others where the same is done again."""
        return " ".join(facts_of(self._path(index))["weights"] for index in sorted(self.finished))

    def _path(self, index: int) -> Path:
        return self.folder / f"block-{index:05d}.safetensors"


class RunCheckpoint(DiskStorage):
    """Stores all that a stopped run needs to be resumed; see the module."""

    remedy = GOES_ON

    def __init__(self, folder: Path, workers: Workers) -> None:
        super().__init__(folder)
        self.workers = workers
        own = folder if workers.count == 1 else folder / f"{workers.place}-of-{workers.count}"
        self.activations: DiskActivations = DiskActivations(own)
        # Two rounds: a decoder block that is begun again needs its dense inputs, although its outputs are there too.
        self.dense_activations: DiskActivations = DiskActivations(own / "dense", keep=2)

    def remember(self, compute: Callable[[], str]) -> str:
        known = self.workers.from_first(self._read_decided)
        if known is not None:
            return known
        found = compute()  # nothing is restored yet, so the model is dense
        self.workers.from_first(partial(self._write_decided, found))
        return found

    @property
    def _decided_path(self) -> Path:
        return self.folder / "allocation.safetensors"

    def _read_decided(self) -> str | None:
        try:
            return read_tensors(self._decided_path)[1]["patterns"]
        except DamagedFile:
            return None

    def _write_decided(self, text: str) -> None:
        with explained(self.folder):
            write_tensors(self._decided_path, {}, patterns=text)

    def finished_blocks(self, blocks: Sequence[int], dense: Mapping[str, int]) -> Iterator[FinishedBlock]:
        self.drifts = self._read_drifts()
        whole, self.newest = self._whole_blocks(blocks, dense)
        for index in whole:
            tensors, facts = read_tensors(self._path(index))
            self.finished.add(index)
            self.done, self.seconds = index + 1, float(facts["seconds"])
            yield index, tensors, json.loads(facts["records"])

    def _whole_blocks(self, blocks: Sequence[int], dense: Mapping[str, int]) -> tuple[list[int], int]:
        """The finished decoder blocks that can be restored, and `newest`.

        None can where the dense model's hidden states are lost: they cannot be computed again, because the dense
        weights of restored blocks are overwritten. Blocks without layers to prune keep theirs, so that the inputs of
        any block between the last finished one and the next with such layers will do.
        """
        whole = []
        for index in blocks:
            if not self._path(index).exists():
                break
            try:
                read_tensors(self._path(index))
            except DamagedFile as problem:
                logger.warning("%s; decoder block %d is pruned again", problem, index)
                break
            whole.append(index)
        done = whole[-1] + 1 if whole else 0
        newest = blocks[len(whole)] if len(whole) < len(blocks) else done
        has_drift = HELD_OUT not in dense or done - 1 in self.drifts
        if dense and not (len(whole) == len(blocks) and has_drift):
            found = self.dense_activations.resume(newest, dense) if whole else None
            if self.workers.all_agree(found) and found is not None and found >= done:
                newest = found
            else:
                if whole:
                    self._check_count(range(done, newest + 1))
                    logger.warning("%s has lost hidden states of the dense model; pruning starts again", self.folder)
                self.dense_activations.clear()
                self.drifts = {}
                whole, newest = [], blocks[0]
        if self.workers.all_agree(whole):  # so all have read what the first now removes
            self.workers.from_first(partial(self._remove, set(blocks) - {*whole}))
        return whole, newest

    def _check_count(self, useful: range) -> None:
        """Raises RoseError where another number of processes has what is missing here."""
        for own in (self.folder, *self.folder.glob("*-of-*")):
            processes = 1 if own == self.folder else int(own.name.partition("-of-")[2])
            known = [int(path.name[-5:]) for path in (own / "dense").glob("activations-?????")]
            if processes != self.workers.count and any(index in useful for index in known):
                raise RoseError(
                    f"The hidden states in {self.folder} are divided over {count(processes, 'process', 'processes')}; "
                    f"resume the run with as many, not with {word(self.workers.count)}."
                )

    def _remove(self, blocks: Iterable[int]) -> None:
        """Removes what will be pruned again: a run that stops before it gets there must not take it for its own."""
        with explained(self.folder):
            for index in blocks:
                self._path(index).unlink(missing_ok=True)

    def start(self, batches: Mapping[str, int]) -> int | None:
        found = self.activations.resume(self.newest, batches)
        return found if self.workers.all_agree(found) else None

    def keep(
        self, index: int, tensors: Mapping[str, Tensor], records: Sequence[Mapping[str, Any]], seconds: float
    ) -> None:
        self.workers.from_first(partial(super().keep, index, tensors, records, seconds))
        self.finished.add(index)

    @property
    def _drift_path(self) -> Path:
        return self.folder / "drift.json"

    def _read_drifts(self) -> dict[int, BlockDrift]:
        try:
            rows = [BlockDrift(**row) for row in json.loads(self._drift_path.read_text())]
        except (FileNotFoundError, ValueError, TypeError, RecursionError):
            return {}
        return {row.block_index: row for row in rows}

    def add_drift(self, drift: BlockDrift) -> None:
        super().add_drift(drift)
        text = json.dumps([dataclasses.asdict(row) for row in self.drifts.values()])
        with explained(self.folder):
            self.workers.from_first(partial(write_atomically, self._drift_path, text.encode()))

    def finish(self) -> None:
        self.activations.clear()  # weights and records stay: the same command ends at once
        shutil.rmtree(self.dense_activations.folder, ignore_errors=True)
        if self.workers.place == 0:
            for folder in self.folder.glob("*-of-*"):
                shutil.rmtree(folder, ignore_errors=True)


def begun_with(folder: str | Path | None, name: str) -> Any:
    """What describes the run that was begun in this folder under this name, see `run.json`; None where none was."""
    known = None if folder is None else _described(reachable(folder))
    return None if known is None else known.get(name)


def _described(folder: Path) -> dict[str, Any] | None:
    """What the run in this folder is; None where that is not there or damaged."""
    for name in DESCRIPTIONS:
        try:
            known = json.loads((folder / name).read_text())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(known, dict):
            return known
    return None


@contextmanager
def open_checkpoint(
    network: Network,
    folder: str | Path | None,
    run: Callable[[], Mapping[str, Any]],
) -> Iterator[Storage]:
    """The checkpoint in this folder, new or begun; without a folder, one that keeps no more than it must.

    Args:
        network: a streamed model reads the pruned weights back from here.
        folder: new, empty, or that of the same run.
        run: describes the run, see `describe_run`; only asked where there is a folder.

    Raises:
        RoseError: the folder belongs to another run, is in use, or cannot be written.
    """
    residence = network.residence
    write = partial(lay_over, network.layers)
    if folder is None:
        if residence.scratch is None:
            yield Storage()
        else:
            scratch = DiskStorage(Path(tempfile.mkdtemp(dir=residence.scratch)))
            residence.overlay(lambda index: write(scratch.read(index)), scratch.finished, None)
            yield scratch
        return
    with claimed(folder, run) as path:
        kept = RunCheckpoint(path, Workers.here())
        residence.overlay(lambda index: write(kept.read(index)), kept.finished, path.resolve())
        yield kept


@contextmanager
def claimed(folder: str | Path, run: Callable[[], Mapping[str, Any]]) -> Iterator[Path]:
    """A folder that is this run's alone while this lasts, new or begun by the same run; see `open_checkpoint`."""
    path = reachable(folder)
    if path.is_file():
        raise RoseError(f"{path} is a file, and a checkpoint is a folder; name one.")
    lock = FileLock(path / "lock")
    try:
        Workers.here().from_first(partial(_begin, path, lock, run))
        yield path
    finally:
        lock.release()


def _begin(folder: Path, lock: BaseFileLock, run: Callable[[], Mapping[str, Any]]) -> None:
    """Locks the folder for this run. The system releases the lock when the process ends, however it ends."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not Path(lock.lock_file).exists():  # a folder that is refused gets none
            _is_begun(folder)
        try:
            lock.acquire(blocking=False)
        except Timeout as problem:
            raise RoseError(f"Another run is using the checkpoint in {folder}; wait for it to end.") from problem
    _claim(folder, json.loads(json.dumps(run())))


def _is_begun(folder: Path) -> bool:
    """Whether a run has written what it is into this folder; raises RoseError where something else is there."""
    begun = any((folder / name).exists() for name in DESCRIPTIONS)
    own = ("lock", f"run.json*{TEMPORARY}")  # the latter of a run that was killed before it had
    if not begun and any(not any(map(item.match, own)) for item in folder.iterdir()):
        raise RoseError(f"{folder} is not empty and holds no checkpoint; choose another folder.")
    return begun


def _claim(folder: Path, run: Mapping[str, Any]) -> None:
    """Checks that the folder belongs to this run, and removes unfinished files of one that was killed."""
    with explained(folder):
        begun = _is_begun(folder)
    before = _described(folder) if begun else run
    if before is None:
        raise RoseError(
            f"{folder / DESCRIPTIONS[0]} and its copy are damaged, so nothing tells which run the decoder blocks there "
            "are of; put one of them back, or remove the folder and start the run again."
        )
    changed = [name for name in {**run, **before} if run.get(name) != before.get(name)]
    if changed:
        changed.sort(key=lambda name: EXPLAINS.index(name) if name in EXPLAINS else len(EXPLAINS))
        raise RoseError(
            f"The checkpoint in {folder} belongs to another run: {_difference(changed[0], run, before)}. "
            "Choose another folder, or the settings that it was begun with."
        )
    text = json.dumps(run, indent=1).encode()
    with explained(folder):
        for leftover in folder.glob(f"*{TEMPORARY}"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        for path in map(folder.joinpath, DESCRIPTIONS):
            if not path.exists() or path.read_bytes() != text:
                write_atomically(path, text)


def _difference(name: str, run: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    if name == "command":
        return f"that of {before.get(name, 'prune')}, not of {run.get(name, 'prune')}"
    if name == "model" and run.get("command") == "tune":
        return "the pruned model's weights differ (a tuning that was stopped has changed them in memory: load it again)"
    if name == "model":
        return "the model's weights differ (it must be loaded dense, as it was when the run began)"
    if name == "dense":
        return "the dense model's weights differ"
    if name == "format":
        return "another version of this program began it, and would go on to other weights"
    if name in ("tokens", "held_out", "layers", "damages"):
        return f"the {name.replace('_', '-')} differ"
    was, now = before.get(name), run.get(name)
    if name == "pattern":
        was, now = (f"{keep}:{of}" if of else ratio for ratio, keep, of in (before[name], run[name]))
        return f"sparsity was {was} there and is {now} now"
    if name == "streamed":
        ways = "in memory", "streamed"
        return f"the model was {ways[bool(was)]} there and is {ways[bool(now)]} now"
    if name in ("compute", "products"):
        return f"matrix products were computed in {was} there and are in {now} now (compute {was} asks for that)"
    shown = (f"{value:g}" if isinstance(value, float) else value for value in (was, now))
    return "{} was {} there and is {} now".format(name.replace("_", " "), *shown)


def describe_run(
    network: Network,
    tokens: Tensor,
    held_out: Tensor | None,
    layers: Sequence[PrunableLayer],
    run: RunSettings,
    precision: Precision,
) -> dict[str, Any]:
    """Everything that the pruned weights depend on, except the machine and library versions, as JSON values."""
    layer = describe_layer(run.layer)
    del layer["sparsity"]  # the pattern says it
    return {
        "format": FORMAT,  # then in the order of the settings, as the first one that differs is told
        "method": run.layer.method,
        "pattern": dataclasses.astuple(run.layer.pattern),
        **layer,
        "order": run.layer.order,
        "budget": run.layer.budget,
        **run.describe(),
        "damages": run.allocation.identity(),
        "min_expert_tokens": run.min_expert_tokens if any(layer.is_expert for layer in layers) else None,
        **precision.describe(),
        "layers": [layer.name for layer in layers],
        **describe_inputs(network, tokens, held_out),
    }


def describe_inputs(network: Network, tokens: Tensor, held_out: Tensor | None) -> dict[str, Any]:
    """What a run is given, as JSON values."""
    rotated = rotated_heads(network.model)
    return {
        "rotated_heads": rotated and rotated["basis"],
        "bos_token": network.bos_in_front(tokens),
        "tokens": digest({"tokens": tokens.long()}),  # int32 ones are the same tokens
        "held_out": None if held_out is None else digest({"tokens": held_out.long()}),
        "streamed": network.is_streamed,  # its fingerprint is another one
        "model": network.residence.fingerprint(),
    }


def report_inputs(
    network: Network, tokens: Tensor, held_out: Tensor | None, kept: Storage, precision: Precision
) -> dict[str, Any]:
    """For a report: the windows, the model they ran through and its drift, and the environment."""
    return {
        "samples": tokens.shape[0],
        "length": tokens.shape[1],
        **padding(tokens),
        "held_out_samples": 0 if held_out is None else held_out.shape[0],
        "bos_token": network.bos_in_front(tokens),
        **language_part(network.model),
        "embedding_norms": embedding_norms(network.model),
        "drift": [dataclasses.asdict(kept.drifts[index]) for index in sorted(kept.drifts)],
        "environment": precision.environment(network.device),
    }
