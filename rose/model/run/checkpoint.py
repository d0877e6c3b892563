"""A pruning run that can be killed at any time and resumed, with the same result to the bit.

The folder holds

    run.json                    the run: settings, digests of tokens and of the dense weights
    allocation.safetensors      decisions on the dense model: the pattern of each layer, or the shapes to cut to
    block-00007.safetensors     pruned weights of one decoder block's layers, their records, the time spent so far
    drift.json                  drift after each decoder block of a run that has ended
    activations/, dense/        hidden states of the pruned and the dense model while a run is under way

Every file is written under a temporary name, forced to the disk and renamed, so a kill leaves whole files only. A
resumed run runs the finished decoder blocks again, with their stored weights. Hidden states are on disk to save memory;
a run does not resume from them.

Several processes of one run share a folder. The first writes weights; each stores the hidden states of its own samples
in folders of its own, such as dense-1-of-4/.
"""

import dataclasses
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout
from torch import Tensor

from rose.errors import RoseError
from rose.files import GOES_ON, TEMPORARY, check_foreign, explained, reachable, write_atomically
from rose.model.network.layers import PrunableLayer
from rose.model.network.network import PART, Network, padding
from rose.model.network.precision import Precision
from rose.model.settings import PruneSettings
from rose.model.walk.storage import Activations, BlockDrift, Storage, lay_over
from rose.model.workers import Workers
from rose.tensor_files import DamagedFile, digest, facts_of, read_tensors, write_tensors

logger = logging.getLogger(__name__)

RUN, DECISIONS, DRIFT = "run.json", "allocation.safetensors", "drift.json"
EXPLAINS = ("command", "format", "parts", "streamed")  # differences that cause others, so they are reported first
FORMAT = 10  # raise it when an older folder would no longer give the same weights


class DiskStorage(Storage):
    """Stores pruned weights in a folder, because memory does not hold them; the run cannot be resumed.

    Every method raises RoseError if the folder can no longer be read or written.
    """

    remedy = "make room or choose another folder for the output, and start the run again."

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def store(
        self, index: int, tensors: Mapping[str, Tensor], records: Sequence[Mapping[str, Any]], seconds: float
    ) -> None:
        facts = {"records": json.dumps(list(records)), "seconds": repr(seconds), "weights": digest(tensors)}
        with explained(self.folder, self.remedy):
            write_tensors(self._path(index), tensors, **facts)
        self.finished.add(index)

    def read(self, index: int) -> dict[str, Tensor]:
        if index not in self.finished:
            return {}
        try:
            return read_tensors(self._path(index))[0]
        except DamagedFile as problem:
            raise RoseError(f"{problem}, although the run had written it; start the run again.") from problem

    def identity(self) -> str:
        """Identifies the stored tensors without their times, which differ when a run is repeated."""
        return " ".join(facts_of(self._path(index))["weights"] for index in sorted(self.finished))

    def _path(self, index: int) -> Path:
        return self.folder / f"block-{index:05d}.safetensors"


class RunCheckpoint(DiskStorage):
    """Stores everything that a stopped run needs to resume; see the module."""

    remedy = GOES_ON

    def __init__(self, folder: Path, workers: Workers) -> None:
        super().__init__(folder)
        self.workers = workers
        place = f"-{workers.place}-of-{workers.count}" if workers.count > 1 else ""
        self.activations = Activations(folder / f"activations{place}")
        self.dense_activations = Activations(folder / f"dense{place}")

    def decide(self, compute: Callable[[], str]) -> str:
        path = self.folder / DECISIONS

        def read() -> str | None:
            try:
                return read_tensors(path)[1]["patterns"]
            except DamagedFile:
                return None

        def write() -> None:
            with explained(self.folder):
                write_tensors(path, {}, patterns=text)

        stored = self.workers.from_first(read)
        if stored is not None:
            return stored
        text = compute()
        self.workers.from_first(write)
        return text

    def resume(self, blocks: Sequence[int]) -> list[dict[str, Any]]:
        whole, self.drifts = self.workers.from_first(lambda: (self._whole(blocks), self._read_drifts()))
        for index, facts in whole.items():
            self.done, self.seconds = index + 1, float(facts["seconds"])
        return [record for facts in whole.values() for record in json.loads(facts["records"])]

    def _whole(self, blocks: Sequence[int]) -> dict[int, dict[str, str]]:
        """The stored decoder blocks before the first that is missing or damaged."""
        whole: dict[int, dict[str, str]] = {}
        for index in blocks:
            if not self._path(index).exists():
                break
            try:
                _, whole[index] = read_tensors(self._path(index))
            except DamagedFile as problem:
                logger.warning("%s; decoder block %d is pruned again", problem, index)
                break
        return whole

    def _read_drifts(self) -> dict[int, BlockDrift]:
        try:
            rows = [BlockDrift(**row) for row in json.loads((self.folder / DRIFT).read_text())]
        except (FileNotFoundError, ValueError, TypeError, RecursionError):
            return {}
        return {row.block_index: row for row in rows}

    def store(
        self, index: int, tensors: Mapping[str, Tensor], records: Sequence[Mapping[str, Any]], seconds: float
    ) -> None:
        self.workers.from_first(partial(super().store, index, tensors, records, seconds))
        self.finished.add(index)

    def finish(self) -> None:
        """Weights and records stay: the same command ends at once."""
        text = json.dumps([dataclasses.asdict(row) for row in self.drifts.values()])
        with explained(self.folder):
            self.workers.from_first(partial(write_atomically, self.folder / DRIFT, text.encode()))
        if self.workers.place == 0:  # for all processes, also if an earlier run had more
            for folder in (*self.folder.glob("activations*"), *self.folder.glob("dense*")):
                shutil.rmtree(folder, ignore_errors=True)


def begun_with(folder: str | Path | None, name: str) -> Any:
    """The value of this name in the run.json of a folder; None without one."""
    return None if folder is None else (_described(reachable(folder)) or {}).get(name)


def _described(folder: Path) -> dict[str, Any] | None:
    """The content of run.json; None if it is missing or damaged."""
    with suppress(OSError, ValueError, RecursionError):
        if isinstance(run := json.loads((folder / RUN).read_text()), dict):
            return run
    return None


@contextmanager
def open_checkpoint(
    network: Network, folder: str | Path | None, run: Callable[[], Mapping[str, Any]]
) -> Iterator[Storage]:
    """The checkpoint in this folder, new or begun by the same run; without a folder, storage that keeps the minimum.

    A streamed network reads its pruned weights back from it. `run` describes the run (see `describe_run`) and is only
    called if there is a folder. Raises RoseError for a folder of another run, in use, or not writable.
    """
    residence, is_kept = network.residence, folder is not None
    if folder is None and residence.scratch is None:
        yield Storage()
        return
    scratch = nullcontext(Path(tempfile.mkdtemp(dir=residence.scratch))) if folder is None else claimed(folder, run)
    with scratch as path:
        storage = RunCheckpoint(path, Workers.here()) if is_kept else DiskStorage(path)
        revise = lambda index: lay_over(network.layers, storage.read(index))  # noqa: E731
        residence.overlay(revise, storage.finished, path.resolve() if is_kept else None)
        yield storage


@contextmanager
def claimed(folder: str | Path, run: Callable[[], Mapping[str, Any]]) -> Iterator[Path]:
    """A folder that only this run uses meanwhile, new or begun by the same run; see `open_checkpoint`."""
    path = reachable(folder)
    if path.is_file():
        raise RoseError(f"{path} is a file, and a checkpoint is a folder; name one.")
    lock = FileLock(path / "lock")  # the system releases it when the process ends, however it ends
    try:
        Workers.here().from_first(partial(_claim, path, lock, run))
        yield path
    finally:
        lock.release()


def _is_begun(folder: Path) -> bool:
    """Whether the folder describes a run; raises RoseError for a folder with other content."""
    begun = (folder / RUN).exists()
    if not begun:  # a run that was killed early leaves only the temporary file
        check_foreign(folder, ("lock", f"{RUN}*{TEMPORARY}"), "checkpoint")
    return begun


def _claim(folder: Path, lock: BaseFileLock, describe: Callable[[], Mapping[str, Any]]) -> None:
    """Locks the folder, checks that it belongs to this run, and removes unfinished files of a killed one."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not Path(lock.lock_file).exists():  # a refused folder gets no lock file
            _is_begun(folder)
        try:
            lock.acquire(blocking=False)
        except Timeout as problem:
            raise RoseError(f"Another run is using the checkpoint in {folder}; wait for it to end.") from problem
    run = json.loads(json.dumps(describe()))
    with explained(folder):
        begun = _is_begun(folder)
    before = _described(folder) if begun else run
    if before is None:
        raise RoseError(
            f"{folder / RUN} is damaged, so nothing tells which run the decoder blocks there are of; put it back, or "
            "remove the folder and start the run again."
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
            leftover.unlink()
        if not begun or (folder / RUN).read_bytes() != text:
            write_atomically(folder / RUN, text)


def _difference(name: str, run: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    model = "the model's weights differ (it must be loaded dense, as it was when the run began)"
    if run.get("command") == "tune":
        model = (
            "the pruned model's weights differ (a tuning that was stopped has changed them in memory: load it again)"
        )
    sentences = {
        "command": f"that of {before.get(name, 'prune')}, not of {run.get(name, 'prune')}",
        "model": model,
        "dense": "the dense model's weights differ",
        "format": "another version of this program began it, and would go on to other weights",
        **{name: f"the {name.replace('_', '-')} differ" for name in ("tokens", "held_out", "layers", "damages")},
    }
    if name in sentences:
        return sentences[name]
    old, new = before.get(name), run.get(name)
    if name in ("compute", "products"):
        return f"matrix products were computed in {old} there and are in {new} now (compute {old} asks for that)"
    subject = name.replace("_", " ")
    if name == "pattern":
        subject = "sparsity"
        old, new = (f"{keep}:{of}" if of else ratio for ratio, keep, of in (before[name], run[name]))
    if name == "streamed":
        subject = "the model"
        old, new = ("streamed" if value else "in memory" for value in (old, new))
    old, new = (f"{value:g}" if isinstance(value, float) else value for value in (old, new))
    return f"{subject} was {old} there and is {new} now"


def describe_run(
    network: Network,
    tokens: Tensor,
    held_out: Tensor | None,
    layers: Sequence[PrunableLayer],
    run: PruneSettings,
    precision: Precision,
) -> dict[str, Any]:
    """All that the pruned weights depend on, except the machine and library versions, as JSON values."""
    settings = run.describe()
    del settings["sparsity"]  # same as the pattern
    return {
        "format": FORMAT,  # then in the order of settings, because the first difference is reported
        "method": run.method,
        "pattern": dataclasses.astuple(run.pattern),
        "order": run.order,
        "budget": run.budget,
        **settings,
        "damages": run.sharing.identity(),
        "min_expert_tokens": run.min_expert_tokens if any(layer.is_expert for layer in layers) else None,
        **precision.describe(),
        "layers": [layer.name for layer in layers],
        **describe_inputs(network, tokens, held_out),
    }


def describe_inputs(network: Network, tokens: Tensor, held_out: Tensor | None) -> dict[str, Any]:
    return {
        "bos_token": network.bos_in_front(tokens),
        "tokens": digest({"tokens": tokens.long()}),  # int32 tokens have the same digest
        "held_out": None if held_out is None else digest({"tokens": held_out.long()}),
        "streamed": network.is_streamed,  # the fingerprint of a streamed model differs
        "model": network.residence.fingerprint(),
    }


def report_inputs(
    network: Network, tokens: Tensor, held_out: Tensor | None, storage: Storage, precision: Precision
) -> dict[str, Any]:
    return {
        "samples": tokens.shape[0],
        "length": tokens.shape[1],
        **padding(tokens),
        "held_out_samples": 0 if held_out is None else held_out.shape[0],
        "bos_token": network.bos_in_front(tokens),
        **({PART: True} if hasattr(network.model, PART) else {}),
        "embedding_norms": network.embedding_norms(),
        "drift": [dataclasses.asdict(storage.drifts[index]) for index in sorted(storage.drifts)],
        "environment": precision.environment(network.device),
    }
