"""A diffusion transformer with fewer heads and channels, package by package (OBS-Diff, arXiv 2510.06751); its files.

`rose.structured` chooses units and compensates for them. Removed units are zero until the end, so a stopped run leaves
the model as it was; the final cut changes no output. Configurations of diffusers have no number for these shapes, so a
reshaped model's has a record, `rose_shapes`, which `rose.load_diffusion` reads; diffusers refuses such a file.
"""

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from rose.diffusion.pruning import TrajectoryCalibration
from rose.diffusion.steps import PACKAGES, STEPS, WEIGHTS, StepWeights
from rose.diffusion.trajectory import Conditions, block_of, outermost_lists
from rose.errors import RoseError, check_keywords
from rose.layer.statistics import InputStatistics
from rose.model.network.layers import PrunableLayer, check_plain, count_parameters, naming
from rose.model.progress import ProgressCallback
from rose.model.workers import Workers, is_launched
from rose.recipe.keywords import CutOptions
from rose.recipe.parts import CutPart, SlimSettings
from rose.report import RunReport
from rose.rows import PartRecord, records_table
from rose.structured.configuration import Cut, cut_parts, cut_to, with_shapes
from rose.structured.defaults import PARTS
from rose.structured.methods import structured_method
from rose.structured.parts import CHANNELS, HEADS, Part, Rows, Shape, check_kinds
from rose.structured.plan import changed, check_multiple, repair_of, shapes_by_ratio
from rose.structured.slimming import Reduction, recovery_in, solve_part
from rose.structured.survey import layers_read, make_problem, sources_of

RECORD = "rose_shapes"  # of a configuration: {module: heads or channels}
COMPONENTS = ("transformer", "unet")
PLAIN = ("AttnProcessor", "AttnProcessor2_0")  # attention that reads the number of heads where `tell` writes it
ACTIVATIONS = {"GELU": 1, "ApproximateGELU": 1, "LinearActivation": 1, "GEGLU": 2, "SwiGLU": 2}  # rows a channel


def find_parts(denoiser: nn.Module, kinds: Sequence[str] = PARTS) -> list[list[Part]]:
    """The parts of every block in the order of the forward pass, [block][part]. Supported are diffusers' `Attention`,
    except joint attention of two streams, and its `FeedForward`. Raises RoseError for a block without such a part, and
    as `check_plain`."""
    check_kinds(kinds)
    check_plain(denoiser)
    lists = outermost_lists(denoiser)
    by_block: dict[str, list[Part]] = {}
    for name, module in denoiser.named_modules():
        block = block_of(name, lists)
        if not block:
            continue
        of_block = by_block.setdefault(block, [])
        part = _part(name, module, block, len(by_block) - 1)
        if part is not None and part.kind in kinds:
            of_block.append(part)
    for block, of_block in by_block.items():
        missing = [kind for kind in kinds if kind not in {part.kind for part in of_block}]
        if missing:
            parts_by_kind = [kind for kind in kinds if kind not in missing]
            advice = (
                f"try {parts_by_kind[0]} alone, or remove single weights" if parts_by_kind else "remove single weights"
            )
            raise RoseError(
                f"The {missing[0]} of {type(denoiser).__name__} cannot be taken out, as {block} has no supported "
                f"ones; {advice} by prune_diffusion."
            )
    if not by_block:
        raise RoseError(f"{type(denoiser).__name__} has no blocks that could be made smaller.")
    return list(by_block.values())


def _part(name: str, module: Any, block: str, index: int) -> Part | None:
    from diffusers.models.attention import FeedForward
    from diffusers.models.attention_processor import Attention

    def layer(of: str, linear: nn.Module) -> PrunableLayer:
        full = f"{name}.{of}"
        return PrunableLayer(full, index, full.removeprefix(f"{block}."), linear)

    if isinstance(module, Attention) and _is_plain(module):
        width = module.to_q.weight.shape[0] // module.heads
        rows = tuple(
            Rows(layer(of, getattr(module, of)), 0, width, shared)
            for of, shared in (("to_q", False), ("to_k", True), ("to_v", True))
        )
        shape = Shape(module.heads, 1)
        return Part(HEADS, index, layer("to_out.0", module.to_out[0]), rows, shape, width, name)
    if isinstance(module, FeedForward) and type(module.net[0]).__name__ in ACTIVATIONS:
        count = module.net[2].weight.shape[1]
        inputs = layer("net.0.proj", module.net[0].proj)
        starts = range(0, ACTIVATIONS[type(module.net[0]).__name__] * count, count)
        rows = tuple(Rows(inputs, start, 1, False) for start in starts)
        return Part(CHANNELS, index, layer("net.2", module.net[2]), rows, Shape(1, count), 1, name)
    return None


def _is_plain(attention: Any) -> bool:
    """Whether the heads lie side by side in queries, keys, values and one output projection, and no other parameter
    depends on their number."""
    layers = [getattr(attention, name, None) for name in ("to_q", "to_k", "to_v")]
    if attention.to_out is None or not all(isinstance(layer, nn.Linear) for layer in layers):
        return False
    sizes = {layer.weight.shape[0] for layer in layers}  # type: ignore[union-attr]
    width = attention.to_q.weight.shape[0] // attention.heads
    norms = [norm for norm in (attention.norm_q, attention.norm_k) if norm is not None]
    return (
        sizes == {attention.to_out[0].weight.shape[1]}
        and type(attention.processor).__name__ in PLAIN
        and getattr(attention, "to_add_out", None) is None
        and getattr(attention, "add_k_proj", None) is None
        and all(parameter.shape == (width,) for norm in norms for parameter in norm.parameters())
    )


def reshape(denoiser: nn.Module, cuts: Sequence[Cut]) -> None:
    """Cuts the layers in place and updates modules and configuration."""
    cut_parts(cuts)
    for cut in cuts:
        if cut.part.kind == HEADS:
            owner: Any = denoiser.get_submodule(cut.part.owner)
            owner.heads = owner.sliceable_head_dim = cut.shape.units
            owner.inner_dim = owner.inner_kv_dim = cut.shape.units * cut.part.width
    config: Any = denoiser
    record = dict(getattr(config.config, RECORD, None) or {})
    config.register_to_config(**{RECORD: record | {cut.part.owner: cut.shape.units for cut in cuts}})


def apply_record(denoiser: nn.Module, record: Mapping[str, int]) -> None:
    """Gives a denoiser the shapes of a record, whatever its weights; raises RoseError where the record does not fit."""
    lists = outermost_lists(denoiser)
    cuts = []
    for name, units in dict(record).items():
        block = block_of(name, lists)
        try:
            part = _part(name, denoiser.get_submodule(name), block, 0)
        except AttributeError:
            part = None
        if part is None or not isinstance(units, int) or not 0 < units <= part.shape.units:
            raise RoseError(f"The shapes in the configuration do not fit the model ({name}: {units!r}); save it again.")
        cuts.append(cut_to(part, Shape(units, 1) if part.kind == HEADS else Shape(1, units)))
    reshape(denoiser, cuts)


def read_reshaped(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Loads the components of a pipeline folder whose configuration has a record, by name; raises RoseError for a
    record that cannot be read or does not fit."""
    import diffusers

    components: dict[str, Any] = {}
    for name in COMPONENTS:
        path = folder / name / "config.json"
        config = json.loads(path.read_text()) if path.exists() else {}
        if (record := config.get(RECORD)) is None:
            continue
        family: Any = getattr(diffusers, str(config.get("_class_name")), None)
        if family is None or not isinstance(record, dict):
            raise RoseError(f"{path} names no model of diffusers, or no shapes; save the pipeline again.")
        reshaped = with_shapes(family, partial(apply_record, record=record))
        components[name] = reshaped.from_pretrained(path.parent, dtype=dtype, use_safetensors=True)
    return components


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
        options: see `rose.prune_structured`. Only projections with a bias get one; `ratio` is a share of the parameters
            of `parts` (None means both). Heads go to the nearest whole number; channels make up the rest.

    Raises RoseError, before any work, for bad input, or a denoiser that cannot be made smaller.
    """
    start = time.perf_counter()
    check_keywords(options, CutPart.fields())  # no allocation: blocks of a denoiser are not alike
    settings = SlimSettings.of(**options)
    method, repair = structured_method(settings.method), repair_of(settings)
    if method.select is None:
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
    reduction = Reduction()

    def reduce(change: tuple[Part, Shape], statistics: dict[str, InputStatistics]) -> PartRecord:
        part, shape = change
        with_bias = repair != "none" and part.output.bias is not None
        sources = sources_of(part, method, lambda name: statistics[name].mean_square.sqrt())
        problem = make_problem(part, statistics[part.output.name], with_bias, settings.damping, sources)
        with naming(part.output):
            solution = solve_part(part, shape, problem, method, repair)
        reduction.write(part, shape, solution, with_bias)
        return solution.record

    with reduction:
        records = calibration.visit(
            changed(parts, shapes), lambda package: layers_read(method, [part for part, _ in package]), reduce, progress
        )
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


def _refuse(_part: Part, _multiple: int) -> Shape:
    raise RoseError("The channels cannot save that much; ask for a smaller ratio.")
