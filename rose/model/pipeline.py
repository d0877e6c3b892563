"""A whole network, decoder block by decoder block: capture statistics, prune, propagate.

Every layer is calibrated on the outputs of the already pruned blocks below it, as SparseGPT's program does.
Only one decoder block is on the device at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from rose.errors import RoseError
from rose.layer import error
from rose.layer.hessian import damp
from rose.layer.methods import LayerResult, Settings, get_method, prune_layer
from rose.layer.options import Value, complete_options
from rose.layer.pattern import Pattern, parse_sparsity
from rose.layer.statistics import InputStatistics
from rose.model.allocation import allocate, check_allocation
from rose.model.forward import BlockInputs, pick_device, record_inputs
from rose.model.structure import PrunableLayer, decoder_blocks, select_layers
from rose.report import LayerRecord, RunReport


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        stage: "embed", "calibrate", "prune" (a layer is done), "propagate", and "done" at the end.
        block_index, blocks: decoder block at work, and how many will be visited.
        layer, relative_error: the layer just pruned and its error; None in other stages.
        layers_done, layers: how many layers are finished, of how many.
        fraction: share of the work done, 0 to 1.
        seconds, remaining: since the start, and the estimated time left (None until it can be told).
    """

    stage: str
    block_index: int
    blocks: int
    layer: str | None
    relative_error: float | None
    layers_done: int
    layers: int
    fraction: float
    seconds: float
    remaining: float | None


ProgressCallback = Callable[[Progress], Any]

# Share of a run that allocation takes, roughly; only the progress bar depends on it.
ALLOCATION_SHARE = {"uniform": 0.0, "owl": 0.25, "sensitivity": 0.4}


def _part(
    callback: ProgressCallback | None, start: float, low: float, high: float, stage: str | None = None
) -> ProgressCallback | None:
    """A callback for one part of a run: its 0 to 1 is `low` to `high` of the whole, which began at `start`."""
    if callback is None:
        return None

    def tell(progress: Progress) -> None:
        fraction = low + (high - low) * progress.fraction
        seconds = time.perf_counter() - start
        remaining = seconds * (1 - fraction) / fraction if fraction > 0 else None
        layers_done = 0 if stage else progress.layers_done
        callback(
            replace(
                progress,
                stage=stage or progress.stage,
                layers_done=layers_done,
                fraction=fraction,
                seconds=seconds,
                remaining=remaining,
            )
        )

    return tell


def _sharing(callback: ProgressCallback | None, layers: int, start: float, high: float) -> Callable[[float], None]:
    """Turns a plain share, 0 to 1, into the progress of an allocation."""
    tell = _part(callback, start, 0, high, "allocate")
    return lambda share: tell(Progress("allocate", 0, 0, None, None, 0, layers, share, 0.0, None)) if tell else None


class _Meter:
    """Turns steps into `Progress` events. A callback that raises stops the run."""

    def __init__(self, callback: ProgressCallback | None, blocks: int, layers: int) -> None:
        self.callback, self.blocks, self.layers = callback, blocks, layers
        self.layers_done = 0
        self.start = time.perf_counter()

    def tell(
        self, stage: str, block_index: int, within: float, layer: str | None = None, relative_error: float | None = None
    ) -> None:
        """`within`: share of this decoder block's work that is done."""
        if self.callback is None:
            return
        fraction = (block_index + within) / self.blocks
        seconds = time.perf_counter() - self.start
        remaining = seconds * (1 - fraction) / fraction if fraction > 0 else None
        self.callback(
            Progress(
                stage,
                block_index,
                self.blocks,
                layer,
                relative_error,
                self.layers_done,
                self.layers,
                fraction,
                seconds,
                remaining,
            )
        )


@dataclass(frozen=True)
class BlockStatistics:
    """What calibration knows of one decoder block's chosen layers.

    Attributes:
        block_index: which decoder block.
        layers: its chosen layers.
        calibration, held_out: statistics by layer name; layers that read one tensor share one object.
            `held_out` is empty where no held-out tokens were given.
    """

    block_index: int
    layers: list[PrunableLayer]
    calibration: dict[str, InputStatistics]
    held_out: dict[str, InputStatistics] = field(default_factory=dict)


class _Collector:
    """Forward hooks that gather the inputs of some layers; a layer that reads a tensor already seen shares it."""

    def __init__(self, layers: list[PrunableLayer], device: torch.device) -> None:
        self.device = device
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
                self.statistics[layer.name].update(inputs)
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
class _Walk:
    """Visits the decoder blocks of one model; see `visit_blocks`."""

    model: nn.Module
    device: torch.device
    meter: _Meter
    by_block: dict[int, list[PrunableLayer]]
    calibration: BlockInputs
    held_out: BlockInputs | None

    def visit(self, propagate_again: bool) -> Iterator[BlockStatistics]:
        _, blocks = decoder_blocks(self.model)
        last = max(self.by_block)
        for index in range(last + 1):
            block = blocks[index]
            home, was_training = next(block.parameters()).device, block.training
            block.to(self.device).eval()  # calibration without dropout
            try:
                layers = self.by_block.get(index, [])
                # A pruned block must run twice: once to see its inputs, once to pass on what it now puts out.
                twice = propagate_again and bool(layers)
                share = 0.45 if twice else 0.95
                outputs, statistics = self._pass(self.calibration, block, index, layers, "calibrate", 0.0, share)
                held_outputs, held_statistics = (
                    (None, {})
                    if self.held_out is None
                    else self._pass(self.held_out, block, index, layers, "calibrate", share, share)
                )
                if not twice:
                    self._advance(outputs, held_outputs)
                if layers:
                    yield BlockStatistics(index, layers, statistics, held_statistics)
                if twice and index < last:
                    outputs, _ = self._pass(self.calibration, block, index, [], "propagate", 0.55, 1.0)
                    if self.held_out is not None:
                        held_outputs, _ = self._pass(self.held_out, block, index, [], "propagate", 1.0, 1.0)
                    self._advance(outputs, held_outputs)
            finally:
                block.train(was_training).to(home)

    def _advance(self, outputs: list[Tensor], held_outputs: list[Tensor] | None) -> None:
        self.calibration.hidden = outputs
        if self.held_out is not None and held_outputs is not None:
            self.held_out.hidden = held_outputs

    @torch.no_grad()
    def _pass(
        self,
        inputs: BlockInputs,
        block: nn.Module,
        index: int,
        layers: list[PrunableLayer],
        stage: str,
        start: float,
        end: float,
    ) -> tuple[list[Tensor], dict[str, InputStatistics]]:
        """Runs one block over all batches. `start`, `end`: share of the block's work before and after."""
        collector = _Collector(layers, self.device)
        outputs = []
        try:
            for batch, hidden in enumerate(inputs.hidden):
                outputs.append(inputs.run(block, index, batch, self.device).to(hidden.device))
                collector.end_batch()
                self.meter.tell(stage, index, start + (end - start) * (batch + 1) / len(inputs.hidden))
        finally:
            collector.close()
        return outputs, collector.result()


def _walk(
    model: nn.Module,
    tokens: Tensor,
    held_out: Tensor | None,
    layers: Sequence[str] | None,
    progress: ProgressCallback | None,
) -> _Walk:
    chosen = select_layers(model, layers)
    by_block: dict[int, list[PrunableLayer]] = {}
    for layer in chosen:
        by_block.setdefault(layer.block_index, []).append(layer)
    meter = _Meter(progress, max(by_block) + 1, len(chosen))

    def tick() -> None:
        meter.tell("embed", 0, 0.0)

    calibration = record_inputs(model, tokens, tick)
    held = None if held_out is None else record_inputs(model, held_out, tick)
    return _Walk(model, pick_device(), meter, by_block, calibration, held)


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
    walk = _walk(model, tokens, held_out, layers, progress)
    for block in walk.visit(propagate_again=False):
        yield block
        walk.meter.layers_done += len(block.layers)
    walk.meter.tell("done", max(walk.by_block), 1.0)


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
    found: dict[str, InputStatistics] = {}
    for block in visit_blocks(model, tokens, layers=layers, progress=progress):
        found.update(block.calibration)
    return found


def prune_model(
    model: nn.Module,
    tokens: Tensor,
    *,
    method: str = "rose",
    sparsity: float | str | Pattern = 0.7,
    layers: Sequence[str] | None = None,
    block_size: int = 128,
    damping: float = 0.01,
    threshold: float = 0.5,
    order: str | None = None,
    budget: str | None = None,
    options: Mapping[str, Value] | None = None,
    allocation: str = "uniform",
    held_out: Tensor | None = None,
    progress: ProgressCallback | None = None,
) -> RunReport:
    """Prunes a model in place, block by block, with the already pruned blocks below.

    Args:
        model: a transformers causal language model. Changed in place, layer after layer: a run that is stopped
            by its callback leaves the layers done so far pruned, each of them whole.
        tokens: calibration tokens, (samples, length) int64.
        method: a name in the registry (`rose.METHODS`).
        sparsity: a ratio, or N:M such as "2:4".
        layers: names to prune, `*` allowed; None means every prunable layer.
        block_size, damping, threshold, order, budget, options: see `rose.prune_layer`.
        allocation: "uniform", the same ratio in every layer; "owl", by the outliers of each decoder block, which
            costs one more pass over the dense model; "sensitivity", by the curvature of the loss, which costs two
            backward passes over 512 tokens of 16 samples. The whole comes out at the asked ratio. See
            `rose.model.allocation`.
        held_out: further tokens, (samples, length), on which each layer's error is measured too. Method "measured"
            chooses by them, so that its held-out error is the best of several and no longer quite independent.
        progress: called with a `Progress` after every batch and every layer; may raise to stop the run.

    Returns:
        A `RunReport`; its `layers` is a DataFrame with one row per layer.

    Raises:
        RoseError: bad input, before any work; or a layer that cannot be pruned, which is named.
    """
    chosen = get_method(method)
    complete = complete_options(chosen.label, chosen.options, options)
    settings = Settings(parse_sparsity(sparsity), block_size, damping, threshold, order, budget, options=complete)
    check_allocation(allocation, settings.pattern)
    selected = select_layers(model, layers)
    for layer in selected:
        settings.pattern.check(layer.weight.shape[1], block_size)
    start = time.perf_counter()
    share = ALLOCATION_SHARE[allocation]
    patterns = allocate(
        model,
        tokens,
        selected,
        settings.pattern,
        allocation,
        lambda: visit_blocks(model, tokens, layers=layers, progress=_part(progress, start, 0, share, "allocate")),
        _sharing(progress, len(selected), start, share),
    )
    walk = _walk(model, tokens, held_out, layers, _part(progress, start, share, 1) if share else progress)
    records: list[LayerRecord] = []
    for block in walk.visit(propagate_again=True):
        for number, layer in enumerate(block.layers):
            began = time.perf_counter()
            result = _prune_one(
                layer,
                block.calibration,
                method,
                replace(settings, pattern=patterns[layer.name], held_out=block.held_out.get(layer.name)),
            )
            held_error = held_out_error(layer, result, block.held_out.get(layer.name))
            layer.write(result.weight)
            records.append(_record(layer, result, held_error, time.perf_counter() - began))
            walk.meter.layers_done += 1
            within = 0.45 + 0.1 * (number + 1) / len(block.layers)
            walk.meter.tell("prune", block.block_index, within, layer.name, result.relative_error)
    walk.meter.tell("done", max(walk.by_block), 1.0)
    return RunReport.from_records(
        records,
        method=method,
        sparsity=str(settings.pattern),
        allocation=allocation,
        options=complete,
        block_size=block_size,
        damping=damping,
        threshold=threshold,
        samples=tokens.shape[0],
        length=tokens.shape[1],
        held_out_samples=0 if held_out is None else held_out.shape[0],
        device=str(walk.device),
        seconds=time.perf_counter() - start,
    )


def analyze_model(
    model: nn.Module,
    tokens: Tensor,
    *,
    methods: Sequence[str] = ("sparsegpt", "rose"),
    sparsity: float | str | Pattern = 0.7,
    layers: Sequence[str] | None = None,
    block_size: int = 128,
    damping: float = 0.01,
    threshold: float = 0.5,
    held_out: Tensor | None = None,
    progress: ProgressCallback | None = None,
) -> Iterator[LayerRecord]:
    """Prunes every chosen layer by each method on the dense model's inputs, and yields the records as they come.

    The model is not changed, so all layers and methods are measured on the same inputs. Arguments as for
    `prune_model`; one record per layer and method.
    """
    settings = Settings(parse_sparsity(sparsity), block_size, damping, threshold)
    for method in methods:
        get_method(method)
    for block in visit_blocks(model, tokens, layers=layers, held_out=held_out, progress=progress):
        for layer in block.layers:
            for method in methods:
                yield _measure(layer, block.calibration, block.held_out.get(layer.name), method, settings)


def measure_layer(
    layer: PrunableLayer,
    statistics: InputStatistics,
    held_out: InputStatistics | None = None,
    *,
    method: str = "rose",
    sparsity: float | str | Pattern = 0.7,
    block_size: int = 128,
    damping: float = 0.01,
    threshold: float = 0.5,
) -> LayerRecord:
    """Prunes one layer, without changing it, and returns the outcome in numbers. Arguments as for `prune_model`."""
    settings = Settings(parse_sparsity(sparsity), block_size, damping, threshold)
    return _measure(layer, {layer.name: statistics}, held_out, method, settings)


def _measure(
    layer: PrunableLayer,
    statistics: dict[str, InputStatistics],
    held_out: InputStatistics | None,
    method: str,
    settings: Settings,
) -> LayerRecord:
    began = time.perf_counter()
    result = _prune_one(layer, statistics, method, replace(settings, held_out=held_out))
    return _record(layer, result, held_out_error(layer, result, held_out), time.perf_counter() - began)


def held_out_error(layer: PrunableLayer, result: LayerResult, held_out: InputStatistics | None) -> float | None:
    """Relative error on held-out inputs, against the weight that the layer has now; None without such inputs."""
    return None if held_out is None else error.relative_error(layer.weight, result.weight, held_out.hessian)


def collect_inputs(model: nn.Module, tokens: Tensor, layer: str) -> Tensor:
    """What one layer of the dense model reads, (samples · length, in) float32; needs no Hessian.

    Raises:
        RoseError: no layer, or several, by this name.
    """
    seen: list[Tensor] = []
    visit_inputs(model, tokens, layer, lambda inputs: seen.append(inputs.cpu()))
    return torch.cat(seen)


@torch.no_grad()
def visit_inputs(
    model: nn.Module,
    tokens: Tensor,
    layer: str,
    visit: Callable[[Tensor], Any],
    progress: ProgressCallback | None = None,
) -> None:
    """Shows what one layer of the dense model reads, batch after batch; memory holds one batch of it.

    Args:
        visit: called with (tokens of the batch, in) float32, samples in order; may raise to stop.
        progress: as for `prune_model`.

    Raises:
        RoseError: no layer, or several, by this name.
    """
    chosen = select_layers(model, [layer])
    if len(chosen) != 1:
        raise RoseError(f"{layer!r} names {len(chosen)} layers; name exactly one.")
    walk = _walk(model, tokens, None, [layer], progress)
    hook = chosen[0].module.register_forward_pre_hook(lambda _m, args: visit(args[0].flatten(0, -2).float()))
    try:
        for _ in walk.visit(propagate_again=False):
            pass
    finally:
        hook.remove()


def condition_number(statistics: InputStatistics, damping: float = 0.01) -> float:
    """Largest over smallest eigenvalue of the damped Hessian."""
    values = torch.linalg.eigvalsh(damp(statistics.hessian, damping).matrix)
    return float(values[-1] / values[0].clamp_min(torch.finfo(torch.float32).tiny))


def _prune_one(
    layer: PrunableLayer, statistics: dict[str, InputStatistics], method: str, settings: Settings
) -> LayerResult:
    if layer.name not in statistics:
        raise RoseError(f"{layer.name} received no input during calibration; leave it out with --layers.")
    try:
        return prune_layer(
            layer.weight,
            statistics[layer.name],
            method=method,
            sparsity=settings.pattern,
            block_size=settings.block_size,
            damping=settings.damping,
            threshold=settings.threshold,
            order=settings.order,
            budget=settings.budget,
            options=settings.options,
            held_out=settings.held_out,
        )
    except RoseError as problem:
        raise RoseError(f"{layer.name}: {problem}") from problem


def _record(layer: PrunableLayer, result: LayerResult, held_error: float | None, seconds: float) -> LayerRecord:
    rows, columns = result.weight.shape
    return LayerRecord(
        layer=layer.name,
        block_index=layer.block_index,
        projection=layer.projection,
        rows=rows,
        columns=columns,
        method=result.method,
        sparsity=result.sparsity,
        relative_range=result.plan.relative_range,
        is_columnar=result.plan.is_columnar,
        relative_error=result.relative_error,
        held_out_error=held_error,
        damping=result.damping,
        dead_columns=int(result.plan.hessian_diagonal.eq(0).sum()),
        seconds=seconds,
        order=result.order.name,
        budget=result.budget,
    )
