"""Does a layer's error say what the model loses? Found out by intervention: change one unit alone, measure the loss.

A unit is a layer or a whole decoder block. Either the model is dense and a unit is pruned, or the model is pruned and a
unit gets its dense weights back; everything else stays. The change of loss is that of the mean cross-entropy of next
tokens on held-out windows, in nats. Windows are paired: what makes a text hard is the same with and without the change,
so the differences vary far less than the losses, and their standard error is that of the difference's mean.

A pass begins at the unit's own decoder block, with what the block before it put out; see `Boundaries`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Unpack

import pandas as pd
import torch
from torch import Tensor, nn

from rose import verdicts
from rose.errors import RoseError
from rose.given import check_choice
from rose.layer.error import difference, quadratic_form, ratio
from rose.layer.massive import MassiveActivation
from rose.layer.methods import Settings, SettingsOptions, make_settings
from rose.layer.pattern import Pattern
from rose.layer.statistics import InputStatistics
from rose.model.defaults import UNITS
from rose.model.estimate.duration import pass_work
from rose.model.measure.damage_report import WHOLE, DamageRecord, DamageReport
from rose.model.measure.perplexity import perplexity_of, window_losses
from rose.model.network.identity import check_same_model, embedding_norms
from rose.model.network.layers import PrunableLayer, by_block, check_not_shared
from rose.model.network.network import Network
from rose.model.network.precision import Precision
from rose.model.network.residence import evaluating
from rose.model.progress import Meter, Progress, ProgressCallback
from rose.model.run.one_layer import damping_of, is_left_dense, prune_one
from rose.model.run.settings import describe_grid
from rose.model.walk.collector import statistics_of
from rose.model.walk.dense_states import HELD_OUT, token_drift
from rose.model.walk.forward import Boundaries
from rose.model.walk.walk import TOKENS, BlockStatistics, check_streams, start_walk
from rose.wording import whole


def damage(
    model: nn.Module,
    tokens: Tensor,
    *,
    held_out: Tensor | None = None,
    units: str = "layers",
    layers: Sequence[str] | None = None,
    restore: Mapping[str, Tensor] | None = None,
    done: Collection[str] = (),
    record: Callable[[DamageRecord], Any] = lambda _record: None,
    progress: ProgressCallback | None = None,
    **options: Unpack[SettingsOptions],
) -> DamageReport:
    """What the model loses by each layer or decoder block alone: the change of loss when only it is pruned.

    Args:
        model: a transformers causal language model; moved to the device and back. Its weights are changed one unit at a
            time and put back, to the bit, also after an error or a cancel.
        tokens: calibration tokens, (samples, length) int64. Every layer is calibrated on what it reads in the model as
            it is, nothing else pruned.
        held_out: windows that loss and errors are measured on, (windows, length); None keeps the last quarter of
            `tokens` for that.
        units: "layers", each alone; "blocks", all chosen layers of a decoder block together.
        layers: names, `*` allowed; None means every prunable layer.
        restore: weights by layer name, (out, in), put back into the pruned `model`, one unit at a time; nothing is
            pruned then. Errors are those of the pruned layers against these.
        done: units that are not measured again. They are pruned again, because the last record needs them all.
        record: called with every unit's record as it comes, decoder block by decoder block, and at the end with that
            of all units at once, whose `unit` is "*"; meanwhile the weights are what they were. May raise to stop.
        progress: called with a `Progress` of stage "damage", whose layers are units; may raise to stop.
        options: `method`, `sparsity`, `block_size`, `damping`, `threshold`, `order`, `budget`, `options`, `bits` and
            `group`; see `rose.prune_layer`.

    Returns:
        A `DamageReport`; its `units` is a DataFrame with one row per unit, losses in nats per token.

    Raises:
        RoseError: bad input, before any work; or a layer that cannot be pruned, which is named.
    """
    settings = make_settings(**options)
    check_choice("The units", units, UNITS)
    network = Network(model)
    network.check_in_memory()
    network.check_tokens(tokens)
    if held_out is None:
        kept = max(1, len(tokens) // 4)
        if len(tokens) - kept < 1:
            raise RoseError("One sample cannot both calibrate and measure; give more, or held-out tokens.")
        tokens, held_out = tokens[:-kept], tokens[-kept:]
    if restore is None:
        selected = network.to_prune(layers, settings.pattern, settings.block_size, settings.grid)
    else:
        selected = network.select(layers)
        check_not_shared(selected, network.layers)
        _check_restored(restore, selected)
    streams = check_streams(network, tokens, held_out)
    network.check_tokens(held_out, "Loss", TOKENS[HELD_OUT])
    sign = 1.0 if restore is None else -1.0
    run = _Run(network, held_out, units_of(network, selected, units), set(done), progress, sign)
    records = []
    for one in run.visit(streams, selected, partial(_change, settings, restore)):
        record(one)
        records.append(one)
    told = describe_damage(
        model, tokens, held_out, method=settings.method, sparsity=settings.pattern, units=units, restore=bool(restore)
    )
    return DamageReport.from_records(records, **told, **describe_grid(settings.grid))


def describe_damage(
    model: nn.Module,
    tokens: Tensor,
    held_out: Tensor,
    *,
    method: str,
    sparsity: float | str | Pattern,
    units: str,
    restore: bool,
) -> dict[str, Any]:
    """The settings of a measurement, for its summary; arguments as for `damage`."""
    network = Network(model)
    return {
        "intervention": "restore" if restore else "prune",
        "units": units,
        **({} if restore else {"method": method, "sparsity": str(sparsity)}),
        "samples": tokens.shape[0],
        "length": tokens.shape[1],
        "windows": held_out.shape[0],
        "window_length": held_out.shape[1],
        "bos_token": network.bos_in_front(tokens),
        "embedding_norms": embedding_norms(model),
        "environment": Precision.of("float32", network.dtype, network.device).environment(network.device),
    }


def dense_weights(dense: nn.Module, pruned: nn.Module, layers: Sequence[str] | None = None) -> dict[str, Tensor]:
    """What `damage` is to restore in a pruned model, by layer; raises RoseError where it was pruned from another model,
    or has lost decoder blocks since, or nothing of these layers, as `Network.select` takes them."""
    check_same_model(pruned, embedding_norms(dense), "The model to restore was not pruned from the dense one")
    full, left = Network(dense), Network(pruned)
    before, after = len(full.blocks), len(left.blocks)
    if before != after:
        raise RoseError(
            f"The model to restore has {after} decoder blocks and the dense one {before}, so their layers do not "
            "correspond; give the model as it was when blocks were taken out and nothing was pruned yet."
        )
    weights = {layer.name: layer.weight for layer in full.layers}
    _check_restored(weights, left.select(layers))
    return weights


def _check_restored(restore: Mapping[str, Tensor], selected: Sequence[PrunableLayer]) -> None:
    for layer in selected:
        if layer.name not in restore or restore[layer.name].shape != layer.weight.shape:
            raise RoseError(f"There is no dense weight of this shape for {layer.name}; give the same model, dense.")
    pairs = [(layer.weight, restore[layer.name].to(layer.weight)) for layer in selected]
    if all(torch.equal(now, before) for now, before in pairs):
        raise RoseError(
            "The layers to restore are those of the dense model, so nothing can be given back to them; give a pruned "
            "model."
        )
    zeros, before = (sum(int((pair[place] == 0).sum()) for pair in pairs) for place in (0, 1))
    if before > zeros:
        raise RoseError(
            f"The dense model has {whole(before)} zeros and the one to restore {whole(zeros)}: they are the wrong way "
            "round; exchange them."
        )


@dataclass(frozen=True)
class Unit:
    """A layer, or a decoder block with its chosen layers, which has no `projection`."""

    name: str
    block_index: int
    projection: str
    layers: list[PrunableLayer]


def units_of(network: Network, selected: Sequence[PrunableLayer], units: str) -> list[Unit]:
    """The units in the order in which they are visited."""
    if units == "layers":
        return [Unit(layer.name, layer.block_index, layer.projection, [layer]) for layer in selected]
    return [Unit(f"{network.prefix}.{index}", index, "", found) for index, found in by_block(selected).items()]


@dataclass(frozen=True)
class _Change:
    """What is done to one layer, and the error that belongs to it; see `DamageRecord`. `known`: what cautions look at,
    see `rose.verdicts.caution_column`."""

    layer: PrunableLayer
    weight: Tensor
    sparsity: float
    relative_error: float
    held_out_error: float
    output_error: float
    known: dict[str, Any]


def _change(
    settings: Settings, restore: Mapping[str, Tensor] | None, layer: PrunableLayer, block: BlockStatistics
) -> _Change:
    """Prunes or restores a layer on paper, with the errors of its pruned against its dense weight."""
    calibration, held_out = (statistics_of(layer, found) for found in (block.calibration, block.held_out))
    known: dict[str, Any] = {"tokens": calibration.tokens, "columns": calibration.columns}
    known["dead_columns"] = int(calibration.dead.sum())
    if restore is None:
        # Without the held-out inputs: a method that chooses by measuring would choose on the windows of the loss.
        result = prune_one(layer, block.calibration, replace(settings, measures=False))
        dense, pruned, sparsity = layer.weight, result.weight.to(layer.weight.dtype), result.sparsity
        known["is_damping_raised"] = result.damping > damping_of(layer, calibration, settings.damping)
        known |= {"asked_sparsity": settings.pattern.ratio, "zeros_before": float(dense.eq(0).double().mean())}
    else:
        dense, pruned = restore[layer.name], layer.weight
        sparsity = float((pruned.eq(0) & dense.to(pruned.device).ne(0)).float().mean())
    on_calibration, _ = _errors(dense, pruned, calibration)
    on_held_out, output = _errors(dense, pruned, held_out)
    known |= {"sparsity": sparsity, "relative_error": on_calibration, "held_out_error": on_held_out}
    massive = MassiveActivation.find(dense, pruned, calibration)
    known["massive"] = verdicts.massive_text(massive, on_calibration) if massive else ""
    changed = pruned if restore is None else dense
    return _Change(layer, changed, sparsity, on_calibration, on_held_out, output, known)


def _massive_text(unit: Unit, changes: Sequence[_Change]) -> str:
    """Of all layers with massive activations; those of a decoder block are named."""
    texts = [(change.layer.projection, change.known["massive"]) for change in changes if change.known["massive"]]
    return ". ".join(text if unit.projection else f"{projection}, {text}" for projection, text in texts)


def _errors(dense: Tensor, pruned: Tensor, inputs: InputStatistics) -> tuple[float, float]:
    """‖ΔW Xᵀ‖²/‖W Xᵀ‖², and ‖ΔW x‖² as a mean over tokens."""
    hessian = inputs.hessian
    weight = dense.to(hessian.device)
    change = max(quadratic_form(difference(weight, pruned.to(hessian.device)), hessian), 0.0)
    return ratio(change, quadratic_form(weight, hessian)), change / inputs.tokens


def _is_reached(layer: PrunableLayer, block: BlockStatistics) -> bool:
    """Whether the layer can be changed, and loss can show it: routing may leave an expert without any token."""
    return not any(is_left_dense(layer, found) for found in (block.calibration, block.held_out))


@contextmanager
def _written(changes: Sequence[_Change]) -> Iterator[None]:
    """While this lasts, the layers have their new weights."""
    before = [change.layer.weight.clone() for change in changes]
    try:
        for change in changes:
            change.layer.write(change.weight)
        yield
    finally:
        for change, weight in zip(changes, before, strict=True):
            change.layer.write(weight)


class _Run:
    """One measurement on its way through the units."""

    def __init__(
        self,
        network: Network,
        windows: Tensor,
        units: Sequence[Unit],
        done: set[str],
        progress: ProgressCallback | None,
        sign: float,
    ) -> None:
        self.sign = sign  # of damage, against the change of loss
        self.network, self.windows, self.units, self.done = network, windows, units, done
        self.blocks = len(network.blocks)
        self.work = pass_work(network, windows.numel())
        # Besides a pass for every unit: one without any change, one with all of them.
        self.total = 2 * self.work[0] + sum(self.work[unit.block_index] for unit in units if unit.name not in done)
        self.finished = 0.0
        self.meter = Meter(progress, self.blocks, len(units))
        self.meter.layers_done = sum(unit.name in done for unit in units)
        needed = {index for unit in units for index in (unit.block_index - 1, unit.block_index) if index >= 0}
        self.boundaries = Boundaries(network, needed)

    def visit(
        self, streams: Mapping[str, Tensor], selected: Sequence[PrunableLayer], change: Callable[..., _Change]
    ) -> Iterator[DamageRecord]:
        with evaluating(self.network.model, self.network.device):
            with self.boundaries.record():
                base = self._losses(0, "")
            every: list[_Change] = []
            for block in start_walk(self.network, streams, selected, self._walked).visit_dense():
                for unit in (unit for unit in self.units if unit.block_index == block.block_index):
                    began = time.perf_counter()
                    changes = [change(layer, block) for layer in unit.layers if _is_reached(layer, block)]
                    every += changes
                    if not changes:  # no token was routed to these experts
                        self.meter.layers_done += 1
                        self.total -= self.work[unit.block_index]
                    elif unit.name not in self.done:
                        yield self._measure(unit, changes, base, began)
                block.let_go()
            if not every:
                raise RoseError("No token was routed to any of the chosen experts; give more tokens.")
            yield self._measure(Unit(WHOLE, -1, "", []), every, base, time.perf_counter())
            self._tell("done", self.blocks - 1, "", 0.0)

    def _measure(self, unit: Unit, changes: list[_Change], base: Tensor, began: float) -> DamageRecord:
        index = max(unit.block_index, 0)
        drifts: list[Tensor] = []

        def watch(batch: int, hidden: Tensor) -> None:
            drifts.append(token_drift(hidden, self.boundaries.outputs[index][batch].to(hidden.device)).cpu())

        with _written(changes):
            if unit.name == WHOLE:
                losses = self._losses(0, unit.name)
            else:
                with self.boundaries.resume(index, watch):
                    losses = self._losses(index, unit.name)
        self.meter.layers_done += unit.name != WHOLE
        differences = losses - base
        delta = float(differences.mean())
        sizes = [change.weight.numel() for change in changes]
        return DamageRecord(
            unit=unit.name,
            block_index=unit.block_index,
            projection=unit.projection,
            weights=sum(sizes),
            sparsity=sum(c.sparsity * size for c, size in zip(changes, sizes, strict=True)) / sum(sizes),
            relative_error=sum(change.relative_error for change in changes) / len(changes),
            held_out_error=sum(change.held_out_error for change in changes) / len(changes),
            output_error=sum(change.output_error for change in changes),
            drift=float(torch.cat(drifts).mean()) if drifts else math.nan,
            loss=float(losses.mean()),
            delta_loss=delta,
            damage=self.sign * delta,
            standard_error=float(differences.std(correction=1)) / len(losses) ** 0.5 if len(losses) > 1 else math.nan,
            perplexity_ratio=perplexity_of(differences),
            seconds=time.perf_counter() - began,
            cautions=verdicts.in_brief(pd.DataFrame([change.known for change in changes])),
            massive=_massive_text(unit, changes),
        )

    def _losses(self, index: int, unit: str) -> Tensor:
        """Loss of each window, (windows,), in a pass that begins at a decoder block."""
        found = window_losses(
            self.network.model,
            self.windows,
            progress=lambda share: self._tell("damage", index, unit, self.work[index] * share),
        )
        self.finished += self.work[index]
        return found

    def _walked(self, progress: Progress) -> None:
        """The walk that gathers statistics is a small part of the work; it only tells that it is alive."""
        self._tell("calibrate", min(progress.block_index, self.blocks - 1), "", 0.0)

    def _tell(self, stage: str, index: int, unit: str, work: float) -> None:
        share = 1.0 if stage == "done" else min(0.999, (self.finished + work) / self.total)
        self.meter.tell_share(stage, index, share, unit or None)
