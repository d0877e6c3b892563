"""Pruning of a diffusion model, package by package: draw trajectories, prune, draw again (OBS-Diff, arXiv
2510.06751)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor

from rose.diffusion.calibration import TrajectoryCalibration, convolutions, default_block_size, find_layers
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

    Before each package the pipeline draws the calibration pictures with the earlier packages already pruned.
    Convolutions, embeddings and modulation stay dense; the report's summary counts their weights.

    Args:
        pipeline: from `load_diffusion`, or any diffusers pipeline. A run that its callback stops leaves finished layers
            pruned.
        conditions: classes, prompts, or keyword arguments of the pipeline's call (one mapping per batch).
        step_weights: "log_decrease" (OBS-Diff), "uniform", "log_increase", "linear", or a number for each step.
        packages: groups of layers, each pruned after trajectories of its own.
        layers: names to prune, `*` allowed; None means every prunable layer.
        steps, guidance, batch, seed: see `Trajectories`.
        progress: called with a `Progress` after every denoising step and layer; may raise to stop the run.

    Keyword arguments besides:
        method, sparsity, damping, threshold, order, budget, options, bits, group: see `rose.prune_layer`; `sparsity` is
            0.5 by default.
        block_size: columns per block; see `default_block_size`.

    Returns:
        A `RunReport`; its `layers` is a DataFrame with one row per layer.

    Raises:
        RoseError: bad input, before any work, or a layer that cannot be pruned, with its name.
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

    def prune(layer: PrunableLayer, statistics: dict[str, InputStatistics]) -> LayerRecord:
        began = time.perf_counter()
        result = prune_one(layer, statistics, settings)
        tokens = statistics_of(layer, statistics).tokens
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
    """Inputs of the dense model's layers along whole trajectories, by layer name; the model is not changed.

    Arguments as for `prune_diffusion`; `tick` is called with the share done, 0 to 1, and may raise to stop. Layers that
    read one tensor share one object. Raises RoseError for bad input, before any work.
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
    """Each step's share of diag(H), Σ x_j² over its tokens, by layer name: (steps, in) float32.

    With step weights α the diagonal is α @ diagonals. Arguments and errors as for `prune_diffusion`; the model is not
    changed.
    """
    trajectories = Trajectories(pipeline, conditions, **drawing)
    chosen = matching(find_layers(trajectories), layers)
    diagonals = {
        layer.name: torch.zeros(trajectories.steps, layer.weight.shape[1], dtype=torch.float32) for layer in chosen
    }
    now = 0

    def begin(_batch: int, step: int, _x: Tensor) -> None:
        nonlocal now
        now = trajectories.asked(step)

    def add(_module: Any, args: tuple, name: str) -> None:
        diagonals[name][now] += args[0].detach().flatten(0, -2).float().square().sum(0).cpu()

    with hooked([layer.module.register_forward_pre_hook(partial(add, name=layer.name)) for layer in chosen]):
        for _ in trajectories.draw(begin):
            pass
    return diagonals
