"""A whole network, decoder block by decoder block: capture statistics, prune, propagate.

Every layer is calibrated on the outputs of the already pruned blocks below it, as SparseGPT's program does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Unpack

from torch import Tensor, nn

from rose.errors import RoseError
from rose.layer.methods import BasicOptions, Known, Settings, make_settings
from rose.layer.pattern import Pattern
from rose.layer.statistics import InputStatistics
from rose.layer.target import damping_or_rule
from rose.model.defaults import ALLOCATIONS
from rose.model.network.heads import rotated_heads
from rose.model.network.layers import LowRank, PrunableLayer
from rose.model.network.network import Network
from rose.model.network.precision import DEFAULT, Precision
from rose.model.progress import Meter, ProgressCallback, part_callback
from rose.model.run.allocation import allocate
from rose.model.run.checkpoint import begun_with, describe_run, open_checkpoint, report_inputs
from rose.model.run.one_layer import dense_record, is_left_dense, prune_in
from rose.model.run.settings import RunOptions, RunSettings, describe_layer, run_settings
from rose.model.walk.collector import LEAVE_OUT, statistics_of
from rose.model.walk.dense_states import dense_streams
from rose.model.walk.sequential import visit_sequentially
from rose.model.walk.walk import BlockStatistics, Walk, check_streams, start_walk, visit_blocks
from rose.model.workers import Workers
from rose.report import RunReport
from rose.rows import LayerRecord
from rose.wording import several


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
            by its callback leaves the layers done so far pruned, each of them whole; a note on the exception counts
            them. One that `load_model` streams is changed when it is saved or read again.
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
        method, sparsity, block_size, damping, threshold, bits, group, order, budget, options: see `rose.prune_layer`.
        allocation: "uniform" (the default), the same ratio in every layer; "owl", by the outliers of each decoder
            block, which costs one more pass over the dense model; "sensitivity", by the curvature of the loss, which
            costs two backward passes over 512 tokens of 16 samples. "sensitivity:0.05" spreads densities by α = 0.05
            up and down, not 0.1. "damage:FOLDER", by what `rose damage` has measured there. The whole comes out at the
            asked ratio. See `rose.model.run.allocation`.
        target: "dense" (the default), what the dense model puts out there: each layer is corrected for what the pruned
            layers before it have lost, and then pruned. "layer", what the layer's own weight makes of the pruned
            inputs, as in the papers. See `rose.layer.target`.
        target_damping: μ of that correction, relative to the mean of diag(H); None chooses it by the numbers of tokens
            and of decoder blocks to prune, see `rose.layer.target.target_damping`.
        true_sequential: calibrate each layer on the pruned layers before it in its own decoder block too (GPTQ's mode
            of that name), off by default; target "dense" always does. One pass for each decoder block instead of two,
            for more memory; see `rose.model.walk.sequential`.
        min_expert_tokens: experts that fewer calibration tokens are routed to stay dense, by default none; those
            without any always do. Others of few tokens get a larger damping, see `rose.layer.hessian.sampling_damping`.
        compute: format in which forward passes, gaps to dense targets and ADMM multiply matrices: "auto" (the default),
            bfloat16 where the processor has instructions for it, "float32", the papers' way, which gives the same on
            every machine, or "bfloat16". H and sweeps are always float32. See `rose.model.network.precision`.

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
    network, workers = Network(model), Workers.here()
    if network.is_streamed and run.allocation.rule == "sensitivity":
        raise RoseError("Sensitivity needs the whole model in memory; choose uniform or owl for a streamed one.")
    selected = network.to_prune(layers, run.layer.pattern, run.layer.block_size, run.layer.grid)
    run.check_experts(selected)
    compute = (run.compute == DEFAULT and begun_with(checkpoint, "products")) or run.compute
    precision = workers.from_first(partial(Precision.of, compute, network.dtype, network.device))
    settings = run.layer
    streams = check_streams(network, tokens, held_out)
    start, share = time.perf_counter(), ALLOCATIONS.get(run.allocation.rule, 0.0)

    def dense_patterns() -> dict[str, Pattern]:
        part = part_callback(progress, start, 0, share, "allocate")
        own = {"calibration": streams["calibration"]}

        def visit() -> Iterator[BlockStatistics]:
            return start_walk(network, own, selected, part, precision=precision, needs_all=True).visit_dense()

        tick = partial(Meter(part, 1, len(selected)).tell, "allocate", 0)
        found = allocate(network, tokens, selected, settings.pattern, run.allocation, visit, tick)
        return workers.from_first(lambda: found)

    described = partial(describe_run, network, tokens, held_out, selected, run, precision)
    with open_checkpoint(network, checkpoint, described) as kept:
        patterns = kept.patterns(dense_patterns)
        dense = dense_streams(streams, run.target == "dense", kept.dense_activations)
        records = kept.restore(selected, dense.batches(streams))
        walking = part_callback(progress, start, share, 1) if share else progress
        walk = start_walk(
            network, streams, selected, walking, kept=kept, dense=dense, precision=precision, needs_all=True,
            remedy=_remedy(run),
        )  # fmt: skip
        pruning = _Pruning(run, patterns, walk, start)
        try:
            for block in visit_sequentially(walk) if run.sequential else walk.visit(propagate_again=True):
                records += pruning.visit(block)
        except BaseException as problem:
            if walk.meter.layers_done and not network.is_streamed:  # whose files stay as they are
                problem.add_note(f"{walk.meter.layers_done} of {len(selected)} layers of the model are pruned now.")
            raise
        kept.finish()
    walk.meter.tell("done", walk.last, 1.0)
    experts = {layer.name for layer in selected if layer.is_expert}
    return RunReport.from_records(
        records,
        {"run": "prune"} | describe_layer(settings) | run.describe(),
        **_of_experts([record for record in records if record.layer in experts], run.min_expert_tokens),
        compute=precision.describe()["compute"],
        **report_inputs(network, tokens, held_out, kept, precision),
        rotated_heads=rotated_heads(model),
        device=str(network.device),
        seconds=kept.seconds + time.perf_counter() - start,
    )


def _of_experts(records: Sequence[LayerRecord], fewest: int) -> dict[str, int]:
    """What a report says of a mixture of experts; nothing of other models."""
    if not records:
        return {}
    reached = [record.tokens or 0 for record in records]
    left = sum(tokens < fewest for tokens in reached)
    return {"min_expert_tokens": fewest, "experts_left_dense": left, "fewest_expert_tokens": min(reached)}


def _remedy(run: RunSettings) -> str:
    """What the caller can do about a layer that cannot be calibrated in this mode."""
    if not run.sequential:
        return f"prune with true-sequential, or {LEAVE_OUT}"
    return f"prune {'with target layer' if run.target == 'dense' else 'without true-sequential'}, or {LEAVE_OUT}"


@dataclass(frozen=True)
class _Pruning:
    """How the decoder blocks of a walk are pruned; `start` is when the run began, `done` of the block at work."""

    run: RunSettings
    patterns: Mapping[str, Pattern]
    walk: Walk
    start: float
    done: list[LayerRecord] = field(default_factory=list)

    def visit(self, block: BlockStatistics) -> list[LayerRecord]:
        """Prunes the layers that are next; keeps their decoder block, and returns its records, once it is done."""
        self.done.extend(self._prune(block))
        layers, kept = self.walk.by_block[block.block_index], self.walk.kept
        if len(self.done) < len(layers):
            return []
        names = [layer.name for layer in layers]
        done = sorted(self.done, key=lambda record: names.index(record.layer))
        self.done.clear()
        kept.add(block.block_index, layers, done, kept.seconds + time.perf_counter() - self.start)
        return done

    def _prune(self, block: BlockStatistics) -> list[LayerRecord]:
        """Prunes these layers in place; several processes prune some each."""
        workers, meter = self.walk.workers, self.walk.meter
        owners = workers.divide(block.layers, block.calibration)
        before = meter.layers_done
        done = workers.exchange(owners, partial(self._prune_layer, block))
        for layer, (_, low_rank) in zip(block.layers, done, strict=True):
            layer.keep_low_rank(low_rank)  # those that other processes have found
        workers.send_weights(block.layers, owners)
        block.let_go()
        meter.layers_done = before + len(done)
        return [record for record, _ in done]

    def _prune_layer(self, block: BlockStatistics, number: int) -> tuple[LayerRecord, LowRank | None]:
        layer, meter = block.layers[number], self.walk.meter
        if is_left_dense(layer, block.calibration, self.run.min_expert_tokens):
            meter.layers_done += 1
            return dense_record(layer, block.calibration.pop(layer.name, None), self.run.layer), None
        result, record = prune_in(
            block, layer, replace(self.run.layer, pattern=self.patterns[layer.name]), self._target_damping
        )
        factors = result.low_rank and (result.low_rank[0].cpu(), result.low_rank[1].cpu())
        layer.write(result.weight)
        layer.keep_low_rank(factors)  # before the callback, which may stop the run
        meter.layers_done += 1
        before, after = block.work
        within = before + (after - before) * (number + 1) / len(block.layers)
        meter.tell("prune", block.block_index, within, layer.name, record.relative_error)
        # With the last layer that reads them, statistics and their factors go: they are the largest thing in memory.
        for stream in (block.calibration, block.held_out):
            stream.pop(layer.name, None)
        return record, factors

    def _target_damping(self, tokens: int) -> float:
        hidden = self.walk.network.config.hidden_size
        return damping_or_rule(self.run.target_damping, hidden, tokens, len(self.walk.by_block))


def analyze_model(
    model: nn.Module,
    tokens: Tensor,
    *,
    methods: Sequence[str] = ("sparsegpt", "rose"),
    layers: Sequence[str] | None = None,
    held_out: Tensor | None = None,
    compute: str = DEFAULT,
    progress: ProgressCallback | None = None,
    seen: Callable[[PrunableLayer, InputStatistics, LayerRecord], None] | None = None,
    **basic: Unpack[BasicOptions],
) -> Generator[LayerRecord, None, None]:
    """Prunes every chosen layer by each method on the dense model's inputs; yields records as decoder blocks are done.

    The model is not changed, so all layers and methods are measured on the same inputs. Arguments as for
    `prune_model`, checked at once; one record per layer and method. Who ends the loop early and keeps the iterator
    calls its `close()`, as for `visit_blocks`.

    `seen` is called with every layer that was pruned, its statistics and its first record, by the process that did it.
    """
    if not methods:
        raise RoseError("No method is chosen; name at least one.")
    settings = [make_settings(method, **basic) for method in dict.fromkeys(several(methods))]
    blocks = visit_blocks(model, tokens, layers=layers, held_out=held_out, compute=compute, progress=progress)

    def analyze() -> Generator[LayerRecord, None, None]:
        workers = Workers.here()
        with closing(blocks):
            for block in blocks:
                owners = workers.divide(block.layers, block.calibration)
                for records in workers.exchange(owners, partial(_measure_all, block, settings, seen)):
                    yield from records
                block.let_go()

    return analyze()


def _measure_all(
    block: BlockStatistics,
    settings: Sequence[Settings],
    seen: Callable[[PrunableLayer, InputStatistics, LayerRecord], None] | None,
    number: int,
) -> list[LayerRecord]:
    layer = block.layers[number]
    if is_left_dense(layer, block.calibration):
        return [dense_record(layer, None, each) for each in settings]
    known = Known(layer.weight)  # methods share what does not depend on them
    records = [prune_in(block, layer, replace(each, known=known))[1] for each in settings]
    if seen is not None:
        seen(layer, statistics_of(layer, block.calibration), records[0])
    return records
