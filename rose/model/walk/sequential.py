"""One pass for each decoder block: every layer is pruned just before it runs (GPTQ's true-sequential mode).

Each layer is calibrated on the pruned layers before it in the same block, so the outputs need no second pass. All
batches go through the block side by side, and each stops at every layer that is not pruned yet. Once all have stopped
or finished, one layer is pruned, and its batches go on. Layers that read the same tensors are pruned together if
targets are dense. Batches stop at different layers if experts are routed. The first of these in the block is pruned,
because its batches may reach the later layers, too.

A stopped batch keeps its call stack in a greenlet, so this works for any forward function. Between stops every batch
holds its own forward pass: a few hidden states and the widest layer's inputs. Two passes would hold one hidden state.
"""

from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from rose.errors import RoseError
from rose.layer.statistics import InputStatistics
from rose.model.network.layers import PrunableLayer
from rose.model.network.stand_ins import hooked
from rose.model.walk.forward import no_input, version_of
from rose.model.walk.targets import BatchKey, BlockTargets, Gaps
from rose.model.walk.walk import BlockStatistics, Walk


def visit_sequentially(walk: Walk) -> Generator[BlockStatistics, None, None]:
    """Visits layers in the order in which they run; the caller prunes each before it asks for the next.

    Layers that read the same tensors come together if targets are dense. Raises RoseError for a layer that no batch
    reaches, or that batches reach in different orders.
    """
    for index in range(walk.first, walk.last + 1):
        with walk.enter(index) as block:
            if layers := walk.layers_of(index):
                yield from _Block(walk, index, block, layers).visit()
            else:
                walk.follow_dense(block, index)
                walk.pass_on(block, index)


@dataclass(eq=False)
class _Batch:
    """A batch that passes through a block."""

    key: BatchKey  # its stream, "calibration" or "held_out", and its number there
    route: greenlet  # its forward pass; a switch runs it to the next unpruned layer, or to its end
    stopped_at: PrunableLayer = field(init=False)  # that layer
    inputs: Tensor | None = None  # of that layer
    tokens: Tensor | None = None  # their numbers in the batch, for an expert's layer
    # the inputs counted last, and the version of their content; layers that read the same content of one tensor share
    # statistics
    counted: tuple[Tensor, int] | None = None

    @property
    def is_counted(self) -> bool:
        if self.counted is None:
            return False
        return self.counted[0] is self.inputs and self.counted[1] == version_of(self.inputs)


class _Block:
    """A decoder block, and the batches that pass through it.

    Attributes:
        readers: by pruned layer, its calibration batches.
        last: the calibration batches of the layer pruned last.
        statistics, gaps: of their inputs, by stream; `gaps` is None if it was not computed.
    """

    def __init__(self, walk: Walk, index: int, block: nn.Module, layers: list[PrunableLayer]) -> None:
        self.walk, self.index, self.block, self.layers = walk, index, block, layers
        # Every batch reaches each layer outside the experts, so batches wait there for the last; experts come first.
        self.in_turn = sorted(layers, key=lambda layer: not layer.is_expert)
        self.readers: dict[str, list[_Batch]] = {}
        self.waiting: list[_Batch] = []
        self.statistics: dict[str, InputStatistics] = {}
        self.last: list[_Batch] = []
        self.targets = None
        if walk.trace is not None:
            self.targets = BlockTargets(block, layers, walk.trace(index, block), walk.precision.products)
        self.gaps: Gaps | None = None
        self.main = getcurrent()
        batches = [
            _Batch((stream, number), greenlet(partial(self._run, stream, number), self.main))
            for stream, arguments in walk.arguments.items()
            for number in range(len(arguments[index]))
        ]
        self.by_route = {batch.route: batch for batch in batches}

    @torch.no_grad()
    def visit(self) -> Iterator[BlockStatistics]:
        hooks = [layer.module.register_forward_pre_hook(partial(self._stop, layer)) for layer in self.layers]
        with ExitStack() as stack:
            for route in self.by_route:  # unwinds unfinished batches, if the run is stopped
                stack.callback(route.throw)
            if self.targets:
                stack.callback(self.targets.close)
            stack.enter_context(hooked(hooks))
            self.walk.run_dense(self.block, self.index, self.targets.watch_dense if self.targets else None)
            if self.targets:
                self.targets.watch_pruned(lambda: self.by_route[getcurrent()].key)
            for batch in self.by_route.values():
                self._go_on(batch)
            while (turn := self.walk.workers.smallest(self._first())) is not None:
                yield self._open(self.in_turn[turn])
                ready, self.waiting = self.last, [batch for batch in self.waiting if batch not in self.last]
                for batch in ready:
                    self._go_on(batch)
        for layer in self.layers:
            if layer.name not in self.readers:
                if not layer.is_expert:
                    raise no_input(layer.name)
                yield BlockStatistics(self.index, [layer], {}, work=(self._work_done(), self._work_done()))

    def _run(self, stream: str, number: int) -> None:
        hidden = self.walk.storage.activations.read(stream, number)
        if self.targets:
            self.targets.enter((stream, number), hidden)
        output = self.walk.run(self.block, hidden, self.walk.arguments[stream][self.index][number])
        self.walk.put_out(stream, number, self.index, output.to(hidden.device))

    def _stop(self, layer: PrunableLayer, _module: nn.Module, args: tuple) -> None:
        if layer.name not in self.readers:
            with torch.autocast(self.walk.network.device.type, enabled=False):  # layers are pruned in float32
                self.main.switch(layer, *args)
        elif self.by_route[getcurrent()] not in self.readers[layer.name]:
            raise RoseError(
                f"Different samples reach {layer.name} and other layers of its decoder block in different orders, "
                f"so it cannot be calibrated on all of them in one pass; {self.walk.remedy}."
            )

    def _go_on(self, batch: _Batch) -> None:
        """Runs a batch to the next unpruned layer, or to its end."""
        stopped = batch.route.switch()
        if not stopped:
            batch.inputs = batch.counted = batch.tokens = None
            return
        batch.stopped_at, batch.inputs, *tokens = stopped
        batch.tokens = tokens[0] if tokens else None
        if not batch.is_counted:
            batch.counted = None  # memory
        self.waiting.append(batch)
        self.walk.meter.tell("calibrate", self.index, self._work_done())

    def _first(self) -> int | None:
        """The place in `in_turn` of the next layer at which batches of this process wait."""
        return min((self.in_turn.index(batch.stopped_at) for batch in self.waiting), default=None)

    def _open(self, layer: PrunableLayer) -> BlockStatistics:
        """The statistics of the next layer, and of layers that read the same tensors; all count as pruned from now."""
        readers = [batch for batch in self.waiting if batch.stopped_at is layer]
        # If exactly these batches brought these inputs to the layer pruned last, its statistics are reused.
        counted = set(readers) == set(self.last) and all(batch.is_counted for batch in readers)
        if not all(self.walk.workers.gather(counted)):
            self._count(readers, layer)
        self.last = readers
        before = self._work_done()
        layers = self.targets.alike(layer) if self.targets else [layer]
        self.readers |= {each.name: readers for each in layers}
        after = self._work_done()
        by_stream = {
            stream: {each.name: statistics for each in layers} for stream, statistics in self.statistics.items()
        }
        gaps: dict[str, Gaps] = {}
        for each in layers:
            for stream, gap in self._gaps(each, readers).items():
                gaps.setdefault(stream, {})[each.name] = gap
        return BlockStatistics(
            self.index, layers, by_stream.get("calibration", {}), by_stream.get("held_out", {}), (before, after), gaps,
            self.walk.precision.products,
        )  # fmt: skip

    def _gaps(self, layer: PrunableLayer, readers: list[_Batch]) -> Gaps:
        """The layer's gap to its dense target, by stream; empty if unknown."""
        if self.targets is None:
            return {}
        writes = self.targets.writes(layer)
        gaps = None if writes else self.gaps  # layers that read the same inputs share theirs
        if gaps is None:
            gaps = {}
            for stream in self.statistics:
                inputs = {
                    batch.key: (batch.inputs, batch.tokens)
                    for batch in readers
                    if batch.key[0] == stream and batch.inputs is not None
                }
                if (gap := self.targets.gap(layer, inputs)) is not None:
                    gaps[stream] = gap
            self.walk.workers.sum_gaps(gaps, layer.name)
            if not writes:
                self.gaps = gaps
        self.targets.forget(layer)
        return gaps

    def _count(self, readers: list[_Batch], layer: PrunableLayer) -> None:
        self.statistics, self.gaps = {}, None
        for batch in readers:
            assert batch.inputs is not None
            stream = batch.key[0]
            if stream not in self.statistics:
                self.statistics[stream] = InputStatistics(batch.inputs.shape[-1], self.walk.network.device)
            self.statistics[stream].update(batch.inputs)
            batch.counted = batch.inputs, version_of(batch.inputs)
        routed = list(self.walk.arguments) if layer.is_expert else ()
        self.walk.workers.sum_statistics(self.statistics, layer.name, routed)

    def _work_done(self) -> float:
        return 0.95 * len(self.readers) / len(self.layers)
