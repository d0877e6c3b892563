"""Sweeps of one layer by many orders and budgets: what to sweep, and what comes out, kept small.

No Streamlit here. A `rose.LayerResult` holds several matrices of the layer's size; to compare sweeps, their numbers are
enough; these are kept with the study, one shelf a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import rose
from app.figures import palette
from app.figures.orders import run_style, trace_of
from app.study.study import Study, error_on
from rose.layer.compensation import error_inside
from rose.layer.error import quadratic_form

BASELINE = ("natural", "block")  # SparseGPT, which every other error is compared with
# Orders that keep every column in its block, so that a block can be taken out and put elsewhere.
WHOLE_BLOCK_ORDERS = ("natural", "columns", "blocks", "two_level")
LARGEST_TRACE = 2e9  # bytes


@dataclass(frozen=True)
class PlannedSweep:
    """One sweep to make: order, budget, and a sparsity where it is not the study's."""

    order: str | rose.Order
    budget: str
    sparsity: str | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        order = self.order
        name = order if isinstance(order, str) else (tuple(order.permutation.tolist()), order.widths)
        return (name, self.budget, self.sparsity)


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep."""

    sweep: PlannedSweep
    result: rose.LayerResult  # without weight and mask; its trace holds the errors alone
    held_out_error: float  # relative; NaN where the study has no held-out inputs
    sparsity: float  # realised, which a result without its mask no longer knows

    @property
    def error(self) -> float:
        """Relative error on calibration inputs."""
        return self.result.relative_error


def outcome(study: Study, layer: str, sweep: PlannedSweep) -> SweepResult:
    """Makes the sweep, unless it has been made before."""
    shelf = _shelf(study, layer)
    if sweep.key not in shelf:
        options = study.layer_options(sweep.sparsity)
        result = rose.prune_layer(
            study.weight(layer),
            study.statistics(layer),
            order=sweep.order,
            budget=sweep.budget,
            trace="errors",
            **options,
        )
        other = error_on(study.held_out_statistics(layer), study.weight(layer), result.weight)
        empty = torch.empty(0)
        plan = study.plan(layer, sparsity=options["sparsity"])  # one for all sweeps of this sparsity
        slim = replace(result, weight=empty, mask=empty.bool(), plan=plan)
        shelf[sweep.key] = SweepResult(sweep, slim, other, result.sparsity)
    return shelf[sweep.key]


def missing(study: Study, layer: str, sweeps: Sequence[PlannedSweep]) -> list[PlannedSweep]:
    """Those that have not been made yet."""
    shelf = _shelf(study, layer)
    return [sweep for sweep in sweeps if sweep.key not in shelf]


def _shelf(study: Study, layer: str) -> dict[tuple[Any, ...], SweepResult]:
    return study.remember(("lab", layer), dict)


def dense_energy(study: Study, layer: str) -> float:
    """tr(W H Wᵀ) on calibration inputs: what relative errors are relative to."""
    return study.remember(
        ("energy", layer), lambda: quadratic_form(study.weight(layer), study.statistics(layer).hessian)
    )


def frame(outcomes: Sequence[SweepResult]) -> pd.DataFrame:
    """One row per sweep: order (all random ones have one name), budget, sparsity (realised), relative_error, and
    held_out_error where the study has held-out inputs."""
    rows = [
        (one.result.order.name.partition(":")[0], one.sweep.budget, one.sparsity, one.error, one.held_out_error)
        for one in outcomes
    ]
    columns = ["order", "budget", "sparsity", "relative_error", "held_out_error"]
    return pd.DataFrame(rows, columns=columns).dropna(axis="columns", how="all")


def table(outcomes: Sequence[SweepResult], base: SweepResult) -> pd.DataFrame:
    """One row per order and budget, best first: errors, and their ratio to the baseline.

    Errors of random orders are means over their seeds, and `seeds` is the range they lie in.
    """
    groups = frame(outcomes).groupby(["order", "budget"], sort=False)
    made = groups.mean().reset_index()
    names = made["order"] + made["budget"].map({"block": "", "layer": " + layer"})
    made["sweep"] = [run_style(name).label for name in names]
    made["order"] = [palette.order_style(order).label for order in made["order"]]
    made["to_baseline"] = [times(error, base.error) for error in made["relative_error"]]
    if "held_out_error" in made:
        made["held_out_to_baseline"] = [times(error, base.held_out_error) for error in made["held_out_error"]]
    errors = groups["relative_error"]
    if errors.size().max() > 1:
        ends = zip(errors.min(), errors.max(), errors.size(), strict=True)
        made["seeds"] = [f"{low:.5f} to {high:.5f}" if seeds > 1 else "" for low, high, seeds in ends]
    shown = ["sweep", "order", "budget", "relative_error", "to_baseline", "seeds", "held_out_error"]
    shown = [name for name in [*shown, "held_out_to_baseline", "sparsity"] if name in made]
    return made[shown].sort_values("relative_error", kind="stable", ignore_index=True)


def times(error: float, base: float) -> float:
    """How many times the error of the base: 1 where both are 0, as neither is better."""
    if base > 0 or isnan(base):
        return error / base
    return 1.0 if error <= 0 else float("inf")


# Orders of one's own


def arrange(plan: rose.OrderPlan, base: str, steps: Sequence[int]) -> rose.Order:
    """The order named `base` with its steps in another sequence; `steps[k]` is the step of `base` visited at k."""
    order = rose.make_order(plan, base)
    if sorted(steps) != list(range(len(order.widths))):
        raise rose.RoseError(f"An order of your own must visit each of the {len(order.widths)} blocks exactly once.")
    if list(steps) == sorted(steps):
        return order
    columns = order.permutation.split(list(order.widths))
    made = rose.Order(torch.cat([columns[s] for s in steps]), tuple(order.widths[s] for s in steps), "custom")
    return rose.make_order(plan, made)


def read_own(text: str, plan: rose.OrderPlan) -> tuple[str, list[int]] | None:
    """ "two_level:2.0.1" as a base order and its steps; None where it does not fit this layer, as in an old link."""
    base, _, steps = text.rpartition(":")
    try:
        read = [int(step) for step in steps.split(".")]
        arrange(plan, base, read)
    except (ValueError, rose.RoseError):
        return None
    return base, read


def write_own(base: str, steps: Sequence[int]) -> str:
    """The text that `read_own` reads, for a URL."""
    return f"{base}:{'.'.join(map(str, steps))}"


def inside(study: Study, layer: str, order: str, budget: str) -> Tensor:
    """Σ e² of each block of this sweep if its own columns alone could compensate, (blocks,); remembered."""

    def compute() -> Tensor:
        result = study.prune(layer, order=order, budget=budget, trace=True)
        hessian = study.statistics(layer).hessian
        return error_inside(trace_of(result), result.order, result.mask, hessian, result.added_damping)

    return study.remember(("inside", layer, order, budget), compute)


def trace_bytes(study: Study, layer: str) -> float:
    """What recording the weights after every block takes."""
    weight = study.weight(layer)
    return 4.0 * weight.numel() * (len(study.plan(layer).block_width) + 1)
