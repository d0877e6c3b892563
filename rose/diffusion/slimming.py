"""A diffusion transformer made smaller, package by package: heads and channels taken out (OBS-Diff, arXiv 2510.06751).

The units are chosen and the rest is compensated by the engine of `rose.structured`. The inputs of output projections
come from trajectories whose steps count as `step_weights` says. Removed units are only set to zero until the end, so
that a run that is stopped leaves the model as it was; the cut then changes no output.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

from torch import nn

from rose.diffusion.calibration import Calibration
from rose.diffusion.parts import find_parts, reshape
from rose.diffusion.steps import StepWeights
from rose.diffusion.trajectory import Conditions, DrawOptions
from rose.errors import RoseError
from rose.layer.statistics import InputStatistics
from rose.model.network.layers import PrunableLayer, named
from rose.model.progress import ProgressCallback
from rose.model.workers import is_launched, processes
from rose.report import RunReport
from rose.structured.allocation import channels_for, check_multiple, head_shapes
from rose.structured.methods import StructuredMethod, structured_method
from rose.structured.parts import CHANNELS, HEADS, PARTS, Part, Shape
from rose.structured.plan import check_request
from rose.structured.reduction import (
    Original,
    PartRecord,
    parts_table,
    put_back,
    renew,
    solve_part,
    sources_of,
    write_part,
)
from rose.structured.surgery import Cut
from rose.structured.survey import make_problem

Wanted = list[tuple[Part, Shape]]


def prune_diffusion_structured(
    pipeline: Any,
    conditions: Conditions,
    *,
    method: str = "obs",
    ratio: float = 0.2,
    parts: Sequence[str] | None = None,
    recovery: str | None = None,
    damping: float = 0.01,
    multiple: int = 8,
    step_weights: StepWeights = "log_decrease",
    packages: int = 4,
    progress: ProgressCallback | None = None,
    **drawing: Unpack[DrawOptions],
) -> RunReport:
    """Makes a pipeline's transformer smaller, in place: attention heads and feed-forward channels are cut out.

    For transformers of diffusers whose blocks have ordinary attention and feed-forwards (DiT, PixArt); joint attention
    of two streams keeps its heads (SD3: channels alone), and what is not known is refused. Every block gives the same
    share. `save_diffusion` keeps the result, and `load_diffusion` reads it; diffusers alone does not, because its
    configurations have no number for these shapes.

    Args:
        pipeline, conditions, step_weights, packages, drawing: see `prune_diffusion`.
        method: "obs", "slimllm", "wanda" or "magnitude", see `rose.STRUCTURED`.
        ratio: share of the parameters of attention and feed-forwards (those of `parts`) to remove, above 0 and below
            1. Heads go to the nearest whole number, and channels make up for the rest.
        parts: "heads", "channels", or both; None means both.
        recovery: "none", "bias", "linear" or "exact"; None means the method's own. Only projections that have a bias
            get one.
        damping: added to the diagonal of the inputs' second moments, relative to its mean.
        multiple: the number of kept channels is a multiple of this.
        progress: called with a `Progress` after every denoising step and every part. May raise to stop the run, which
            leaves the model as it was.

    Returns:
        A `RunReport`; its `layers` is a DataFrame with one row per part, columns as in
        `rose.structured.reduction.PartRecord`.

    Raises:
        RoseError: bad input, or a denoiser that cannot be made smaller, before any work.
    """
    start = time.perf_counter()
    chosen = structured_method(method)
    if chosen.select is None:
        raise RoseError(f"{method} drops whole blocks, which is not for diffusion models; choose obs.")
    if processes() > 1 or is_launched():
        raise RoseError("A diffusion model is made smaller in one process; start it without torchrun.")
    check_request(ratio, "uniform", recovery, damping, multiple)
    calibration = Calibration(pipeline, conditions, step_weights, packages, **drawing)
    denoiser = calibration.denoiser
    kinds = PARTS if parts is None else tuple(parts)
    found = find_parts(denoiser, kinds)
    check_multiple([part for of_block in found for part in of_block], multiple)
    wanted = [one for of_block in found for one in _shapes(of_block, ratio, multiple)]
    wanted = [(part, shape) for part, shape in wanted if shape != part.shape]
    if not wanted:
        raise RoseError("At this ratio nothing would go; ask for a larger one, or for a smaller multiple.")
    before = _parameters(denoiser)
    how = recovery or chosen.recovery
    cuts: list[Cut] = []
    originals: list[Original] = []

    def reduce(one: tuple[Part, Shape], statistics: dict[str, InputStatistics]) -> PartRecord:
        record, cut = _reduce(*one, statistics, chosen, how, damping, originals)
        cuts.append(cut)
        return record

    try:
        records = calibration.visit(wanted, partial(_read_by, chosen), reduce, progress)
    except BaseException:
        put_back(originals)
        raise
    reshape(denoiser, cuts)
    whole = sum(part.parameters(part.shape) for of_block in found for part in of_block)
    gone = sum(record.parameters - record.kept_parameters for record in records)
    return RunReport(
        parts_table(records),
        {
            "method": method, "ratio": ratio, "parts": list(kinds), "recovery": how, "damping": damping,
            "multiple": multiple, **calibration.facts(len(records)),
            "part_parameters": whole, "removed_fraction": gone / whole,
            "parameters": before, "kept_parameters": _parameters(denoiser),
            "mean_relative_error": sum(record.relative_error for record in records) / len(records),
            "seconds": time.perf_counter() - start,
        },
    )  # fmt: skip


def _shapes(parts: Sequence[Part], ratio: float, multiple: int) -> Wanted:
    """What a block keeps: heads as near to the ratio as they can, channels by what is then left to save.

    Raises:
        RoseError: the channels cannot save that much.
    """
    left = ratio * sum(part.parameters(part.shape) for part in parts)
    wanted: Wanted = []
    for part in parts:
        if part.kind == HEADS:
            aim = ratio * part.parameters(part.shape)
            shape = min(head_shapes(part.shape), key=lambda shape: (abs(part.saved(shape) - aim), -shape.units))
            left -= part.saved(shape)
            wanted.append((part, shape))
    channels = [part for part in parts if part.kind == CHANNELS]
    whole = sum(part.parameters(part.shape) for part in channels)
    for part in channels:
        kept = channels_for(part, max(left, 0.0) * part.parameters(part.shape) / whole, multiple)
        if kept is None:
            raise RoseError("The channels cannot save that much; ask for a smaller ratio.")
        wanted.append((part, kept))
    return [next(one for one in wanted if one[0] is part) for part in parts]


def _read_by(method: StructuredMethod, package: Wanted) -> list[PrunableLayer]:
    """The layers whose inputs are needed."""
    layers = {part.output.name: part.output for part, _ in package}
    if method.looks_at_inputs:
        layers |= {layer.name: layer for part, _ in package if part.kind == CHANNELS for layer in part.makers}
    return list(layers.values())


def _reduce(
    part: Part,
    shape: Shape,
    statistics: dict[str, InputStatistics],
    method: StructuredMethod,
    recovery: str,
    damping: float,
    originals: list[Original],
) -> tuple[PartRecord, Cut]:
    sources = sources_of(part, method, lambda name: statistics[name].mean_square.sqrt())
    with_bias = recovery != "none" and getattr(part.output.module, "bias", None) is not None
    problem = make_problem(part, statistics[part.output.name], with_bias, damping, sources)
    with named(part.output):
        found = solve_part(part, shape, problem, method, recovery)
    renew(part, originals)
    write_part(part, found, with_bias=with_bias)
    return found.record, Cut(part, found.kept, shape)


def _parameters(denoiser: nn.Module) -> int:
    return sum(parameter.numel() for parameter in denoiser.parameters())
