"""One output projection in several bases, and what pruning it costs in each: measured once, kept with the study.

No Streamlit here. `rose.layer.basis` explains the bases.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from torch import Tensor

import rose
from app.study.study import Study, error_on
from app.words import place_of
from rose.interrupt import stop_point
from rose.layer.basis import STEPS, HeadLayout, find_rotations, rotate_columns, rotate_statistics
from rose.layer.pattern import THRESHOLD, parse_sparsity
from rose.model.estimate.duration import SWEEP_EFFICIENCY, matmul_rate, sweeps_of
from rose.model.run.rotation import value_heads

BASES = {"random": "Random", "given": "As given", "gathered": "Gathered", "learned": "Learned"}
METHODS = ("sparsegpt", "rose", "rose_global", rose.RECOMMENDED)
LEARNING = 1.5e-7  # seconds of a step of the learned basis for each weight, on one thread; measured
HEADS = ("heads that can be rotated",)  # as the study remembers them


@dataclass(frozen=True)
class Rotatable:
    """Output projections whose heads can be rotated, with their heads; or the reason that none can."""

    layouts: dict[str, HeadLayout]
    why_none: str = ""

    def nearest(self, study: Study, layer: str) -> str | None:
        """The measured one whose decoder block is nearest to this layer's."""
        block = place_of(layer)[0] or 0
        measured = [name for name in self.layouts if study.has(name)]
        return min(measured, key=lambda name: abs((place_of(name)[0] or 0) - block), default=None)


def rotatable(study: Study) -> Rotatable:
    """Looks for heads, with a few tokens through the model, unless it has been done before, or came with the study."""
    return study.remember(HEADS, lambda: _look_for_heads(study))


def knows_heads(study: Study) -> bool:
    """Whether `rotatable` answers without running the model."""
    return study.knows(HEADS) or bool(study.kept and study.kept.heads)


def _look_for_heads(study: Study) -> Rotatable:
    if study.kept and study.kept.heads:
        return Rotatable(study.kept.heads)
    assert study.loaded is not None
    while not study.loaded.lock.acquire(timeout=0.2):
        stop_point()
    try:
        rotatable_heads = value_heads(study.loaded.network)
    except rose.RoseError as problem:
        return Rotatable({}, str(problem))
    finally:
        study.loaded.lock.release()
    return Rotatable({heads.output.name: heads.layout for heads in rotatable_heads})


@dataclass(frozen=True)
class InBasis:
    """An output projection and what it reads, in one basis; `held_out` is None where the study has no such inputs."""

    weight: Tensor
    statistics: rose.InputStatistics
    held_out: rose.InputStatistics | None


def in_basis(study: Study, layer: str, basis: str) -> InBasis:
    """`basis`: a name of `BASES`, or "random:SEED"."""
    weight, statistics, held_out = study.weight(layer), study.statistics(layer), study.held_out_statistics(layer)
    if basis == "given":
        return InBasis(weight, statistics, held_out)
    layout, rotations = rotatable(study).layouts[layer], _rotations(study, layer, basis)
    turned = rotate_columns(weight, layout, rotations).to(weight.dtype)
    of_inputs = [stream and rotate_statistics(stream, layout, rotations) for stream in (statistics, held_out)]
    assert of_inputs[0] is not None
    return InBasis(turned, of_inputs[0], of_inputs[1])


def picture(study: Study, layer: str, basis: str, threshold: float = THRESHOLD) -> tuple[Tensor, rose.OrderPlan]:
    """W, (out, in), and its plan in this basis; remembered."""

    def compute() -> tuple[Tensor, rose.OrderPlan]:
        turned, options = in_basis(study, layer, basis), study.layer_options()
        del options["damping"]
        return turned.weight, rose.plan_order(turned.weight, turned.statistics, **options)

    weight, plan = study.remember(("basis", layer, basis), compute)
    return weight, replace(plan, threshold=threshold)


def measure(study: Study, layer: str, basis: str, method: str, threshold: float = THRESHOLD) -> tuple[float, float]:
    """Relative errors of a method in this basis on calibration and held-out inputs, NaN if not measured.

    Measured once and then remembered. Only ROSE looks at the threshold.
    """
    shelf, key = _shelf(study, layer), _key(basis, method, threshold)
    if key not in shelf:
        turned = in_basis(study, layer, basis)
        options = study.layer_options() | {"method": method, "threshold": threshold}
        result = rose.prune_layer(turned.weight, turned.statistics, **options)
        shelf[key] = (result.relative_error, error_on(turned.held_out, turned.weight, result.weight))
    return shelf[key]


def missing(study: Study, layer: str, bases: list[str], threshold: float = THRESHOLD) -> list[tuple[str, str]]:
    """Which (basis, method) have not been measured yet."""
    shelf = _shelf(study, layer)
    return [(basis, method) for basis in bases for method in METHODS if _key(basis, method, threshold) not in shelf]


def seconds(study: Study, layer: str, left: list[tuple[str, str]]) -> float:
    """Estimated seconds to measure these (basis, method)."""
    weight = study.weight(layer)
    sweeps = sweeps_of([method for _, method in left]) * weight.numel() * weight.shape[1]
    learns = any(basis == "learned" for basis, _ in left) and ("learned",) not in _shelf(study, layer)
    return sweeps / SWEEP_EFFICIENCY / matmul_rate() + learns * STEPS * LEARNING * weight.numel()


def table(study: Study, layer: str, bases: list[str], threshold: float = THRESHOLD) -> pd.DataFrame:
    """One row per basis and method: basis (its name in `BASES`), method, relative_error, held_out_error."""
    rows = [
        (basis.partition(":")[0], method, *measure(study, layer, basis, method, threshold))
        for basis in bases
        for method in METHODS
    ]
    return pd.DataFrame(rows, columns=["basis", "method", "relative_error", "held_out_error"])


def at_risk(plan: rose.OrderPlan) -> float:
    """Share of Σ S² that pre-pruning would remove: the error without compensation, were inputs uncorrelated."""
    whole = float(plan.importance.double().square().sum())
    return float(plan.potential_loss.double().square().sum()) / whole if whole else 0.0


def _rotations(study: Study, layer: str, basis: str) -> Tensor:
    shelf, setup = _shelf(study, layer), study.setup
    if (basis,) not in shelf:
        shelf[(basis,)] = find_rotations(
            study.weight(layer),
            study.statistics(layer).hessian,
            rotatable(study).layouts[layer],
            basis,
            pattern=parse_sparsity(setup.sparsity),
            block_size=setup.block_size,
        )
    return shelf[(basis,)]


def _key(basis: str, method: str, threshold: float) -> tuple[Any, ...]:
    return (basis, method, threshold) if method == "rose" else (basis, method)


def _shelf(study: Study, layer: str) -> dict[tuple[Any, ...], Any]:
    return study.remember(("bases", layer), dict)
