"""A walk over the decoder blocks of a model that gathers statistics of what its layers read.

Only one decoder block is on the device at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rose.errors import RoseError
from rose.layer.statistics import InputStatistics
from rose.layer.target import InputGap, OutputGap
from rose.model.network.experts import experts_apart
from rose.model.network.layers import PrunableLayer, prunable_layers, select_layers
from rose.model.network.precision import decided, rounding
from rose.model.network.residence import residence_of
from rose.model.network.residual import find_writers
from rose.model.progress import Meter, ProgressCallback
from rose.model.run.checkpoint import Storage, blocks_of
from rose.model.walk.dense_states import HELD_OUT, BlockDrift, DenseStreams, Watch
from rose.model.walk.forward import (
    Arguments,
    check_blocks,
    check_tokens,
    no_input,
    pick_device,
    record_inputs,
    run_block,
    split_batches,
    version_of,
)
from rose.model.walk.hidden_states import Activations
from rose.model.walk.targets import BlockTargets
from rose.model.workers import from_first, my_samples, sum_statistics

TRACED_TOKENS = 8  # enough to see which layers write into the residual stream
LEAVE_OUT = "leave this layer out"  # what every caller can do about a layer that cannot be calibrated


@dataclass(frozen=True)
class BlockStatistics:
    """What calibration knows of one decoder block's chosen layers.

    Attributes:
        block_index: which decoder block.
        layers: its chosen layers.
        calibration, held_out: statistics by layer name; layers that read one tensor share one object.
            `held_out` is empty where no held-out tokens were given.
        work: fraction of the decoder block's work done before and after these layers are pruned.
        gaps: by stream and layer name, how far the layer is from its dense target, where that is asked for and known.
    """

    block_index: int
    layers: list[PrunableLayer]
    calibration: dict[str, InputStatistics]
    held_out: dict[str, InputStatistics] = field(default_factory=dict)
    work: tuple[float, float] = (0.45, 0.55)
    gaps: dict[str, dict[str, InputGap | OutputGap]] = field(default_factory=dict)

    def to(self, device: torch.device) -> BlockStatistics:
        """The same with statistics on a device; layers that share an object share the moved one."""
        moved: dict[int, InputStatistics] = {}

        def move(found: dict[str, InputStatistics]) -> dict[str, InputStatistics]:
            return {name: moved.setdefault(id(one), one.to(device)) for name, one in found.items()}

        return replace(self, calibration=move(self.calibration), held_out=move(self.held_out))


@dataclass(eq=False)
class _Reading:
    """A tensor that layers have read in the batch under way, and the version of its content that they read."""

    inputs: Tensor
    version: int
    readers: list[str]


@dataclass(eq=False)
class _Group:
    """Layers that have read the same tensors in every batch so far."""

    layers: list[str]
    statistics: InputStatistics


class Collector:
    """Forward hooks that gather the inputs of some layers; layers that read the same tensors share statistics.

    Inputs are counted at the end of each batch, when all readers of a tensor are known: routed experts may read the
    router's own tensor in one batch and not in the next. A group whose layers no longer read the same is split.
    `weight` is that of the inputs that come next, see `InputStatistics.update`; `remedy` is what the caller can do
    about an input that cannot be counted.
    """

    def __init__(self, layers: list[PrunableLayer], device: torch.device, remedy: str = LEAVE_OUT) -> None:
        self.device, self.remedy = device, remedy
        self.weight = 1.0
        self.groups: list[_Group] = []
        self.readings: list[_Reading] = []
        self.hooks = [layer.module.register_forward_pre_hook(self._hook(layer.name)) for layer in layers]

    def _hook(self, name: str) -> Callable[..., None]:
        def seen(_module: nn.Module, args: tuple) -> None:
            inputs = args[0]
            version = version_of(inputs)
            for reading in self.readings:
                # A layer called twice on one tensor has read it twice.
                if reading.inputs is inputs and reading.version == version and name not in reading.readers:
                    reading.readers.append(name)
                    return
            self.readings.append(_Reading(inputs, version, [name]))

        return seen

    def end_batch(self) -> None:
        """Counts what was read since the last call.

        Raises:
            RoseError: a layer's input was overwritten before the decoder block ended.
        """
        for reading in self.readings:
            if version_of(reading.inputs) != reading.version:
                raise RoseError(
                    f"The model overwrites the input of {reading.readers[0]} in place after reading it, so that it "
                    f"cannot be counted; {self.remedy}."
                )
            for group in self._readers(reading):
                group.statistics.update(reading.inputs, self.weight)
        self.readings.clear()

    def _readers(self, reading: _Reading) -> list[_Group]:
        """The groups that together are a tensor's readers, after splitting those of which only some layers are."""
        found: list[_Group] = []
        for group in self.groups:
            readers = [name for name in group.layers if name in reading.readers]
            if readers == group.layers:
                found.append(group)
            elif readers:
                group.layers = [name for name in group.layers if name not in readers]
                found.append(_Group(readers, deepcopy(group.statistics)))
        known = {name for group in (*self.groups, *found) for name in group.layers}
        unseen = [name for name in reading.readers if name not in known]
        if unseen:
            found.append(_Group(unseen, InputStatistics(reading.inputs.shape[-1], self.device)))
        self.groups += [group for group in found if group not in self.groups]
        return found

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.readings.clear()

    def result(self) -> dict[str, InputStatistics]:
        return {name: group.statistics for group in self.groups for name in group.layers}


@dataclass
class Walk:
    """Visits the decoder blocks of one model; see `visit_blocks`.

    Attributes:
        by_block: chosen layers of each decoder block.
        arguments: by stream ("calibration", "held_out"): [block][batch] -> arguments besides the hidden states.
        activations: the hidden states.
        first: the decoder block whose inputs `activations` has.
        done: blocks below this one are pruned already and are only run.
        dense: hidden states of the dense model beside them, where they are needed.
        drifted: takes the drift after each decoder block.
        compute: the format of forward passes, see `run_block`.
        products: the format in which gaps to dense targets are multiplied.
        remedy: what the caller can do about a layer that this walk cannot calibrate.
        few: by decoder block, arguments of a pass over a few tokens, and those tokens' hidden states; given where
            targets are dense.
    """

    model: nn.Module
    device: torch.device
    meter: Meter
    by_block: dict[int, list[PrunableLayer]]
    arguments: dict[str, list[list[Arguments]]]
    activations: Activations
    first: int = 0
    done: int = 0
    dense: DenseStreams | None = None
    drifted: Callable[[BlockDrift], None] = field(default=lambda _drift: None)
    few: tuple[list[list[Arguments]], Tensor] | None = None
    compute: torch.dtype | None = None
    products: torch.dtype = torch.float32
    remedy: str = LEAVE_OUT

    def visit(self, propagate_again: bool) -> Iterator[BlockStatistics]:
        residence, last = residence_of(self.model), max(self.by_block)
        for index in range(self.first, last + 1):
            with residence.visit(index, self.device) as block, experts_apart(block):
                layers = self.by_block.get(index, []) if index >= self.done else []
                # A pruned block must run twice: once to see its inputs, once to pass on what it now puts out.
                twice = propagate_again and bool(layers)
                if twice:
                    self.run_dense(block, index)
                else:
                    self.follow_dense(block, index)
                end = 0.45 if twice else 0.95
                found = {
                    stream: self._pass(stream, block, index, layers, "calibrate", start, end, keep=not twice)
                    for stream, start in self._starts(0.0, end)
                }
                if layers:
                    yield BlockStatistics(index, layers, found["calibration"], found.get("held_out", {}))
                if twice:
                    self.pass_on(block, index, 0.55)
                self.leave(index)

    def visit_dense(self) -> Iterator[BlockStatistics]:
        """Visits without pruning; tells of every layer visited, and of the end."""
        for block in self.visit(propagate_again=False):
            yield block
            self.meter.layers_done += len(block.layers)
        self.meter.tell("done", max(self.by_block), 1.0)

    def pass_on(self, block: nn.Module, index: int, start: float = 0.0) -> None:
        """Runs one block over all streams and keeps its outputs; `start`: share of the block's work before.

        After the last block only drift needs the outputs, those of held-out tokens.
        """
        for stream, begin in self._starts(start, 1.0):
            if index < max(self.by_block) or (stream == HELD_OUT and self.dense):
                self._pass(stream, block, index, [], "propagate", begin, 1.0, keep=True)

    def targets_of(self, index: int, block: nn.Module, layers: Sequence[PrunableLayer]) -> BlockTargets | None:
        """The dense targets of a decoder block, where targets are dense."""
        if self.few is None:
            return None
        arguments, hidden = self.few
        hidden = hidden.clone().to(self.device)
        run = partial(run_block, block, hidden, arguments[index][0], self.device)
        # What layers that are not pruned add to the stream belongs to it all the same.
        every = [layer for layer in prunable_layers(self.model) if layer.block_index == index]
        return BlockTargets(block, layers, find_writers(block, every, run, hidden), self.products)

    def run_dense(self, block: nn.Module, index: int, watch: Watch | None = None) -> None:
        """Runs a block that is still dense on the dense hidden states, where there are any; see `DenseStreams.run`."""
        if self.dense:
            batches = {stream: len(arguments[index]) for stream, arguments in self.arguments.items()}
            self.dense.begin(index, self.activations, batches)
            more: dict[str, Any] = {"watch": watch} if watch else {}
            self.dense.run(block, index, self.activations, self.arguments, self.device, compute=self.compute, **more)

    def follow_dense(self, block: nn.Module, index: int) -> None:
        """Runs a block that loses nothing on the dense hidden states, where they differ from the pruned ones.

        Blocks that an earlier run has pruned are not dense any more; the dense hidden states are behind them already.
        """
        if self.dense and self.dense.position == index:
            self.run_dense(block, index)

    def put_out(self, stream: str, batch: int, index: int, output: Tensor) -> None:
        """Keeps what a block puts out for one batch, for the next one and for drift."""
        if index < max(self.by_block):
            self.activations.write(stream, batch, output)
        if self.dense:
            self.dense.compare(stream, batch, index, output)

    def leave(self, index: int) -> None:
        """All batches have left a block."""
        drift = self.dense.block_drift(index, self.device) if self.dense else None
        if drift:
            self.drifted(drift)
        if index < max(self.by_block):
            self.activations.advance(index + 1)

    def _starts(self, start: float, end: float) -> list[tuple[str, float]]:
        """Each stream with the share of the block's work that is done before it; held-out samples are few."""
        return [(stream, start if stream == "calibration" else end) for stream in self.arguments]

    @torch.no_grad()
    def _pass(
        self,
        stream: str,
        block: nn.Module,
        index: int,
        layers: list[PrunableLayer],
        stage: str,
        start: float,
        end: float,
        keep: bool,
    ) -> dict[str, InputStatistics]:
        """Runs one block over all batches of a stream, and keeps its outputs where asked to.

        `start`, `end`: share of the block's work before and after.
        """
        collector = Collector(layers, self.device, self.remedy)
        batches = self.arguments[stream][index]
        try:
            for batch, arguments in enumerate(batches):
                hidden = self.activations.read(stream, batch)
                output = run_block(block, hidden, arguments, self.device, self.compute)
                collector.end_batch()
                if keep:
                    self.put_out(stream, batch, index, output.to(hidden.device))
                self.meter.tell(stage, index, start + (end - start) * (batch + 1) / len(batches))
        finally:
            collector.close()
        found = collector.result()
        sum_statistics(found, routed=[layer.name for layer in layers if layer.is_expert])
        return found


def check_streams(model: nn.Module, tokens: Tensor, held_out: Tensor | None) -> dict[str, Tensor]:
    """This process's part of the tokens, by stream.

    Raises:
        RoseError: tokens that do not fit the model, or fewer samples than processes.
    """
    streams = {"calibration": tokens} | ({} if held_out is None else {"held_out": held_out})
    for samples in streams.values():
        check_tokens(model, samples)
    return {stream: my_samples(samples, stream.replace("_", "-")) for stream, samples in streams.items()}


def statistics_of(layer: PrunableLayer, found: Mapping[str, InputStatistics]) -> InputStatistics:
    """What calibration knows of this layer's input.

    Raises:
        RoseError: it received none.
    """
    if layer.name not in found:
        raise no_input(layer.name)
    return found[layer.name]


def start_walk(
    model: nn.Module,
    streams: Mapping[str, Tensor],
    layers: Sequence[PrunableLayer],
    progress: ProgressCallback | None,
    kept: Storage | None = None,
    dense: DenseStreams | None = None,
    compute: torch.dtype | None = None,
    products: torch.dtype = torch.float32,
    needs_all: bool = False,
) -> Walk:
    """Records the inputs of the first decoder block, or resumes from a checkpoint.

    `streams`: as from `check_streams`; `layers`: as from `select_layers`; `dense`: the hidden states of the dense model
    that travel along, if any do; `compute`, `products`: see `Walk`; `needs_all`: refuses layers that the model does not
    call, before any work.
    """
    kept = kept or Storage()
    by_block = blocks_of(layers)
    blocks = max(by_block) + 1
    meter = Meter(progress, blocks, len(layers))
    meter.layers_done = sum(len(found) for index, found in by_block.items() if index < kept.done)
    walk = Walk(model, pick_device(), meter, by_block, {}, kept.activations, blocks, kept.done, dense, kept.add_drift)
    walk.compute, walk.products = compute, products
    if dense and kept.done:
        dense.position = kept.newest
    if kept.done >= blocks and not (dense and HELD_OUT in dense.names and blocks - 1 not in kept.drifts):
        return walk  # nothing is left to visit
    first = kept.start({stream: len(split_batches(samples)) for stream, samples in streams.items()})
    walk.first = first or 0
    meter.before = walk.first / blocks
    outputs = check_blocks(model, next(iter(streams.values())), layers if needs_all else ())
    for stream, samples in streams.items():
        write = partial(kept.activations.write, stream) if first is None else _drop
        tick = partial(meter.tell, "embed", walk.first, 0.0)
        walk.arguments[stream] = record_inputs(model, samples, write, tick, outputs)
    if first is None:
        kept.activations.advance(0)
    if dense and "calibration" in dense.names:
        few: list[Tensor] = []
        sample = streams["calibration"][:1, :TRACED_TOKENS]
        arguments = record_inputs(model, sample, lambda _batch, hidden: few.append(hidden), outputs=outputs)
        walk.few = arguments, few[0]
    return walk


def _drop(_batch: int, _hidden: Tensor) -> None:
    """Discards embedded tokens: a resumed run starts at a later block."""


def visit_blocks(
    model: nn.Module,
    tokens: Tensor,
    *,
    layers: Sequence[str] | None = None,
    held_out: Tensor | None = None,
    compute: str = "float32",
    progress: ProgressCallback | None = None,
) -> Iterator[BlockStatistics]:
    """Statistics of the dense model's layers, one decoder block after another; the model is not changed.

    Memory holds one decoder block's statistics at a time, so that any number of layers can be analyzed.
    Arguments as for `prune_model`.
    """
    streams, selected = check_streams(model, tokens, held_out), select_layers(model, layers)
    dtype = rounding(from_first(partial(decided, compute, model, pick_device())), model, pick_device())
    yield from start_walk(model, streams, selected, progress, compute=dtype).visit_dense()


def collect_statistics(
    model: nn.Module,
    tokens: Tensor,
    *,
    layers: Sequence[str] | None = None,
    progress: ProgressCallback | None = None,
) -> dict[str, InputStatistics]:
    """Statistics of chosen layers of the dense model, by layer name; stops after the last block needed.

    Args:
        model: a transformers causal language model; not changed.
        tokens: (samples, length) int64.
        layers: names, `*` allowed; None means every prunable layer.

    Raises:
        RoseError: an unknown layer, or tokens that do not fit the model.
    """
    home = next(model.parameters()).device  # where the weights will be found afterwards
    found: dict[str, InputStatistics] = {}
    for block in visit_blocks(model, tokens, layers=layers, progress=progress):
        found.update(block.to(home if home.type != "meta" else torch.device("cpu")).calibration)
    return found


@torch.no_grad()
def visit_inputs(
    model: nn.Module,
    tokens: Tensor,
    layer: str,
    visit: Callable[[Tensor], Any],
    progress: ProgressCallback | None = None,
) -> None:
    """Passes what one layer of the dense model reads to a callback, batch by batch; memory holds one batch of it.

    Args:
        visit: called with (tokens of the batch, in) float32 on the CPU, samples in order; may raise to stop.
        progress: as for `prune_model`.

    Raises:
        RoseError: no layer, or several, by this name.
    """
    chosen = select_layers(model, [layer])
    if len(chosen) != 1:
        raise RoseError(f"{layer!r} names {len(chosen)} layers; name exactly one.")
    walk = start_walk(model, check_streams(model, tokens, None), chosen, progress)
    walk.by_block = {chosen[0].block_index: []}  # no layer's statistics are wanted
    hook = chosen[0].module.register_forward_pre_hook(lambda _m, args: visit(args[0].flatten(0, -2).float().cpu()))
    try:
        for _ in walk.visit(propagate_again=False):
            pass
    finally:
        hook.remove()
