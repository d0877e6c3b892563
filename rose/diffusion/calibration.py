"""What layers read along whole trajectories, package by package: each package is calibrated on those done before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar, Unpack

import numpy as np

from rose.diffusion.steps import StepWeights, step_weights
from rose.diffusion.trajectory import Conditions, DrawOptions, Trajectories
from rose.environment import environment
from rose.errors import RoseError
from rose.given import is_whole
from rose.layer.statistics import InputStatistics
from rose.model.network.layers import PrunableLayer
from rose.model.network.precision import name_of
from rose.model.network.stand_ins import hooked
from rose.model.progress import Meter, ProgressCallback
from rose.model.walk.walk import Collector
from rose.rows import LayerRecord, PartRecord

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
        """Draws every batch, and gathers what the layers read, each step with its weight; by layer name."""
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
        """Draws anew before each package of items (layers or parts), and changes its items with what was gathered.

        `layers_of` gives the layers whose inputs a package needs; the blocks of `progress` are the packages.
        """
        packages = make_packages(items, self.packages)
        meter = Meter(progress, len(packages), len(items))
        done: list[Record] = []
        for number, package in enumerate(packages):
            found = self.statistics(layers_of(package), partial(_tell, meter, number))
            for k, item in enumerate(package):
                done.append(change(item, found))
                meter.layers_done += 1
                within = CALIBRATION_SHARE + (1 - CALIBRATION_SHARE) * (k + 1) / len(package)
                meter.tell("prune", number, within, done[-1].layer, done[-1].relative_error)
        meter.tell("done", len(packages) - 1, 1.0)
        return done

    def facts(self, items: int) -> dict[str, Any]:
        """What a report says of it, where so many items were changed."""
        weight = next(self.denoiser.parameters())
        return {
            "pipeline": type(self.pipeline).__name__, "denoiser": type(self.denoiser).__name__, "steps": self.steps,
            "step_weights": self.name_of_weights, "packages": min(self.packages, items), "batches": len(self.batches),
            "samples": sum(one.count for one in self.batches if one.count) or None,
            "guidance": self.guidance, "seed": self.seed,
            "environment": environment(name_of(weight.dtype), weight.device),
        }  # fmt: skip


def _tell(meter: Meter, package: int, share: float) -> None:
    meter.tell("calibrate", package, CALIBRATION_SHARE * share)


def make_packages(items: Sequence[One], packages: int) -> list[list[One]]:
    """Runs of items as equal in number as can be, in their order; at most one for each."""
    parts = np.array_split(np.arange(len(items)), min(packages, len(items)))
    return [[items[k] for k in part] for part in parts]


def check_packages(packages: int) -> None:
    """Raises RoseError unless this is a whole number of at least 1."""
    if not is_whole(packages) or packages < 1:
        raise RoseError(f"The number of packages must be a whole number of at least 1, not {packages!r}.")
