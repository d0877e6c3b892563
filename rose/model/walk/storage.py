"""What a walk stores of finished decoder blocks and hidden states; `rose.model.run.checkpoint` stores it on disk."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from rose.files import READ_AGAIN, TEMPORARY, explained, sync
from rose.layer.pattern import Pattern
from rose.model.network.layers import LEFT, RIGHT, PrunableLayer, by_block, low_rank_tensors
from rose.rows import LayerRecord
from rose.tensor_files import DamagedFile, read_tensors, write_tensors

BIAS = ".bias"  # ends the name of a bias that is stored beside a weight
FinishedBlock = tuple[int, dict[str, Tensor], list[dict[str, Any]]]  # its index, its stored tensors, its records


class Activations(Protocol):
    """The inputs of one decoder block, a tensor per batch of each stream ("calibration", "held_out").

    A batch is read before its successor is written; `advance` ends a round of writing.
    """

    def read(self, stream: str, batch: int) -> Tensor: ...

    def write(self, stream: str, batch: int, hidden: Tensor) -> None: ...

    def advance(self, index: int) -> None:
        """Everything written since the last call is the complete input of decoder block `index`."""


class MemoryActivations:
    """In memory. A written batch replaces the one that was read, so nothing is held twice."""

    def __init__(self) -> None:
        self._streams: dict[str, dict[int, Tensor]] = {}

    def read(self, stream: str, batch: int) -> Tensor:
        return self._streams[stream][batch]

    def write(self, stream: str, batch: int, hidden: Tensor) -> None:
        self._streams.setdefault(stream, {})[batch] = hidden

    def advance(self, index: int) -> None:
        pass


class DiskActivations:
    """In one folder per decoder block, renamed once it is complete; the newest `rounds` folders remain."""

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
        """Removes everything."""
        for folder in self._all().values():
            shutil.rmtree(folder, ignore_errors=True)
        self._current = None

    def _all(self) -> dict[int, Path]:
        return {int(path.name.partition("-")[2]): path for path in self.folder.glob("activations-?????")}


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
        """Stores the drift after one decoder block."""
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
    """Writes stored weights, and biases of output projections, into the layers of these names."""
    for layer in layers:
        if layer.name in tensors:
            layer.write(tensors[layer.name])
        if layer.name + BIAS in tensors:
            module: Any = layer.module
            module.bias = nn.Parameter(tensors[layer.name + BIAS].to(module.weight.device), requires_grad=False)
