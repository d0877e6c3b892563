"""What a walk stores of finished decoder blocks and hidden states; on disk in `rose.model.run.checkpoint`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from rose.layer.pattern import Pattern
from rose.model.network.layers import LEFT, RIGHT, PrunableLayer, by_block, low_rank_tensors
from rose.model.walk.dense_states import BlockDrift
from rose.model.walk.hidden_states import Activations, MemoryActivations
from rose.rows import LayerRecord

BIAS = ".bias"  # ends the name of a bias that is kept beside a weight
FinishedBlock = tuple[int, dict[str, Tensor], list[dict[str, Any]]]  # its index, what was kept of it, its records


class Storage:
    """What a run stores of its finished decoder blocks and hidden states: here nothing outside memory.

    Attributes:
        done: decoder blocks below this one are finished.
        newest: the latest decoder block whose inputs are of use to go on; those of the dense model are there, if any.
        seconds: spent on them.
        activations: where hidden states are kept.
        dense_activations: where those of the dense model are kept.
        drifts: by decoder block.
    """

    def __init__(self) -> None:
        self.done, self.newest, self.seconds = 0, 0, 0.0
        self.activations: Activations = MemoryActivations()
        self.dense_activations: Activations = MemoryActivations()
        self.drifts: dict[int, BlockDrift] = {}

    def remember(self, compute: Callable[[], str]) -> str:
        """What was decided on the dense model about all layers, as text; computed unless it is known."""
        return compute()

    def patterns(self, compute: Callable[[], dict[str, Pattern]]) -> dict[str, Pattern]:
        """Patterns of the layers, computed on the dense model unless they are known."""
        text = self.remember(
            lambda: json.dumps({name: dataclasses.astuple(pattern) for name, pattern in compute().items()})
        )
        return {name: Pattern(*values) for name, values in json.loads(text).items()}

    def finished_blocks(self, blocks: Sequence[int], dense: Mapping[str, int]) -> Iterator[FinishedBlock]:
        """What was kept of those of these decoder blocks that an earlier run has finished, in their order.

        `dense`: the streams of the dense model that must be there to go on, with their numbers of batches.
        """
        yield from ()

    def restore(self, layers: Sequence[PrunableLayer], dense: Mapping[str, int]) -> list[LayerRecord]:
        """Writes the pruned weights of finished blocks into the model and returns their records; see
        `finished_blocks`."""
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
        """Keeps the drift after one decoder block."""
        self.drifts[drift.block_index] = drift

    def start(self, batches: Mapping[str, int]) -> int | None:
        """The decoder block whose inputs are kept, if any are; `batches`: how many there must be of each stream."""
        return None

    def add(self, index: int, layers: Sequence[PrunableLayer], records: Sequence[LayerRecord], seconds: float) -> None:
        """Keeps a finished decoder block's pruned layers; `seconds`: spent since the run began."""
        weights = {layer.name: layer.weight for layer in layers}
        factors = low_rank_tensors((layer.name, layer.module) for layer in layers)
        self.keep(index, weights | factors, [dataclasses.asdict(record) for record in records], seconds)

    def keep(
        self, index: int, tensors: Mapping[str, Tensor], records: Sequence[Mapping[str, Any]], seconds: float
    ) -> None:
        """Keeps all that is needed of a finished decoder block; `seconds`: spent since the run began."""

    def finish(self) -> None:
        """Called when the run is over."""


def lay_over(layers: Sequence[PrunableLayer], tensors: Mapping[str, Tensor]) -> None:
    """Writes what was kept by the names of layers into them: weights, and the biases of output projections."""
    for layer in layers:
        if layer.name in tensors:
            layer.write(tensors[layer.name])
        if layer.name + BIAS in tensors:
            module: Any = layer.module
            module.bias = nn.Parameter(tensors[layer.name + BIAS].to(module.weight.device), requires_grad=False)
