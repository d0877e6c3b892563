"""One layer of a model, pruned by what calibration knows of its inputs: the result, its errors, and its record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Unpack

from torch import Tensor

from rose.layer import error
from rose.layer.hessian import sampling_damping
from rose.layer.massive import MassiveActivation
from rose.layer.methods import Known, LayerResult, Settings, SettingsOptions, make_settings, prune_with, zeros_to_keep
from rose.layer.statistics import InputStatistics
from rose.layer.target import InputGap, OutputGap, corrected_weight, target_error
from rose.model.network.layers import PrunableLayer, named
from rose.model.walk.collector import statistics_of
from rose.model.walk.walk import BlockStatistics
from rose.rows import LayerRecord
from rose.verdicts import massive_text


def measure_layer(
    layer: PrunableLayer,
    statistics: InputStatistics,
    held_out: InputStatistics | None = None,
    *,
    known: Known | None = None,
    **options: Unpack[SettingsOptions],
) -> LayerRecord:
    """Prunes one layer, without changing it, and returns the outcome in numbers. Arguments as for `rose.prune_model`;
    `known` is shared by the methods that are compared on this layer."""
    others = {} if held_out is None else {layer.name: held_out}
    block = BlockStatistics(layer.block_index, [layer], {layer.name: statistics}, others)
    return prune_in(block, layer, replace(make_settings(**options), known=known))[1]


def prune_in(
    block: BlockStatistics,
    layer: PrunableLayer,
    settings: Settings,
    target_damping: Callable[[int], float] = lambda _tokens: 0.0,
) -> tuple[LayerResult, LayerRecord]:
    """Prunes one layer of a decoder block, without changing it: towards its dense target where its gap is known, and in
    the block's number format.

    `target_damping`: μ of the correction, by the number of tokens. Raises RoseError, naming the layer.
    """
    began, weight = time.perf_counter(), layer.weight
    known, held_out = statistics_of(layer, block.calibration), block.held_out.get(layer.name)
    gaps = {stream: found[layer.name] for stream, found in block.gaps.items() if layer.name in found}
    gap, used, asked = gaps.get("calibration"), None, target_damping(known.tokens)
    # A corrected target has no zeros any more.
    zeros, damping = zeros_to_keep(weight, settings), damping_of(layer, known, settings.damping)
    own = replace(settings, damping=damping, held_out=held_out, measures=False, zeros=zeros, products=block.products)
    with named(layer):
        if gap is not None:
            # Corrected targets are float32; the layer keeps its own dtype.
            corrected, used = corrected_weight(weight, known, gap, asked)
            result = prune_with(corrected.to(weight.dtype), known, own)
        else:
            result = prune_with(weight, known, own)
    found: dict[str, Any] = {}
    found["relative_error"], found["target_error"] = _errors(layer, result, known, gap, own.known)
    if held_out is not None:
        errors = _errors(layer, result, held_out, gaps.get("held_out"), own.known)
        found["held_out_error"], found["held_out_target_error"] = errors
    if gap is not None:
        found["target"] = "dense and stream" if isinstance(gap, OutputGap) else "dense"
    seconds = time.perf_counter() - began
    found |= {"tokens": known.tokens, "target_damping": used}
    found["is_damping_raised"] = result.damping > damping or (used is not None and used > asked)
    result = replace(result, massive=MassiveActivation.find(layer.weight, result.weight, known))
    return result, record_of(layer, result, seconds, own, **found)


def _errors(
    layer: PrunableLayer,
    result: LayerResult,
    inputs: InputStatistics,
    gap: InputGap | OutputGap | None,
    shared: Known | None,
) -> tuple[float, float | None]:
    """Relative errors against the layer's own dense output, and against its dense target where the gap is known."""
    weight = layer.weight
    if gap is None:
        dense = shared.energy(weight, inputs) if shared else None
        return error.relative_error(weight, result.weight, inputs.hessian, dense), None
    change = error.quadratic_form(error.difference(weight, result.weight), inputs.hessian)
    dense = error.quadratic_form(weight, inputs.hessian)
    target = target_error(weight, result.weight, gap.of(weight), change_energy=change, dense_energy=dense)
    return error.ratio(change, dense), target


def prune_one(layer: PrunableLayer, statistics: Mapping[str, InputStatistics], settings: Settings) -> LayerResult:
    """Prunes one layer by what was gathered, without changing it; raises RoseError, naming the layer."""
    known = statistics_of(layer, statistics)
    with named(layer):
        return prune_with(layer.weight, known, replace(settings, damping=damping_of(layer, known, settings.damping)))


def damping_of(layer: PrunableLayer, known: InputStatistics, asked: float) -> float:
    """The damping asked for, or what an expert's few tokens call for where that is more."""
    return max(asked, sampling_damping(known.columns, known.tokens)) if layer.is_expert else asked


def is_left_dense(layer: PrunableLayer, statistics: Mapping[str, InputStatistics], fewest: int = 1) -> bool:
    """Whether an expert stays as it is, because fewer than `fewest` tokens were routed to it."""
    known = statistics.get(layer.name)
    return layer.is_expert and (known is None or known.tokens < fewest)


def dense_record(layer: PrunableLayer, known: InputStatistics | None, settings: Settings) -> LayerRecord:
    """The record of a layer that was left dense; `known`: of its few tokens, if there were any."""
    return LayerRecord(
        **_place(layer),
        method=settings.method,
        sparsity=0.0,
        relative_range=0.0,
        is_columnar=False,
        relative_error=0.0,
        held_out_error=None,
        damping=settings.damping,
        dead_columns=0 if known is None else int(known.dead.sum()),
        seconds=0.0,
        order="natural",
        budget="layer",
        tokens=0 if known is None else known.tokens,
    )


def record_of(
    layer: PrunableLayer, result: LayerResult, seconds: float, settings: Settings, **found: Any
) -> LayerRecord:
    """The outcome of one layer, not changed yet, in numbers.

    `settings` are what was asked for; `found` are fields of `LayerRecord` that the result does not know, or knows less
    well: errors on other inputs or against other targets, tokens.
    """
    is_raised = result.damping > settings.damping
    told = {"relative_error": result.relative_error, "held_out_error": None, "is_damping_raised": is_raised}
    before, dead = int(layer.weight.eq(0).sum()) / layer.weight.numel(), result.plan.hessian_diagonal.eq(0)
    beyond_the_mask = before or bool(dead.any())
    return LayerRecord(
        **_place(layer),
        method=result.method,
        sparsity=max(result.sparsity, _share_gone(layer.weight, result, dead)) if beyond_the_mask else result.sparsity,
        zeros_before=before,
        relative_range=result.plan.relative_range,
        is_columnar=result.plan.is_columnar,
        column_variation=result.plan.column_variation,
        damping=result.damping,
        dead_columns=int(dead.sum()),
        seconds=seconds,
        order=result.order.name,
        budget=result.budget,
        asked_sparsity=settings.pattern.ratio,
        pruning_error=result.pruning_error,
        rounding_error=result.rounding_error,
        massive=massive_text(result.massive) if result.massive else "",
        error_without_massive=result.massive.error if result.massive else None,
        **told | found,
    )


def _share_gone(weight: Tensor, result: LayerResult, dead: Tensor) -> float:
    """Of weights that are zero now and were removed, dead or zero before: not of those that rounding has made 0."""
    gone = result.weight.eq(0) & (result.mask | weight.eq(0).to(result.mask.device) | dead.to(result.mask.device))
    return float(gone.double().mean())


def _place(layer: PrunableLayer) -> dict[str, Any]:
    rows, columns = layer.weight.shape
    place = {"layer": layer.name, "block_index": layer.block_index, "projection": layer.projection}
    return {**place, "rows": rows, "columns": columns}
