"""Pruning of a diffusion model, package by package: draw trajectories, prune, draw again (OBS-Diff, arXiv
2510.06751)."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from rose.diffusion.steps import PACKAGES, STEPS, WEIGHTS, StepWeights, step_weights
from rose.diffusion.trajectory import Conditions, DrawOptions, Trajectories, block_of, outermost_lists
from rose.environment import environment
from rose.errors import RoseError, is_whole
from rose.layer.methods import measured
from rose.layer.pattern import BLOCK_SIZE, DAMPING, METHOD, THRESHOLD, Pattern
from rose.layer.registry import Value
from rose.layer.settings import LayerSettings
from rose.layer.statistics import InputStatistics
from rose.model.network.layers import PrunableLayer, check_plain, check_prunable, count_parameters, matching
from rose.model.network.precision import name_of
from rose.model.network.stand_ins import hooked
from rose.model.progress import Meter, ProgressCallback
from rose.model.run.one_layer import prune_one, record_of
from rose.model.walk.walk import Collector, statistics_of
from rose.report import RunReport
from rose.rows import LayerRecord

SPARSITY = 0.5  # unless given
CALIBRATION_SHARE = 0.8  # of a package's time; only the progress bar depends on it


class _Enough(Exception):
    """Ends the probe once the denoiser has been called."""


def find_layers(trajectories: Trajectories) -> list[PrunableLayer]:
    """Calls the denoiser once and returns its prunable layers in the order of the calls.

    Every linear layer inside a list of blocks that reads a sequence of tokens is prunable. Layers that read one vector
    per picture (time and class embeddings, modulation), layers outside the blocks, and convolutions stay dense.
    `block_index` counts blocks in the order of the calls. Raises RoseError if no layer is prunable, and as
    `check_plain`.
    """
    denoiser = trajectories.denoiser
    check_plain(denoiser)
    outermost = outermost_lists(denoiser)
    called: dict[str, nn.Module] = {}

    def seen(name: str, module: nn.Module, args: tuple) -> None:
        if isinstance(args[0], Tensor) and args[0].ndim >= 3:
            called.setdefault(name, module)

    def stop(*_anything: Any) -> None:
        raise _Enough

    hooks = [
        module.register_forward_pre_hook(partial(seen, name))
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.Linear) and block_of(name, outermost)
    ]
    with hooked([*hooks, denoiser.register_forward_hook(stop)]), suppress(_Enough):
        next(trajectories.draw())
    if not called:
        raise RoseError(
            f"{type(denoiser).__name__} has no blocks with linear layers that read tokens: nothing to prune."
        )
    blocks: dict[str, int] = {}
    layers = []
    for name, module in called.items():
        block = block_of(name, outermost)
        index = blocks.setdefault(block, len(blocks))
        layers.append(PrunableLayer(name, index, name.removeprefix(f"{block}."), module))
    return layers


def convolutions(denoiser: nn.Module) -> list[Any]:
    """The convolutional layers, which stay dense."""
    return [module for module in denoiser.modules() if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))]


def default_block_size(layers: Sequence[PrunableLayer]) -> int:
    """128 columns, or a quarter of the narrowest layer if that is less, as a multiple of four for N:M."""
    narrowest = min(layer.weight.shape[1] for layer in layers)
    return min(BLOCK_SIZE, max(4, narrowest // 4 // 4 * 4))


class TrajectoryCalibration(Trajectories):
    """Trajectories whose steps count as their weights say, drawn anew before each package of layers is changed."""

    def __init__(
        self,
        pipeline: Any,
        conditions: Conditions,
        weights: StepWeights,
        packages: int = 1,
        **options: Unpack[DrawOptions],
    ) -> None:
        super().__init__(pipeline, conditions, **options)
        if not is_whole(packages) or packages < 1:
            raise RoseError(f"The number of packages must be a whole number of at least 1, not {packages!r}.")
        self.weights, self.packages = step_weights(weights, self.steps), int(packages)
        self.name_of_weights = weights if isinstance(weights, str) else list(self.weights)

    def statistics(
        self, layers: list[PrunableLayer], tick: Callable[[float], Any] | None = None
    ) -> dict[str, InputStatistics]:
        """Draws every batch and gathers what the layers read, by layer name; each step has its weight."""
        collector = Collector(layers, layers[0].weight.device)

        def begin(_batch: int, step: int, _x: Any) -> None:
            collector.end_batch()
            collector.weight = self.weights[self.asked(step)]

        with hooked(collector.hooks):
            for _ in self.draw(begin, tick):
                collector.end_batch()
        return collector.result()

    def visit(
        self,
        layers: Sequence[PrunableLayer],
        change: Callable[[PrunableLayer, dict[str, InputStatistics]], LayerRecord],
        progress: ProgressCallback | None,
    ) -> list[LayerRecord]:
        """Draws anew before each package of layers, then changes its layers; the blocks of `progress` are the
        packages."""
        packages = make_packages(layers, self.packages)
        meter = Meter(progress, len(packages), len(layers))
        done: list[LayerRecord] = []
        number = 0

        def tick(share: float) -> None:
            meter.tell("calibrate", number, CALIBRATION_SHARE * share)

        for number, package in enumerate(packages):
            statistics = self.statistics(package, tick)
            for k, layer in enumerate(package):
                done.append(change(layer, statistics))
                meter.layers_done += 1
                within = CALIBRATION_SHARE + (1 - CALIBRATION_SHARE) * (k + 1) / len(package)
                meter.tell("prune", number, within, done[-1].layer, done[-1].relative_error)
        meter.tell("done", len(packages) - 1, 1.0)
        return done

    def facts(self, layers: int) -> dict[str, Any]:
        """Entries for a report on this number of pruned layers."""
        weight = next(self.denoiser.parameters())
        return {
            "pipeline": type(self.pipeline).__name__, "denoiser": type(self.denoiser).__name__, "steps": self.steps,
            "step_weights": self.name_of_weights, "packages": min(self.packages, layers), "batches": len(self.batches),
            "samples": sum(batch.count for batch in self.batches if batch.count) or None,
            "guidance": self.guidance, "seed": self.seed,
            "environment": environment(name_of(weight.dtype), weight.device),
        }  # fmt: skip


def make_packages(layers: Sequence[PrunableLayer], packages: int) -> list[list[PrunableLayer]]:
    """Consecutive runs of layers of nearly equal length, at most one for each layer."""
    parts = np.array_split(np.arange(len(layers)), min(packages, len(layers)))
    return [[layers[k] for k in part] for part in parts]


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
    method: str = METHOD,
    sparsity: float | str | Pattern = SPARSITY,
    block_size: int | None = None,
    damping: float = DAMPING,
    threshold: float = THRESHOLD,
    order: str | None = None,
    budget: str | None = None,
    options: Mapping[str, Value] | None = None,
    bits: int | None = None,
    group: int | str | None = None,
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
        block_size: columns per block, by default as of `default_block_size`.
        method and all others: see `rose.prune_layer`.

    Raises RoseError for bad input, before any work, or a layer that cannot be pruned, with its name.
    """
    settings = LayerSettings.among(locals() | {"block_size": block_size or BLOCK_SIZE})
    calibration = TrajectoryCalibration(
        pipeline, conditions, step_weights, packages, steps=steps, guidance=guidance, batch=batch, seed=seed
    )
    start = time.perf_counter()
    every = find_layers(calibration)
    chosen = matching(every, layers)
    if block_size is None:
        settings = settings.changed(block_size=default_block_size(chosen))
    check_prunable(chosen, every, settings.pattern, settings.block_columns, settings.grid)

    def prune(layer: PrunableLayer, statistics: dict[str, InputStatistics]) -> LayerRecord:
        began = time.perf_counter()
        inputs = statistics_of(layer, statistics)
        result = measured(layer.weight, inputs, prune_one(layer, statistics, settings))
        record = record_of(layer, result, inputs, time.perf_counter() - began, settings)
        layer.write(result.weight)
        layer.keep_low_rank(result.low_rank)
        return record

    records = calibration.visit(chosen, prune, progress)
    left_dense = convolutions(calibration.denoiser)
    return RunReport.from_records(
        records,
        {"run": "diffuse prune"} | settings.describe(),
        **calibration.facts(len(records)),
        denoiser_weights=count_parameters(calibration.denoiser),
        convolutions_left_dense=len(left_dense),
        convolution_weights_left_dense=sum(module.weight.numel() for module in left_dense),
        seconds=time.perf_counter() - start,
    )


def step_diagonals(
    pipeline: Any, conditions: Conditions, *, layers: Sequence[str] | None = None, **drawing: Unpack[DrawOptions]
) -> dict[str, Tensor]:
    """Each step's share of diag(H), Σ x_j² over its tokens, by layer name: (steps, in) float32. With step weights α the
    diagonal is α @ diagonals. Arguments and errors as for `prune_diffusion`; the model is not changed."""
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
