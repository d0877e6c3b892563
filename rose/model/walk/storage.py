"""The storage of a walk: finished decoder blocks, and hidden states of the pruned and the dense model.

`rose.model.run.checkpoint` stores it on disk.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rose.files import READ_AGAIN, explained
from rose.model.network.layers import LEFT, RIGHT, PrunableLayer
from rose.tensor_files import DamagedFile, read_tensors, write_tensors

HELD_OUT, PASSED_ON = "held_out", "passed_on"
BIAS = ".bias"  # ends the name of a bias that is stored beside a weight


class Activations:
    """The inputs of one decoder block, a tensor per batch of each stream ("calibration", "held_out").

    A batch is read before the next block's batch replaces it. A folder, if given, leaves only one batch in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._batches: dict[tuple[str, int], Tensor] = {}

    def read(self, stream: str, batch: int) -> Tensor:
        if self.folder is None:
            return self._batches[stream, batch]
        with explained(self.folder, READ_AGAIN, "read"):
            try:
                return read_tensors(self._path(stream, batch))[0]["hidden"]
            except DamagedFile as problem:
                raise OSError(str(problem)) from problem

    def write(self, stream: str, batch: int, hidden: Tensor) -> None:
        if self.folder is None:
            self._batches[stream, batch] = hidden
            return
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_tensors(self._path(stream, batch), {"hidden": hidden})

    def _path(self, stream: str, batch: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{stream}-{batch:05d}.safetensors"


@dataclass(frozen=True)
class BlockDrift:
    """Drift of the residual stream after one decoder block: means of ‖Δh‖²/‖h_d‖² over held-out tokens.

    Norms scale each token by its length, so tokens count alike. A ratio of sums would show only the few tokens with
    massive activations."""

    block_index: int
    drift: float  # Δh = h_p − h_d, the pruned minus the dense model's hidden states
    passed_on: float  # Δh = f_d(x_p) − h_d: the dense block passes on the drift of its input
    # Δh = h_p − f_d(x_p), added by pruning this block. Where layers repair earlier errors it correlates negatively
    # with `passed_on`, and `drift` is smaller than `passed_on`
    arisen: float


def token_drift(hidden: Tensor, reference: Tensor, dense: Tensor | None = None) -> Tensor:
    """‖Δh‖²/‖h_d‖² of each token with h_d ≠ 0, (tokens,) float64, for Δh = hidden − reference, all (..., hidden).

    `dense` is h_d, by default the reference.
    """
    reference = reference.double()  # squares would overflow in float16, and sums lose digits in bfloat16
    length = (reference if dense is None else dense.double()).square().sum(-1)
    return ((hidden.double() - reference).square().sum(-1) / length)[length > 0]


class Storage:
    """The finished decoder blocks and hidden states of a run; this class stores nothing outside memory.

    Attributes:
        done: decoder blocks below this index were finished by an earlier run; their stored weights are restored.
        finished: the decoder blocks whose stored weights are in the model.
        seconds: spent on the blocks of an earlier run.
        drifts: by decoder block.
    """

    def __init__(self) -> None:
        self.done, self.seconds = 0, 0.0
        self.finished: set[int] = set()
        self.activations = Activations()
        self.dense_activations = Activations()
        self.drifts: dict[int, BlockDrift] = {}

    def decide(self, compute: Callable[[], str]) -> str:
        """A decision about all layers of the dense model, as text; computed unless it is stored."""
        return compute()

    def resume(self, blocks: Sequence[int]) -> list[dict[str, Any]]:
        """Finds how many of the first decoder blocks an earlier run has finished; returns their records."""
        return []

    def read(self, index: int) -> dict[str, Tensor]:
        """The stored tensors of a finished decoder block; {} for others."""
        return {}

    def store(
        self, index: int, tensors: Mapping[str, Tensor], records: Sequence[Mapping[str, Any]], seconds: float
    ) -> None:
        """Stores these tensors and records of a finished decoder block; `seconds`: since the run began."""

    def finish(self) -> None:
        """Called when the run is over."""


def lay_over(layers: Sequence[PrunableLayer], tensors: Mapping[str, Tensor]) -> None:
    """Writes stored weights, biases and low-rank factors; a streamed block's weights only while it is in memory."""
    for layer in layers:
        if layer.name + LEFT in tensors:
            layer.keep_low_rank((tensors[layer.name + LEFT], tensors[layer.name + RIGHT]))
        if layer.name in tensors and not layer.weight.is_meta:
            layer.write(tensors[layer.name])
        if layer.name + BIAS in tensors and not layer.weight.is_meta:
            module: Any = layer.module
            module.bias = nn.Parameter(tensors[layer.name + BIAS].to(module.weight.device), requires_grad=False)
