"""Sweeps of one layer by many orders and budgets, and their results: numbers, without matrices of the layer's size."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan, nan
from typing import Any

import numpy as np
import pandas as pd
import torch

import rose
from app.figures.orders import trace_of
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
class PlannedSweep:
    """One sweep to make: an order, and a budget or the shares of visited blocks."""

    order: str | rose.Order
    budget: Budget
    is_split: bool = False  # whether the mask's part of the error is measured too

    @property
    def key(self) -> tuple[Any, ...]:
        order = self.order
        name = order if isinstance(order, str) else (tuple(order.permutation.tolist()), order.widths)
        return (name, self.budget, self.is_split)


@dataclass(frozen=True)
class SweepResult:
    sweep: PlannedSweep
    result: rose.LayerResult  # without weight and mask; its trace holds the errors alone
    held_out_error: float  # relative; NaN where the study has no held-out inputs
    curve: np.ndarray  # relative error before the sweep and after each block, (blocks + 1,)
    is_held_out: bool  # of the curve, which needs the weights of all stages in memory for that
    mask_error: float  # the mask's part of the relative error, on calibration inputs; NaN where it was not asked for
    shares: tuple[float, ...]  # of the layer's weights, that each visited block gave up, (blocks,)

    @property
    def error(self) -> float:
        """The error that leads: on held-out inputs where there are any."""
        return self.result.relative_error if isnan(self.held_out_error) else self.held_out_error


def outcome(study: Study, layer: str, sweep: PlannedSweep) -> SweepResult:
    """Makes the sweep, unless it has been made before."""

    def compute() -> SweepResult:
        weight, held_out, energies = study.weight(layer), study.held_out_statistics(layer), _energies(study, layer)
        stages = held_out is not None and trace_bytes(study, layer) <= LARGEST_TRACE
        how = {"method": SWEEPING, "order": sweep.order, "budget": sweep.budget}
        settings, statistics = LayerSettings.of(**study.layer_options(), **how), study.statistics(layer)
        result = prune_with(weight, statistics, settings, Context(trace=stages or "errors"))
        result = measured(weight, statistics, result, energies.on(statistics))
        trace = trace_of(result)
        if held_out is not None and stages:
            hessian, energy = held_out.hessian, energies.on(held_out)
            errors = [relative_error(weight, stage, hessian, energy) for stage in trace.weights[1:]]
            curve, other = np.array([0.0, *errors]), errors[-1]
        else:
            curve = (trace.error_so_far(result.added_damping) / (dense_energy(study, layer) or 1.0)).double().numpy()
            other = error_on(held_out, weight, result.weight)
        mask_error = split_error(weight, statistics, result).mask if sweep.is_split else nan
        empty = torch.empty(0)
        slim = replace(result, weight=empty, mask=empty.bool(), trace=replace(trace, weights=empty))
        return SweepResult(sweep, slim, other, curve, stages, mask_error, tuple(result.shares.tolist()))

    return study.remember(sweep.key, compute, ("lab", layer))


def dense_energy(study: Study, layer: str) -> float:
    """tr(W H Wᵀ) on calibration inputs: what relative errors are relative to."""
    return _energies(study, layer).on(study.statistics(layer))


def _energies(study: Study, layer: str) -> Energies:
    """The energies that errors of all sweeps of this layer are relative to."""
    return study.remember(("energies", layer), lambda: Energies(study.weight(layer)))


def frame(outcomes: Sequence[SweepResult]) -> pd.DataFrame:
    """One row per sweep: order (all random ones have one name), budget, relative_error, held_out_error, mask_error."""
    columns = {
        "order": [outcome.result.order.name.partition(":")[0] for outcome in outcomes],
        "budget": [outcome.sweep.budget for outcome in outcomes],
        "relative_error": [outcome.result.relative_error for outcome in outcomes],
        "held_out_error": [outcome.held_out_error for outcome in outcomes],
        "mask_error": [outcome.mask_error for outcome in outcomes],
    }
    return pd.DataFrame(columns)


def times(error: float, base: float) -> float:
    """Error as a multiple of the base's: 1 where both are 0."""
    if base > 0 or isnan(base):
        return error / base
    return 1.0 if error <= 0 else float("inf")


def trace_bytes(study: Study, layer: str) -> float:
    """What recording the weights after every block takes."""
    weight = study.weight(layer)
    return 4.0 * weight.numel() * (len(study.plan(layer).block_width) + 1)
