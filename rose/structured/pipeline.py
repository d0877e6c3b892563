"""A whole network made smaller, block by block: statistics, choice, compensation, and one cut at the end.

During the walk, removed units are only set to zero: an output projection with zero columns puts out what the cut one
will, so that every layer is calibrated on the reduced parts before it (true-sequential), whatever the family's forward
function expects of its sizes. The cut comes last and changes no output. A run that is stopped leaves the model as it
was.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from rose.errors import RoseError
from rose.layer.hessian import check_damping
from rose.layer.target import corrected_weight
from rose.model.capture import BlockStatistics, check_streams, start_walk
from rose.model.checkpoint import Storage
from rose.model.dense import BlockDrift, dense_streams
from rose.model.distributed import is_launched, processes
from rose.model.pipeline import check_target
from rose.model.progress import Meter, ProgressCallback, part_callback
from rose.model.residence import is_streamed
from rose.model.sequential import visit_sequentially
from rose.model.structure import decoder_blocks, select_layers
from rose.report import RunReport
from rose.structured.anatomy import HEADS, PARTS, Part, Shape, block_parameters, find_parts, kinds_of
from rose.structured.methods import StructuredMethod, structured_method
from rose.structured.problem import RECOVERIES, Problem
from rose.structured.reduction import Original, PartRecord, parts_table, put_back, reduce_part
from rose.structured.shapes import (
    ALLOCATIONS,
    Shapes,
    cost_shapes,
    similarity_ratios,
    similarity_shapes,
    uniform_shapes,
)
from rose.structured.surgery import (
    RECORD,
    Cut,
    apply_config,
    can_bias,
    can_say,
    cut_parts,
    drop_blocks,
    record_of,
    reshaped_config,
    tell_modules,
)
from rose.structured.survey import BlockSurvey, make_problem, survey

SURVEY_SHARE = 0.3  # of a run that prices its parts first; only the progress bar depends on it


@dataclass(frozen=True)
class SlimPlan:
    """The shapes that a run will produce.

    Attributes:
        parts, shapes: [block][part].
        biased: kinds of parts that may get a bias.
        uniform: whether the configuration says the result, so that any program loads it.
        surveys: what the dense model was priced at, where it was.
    """

    parts: list[list[Part]]
    shapes: Shapes
    biased: tuple[str, ...]
    uniform: bool
    surveys: list[BlockSurvey] | None = field(default=None)

    @property
    def removed(self) -> int:
        """Parameters that go."""
        return sum(
            part.saved(shape)
            for of_block, wanted in zip(self.parts, self.shapes, strict=True)
            for part, shape in zip(of_block, wanted, strict=True)
        )


def prune_structured(
    model: nn.Module,
    tokens: Tensor,
    *,
    method: str = "obs",
    ratio: float = 0.2,
    parts: Sequence[str] | None = None,
    allocation: str = "uniform",
    recovery: str | None = None,
    damping: float = 0.01,
    multiple: int = 8,
    held_out: Tensor | None = None,
    target: str = "dense",
    target_damping: float | None = None,
    surveys: Sequence[BlockSurvey] | None = None,
    progress: ProgressCallback | None = None,
) -> RunReport:
    """Makes a model smaller, in place: attention heads and MLP channels, or whole decoder blocks, are cut out.

    Args:
        model: a transformers causal language model in memory. Changed when all is done; a run that is stopped by its
            callback leaves it as it was.
        tokens: calibration tokens, (samples, length) int64.
        method: "obs", "slimllm", "wanda", "magnitude", or "depth", which drops decoder blocks.
        ratio: share of the decoder blocks' parameters to remove, above 0 and below 1.
        parts: "heads", "channels", or both; None means all that the model's configuration has numbers for.
        allocation: "uniform", the same shapes in every decoder block, which any program loads; "similarity" or
            "cost", shapes that differ, which `rose.load_model` reads.
        recovery: "none", "bias", "linear" or "exact"; None means the method's own.
        damping: added to the diagonal of the inputs' second moments, relative to its mean.
        multiple: the number of kept channels is a multiple of this, which matrix products like.
        held_out: further tokens, (samples, length), on which each part's error is measured too.
        target: "dense", what the dense model puts out there: output projections are corrected for what the reduced
            parts before them have lost; "layer", what the layer's own weight makes of the reduced inputs, as in the
            papers. See `rose.layer.target`.
        target_damping: μ of that correction; None chooses it by the tokens, see `rose.layer.target.target_damping`.
        surveys: what `rose.structured.survey.survey` found on the dense model, where it is known already.
        progress: called with a `Progress` after every step; may raise to stop the run.

    Returns:
        A `RunReport`; its `layers` is a DataFrame with one row per part, columns as in `PartRecord`.

    Raises:
        RoseError: bad input, or a family or shapes that cannot be cut, before any work.
    """
    chosen = structured_method(method)
    start = time.perf_counter()
    check_target(target, target_damping)
    check_request(model, ratio, allocation, recovery, damping, multiple)
    check_streams(model, tokens, held_out)
    before, whole = block_parameters(model), _parameters(model)
    if chosen.select is None:
        records, facts = _drop(model, tokens, ratio, progress), {"allocation": "blocks", "uniform": True}
        recovered, drifts = "none", []
    else:
        recovered = recovery or chosen.recovery
        surveying = part_callback(progress, start, 0, SURVEY_SHARE, "allocate")
        plan = plan_slimming(
            model, tokens, ratio=ratio, parts=parts, allocation=allocation, recovery=recovered, damping=damping,
            multiple=multiple, surveys=surveys, progress=surveying,
        )  # fmt: skip
        walking = part_callback(progress, start, SURVEY_SHARE, 1) if plan.surveys and not surveys else progress
        run = SlimRun(model, plan, chosen, recovered, damping, target, target_damping)
        records, drifts = run.walk(tokens, held_out, walking), run.drifts
        facts = {"allocation": allocation, "uniform": plan.uniform}
    after = block_parameters(model)
    errors = [record.relative_error for record in records]
    held = [record.held_out_error for record in records if record.held_out_error is not None]
    return RunReport(
        parts_table(records),
        {
            "method": method, "ratio": ratio, **facts, "recovery": recovered, "damping": damping, "multiple": multiple,
            "target": target, "target_damping": target_damping, "drift": [dataclasses.asdict(one) for one in drifts],
            "samples": tokens.shape[0], "length": tokens.shape[1],
            "held_out_samples": 0 if held_out is None else held_out.shape[0],
            "block_parameters": before, "kept_block_parameters": after, "removed_fraction": 1 - after / before,
            "parameters": whole, "kept_parameters": _parameters(model),
            "mean_relative_error": sum(errors) / len(errors) if errors else None,
            "mean_held_out_error": sum(held) / len(held) if held else None,
            "seconds": time.perf_counter() - start,
        },
    )  # fmt: skip


def check_request(
    model: nn.Module | None, ratio: float, allocation: str, recovery: str | None, damping: float, multiple: int
) -> None:
    """Refuses bad requests before anything is loaded or computed; `model`: None where it is not loaded yet.

    Raises:
        RoseError: says what to change.
    """
    if not 0 < ratio < 1:
        raise RoseError(f"The ratio must be above 0 and below 1, such as 0.2, not {ratio!r}.")
    if allocation not in ALLOCATIONS:
        raise RoseError(f"There is no allocation {allocation!r}; choose one of {', '.join(ALLOCATIONS)}.")
    if recovery is not None and recovery not in RECOVERIES:
        raise RoseError(f"There is no recovery {recovery!r}; choose one of {', '.join(RECOVERIES)}.")
    if multiple < 1:
        raise RoseError(f"Kept channels must be a multiple of at least 1, not {multiple}.")
    check_damping(damping)
    if model is not None and is_streamed(model):
        raise RoseError("Structured pruning needs the whole model in memory; load it without streaming.")
    if processes() > 1 or is_launched():
        raise RoseError("Structured pruning runs in one process; start it without torchrun.")


def plan_slimming(
    model: nn.Module,
    tokens: Tensor,
    *,
    ratio: float,
    parts: Sequence[str] | None = None,
    allocation: str = "uniform",
    recovery: str = "exact",
    damping: float = 0.01,
    multiple: int = 8,
    surveys: Sequence[BlockSurvey] | None = None,
    progress: ProgressCallback | None = None,
) -> SlimPlan:
    """Which shapes the decoder blocks will have; the model is not changed. Arguments as for `prune_structured`.

    Args:
        surveys: prices that are known already; else the dense model is priced, where the allocation asks for it.

    Raises:
        RoseError: impossible shapes, or shapes that the configuration cannot express.
    """
    kinds = check_parts(model, parts)
    found = find_parts(model, kinds)
    uniform = allocation == "uniform"
    biased = () if recovery == "none" else tuple(
        kind for number, kind in enumerate(kinds) if can_bias(model, found[0][number], anywhere=not uniform)
    )  # fmt: skip
    wanted = ratio * block_parameters(model)
    if uniform and "channels" in kinds and not can_say(model, found[0], {"channels": Shape(1, 1)}, ()):
        raise RoseError(
            f"The configuration of {type(model).__name__} has no number for MLP channels, so plain transformers could "
            "not load the result; allow shapes that rose alone reads (allocation cost), or choose the method depth."
        )

    def priced(with_parts: bool) -> list[BlockSurvey]:
        if surveys is not None:
            return list(surveys)
        of_blocks: Sequence[Sequence[Part]] = found if with_parts else []
        return list(survey(model, tokens, of_blocks, biases=biased, damping=damping, progress=progress))

    known: list[BlockSurvey] | None = None
    if allocation == "similarity":
        known = priced(with_parts=False)
        shapes = _similar(found, [one.similarity for one in known], ratio, wanted, multiple)
    elif allocation == "cost":
        known = priced(with_parts=True)
        shapes = cost_shapes(known, wanted, multiple)
    else:
        known = priced(with_parts=True) if len(kinds) > 1 else None
        shapes = uniform_shapes(found, known, wanted, multiple, lambda chosen: can_say(model, found[0], chosen, biased))
    return SlimPlan(found, shapes, biased, uniform, known)


def check_parts(model: nn.Module, parts: Sequence[str] | None) -> tuple[str, ...]:
    """The kinds of parts to reduce, in their order.

    Raises:
        RoseError: a kind that this model does not offer, or none at all.
    """
    offered = kinds_of(model)
    if parts is None:
        if not offered:
            raise RoseError(
                f"Neither heads nor channels of {type(model).__name__} can be taken out, as its layers are not known; "
                "choose the method depth."
            )
        return offered
    find_parts(model, parts)  # says what is wrong
    return tuple(kind for kind in PARTS if kind in parts)


def _similar(
    parts: Sequence[Sequence[Part]], similarities: Sequence[float], ratio: float, wanted: float, multiple: int
) -> Shapes:
    """By similarity; heads are coarse, so that the ratio is adjusted until the whole comes out."""
    asked, best = ratio, None
    for _ in range(8):
        shapes = similarity_shapes(parts, similarity_ratios(similarities, asked), multiple)
        saved = SlimPlan(list(map(list, parts)), shapes, (), False).removed
        if best is None or abs(saved - wanted) < best[0]:
            best = (abs(saved - wanted), shapes)
        asked *= wanted / max(saved, 1)
    assert best is not None
    return best[1]


def _parameters(model: nn.Module) -> int:
    """Parameters of the whole model; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _drop(model: nn.Module, tokens: Tensor, ratio: float, progress: ProgressCallback | None) -> list[PartRecord]:
    """Drops the decoder blocks whose output is most like their input (ShortGPT, Men et al. 2024, arXiv 2403.03853)."""
    _, blocks = decoder_blocks(model)
    count = round(ratio * len(blocks))
    if not 0 < count < len(blocks):
        raise RoseError(f"{ratio:g} of {len(blocks)} decoder blocks is not a whole one; ask for a larger ratio.")
    found = sorted(survey(model, tokens, [], progress=progress), key=lambda one: -one.similarity)
    gone = {one.block_index for one in found[:count]}
    drop_blocks(model, [index for index in range(len(blocks)) if index not in gone])
    return []


@dataclass
class SlimRun:
    """One walk through the model by a plan."""

    model: nn.Module
    plan: SlimPlan
    method: StructuredMethod
    recovery: str
    damping: float
    target: str
    target_damping: float | None
    cuts: list[Cut] = field(default_factory=list)
    originals: list[Original] = field(default_factory=list)
    sources: dict[str, Tensor] = field(default_factory=dict)
    drifts: list[BlockDrift] = field(default_factory=list)

    def walk(self, tokens: Tensor, held_out: Tensor | None, progress: ProgressCallback | None) -> list[PartRecord]:
        """Reduces every part, then cuts the model."""
        wanted = {
            part.output.name: (part, shape)
            for parts, shapes in zip(self.plan.parts, self.plan.shapes, strict=True)
            for part, shape in zip(parts, shapes, strict=True)
            if shape != part.shape
        }
        if not wanted:
            raise RoseError("At this ratio nothing would go; ask for a larger one, or for a smaller multiple.")
        names = list(wanted)
        if self.method.looks_at_inputs:
            names += [row.layer.name for part, _ in wanted.values() for row in part.rows if part.kind != HEADS]
        streams = check_streams(self.model, tokens, held_out)
        kept = Storage()
        dense = dense_streams(streams, self.target == "dense", kept.dense_activations)
        walk = start_walk(self.model, streams, select_layers(self.model, sorted(set(names))), progress, kept, dense)
        records = []
        try:
            for block in visit_sequentially(walk):
                for layer in block.layers:
                    if layer.name in wanted:
                        records.append(self._reduce(*wanted[layer.name], block, walk.meter))
                    else:
                        self.sources[layer.name] = block.calibration[layer.name].mean_square.sqrt()
                    walk.meter.layers_done += 1
        except BaseException:
            put_back(self.originals)
            raise
        records.sort(key=lambda record: (record.block_index, PARTS.index(record.part)))
        self._cut()
        self.drifts = [kept.drifts[index] for index in sorted(kept.drifts)]
        walk.meter.tell("done", max(walk.by_block), 1.0)
        return records

    def _reduce(self, part: Part, shape: Shape, block: BlockStatistics, meter: Meter) -> PartRecord:
        began = time.perf_counter()
        layer = part.output
        record, cut = reduce_part(
            part, shape, self._problem(part, block), self.method, self.recovery, self.originals,
            with_bias=part.kind in self.plan.biased, statistics=block.calibration[layer.name],
            held_out=block.held_out.get(layer.name),
        )  # fmt: skip
        self.cuts.append(cut)
        meter.tell("prune", block.block_index, block.work[1], layer.name, record.relative_error)
        return dataclasses.replace(record, seconds=time.perf_counter() - began)

    def _problem(self, part: Part, block: BlockStatistics) -> Problem:
        statistics = block.calibration[part.output.name]
        sources: tuple[tuple[Tensor, Tensor], ...] = ()
        if self.method.looks_at_inputs and part.kind != HEADS:
            sources = tuple(
                (rows.layer.weight[rows.start : rows.start + part.shape.units].float(), self.sources[rows.layer.name])
                for rows in part.rows
            )
        problem = make_problem(part, statistics, part.kind in self.plan.biased, self.damping, sources)
        gap = block.gaps.get("calibration", {}).get(part.output.name)
        if gap is None:
            return problem
        aim, _ = corrected_weight(part.output.weight, statistics, gap, self.target_damping)
        return dataclasses.replace(problem, weight=aim)

    def _cut(self) -> None:
        cut_parts(self.cuts)
        for parts, shapes in zip(self.plan.parts, self.plan.shapes, strict=True):
            tell_modules(self.model, parts, shapes, own_config=not self.plan.uniform)
        if self.plan.uniform:
            first = zip(self.plan.parts[0], self.plan.shapes[0], strict=True)
            said = reshaped_config(self.model, {part.kind: shape for part, shape in first}, self.plan.biased)
            apply_config(self.model, said)
        else:
            config: Any = self.model.config
            setattr(config, RECORD, record_of(self.plan.parts, self.plan.shapes))
