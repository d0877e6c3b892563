"""Sweeps of one layer by many orders and budgets, and their results: numbers, without matrices of the layer's size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import rose
from app import components
from app.figures.orders import trace_of
from app.figures.shapes import to_numpy
from app.study.study import Study, error_on
from rose.layer.error import relative_error
from rose.layer.methods import Context, measured, prune_with
from rose.layer.settings import LayerSettings
from rose.layer.split import split_error
from rose.model.run.one_layer import Energies

BASELINE = ("natural", "block")  # SparseGPT, which every other error is compared with
SWEEPING = "rose"  # whose order and budget each sweep replaces
LARGEST_TRACE = 2e9  # bytes
Budget = str | tuple[float, ...]


@dataclass(frozen=True)
class Bench:
    """A layer of a study on which orders are tried, in blocks of a size that a person has chosen."""

    study: Study
    layer: str
    size: int  # of a block, in columns
    threshold: float

    @property
    def place(self) -> tuple[Any, ...]:
        """What an order here belongs to; the same after a study was let go and restored."""
        return self.study.subject, self.layer, self.size

    @property
    def options(self) -> dict[str, Any]:
        return self.study.layer_options() | {"block_size": self.size}

    @property
    def weight(self) -> Tensor:
        return self.study.weight(self.layer)

    @property
    def statistics(self) -> rose.InputStatistics:
        return self.study.statistics(self.layer)

    @property
    def held_out(self) -> rose.InputStatistics | None:
        return self.study.held_out_statistics(self.layer)

    @property
    def plan(self) -> rose.OrderPlan:
        def make() -> rose.OrderPlan:
            return rose.plan_order(self.weight, self.statistics, **self.options)

        return replace(self.study.remember(("plan", self.layer, self.size), make), threshold=self.threshold)

    @property
    def energies(self) -> Energies:
        """What relative errors of all sweeps of this layer are relative to."""
        return self.study.remember(("energies", self.layer), lambda: Energies(self.weight))

    @property
    def dense_energy(self) -> float:
        """tr(W H Wᵀ) on calibration inputs."""
        return self.energies.on(self.statistics)

    @property
    def trace_bytes(self) -> float:
        """What recording the weights after every block takes."""
        return 4.0 * self.weight.numel() * (len(self.plan.block_width) + 1)

    def traced(self, order: str, budget: str) -> rose.LayerResult:
        """One sweep with the weights after every block."""
        options = self.options | {"method": SWEEPING, "order": order, "budget": budget, "trace": True}
        key = ("trace", self.layer, self.size, order, budget)
        return self.study.remember(key, lambda: rose.prune_layer(self.weight, self.statistics, **options))


@dataclass(frozen=True)
class PlannedSweep:
    """One sweep to make: an order, and a budget or the shares of visited blocks."""

    order: str | rose.Order
    budget: Budget

    @property
    def key(self) -> tuple[Any, ...]:
        order = self.order
        name = order if isinstance(order, str) else (tuple(order.permutation.tolist()), order.widths)
        return (name, self.budget)


@dataclass(frozen=True)
class SweepResult:
    result: rose.LayerResult  # without weight and mask; its trace holds the errors alone
    held_out_error: float  # relative; NaN where the study has no held-out inputs
    curve: np.ndarray  # relative error before the sweep and after each block, (blocks + 1,)
    is_held_out: bool  # of the curve, which needs the weights of all stages in memory for that
    mask_error: float  # the mask's part of the relative error, on calibration inputs
    shares: tuple[float, ...]  # of the layer's weights, that each visited block gave up, (blocks,)


def outcome(bench: Bench, sweep: PlannedSweep) -> SweepResult:
    """Makes the sweep and splits its error, unless that has been done before."""

    def compute() -> SweepResult:
        weight, statistics, held_out = bench.weight, bench.statistics, bench.held_out
        stages = held_out is not None and bench.trace_bytes <= LARGEST_TRACE
        how = {"method": SWEEPING, "order": sweep.order, "budget": sweep.budget}
        settings = LayerSettings.of(**bench.options | how)
        result = prune_with(weight, statistics, settings, Context(trace=stages or "errors"))
        result = measured(weight, statistics, result, bench.energies.on(statistics))
        trace = trace_of(result)
        if held_out is not None and stages:
            hessian, energy = held_out.hessian, bench.energies.on(held_out)
            errors = [relative_error(weight, stage, hessian, energy) for stage in trace.weights[1:]]
            curve, other = np.array([0.0, *errors]), errors[-1]
        else:
            curve = to_numpy(trace.error_so_far(result.added_damping).double() / (bench.dense_energy or 1.0))
            other = error_on(held_out, weight, result.weight)
        mask_error, empty = split_error(weight, statistics, result).mask, torch.empty(0)
        slim = replace(result, weight=empty, mask=empty.bool(), trace=replace(trace, weights=empty))
        return SweepResult(slim, other, curve, stages, mask_error, tuple(result.shares.tolist()))

    return bench.study.remember(sweep.key, compute, _group(bench))


def outcomes(bench: Bench, sweeps: Sequence[PlannedSweep], key: str) -> list[SweepResult] | None:
    """The results of these sweeps, or None while they are made: progress is drawn, and other sweeps at this key end."""
    missing = [sweep for sweep in sweeps if not bench.study.knows(sweep.key, _group(bench))]
    pieces = [partial(outcome, bench, sweep) for sweep in missing]
    if not components.finished(pieces, key, (bench.place, tuple(sweep.key for sweep in sweeps))):
        return None
    return [outcome(bench, sweep) for sweep in sweeps]


def _group(bench: Bench) -> tuple[Any, ...]:
    return "lab", bench.layer, bench.size
