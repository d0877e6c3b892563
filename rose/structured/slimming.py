"""A whole network made smaller, block by block: statistics, choice, compensation, and one cut at the end.

During the walk removed units are only zero. So every layer is calibrated on the reduced parts before it
(true-sequential), the final cut changes no output, and a stopped run leaves the model as it was. Checkpoints and
streamed models keep of each finished decoder block the output projections with zeros, their biases, and the remaining
units. A streamed model is cut on the meta device; later each block is cut when it is read.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rose.errors import RoseError
from rose.layer.pattern import DAMPING
from rose.layer.statistics import InputStatistics
from rose.layer.target import Gap, corrected_weight, correction_damping, target_error_with_bias
from rose.model.network.layers import PrunableLayer, count_parameters, naming
from rose.model.network.network import Network
from rose.model.progress import Meter, ProgressCallback, part_callback
from rose.model.run.checkpoint import FORMAT, DiskStorage, describe_inputs, open_checkpoint, report_inputs
from rose.model.walk.sequential import visit_sequentially
from rose.model.walk.storage import BIAS, Storage, lay_over
from rose.model.walk.walk import BlockStatistics, check_streams, start_walk
from rose.model.workers import Workers
from rose.report import RunReport
from rose.rows import ERRORS, PartRecord, mean_or_none, records_table
from rose.structured import configuration
from rose.structured.methods import StructuredMethod, choose, structured_method
from rose.structured.parts import Part, Shape, block_parameters
from rose.structured.plan import PossibleShapes, Shapes, changed, plan_slimming, possible_shapes, repair_of
from rose.structured.problem import Problem, recover, relative_errors
from rose.structured.settings import MULTIPLE, PARTS, RATIO, SlimSettings
from rose.structured.survey import BlockSurvey, layers_read, make_problem, sources_of, survey
from rose.verdicts import SPARSE
from rose.wording import percent

SURVEY_SHARE = 0.3  # of a run that prices its parts first; only the progress bar depends on it
FAR = 0.1  # of the ratio; larger differences get a remark
KEPT = ".kept"  # suffix for the remaining units beside an output projection


@SlimSettings.explain
def prune_structured(
    model: nn.Module,
    tokens: Tensor,
    *,
    held_out: Tensor | None = None,
    surveys: Sequence[BlockSurvey] | None = None,
    progress: ProgressCallback | None = None,
    checkpoint: str | Path | None = None,
    method: str = "obs",
    ratio: float = RATIO,
    parts: Sequence[str] | None = None,
    recovery: str | None = None,
    damping: float = DAMPING,
    multiple: int = MULTIPLE,
    allocation: str = "uniform",
    target: str | None = "layer",
    target_damping: float | None = None,
) -> RunReport:
    """Makes a model smaller, in place: attention heads and MLP channels, or whole decoder blocks, are cut out.

    Args: model: a transformers causal language model; a run that its callback stops leaves it as it was. A streamed
    model is cut when it is saved or read again. tokens, held_out: (samples, length) int64; the held-out ones give a
    second error of each part. surveys: results of `rose.structured.survey.survey` on the dense model, if available.
    progress: called with a `Progress` after every step; may raise to stop the run. checkpoint: a folder that keeps the
    shapes and every finished decoder block. The same call with the dense model resumes there; on the same machine the
    result is bit-identical. See `rose.model.run.checkpoint`.

    The target "dense" gains nothing on average for whole columns (docs/structured.md). Without `parts`, whatever
    llama.cpp and vLLM also read in this family is taken out; a method's own recovery adds biases only where they do.

    Returns: A `RunReport`; its `layers` is a DataFrame with one row per part, columns as in `PartRecord`.

    Raises: RoseError: bad input, or a family or shapes that cannot be cut, before any work; a checkpoint of another
    run, or a folder that cannot be written.
    """
    settings = SlimSettings.among(locals())
    network = Network(model)
    streams, start = check_streams(network, tokens, held_out), time.perf_counter()
    before, whole = block_parameters(model), count_parameters(model)
    possible = check_slimming(model, settings)
    kinds = possible.kinds if possible else ()
    remarks = _unread_elsewhere(model, possible) if possible and settings.allocation == "uniform" else []
    request = settings.to_dict() | {"recovery": repair_of(settings)}
    del request["parts"]

    def described() -> dict[str, Any]:
        inputs = describe_inputs(network, tokens, held_out)
        return {"command": "slim", "format": FORMAT, "parts": list(kinds), **request, **inputs}

    records: list[PartRecord] = []
    with open_checkpoint(network, checkpoint, described) as storage:
        try:
            if possible is None:
                facts = _drop(network, tokens, settings.ratio, storage, progress)
            else:
                records, facts = _reduce(network, tokens, streams, settings, possible, surveys, storage, progress)
        finally:
            network.residence.withdraw()  # a streamed model whose run was stopped is what it was
        storage.finish()
    table, after = records_table(records, PartRecord), block_parameters(model)
    removed, precision = 1 - after / before, network.precision()
    if abs(removed - settings.ratio) > FAR * settings.ratio:
        shares = f"{100 * removed:.1f} % of the decoder blocks' parameters taken out, {100 * settings.ratio:g} %"
        pieces = " and ".join(kinds) or "whole decoder blocks"
        remarks.insert(0, f"{shares} were asked for: {pieces} allow no nearer share.")
    summary = {
        **facts, **report_inputs(network, tokens, held_out, storage, precision),
        "block_parameters": before, "kept_block_parameters": after, "removed_fraction": removed,
        "remarks": remarks, "parameters": whole, "kept_parameters": count_parameters(model),
        **{f"mean_{name}": mean_or_none(table[name]) for name in ERRORS},
        "seconds": storage.seconds + time.perf_counter() - start,
    }  # fmt: skip
    return RunReport(table, summary, {"run": "slim"} | request)


def _reduce(
    network: Network,
    tokens: Tensor,
    streams: Mapping[str, Tensor],
    settings: SlimSettings,
    possible: PossibleShapes,
    surveys: Sequence[BlockSurvey] | None,
    storage: Storage,
    progress: ProgressCallback | None,
) -> tuple[list[PartRecord], dict[str, Any]]:
    """Plans shapes and reduces parts to them; returns a record per part, and entries for the report."""
    start = time.perf_counter()
    surveying = part_callback(progress, start, 0, SURVEY_SHARE, "allocate")
    shapes = plan_slimming(
        network.model, tokens, settings, possible, surveys=surveys, progress=surveying, decide=storage.decide
    )
    prices = surveys is None and (settings.allocation != "uniform" or len(possible.kinds) > 1)
    walking = part_callback(progress, start, SURVEY_SHARE, 1) if prices else progress
    records = SlimRun(network, possible.parts, shapes, possible.biased, settings, storage).walk(streams, walking)
    return records, {"uniform": settings.allocation == "uniform", "recovery": recovery_in(records)}


def check_slimming(model: nn.Module, settings: SlimSettings) -> PossibleShapes | None:
    """The possible shapes, None for whole decoder blocks; raises RoseError, before any measurement, for an
    impossible request."""
    network = Network(model)
    if structured_method(settings.method).select is None:
        blocks = len(network.blocks)
        count = round(settings.ratio * blocks)
        if count in (0, blocks):
            share, other = ("all of them", "smaller") if count else ("not a whole one", "larger")
            raise RoseError(f"{settings.ratio:g} of {blocks} decoder blocks is {share}; ask for a {other} ratio.")
        if len(free := configuration.droppable_blocks(model)) < count:
            raise RoseError(
                f"The configuration can do without {len(free)} of its {blocks} decoder blocks, not without {count}; "
                "ask for a smaller ratio."
            )
        network.residence.check_renumbering()
        return None
    possible = possible_shapes(model, settings)
    if settings.recovery == "bias" and not possible.biased:
        raise RoseError("No part of this model can take a bias; choose another recovery, or allocation cost.")
    for part in chain.from_iterable(possible.parts if not network.is_streamed else ()):  # its parts: when they are read
        check_zeros(part.output, repair_of(settings), settings.target or "layer")
    return possible


def _unread_elsewhere(model: nn.Module, possible: PossibleShapes) -> list[str]:
    """A sentence where transformers loads uniform shapes, but llama.cpp and vLLM do not."""
    cut = [kind for kind in possible.kinds if not configuration.is_cut_everywhere(model, kind)]
    biased = [kind for kind in possible.biased if not configuration.can_bias(model, possible.parts, kind)]
    reasons = [f"another number of {kind}" for kind in cut] + [f"biases behind {kind}" for kind in biased]
    text = f"llama.cpp and vLLM do not read {' or '.join(reasons)} in this family; transformers does."
    return [text] if reasons else []


def _drop(
    network: Network, tokens: Tensor, ratio: float, storage: Storage, progress: ProgressCallback | None
) -> dict[str, Any]:
    """Drops the decoder blocks whose output is most like their input (ShortGPT, Men et al. 2024, arXiv 2403.03853). The
    configuration must be able to omit them. Returns entries for the report."""
    model, every = network.model, range(len(network.blocks))

    def find() -> str:
        free = set(configuration.droppable_blocks(model))
        surveys = [block for block in survey(model, tokens, [], progress=progress) if block.block_index in free]
        surveys.sort(key=lambda block: -block.similarity)
        dropped = {block.block_index for block in surveys[: round(ratio * len(every))]}
        return json.dumps([index for index in every if index not in dropped])

    left = json.loads(storage.decide(find))
    residence = network.residence
    configuration.drop_blocks(model, left)
    residence.renumber(left)
    dropped = [index for index in every if index not in left]
    as_it_ran = {"allocation": "blocks", "uniform": True, "target": "layer", "target_damping": None}
    return {**as_it_ran, "dropped_blocks": dropped}


@dataclass(frozen=True)
class Solution:
    """A reduced part on the CPU: remaining units, output projection in the layer's dtype with zero columns, bias
    change, and its record."""

    kept: Tensor
    weight: Tensor
    bias: Tensor | None
    record: PartRecord


class Reduction:
    """The parts reduced so far, whose removed units are only zero; a context manager that restores the weights of a
    stopped run."""

    def __init__(self, in_files: bool = False) -> None:
        """`in_files`: the model is streamed, so weights need no restoring."""
        self.in_files = in_files
        self.cuts: list[configuration.Cut] = []
        self._originals: list[tuple[Any, nn.Parameter, nn.Parameter | None]] = []  # modules with weights and biases

    def note(self, part: Part, stay: Tensor, shape: Shape) -> None:
        """Notes a cut before its output projection is written, and keeps the old weight."""
        self.cuts.append(configuration.Cut(part, stay, shape))
        if not self.in_files:
            module: Any = part.output.module
            self._originals.append((module, module.weight, part.output.bias))
            module.weight = nn.Parameter(module.weight.detach().clone(), requires_grad=False)

    def write(self, part: Part, shape: Shape, solution: Solution, with_bias: bool) -> None:
        """Writes the output projection, and its bias if allowed."""
        self.note(part, solution.kept, shape)
        part.output.write(solution.weight)
        if with_bias:
            configuration.add_bias(part.output, solution.bias)

    def __enter__(self) -> Reduction:
        return self

    def __exit__(self, problem: type[BaseException] | None, *_: object) -> None:
        if problem is not None:
            for module, weight, bias in self._originals:
                module.weight, module.bias = weight, bias


def recovery_in(records: Iterable[PartRecord]) -> str:
    """The recovery of a run: "none" where no part could take its bias."""
    return next((record.recovery for record in records if record.recovery != "none"), "none")


def check_zeros(layer: PrunableLayer, recovery: str, target: str = "layer") -> None:
    """Raises RoseError where least squares would fill the zeros of a pruned output projection."""
    if (recovery != "exact" and target != "dense") or layer.weight.is_meta:  # of a skeleton
        return
    zeros = float(layer.weight.eq(0).float().mean())
    if SPARSE < zeros < 1:
        raise RoseError(
            f"{layer.name} is pruned, and recovery exact and target dense would fill its zeros "
            f"({percent(zeros, 0)} of its weights); slim the dense model and prune what is left, or choose "
            "recovery linear, bias or none."
        )


def solve_part(
    part: Part,
    shape: Shape,
    problem: Problem,
    method: StructuredMethod,
    recovery: str,
    held_out: InputStatistics | None = None,
    targets: Sequence[tuple[Gap, InputStatistics]] = (),
) -> Solution:
    """Chooses the units of a part and compensates for the others; the model is not changed. `targets`: gaps to the
    dense model's output and their inputs, for calibration and held-out tokens, as available."""
    began = time.perf_counter()
    if recovery == "bias" and not problem.with_bias:
        recovery = "none"  # nothing is put back, and the record says so
    layer = part.output
    check_zeros(layer, recovery, "dense" if targets else "layer")
    dense = layer.weight.float()
    stay, swapped = choose(method, problem, shape)
    weight, bias = recover(problem, stay, recovery)
    weight = weight.to(layer.weight.dtype)
    written = weight.float()
    unrecovered = dense.masked_fill(~problem.columns_of(stay), 0)
    after, before = relative_errors(dense, problem.second, problem.mean, [(written, bias), (unrecovered, None)])
    held = None
    if held_out is not None:
        second = held_out.hessian / held_out.total_weight
        (held,) = relative_errors(dense, second, held_out.mean, [(written, bias)])
    missed = [target_error_with_bias(dense, written, bias, gap, inputs) for gap, inputs in targets]
    record = PartRecord(
        block_index=part.block_index, part=part.kind, layer=layer.name, method=method.name,
        recovery=recovery, units=part.shape.units, kept_units=shape.units, groups=part.shape.groups,
        kept_groups=shape.groups, parameters=part.parameters(part.shape), kept_parameters=part.parameters(shape),
        relative_error=after, unrecovered_error=before, held_out_error=held,
        swapped=swapped, seconds=time.perf_counter() - began, target_error=missed[0] if missed else None,
        held_out_target_error=missed[1] if len(missed) > 1 else None,
        columns=dense.shape[1], tokens=problem.tokens, dead_columns=int(problem.second.diagonal().eq(0).sum()),
        damping=problem.used_damping, is_damping_raised=problem.used_damping > problem.damping,
    )  # fmt: skip
    return Solution(stay, weight.cpu(), None if bias is None else bias.cpu(), record)


@dataclass
class SlimRun:
    """One walk through the model that gives its parts these shapes, both [block][part]; `biased`: kinds of parts that
    may get a bias."""

    network: Network
    parts: list[list[Part]]
    shapes: Shapes
    biased: tuple[str, ...]
    settings: SlimSettings
    kept: Storage = field(default_factory=Storage)
    sources: dict[str, Tensor] = field(default_factory=dict)
    records: list[PartRecord] = field(default_factory=list)  # of the decoder block at work
    start: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.reduction = Reduction(in_files=self.network.is_streamed)
        self.wanted: dict[int, dict[str, tuple[Part, Shape]]] = {}  # [block][output projection]: what it will be
        for part, shape in changed(self.parts, self.shapes):
            self.wanted.setdefault(part.block_index, {})[part.output.name] = part, shape

    def walk(self, streams: Mapping[str, Tensor], progress: ProgressCallback | None = None) -> list[PartRecord]:
        """Reduces every part, then cuts the model; `streams`: as from `check_streams`."""
        storage, method = self.kept, structured_method(self.settings.method)
        read = layers_read(method, [part for of_block in self.wanted.values() for part, _ in of_block.values()])
        layers = self.network.select([layer.name for layer in read])
        with self.reduction:
            records = [PartRecord(**record) for record in storage.resume(list(self.wanted))]
            has_dense_targets = self.settings.target == "dense"
            walk = start_walk(
                self.network, streams, layers, progress, storage=storage, has_dense_targets=has_dense_targets,
                note=self._note,
            )  # fmt: skip
            with closing(visit_sequentially(walk)) as visits:
                for block in visits:
                    records += self._visit(block, walk.meter)
            walk.meter.tell("done", max(walk.by_block), 1.0)  # the last time that a callback may stop the run
        records.sort(key=lambda record: (record.block_index, PARTS.index(record.part)))
        self._cut()
        return records

    def _note(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Notes the cuts of a decoder block that an earlier run has finished."""
        for part, shape in self.wanted[index].values():
            self.reduction.note(part, tensors[part.output.name + KEPT], shape)

    def _visit(self, block: BlockStatistics, meter: Meter) -> list[PartRecord]:
        """Reduces the parts whose output projections are next; keeps the decoder block after its last part."""
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
        tensors: dict[str, Tensor] = {}  # output projections, biases and remaining units
        for cut in self.reduction.cuts:
            layer = cut.part.output
            if layer.block_index == index:
                tensors |= {layer.name: layer.weight, layer.name + KEPT: cut.kept}
                if layer.bias is not None:
                    tensors[layer.name + BIAS] = layer.bias.detach()
        seconds = self.kept.seconds + time.perf_counter() - self.start
        self.kept.store(index, tensors, [dataclasses.asdict(record) for record in done], seconds)
        return done

    def _reduce(self, part: Part, shape: Shape, block: BlockStatistics, meter: Meter) -> PartRecord:
        """Reduces one part; the first process solves for all, so that all continue with the same numbers."""
        solution = Workers.here().from_first(partial(self._solve, part, shape, block))
        self.reduction.write(part, shape, solution, with_bias=part.kind in self.biased)
        meter.tell("prune", block.block_index, block.work[1], part.output.name, solution.record.relative_error)
        return solution.record

    def _solve(self, part: Part, shape: Shape, block: BlockStatistics) -> Solution:
        began, name = time.perf_counter(), part.output.name
        method, repair = structured_method(self.settings.method), repair_of(self.settings)
        statistics, held_out = block.calibration[name], block.held_out.get(name)
        with naming(part.output):
            targets = [
                (block.gaps[stream][name].of(part.output.weight), inputs)
                for stream, inputs in (("calibration", statistics), ("held_out", held_out))
                if inputs is not None and name in block.gaps.get(stream, {})
            ]
            sources = sources_of(part, method, self.sources.__getitem__)
            problem = make_problem(part, statistics, part.kind in self.biased, self.settings.damping, sources)
            if (gap := block.gaps.get("calibration", {}).get(name)) is not None:
                width, blocks = self.network.config.hidden_size, len(self.wanted)
                mu = correction_damping(width, statistics.tokens, blocks, self.settings.target_damping)
                aim, _ = corrected_weight(part.output.weight, statistics, gap, mu)
                problem = dataclasses.replace(problem, weight=aim)
            solution = solve_part(part, shape, problem, method, repair, held_out, targets)
        record = dataclasses.replace(solution.record, seconds=time.perf_counter() - began)
        return dataclasses.replace(solution, record=record)

    def _cut(self) -> None:
        model: Any = self.network.model
        cuts = self.reduction.cuts
        for cut in cuts:
            if cut.part.kind in self.biased:
                configuration.add_bias(cut.part.output)  # streamed projections have none yet
        configuration.cut_parts(cuts)
        is_uniform = self.settings.allocation == "uniform"  # so that the configuration expresses the result
        for parts, shapes in zip(self.parts, self.shapes, strict=True):
            configuration.tell_modules(model, parts, shapes, own_config=not is_uniform)
        if is_uniform:
            first = zip(self.parts[0], self.shapes[0], strict=True)
            config = configuration.reshaped_config(model, {part.kind: shape for part, shape in first}, self.biased)
            configuration.apply_config(model, config)
        else:
            setattr(model.config, configuration.RECORD, configuration.record_of(model))
        if isinstance(self.kept, DiskStorage):
            storage = self.kept

            def revise(index: int) -> None:
                lay_over(self.network.layers, storage.read(index))
                configuration.cut_parts([cut for cut in cuts if cut.part.block_index == index])

            self.network.residence.make_permanent(revise, storage.identity())
