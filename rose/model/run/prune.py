"""A whole network, decoder block by decoder block: capture statistics, prune, propagate.

Every layer is calibrated on the outputs of the already pruned blocks below it, as SparseGPT's program does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor, nn

from rose.errors import RoseError
from rose.layer import error
from rose.layer.hessian import sampling_damping
from rose.layer.methods import (
    BasicOptions,
    Known,
    LayerResult,
    Settings,
    SettingsOptions,
    make_settings,
    prune_with,
)
from rose.layer.pattern import Pattern
from rose.layer.statistics import InputStatistics
from rose.layer.target import (
    InputGap,
    OutputGap,
    corrected_weight,
    damping_or_rule,
    target_error,
)
from rose.model.network.identity import embedding_norms
from rose.model.network.layers import LowRank, PrunableLayer, hidden_size, layers_to_prune, named
from rose.model.network.precision import DEFAULT, compute_dtype, decided, rounding
from rose.model.network.residence import is_streamed
from rose.model.progress import ALLOCATION_SHARE, Meter, ProgressCallback, part_callback, share_callback
from rose.model.run.allocation import allocate
from rose.model.run.checkpoint import describe_run, open_checkpoint
from rose.model.run.settings import RunOptions, RunSettings, run_settings
from rose.model.walk.capture import LEAVE_OUT, BlockStatistics, check_streams, start_walk, statistics_of, visit_blocks
from rose.model.walk.dense_states import dense_streams
from rose.model.walk.forward import bos_in_front, pick_device
from rose.model.walk.sequential import visit_sequentially
from rose.model.workers import divide, exchange, from_first, send_weights
from rose.report import LayerRecord, RunReport


def prune_model(
    model: nn.Module,
    tokens: Tensor,
    *,
    layers: Sequence[str] | None = None,
    held_out: Tensor | None = None,
    progress: ProgressCallback | None = None,
    checkpoint: str | Path | None = None,
    **options: Unpack[RunOptions],
) -> RunReport:
    """Prunes a model in place, decoder block by decoder block, with the already pruned ones below.

    Args:
        model: a transformers causal language model. Changed in place, layer after layer: a run that is stopped
            by its callback leaves the layers done so far pruned, each of them whole. One that `load_model` streams
            is changed when it is saved or read again.
        tokens: calibration tokens, (samples, length) int64.
        layers: names to prune, `*` allowed; None means every prunable layer.
        held_out: further tokens, (samples, length), on which each layer's error and the drift of the residual stream
            are measured too. Method "measured" chooses by them, so its held-out error is the best of several and not an
            independent estimate.
        progress: called with a `Progress` after every batch and every layer; may raise to stop the run.
        checkpoint: a folder that keeps every finished decoder block. A run that was stopped or killed resumes
            there when it is called again with the same arguments and the dense model; on the same machine its result
            is bit-identical. See `rose.model.run.checkpoint`.

    Keyword arguments besides:
        method, sparsity, block_size, damping, threshold, order, budget, options: see `rose.prune_layer`.
        allocation: "uniform", the same ratio in every layer; "owl", by the outliers of each decoder block, which
            costs one more pass over the dense model; "sensitivity", by the curvature of the loss, which costs two
            backward passes over 512 tokens of 16 samples. "sensitivity:0.05" spreads densities by α = 0.05 up and
            down, not 0.1. "damage:FOLDER", by what `rose damage` has measured there. The whole comes out at the asked
            ratio. See `rose.model.run.allocation`.
        target: "dense", what the dense model puts out there: each layer is corrected for what the pruned layers before
            it have lost, and then pruned. "layer", what the layer's own weight makes of the pruned inputs, as in the
            papers. See `rose.layer.target`.
        target_damping: μ of that correction, relative to the mean of diag(H); None chooses it by the numbers of tokens
            and of decoder blocks to prune, see `rose.layer.target.target_damping`.
        true_sequential: calibrate each layer on the pruned layers before it in its own decoder block too (GPTQ's mode
            of that name); target "dense" always does. One pass for each decoder block instead of two, for more memory;
            see `rose.model.walk.sequential`.
        min_expert_tokens: experts that fewer calibration tokens are routed to stay dense; those without any always do.
            Others of few tokens get a larger damping, see `rose.layer.hessian.sampling_damping`.
        compute: in which format forward passes, gaps to dense targets, and searches that make good their own rounding
            (`Settings.search`), multiply matrices: "auto", the faster one on this processor, "float32", the papers'
            way, which gives the same on every machine, or "bfloat16". Everything else is float32 anyway.
            See `rose.model.network.precision`.

    Returns:
        A `RunReport`; its `layers` is a DataFrame with one row per layer.

    Raises:
        RoseError: bad input, before any work; a layer that cannot be pruned, which is named; or a checkpoint that
            belongs to another run or cannot be written.
    """
    run = run_settings(**options)
    return prune_by(model, tokens, run, layers=layers, held_out=held_out, progress=progress, checkpoint=checkpoint)


def prune_by(
    model: nn.Module,
    tokens: Tensor,
    run: RunSettings,
    *,
    layers: Sequence[str] | None = None,
    held_out: Tensor | None = None,
    progress: ProgressCallback | None = None,
    checkpoint: str | Path | None = None,
) -> RunReport:
    """As `prune_model`, by settings that `run_settings` has made."""
    if is_streamed(model) and run.allocation.rule == "sensitivity":
        raise RoseError("Sensitivity needs the whole model in memory; choose uniform or owl for a streamed one.")
    settings = run.layer
    selected = layers_to_prune(model, layers, settings.pattern, settings.block_size)
    compute = from_first(partial(decided, run.compute, model, pick_device()))
    dtype, rounded = compute_dtype(compute, model, pick_device()), rounding(compute, model, pick_device())
    products = torch.bfloat16 if compute == "bfloat16" else torch.float32
    settings = replace(settings, search=products)
    streams = check_streams(model, tokens, held_out)
    start = time.perf_counter()
    share = ALLOCATION_SHARE.get(run.allocation.rule, 0.0)

    chosen = run.describe()
    if any(layer.is_expert for layer in selected):
        chosen["min_expert_tokens"] = run.min_expert_tokens
    computed = {"compute": str(dtype).removeprefix("torch.")}
    more = computed if rounded else {}  # checkpoints of earlier versions do not know it
    if settings.search != torch.float32 and not rounded:
        more = {"search": str(settings.search).removeprefix("torch.")}
    described = partial(describe_run, model, tokens, held_out, selected, settings, **chosen, **more)

    def dense_patterns() -> dict[str, Pattern]:
        dense = part_callback(progress, start, 0, share, "allocate")
        own = {"calibration": streams["calibration"]}

        def visit() -> Iterator[BlockStatistics]:
            return start_walk(model, own, selected, dense, compute=rounded, needs_all=True).visit_dense()

        tick = share_callback(progress, len(selected), start, share)
        found = allocate(model, tokens, selected, settings.pattern, run.allocation, visit, tick)
        return from_first(lambda: found)

    with open_checkpoint(model, checkpoint, described) as kept:
        patterns = kept.patterns(dense_patterns)
        dense = dense_streams(streams, run.target == "dense", kept.dense_activations)
        records = kept.restore(selected, dense.batches(streams) if dense else {})
        walking = part_callback(progress, start, share, 1) if share else progress
        walk = start_walk(model, streams, selected, walking, kept, dense, rounded, products, needs_all=True)
        walk.remedy = _remedy(run)
        mu = partial(damping_or_rule, run.target_damping, hidden_size(model), blocks=len(walk.by_block))
        done: list[LayerRecord] = []
        for block in visit_sequentially(walk) if run.sequential else walk.visit(propagate_again=True):
            done += _prune_block(block, settings, patterns, mu, run.min_expert_tokens, walk.meter)
            layers_of_block = walk.by_block[block.block_index]
            if len(done) == len(layers_of_block):
                names = [layer.name for layer in layers_of_block]
                done.sort(key=lambda record: names.index(record.layer))
                kept.add(block.block_index, layers_of_block, done, kept.seconds + time.perf_counter() - start)
                records += done
                done = []
        kept.finish()
    walk.meter.tell("done", max(walk.by_block), 1.0)
    experts = {layer.name for layer in selected if layer.is_expert}
    if experts:
        reached = [record.tokens or 0 for record in records if record.layer in experts]
        chosen["experts_left_dense"] = sum(tokens < run.min_expert_tokens for tokens in reached)
        chosen["fewest_expert_tokens"] = min(reached)
    return RunReport.from_records(
        records,
        method=settings.method,
        sparsity=str(settings.pattern),
        **chosen,
        **computed,
        options=settings.options,
        block_size=settings.block_size,
        damping=settings.damping,
        threshold=settings.threshold,
        samples=tokens.shape[0],
        length=tokens.shape[1],
        bos_token=bos_in_front(model, tokens),
        embedding_norms=embedding_norms(model),
        held_out_samples=0 if held_out is None else held_out.shape[0],
        drift=[asdict(kept.drifts[index]) for index in sorted(kept.drifts)],
        device=str(walk.device),
        seconds=kept.seconds + time.perf_counter() - start,
    )


def _prune_block(
    block: BlockStatistics,
    settings: Settings,
    patterns: Mapping[str, Pattern],
    mu: Callable[..., float],
    min_expert_tokens: int,
    meter: Meter,
) -> list[LayerRecord]:
    """Prunes one decoder block's layers in place; several processes prune some each.

    `mu` is the damping of a correction by the number of tokens.
    """
    owners = divide(block.layers, block.calibration)
    before = meter.layers_done

    def prune(number: int) -> tuple[LayerRecord, LowRank | None]:
        layer, began = block.layers[number], time.perf_counter()
        if is_left_dense(layer, block.calibration, min_expert_tokens):
            meter.layers_done += 1
            return dense_record(layer, block.calibration.pop(layer.name, None), settings), None
        held_out = block.held_out.get(layer.name)
        known = statistics_of(layer, block.calibration)
        own = replace(settings, pattern=patterns[layer.name], held_out=held_out, measures=False)
        wanted = _for_layer(own, layer, known)
        gap = block.gaps.get("calibration", {}).get(layer.name)
        with named(layer):
            aim, used = (
                corrected_weight(layer.weight, known, gap, mu(tokens=known.tokens)) if gap else (layer.weight, None)
            )
            # Corrected targets are float32; the layer keeps its own dtype.
            result = prune_with(aim.to(layer.weight.dtype), known, wanted)
        errors = _errors(layer, result, known, held_out, block.gaps)
        factors = result.low_rank and (result.low_rank[0].cpu(), result.low_rank[1].cpu())
        layer.write(result.weight)
        layer.keep_low_rank(factors)  # before the callback, which may stop the run
        meter.layers_done += 1
        before_all, after_all = block.work
        within = before_all + (after_all - before_all) * (number + 1) / len(block.layers)
        meter.tell("prune", block.block_index, within, layer.name, errors["relative_error"])
        # With the last layer that reads them, statistics and their factors go: they are the largest thing in memory.
        for stream in (block.calibration, block.held_out):
            stream.pop(layer.name, None)
        seconds = time.perf_counter() - began
        record = record_of(
            layer, result, seconds, damping=wanted.damping, tokens=known.tokens, target_damping=used, **errors
        )
        return replace(record, target=_target_of(gap)), factors

    done = exchange(owners, prune)
    records = [record for record, _ in done]
    for layer, (_, low_rank) in zip(block.layers, done, strict=True):
        layer.keep_low_rank(low_rank)  # those that other processes have found
    send_weights(block.layers, owners)
    _let_go(block)
    meter.layers_done = before + len(records)
    return records


def _remedy(run: RunSettings) -> str:
    """What the caller can do about a layer that cannot be calibrated in this mode."""
    if not run.sequential:
        return f"prune with true-sequential, or {LEAVE_OUT}"
    return f"prune {'with target layer' if run.target == 'dense' else 'without true-sequential'}, or {LEAVE_OUT}"


def _target_of(gap: InputGap | OutputGap | None) -> str:
    """What the layer was pruned towards; see `LayerRecord`."""
    if gap is None:
        return "layer"
    return "dense and stream" if isinstance(gap, OutputGap) else "dense"


def _let_go(block: BlockStatistics) -> None:
    """Drops a block's remaining statistics, which the walk would otherwise hold while it runs the next block."""
    block.calibration.clear()
    block.held_out.clear()
    block.gaps.clear()


def analyze_model(
    model: nn.Module,
    tokens: Tensor,
    *,
    methods: Sequence[str] = ("sparsegpt", "rose"),
    layers: Sequence[str] | None = None,
    held_out: Tensor | None = None,
    compute: str = DEFAULT,
    progress: ProgressCallback | None = None,
    **basic: Unpack[BasicOptions],
) -> Iterator[LayerRecord]:
    """Prunes every chosen layer by each method on the dense model's inputs; yields records as decoder blocks are done.

    The model is not changed, so all layers and methods are measured on the same inputs. Arguments as for
    `prune_model`; one record per layer and method.
    """
    settings = [make_settings(method, **basic) for method in dict.fromkeys(methods)]
    for block in visit_blocks(model, tokens, layers=layers, held_out=held_out, compute=compute, progress=progress):
        owners = divide(block.layers, block.calibration)
        for records in exchange(owners, partial(_measure_all, block, settings)):
            yield from records
        _let_go(block)


def _measure_all(block: BlockStatistics, settings: Sequence[Settings], number: int) -> list[LayerRecord]:
    layer = block.layers[number]
    held_out = block.held_out.get(layer.name)
    if is_left_dense(layer, block.calibration):
        return [dense_record(layer, None, each) for each in settings]
    known = Known(layer.weight)  # methods share what does not depend on them
    return [_measure(layer, block.calibration, held_out, replace(each, known=known)) for each in settings]


def measure_layer(
    layer: PrunableLayer,
    statistics: InputStatistics,
    held_out: InputStatistics | None = None,
    *,
    known: Known | None = None,
    **options: Unpack[SettingsOptions],
) -> LayerRecord:
    """Prunes one layer, without changing it, and returns the outcome in numbers. Arguments as for `prune_model`.

    `known`: shared by the methods that are compared on this layer, with these statistics; see `Known`.
    """
    settings = make_settings(**options)
    return _measure(layer, {layer.name: statistics}, held_out, replace(settings, known=known))


def _measure(
    layer: PrunableLayer,
    statistics: dict[str, InputStatistics],
    held_out: InputStatistics | None,
    settings: Settings,
) -> LayerRecord:
    began = time.perf_counter()
    result = prune_one(layer, statistics, replace(settings, held_out=held_out, measures=False))
    known = statistics_of(layer, statistics)
    errors = _errors(layer, result, known, held_out, {}, settings.known)
    asked = _for_layer(settings, layer, known).damping
    return record_of(layer, result, time.perf_counter() - began, damping=asked, tokens=known.tokens, **errors)


def error_of(
    layer: PrunableLayer, result: LayerResult, statistics: InputStatistics | None, shared: Known | None = None
) -> float | None:
    """Relative error on these inputs, against the weight that the layer has now; None without inputs."""
    if statistics is None:
        return None
    dense = shared.energy(layer.weight, statistics) if shared else None
    return error.relative_error(layer.weight, result.weight, statistics.hessian, dense)


def _errors(
    layer: PrunableLayer,
    result: LayerResult,
    known: InputStatistics,
    held_out: InputStatistics | None,
    gaps: Mapping[str, Mapping[str, InputGap | OutputGap]],
    shared: Known | None = None,
) -> dict[str, float | None]:
    """Relative errors against the layer's own dense output and against its dense target; None where not known."""
    weight = layer.weight
    found: dict[str, float | None] = {}
    for stream, prefix, statistics in (("calibration", "", known), ("held_out", "held_out_", held_out)):
        gap = gaps.get(stream, {}).get(layer.name)
        own = target = None
        if statistics is not None and gap is not None:
            change = error.quadratic_form(error.difference(weight, result.weight), statistics.hessian)
            dense = error.quadratic_form(weight, statistics.hessian)
            own = error.ratio(change, dense)
            of_layer = gap.of(weight)
            target = target_error(weight, result.weight, of_layer, change_energy=change, dense_energy=dense)
        else:
            own = error_of(layer, result, statistics, shared)
        found |= {f"{prefix or 'relative_'}error": own, f"{prefix}target_error": target}
    return found


def prune_one(layer: PrunableLayer, statistics: Mapping[str, InputStatistics], settings: Settings) -> LayerResult:
    """Prunes one layer by what was gathered, without changing it.

    Raises:
        RoseError: it received no input, or cannot be pruned; the layer is named.
    """
    known = statistics_of(layer, statistics)
    with named(layer):
        return prune_with(layer.weight, known, _for_layer(settings, layer, known))


def _for_layer(settings: Settings, layer: PrunableLayer, known: InputStatistics) -> Settings:
    """The settings with the damping that an expert's few tokens call for."""
    if not layer.is_expert:
        return settings
    return replace(settings, damping=max(settings.damping, sampling_damping(known.columns, known.tokens)))


def is_left_dense(layer: PrunableLayer, statistics: Mapping[str, InputStatistics], fewest: int = 1) -> bool:
    """Whether an expert stays as it is, because fewer than `fewest` tokens were routed to it."""
    known = statistics.get(layer.name)
    return layer.is_expert and (known is None or known.tokens < fewest)


def dense_record(layer: PrunableLayer, known: InputStatistics | None, settings: Settings) -> LayerRecord:
    """The record of a layer that was left dense; `known`: of its few tokens, if there were any."""
    rows, columns = layer.weight.shape
    return LayerRecord(
        layer=layer.name,
        block_index=layer.block_index,
        projection=layer.projection,
        rows=rows,
        columns=columns,
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
    layer: PrunableLayer,
    result: LayerResult,
    seconds: float,
    *,
    damping: float,
    relative_error: float | None = None,
    held_out_error: float | None = None,
    target_error: float | None = None,
    held_out_target_error: float | None = None,
    target_damping: float | None = None,
    tokens: int | None = None,
) -> LayerRecord:
    """The outcome of one layer in numbers; `relative_error` is the result's own where none is given.

    `damping` is what was asked for.
    """
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
        relative_error=result.relative_error if relative_error is None else relative_error,
        held_out_error=held_out_error,
        target_error=target_error,
        held_out_target_error=held_out_target_error,
        damping=result.damping,
        target_damping=target_damping,
        dead_columns=int(result.plan.hessian_diagonal.eq(0).sum()),
        seconds=seconds,
        order=result.order.name,
        budget=result.budget,
        tokens=tokens,
        is_damping_raised=result.damping > damping,
    )
