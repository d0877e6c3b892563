"""Walks two models of one shape side by side: the inputs of each layer in both, and the drift of hidden states.

If heads were rotated before pruning, values and output projection have another basis than in the dense model, with
equal outputs (see `rose.layer.basis`). The dense block is then rotated, too. R of a group of heads is the rotation that
brings RᵀW_v and W_o R nearest to the kept weights (orthogonal Procrustes, Schönemann 1966). Removed weights are filled
in by the last R, so they have no influence. R is accepted if kept weights agree only with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rose.layer.statistics import InputStatistics
from rose.layer.target import InputGap, OutputGap
from rose.model.check.change import UNLIKE
from rose.model.network.experts import experts_apart
from rose.model.network.heads import ValueHeads, twin_of
from rose.model.network.layers import PrunableLayer, head_width
from rose.model.network.network import Network
from rose.model.network.precision import FLOAT32, Precision
from rose.model.network.residual import Writer
from rose.model.network.stand_ins import hooked
from rose.model.walk.forward import Arguments, check_blocks, record_inputs, run_block, writer_trace
from rose.model.walk.storage import token_drift
from rose.model.walk.targets import BatchKey, BlockTargets

CALIBRATION = "calibration"  # the stream on which methods are tried
SAMPLE = 4096  # sampled weights that show whether a layer is another layer's
BELIEVED = 2 * UNLIKE  # cosine above which kept weights agree with the rotated dense weights
FILLED = 40  # times that removed weights are filled in; at 70 % each leaves 0.7 of the error
Pair = tuple[PrunableLayer, PrunableLayer]  # of the dense model and of the other one


@dataclass(frozen=True)
class Aligned:
    """A dense decoder block in the basis of the other model's block."""

    module: nn.Module  # a copy that shares all parameters that were not rotated
    pairs: list[Pair]  # its layers beside the other block's
    outputs: tuple[str, ...]  # names of the output projections whose heads were rotated
    layers: tuple[str, ...]  # names of these projections and of their value layers


@dataclass
class LayerInputs:
    """The inputs of a layer; layers that read the same tensors share their statistics."""

    statistics: InputStatistics  # of the inputs in the other model, X_p
    gap: InputGap  # from these inputs to the inputs in the dense model
    stream: OutputGap | None = None  # of a layer that writes into the residual stream, with the stream's lack
    # Inputs in the other model while the decoder block is still dense. Published programs calibrate on them. None if
    # these are the same, or not requested.
    unpruned: InputStatistics | None = None

    @property
    def dense_hessian(self) -> Tensor:
        """X_dᵀX_d = (X_p + D)ᵀ(X_p + D), (in, in)."""
        cross = self.gap.cross
        return self.statistics.hessian + cross + cross.T + self.gap.difference.hessian


@dataclass
class BlockInputs:
    """One decoder block of both models, in memory only while the caller has it."""

    index: int
    modules: tuple[nn.Module, nn.Module]  # of the dense model and of the other one
    pairs: list[Pair]
    # By stream ("calibration", "held_out") and layer; without experts, whose tokens differ by model.
    inputs: dict[str, dict[str, LayerInputs]] = field(default_factory=dict)
    # Of the residual stream after it: the mean of ‖h_p − h_d‖²/‖h_d‖² over held-out tokens, or calibration tokens where
    # none are held out; None without tokens.
    drift: float | None = None
    # Where heads were rotated before pruning; the dense block and its layers are then copies.
    aligned: Aligned | None = None


def walk_both(
    networks: tuple[Network, Network],
    pairs: Sequence[Pair],
    streams: Mapping[str, Tensor],
    precision: Precision = FLOAT32,
    tick: Callable[[int, float], None] = lambda _index, _share: None,
) -> Iterator[BlockInputs]:
    """Decoder block by decoder block, with both models' weights in memory; nothing is run without streams.

    Args:
        networks: the dense model and the other one.
        pairs: layers of the same name.
        streams: tokens, (samples, length), by name.
        precision: of forward passes, and of the products in gaps.
        tick: called with the decoder block and the share of its work that is done; the passes are half of it.
    """
    device = networks[0].device
    passes = _Passes(networks, streams, precision, tick) if streams else None
    for index in range(max(layer.block_index for layer, _ in pairs) + 1):
        with networks[0].residence.visit(index, device) as dense, networks[1].residence.visit(index, device) as other:
            block = BlockInputs(index, (dense, other), [pair for pair in pairs if pair[0].block_index == index])
            if aligned := align(dense, block.pairs, head_width(networks[0].config)):
                block = BlockInputs(index, (aligned.module, other), aligned.pairs, aligned=aligned)
            if passes:
                passes.run(block)
            yield block


class _Passes:
    """The hidden states of both models, which go from decoder block to decoder block."""

    def __init__(
        self,
        networks: tuple[Network, Network],
        streams: Mapping[str, Tensor],
        precision: Precision,
        tick: Callable[[int, float], None],
    ) -> None:
        self.device, self.precision, self.tick = networks[0].device, precision, tick
        # States by stream, model (dense, then the other) and batch; arguments also by decoder block.
        self.states: dict[str, list[list[Tensor]]] = {stream: [[], []] for stream in streams}
        self.arguments: dict[str, list[list[list[Arguments]]]] = {}
        first = next(iter(streams.values()))
        outputs = [check_blocks(network, first) for network in networks]
        self.trace = writer_trace(networks[0], first, outputs[0])
        for stream, tokens in streams.items():
            models = zip(networks, outputs, self.states[stream], strict=True)
            self.arguments[stream] = [
                record_inputs(network, tokens, output, states.insert) for network, output, states in models
            ]

    @torch.no_grad()
    def run(self, block: BlockInputs) -> None:
        """Runs one decoder block of both models on all batches, and gathers the inputs of its layers."""
        dense, other = block.modules
        with experts_apart(dense), experts_apart(other):
            writers = self.trace(block.index, dense)
            for stream in self.states:
                lost = _Lost(block.modules, block.pairs, writers, self.precision.products)
                reading = _PairReading(block.pairs, self.device, self.precision.products, lost)
                with closing(lost), hooked(reading.hooks()):
                    drifts = self._run_stream(block, stream, reading, lost)
                block.inputs[stream] = reading.result()
                block.drift = float(torch.cat(drifts).mean())  # of the last stream, which is held out if any is

    def _run_stream(self, block: BlockInputs, stream: str, reading: _PairReading, lost: _Lost) -> list[Tensor]:
        """The drift of each token, by batch."""
        dense, other = block.modules
        states, drifts = self.states[stream], []
        for batch, (before, after) in enumerate(zip(*states, strict=True)):
            dense_arguments, arguments = (by_block[block.index][batch] for by_block in self.arguments[stream])
            if stream == CALIBRATION:
                run_block(dense, after, arguments, self.device, self.precision)
                reading.end_unpruned()
            with lost.before(before, after):
                dense_output = run_block(dense, before, dense_arguments, self.device, self.precision)
            output = run_block(other, after, arguments, self.device, self.precision)
            reading.end_batch()
            for by_batch, hidden in zip(states, (dense_output, output), strict=True):
                by_batch[batch] = hidden.to(before.device)
            drifts.append(token_drift(output, dense_output))
            self.tick(block.index, 0.5 * (batch + 1) / len(states[0]))
        return drifts


class _Lost:
    """The loss of the residual stream against the dense stream, summed over batches in one decoder block. Runs towards
    the dense model prune the layers that write into the stream to repair this loss."""

    KEY: BatchKey = ("", 0)

    def __init__(
        self,
        modules: tuple[nn.Module, nn.Module],
        pairs: Sequence[Pair],
        writers: Mapping[str, Writer],
        products: torch.dtype,
    ) -> None:
        writing = [pair for pair in pairs if pair[0].projection in writers and not pair[0].is_expert]
        self.layers = [layer for layer, _ in writing]
        self.dense, self.other = (
            BlockTargets(module, [pair[number] for pair in writing], writers, products)
            for number, module in enumerate(modules)
        )
        self.dense.pruned = self.other.pruned
        self.other.watch_pruned(lambda: self.KEY)
        self.gaps: dict[str, OutputGap] = {}

    @contextmanager
    def before(self, dense: Tensor, other: Tensor) -> Iterator[None]:
        """A context in which the dense block runs on a batch of its hidden states; the other block runs next."""
        self.other.enter(self.KEY, other)
        with self.dense.watch_dense(*self.KEY, dense):
            yield
        self.other.enter(self.KEY, other)

    def end_batch(self, read: Mapping[str, Tensor]) -> None:
        """Adds a batch; `read` has its inputs in the other model."""
        for layer in self.layers:
            gap = self.dense.gap(layer, {self.KEY: (read[layer.name], None)}) if layer.name in read else None
            if isinstance(gap, OutputGap) and (sums := self.gaps.setdefault(layer.name, gap)) is not gap:
                sums.cross.add_(gap.cross)
                sums.square.add_(gap.square)
                sums.total.add_(gap.total)
        self.dense.dense.clear()

    def close(self) -> None:
        self.dense.close()
        self.other.close()


class _PairReading:
    """Watches the layers of one decoder block in both models. Layers that read one tensor share its statistics."""

    def __init__(self, pairs: Sequence[Pair], device: torch.device, products: torch.dtype, lost: _Lost) -> None:
        self.pairs = [pair for pair in pairs if not pair[0].is_expert]
        self.device, self.products, self.lost = device, products, lost
        self._sums: dict[str, tuple[InputStatistics, InputGap]] = {}  # by layer, of the inputs so far
        self._unpruned: dict[str, InputStatistics] = {}
        self._read: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})  # by layer, in this batch, of both models

    def hooks(self) -> list[RemovableHandle]:
        """Hooks on both layers of each pair that record their inputs."""
        return [
            layer.module.register_forward_pre_hook(partial(_note, read, layer.name))
            for pair in self.pairs
            for layer, read in zip(pair, self._read, strict=True)
        ]

    @torch.no_grad()
    def end_unpruned(self) -> None:
        """Counts the inputs of the dense block's layers on the other model's hidden states."""
        read = self._read[0]
        for readers in _by_tensor(read, read):
            inputs = read[readers[0]]
            statistics = self._unpruned.get(readers[0]) or InputStatistics(inputs.shape[-1], self.device)
            statistics.update(inputs)
            self._unpruned |= dict.fromkeys(readers, statistics)
        read.clear()

    def result(self) -> dict[str, LayerInputs]:
        """The inputs of each layer after all batches."""
        inputs: dict[str, LayerInputs] = {}
        for name, (statistics, gap) in self._sums.items():
            unpruned = self._unpruned.get(name)
            is_other = unpruned is not None and not torch.equal(unpruned.hessian, statistics.hessian)
            inputs[name] = LayerInputs(statistics, gap, self.lost.gaps.get(name), unpruned if is_other else None)
        return inputs

    @torch.no_grad()
    def end_batch(self) -> None:
        """Counts the inputs of the batch."""
        dense, other = self._read
        both = [name for name in other if name in dense and dense[name].shape == other[name].shape]
        for readers in _by_tensor(both, dense, other):
            before, after = dense[readers[0]], other[readers[0]]
            columns = after.shape[-1]
            statistics, gap = self._sums.get(readers[0]) or (
                InputStatistics(columns, self.device),
                InputGap(columns, self.device, self.products),
            )
            statistics.update(after)
            gap.update(after, before)
            self._sums |= dict.fromkeys(readers, (statistics, gap))
        self.lost.end_batch(other)
        dense.clear()
        other.clear()


def _by_tensor(layers: Iterable[str], *read: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Layers that read one tensor in each of these passes, together."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for layer in layers:
        groups.setdefault(tuple(id(inputs[layer]) for inputs in read), []).append(layer)
    yield from groups.values()


def _note(read: dict[str, Tensor], name: str, _module: nn.Module, args: tuple) -> None:
    read[name] = args[0]  # the tensor itself: layers that read the same tensor share it


def sample(weight: Tensor) -> Tensor:
    """Some weights, always from the same places of a shape; float32 on the CPU."""
    flat = weight.reshape(-1)
    places = torch.linspace(0, len(flat) - 1, min(SAMPLE, len(flat)), dtype=torch.float64).long()
    return torch.nan_to_num(flat[places.to(flat.device)].float().cpu())


@torch.no_grad()
def align(block: nn.Module, pairs: Sequence[Pair], width: int | None) -> Aligned | None:
    """The dense block with its heads rotated as in the other one; None where none were. `width`: columns of a head."""
    plain = [pair for pair in pairs if not pair[0].is_expert]
    strange = set()  # layers whose kept weights are unlike the dense weights
    for before, after in plain:
        dense, pruned = sample(before.weight), sample(after.weight)
        if float(_cosine(dense, pruned)) < UNLIKE and pruned.any():
            strange.add(before.name)
    if not width or len(strange) == len(plain):
        return None  # another model's block: a rotation leaves all but values and outputs as they were
    rotated: list[tuple[ValueHeads, Tensor]] = []
    for values, output in combinations(plain, 2):  # in the order of modules
        if output[0].name in strange and (heads := _heads(output, values, width)) is not None:
            rotations = _rotations(heads, output[1].weight, values[1].weight)
            if rotations is not None:
                rotated.append((heads, rotations))
                strange.remove(output[0].name)
    if not rotated:
        return None
    twin = twin_of(block)
    for heads, rotations in rotated:
        heads.rotate_in(twin, rotations)
    copies = {id(pair[0]): replace(pair[0], module=twin.get_submodule(pair[0].projection)) for pair in plain}
    outputs = tuple(heads.output.name for heads, _ in rotated)
    layers = (*outputs, *(heads.values.name for heads, _ in rotated))
    return Aligned(twin, [(copies.get(id(before), before), after) for before, after in pairs], outputs, layers)


def _cosine(dense: Tensor, pruned: Tensor, dim: int = 0) -> Tensor:
    """Of the nonzeros of `pruned` with the dense weights there."""
    return torch.cosine_similarity(torch.where(pruned == 0, 0, dense), pruned, dim=dim)


def _heads(output: Pair, values: Pair, width: int) -> ValueHeads | None:
    """The heads of an output projection, if values are those rows of the other layer that look strange; else None."""
    before, after = (layer.weight.float() for layer in values)
    if output[0].weight.shape[1] % width or len(before) % width:
        return None
    alike = _cosine(before.reshape(len(before) // width, -1), after.reshape(len(after) // width, -1), dim=1)
    starts = [width * int(group) for group in (alike < BELIEVED).nonzero()]
    count = output[0].weight.shape[1] // width
    if not starts or count % len(starts):
        return None
    return ValueHeads(output[0], values[0], width, tuple(starts[head * len(starts) // count] for head in range(count)))


def _rotations(heads: ValueHeads, output: Tensor, values: Tensor) -> Tensor | None:
    """R of each group of heads, (groups, width, width) float64; None where no rotation explains the pruned weights."""
    layout, width = heads.layout, heads.width
    rows = torch.cat([torch.arange(start, start + width) for start in sorted(set(heads.rows))])
    group = torch.tensor(layout.group)

    def by_group(of_output: Tensor, of_values: Tensor) -> Tensor:
        """All that R turns, (groups, vectors, width): a group's rows of values as columns, and its heads' columns."""
        columns = of_output.double().unflatten(1, (-1, width)).permute(1, 0, 2)  # (heads, out, width)
        joined = [columns[group == number].flatten(0, 1) for number in range(layout.groups)]
        turned = of_values.double()[rows.to(of_values.device)].unflatten(0, (-1, width)).mT
        return torch.stack([torch.cat(parts) for parts in zip(turned, joined, strict=True)])

    dense, pruned = by_group(heads.output.weight, heads.values.weight), by_group(output, values)
    if not pruned.isfinite().all():
        return None
    removed, filled = pruned == 0, pruned
    for step in range(FILLED):
        first, _, second = torch.linalg.svd(dense.mT @ filled)
        rotations = first @ second
        turned = dense @ rotations
        if step == 0 and float(_cosine(turned.flatten(), pruned.flatten())) < UNLIKE:
            return None
        filled = torch.where(removed, turned, pruned)
    return rotations if float(_cosine(turned.flatten(), pruned.flatten())) >= BELIEVED else None
