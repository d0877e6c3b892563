"""Peak memory of runs: of pruning a streamed model, and of tuning; whether it is free.

docs/large-models.md and docs/tuning.md derive the parts; tests/benchmarks/memory.py compares them with real runs.
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
from rose.model.estimate.duration import expert_share, is_output, statistics_by_kind, statistics_groups
from rose.model.network.layers import PrunableLayer, by_block, count_parameters
from rose.model.network.network import Network
from rose.model.walk import forward
from rose.wording import size

# Float32 matrices alive at once while a layer is pruned, of the Hessian's and of the weight's size.
# Factorizing: H, H damped, its Cholesky factor, and in the order visited H, its factor and the inverse; importance and
# potential loss.
FACTORIZING = (6, 2)
# Sweeping: H, H damped, its Cholesky factor and the inverse; importance, potential loss, the weight as it was, without
# its dead columns, swept and in the original order.
SWEEPING = (4, 6)
GAPS_AT_WORK = 4  # dense targets: DᵀX and DᵀD of the gap, in panels and whole, and the correction
GAPS_OF_A_WRITER = 2  # a layer that writes into the residual stream: gap and correction, of the weight's size
HIDDEN_STATES_WAITING = 3  # of a batch that waits inside a block: the residual stream, a norm of it, an output
WIDTHS_OF_A_BATCH = 4  # activations of a gated feed-forward layer's width that a batch has alive

# Tuning. Bytes for each trained weight: its gradient, Adam's two moments, the best and the first weights, and two
# masks; a float32 copy where the model stores 16 bits, and a bfloat16 one of the dense model's.
PER_WEIGHT, PER_COPY, PER_ROUNDED = 4 + 8 + 4 + 4 + 2, 4, 2
TOGETHER = 1024  # tokens of one pass: each pass rounds all weights anew, but logits take more memory than all else
# Float32 activations a token that a decoder block keeps for its backward pass, in hidden and in its widest widths.
HIDDEN_KEPT, WIDEST_KEPT = 6, 2
PER_FROZEN = 2  # for each weight of a layer that is not trained, whose 16 bits become 32 for products in float32
LOGITS_KEPT = 3  # of one pass: the model's, the dense model's, and their gradient


@dataclass(frozen=True)
class Memory:
    """Bytes, each part at its largest."""

    block: int  # one decoder block
    embedding: int  # everything outside the decoder blocks and the head; only at the start
    hessians: int  # of one decoder block's groups, while they accumulate
    batch: int  # what one batch has alive inside a decoder block
    work: int  # the largest layer while it is pruned, with its Hessian
    activations: int  # hidden states of all samples, or of one batch if they are on disk
    waiting: int  # of batches that wait inside a block, where each layer is pruned before it runs

    @property
    def peak(self) -> int:
        """Of a model that streams."""
        return self.block + self.activations + self.waiting + max(self.embedding, self.hessians + self.batch, self.work)

    @property
    def besides_weights(self) -> int:
        """Of a model in memory."""
        return self.activations + self.waiting + max(self.hessians + self.batch, self.work)


def largest(estimates: Iterable[Memory]) -> Memory:
    return max(estimates, key=lambda memory: memory.peak)


def check_free(subject: str, needed: int, advice: str, *, besides: int = 0) -> None:
    """Raises RoseError, "SUBJECT 3 GB of memory, and 2 GB are free; ADVICE.", if too few bytes are free now;
    `besides`: bytes that something else will take first."""
    free = max(0, psutil.virtual_memory().available - besides)
    if needed > free:
        raise RoseError(f"{subject} {size(needed)} of memory, and {size(free)} are free; {advice}.")


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
    """Memory of `prune_model` on a streamed model, besides the interpreter and its libraries; a skeleton will do.

    Args:
        samples, length: calibration tokens, held-out ones included.
        dtype: of the weights and hidden states.
        on_disk: hidden states are on disk, as with a checkpoint.
        sequential: each layer is calibrated on the pruned ones before it in its decoder block; dense targets imply it.
        held_out: some of the samples are held out, and have statistics of their own.
    """
    stages = (FACTORIZING, SWEEPING, *get_method(method).matrices)
    network = Network(model)
    chosen = network.select(layers)
    sizes = [count_parameters(block) for block in network.blocks]
    outside = count_parameters(getattr(model, "base_model", model)) - sum(sizes)
    tokens = samples * length
    at_once = min(tokens, max(length, forward.BATCH_TOKENS // length * length))
    width = network.config.hidden_size
    widest = max(max(layer.weight.shape) for layer in network.layers)
    of_blocks = list(by_block(chosen).values())
    one_by_one = sequential or dense_targets  # then only one layer's statistics are there
    gathered = max if one_by_one else sum
    groups = [(1 + held_out) * gathered(4 * c**2 for c in statistics_groups(inside)) for inside in of_blocks]
    read = 0  # the most input channels of one decoder block's layers for a token, which visits some of the experts
    for inside in of_blocks:
        plain, routed = statistics_by_kind(inside)
        read = max(read, sum(plain) + math.ceil(expert_share(model, inside) * sum(routed)))
    channels = HIDDEN_STATES_WAITING * width + widest if one_by_one else 0
    if dense_targets:  # the layers' inputs in the dense model
        channels += read + width
    # Otherwise all layers' inputs of a batch are counted at its end.
    batch = WIDTHS_OF_A_BATCH * widest if one_by_one else max(WIDTHS_OF_A_BATCH * widest, read)
    return Memory(
        block=dtype.itemsize * max(sizes),
        embedding=dtype.itemsize * outside,
        hessians=max(groups),
        batch=dtype.itemsize * at_once * batch,
        work=max(_work(layer, dense_targets, held_out, stages) for layer in chosen),
        activations=(1 + dense_targets) * dtype.itemsize * (at_once if on_disk else tokens) * width,
        waiting=dtype.itemsize * tokens * channels,
    )


def _work(layer: PrunableLayer, dense_targets: bool, held_out: bool, stages: Sequence[tuple[int, int]]) -> int:
    columns, numbers = layer.weight.shape[1], layer.weight.numel()
    squares, weights = int(held_out), 0
    if dense_targets and is_output(layer):
        weights += GAPS_OF_A_WRITER
    elif dense_targets:
        squares += GAPS_AT_WORK
    return 4 * max((squares + h) * columns**2 + (weights + w) * numbers for h, w in stages)


def tuning_memory(network: Network, length: int, weights: int, *, rounds: bool = False) -> int:
    """Bytes at the peak of tuning besides the two models.

    `length`: tokens a window; `weights`: the number of trained ones; `rounds`: see `Precision`.
    """
    tokens = max(length, TOGETHER)
    widest = max(max(layer.weight.shape) for layer in network.layers)
    of_token = len(network.blocks) * (HIDDEN_KEPT * network.config.hidden_size + WIDEST_KEPT * widest)
    stored = network.dtype == torch.float32
    per_weight = PER_WEIGHT + PER_ROUNDED + (0 if stored else PER_COPY)
    frozen = 0 if stored or rounds else sum(layer.weight.numel() for layer in network.layers) - weights
    activations = 4 * tokens * (of_token + LOGITS_KEPT * network.config.vocab_size)
    return per_weight * weights + PER_FROZEN * frozen + activations
