"""Estimates before a run starts: floating-point work, time on this machine, memory.

docs/large-models.md and docs/tuning.md derive the parts of memory; tests/benchmarks/memory.py compares them with real
runs.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import psutil
import torch
from torch import nn

from rose.errors import RoseError
from rose.layer.pattern import Grid
from rose.layer.registry import get_method
from rose.model.network.experts import ExpertLinear
from rose.model.network.layers import PrunableLayer, by_block, count_parameters, text_config
from rose.model.network.network import Network
from rose.model.network.precision import SIZE, bfloat16_gain, seconds_of_product
from rose.model.network.residence import pick_device
from rose.model.walk import forward
from rose.wording import size

# Shares of the rate of one large matrix product, measured with the packaged model; tests/benchmarks prints them anew.
FORWARD_EFFICIENCY = 0.6  # of a pass: attention, norms and small layers run slower
SWEEP_EFFICIENCY = 0.085  # of a layer's whole prune by one sweep
TOKEN_EFFICIENCY = 0.05  # one token at a time is bound by memory
NO_PRODUCTS = 0.3  # share of a float32 pass that is not matrix products, and stays the same in bfloat16
# Rounding in sweeps, by whether it happens in the method's own sweep or in one afterwards, which is then revised;
# measured as `Method.work` is.
ROUNDING_WORK = {True: 1.0, False: 2.9}
OUTPUTS = ("o_", "out", "wo", "down", "c_proj", "dense", "fc_out", "fc2", "w2")  # how names of output layers begin

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
# masks; a float32 copy if the model stores 16 bits, and a bfloat16 copy of the dense model.
PER_WEIGHT, PER_COPY, PER_ROUNDED = 4 + 8 + 4 + 4 + 2, 4, 2
TOGETHER = 1024  # tokens of one pass: each pass rounds all weights anew, but logits take more memory than all else
# Float32 activations a token that a decoder block keeps for its backward pass, in hidden and in its widest widths.
HIDDEN_KEPT, WIDEST_KEPT = 6, 2
PER_FROZEN = 2  # for each weight of a layer that is not trained, whose 16 bits become 32 for products in float32
LOGITS_KEPT = 3  # of one pass: the model's, the dense model's, and their gradient


@dataclass(frozen=True)
class Cost:
    """Expected seconds on this machine; bytes for statistics and hidden states, and for float32 weights; the number of
    layers at work."""

    seconds: float
    memory: int
    model_memory: int
    layers: int


@cache
def matmul_rate() -> float:
    return 2 * SIZE**3 / seconds_of_product(torch.float32, pick_device())


def estimate_cost(
    model: nn.Module,
    *,
    samples: int,
    length: int,
    layers: Sequence[str] | None = None,
    sweeps: float = 1,
    passes: int = 1,
    keep_statistics: bool = False,
    compute: str = "float32",
    target: str = "layer",
) -> Cost:
    """The cost of a calibration with `sweeps` prunings of every chosen layer; a skeleton will do.

    Args:
        samples, length: calibration tokens, held-out ones included.
        passes: forward passes per decoder block: 1 to analyze, 2 to prune.
        keep_statistics: all layers' statistics stay in memory, as in the app.
        layers, compute, target: as for `rose.prune_model`.
    """
    network = Network(model)
    chosen = network.select(layers)
    visited = max(layer.block_index for layer in chosen) + 1
    tokens = samples * length
    every = [layer for layer in network.layers if layer.block_index < visited]
    share = expert_share(model, every)
    weights = sum(map(count_parameters, network.blocks[:visited]))
    weights -= round((1 - share) * sum(layer.weight.numel() for layer in every if layer.is_expert))
    rounds = network.precision(compute).rounds
    products = 1 / bfloat16_gain() if rounds else 1.0  # time of a product, relative to float32
    forward = passes * 2 * weights * tokens * (NO_PRODUCTS + (1 - NO_PRODUCTS) * products)
    plain, routed = statistics_by_kind(chosen)
    hessian = 1.2 * tokens * (sum(c**2 for c in plain) + share * sum(c**2 for c in routed))
    sweep = sweeps * sum(layer.weight.numel() * layer.weight.shape[1] for layer in chosen)
    gaps = gap_work(chosen, tokens, share, products) if target == "dense" else 0.0
    seconds = ((forward + hessian + gaps) / FORWARD_EFFICIENCY + sweep / SWEEP_EFFICIENCY) / matmul_rate()
    statistics = sum(4 * columns**2 for columns in (*plain, *routed))
    if not keep_statistics:
        statistics //= len({layer.block_index for layer in chosen})
    hidden = 2 * 4 * tokens * network.config.hidden_size
    return Cost(seconds, statistics + hidden, 4 * count_parameters(model), len(chosen))


def pruning_cost(spec: Any, model: nn.Module, method: str, target: str) -> Cost:
    """The cost of pruning by this method, with this target and the other settings of a recipe such as `Prune`."""
    sizes: dict[str, Any] = spec.extent | {"layers": spec.layers}
    passes = 1 if spec.true_sequential and target != "dense" else 2
    sweeps = sweeps_of([method], spec.grid)
    return estimate_cost(model, **sizes, sweeps=sweeps, passes=passes, compute=spec.compute, target=target)


def gap_work(layers: Sequence[PrunableLayer], tokens: int, share: float = 1.0, products: float = 1.0) -> float:
    """Floating-point operations of dense targets, besides the passes; see `rose.layer.target`.

    For layers that share an input: DᵀX, the symmetric DᵀD, and (H + λI)⁻¹ from the right. For a layer that writes into
    the residual stream: DWᵀ, GᵀX and the same inverse. `share`: of the experts that a token visits; `products`: time
    of a product in the format of gaps, relative to float32.
    """
    streamed = solved = 0.0
    for is_expert in (False, True):
        group = [layer for layer in layers if layer.is_expert == is_expert]
        writers = [layer for layer in group if is_output(layer)]
        widths = statistics_groups([layer for layer in group if not is_output(layer)])
        streamed += (share if is_expert else 1.0) * (
            3.2 * sum(columns**2 for columns in widths) + 4 * sum(layer.weight.numel() for layer in writers)
        )
        solved += (7 / 3) * sum(columns**3 for columns in widths)
        solved += sum(layer.weight.shape[1] ** 3 / 3 for layer in writers)
        solved += 2 * sum(layer.weight.numel() * layer.weight.shape[1] for layer in group)
    return tokens * streamed * products + solved


def estimate_evaluation(model: nn.Module, *, tokens: int, new_tokens: int = 0) -> float:
    """Seconds for perplexity on `tokens`, and for writing `new_tokens` one at a time."""
    work = 2 * count_parameters(model) * (tokens / FORWARD_EFFICIENCY + new_tokens / TOKEN_EFFICIENCY)
    return work / matmul_rate()


def pass_work(network: Network, tokens: int) -> list[float]:
    """Floating-point operations of a pass over `tokens` from each decoder block on; a skeleton will do."""
    head = network.model.get_output_embeddings()  # type: ignore[operator]
    weights = [count_parameters(block) for block in network.blocks]
    last = 0 if head is None else count_parameters(head)
    return [2.0 * tokens * (sum(weights[index:]) + last) for index in range(len(weights))]


def estimate_damage(
    model: nn.Module,
    *,
    samples: int,
    length: int,
    windows: int,
    window_length: int,
    layers: Sequence[str] | None = None,
    units: str = "layers",
    sweeps: float = 1,
) -> Cost:
    """The cost of `rose.damage`: a calibration, and for every unit a pass from its decoder block on; `sweeps=0` to
    restore units."""
    network, held_out = Network(model), windows * window_length
    cost = estimate_cost(model, samples=1, length=samples * length + held_out, layers=layers, sweeps=sweeps)
    chosen = network.select(layers)
    indices = [layer.block_index for layer in chosen]
    work = pass_work(network, held_out)
    passes = 2 * work[0] + sum(work[index] for index in (indices if units == "layers" else set(indices)))
    seconds = cost.seconds + passes / FORWARD_EFFICIENCY / matmul_rate()
    hidden = 4 * len(set(indices)) * held_out * network.config.hidden_size
    changed = 4 * sum(layer.weight.numel() for layer in chosen)
    return Cost(seconds, cost.memory + hidden + changed, cost.model_memory, len(chosen))


def sweeps_of(methods: Sequence[str], grid: Grid | None = None) -> float:
    """The work of these methods in sweeps, for `estimate_cost`; with a grid they round what they keep."""
    return sum(each.work + (ROUNDING_WORK[each.sweeps] if grid else 0) for each in map(get_method, methods))


def statistics_groups(layers: Sequence[PrunableLayer]) -> list[int]:
    """Input widths of the Hessians that a calibration accumulates.

    Layers of one module with equally many columns are assumed to share their input (q/k/v, gate/up): right for the
    known families, an estimate for others.
    """
    groups = {(x.block_index, x.projection.rpartition(".")[0], x.weight.shape[1], is_output(x)) for x in layers}
    return [columns for _, _, columns, _ in groups]


def statistics_by_kind(layers: Sequence[PrunableLayer]) -> tuple[list[int], list[int]]:
    """`statistics_groups` of layers that every token visits, and of experts."""
    plain, routed = ([layer for layer in layers if layer.is_expert == is_expert] for is_expert in (False, True))
    return statistics_groups(plain), statistics_groups(routed)


def expert_share(model: nn.Module, layers: Sequence[PrunableLayer]) -> float:
    """The share of its experts that a token visits; 1 without experts, or if the configuration does not say."""
    number = max((len(layer.module.fused) for layer in layers if isinstance(layer.module, ExpertLinear)), default=1)
    visited = getattr(text_config(model), "num_experts_per_tok", None) or number
    return min(visited, number) / number


def is_output(layer: PrunableLayer) -> bool:
    """Whether the layer is an output projection, which reads what its module made, not what it was given."""
    last = layer.projection.rpartition(".")[2].lower()
    return last.startswith(OUTPUTS) and "h_to_4h" not in last


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
