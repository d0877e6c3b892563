"""A walk over the decoder blocks of a model that gathers statistics of what its layers read.

Only one decoder block is on the device at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rose.errors import RoseError
from rose.layer.statistics import InputStatistics
from rose.model.activations import Activations
from rose.model.checkpoint import Storage, blocks_of
from rose.model.distributed import my_samples, sum_statistics
from rose.model.forward import Arguments, check_tokens, pick_device, record_inputs, run_block, split_batches
from rose.model.progress import Meter, ProgressCallback
from rose.model.residence import residence_of
from rose.model.structure import PrunableLayer, select_layers


@dataclass(frozen=True)
class BlockStatistics:
    """What calibration knows of one decoder block's chosen layers.

    Attributes:
        block_index: which decoder block.
        layers: its chosen layers.
        calibration, held_out: statistics by layer name; layers that read one tensor share one object.
            `held_out` is empty where no held-out tokens were given.
        work: fraction of the decoder block's work done before and after these layers are pruned.
    """

    block_index: int
    layers: list[PrunableLayer]
    calibration: dict[str, InputStatistics]
    held_out: dict[str, InputStatistics] = field(default_factory=dict)
    work: tuple[float, float] = (0.45, 0.55)

    def to(self, device: torch.device) -> BlockStatistics:
        """The same with statistics on a device; layers that share an object share the moved one."""
        moved: dict[int, InputStatistics] = {}

        def move(found: dict[str, InputStatistics]) -> dict[str, InputStatistics]:
            return {name: moved.setdefault(id(one), one.to(device)) for name, one in found.items()}

        return replace(self, calibration=move(self.calibration), held_out=move(self.held_out))


class Collector:
    """Forward hooks that gather the inputs of some layers; a layer that reads a tensor already seen shares it.

    `weight` is that of the inputs that come next, see `InputStatistics.update`.
    """

    def __init__(self, layers: list[PrunableLayer], device: torch.device) -> None:
        self.device = device
        self.weight = 1.0
        self.owner: dict[str, str] = {}
        self.statistics: dict[str, InputStatistics] = {}
        self.current: list[tuple[Tensor, str]] = []
        self.hooks = [layer.module.register_forward_pre_hook(self._hook(layer)) for layer in layers]

    def _hook(self, layer: PrunableLayer) -> Callable[..., None]:
        def seen(_module: nn.Module, args: tuple) -> None:
            inputs = args[0]
            if layer.name not in self.owner:
                self.owner[layer.name] = next((name for x, name in self.current if x is inputs), layer.name)
            if self.owner[layer.name] == layer.name:
                if layer.name not in self.statistics:
                    self.statistics[layer.name] = InputStatistics(inputs.shape[-1], self.device)
                self.statistics[layer.name].update(inputs, self.weight)
                self.current.append((inputs, layer.name))

        return seen

    def end_batch(self) -> None:
        self.current.clear()

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.current.clear()

    def result(self) -> dict[str, InputStatistics]:
        return {name: self.statistics[owner] for name, owner in self.owner.items()}


@dataclass
class Walk:
    """Visits the decoder blocks of one model; see `visit_blocks`.

    Attributes:
        by_block: chosen layers of each decoder block.
        arguments: by stream ("calibration", "held_out"): [block][batch] -> arguments besides the hidden states.
        activations: the hidden states.
        first: the decoder block whose inputs `activations` has.
        done: blocks below this one are pruned already and are only run.
    """

    model: nn.Module
    device: torch.device
    meter: Meter
    by_block: dict[int, list[PrunableLayer]]
    arguments: dict[str, list[list[Arguments]]]
    activations: Activations
    first: int = 0
    done: int = 0

    def visit(self, propagate_again: bool) -> Iterator[BlockStatistics]:
        residence, last = residence_of(self.model), max(self.by_block)
        for index in range(self.first, last + 1):
            with residence.visit(index, self.device) as block:
                layers = self.by_block.get(index, []) if index >= self.done else []
                # A pruned block must run twice: once to see its inputs, once to pass on what it now puts out.
                twice = propagate_again and bool(layers)
                keep = index < last and not twice
                found = {
                    stream: self._pass(stream, block, index, layers, "calibrate", start, 0.45 if twice else 0.95, keep)
                    for stream, start in self._starts(0.0, 0.45 if twice else 0.95)
                }
                if layers:
                    yield BlockStatistics(index, layers, found["calibration"], found.get("held_out", {}))
                if twice and index < last:
                    self.pass_on(block, index, 0.55)
                if index < last:
                    self.activations.advance(index + 1)

    def visit_dense(self) -> Iterator[BlockStatistics]:
        """Visits without pruning; tells of every layer visited, and of the end."""
        for block in self.visit(propagate_again=False):
            yield block
            self.meter.layers_done += len(block.layers)
        self.meter.tell("done", max(self.by_block), 1.0)

    def pass_on(self, block: nn.Module, index: int, start: float = 0.0) -> None:
        """Runs one block over all streams and keeps its outputs; `start`: share of the block's work before."""
        for stream, begin in self._starts(start, 1.0):
            self._pass(stream, block, index, [], "propagate", begin, 1.0, keep=True)

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
        collector = Collector(layers, self.device)
        batches = self.arguments[stream][index]
        try:
            for batch, arguments in enumerate(batches):
                hidden = self.activations.read(stream, batch)
                output = run_block(block, hidden, arguments, self.device)
                collector.end_batch()
                if keep:
                    self.activations.write(stream, batch, output.to(hidden.device))
                self.meter.tell(stage, index, start + (end - start) * (batch + 1) / len(batches))
        finally:
            collector.close()
        found = collector.result()
        sum_statistics(found)
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


def no_input(name: str) -> RoseError:
    """For a layer that the model did not call, such as an expert that no token was sent to."""
    return RoseError(f"{name} received no input during calibration; leave it out of the layers to prune.")


def start_walk(
    model: nn.Module,
    streams: Mapping[str, Tensor],
    layers: Sequence[PrunableLayer],
    progress: ProgressCallback | None,
    kept: Storage | None = None,
) -> Walk:
    """Records the inputs of the first decoder block, or resumes from a checkpoint.

    `streams`: as from `check_streams`; `layers`: as from `select_layers`.
    """
    kept = kept or Storage()
    by_block = blocks_of(layers)
    blocks = max(by_block) + 1
    meter = Meter(progress, blocks, len(layers))
    meter.layers_done = sum(len(found) for index, found in by_block.items() if index < kept.done)
    walk = Walk(model, pick_device(), meter, by_block, {}, kept.activations, blocks, kept.done)
    if kept.done >= blocks:
        return walk  # nothing is left to visit
    first = kept.start({stream: len(split_batches(samples)) for stream, samples in streams.items()})
    walk.first = first or 0
    meter.before = walk.first / blocks
    for stream, samples in streams.items():
        write = partial(kept.activations.write, stream) if first is None else _drop
        tick = partial(meter.tell, "embed", walk.first, 0.0)
        walk.arguments[stream] = record_inputs(model, samples, write, tick)
    if first is None:
        kept.activations.advance(0)
    return walk


def _drop(_batch: int, _hidden: Tensor) -> None:
    """Discards embedded tokens: a resumed run starts at a later block."""


def visit_blocks(
    model: nn.Module,
    tokens: Tensor,
    *,
    layers: Sequence[str] | None = None,
    held_out: Tensor | None = None,
    progress: ProgressCallback | None = None,
) -> Iterator[BlockStatistics]:
    """Statistics of the dense model's layers, one decoder block after another; the model is not changed.

    Memory holds one decoder block's statistics at a time, so that any number of layers can be analyzed.
    Arguments as for `prune_model`.
    """
    streams = check_streams(model, tokens, held_out)
    yield from start_walk(model, streams, select_layers(model, layers), progress).visit_dense()


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
