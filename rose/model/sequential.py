"""One pass for each decoder block, in which every layer is pruned just before it runs.

This is GPTQ's true-sequential mode: what calibration knows of a layer's inputs then comes from the pruned layers before
it in the same decoder block too, and the outputs are those of the pruned block, so that a second pass is not needed.

All batches of calibration go through the block side by side. Each is stopped where a layer is about to read inputs
that not all batches have brought yet; once they have, the layer is pruned and they go on. A batch that stops keeps its
call stack, so that this works for any decoder block, whatever its forward function looks like. Between stops every
batch holds what its own forward pass holds: memory grows with the number of tokens by a few hidden states and the
widest layer's inputs, where the two-pass mode needs one hidden state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from rose.layer.statistics import InputStatistics
from rose.model.capture import BlockStatistics, Walk, no_input
from rose.model.distributed import sum_statistics
from rose.model.forward import run_block
from rose.model.residence import residence_of
from rose.model.structure import PrunableLayer


def visit_sequentially(walk: Walk) -> Iterator[BlockStatistics]:
    """Visits one layer after another, in the order in which they run; each must be pruned before the next is asked for.

    Raises:
        RoseError: a layer that no batch reaches.
    """
    residence, last = residence_of(walk.model), max(walk.by_block)
    for index in range(walk.first, last + 1):
        with residence.visit(index, walk.device) as block:
            layers = walk.by_block.get(index, []) if index >= walk.done else []
            if layers:
                yield from _Block(walk, index, block, layers).visit()
            else:
                walk.pass_on(block, index)
            if index < last:
                walk.activations.advance(index + 1)


@dataclass(eq=False)
class _Batch:
    """One batch on its way through a block.

    Attributes:
        stream: "calibration" or "held_out".
        route: its forward pass; a switch to it runs it until the next layer that is not pruned yet, or to its end.
        stopped_at: that layer.
        inputs: what the layer reads; known by identity, so that layers that read one tensor share its statistics.
    """

    stream: str
    route: greenlet
    stopped_at: PrunableLayer = field(init=False)
    inputs: Tensor | None = None


class _Block:
    """A decoder block, and what is known of the inputs that its batches have stopped at."""

    def __init__(self, walk: Walk, index: int, block: nn.Module, layers: list[PrunableLayer]) -> None:
        self.walk, self.index, self.block, self.layers = walk, index, block, layers
        self.pruned: set[str] = set()
        self.waiting: list[_Batch] = []
        self.arriving: dict[str, dict[str, InputStatistics]] = {}  # [layer][stream], while batches come in
        self.complete: dict[str, InputStatistics] = {}  # [stream], of the inputs that the batches go on with

    @torch.no_grad()
    def visit(self) -> Iterator[BlockStatistics]:
        main = getcurrent()
        hooks = [layer.module.register_forward_pre_hook(self._stop(main, layer)) for layer in self.layers]
        batches = [
            _Batch(stream, greenlet(partial(self._run, stream, number), main))
            for stream, arguments in self.walk.arguments.items()
            for number in range(len(arguments[self.index]))
        ]
        try:
            for batch in batches:
                yield from self._go_on(batch)
            while self.waiting:
                yield from self._open(self.waiting[0].stopped_at)
        finally:
            for hook in hooks:
                hook.remove()
            for batch in batches:
                batch.route.throw()  # unwinds those that are still under way, where the run was stopped
        missed = [layer.name for layer in self.layers if layer.name not in self.pruned]
        if missed:
            raise no_input(missed[0])

    def _run(self, stream: str, number: int) -> None:
        hidden = self.walk.activations.read(stream, number)
        output = run_block(self.block, hidden, self.walk.arguments[stream][self.index][number], self.walk.device)
        if self.index < max(self.walk.by_block):
            self.walk.activations.write(stream, number, output.to(hidden.device))

    def _stop(self, main: greenlet, layer: PrunableLayer) -> Callable[..., None]:
        def stop(_module: nn.Module, args: tuple) -> None:
            if layer.name not in self.pruned:
                main.switch(layer, args[0])

        return stop

    def _go_on(self, batch: _Batch) -> Iterator[BlockStatistics]:
        """Runs a batch until it must wait for the others, or to its end."""
        while stopped := batch.route.switch():
            self.walk.meter.tell("calibrate", self.index, self._work_done())
            batch.stopped_at, inputs = stopped
            if inputs is not batch.inputs:
                batch.inputs = inputs
                self._arrive(batch)
                return
            yield self._turn(batch.stopped_at)  # all batches have brought these inputs already
        batch.inputs = None

    def _arrive(self, batch: _Batch) -> None:
        assert batch.inputs is not None
        streams = self.arriving.setdefault(batch.stopped_at.name, {})
        if batch.stream not in streams:
            streams[batch.stream] = InputStatistics(batch.inputs.shape[-1], self.walk.device)
        streams[batch.stream].update(batch.inputs)
        self.waiting.append(batch)

    def _open(self, layer: PrunableLayer) -> Iterator[BlockStatistics]:
        """Every batch waits: prunes the layer that the first of them waits for, and lets those at it go on."""
        self.complete = self.arriving.pop(layer.name)
        sum_statistics(self.complete, layer.name)
        yield self._turn(layer)
        ready = [batch for batch in self.waiting if batch.stopped_at is layer]
        self.waiting = [batch for batch in self.waiting if batch.stopped_at is not layer]
        for batch in ready:
            yield from self._go_on(batch)

    def _work_done(self) -> float:
        """Fraction of this block's work, by the layers pruned."""
        return 0.95 * len(self.pruned) / len(self.layers)

    def _turn(self, layer: PrunableLayer) -> BlockStatistics:
        """What is yielded when it is a layer's turn; from now on it counts as pruned."""
        before = self._work_done()
        self.pruned.add(layer.name)
        after = self._work_done()
        known = {stream: {layer.name: found} for stream, found in self.complete.items()}
        return BlockStatistics(
            self.index, [layer], known.get("calibration", {}), known.get("held_out", {}), (before, after)
        )
