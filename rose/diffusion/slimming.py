"""A diffusion transformer with fewer heads and channels, package by package (OBS-Diff, arXiv 2510.06751).

`rose.structured` chooses units and compensates for them. Removed units are set to zero until the end, so a stopped run
leaves the model as it was; the final cut changes no output.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

from rose.diffusion.calibration import TrajectoryCalibration
from rose.diffusion.parts import find_parts, reshape
from rose.diffusion.steps import PACKAGES, STEPS, WEIGHTS, StepWeights
from rose.diffusion.trajectory import Conditions
from rose.errors import RoseError, check_keywords
from rose.layer.statistics import InputStatistics
from rose.model.network.layers import PrunableLayer, count_parameters, naming
from rose.model.progress import ProgressCallback
from rose.model.workers import Workers, is_launched
from rose.recipe.parts import SlimSettings
from rose.report import RunReport
from rose.rows import PartRecord, records_table
from rose.structured.defaults import PARTS
from rose.structured.methods import structured_method
from rose.structured.parts import Part, Shape
from rose.structured.plan import CutOptions, changed, check_multiple, repair_of, shapes_by_ratio
from rose.structured.reduction import Reduction, layers_read, recovery_in, solve_part, sources_of
from rose.structured.survey import make_problem


def prune_diffusion_structured(
    pipeline: Any,
    conditions: Conditions,
    *,
    step_weights: StepWeights = WEIGHTS,
    packages: int = PACKAGES,
    steps: int = STEPS,
    guidance: float | None = None,
    batch: int = 32,
    seed: int = 0,
    progress: ProgressCallback | None = None,
    **options: Unpack[CutOptions],
) -> RunReport:
    """Makes a pipeline's transformer smaller, in place: attention heads and feed-forward channels are cut out.

    Supported are diffusers' transformers with ordinary attention and feed-forwards (DiT, PixArt), and the channels
    alone of joint attention (SD3); others are refused. Every block gives the same share. Only `load_diffusion` reads
    the result, because configurations of diffusers have no number for these shapes.

    Args:
        pipeline, conditions, step_weights, packages, steps, guidance, batch, seed: see `prune_diffusion`.
        progress: called with a `Progress` after every denoising step and part; may raise to stop, which leaves the
            model as it was.

    Keyword arguments besides:
        method, recovery, damping, multiple: see `rose.prune_structured`. Only projections with a bias get one.
        ratio: share of the parameters of `parts` to remove. Heads go to the nearest whole number; channels make up the
            rest.
        parts: "heads", "channels", or both; None means both.

    Returns:
        A `RunReport`; its `layers` is a DataFrame with one row per part, see `rose.rows.PartRecord`.

    Raises:
        RoseError: bad input, or a denoiser that cannot be made smaller, before any work.
    """
    start = time.perf_counter()
    check_keywords(options, CutOptions.__optional_keys__)  # no allocation: blocks of a denoiser are not alike
    settings = SlimSettings.of(**options)
    if structured_method(settings.method).select is None:
        raise RoseError(f"{settings.method} drops whole blocks, which is not for diffusion models; choose obs.")
    if Workers.here().count > 1 or is_launched():
        raise RoseError("A diffusion model is made smaller in one process; start it without torchrun.")
    calibration = TrajectoryCalibration(
        pipeline, conditions, step_weights, packages, steps=steps, guidance=guidance, batch=batch, seed=seed
    )
    denoiser = calibration.denoiser
    before = count_parameters(denoiser)
    kinds = PARTS if settings.parts is None else settings.parts
    parts = find_parts(denoiser, kinds)
    check_multiple(parts, settings.multiple)
    shapes = [shapes_by_ratio(of_block, settings.ratio, settings.multiple, fewest=_refuse) for of_block in parts]
    with Reduction() as reduction:
        reduce = partial(_reduce, settings, reduction)
        records = calibration.visit(changed(parts, shapes), partial(_layers, settings), reduce, progress)
    reshape(denoiser, reduction.cuts)
    whole = sum(part.parameters(part.shape) for of_block in parts for part in of_block)
    removed = sum(record.parameters - record.kept_parameters for record in records)
    return RunReport(
        records_table(records, PartRecord),
        {
            **calibration.facts(len(records)), "part_parameters": whole, "removed_fraction": removed / whole,
            "parameters": before, "kept_parameters": count_parameters(denoiser),
            "mean_relative_error": sum(record.relative_error for record in records) / len(records),
            "seconds": time.perf_counter() - start,
        },
        {
            "run": "diffuse slim", "method": settings.method, "ratio": settings.ratio, "parts": list(kinds),
            "recovery": recovery_in(records), "damping": settings.damping, "multiple": settings.multiple,
        },
    )  # fmt: skip


def _reduce(
    settings: SlimSettings, reduction: Reduction, change: tuple[Part, Shape], statistics: dict[str, InputStatistics]
) -> PartRecord:
    """Takes units out of one part, and compensates."""
    part, shape = change
    with_bias = repair_of(settings) != "none" and part.output.bias is not None
    sources = sources_of(part, structured_method(settings.method), lambda name: statistics[name].mean_square.sqrt())
    problem = make_problem(part, statistics[part.output.name], with_bias, settings.damping, sources)
    with naming(part.output):
        solution = solve_part(part, shape, problem, structured_method(settings.method), repair_of(settings))
    reduction.write(part, shape, solution, with_bias)
    return solution.record


def _layers(settings: SlimSettings, package: Sequence[tuple[Part, Shape]]) -> list[PrunableLayer]:
    """The layers whose inputs a package needs."""
    return layers_read(structured_method(settings.method), [part for part, _ in package])


def _refuse(_part: Part, _multiple: int) -> Shape:
    raise RoseError("The channels cannot save that much; ask for a smaller ratio.")
