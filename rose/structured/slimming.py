"""A whole network made smaller, block by block: statistics, choice, compensation, and one cut at the end.

During the walk, removed units are only set to zero: an output projection with zero columns puts out what the cut one
will, so that every layer is calibrated on the reduced parts before it (true-sequential), whatever the family's forward
function expects of its sizes. The cut comes last and changes no output. A run that is stopped leaves the model as it
was.

What is kept of a finished decoder block, on disk where there is a checkpoint or a streamed model, are the output
projections with zeros, their biases, and which units stay. A streamed model is cut on the meta device; from then on a
decoder block that is read gets what was kept, and is cut.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor, nn

from rose.errors import RoseError
from rose.layer.target import corrected_weight, damping_or_rule
from rose.model.network.layers import count_parameters, named
from rose.model.network.network import Network
from rose.model.network.precision import Precision
from rose.model.progress import Meter, ProgressCallback, part_callback
from rose.model.run.checkpoint import FORMAT, DiskStorage, describe_inputs, open_checkpoint, report_inputs
from rose.model.walk.sequential import visit_sequentially
from rose.model.walk.storage import BIAS, Storage, dense_streams, lay_over
from rose.model.walk.walk import BlockStatistics, check_streams, start_walk
from rose.model.workers import Workers
from rose.recipe.parts import SlimSettings
from rose.report import RunReport
from rose.rows import ERRORS, PartRecord, mean_or_none, records_table
from rose.structured.allocation import changed
from rose.structured.configuration import RECORD, can_bias, droppable_blocks, is_cut_everywhere, reshaped_config
from rose.structured.defaults import PARTS
from rose.structured.methods import structured_method
from rose.structured.parts import Part, Shape, block_parameters
from rose.structured.plan import PossibleShapes, SlimOptions, SlimPlan, plan_slimming, possible_shapes, repair_of
from rose.structured.problem import Problem
from rose.structured.reduction import (
    Reduction,
    Solution,
    check_zeros,
    layers_read,
    recovery_in,
    solve_part,
    sources_of,
)
from rose.structured.surgery import add_bias, apply_config, cut_parts, drop_blocks, record_of, tell_modules
from rose.structured.survey import BlockSurvey, make_problem, survey

SURVEY_SHARE = 0.3  # of a run that prices its parts first; only the progress bar depends on it
FAR = 0.1  # of the ratio: a share that is further from it is told
KEPT = ".kept"  # ends the name of what is kept beside an output projection

Wanted = dict[int, dict[str, tuple[Part, Shape]]]  # [block][output projection]: what it will be


def prune_structured(
    model: nn.Module,
    tokens: Tensor,
    *,
    held_out: Tensor | None = None,
    surveys: Sequence[BlockSurvey] | None = None,
    progress: ProgressCallback | None = None,
    checkpoint: str | Path | None = None,
    **options: Unpack[SlimOptions],
) -> RunReport:
    """Makes a model smaller, in place: attention heads and MLP channels, or whole decoder blocks, are cut out.

    Args:
        model: a transformers causal language model. Changed when all is done; a run that is stopped by its callback
            leaves it as it was. One that `load_model` streams is cut when it is saved or read again.
        tokens: calibration tokens, (samples, length) int64.
        held_out: further tokens, (samples, length), on which each part's error is measured too.
        surveys: what `rose.structured.survey.survey` found on the dense model, where it is known already.
        progress: called with a `Progress` after every step; may raise to stop the run.
        checkpoint: a folder that keeps the shapes chosen and every finished decoder block. A run that was stopped or
            killed resumes there when it is called again with the same arguments and the dense model; on the same
            machine its result is bit-identical. See `rose.model.run.checkpoint`.

    Keyword arguments besides:
        method: "obs", "slimllm", "wanda", "magnitude", or "depth", which drops decoder blocks.
        ratio: share of the decoder blocks' parameters to remove, above 0 and below 1.
        parts: "heads", "channels", or both; None means all that the model's configuration has numbers for.
        allocation: "uniform", the same shapes in every decoder block, which any program loads; "similarity" or
            "cost", shapes that differ, which `rose.load_model` reads.
        recovery: "none", "bias", "linear" or "exact"; None means the method's own.
        damping: added to the diagonal of the inputs' second moments, relative to its mean.
        multiple: the number of kept channels is a multiple of this, which matrix products like.
        target: "layer", what the layer's own weight makes of the reduced inputs, as in the papers; "dense", what the
            dense model puts out there: output projections are corrected for what the reduced parts before them have
            lost, see `rose.layer.target`. Unlike single weights, whole columns gain nothing by that in the mean
            (docs/structured.md).
        target_damping: μ of that correction; None chooses it, see `rose.layer.target.target_damping`.

    Returns:
        A `RunReport`; its `layers` is a DataFrame with one row per part, columns as in `PartRecord`.

    Raises:
        RoseError: bad input, or a family or shapes that cannot be cut, before any work; a checkpoint that belongs to
            another run or cannot be written.
    """
    settings = SlimSettings.of(**options)
    network = Network(model)
    streams, start = check_streams(network, tokens, held_out), time.perf_counter()
    before, whole = block_parameters(model), count_parameters(model)
    possible = check_slimming(model, settings)
    kinds, unread = (possible.kinds, _unread_elsewhere(model, settings, possible)) if possible else ((), [])
    asked = settings.to_dict() | {"recovery": repair_of(settings)}
    del asked["parts"]

    def described() -> dict[str, Any]:
        inputs = describe_inputs(network, tokens, held_out)
        return {"command": "slim", "format": FORMAT, "parts": list(kinds), **asked, **inputs}

    records: list[PartRecord] = []
    with open_checkpoint(network, checkpoint, described) as kept:
        try:
            if possible is None:
                facts = _drop(network, tokens, settings.ratio, kept, progress)
            else:
                records, facts = _reduce(network, tokens, streams, settings, possible, surveys, kept, progress)
        finally:
            network.residence.withdraw()  # a streamed model whose run was stopped is what it was
        kept.finish()
    table, after = records_table(records, PartRecord), block_parameters(model)
    removed, precision = 1 - after / before, Precision.of("float32", network.dtype, network.device)
    summary = {
        **facts, **report_inputs(network, tokens, held_out, kept, precision),
        "block_parameters": before, "kept_block_parameters": after, "removed_fraction": removed,
        "remarks": _far_from_asked(removed, settings.ratio, kinds) + unread,
        "parameters": whole, "kept_parameters": count_parameters(model),
        **{f"mean_{name}": mean_or_none(table[name]) for name in ERRORS},
        "seconds": kept.seconds + time.perf_counter() - start,
    }  # fmt: skip
    return RunReport(table, summary, {"run": "slim"} | asked)


def _reduce(
    network: Network,
    tokens: Tensor,
    streams: Mapping[str, Tensor],
    settings: SlimSettings,
    possible: PossibleShapes,
    surveys: Sequence[BlockSurvey] | None,
    kept: Storage,
    progress: ProgressCallback | None,
) -> tuple[list[PartRecord], dict[str, Any]]:
    """Plans shapes and reduces parts to them; returns a record a part, and what the report says of it."""
    start = time.perf_counter()
    surveying = part_callback(progress, start, 0, SURVEY_SHARE, "allocate")
    plan = plan_slimming(
        network.model, tokens, settings, possible, surveys=surveys, progress=surveying, remember=kept.remember
    )
    prices = surveys is None and (settings.allocation != "uniform" or len(possible.kinds) > 1)
    walking = part_callback(progress, start, SURVEY_SHARE, 1) if prices else progress
    records = SlimRun(network, plan, settings, kept).walk(streams, walking)
    return records, {"uniform": plan.uniform, "recovery": recovery_in(records)}


def check_slimming(model: nn.Module, settings: SlimSettings) -> PossibleShapes | None:
    """What may be reduced, None where whole decoder blocks go; raises RoseError, before anything is measured, for what
    `prune_structured` cannot do to this model."""
    network = Network(model)
    if structured_method(settings.method).select is None:
        _check_drop(network, settings.ratio)
        return None
    found = possible_shapes(model, settings)
    if settings.recovery == "bias" and not found.biased:
        raise RoseError("No part of this model can take a bias; choose another recovery, or allocation cost.")
    for part in chain.from_iterable(found.parts if not network.is_streamed else ()):  # its parts: when they are read
        check_zeros(part.output, repair_of(settings), settings.target or "layer")
    return found


def _far_from_asked(removed: float, ratio: float, kinds: Sequence[str]) -> list[str]:
    """A sentence where pieces are so large that clearly another share has gone than was asked for."""
    if abs(removed - ratio) <= FAR * ratio:
        return []
    return [
        f"{100 * removed:.1f} % of the decoder blocks' parameters taken out, {100 * ratio:g} % were asked for: "
        f"{' and '.join(kinds) or 'whole decoder blocks'} allow no nearer share."
    ]


def _unread_elsewhere(model: nn.Module, settings: SlimSettings, possible: PossibleShapes) -> list[str]:
    """A sentence where transformers loads the result and llama.cpp and vLLM do not, as a person has asked for it."""
    if settings.allocation != "uniform":
        return []
    cut = [kind for kind in possible.kinds if not is_cut_everywhere(model, kind)]
    biased = [kind for kind in possible.biased if not can_bias(model, possible.parts, kind)]
    reasons = [f"another number of {kind}" for kind in cut] + [f"biases behind {kind}" for kind in biased]
    return (
        [f"llama.cpp and vLLM do not read {' or '.join(reasons)} in this family; transformers does."] if reasons else []
    )


def _check_drop(network: Network, ratio: float) -> None:
    """Raises RoseError unless this share of the decoder blocks can go."""
    blocks = len(network.blocks)
    count = round(ratio * blocks)
    if count in (0, blocks):
        what, other = ("all of them", "smaller") if count else ("not a whole one", "larger")
        raise RoseError(f"{ratio:g} of {blocks} decoder blocks is {what}; ask for a {other} ratio.")
    if len(free := droppable_blocks(network.model)) < count:
        raise RoseError(
            f"The configuration can do without {len(free)} of its {blocks} decoder blocks, not without {count}; "
            "ask for a smaller ratio."
        )
    network.residence.check_renumbering()


def _drop(
    network: Network, tokens: Tensor, ratio: float, kept: Storage, progress: ProgressCallback | None
) -> dict[str, Any]:
    """Drops, of the decoder blocks that the configuration can do without, those whose output is most like their input
    (ShortGPT, Men et al. 2024, arXiv 2403.03853); returns what the report says of it."""
    model, every = network.model, range(len(network.blocks))

    def find() -> str:
        free = set(droppable_blocks(model))
        found = [one for one in survey(model, tokens, [], progress=progress) if one.block_index in free]
        found.sort(key=lambda one: -one.similarity)
        gone = {one.block_index for one in found[: round(ratio * len(every))]}
        return json.dumps([index for index in every if index not in gone])

    left = json.loads(kept.remember(find))
    residence = network.residence
    drop_blocks(model, left)
    residence.renumber(left)
    dropped = [index for index in every if index not in left]
    as_it_ran = {"allocation": "blocks", "uniform": True, "target": "layer", "target_damping": None}
    return {**as_it_ran, "dropped_blocks": dropped}


@dataclass
class SlimRun:
    """One walk through the model by a plan."""

    network: Network
    plan: SlimPlan
    settings: SlimSettings
    kept: Storage = field(default_factory=Storage)
    sources: dict[str, Tensor] = field(default_factory=dict)
    records: list[PartRecord] = field(default_factory=list)  # of the decoder block at work
    start: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.reduction = Reduction(in_files=self.network.is_streamed)
        self.wanted: Wanted = {}  # the parts that change
        for part, shape in changed(self.plan.parts, self.plan.shapes):
            self.wanted.setdefault(part.block_index, {})[part.output.name] = part, shape

    def walk(self, streams: Mapping[str, Tensor], progress: ProgressCallback | None = None) -> list[PartRecord]:
        """Reduces every part, then cuts the model; `streams`: as from `check_streams`."""
        kept = self.kept
        dense = dense_streams(streams, self.settings.target == "dense", kept.dense_activations)
        read = layers_read(
            structured_method(self.settings.method), [part for of in self.wanted.values() for part, _ in of.values()]
        )
        layers = self.network.select([layer.name for layer in read])
        with self.reduction:
            records = self._go_on(dense.batches(streams))
            walk = start_walk(self.network, streams, layers, progress, storage=kept, dense=dense)
            with closing(visit_sequentially(walk)) as visits:
                for block in visits:
                    records += self._visit(block, walk.meter)
            walk.meter.tell("done", max(walk.by_block), 1.0)  # the last time that a callback may stop the run
        records.sort(key=lambda record: (record.block_index, PARTS.index(record.part)))
        self._cut()
        return records

    def _go_on(self, dense: Mapping[str, int]) -> list[PartRecord]:
        """Takes over what an earlier run has finished; a streamed decoder block is laid over when it is read."""
        records: list[PartRecord] = []
        for index, tensors, of_block in self.kept.finished_blocks(list(self.wanted), dense):
            for part, shape in self.wanted[index].values():
                self.reduction.note(part, tensors[part.output.name + KEPT], shape)
            if not self.network.is_streamed:
                lay_over(self.network.layers, tensors)
            records += [PartRecord(**record) for record in of_block]
        return records

    def _visit(self, block: BlockStatistics, meter: Meter) -> list[PartRecord]:
        """Reduces the parts whose output projections are next; keeps the decoder block once all of its are done."""
        index = block.block_index
        for layer in block.layers:
            if layer.name in self.wanted[index]:
                self.records.append(self._reduce(*self.wanted[index][layer.name], block, meter))
            else:
                self.sources[layer.name] = block.calibration[layer.name].mean_square.sqrt()
            meter.layers_done += 1
        if len(self.records) < len(self.wanted[index]):
            return []
        done, self.records = self.records, []
        self.sources.clear()
        seconds = self.kept.seconds + time.perf_counter() - self.start
        self.kept.keep(index, self._tensors(index), [dataclasses.asdict(record) for record in done], seconds)
        return done

    def _tensors(self, index: int) -> dict[str, Tensor]:
        """What must be kept of a decoder block: its output projections, and which units stay."""
        found: dict[str, Tensor] = {}
        for cut in self.reduction.cuts:
            layer = cut.part.output
            if layer.block_index == index:
                found |= {layer.name: layer.weight, layer.name + KEPT: cut.kept}
                if layer.bias is not None:
                    found[layer.name + BIAS] = layer.bias.detach()
        return found

    def _reduce(self, part: Part, shape: Shape, block: BlockStatistics, meter: Meter) -> PartRecord:
        """Reduces one part; the first process solves for all, so that they go on with the same numbers."""
        found = Workers.here().from_first(partial(self._solve, part, shape, block))
        self.reduction.write(part, shape, found, with_bias=part.kind in self.plan.biased)
        meter.tell("prune", block.block_index, block.work[1], part.output.name, found.record.relative_error)
        return found.record

    def _solve(self, part: Part, shape: Shape, block: BlockStatistics) -> Solution:
        began, name = time.perf_counter(), part.output.name
        with named(part.output):
            held_out = block.held_out.get(name)
            targets = [
                (block.gaps[stream][name].of(part.output.weight), inputs)
                for stream, inputs in (("calibration", block.calibration[name]), ("held_out", held_out))
                if inputs is not None and name in block.gaps.get(stream, {})
            ]
            problem = self._problem(part, block)
            found = solve_part(
                part,
                shape,
                problem,
                structured_method(self.settings.method),
                repair_of(self.settings),
                held_out,
                targets,
            )
        record = dataclasses.replace(found.record, seconds=time.perf_counter() - began)
        return dataclasses.replace(found, record=record)

    def _problem(self, part: Part, block: BlockStatistics) -> Problem:
        statistics = block.calibration[part.output.name]
        sources = sources_of(part, structured_method(self.settings.method), self.sources.__getitem__)
        problem = make_problem(part, statistics, part.kind in self.plan.biased, self.settings.damping, sources)
        gap = block.gaps.get("calibration", {}).get(part.output.name)
        if gap is None:
            return problem
        width, blocks = self.network.config.hidden_size, len(self.wanted)
        mu = damping_or_rule(self.settings.target_damping, width, statistics.tokens, blocks)
        aim, _ = corrected_weight(part.output.weight, statistics, gap, mu)
        return dataclasses.replace(problem, weight=aim)

    def _cut(self) -> None:
        model: Any = self.network.model
        cuts = self.reduction.cuts
        for cut in cuts:
            if cut.part.kind in self.plan.biased:
                add_bias(cut.part.output)  # a streamed one has none yet
        cut_parts(cuts)
        for parts, shapes in zip(self.plan.parts, self.plan.shapes, strict=True):
            tell_modules(model, parts, shapes, own_config=not self.plan.uniform)
        if self.plan.uniform:
            first = zip(self.plan.parts[0], self.plan.shapes[0], strict=True)
            said = reshaped_config(model, {part.kind: shape for part, shape in first}, self.plan.biased)
            apply_config(model, said)
        else:
            setattr(model.config, RECORD, record_of(model))
        if isinstance(self.kept, DiskStorage):
            kept = self.kept

            def revise(index: int) -> None:
                lay_over(self.network.layers, kept.read(index))
                cut_parts([cut for cut in cuts if cut.part.block_index == index])

            self.network.residence.settle(revise, kept.identity())
