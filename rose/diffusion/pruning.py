"""A diffusion model, package by package: watch trajectories, prune, watch again (OBS-Diff, arXiv 2510.06751).

The layers are pruned by the same engine as those of a language model. What differs is where a layer's inputs come from:
whole trajectories from noise to pictures, whose steps count as `step_weights` says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor

from rose.diffusion.calibration import TrajectoryCalibration
from rose.diffusion.layers import convolutions, default_block_size, find_layers
from rose.diffusion.steps import PACKAGES, STEPS, WEIGHTS, StepWeights
from rose.diffusion.trajectory import Conditions, DrawOptions, Trajectories
from rose.layer.methods import SettingsOptions, make_settings
from rose.layer.statistics import InputStatistics
from rose.model.network.layers import PrunableLayer, check_prunable, count_parameters, matching
from rose.model.network.stand_ins import hooked
from rose.model.progress import ProgressCallback
from rose.model.run.one_layer import prune_one, record_of
from rose.model.run.settings import describe_layer
from rose.model.walk.walk import statistics_of
from rose.report import RunReport
from rose.rows import LayerRecord

SPARSITY = 0.5  # of a diffusion model, where nobody says otherwise


def prune_diffusion(
    pipeline: Any,
    conditions: Conditions,
    *,
    step_weights: StepWeights = WEIGHTS,
    packages: int = PACKAGES,
    layers: Sequence[str] | None = None,
    steps: int = STEPS,
    guidance: float | None = None,
    batch: int = 32,
    seed: int = 0,
    progress: ProgressCallback | None = None,
    **options: Unpack[SettingsOptions],
) -> RunReport:
    """Prunes a pipeline's transformer or UNet in place, one package of layers after another.

    Before each package the pipeline draws the calibration pictures anew, with the packages before it already pruned.
    Convolutions, embeddings and modulation stay dense; the report's summary says how many weights these are.

    Args:
        pipeline: what `load_diffusion` returns, or a diffusers pipeline of your own. A run that is stopped by its
            callback leaves the layers done so far pruned, each of them whole.
        conditions: what to draw for calibration: classes, prompts, or keyword arguments of the pipeline's call (one
            mapping for each batch).
        step_weights: "log_decrease" (OBS-Diff), "uniform", "log_increase", "linear", or a number for each step.
        packages: groups of layers, each pruned after trajectories of its own.
        layers: names to prune, `*` allowed; None means every prunable layer.
        steps: denoising steps of each trajectory.
        guidance: `guidance_scale` of the pipeline; None leaves its default.
        batch: pictures drawn together.
        seed: of the noise that trajectories start from.
        progress: called with a `Progress` after every denoising step and every layer; its blocks are the packages. May
            raise to stop the run.

    Keyword arguments besides:
        method, sparsity, damping, threshold, order, budget, options, bits, group: see `rose.prune_layer`; half of the
            weights go unless `sparsity` says another share.
        block_size: columns per block; by itself 128, or a quarter of the narrowest layer where that is less.

    Returns:
        A `RunReport`; its `layers` is a DataFrame with one row per layer.

    Raises:
        RoseError: bad input, before any work, or a layer that cannot be pruned, which is named.
    """
    options.setdefault("sparsity", SPARSITY)
    if by_itself := options.get("block_size") is None:
        options.pop("block_size", None)
    settings = make_settings(**options)
    calibration = TrajectoryCalibration(
        pipeline, conditions, step_weights, packages, steps=steps, guidance=guidance, batch=batch, seed=seed
    )
    start = time.perf_counter()
    every = find_layers(calibration)
    chosen = matching(every, layers)
    if by_itself:
        settings = replace(settings, block_size=default_block_size(chosen))
    check_prunable(chosen, every, settings.pattern, settings.block_size, settings.grid)

    def prune(layer: PrunableLayer, found: dict[str, InputStatistics]) -> LayerRecord:
        began = time.perf_counter()
        result = prune_one(layer, found, settings)
        tokens = statistics_of(layer, found).tokens
        record = record_of(layer, result, time.perf_counter() - began, settings, tokens=tokens)
        layer.write(result.weight)
        layer.keep_low_rank(result.low_rank)
        return record

    records = calibration.visit(chosen, list, prune, progress)
    left_dense = convolutions(calibration.denoiser)
    return RunReport.from_records(
        records,
        {"run": "diffuse prune"} | describe_layer(settings),
        **calibration.facts(len(records)),
        denoiser_weights=count_parameters(calibration.denoiser),
        convolutions_left_dense=len(left_dense),
        convolution_weights_left_dense=sum(module.weight.numel() for module in left_dense),
        seconds=time.perf_counter() - start,
    )


def collect_diffusion_statistics(
    pipeline: Any,
    conditions: Conditions,
    *,
    step_weights: StepWeights = WEIGHTS,
    layers: Sequence[str] | None = None,
    tick: Callable[[float], Any] | None = None,
    **drawing: Unpack[DrawOptions],
) -> dict[str, InputStatistics]:
    """What the layers of the dense model read along whole trajectories, by layer name; the model is not changed.

    Arguments as for `prune_diffusion`; `tick` is called with the share done, 0 to 1, and may raise to stop. Layers that
    read one tensor share one object.

    Raises:
        RoseError: bad input, before any work.
    """
    calibration = TrajectoryCalibration(pipeline, conditions, step_weights, **drawing)
    return calibration.statistics(matching(find_layers(calibration), layers), tick)


def step_diagonals(
    pipeline: Any,
    conditions: Conditions,
    *,
    layers: Sequence[str] | None = None,
    **drawing: Unpack[DrawOptions],
) -> dict[str, Tensor]:
    """Each step's part of diag(H), Σ x_j² over its tokens, by layer name: (steps, in) float32.

    The diagonal under any step weights α is their sum, α @ diagonals. The model is not changed; arguments as for
    `prune_diffusion`.

    Raises:
        RoseError: bad input, before any work.
    """
    trajectories = Trajectories(pipeline, conditions, **drawing)
    chosen = matching(find_layers(trajectories), layers)
    found = {
        layer.name: torch.zeros(trajectories.steps, layer.weight.shape[1], dtype=torch.float32) for layer in chosen
    }
    now = 0

    def begin(_batch: int, step: int, _x: Tensor) -> None:
        nonlocal now
        now = trajectories.asked(step)

    def add(_module: Any, args: tuple, name: str) -> None:
        found[name][now] += args[0].detach().flatten(0, -2).float().square().sum(0).cpu()

    with hooked([layer.module.register_forward_pre_hook(partial(add, name=layer.name)) for layer in chosen]):
        for _ in trajectories.draw(begin):
            pass
    return found
