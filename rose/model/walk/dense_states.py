"""The dense model beside the pruned one: its hidden states, and how far the pruned ones drift from them.

Both travel through the decoder blocks together. A block runs on the dense hidden states while its weights are still
dense, so that no second copy of the model is needed. Held-out tokens also show where drift arises: what the dense block
makes of the pruned hidden states is the drift that is passed on; what the pruned block adds to it arises there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rose.model.walk.forward import Arguments, split_batches
from rose.model.walk.hidden_states import Activations
from rose.model.workers import Workers

HELD_OUT, PASSED_ON = "held_out", "passed_on"

Watch = Callable[[str, int, Tensor], AbstractContextManager[None]]


@dataclass(frozen=True)
class BlockDrift:
    """Drift of the residual stream after one decoder block, on held-out tokens.

    Each is a mean over tokens of ‖Δh‖²/‖h_d‖², because the norms in front of all layers see every token relative to its
    own length; a ratio of sums would be that of a few tokens with massive activations.

    Attributes:
        drift: Δh = h_p − h_d, the pruned against the dense model's hidden states.
        passed_on: Δh = f_d(x_p) − h_d: what the dense block would have made of the drift that it received.
        arisen: Δh = h_p − f_d(x_p): what pruning this block added; negatively correlated with what was passed on where
            layers repair earlier errors, and then `drift` is below `passed_on`.
    """

    block_index: int
    drift: float
    passed_on: float
    arisen: float


def token_drift(one: Tensor, other: Tensor, dense: Tensor | None = None) -> Tensor:
    """‖Δh‖²/‖h_d‖² of each token for Δh = one − other, (tokens,) float64; tokens whose h_d is zero, as padding may
    have, are left out. All are (..., hidden); `dense` is h_d, by itself the other one."""
    other = other.double()  # squares overflow in float16, and sums lose digits in bfloat16
    length = (other if dense is None else dense.double()).square().sum(-1)
    return ((one.double() - other).square().sum(-1) / length)[length > 0]


@dataclass
class DenseStreams:
    """The hidden states of the dense model, for the streams that need them.

    Attributes:
        activations: where they are kept; the inputs of the decoder block that comes next.
        names: "held_out" for drift, and "calibration" where targets are dense; may be none.
        position: the decoder block whose inputs they are; None while both models are still the same.
    """

    activations: Activations
    names: tuple[str, ...] = ()
    position: int | None = None
    _sums: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))

    def _begin(self, index: int, pruned: Activations, arguments: Mapping[str, Sequence[Arguments]]) -> None:
        """At the first decoder block that loses weights: until here both models are the same."""
        for stream in self.names:
            for batch in range(len(arguments[stream])):
                self.activations.write(stream, batch, pruned.read(stream, batch))
        self.activations.advance(index)

    @torch.no_grad()
    def run(
        self,
        index: int,
        pruned: Activations,
        arguments: Mapping[str, Sequence[Arguments]],
        run: Callable[[Tensor, Arguments], Tensor],
        watch: Watch | None = None,
    ) -> None:
        """Runs a decoder block, by `run` on each batch, with its dense weights, before it is pruned.

        `pruned` are the pruned model's inputs of this block, `arguments` by stream of each batch; `watch` is entered
        around the pass of each batch, with its stream, number and input.
        """
        if not self.names:
            return
        if self.position is None:
            self._begin(index, pruned, arguments)
        for stream in self.names:
            for batch, others in enumerate(arguments[stream]):
                hidden = self.activations.read(stream, batch)
                with watch(stream, batch, hidden) if watch else nullcontext():
                    output = run(hidden, others)
                self.activations.write(stream, batch, output.to(hidden.device))
                if stream == HELD_OUT:
                    received = pruned.read(stream, batch)
                    self.activations.write(PASSED_ON, batch, run(received, others).to(received.device))
        self.activations.advance(index + 1)
        self.position = index + 1

    def compare(self, stream: str, batch: int, index: int, output: Tensor) -> None:
        """Takes what the pruned block puts out for one batch; only held-out tokens are compared."""
        if stream != HELD_OUT or HELD_OUT not in self.names or self.position != index + 1:
            return
        pruned = output.double()
        dense = self.activations.read(HELD_OUT, batch).to(pruned)
        passed = self.activations.read(PASSED_ON, batch).to(pruned)
        found = [token_drift(pruned, dense), token_drift(passed, dense), token_drift(pruned, passed, dense)]
        tokens = torch.tensor(float(found[0].numel()), dtype=torch.float64, device=pruned.device)
        self._sums += torch.stack([*(each.sum() for each in found), tokens]).cpu()

    def block_drift(self, index: int, device: torch.device) -> BlockDrift | None:
        """What `compare` has gathered since the last call; None where nothing was compared."""
        sums, self._sums = self._sums, torch.zeros_like(self._sums)
        if HELD_OUT not in self.names or self.position != index + 1:
            return None
        sums = sums.to(device)  # over nccl only what is on a GPU can be summed
        Workers.here().sum_tensor(sums)
        drift, passed_on, arisen = (float(value) for value in sums[:3] / sums[3])
        return BlockDrift(index, drift, passed_on, arisen)

    def batches(self, streams: Mapping[str, Tensor]) -> dict[str, int]:
        """How many batches each of the streams has, (samples, length) each."""
        return {name: len(split_batches(streams[name])) for name in self.names}


def dense_streams(streams: Mapping[str, Tensor], has_dense_targets: bool, activations: Activations) -> DenseStreams:
    """The streams of the dense model that a run needs: all where targets are dense, held-out ones for drift."""
    return DenseStreams(activations, tuple(name for name in streams if has_dense_targets or name == HELD_OUT))
