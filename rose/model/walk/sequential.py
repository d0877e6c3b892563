"""One pass for each decoder block, in which every layer is pruned just before it runs.

This is GPTQ's true-sequential mode: what calibration knows of a layer's inputs then comes from the pruned layers before
it in the same decoder block too, and the outputs are those of the pruned block, so that a second pass is not needed.

All batches of calibration go through the block side by side. Each stops at every layer that is not pruned yet. Once all
have stopped or finished, one layer is pruned, with dense targets together with others that read the same tensors, and
the batches at it go on. With routed experts batches stop at different layers. Then the layer that comes first in the
block is pruned: batches that wait there may reach the later ones too.

A batch that stops keeps its call stack, so that this works for any decoder block, whatever its forward function looks
like. Between stops every batch holds what its own forward pass holds: memory grows with the number of tokens by a few
hidden states and the widest layer's inputs, where the two-pass mode needs one hidden state.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from rose.errors import RoseError
from rose.layer.statistics import InputStatistics
from rose.model.network.layers import PrunableLayer
from rose.model.network.precision import plainly
from rose.model.walk.forward import no_input, version_of
from rose.model.walk.targets import BatchKey, Gaps
from rose.model.walk.walk import BlockStatistics, Walk


def visit_sequentially(walk: Walk) -> Generator[BlockStatistics, None, None]:
    """Visits layers in the order in which they run; what is visited must be pruned before the next is asked for.

    One after another, except for those that read the same tensors, which come together where targets are dense. Raises
    RoseError for a layer that no batch reaches, or that batches reach in different orders.
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
    """One batch on its way through a block.

    Attributes:
        key: its stream, "calibration" or "held_out", and its number there.
        route: its forward pass; a switch to it runs it until the next layer that is not pruned yet, or to its end.
        stopped_at: that layer.
        inputs: what the layer reads.
        tokens: their numbers in the batch, where the layer is of an expert.
        counted: the last inputs that went into statistics, and the version of their content; layers that read the same
            content of one tensor share them.
    """

    key: BatchKey
    route: greenlet
    stopped_at: PrunableLayer = field(init=False)
    inputs: Tensor | None = None
    tokens: Tensor | None = None
    counted: tuple[Tensor, int] | None = None

    @property
    def stream(self) -> str:
        return self.key[0]

    @property
    def is_counted(self) -> bool:
        """Whether statistics have counted what the layer reads, with its present content."""
        return (
            self.counted is not None and self.counted[0] is self.inputs and self.counted[1] == version_of(self.inputs)
        )


class _Block:
    """A decoder block, and what is known of the inputs that its batches have stopped at."""

    def __init__(self, walk: Walk, index: int, block: nn.Module, layers: list[PrunableLayer]) -> None:
        self.walk, self.index, self.block, self.layers = walk, index, block, layers
        self.position = {layer.name: number for number, layer in enumerate(layers)}
        self.readers: dict[str, list[_Batch]] = {}  # of each pruned layer: whose inputs it was calibrated on
        self.waiting: list[_Batch] = []
        self.statistics: dict[str, InputStatistics] = {}  # [stream], of the layer pruned last
        self.last: list[_Batch] = []  # its readers
        self.targets = walk.targets_of(index, block, layers)
        self.gaps: Gaps | None = None  # [stream], of the inputs of the layer pruned last; None where not asked for

    @torch.no_grad()
    def visit(self) -> Iterator[BlockStatistics]:
        main = getcurrent()
        batches = [
            _Batch((stream, number), greenlet(partial(self._run, stream, number), main))
            for stream, arguments in self.walk.arguments.items()
            for number in range(len(arguments[self.index]))
        ]
        by_route = {batch.route: batch for batch in batches}
        hooks = [layer.module.register_forward_pre_hook(self._stop(main, by_route, layer)) for layer in self.layers]
        try:
            self.walk.run_dense(self.block, self.index, self.targets.watch_dense if self.targets else None)
            if self.targets:
                self.targets.watch_pruned(lambda: by_route[getcurrent()].key)
            for batch in batches:
                self._go_on(batch)
            while (turn := self.walk.workers.smallest(self._first())) is not None:
                yield self._open(self.layers[turn % len(self.layers)])
                self._pass_on()
        finally:
            for hook in hooks:
                hook.remove()
            if self.targets:
                self.targets.close()
            for batch in batches:
                batch.route.throw()  # unwinds those that are still under way, where the run was stopped
        for layer in self.layers:
            if layer.name not in self.readers:
                if not layer.is_expert:
                    raise no_input(layer.name)
                yield BlockStatistics(self.index, [layer], {}, work=(self._work_done(), self._work_done()))

    def _run(self, stream: str, number: int) -> None:
        hidden = self.walk.kept.activations.read(stream, number)
        if self.targets:
            self.targets.enter((stream, number), hidden)
        output = self.walk.run(self.block, hidden, self.walk.arguments[stream][self.index][number])
        self.walk.put_out(stream, number, self.index, output.to(hidden.device))

    def _stop(self, main: greenlet, by_route: dict[greenlet, _Batch], layer: PrunableLayer) -> Callable[..., None]:
        def stop(_module: nn.Module, args: tuple) -> None:
            if layer.name not in self.readers:
                with plainly(self.walk.network.device):  # layers are pruned in float32
                    main.switch(layer, *args)
            elif by_route[getcurrent()] not in self.readers[layer.name]:
                raise RoseError(
                    f"Different samples reach {layer.name} and other layers of its decoder block in different orders, "
                    f"so it cannot be calibrated on all of them in one pass; {self.walk.remedy}."
                )

        return stop

    def _go_on(self, batch: _Batch) -> None:
        """Runs a batch to the next layer that is not pruned yet, or to its end."""
        stopped = batch.route.switch()
        if not stopped:
            batch.inputs = batch.counted = batch.tokens = None
            return
        batch.stopped_at, batch.inputs, *more = stopped
        batch.tokens = more[0] if more else None
        if not batch.is_counted:
            batch.counted = None  # memory
        self.waiting.append(batch)
        self.walk.meter.tell("calibrate", self.index, self._work_done())

    def _first(self) -> int | None:
        """The layer whose turn it is, of those that batches of this process wait at; experts before all others.

        Every batch comes to a layer that is no expert's, so that the others wait there until the last one is there.
        """
        waited_at = {batch.stopped_at.name: batch.stopped_at for batch in self.waiting}
        later = len(self.layers)
        return min(
            (self.position[name] + (0 if layer.is_expert else later) for name, layer in waited_at.items()), default=None
        )

    def _open(self, layer: PrunableLayer) -> BlockStatistics:
        """What is handed out when a layer's turn has come; from now on it counts as pruned.

        With it come the layers that are known to read the same tensors, so that several processes can share them.
        """
        readers = [batch for batch in self.waiting if batch.stopped_at is layer]
        if not all(self.walk.workers.gather(self._is_counted(readers))):
            self._count(readers, layer)
        self.last = readers
        before = self._work_done()
        layers = self.targets.alike(layer) if self.targets else [layer]
        self.readers |= {one.name: readers for one in layers}
        after = self._work_done()
        known = {stream: {one.name: found for one in layers} for stream, found in self.statistics.items()}
        gaps: dict[str, Gaps] = {}
        for one in layers:
            for stream, gap in self._gaps(one, readers).items():
                gaps.setdefault(stream, {})[one.name] = gap
        return BlockStatistics(
            self.index, layers, known.get("calibration", {}), known.get("held_out", {}), (before, after), gaps,
            self.walk.precision.products,
        )  # fmt: skip

    def _gaps(self, layer: PrunableLayer, readers: list[_Batch]) -> Gaps:
        """How far the layer is from its dense target, by stream; nothing where that is not known."""
        if self.targets is None:
            return {}
        gaps = None if self.targets.writes(layer) else self.gaps  # layers that read the same inputs share theirs
        if gaps is None:
            gaps = {}
            for stream in self.statistics:
                inputs = {
                    batch.key: (batch.inputs, batch.tokens)
                    for batch in readers
                    if batch.stream == stream and batch.inputs is not None
                }
                gap = self.targets.gap(layer, inputs)
                if gap is not None:
                    gaps[stream] = gap
            self.walk.workers.sum_gaps(gaps, layer.name)
            if not self.targets.writes(layer):
                self.gaps = gaps
        self.targets.forget(layer)
        return gaps

    def _is_counted(self, readers: list[_Batch]) -> bool:
        """Whether these batches, and no others, have brought these very inputs to the layer pruned last."""
        return set(readers) == set(self.last) and all(batch.is_counted for batch in readers)

    def _count(self, readers: list[_Batch], layer: PrunableLayer) -> None:
        self.statistics, self.gaps = {}, None
        for batch in readers:
            assert batch.inputs is not None
            if batch.stream not in self.statistics:
                self.statistics[batch.stream] = InputStatistics(batch.inputs.shape[-1], self.walk.network.device)
            self.statistics[batch.stream].update(batch.inputs)
            batch.counted = batch.inputs, version_of(batch.inputs)
        routed = list(self.walk.arguments) if layer.is_expert else ()
        self.walk.workers.sum_statistics(self.statistics, layer.name, routed)

    def _pass_on(self) -> None:
        """Lets the batches at the layer just pruned go on."""
        ready, self.waiting = self.last, [batch for batch in self.waiting if batch not in self.last]
        for batch in ready:
            self._go_on(batch)

    def _work_done(self) -> float:
        """Fraction of this block's work, by the layers pruned."""
        return 0.95 * len(self.readers) / len(self.layers)
