"""Statistics of layer inputs along whole trajectories, gathered anew after each package of layers is changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, Unpack

import numpy as np
from torch import Tensor, nn

from rose.diffusion.steps import StepWeights, step_weights
from rose.diffusion.trajectory import Conditions, DrawOptions, Trajectories, block_of, outermost_lists
from rose.environment import environment
from rose.errors import RoseError, is_whole
from rose.layer.pattern import BLOCK_SIZE
from rose.layer.statistics import InputStatistics
from rose.model.network.layers import PrunableLayer, check_plain
from rose.model.network.precision import name_of
from rose.model.network.stand_ins import hooked
from rose.model.progress import Meter, ProgressCallback
from rose.model.walk.walk import Collector
from rose.rows import LayerRecord, PartRecord


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
    hooks = []
    for name, module in denoiser.named_modules():
        if isinstance(module, nn.Linear) and block_of(name, outermost):

            def seen(module: nn.Module, args: tuple, name: str = name) -> None:
                if isinstance(args[0], Tensor) and args[0].ndim >= 3:
                    called.setdefault(name, module)

            hooks.append(module.register_forward_pre_hook(seen))

    def stop(*_anything: Any) -> None:
        raise _Enough

    hooks.append(denoiser.register_forward_hook(stop))
    with hooked(hooks), suppress(_Enough):
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


CALIBRATION_SHARE = 0.8  # of a package's time; only the progress bar depends on it


One = TypeVar("One")
Record = TypeVar("Record", LayerRecord, PartRecord)


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
        check_packages(packages)
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
        items: Sequence[One],
        layers_of: Callable[[list[One]], list[PrunableLayer]],
        change: Callable[[One, dict[str, InputStatistics]], Record],
        progress: ProgressCallback | None,
    ) -> list[Record]:
        """Draws anew before each package of items (layers or parts), then changes its items.

        `layers_of` gives the layers whose inputs a package needs; the blocks of `progress` are the packages.
        """
        packages = make_packages(items, self.packages)
        meter = Meter(progress, len(packages), len(items))
        done: list[Record] = []
        for number, package in enumerate(packages):
            statistics = self.statistics(layers_of(package), partial(_tell, meter, number))
            for k, item in enumerate(package):
                done.append(change(item, statistics))
                meter.layers_done += 1
                within = CALIBRATION_SHARE + (1 - CALIBRATION_SHARE) * (k + 1) / len(package)
                meter.tell("prune", number, within, done[-1].layer, done[-1].relative_error)
        meter.tell("done", len(packages) - 1, 1.0)
        return done

    def facts(self, items: int) -> dict[str, Any]:
        """Entries for a report on this number of changed items."""
        weight = next(self.denoiser.parameters())
        return {
            "pipeline": type(self.pipeline).__name__, "denoiser": type(self.denoiser).__name__, "steps": self.steps,
            "step_weights": self.name_of_weights, "packages": min(self.packages, items), "batches": len(self.batches),
            "samples": sum(batch.count for batch in self.batches if batch.count) or None,
            "guidance": self.guidance, "seed": self.seed,
            "environment": environment(name_of(weight.dtype), weight.device),
        }  # fmt: skip


def _tell(meter: Meter, package: int, share: float) -> None:
    meter.tell("calibrate", package, CALIBRATION_SHARE * share)


def make_packages(items: Sequence[One], packages: int) -> list[list[One]]:
    """Consecutive runs of items of nearly equal length, at most one for each item."""
    parts = np.array_split(np.arange(len(items)), min(packages, len(items)))
    return [[items[k] for k in part] for part in parts]


def check_packages(packages: int) -> None:
    """Raises RoseError unless this is a whole number of at least 1."""
    if not is_whole(packages) or packages < 1:
        raise RoseError(f"The number of packages must be a whole number of at least 1, not {packages!r}.")
