"""A walk over the decoder blocks of a model that gathers statistics of layers' inputs, with one block on the device.

Dense and pruned hidden states pass the decoder blocks together. A block runs on the dense ones while its weights are
still dense, so no second copy of the model is needed. Held-out tokens also show where drift arises: see `BlockDrift`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
from rose.model.network.layers import PrunableLayer, by_block
from rose.model.network.network import Network
from rose.model.network.precision import FLOAT32, Precision
from rose.model.network.residual import Writer
from rose.model.network.stand_ins import hooked
from rose.model.progress import Meter, ProgressCallback
from rose.model.walk.forward import (
    Arguments,
    check_blocks,
    no_input,
    record_inputs,
    run_block,
    version_of,
    writer_trace,
)
from rose.model.walk.storage import HELD_OUT, PASSED_ON, BlockDrift, Storage, lay_over, token_drift
from rose.model.workers import Workers

Watch = Callable[[str, int, Tensor], AbstractContextManager[None]]
Note = Callable[[int, Mapping[str, Tensor]], None]
LEAVE_OUT = "leave this layer out"  # what every caller can do about a layer that cannot be calibrated


@dataclass(eq=False)
class _Reading:
    """A tensor of the current batch, the version of its content, and the layers that read it."""

    inputs: Tensor
    version: int
    readers: list[str]


@dataclass(eq=False)
class _Group:
    """Layers that have read the same tensors so far, and the statistics of these tensors."""

    layers: list[str]
    statistics: InputStatistics


class Collector:
    """Forward hooks that gather layers' inputs.

    Inputs are counted at the end of each batch, when all readers of a tensor are known. Routed experts may read the
    router's own tensor in one batch and not in the next. A group is split once its layers read different tensors. The
    caller removes the `hooks`. `weight` is the weight of the next inputs, see `InputStatistics.update`.
    """

    def __init__(self, layers: Sequence[PrunableLayer], device: torch.device, remedy: str = LEAVE_OUT) -> None:
        self.device, self.remedy = device, remedy
        self.weight = 1.0
        self.groups: list[_Group] = []
        self.readings: list[_Reading] = []
        self.hooks = [layer.module.register_forward_pre_hook(self._hook(layer.name)) for layer in layers]

    def _hook(self, name: str) -> Callable[..., None]:
        def note(_module: nn.Module, args: tuple) -> None:
            inputs, version = args[0], version_of(args[0])
            for reading in self.readings:
                # A layer called twice on one tensor has read it twice.
                if reading.inputs is inputs and reading.version == version and name not in reading.readers:
                    reading.readers.append(name)
                    return
            self.readings.append(_Reading(inputs, version, [name]))

        return note

    def end_batch(self) -> None:
        """Counts the inputs since the last call; raises RoseError for overwritten inputs."""
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
        """The groups that together hold a tensor's readers; a group that also has other layers is split."""
        groups: list[_Group] = []
        for group in self.groups:
            readers = [name for name in group.layers if name in reading.readers]
            if readers == group.layers:
                groups.append(group)
            elif readers:
                group.layers = [name for name in group.layers if name not in readers]
                groups.append(_Group(readers, deepcopy(group.statistics)))
        grouped = {name for group in (*self.groups, *groups) for name in group.layers}
        new = [name for name in reading.readers if name not in grouped]
        if new:
            groups.append(_Group(new, InputStatistics(reading.inputs.shape[-1], self.device)))
        self.groups += [group for group in groups if group not in self.groups]
        return groups

    def result(self) -> dict[str, InputStatistics]:
        return {name: group.statistics for group in self.groups for name in group.layers}


def statistics_of(layer: PrunableLayer, statistics: Mapping[str, InputStatistics]) -> InputStatistics:
    """The layer's statistics; raises RoseError if it received no input."""
    if layer.name not in statistics:
        raise no_input(layer.name)
    return statistics[layer.name]


TOKENS = {"calibration": "tokens", HELD_OUT: "held-out tokens"}  # names of the streams' tokens in messages


@dataclass(frozen=True)
class BlockStatistics:
    """Calibration statistics of some layers of one decoder block."""

    block_index: int
    layers: list[PrunableLayer]
    # calibration, held_out: statistics by layer name, shared by layers that read one tensor; `held_out` is empty
    # without held-out tokens
    calibration: dict[str, InputStatistics]
    held_out: dict[str, InputStatistics] = field(default_factory=dict)
    # fraction of the decoder block's work done before and after these layers are pruned
    work: tuple[float, float] = (0.45, 0.55)
    # by stream and layer name, the layer's gap to its dense target, if it has that target and the gap is known
    gaps: dict[str, dict[str, InputGap | OutputGap]] = field(default_factory=dict)
    products: torch.dtype = torch.float32  # number format of ADMM's products, see `Settings`

    def clear(self) -> None:
        """Drops all statistics, so that the walk does not hold them while it runs the next block."""
        for tensors in (self.calibration, self.held_out, self.gaps):
            tensors.clear()

    def to(self, device: torch.device) -> BlockStatistics:
        """A copy with statistics on a device; shared objects stay shared."""
        moved: dict[int, InputStatistics] = {}

        def move(statistics: dict[str, InputStatistics]) -> dict[str, InputStatistics]:
            return {name: moved.setdefault(id(each), each.to(device)) for name, each in statistics.items()}

        return replace(self, calibration=move(self.calibration), held_out=move(self.held_out))


@dataclass
class Walk:
    """Visits the decoder blocks of one model; see `visit_blocks`."""

    network: Network
    workers: Workers
    meter: Meter
    by_block: dict[int, list[PrunableLayer]]  # chosen layers of each decoder block
    storage: Storage  # hidden states and finished blocks; blocks below `storage.done` are only restored and run
    precision: Precision  # of forward passes, and of the products in gaps to dense targets
    # streams on which the dense model runs too: "held_out" for drift, "calibration" for dense targets
    along: tuple[str, ...]
    remedy: str  # for messages: what the user can do about a layer that this walk cannot calibrate
    note: Note  # takes a restored decoder block's index and stored tensors, before they are written
    first: int = 0  # the decoder block that the walk begins with
    # by stream: [block][batch] -> arguments besides the hidden states
    arguments: dict[str, list[list[Arguments]]] = field(default_factory=dict)
    # finds the layers that write into the residual stream, for dense targets
    trace: Callable[[int, nn.Module], dict[str, Writer]] | None = None
    # the decoder block whose inputs the dense hidden states are; None while both models are the same
    dense_at: int | None = None
    # sums of the three drifts over one block's held-out tokens, and their number; see `BlockDrift`
    drift_sums: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))

    @property
    def last(self) -> int:
        return max(self.by_block)

    def layers_of(self, index: int) -> list[PrunableLayer]:
        """The chosen layers of a decoder block; none if an earlier run has finished the block."""
        return self.by_block.get(index, []) if index >= self.storage.done else []

    @contextmanager
    def enter(self, index: int) -> Iterator[nn.Module]:
        """A context with one decoder block on the device; at its end all batches must have passed the block."""
        with self.network.residence.visit(index, self.network.device) as block, experts_apart(block):
            yield block
            if self._is_compared(index):
                sums = self.drift_sums.to(self.network.device)  # nccl only sums tensors on a GPU
                self.workers.sum_tensor(sums)
                self.storage.drifts[index] = BlockDrift(index, *(float(value) for value in sums[:3] / sums[3]))
                self.drift_sums.zero_()

    def run(self, block: nn.Module, hidden: Tensor, arguments: Arguments) -> Tensor:
        return run_block(block, hidden, arguments, self.network.device, self.precision)

    def visit(self, propagate_again: bool) -> Iterator[BlockStatistics]:
        """Statistics of each block's layers. `propagate_again`: the caller prunes the layers meanwhile, so each block
        runs twice: for statistics, and for its pruned output."""
        for index in range(self.first, self.last + 1):
            with self.enter(index) as block:
                layers = self.layers_of(index)
                twice = propagate_again and bool(layers)
                if twice:
                    self.run_dense(block, index)
                else:
                    self.follow_dense(block, index)
                work = (0.0, 0.45 if twice else 0.95)
                statistics = self._pass("calibrate", block, index, self.arguments, layers, work, keep=not twice)
                if layers:
                    held_out, products = statistics.get(HELD_OUT, {}), self.precision.products
                    yield BlockStatistics(index, layers, statistics["calibration"], held_out, products=products)
                if twice:
                    self.pass_on(block, index, 0.55)

    def visit_dense(self) -> Iterator[BlockStatistics]:
        """Visits without pruning, and reports progress after every layer and at the end."""
        for block in self.visit(propagate_again=False):
            yield block
            self.meter.layers_done += len(block.layers)
        self.meter.tell("done", self.last, 1.0)

    def pass_on(self, block: nn.Module, index: int, start: float = 0.0) -> None:
        """Runs one block over all streams and stores its outputs; `start`: the share of the block's work that is done.

        After the last block only drift needs outputs, on held-out tokens.
        """
        streams = [name for name in self.arguments if index < self.last or (name == HELD_OUT and self.along)]
        self._pass("propagate", block, index, streams, [], (start, 1.0), keep=True)

    @torch.no_grad()
    def run_dense(self, block: nn.Module, index: int, watch: Watch | None = None) -> None:
        """Runs a block, before it is pruned, on the dense hidden states, if there are any.

        `watch` is entered around the pass of each batch, with its stream, number and input.
        """
        dense, pruned = self.storage.dense_activations, self.storage.activations
        for stream in self.along if self.dense_at is None else ():  # until here both models are the same
            for batch in range(len(self.arguments[stream][index])):
                dense.write(stream, batch, pruned.read(stream, batch))
        for stream in self.along:
            for batch, arguments in enumerate(self.arguments[stream][index]):
                hidden = dense.read(stream, batch)
                with watch(stream, batch, hidden) if watch else nullcontext():
                    output = self.run(block, hidden, arguments)
                dense.write(stream, batch, output.to(hidden.device))
                if stream == HELD_OUT:
                    received = pruned.read(stream, batch)
                    dense.write(PASSED_ON, batch, self.run(block, received, arguments).to(received.device))
        self.dense_at = index + 1

    def follow_dense(self, block: nn.Module, index: int) -> None:
        """Runs a block without layers to prune on the dense hidden states, if they differ from the pruned states. Then
        restores its weights, if an earlier run has pruned them."""
        is_restored = index in self.by_block and index < self.storage.done
        if is_restored or self.dense_at == index:
            self.run_dense(block, index)
        if is_restored:
            self.restore(index)

    def restore(self, index: int) -> None:
        """Gives a decoder block the weights that an earlier run has stored."""
        self.storage.finished.add(index)
        tensors = self.storage.read(index)
        self.note(index, tensors)
        lay_over(self.by_block[index], tensors)
        self.meter.layers_done += len(self.by_block[index])

    def put_out(self, stream: str, batch: int, index: int, output: Tensor) -> None:
        if index < self.last:
            self.storage.activations.write(stream, batch, output)
        if stream != HELD_OUT or not self._is_compared(index):
            return
        pruned = output.double()
        dense, passed = (self.storage.dense_activations.read(name, batch).to(pruned) for name in (HELD_OUT, PASSED_ON))
        drifts = [token_drift(pruned, dense), token_drift(passed, dense), token_drift(pruned, passed, dense)]
        tokens = torch.tensor(float(drifts[0].numel()), dtype=torch.float64, device=pruned.device)
        self.drift_sums += torch.stack([*(each.sum() for each in drifts), tokens]).cpu()

    def _is_compared(self, index: int) -> bool:
        """Whether dense outputs of this decoder block on held-out tokens are stored."""
        return HELD_OUT in self.along and self.dense_at == index + 1

    @torch.no_grad()
    def _pass(
        self,
        stage: str,
        block: nn.Module,
        index: int,
        streams: Iterable[str],
        layers: list[PrunableLayer],
        work: tuple[float, float],
        keep: bool,
    ) -> dict[str, dict[str, InputStatistics]]:
        """Runs one block over all batches; returns statistics by stream, and stores its outputs if `keep`.

        `work`: share of the block's work done before and after. Held-out samples are few and do not count.
        """
        statistics = {}
        for stream in streams:
            start, end = work if stream == "calibration" else (work[1], work[1])
            collector, batches = Collector(layers, self.network.device, self.remedy), self.arguments[stream][index]
            with hooked(collector.hooks):
                for batch, arguments in enumerate(batches):
                    hidden = self.storage.activations.read(stream, batch)
                    output = self.run(block, hidden, arguments)
                    collector.end_batch()
                    if keep:
                        self.put_out(stream, batch, index, output.to(hidden.device))
                    self.meter.tell(stage, index, start + (end - start) * (batch + 1) / len(batches))
            statistics[stream] = collector.result()
            routed = [layer.name for layer in layers if layer.is_expert]
            self.workers.sum_statistics(statistics[stream], routed=routed)
        return statistics


def check_streams(network: Network, tokens: Tensor, held_out: Tensor | None) -> dict[str, Tensor]:
    """This process's share of the tokens, by stream; raises RoseError for tokens that do not fit the model."""
    streams = {"calibration": tokens} | ({} if held_out is None else {HELD_OUT: held_out})
    for stream, samples in streams.items():
        network.check_tokens(samples, name=TOKENS[stream])
    workers = Workers.here()
    return {stream: workers.my_samples(samples, stream.replace("_", "-")) for stream, samples in streams.items()}


def start_walk(
    network: Network,
    streams: Mapping[str, Tensor],
    layers: Sequence[PrunableLayer],
    progress: ProgressCallback | None = None,
    *,
    storage: Storage | None = None,
    has_dense_targets: bool | None = None,
    precision: Precision = FLOAT32,
    needs_all: bool = False,
    remedy: str = LEAVE_OUT,
    note: Note = lambda _index, _tensors: None,
) -> Walk:
    """Records the inputs of the first decoder block; restores all blocks at once if an earlier run is complete.

    `streams` as from `check_streams`; `storage`, `precision`, `remedy` and `note` as in `Walk`. The dense model runs
    too: on all streams for dense targets, on held-out tokens if `has_dense_targets` is False, and not at all by
    default. `needs_all` refuses layers that the model does not call, before any work.
    """
    storage, is_along = storage or Storage(), has_dense_targets is not None
    along = tuple(name for name in streams if has_dense_targets or (is_along and name == HELD_OUT))
    of_block = by_block(layers)
    blocks = max(of_block) + 1
    meter = Meter(progress, blocks, len(layers))
    walk = Walk(network, Workers.here(), meter, of_block, storage, precision, along, remedy, note)
    if storage.done >= blocks and (HELD_OUT not in along or blocks - 1 in storage.drifts):
        for index in of_block:
            walk.restore(index)
        walk.first = blocks
        return walk
    outputs = check_blocks(network, next(iter(streams.values())), layers if needs_all else ())
    for stream, samples in streams.items():
        write, tick = partial(storage.activations.write, stream), partial(meter.tell, "embed", 0, 0.0)
        walk.arguments[stream] = record_inputs(network, samples, outputs, write, tick)
    if "calibration" in along:
        walk.trace = writer_trace(network, streams["calibration"], outputs)
    return walk


def visit_blocks(
    model: nn.Module,
    tokens: Tensor,
    *,
    layers: Sequence[str] | None = None,
    held_out: Tensor | None = None,
    compute: str = "float32",
    progress: ProgressCallback | None = None,
) -> Generator[BlockStatistics, None, None]:
    """Statistics of the dense model's layers, one decoder block after another; the model is not changed.

    Memory holds one decoder block's statistics at a time. Arguments as for `prune_model`, checked at once; work begins
    with the first block. Between two steps the current block is on the device and in evaluation mode. A loop that ends
    early and keeps the iterator calls its `close()`, which puts the block back.
    """
    network = Network(model)
    streams, selected = check_streams(network, tokens, held_out), network.select(layers)
    precision = Workers.here().precision(compute, network)

    def visit() -> Generator[BlockStatistics, None, None]:
        yield from start_walk(network, streams, selected, progress, precision=precision).visit_dense()

    return visit()


def collect_statistics(
    model: nn.Module, tokens: Tensor, *, layers: Sequence[str] | None = None, progress: ProgressCallback | None = None
) -> dict[str, InputStatistics]:
    """Statistics of chosen layers of the dense model, by layer name; stops after the last block needed.

    Args:
        model: a transformers causal language model; not changed.
        tokens: (samples, length) int64.
        layers: names, `*` allowed; None means every prunable layer.

    Raises:
        RoseError: an unknown layer, or tokens that do not fit the model.
    """
    blocks = visit_blocks(model, tokens, layers=layers, progress=progress)  # which checks the model
    home = next(model.parameters()).device  # weights return to this device
    statistics: dict[str, InputStatistics] = {}
    for block in blocks:
        statistics.update(block.to(home if home.type != "meta" else torch.device("cpu")).calibration)
    return statistics


@torch.no_grad()
def visit_inputs(
    model: nn.Module,
    tokens: Tensor,
    layer: str,
    visit: Callable[[Tensor], Any],
    progress: ProgressCallback | None = None,
) -> None:
    """Passes the inputs of one layer of the dense model to a callback, batch by batch.

    `visit` is called with (tokens of the batch, in) float32 on the CPU, samples in order; it may raise to stop.
    """
    network = Network(model)
    chosen = network.select([layer])
    if len(chosen) != 1:
        raise RoseError(f"{layer!r} names {len(chosen)} layers; name exactly one.")
    walk = start_walk(network, check_streams(network, tokens, None), chosen, progress)
    walk.by_block = {chosen[0].block_index: []}  # no layer's statistics are needed
    with chosen[0].module.register_forward_pre_hook(lambda _m, args: visit(args[0].flatten(0, -2).float().cpu())):
        for _ in walk.visit(propagate_again=False):
            pass
