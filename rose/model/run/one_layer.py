"""One layer of a model, pruned with its calibration statistics: the result, its errors, and its record."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from rose.layer import error
from rose.layer.error import MassiveActivation
from rose.layer.hessian import sampling_damping
from rose.layer.loss import variance_between
from rose.layer.methods import Context, prune_with, zeros_to_keep
from rose.layer.result import LayerResult
from rose.layer.settings import LayerSettings
from rose.layer.split import split_error
from rose.layer.statistics import InputStatistics
from rose.layer.target import InputGap, OutputGap, corrected_weight, target_error
from rose.model.network.layers import PrunableLayer, naming
from rose.model.walk.walk import BlockStatistics, statistics_of
from rose.rows import LayerRecord
from rose.verdicts import massive_text


@dataclass
class Energies:
    """tr(W H Wᵀ) of one W, (out, in), by statistics with H: methods that are compared on a layer share it, also in
    several threads; the first that needs a value stores it."""

    weight: Tensor
    energies: WeakKeyDictionary[InputStatistics, float] = field(default_factory=WeakKeyDictionary)

    def on(self, statistics: InputStatistics) -> float:
        if statistics not in self.energies:
            self.energies[statistics] = error.quadratic_form(self.weight, statistics.hessian)
        return self.energies[statistics]


def prune_in(
    block: BlockStatistics,
    layer: PrunableLayer,
    settings: LayerSettings,
    correction_damping: Callable[[int], float] = lambda _tokens: 0.0,
    energies: Energies | None = None,
    *,
    split: bool = False,
) -> tuple[LayerResult, LayerRecord]:
    """Prunes one layer of a decoder block on a copy, towards its dense target if `block.gaps` has its gap.

    `correction_damping`: tokens -> μ of the correction. Methods that are compared on the layer share its `energies`.
    `split`: whether to measure the mask's part of the error, where the result has such parts.
    Raises RoseError with the layer's name.
    """
    start, weight, name = time.perf_counter(), layer.weight, layer.name
    energies = energies or Energies(weight)
    statistics, held_out = statistics_of(layer, block.calibration), block.held_out.get(name)
    gap, held_out_gap = (block.gaps.get(stream, {}).get(name) for stream in ("calibration", "held_out"))
    settings = settings.changed(damping=damping_of(layer, statistics, settings.damping))
    # A weight corrected towards a target has no zeros.
    context = Context(products=block.products, zeros=zeros_to_keep(weight, settings))
    fields: dict[str, Any] = {}
    with naming(layer):
        target = weight
        if gap is not None:
            mu = correction_damping(statistics.tokens)
            corrected, used = corrected_weight(weight, statistics, gap, mu)
            target = corrected.to(weight.dtype)  # corrected targets are float32; the layer keeps its dtype
            fields["target"] = "dense and stream" if isinstance(gap, OutputGap) else "dense"
            fields |= {"target_damping": used, "is_damping_raised": used > mu}
        result = prune_with(target, statistics, settings, context)
    fields["is_damping_raised"] = fields.get("is_damping_raised", False) or result.damping > settings.damping
    errors = _errors(energies, result.weight, statistics, gap)
    fields["relative_error"], fields["target_error"] = errors
    if gap is not None and (both := (result.pruning_error or 0.0) + (result.rounding_error or 0.0)):
        left = _errors(energies, target, statistics, gap)[1] or 0.0  # by the weights to approximate
        scale = (fields["target_error"] - left) / both
        fields |= {name: getattr(result, name) * scale for name in ("pruning_error", "rounding_error")}
    if split and result.low_rank is None and settings.grid is None:
        fields["mask_error"] = split_error(weight, statistics, result, target=target, gap=gap).mask
    if held_out is not None:
        errors = _errors(energies, result.weight, held_out, held_out_gap)
        fields["held_out_error"], fields["held_out_target_error"] = errors
    return result, record_of(layer, result, statistics, time.perf_counter() - start, settings, **fields)


def _errors(
    energies: Energies, pruned: Tensor, inputs: InputStatistics, gap: InputGap | OutputGap | None
) -> tuple[float, float | None]:
    """Relative errors of Ŵ, (out, in), against the layer's own dense output and, with a gap, against its dense
    target."""
    weight, dense = energies.weight, energies.on(inputs)
    change = error.quadratic_form(error.difference(weight, pruned), inputs.hessian)
    if gap is None:
        return error.ratio(change, dense), None
    target = target_error(weight, pruned, gap.of(weight), change_energy=change, dense_energy=dense)
    return error.ratio(change, dense), target


def measure_layer(
    layer: PrunableLayer,
    statistics: InputStatistics,
    held_out: InputStatistics | None,
    settings: LayerSettings,
    energies: Energies | None = None,
) -> LayerRecord:
    """The record of pruning one layer, which is not changed; arguments as of `prune_in`."""
    second = {} if held_out is None else {layer.name: held_out}
    block = BlockStatistics(layer.block_index, [layer], {layer.name: statistics}, second)
    return prune_in(block, layer, settings, energies=energies)[1]


def prune_one(layer: PrunableLayer, statistics: Mapping[str, InputStatistics], settings: LayerSettings) -> LayerResult:
    """Prunes one layer on a copy; its errors are not measured. `statistics`: by layer name. Raises RoseError with the
    layer's name."""
    inputs = statistics_of(layer, statistics)
    with naming(layer):
        return prune_with(layer.weight, inputs, settings.changed(damping=damping_of(layer, inputs, settings.damping)))


def damping_of(layer: PrunableLayer, statistics: InputStatistics, damping: float) -> float:
    """The damping of the settings, or a larger one for an expert with few tokens."""
    return max(damping, sampling_damping(statistics.columns, statistics.tokens)) if layer.is_expert else damping


def is_left_dense(layer: PrunableLayer, statistics: Mapping[str, InputStatistics], fewest: int = 1) -> bool:
    """Whether an expert stays dense, because fewer than `fewest` tokens were routed to it."""
    inputs = statistics.get(layer.name)
    return layer.is_expert and (inputs is None or inputs.tokens < fewest)


def dense_record(layer: PrunableLayer, statistics: InputStatistics | None, settings: LayerSettings) -> LayerRecord:
    tokens, dead = (0, 0) if statistics is None else (statistics.tokens, int(statistics.dead.sum()))
    return LayerRecord(
        **_place(layer), method=settings.method, sparsity=0.0, relative_range=0.0, is_columnar=False,
        relative_error=0.0, held_out_error=None, damping=settings.damping, dead_columns=dead, seconds=0.0,
        order="natural", budget="layer", tokens=tokens,
    )  # fmt: skip


def record_of(
    layer: PrunableLayer,
    result: LayerResult,
    statistics: InputStatistics,
    seconds: float,
    settings: LayerSettings,
    **fields: Any,
) -> LayerRecord:
    """The record of one layer, which is not changed yet. `fields` of `LayerRecord` override the result's."""
    plan, massive = result.plan, MassiveActivation.find(layer.weight, result.weight, statistics)
    before, dead = int(layer.weight.eq(0).sum()) / layer.weight.numel(), plan.hessian_diagonal.eq(0)
    sparsity = result.sparsity
    if before or bool(dead.any()):
        device = result.mask.device  # zeros from rounding do not count
        removed = result.mask | layer.weight.eq(0).to(device) | dead.to(device)
        sparsity = max(sparsity, float((result.weight.eq(0) & removed).double().mean()))
    low, high = plan.interval or (None, None)
    width = layer.head_width
    from_result = {
        "range_low": low,
        "range_high": high,
        "heads_per_block": width and plan.block_size / width,
        "between_heads": width and variance_between(plan.column_loss, width),
        "relative_error": result.relative_error,
        "held_out_error": None,
        "is_damping_raised": result.damping > settings.damping,
        "pruning_error": result.pruning_error,
        "rounding_error": result.rounding_error,
    }
    return LayerRecord(
        **_place(layer), method=result.method, sparsity=sparsity, zeros_before=before,
        relative_range=plan.relative_range, is_columnar=plan.is_columnar, column_variation=plan.column_variation,
        damping=result.damping, dead_columns=int(dead.sum()), seconds=seconds, order=result.order.name,
        budget=result.budget, asked_sparsity=settings.pattern.ratio, massive=massive_text(massive) if massive else "",
        error_without_massive=massive.error if massive else None, tokens=statistics.tokens, **from_result | fields,
    )  # fmt: skip


def _place(layer: PrunableLayer) -> dict[str, Any]:
    rows, columns = layer.weight.shape
    place = {"layer": layer.name, "block_index": layer.block_index, "projection": layer.projection}
    return {**place, "rows": rows, "columns": columns}
