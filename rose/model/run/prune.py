"""A whole network pruned, decoder block by decoder block: gather statistics, prune, propagate.

Each layer is calibrated on the outputs of the pruned blocks below it, as in SparseGPT's program.
"""

import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rose.errors import RoseError
from rose.layer.pattern import BLOCK_SIZE, DAMPING, METHOD, SPARSITY, THRESHOLD, Pattern
from rose.layer.registry import Value
from rose.layer.settings import LayerSettings, SharedSettings
from rose.layer.statistics import InputStatistics
from rose.layer.target import correction_damping
from rose.model.defaults import ALLOCATIONS
from rose.model.network.layers import LowRank, PrunableLayer, check_prunable, low_rank_tensors
from rose.model.network.network import Network
from rose.model.network.precision import DEFAULT
from rose.model.progress import Meter, ProgressCallback, part_callback
from rose.model.run.allocation import allocate
from rose.model.run.checkpoint import begun_with, describe_run, open_checkpoint, report_inputs
from rose.model.run.one_layer import Energies, dense_record, is_left_dense, prune_in
from rose.model.settings import PruneSettings
from rose.model.walk.sequential import visit_sequentially
from rose.model.walk.walk import (
    LEAVE_OUT,
    BlockStatistics,
    Walk,
    check_streams,
    start_walk,
    statistics_of,
    visit_blocks,
)
from rose.model.workers import Workers
from rose.report import RunReport
from rose.rows import LayerRecord
from rose.wording import several


@PruneSettings.explain
def prune_model(
    model: nn.Module,
    tokens: Tensor,
    *,
    method: str = METHOD,
    sparsity: float | str | Pattern = SPARSITY,
    block_size: int | str = BLOCK_SIZE,
    damping: float = DAMPING,
    threshold: float = THRESHOLD,
    order: str | None = None,
    budget: str | None = None,
    options: Mapping[str, Value] | None = None,
    bits: int | None = None,
    group: int | str | None = None,
    layers: Sequence[str] | None = None,
    allocation: str = "uniform",
    target: str = "dense",
    target_damping: float | None = None,
    true_sequential: bool = False,
    min_expert_tokens: int = 1,
    compute: str = DEFAULT,
    held_out: Tensor | None = None,
    progress: ProgressCallback | None = None,
    checkpoint: str | Path | None = None,
) -> RunReport:
    """Prunes a model in place, decoder block by decoder block; each is calibrated on the pruned blocks below it.

    Args:
        model: a transformers causal language model. A run that its callback stops leaves finished layers pruned; a
            note on the exception counts them. A streamed model is changed when it is saved or read again.
        tokens: calibration tokens, (samples, length) int64.
        layers: names to prune, `*` allowed; None means every prunable layer.
        held_out: further tokens to measure errors and drift on; no method sees them.
        progress: called with a `Progress` after every batch and every layer; may raise to stop the run.
        checkpoint: a folder from which the same call with the dense model resumes a stopped run. On the same machine
            its weights are equal.

    Returns:
        A `RunReport`; its `layers` is a DataFrame with one row per layer.

    Raises:
        RoseError: bad input, before any work; a layer that cannot be pruned, by name; or a checkpoint that belongs to
            another run or cannot be written.
    """
    run = PruneSettings.among(locals())
    return prune_by(Network(model), tokens, run, held_out=held_out, progress=progress, checkpoint=checkpoint)


def prune_by(
    network: Network,
    tokens: Tensor,
    run: PruneSettings,
    *,
    held_out: Tensor | None = None,
    progress: ProgressCallback | None = None,
    checkpoint: str | Path | None = None,
) -> RunReport:
    """As `prune_model`, by complete settings."""
    start, workers = time.perf_counter(), Workers.here()
    run = run.in_columns(network.head_width)
    selected = network.select(run.layers)
    check_layers(selected, network, run)
    compute = run.compute
    if compute == DEFAULT:  # another machine, which has begun the run, may have chosen another format
        compute = begun_with(checkpoint, "products") or compute
    precision = workers.precision(compute, network)
    streams = check_streams(network, tokens, held_out)
    share = ALLOCATIONS.get(run.sharing.rule, 0.0)
    part = part_callback(progress, start, 0, share, "allocate")
    walking = part_callback(progress, start, share, 1) if share else progress
    begin = partial(start_walk, network, layers=selected, precision=precision, needs_all=True)

    def patterns_as_text() -> str:
        """The pattern of each layer, by the rule of the allocation on the dense model."""
        tick = partial(Meter(part, 1, len(selected)).tell, "allocate", 0)
        visit = lambda: begin({"calibration": streams["calibration"]}, progress=part).visit_dense()  # noqa: E731
        patterns = allocate(network, tokens, selected, run.pattern, run.sharing, visit, tick)
        return json.dumps(workers.from_first(lambda: {name: astuple(each) for name, each in patterns.items()}))

    described = partial(describe_run, network, tokens, held_out, selected, run, precision)
    with open_checkpoint(network, checkpoint, described) as storage:
        patterns = {name: Pattern(*values) for name, values in json.loads(storage.decide(patterns_as_text)).items()}
        indices = sorted({layer.block_index for layer in selected})
        records = [LayerRecord(**record) for record in storage.resume(indices)]
        is_dense = run.target == "dense"
        way = "with target layer" if is_dense else f"with{'out' if run.is_sequential else ''} true-sequential"
        remedy = f"prune {way}, or {LEAVE_OUT}"
        walk = begin(streams, progress=walking, storage=storage, has_dense_targets=is_dense, remedy=remedy)
        pruner = _Pruner(run, patterns, walk, start)
        try:
            for block in visit_sequentially(walk) if run.is_sequential else walk.visit(propagate_again=True):
                records += pruner.visit(block)
        except BaseException as problem:
            if walk.meter.layers_done and not network.is_streamed:  # a streamed model's files do not change
                problem.add_note(f"{walk.meter.layers_done} of {len(selected)} layers of the model are pruned now.")
            raise
        storage.finish()
    walk.meter.tell("done", walk.last, 1.0)
    results = {
        **_says_experts(run, selected, records),
        "compute": precision.describe()["compute"],
        **report_inputs(network, tokens, held_out, storage, precision),
        "device": str(network.device),
        "seconds": storage.seconds + time.perf_counter() - start,
    }
    return RunReport.from_records(records, {"run": "prune"} | run.describe(), **results)


def check_layers(selected: Sequence[PrunableLayer], network: Network, run: PruneSettings) -> None:
    """Raises RoseError for layers that cannot be pruned so, for experts to spare without experts, and for an allocation
    that does not fit."""
    run.check()
    if network.is_streamed and run.sharing.rule == "sensitivity":
        raise RoseError("Sensitivity needs the whole model in memory; choose uniform or owl for a streamed one.")
    check_prunable(selected, network.layers, run.pattern, run.block_columns, run.grid)
    if run.min_expert_tokens > 1 and not any(layer.is_expert for layer in selected):
        raise RoseError("min_expert_tokens says which experts stay dense, and no layer here is one; leave it out.")


def _says_experts(
    run: PruneSettings, selected: Sequence[PrunableLayer], records: Sequence[LayerRecord]
) -> dict[str, Any]:
    """Entries for the report on experts with few tokens; none without experts."""
    experts = {layer.name for layer in selected if layer.is_expert}
    counts = [record.tokens or 0 for record in records if record.layer in experts]
    if not counts:
        return {}
    left = sum(count < run.min_expert_tokens for count in counts)
    facts = {"min_expert_tokens": run.min_expert_tokens, "experts_left_dense": left}
    return facts | {"fewest_expert_tokens": min(counts)}


@dataclass(frozen=True)
class _Pruner:
    """Prunes the decoder blocks of a walk that began at `start`; `done` holds the records of the current block."""

    run: PruneSettings
    patterns: Mapping[str, Pattern]
    walk: Walk
    start: float
    done: list[LayerRecord] = field(default_factory=list)

    def visit(self, block: BlockStatistics) -> list[LayerRecord]:
        """Prunes these layers; once their decoder block is done, stores it and returns its records."""
        self.done.extend(self._prune(block))
        layers, storage = self.walk.by_block[block.block_index], self.walk.storage
        if len(self.done) < len(layers):
            return []
        names = [layer.name for layer in layers]
        records = sorted(self.done, key=lambda record: names.index(record.layer))
        self.done.clear()
        tensors = {layer.name: layer.weight for layer in layers}
        tensors |= low_rank_tensors((layer.name, layer.module) for layer in layers)
        seconds = storage.seconds + time.perf_counter() - self.start
        storage.store(block.block_index, tensors, [asdict(record) for record in records], seconds)
        return records

    def _prune(self, block: BlockStatistics) -> list[LayerRecord]:
        workers, meter = self.walk.workers, self.walk.meter
        owners = workers.divide(block.layers, block.calibration)
        before = meter.layers_done
        results = workers.exchange(owners, partial(self._prune_layer, block))
        block.clear()
        for layer, (_, low_rank) in zip(block.layers, results, strict=True):
            layer.keep_low_rank(low_rank)  # factors from other processes
        workers.send_weights(block.layers, owners)
        meter.layers_done = before + len(results)
        return [record for record, _ in results]

    def _prune_layer(self, block: BlockStatistics, number: int) -> tuple[LayerRecord, LowRank | None]:
        layer, meter, run = block.layers[number], self.walk.meter, self.run
        if is_left_dense(layer, block.calibration, run.min_expert_tokens):
            meter.layers_done += 1
            return dense_record(layer, block.calibration.pop(layer.name, None), run.layer), None
        settings = run.layer.changed(sparsity=self.patterns[layer.name])
        hidden, requested = self.walk.network.config.hidden_size, run.target_damping
        mu = partial(correction_damping, hidden, blocks=len(self.walk.by_block), requested=requested)
        result, record = prune_in(block, layer, settings, mu)
        factors = result.low_rank and (result.low_rank[0].cpu(), result.low_rank[1].cpu())
        layer.write(result.weight)
        layer.keep_low_rank(factors)  # before the callback, because it may stop the run
        meter.layers_done += 1
        before, after = block.work
        within = before + (after - before) * (number + 1) / len(block.layers)
        meter.tell("prune", block.block_index, within, layer.name, record.relative_error)
        # The last layer that reads statistics frees them and their factors, which are the largest tensors in memory.
        for stream in (block.calibration, block.held_out):
            stream.pop(layer.name, None)
        return record, factors


def analyze_model(
    model: nn.Module,
    tokens: Tensor,
    *,
    methods: Sequence[str] = ("sparsegpt", "rose"),
    sparsity: float | str | Pattern = SPARSITY,
    block_size: int | str = BLOCK_SIZE,
    damping: float = DAMPING,
    threshold: float = THRESHOLD,
    bits: int | None = None,
    group: int | str | None = None,
    layers: Sequence[str] | None = None,
    held_out: Tensor | None = None,
    compute: str = DEFAULT,
    split: bool = False,
    progress: ProgressCallback | None = None,
    seen: Callable[[PrunableLayer, InputStatistics, LayerRecord], Any] = lambda *_seen: None,
) -> Generator[LayerRecord, None, None]:
    """Prunes every chosen layer by each method on the dense model's inputs; the model is not changed.

    Yields a record for each layer and method as decoder blocks are done. Arguments as for `prune_model`, checked at
    once. A caller that ends the loop early and keeps the iterator calls its `close()`, as for `visit_blocks`.

    `split` measures the mask's part of each error too, see `rose.split_error`; it takes longer than the pruning.

    `seen` is called with every pruned layer, its statistics and its first record, in the process that pruned it.
    """
    if not methods:
        raise RoseError("No method is chosen; name at least one.")
    shared = SharedSettings.among(locals()).in_columns(Network(model).head_width)
    if split and shared.grid:
        raise RoseError("Rounded weights have no mask's part, as no refit stays on the grid; leave out bits or split.")
    fields = shared.pick(shared.fields())
    settings = [LayerSettings(**fields, method=method) for method in dict.fromkeys(several(methods))]
    blocks = visit_blocks(model, tokens, layers=layers, held_out=held_out, compute=compute, progress=progress)

    def measure(block: BlockStatistics, number: int) -> list[LayerRecord]:
        layer = block.layers[number]
        if is_left_dense(layer, block.calibration):
            return [dense_record(layer, None, each) for each in settings]
        energies = Energies(layer.weight)
        records = [prune_in(block, layer, each, energies=energies, split=split)[1] for each in settings]
        seen(layer, statistics_of(layer, block.calibration), records[0])
        return records

    def analyze() -> Generator[LayerRecord, None, None]:
        workers = Workers.here()
        with closing(blocks):
            for block in blocks:
                owners = workers.divide(block.layers, block.calibration)
                for records in workers.exchange(owners, partial(measure, block)):
                    yield from records
                block.clear()

    return analyze()
