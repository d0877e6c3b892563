"""Peak memory of a model that streams: one decoder block, one Hessian at work, and the hidden states; and whether what
a run takes is free.

See docs/large-models.md for the derivation; tests/benchmarks/memory.py compares with what a run takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import nn

from rose.errors import RoseError
from rose.layer.registry import get_method
from rose.model.estimate.duration import expert_share, is_output, statistics_groups
from rose.model.network.layers import PrunableLayer, by_block, count_parameters
from rose.model.network.network import Network
from rose.model.walk import forward
from rose.wording import size

# Float32 matrices alive at once in the two stages of pruning a layer, of the Hessian's size and of the weight's.
# Factorizing: H, H damped, its Cholesky factor, and in the order visited H, its factor and the inverse; importance and
# potential loss.
FACTORIZING = (6, 2)
# Sweeping: H, H damped, its Cholesky factor and the inverse; importance, potential loss, the weight without its dead
# columns, swept and in the original order, and one of the weight as it was. Methods that sweep and stop there have no
# more.
SWEEPING = (4, 6)
# With dense targets also DᵀX and DᵀD of the gap, in panels and whole, and the correction; see `rose.layer.target`.
GAPS_AT_WORK = 4
# A layer that writes into the residual stream has a gap and a correction of the weight's size.
GAPS_OF_A_WRITER = 2
# Hidden states that a batch has alive where it waits inside a block: the residual stream, a norm of it, an output.
HIDDEN_STATES_WAITING = 3
# Activations of a gated feed-forward layer's width that one batch has alive at once.
WIDTHS_OF_A_BATCH = 4


@dataclass(frozen=True)
class Memory:
    """Bytes, each part at its largest.

    Attributes:
        block: one decoder block.
        embedding: everything outside the decoder blocks and the head; only at the start.
        hessians: of one decoder block's groups, while they accumulate.
        batch: what one batch has alive inside a decoder block.
        work: the largest layer while it is pruned, its Hessian included.
        activations: hidden states of all samples; those of one batch where they are kept on disk.
        waiting: what batches hold that wait inside a block for the others, where each layer is pruned before it runs.
    """

    block: int
    embedding: int
    hessians: int
    batch: int
    work: int
    activations: int
    waiting: int

    @property
    def peak(self) -> int:
        """Of a model that streams."""
        return self.block + self.activations + self.waiting + max(self.embedding, self.hessians + self.batch, self.work)

    @property
    def besides_weights(self) -> int:
        """Of a model that is in memory."""
        return self.activations + self.waiting + max(self.hessians + self.batch, self.work)


def largest(estimates: Iterable[Memory]) -> Memory:
    """The one with the highest peak."""
    return max(estimates, key=lambda memory: memory.peak)


def check_free(what: str, needed: int, advice: str, *, besides: int = 0) -> None:
    """Raises RoseError, "WHAT so many bytes of memory, and so many are free; ADVICE.", where too few are free now;
    `besides`: bytes that something else will take before."""
    free = max(0, psutil.virtual_memory().available - besides)
    if needed > free:
        raise RoseError(f"{what} {size(needed)} of memory, and {size(free)} are free; {advice}.")


def estimate_memory(
    model: nn.Module,
    *,
    samples: int,
    length: int,
    layers: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
    on_disk: bool = False,
    sequential: bool = False,
    dense_targets: bool = False,
    held_out: bool = False,
    method: str = "sparsegpt",
) -> Memory:
    """What `prune_model` takes for a streamed model, besides the interpreter and its libraries; a skeleton will do.

    Args:
        samples, length: calibration tokens, held-out ones included.
        dtype: of the weights and hidden states.
        on_disk: hidden states are kept on disk, as with a checkpoint.
        sequential: each layer is calibrated on the pruned ones before it in its decoder block, as with dense targets
            always.
        held_out: some of the samples are held out, and have statistics of their own.
    """
    stages = (FACTORIZING, SWEEPING, *get_method(method).matrices)
    network = Network(model)
    chosen = network.select(layers)
    body = getattr(model, "base_model", model)
    sizes = [count_parameters(block) for block in network.blocks]
    outside = count_parameters(body) - sum(sizes)
    tokens = samples * length
    at_once = min(tokens, max(length, forward.BATCH_TOKENS // length * length))
    width = network.config.hidden_size
    widest = max(max(layer.weight.shape) for layer in network.layers)
    of_blocks = list(by_block(chosen).values())
    inputs = [statistics_groups(found) for found in of_blocks]
    # Where each layer is pruned before it runs, only its own statistics are there.
    one_by_one = sequential or dense_targets
    gathered = max if one_by_one else sum
    groups = [(1 + held_out) * gathered(4 * columns**2 for columns in widths) for widths in inputs]
    work = [_work(layer, dense_targets, held_out, stages) for layer in chosen]
    read = max(_read_by_a_token(model, found) for found in of_blocks)
    channels = HIDDEN_STATES_WAITING * width + widest if one_by_one else 0
    if dense_targets:  # what the layers read in the dense model
        channels += read + width
    # Else what all layers read of a batch is counted at its end.
    batch = WIDTHS_OF_A_BATCH * widest if one_by_one else max(WIDTHS_OF_A_BATCH * widest, read)
    return Memory(
        block=dtype.itemsize * max(sizes),
        embedding=dtype.itemsize * outside,
        hessians=max(groups),
        batch=dtype.itemsize * at_once * batch,
        work=max(work),
        activations=(1 + dense_targets) * dtype.itemsize * (at_once if on_disk else tokens) * width,
        waiting=dtype.itemsize * tokens * channels,
    )


def _work(layer: PrunableLayer, dense_targets: bool, held_out: bool, stages: Sequence[tuple[int, int]]) -> int:
    """Bytes of the float32 matrices that pruning one layer takes."""
    columns, numbers = layer.weight.shape[1], layer.weight.numel()
    squares, weights = int(held_out), 0
    if dense_targets and is_output(layer):
        weights += GAPS_OF_A_WRITER
    elif dense_targets:
        squares += GAPS_AT_WORK
    return 4 * max((squares + h) * columns**2 + (weights + w) * numbers for h, w in stages)


def _read_by_a_token(model: nn.Module, layers: Sequence[PrunableLayer]) -> int:
    """Channels that the layers of one decoder block read for each token, which visits only some of the experts."""
    plain = sum(statistics_groups([layer for layer in layers if not layer.is_expert]))
    experts = sum(statistics_groups([layer for layer in layers if layer.is_expert]))
    return plain + math.ceil(expert_share(model, layers) * experts)
