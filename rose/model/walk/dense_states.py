"""The dense model beside the pruned one: its hidden states, and the drift of the pruned ones from them.

Both travel through the decoder blocks together. A block runs on the dense hidden states while its weights are still
dense, so no second copy of the model is needed. Held-out tokens also show where drift arises: see `BlockDrift`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rose.model.walk.forward import Arguments, split_batches
from rose.model.walk.storage import Activations, BlockDrift
from rose.model.workers import Workers

HELD_OUT, PASSED_ON = "held_out", "passed_on"

Watch = Callable[[str, int, Tensor], AbstractContextManager[None]]


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

        `pruned` are the pruned model's inputs of this block, `arguments` those of each stream's batches. `watch` is
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
        """The number of batches in each stream of (samples, length) tokens."""
        return {name: len(split_batches(streams[name])) for name in self.names}


def dense_streams(streams: Mapping[str, Tensor], has_dense_targets: bool, activations: Activations) -> DenseStreams:
    """The dense streams of a run: all of them for dense targets, held-out tokens for drift."""
    return DenseStreams(activations, tuple(name for name in streams if has_dense_targets or name == HELD_OUT))
