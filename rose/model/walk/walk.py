"""A walk over the decoder blocks of a model that gathers statistics of what its layers read.

Only one decoder block is on the device at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from rose.model.network.stand_ins import hooked
from rose.model.progress import Meter, ProgressCallback
from rose.model.walk.collector import LEAVE_OUT, Collector
from rose.model.walk.dense_states import HELD_OUT, DenseStreams, Watch
from rose.model.walk.forward import Arguments, WriterTrace, check_blocks, record_inputs, run_block, split_batches
from rose.model.walk.hidden_states import MemoryActivations
from rose.model.walk.storage import Storage
from rose.model.walk.targets import BlockTargets
from rose.model.workers import Workers

TOKENS = {"calibration": "tokens", HELD_OUT: "held-out tokens"}  # what those of a stream are called


@dataclass(frozen=True)
class BlockStatistics:
    """What calibration knows of one decoder block's chosen layers.

    Attributes:
        calibration, held_out: statistics by layer name; layers that read one tensor share one object.
            `held_out` is empty where no held-out tokens were given.
        work: fraction of the decoder block's work done before and after these layers are pruned.
        gaps: by stream and layer name, how far the layer is from its dense target, where that is asked for and known.
        products: number format of ADMM's products, see `Settings`.
    """

    block_index: int
    layers: list[PrunableLayer]
    calibration: dict[str, InputStatistics]
    held_out: dict[str, InputStatistics] = field(default_factory=dict)
    work: tuple[float, float] = (0.45, 0.55)
    gaps: dict[str, dict[str, InputGap | OutputGap]] = field(default_factory=dict)
    products: torch.dtype = torch.float32

    def let_go(self) -> None:
        """Drops all statistics, which the walk would otherwise hold while it runs the next block."""
        self.calibration.clear()
        self.held_out.clear()
        self.gaps.clear()

    def to(self, device: torch.device) -> BlockStatistics:
        """The same with statistics on a device; layers that share an object share the moved one."""
        moved: dict[int, InputStatistics] = {}

        def move(found: dict[str, InputStatistics]) -> dict[str, InputStatistics]:
            return {name: moved.setdefault(id(one), one.to(device)) for name, one in found.items()}

        return replace(self, calibration=move(self.calibration), held_out=move(self.held_out))


@dataclass
class Walk:
    """Visits the decoder blocks of one model; see `visit_blocks`.

    Attributes:
        by_block: chosen layers of each decoder block.
        kept: hidden states and what is stored of finished blocks; those below `kept.done` are only run.
        precision: of forward passes, and of the products that gaps to dense targets are made of.
        dense: hidden states of the dense model beside them, of the streams that need them.
        remedy: what the caller can do about a layer that this walk cannot calibrate.
        first: the decoder block whose inputs the hidden states are.
        arguments: by stream ("calibration", "held_out"): [block][batch] -> arguments besides the hidden states.
        trace: of what writes into the residual stream; given where targets are dense.
    """

    network: Network
    workers: Workers
    meter: Meter
    by_block: dict[int, list[PrunableLayer]]
    kept: Storage
    precision: Precision
    dense: DenseStreams
    remedy: str
    first: int = 0
    arguments: dict[str, list[list[Arguments]]] = field(default_factory=dict)
    trace: WriterTrace | None = None

    @property
    def last(self) -> int:
        """The last decoder block that is visited."""
        return max(self.by_block)

    def layers_of(self, index: int) -> list[PrunableLayer]:
        """The chosen layers of a decoder block that an earlier run has not finished."""
        return self.by_block.get(index, []) if index >= self.kept.done else []

    @contextmanager
    def enter(self, index: int) -> Iterator[nn.Module]:
        """One decoder block on the device, to be left by all batches."""
        with self.network.residence.visit(index, self.network.device) as block, experts_apart(block):
            yield block
            if drift := self.dense.block_drift(index, self.network.device):
                self.kept.add_drift(drift)
            if index < self.last:
                self.kept.activations.advance(index + 1)

    def run(self, block: nn.Module, hidden: Tensor, arguments: Arguments) -> Tensor:
        """A block's output on one batch, on the device."""
        return run_block(block, hidden, arguments, self.network.device, self.precision)

    def visit(self, propagate_again: bool) -> Iterator[BlockStatistics]:
        for index in range(self.first, self.last + 1):
            with self.enter(index) as block:
                layers = self.layers_of(index)
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
                    products = self.precision.products
                    yield BlockStatistics(
                        index, layers, found["calibration"], found.get("held_out", {}), products=products
                    )
                if twice:
                    self.pass_on(block, index, 0.55)

    def visit_dense(self) -> Iterator[BlockStatistics]:
        """Visits without pruning; tells of every layer visited, and of the end."""
        for block in self.visit(propagate_again=False):
            yield block
            self.meter.layers_done += len(block.layers)
        self.meter.tell("done", self.last, 1.0)

    def pass_on(self, block: nn.Module, index: int, start: float = 0.0) -> None:
        """Runs one block over all streams and keeps its outputs; `start`: share of the block's work before.

        After the last block only drift needs the outputs, those of held-out tokens.
        """
        for stream, begin in self._starts(start, 1.0):
            if index < self.last or (stream == HELD_OUT and self.dense.names):
                self._pass(stream, block, index, [], "propagate", begin, 1.0, keep=True)

    def targets_of(self, index: int, block: nn.Module, layers: Sequence[PrunableLayer]) -> BlockTargets | None:
        """The dense targets of a decoder block, where targets are dense."""
        if self.trace is None:
            return None
        return BlockTargets(block, layers, self.trace.of(index, block), self.precision.products)

    def run_dense(self, block: nn.Module, index: int, watch: Watch | None = None) -> None:
        """Runs a block that is still dense on the dense hidden states, where there are any; see `DenseStreams.run`."""
        arguments = {stream: found[index] for stream, found in self.arguments.items()}
        self.dense.run(index, self.kept.activations, arguments, partial(self.run, block), watch)

    def follow_dense(self, block: nn.Module, index: int) -> None:
        """Runs a block that loses nothing on the dense hidden states, where they differ from the pruned ones.

        Blocks that an earlier run has pruned are not dense any more; the dense hidden states are behind them already.
        """
        if self.dense.position == index:
            self.run_dense(block, index)

    def put_out(self, stream: str, batch: int, index: int, output: Tensor) -> None:
        """Keeps what a block puts out for one batch, for the next one and for drift."""
        if index < self.last:
            self.kept.activations.write(stream, batch, output)
        self.dense.compare(stream, batch, index, output)

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
        collector = Collector(layers, self.network.device, self.remedy)
        batches = self.arguments[stream][index]
        with hooked(collector.hooks):
            for batch, arguments in enumerate(batches):
                hidden = self.kept.activations.read(stream, batch)
                output = self.run(block, hidden, arguments)
                collector.end_batch()
                if keep:
                    self.put_out(stream, batch, index, output.to(hidden.device))
                self.meter.tell(stage, index, start + (end - start) * (batch + 1) / len(batches))
        found = collector.result()
        self.workers.sum_statistics(found, routed=[layer.name for layer in layers if layer.is_expert])
        return found


def check_streams(network: Network, tokens: Tensor, held_out: Tensor | None) -> dict[str, Tensor]:
    """This process's part of the tokens, by stream; raises RoseError for tokens that do not fit the model."""
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
    kept: Storage | None = None,
    dense: DenseStreams | None = None,
    precision: Precision = FLOAT32,
    needs_all: bool = False,
    remedy: str = LEAVE_OUT,
) -> Walk:
    """Records the inputs of the first decoder block, or resumes from a checkpoint.

    `streams` are those of `check_streams`, the options as for `Walk`; `needs_all` refuses layers that the model does
    not call, before any work.
    """
    kept, dense = kept or Storage(), dense or DenseStreams(MemoryActivations())
    of_block = by_block(layers)
    blocks = max(of_block) + 1
    meter = Meter(progress, blocks, len(layers))
    meter.layers_done = sum(len(found) for index, found in of_block.items() if index < kept.done)
    walk = Walk(network, Workers.here(), meter, of_block, kept, precision, dense, remedy, first=blocks)
    if kept.done:
        dense.position = kept.newest
    if kept.done >= blocks and (HELD_OUT not in dense.names or blocks - 1 in kept.drifts):
        return walk  # nothing is left to visit
    first = kept.start({stream: len(split_batches(samples)) for stream, samples in streams.items()})
    walk.first = first or 0
    meter.before = walk.first / blocks
    outputs = check_blocks(network, next(iter(streams.values())), layers if needs_all else ())
    for stream, samples in streams.items():
        write = partial(kept.activations.write, stream) if first is None else lambda _batch, _hidden: None
        tick = partial(meter.tell, "embed", walk.first, 0.0)
        walk.arguments[stream] = record_inputs(network, samples, outputs, write, tick)
    if first is None:
        kept.activations.advance(0)
    if "calibration" in dense.names:
        walk.trace = WriterTrace(network, streams["calibration"], outputs)
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

    Memory holds one decoder block's statistics at a time, so that any number of layers can be analyzed.
    Arguments as for `prune_model`; they are checked at once, and the work begins with the first block asked for.

    Between two blocks the one just given is on the device and in evaluation mode. A loop that ends early and keeps the
    iterator calls its `close()`, which puts that block back.
    """
    network = Network(model)
    streams, selected = check_streams(network, tokens, held_out), network.select(layers)
    precision = Workers.here().from_first(partial(Precision.of, compute, network.dtype, network.device))

    def visit() -> Generator[BlockStatistics, None, None]:
        yield from start_walk(network, streams, selected, progress, precision=precision).visit_dense()

    return visit()


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
    blocks = visit_blocks(model, tokens, layers=layers, progress=progress)  # which checks the model
    home = next(model.parameters()).device  # where the weights will be found afterwards
    found: dict[str, InputStatistics] = {}
    for block in blocks:
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

    `visit` is called with (tokens of the batch, in) float32 on the CPU, samples in order; it may raise to stop.
    """
    network = Network(model)
    chosen = network.select([layer])
    if len(chosen) != 1:
        raise RoseError(f"{layer!r} names {len(chosen)} layers; name exactly one.")
    walk = start_walk(network, check_streams(network, tokens, None), chosen, progress)
    walk.by_block = {chosen[0].block_index: []}  # no layer's statistics are wanted
    with chosen[0].module.register_forward_pre_hook(lambda _m, args: visit(args[0].flatten(0, -2).float().cpu())):
        for _ in walk.visit(propagate_again=False):
            pass
