"""A diffusion model, package by package: watch trajectories, prune, watch again (OBS-Diff, arXiv 2510.06751).

The layers are pruned by the same engine as those of a language model. What differs is where a layer's inputs come from:
whole trajectories from noise to pictures, whose steps count as `step_weights` says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rose.diffusion.denoiser import denoiser_of
from rose.diffusion.layers import (
    check_packages,
    choose_layers,
    default_block_size,
    make_packages,
    study_denoiser,
)
from rose.diffusion.steps import StepWeights, check_steps
from rose.diffusion.steps import step_weights as make_weights
from rose.diffusion.trajectory import Batch, Conditions, make_batches, run_pipeline
from rose.layer.methods import Settings, make_settings
from rose.layer.methods.options import Value
from rose.layer.pattern import Pattern
from rose.layer.statistics import InputStatistics
from rose.model.network.layers import PrunableLayer, check_widths
from rose.model.progress import Meter, ProgressCallback
from rose.model.run.prune import prune_one, record_of
from rose.model.walk.capture import Collector
from rose.report import LayerRecord, RunReport

CALIBRATION_SHARE = 0.8  # of a package's time; only the progress bar depends on it


def prune_diffusion(
    pipeline: Any,
    conditions: Conditions,
    *,
    method: str = "rose",
    sparsity: float | str | Pattern = 0.5,
    steps: int = 20,
    step_weights: StepWeights = "log_decrease",
    packages: int = 4,
    layers: Sequence[str] | None = None,
    block_size: int | None = None,
    damping: float = 0.01,
    threshold: float = 0.5,
    order: str | None = None,
    budget: str | None = None,
    options: Mapping[str, Value] | None = None,
    guidance: float | None = None,
    batch: int = 32,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> RunReport:
    """Prunes a pipeline's transformer or UNet in place, one package of layers after another.

    Before each package the pipeline draws the calibration pictures anew, with the packages before it already pruned.
    Convolutions, embeddings and modulation stay dense; the report's summary says how many weights these are.

    Args:
        pipeline: what `load_diffusion` returns, or a diffusers pipeline of your own. A run that is stopped by its
            callback leaves the layers done so far pruned, each of them whole.
        conditions: what to draw for calibration: classes, prompts, or keyword arguments of the pipeline's call (one
            mapping for each batch).
        method: a name in the registry (`rose.METHODS`).
        sparsity: a ratio, or N:M such as "2:4".
        steps: denoising steps of each trajectory.
        step_weights: "log_decrease" (OBS-Diff), "uniform", "log_increase", "linear", or a number for each step.
        packages: groups of layers, each pruned after trajectories of its own.
        layers: names to prune, `*` allowed; None means every prunable layer.
        block_size: columns per block; None takes 128, or a quarter of the narrowest layer where that is less.
        damping, threshold, order, budget, options: see `rose.prune_layer`.
        guidance: `guidance_scale` of the pipeline; None leaves its default.
        batch: pictures drawn together.
        seed: of the noise that trajectories start from.
        progress: called with a `Progress` after every denoising step and every layer; its blocks are the packages. May
            raise to stop the run.

    Returns:
        A `RunReport`; its `layers` is a DataFrame with one row per layer.

    Raises:
        RoseError: bad input, before any work, or a layer that cannot be pruned, which is named.
    """
    engine: dict[str, Any] = {
        "method": method,
        "sparsity": sparsity,
        "damping": damping,
        "threshold": threshold,
        "order": order,
        "budget": budget,
        "options": options,
    }
    make_settings(**engine, block_size=128 if block_size is None else block_size)
    weights = make_weights(step_weights, steps)
    check_packages(packages)
    batches = make_batches(pipeline, conditions, batch)
    start = time.perf_counter()
    anatomy = study_denoiser(pipeline, batches[0], guidance=guidance)
    chosen = choose_layers(anatomy.layers, layers)
    engine["block_size"] = default_block_size(chosen) if block_size is None else block_size
    settings = make_settings(**engine)
    check_widths(chosen, settings.pattern, settings.block_size)
    parts = make_packages(chosen, packages)
    meter = Meter(progress, len(parts), len(chosen))
    run = partial(run_pipeline, pipeline, steps=steps, seed=seed, guidance=guidance)
    records: list[LayerRecord] = []
    for number, package in enumerate(parts):

        def tick(share: float, number: int = number) -> None:
            meter.tell("calibrate", number, CALIBRATION_SHARE * share)

        found = gather(package, batches, weights, run, tick)
        for k, layer in enumerate(package):
            records.append(_prune(layer, found, settings))
            meter.layers_done += 1
            within = CALIBRATION_SHARE + (1 - CALIBRATION_SHARE) * (k + 1) / len(package)
            meter.tell("prune", number, within, layer.name, records[-1].relative_error)
    meter.tell("done", len(parts) - 1, 1.0)
    return RunReport.from_records(
        records,
        pipeline=type(pipeline).__name__,
        denoiser=type(denoiser_of(pipeline)).__name__,
        method=method,
        sparsity=str(settings.pattern),
        steps=steps,
        step_weights=step_weights if isinstance(step_weights, str) else list(weights),
        packages=len(parts),
        options=dict(settings.options),
        block_size=settings.block_size,
        damping=damping,
        threshold=threshold,
        batches=len(batches),
        samples=sum(one.count for one in batches if one.count) or None,
        guidance=guidance,
        seed=seed,
        denoiser_weights=anatomy.weights,
        convolutions_left_dense=anatomy.convolutions,
        convolution_weights_left_dense=anatomy.convolution_weights,
        seconds=time.perf_counter() - start,
    )


def collect_diffusion_statistics(
    pipeline: Any,
    conditions: Conditions,
    *,
    steps: int = 20,
    step_weights: StepWeights = "log_decrease",
    layers: Sequence[str] | None = None,
    guidance: float | None = None,
    batch: int = 32,
    seed: int = 0,
    tick: Callable[[float], Any] | None = None,
) -> dict[str, InputStatistics]:
    """What the layers of the dense model read along whole trajectories, by layer name; the model is not changed.

    Arguments as for `prune_diffusion`; `tick` is called with the share done, 0 to 1, and may raise to stop. Layers that
    read one tensor share one object.

    Raises:
        RoseError: bad input, before any work.
    """
    weights = make_weights(step_weights, steps)
    batches = make_batches(pipeline, conditions, batch)
    chosen = choose_layers(study_denoiser(pipeline, batches[0], guidance=guidance).layers, layers)
    run = partial(run_pipeline, pipeline, steps=steps, seed=seed, guidance=guidance)
    return gather(chosen, batches, weights, run, tick)


def gather(
    layers: list[PrunableLayer],
    batches: Sequence[Batch],
    weights: Sequence[float],
    run: Callable[..., Tensor],
    tick: Callable[[float], Any] | None,
) -> dict[str, InputStatistics]:
    """Draws every batch, and gathers what the layers read, each step with its weight."""
    collector = Collector(layers, layers[0].weight.device)
    try:
        for number, one in enumerate(batches):

            def seen(step: int, steps: int, _x: Tensor, number: int = number) -> None:
                collector.end_batch()
                # A scheduler may ask more often than there are steps; the last weight then counts for the rest.
                collector.weight = weights[min(step, len(weights) - 1)]
                if tick is not None:
                    tick((number + step / steps) / len(batches))

            run(one, watch=seen)
            collector.end_batch()
    finally:
        collector.close()
    return collector.result()


def _prune(layer: PrunableLayer, found: dict[str, InputStatistics], settings: Settings) -> LayerRecord:
    """Prunes one layer in place."""
    began = time.perf_counter()
    result = prune_one(layer, found, settings)
    layer.write(result.weight)
    layer.keep_low_rank(result.low_rank)
    return record_of(layer, result, time.perf_counter() - began, damping=settings.damping)


def step_diagonals(
    pipeline: Any,
    conditions: Conditions,
    *,
    steps: int = 20,
    layers: Sequence[str] | None = None,
    guidance: float | None = None,
    batch: int = 32,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Each step's part of diag(H), Σ x_j² over its tokens, by layer name: (steps, in) float32.

    The diagonal under any step weights α is their sum, α @ diagonals. The model is not changed; arguments as for
    `prune_diffusion`.

    Raises:
        RoseError: bad input, before any work.
    """
    check_steps(steps)
    batches = make_batches(pipeline, conditions, batch)
    chosen = choose_layers(study_denoiser(pipeline, batches[0], guidance=guidance).layers, layers)
    found = {layer.name: torch.zeros(steps, layer.weight.shape[1]) for layer in chosen}
    now = 0

    def begin(step: int, _steps: int, _x: Tensor) -> None:
        nonlocal now
        now = min(step, steps - 1)

    def add(_module: Any, args: tuple, name: str) -> None:
        found[name][now] += args[0].detach().flatten(0, -2).float().square().sum(0).cpu()

    hooks = [layer.module.register_forward_pre_hook(partial(add, name=layer.name)) for layer in chosen]
    try:
        for one in batches:
            run_pipeline(pipeline, one, steps=steps, seed=seed, guidance=guidance, watch=begin)
    finally:
        for hook in hooks:
            hook.remove()
    return found
