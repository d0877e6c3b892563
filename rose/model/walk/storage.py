"""The storage of a walk: finished decoder blocks, and hidden states of the pruned and the dense model.

`rose.model.run.checkpoint` stores it on disk. Dense and pruned hidden states pass the decoder blocks together. A block
runs on the dense ones while its weights are still dense, so no second copy of the model is needed. Held-out
tokens also show where drift arises: see `BlockDrift`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rose.files import READ_AGAIN, TEMPORARY, explained, sync
from rose.layer.pattern import Pattern
from rose.model.network.layers import LEFT, RIGHT, PrunableLayer, by_block, low_rank_tensors
from rose.model.walk.forward import Arguments, split_batches
from rose.model.workers import Workers
from rose.rows import LayerRecord
from rose.tensor_files import DamagedFile, read_tensors, write_tensors

HELD_OUT, PASSED_ON = "held_out", "passed_on"
BIAS = ".bias"  # ends the name of a bias that is stored beside a weight
FinishedBlock = tuple[int, dict[str, Tensor], list[dict[str, Any]]]  # its index, its stored tensors, its records
Watch = Callable[[str, int, Tensor], AbstractContextManager[None]]


class MemoryActivations:
    """The inputs of one decoder block, a tensor per batch of each stream ("calibration", "held_out"), in memory.

    A batch is read before its successor is written, which replaces it; `advance(index)` ends a round of writing: all
    inputs of decoder block `index` are written then.
    """

    def __init__(self) -> None:
        self._streams: dict[str, dict[int, Tensor]] = {}

    def read(self, stream: str, batch: int) -> Tensor:
        return self._streams[stream][batch]

    def write(self, stream: str, batch: int, hidden: Tensor) -> None:
        self._streams.setdefault(stream, {})[batch] = hidden

    def advance(self, index: int) -> None:
        pass


class DiskActivations:
    """The same in one folder per decoder block, renamed once it is complete; the newest `rounds` folders remain."""

    def __init__(self, folder: Path, rounds: int = 1) -> None:
        self.folder, self.rounds = folder, rounds
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
            target = self.folder / f"activations-{index:05d}"
            if target.exists():
                shutil.rmtree(target)
            os.rename(self._pending, target)
            sync(self.folder)
            self._current = target
            for old in sorted(self._all().values())[: -self.rounds]:
                shutil.rmtree(old)

    def resume(self, newest: int, batches: Mapping[str, int]) -> int | None:
        """Goes back to the newest complete inputs of a block up to `newest`, or None, and removes all others.

        `batches`: the number in each stream.
        """
        latest = None
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._pending.exists():
                shutil.rmtree(self._pending)  # of a run that was killed
            for index, folder in sorted(self._all().items(), reverse=True):
                if latest is None and index <= newest and _is_whole(folder, batches):
                    latest, self._current = index, folder
                else:
                    shutil.rmtree(folder)
        return latest

    def clear(self) -> None:
        for folder in self._all().values():
            shutil.rmtree(folder, ignore_errors=True)
        self._current = None

    def _all(self) -> dict[int, Path]:
        return {int(path.name.partition("-")[2]): path for path in self.folder.glob("activations-?????")}


Activations = MemoryActivations | DiskActivations


def _file(folder: Path, stream: str, batch: int) -> Path:
    return folder / f"{stream}-{batch:05d}.safetensors"


def _is_whole(folder: Path, batches: Mapping[str, int]) -> bool:
    try:
        for stream, count in batches.items():
            for batch in range(count):
                read_tensors(_file(folder, stream, batch))
    except DamagedFile:
        return False
    return True


@dataclass(frozen=True)
class BlockDrift:
    """Drift of the residual stream after one decoder block: means of ‖Δh‖²/‖h_d‖² over held-out tokens.

    The norms before all layers see each token relative to its length; a ratio of sums would only show the few tokens
    with massive activations.

    Attributes:
        drift: Δh = h_p − h_d, the pruned minus the dense model's hidden states.
        passed_on: Δh = f_d(x_p) − h_d: the dense block applied to the drift that it received.
        arisen: Δh = h_p − f_d(x_p), added by pruning this block. Where layers repair earlier errors it correlates
            negatively with `passed_on`, and `drift` is smaller than `passed_on`.
    """

    block_index: int
    drift: float
    passed_on: float
    arisen: float


def token_drift(hidden: Tensor, reference: Tensor, dense: Tensor | None = None) -> Tensor:
    """‖Δh‖²/‖h_d‖² of each token with h_d ≠ 0, (tokens,) float64, for Δh = hidden − reference, all (..., hidden).

    `dense` is h_d, by default the reference.
    """
    reference = reference.double()  # squares overflow in float16, and sums lose digits in bfloat16
    length = (reference if dense is None else dense.double()).square().sum(-1)
    return ((hidden.double() - reference).square().sum(-1) / length)[length > 0]


@dataclass
class DenseStreams:
    """The hidden states of the dense model in the streams that need them.

    Attributes:
        activations: where they are stored, as inputs of the next decoder block.
        names: "held_out" for drift, "calibration" for dense targets; may be empty.
        position: the decoder block whose inputs they are; None while both models are still the same.
    """

    activations: Activations
    names: tuple[str, ...] = ()
    position: int | None = None
    _sums: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))

    @torch.no_grad()
    def run(
        self,
        index: int,
        pruned: Activations,
        arguments: Mapping[str, Sequence[Arguments]],
        run: Callable[[Tensor, Arguments], Tensor],
        watch: Watch | None = None,
    ) -> None:
        """Runs a decoder block with its dense weights, before it is pruned: `run` takes each batch.

        `pruned` has the pruned model's inputs of this block, `arguments` further ones by stream and batch. `watch` is
        entered around the pass of each batch, with its stream, number and input.
        """
        if not self.names:
            return
        if self.position is None:  # the first block to prune: until here both models are the same
            for stream in self.names:
                for batch in range(len(arguments[stream])):
                    self.activations.write(stream, batch, pruned.read(stream, batch))
            self.activations.advance(index)
        for stream in self.names:
            for batch, of_batch in enumerate(arguments[stream]):
                hidden = self.activations.read(stream, batch)
                with watch(stream, batch, hidden) if watch else nullcontext():
                    output = run(hidden, of_batch)
                self.activations.write(stream, batch, output.to(hidden.device))
                if stream == HELD_OUT:
                    received = pruned.read(stream, batch)
                    self.activations.write(PASSED_ON, batch, run(received, of_batch).to(received.device))
        self.activations.advance(index + 1)
        self.position = index + 1

    def compare(self, stream: str, batch: int, index: int, output: Tensor) -> None:
        """Adds up the drift in the pruned block's output for one batch of held-out tokens; ignores other streams."""
        if stream != HELD_OUT or HELD_OUT not in self.names or self.position != index + 1:
            return
        pruned = output.double()
        dense = self.activations.read(HELD_OUT, batch).to(pruned)
        passed = self.activations.read(PASSED_ON, batch).to(pruned)
        drifts = [token_drift(pruned, dense), token_drift(passed, dense), token_drift(pruned, passed, dense)]
        tokens = torch.tensor(float(drifts[0].numel()), dtype=torch.float64, device=pruned.device)
        self._sums += torch.stack([*(each.sum() for each in drifts), tokens]).cpu()

    def block_drift(self, index: int, device: torch.device) -> BlockDrift | None:
        """The means since the last call; None if nothing was compared."""
        sums, self._sums = self._sums, torch.zeros_like(self._sums)
        if HELD_OUT not in self.names or self.position != index + 1:
            return None
        sums = sums.to(device)  # nccl only sums tensors on a GPU
        Workers.here().sum_tensor(sums)
        drift, passed_on, arisen = (float(value) for value in sums[:3] / sums[3])
        return BlockDrift(index, drift, passed_on, arisen)

    def batches(self, streams: Mapping[str, Tensor]) -> dict[str, int]:
        return {name: len(split_batches(streams[name])) for name in self.names}


def dense_streams(streams: Mapping[str, Tensor], has_dense_targets: bool, activations: Activations) -> DenseStreams:
    """The dense streams of a run: all of them for dense targets, held-out tokens for drift."""
    return DenseStreams(activations, tuple(name for name in streams if has_dense_targets or name == HELD_OUT))


class Storage:
    """What a run stores of its finished decoder blocks and hidden states: here nothing outside memory.

    Attributes:
        done: decoder blocks below this index are finished.
        newest: the latest decoder block whose inputs can be used to resume; its dense inputs are there, if any.
        seconds: spent on the finished blocks.
        drifts: by decoder block.
    """

    def __init__(self) -> None:
        self.done, self.newest, self.seconds = 0, 0, 0.0
        self.activations: Activations = MemoryActivations()
        self.dense_activations: Activations = MemoryActivations()
        self.drifts: dict[int, BlockDrift] = {}

    def remember(self, compute: Callable[[], str]) -> str:
        """A decision on the dense model about all layers, as text; computed unless it is stored."""
        return compute()

    def patterns(self, compute: Callable[[], dict[str, Pattern]]) -> dict[str, Pattern]:
        """Patterns of the layers, computed on the dense model unless they are stored."""
        text = self.remember(lambda: json.dumps({name: dataclasses.astuple(each) for name, each in compute().items()}))
        return {name: Pattern(*values) for name, values in json.loads(text).items()}

    def finished_blocks(self, blocks: Sequence[int], dense: Mapping[str, int]) -> Iterator[FinishedBlock]:
        """The stored blocks among these, in their order; `dense`: batches of each dense stream needed to resume."""
        yield from ()

    def restore(self, layers: Sequence[PrunableLayer], dense: Mapping[str, int]) -> list[LayerRecord]:
        """Writes weights of finished blocks into the model and returns their records; see `finished_blocks`."""
        records: list[LayerRecord] = []
        blocks = by_block(layers)
        for index, tensors, of_block in self.finished_blocks(list(blocks), dense):
            for layer in blocks[index]:
                if not layer.weight.is_meta:  # a streamed block is laid over when it is read
                    layer.write(tensors[layer.name])
                if layer.name + LEFT in tensors:
                    layer.keep_low_rank((tensors[layer.name + LEFT], tensors[layer.name + RIGHT]))
            records += [LayerRecord(**record) for record in of_block]
        return records

    def add_drift(self, drift: BlockDrift) -> None:
        self.drifts[drift.block_index] = drift

    def start(self, batches: Mapping[str, int]) -> int | None:
        """The decoder block whose inputs are stored, or None; `batches`: the number needed in each stream."""
        return None

    def add(self, index: int, layers: Sequence[PrunableLayer], records: Sequence[LayerRecord], seconds: float) -> None:
        """Stores a finished decoder block's pruned layers; `seconds`: since the run began."""
        weights = {layer.name: layer.weight for layer in layers}
        factors = low_rank_tensors((layer.name, layer.module) for layer in layers)
        self.keep(index, weights | factors, [dataclasses.asdict(record) for record in records], seconds)

    def keep(
        self, index: int, tensors: Mapping[str, Tensor], records: Sequence[Mapping[str, Any]], seconds: float
    ) -> None:
        """Stores these tensors and records of a finished decoder block; `seconds`: since the run began."""

    def finish(self) -> None:
        """Called when the run is over."""


def lay_over(layers: Sequence[PrunableLayer], tensors: Mapping[str, Tensor]) -> None:
    for layer in layers:
        if layer.name in tensors:
            layer.write(tensors[layer.name])
        if layer.name + BIAS in tensors:
            module: Any = layer.module
            module.bias = nn.Parameter(tensors[layer.name + BIAS].to(module.weight.device), requires_grad=False)
