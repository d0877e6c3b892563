"""Errors of a checkpoint's layer, of its bare mask, of the best weights under that mask, and of methods.

All have the same inputs X_p, which the layer reads in the checkpoint, and the same target X_d Wᵀ, which the dense
layer puts out in the dense model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from typing import Any

import torch
from torch import Tensor

from rose.layer.change import Removal, WeightChange, same_removed
from rose.layer.defaults import DAMPING, RECOMMENDED
from rose.layer.error import difference, quadratic_form, ratio
from rose.layer.hessian import damped_hessian
from rose.layer.least_squares import solve_on_support
from rose.layer.massive import MassiveActivation
from rose.layer.methods import Known, LayerResult, Settings, make_settings, prune_with
from rose.layer.pattern import Pattern
from rose.layer.target import InputGap, OutputGap, corrected_weight, target_error
from rose.model.check.inputs import LayerInputs
from rose.verdicts import massive_text

ERROR_OF = "error_of_"  # begins columns with a method's error at a layer's sparsity
REFIT_STEPS = 12  # of conjugate gradients from the weights found; 24 find half a percent more (docs/lab-notes/check.md)
SAME_MASK = 0.9  # share of two masks' removed weights in common, above which a method has made both
EXACT = 0.99  # the same with the same inputs, apart from rounding


@dataclass(frozen=True)
class Rival:
    """Errors of other weights in a layer: Wanda's, or the dense weights under the layer's own mask."""

    error: float
    held_out_error: float | None = None  # None without held-out tokens
    # Of a layer that writes into the residual stream: the error of V by the error of these weights, where the target
    # makes good what the stream lacks.
    stream_ratio: float | None = None


@dataclass(frozen=True)
class Costs:
    """Errors of one layer on calibration tokens, ‖X_d Wᵀ − X_p Vᵀ‖² / ‖X_d Wᵀ‖² unless stated otherwise."""

    error: float  # of V
    held_out_error: float | None  # on held-out tokens
    dense_input_error: float  # on the dense model's inputs: ‖X_d (W − V)ᵀ‖² / ‖X_d Wᵀ‖²
    mask: Rival  # the dense weights under V's mask
    possible_error: float  # of a least-squares refit of all kept weights
    methods: Mapping[str, float]  # errors of methods at the same sparsity, by name
    wanda: Rival | None = None  # if it was tried
    opposite: Rival | None = None  # where V is worse than its mask alone, the same compensation with the other sign
    massive: MassiveActivation | None = None  # the few channels that carry nearly all of the input
    has_few_tokens: bool = False  # fewer calibration tokens reached the layer than it has input channels

    @property
    def recovered(self) -> float | None:
        """Share of the mask's error that compensation has taken, of the most it could; None where that is nothing."""
        alone = self.mask.error
        could = alone - self.possible_error
        return (alone - self.error) / could if could > 0.02 * alone else None

    def row(self) -> dict[str, Any]:
        """For a table."""
        names = ("error", "held_out_error", "dense_input_error", "possible_error", "recovered")
        return {
            **{name: getattr(self, name) for name in names},
            "mask_error": self.mask.error,
            "massive": massive_text(self.massive) if self.massive else "",
            "error_without_massive": self.massive.error if self.massive else None,
            **{f"{ERROR_OF}{name}": value for name, value in self.methods.items()},
        }


@dataclass(frozen=True)
class Recognized:
    """The method with the nearest mask to a layer's."""

    method: str  # in the registry
    target: str  # "layer" if it pruned W, "dense" if it pruned the corrected W* (see `rose.layer.target`)
    shared: Removal  # what both masks have in common
    tried: Mapping[tuple[str, str], Removal]  # the same for every method and target that was tried

    @property
    def is_same(self) -> bool:
        """Whether the mask is that method's."""
        return self.shared.jaccard >= SAME_MASK


# What a method may reproduce: the outputs of W on the inputs in the checkpoint, or on those while the decoder block is
# still dense; the outputs of the dense model; these and the residual stream's lack. The value is the run's target.
LAYER, UNPRUNED, DENSE, STREAM = "layer", "unpruned", "dense", "stream"
TARGET = {LAYER: LAYER, UNPRUNED: LAYER, DENSE: DENSE, STREAM: DENSE}
GIVEN_UP = 14  # layers without success, two decoder blocks, after which an attempt is not repeated


@dataclass
class Attempt:
    """Methods with another aim than they are measured with, which may have made a mask."""

    aim: str  # of `TARGET`; DENSE becomes STREAM in layers that write into the residual stream
    methods: tuple[str, ...]
    is_costly: bool = False  # tried only where no other method has made the mask
    layers: int = 0  # in which it was tried
    hits: int = 0  # in which it has found a mask


def _attempts() -> list[Attempt]:
    return [
        Attempt(UNPRUNED, ("wanda", "sparsegpt", "rose")),
        Attempt(DENSE, ("sparsegpt", "rose")),
        Attempt(DENSE, (RECOMMENDED,), is_costly=True),
        Attempt(UNPRUNED, (RECOMMENDED,), is_costly=True),
    ]


@dataclass
class Yardsticks:
    """What layers are compared with; raises RoseError for methods or a block size that do not exist."""

    methods: Sequence[str]
    block_size: int
    target_damping: float  # μ of the corrected weight W*
    products: torch.dtype = torch.float32  # number format of ADMM's products
    attempts: list[Attempt] = field(default_factory=_attempts)

    def promising(self) -> list[Attempt]:
        """Attempts in the order of their success, without hopeless ones."""
        attempts = [attempt for attempt in self.attempts if attempt.hits or attempt.layers < GIVEN_UP]
        return sorted(attempts, key=lambda attempt: -attempt.hits)

    def __post_init__(self) -> None:
        for method in self.methods:
            make_settings(method, block_size=self.block_size)

    def measure(
        self, weight: Tensor, after: Tensor, change: WeightChange, inputs: LayerInputs, held_out: LayerInputs | None
    ) -> tuple[Costs, Recognized | None]:
        """Errors of V, `after`, in place of W, `weight`, (out, in) each, and the method with the nearest mask, None
        without a mask or methods."""
        mask = after == 0
        judge = _Judge(weight, after, inputs, held_out)
        corrected, _ = corrected_weight(weight, inputs.statistics, inputs.gap, self.target_damping)
        trial = _Trial(self, weight, corrected, mask, _pattern_of(change, self.block_size), inputs)
        if mask.any():
            matrix = damped_hessian(inputs.statistics, DAMPING).matrix
            start = corrected if change.moved == 0 else after.float()
            best = solve_on_support(corrected, mask, matrix, start, REFIT_STEPS)
            aims = {method: DENSE if method == RECOMMENDED else LAYER for method in self.methods}  # as users run them
            pruned = {method: trial.prune(method, aim) for method, aim in aims.items()}
            trial.try_again()
        else:
            best, pruned = corrected, {}
        wanda, bare = pruned.get("wanda"), weight.masked_fill(mask, 0)
        error, alone = judge.error(after), judge.beside(bare)
        costs = Costs(
            error=error,
            held_out_error=judge.held_out(after) if judge.held_out else None,
            dense_input_error=_dense_input_error(weight, after, inputs),
            mask=alone,
            possible_error=judge.error(best),
            methods={method: judge.error(other) for method, other in pruned.items()},
            wanda=None if wanda is None else judge.beside(wanda),
            opposite=judge.beside(2 * bare - after) if mask.any() and error > alone.error else None,
            massive=MassiveActivation.find(weight, after, inputs.statistics, inputs.dense_hessian),
            has_few_tokens=inputs.statistics.tokens < inputs.statistics.columns,
        )
        return costs, trial.nearest


@dataclass
class _Trial:
    """Methods on one layer; what they have in common is computed once."""

    yardsticks: Yardsticks
    weight: Tensor
    corrected: Tensor  # W*
    mask: Tensor
    pattern: Pattern
    inputs: LayerInputs
    tried: dict[tuple[str, str], Removal] = field(default_factory=dict)
    done: set[tuple[str, str]] = field(default_factory=set)  # methods with their aims
    swept: dict[str, LayerResult] = field(default_factory=dict)  # SparseGPT's by aim
    shared: dict[str, Known] = field(default_factory=dict)  # by aim

    def prune(self, method: str, aim: str) -> Tensor:
        """The method's result from W, or from W*, with an aim of `TARGET`; notes how near its mask is."""
        cache = self.shared.get(aim) or self.shared.setdefault(aim, Known(self._weight_for(aim)))
        settings = make_settings(method, sparsity=self.pattern, block_size=self.yardsticks.block_size)
        settings = replace(settings, measures=False, known=cache, products=self.yardsticks.products)
        result = self._run(cache.weight, settings, aim)
        removal = same_removed(self.mask, result.mask.to(self.mask.device))
        self.done.add((method, aim))
        # While inputs are still the dense model's, both targets are one.
        for target in (LAYER, DENSE) if cache.weight.equal(self.weight) and aim == DENSE else (TARGET[aim],):
            best = self.tried.get((method, target), removal)
            self.tried[method, target] = max(removal, best, key=lambda each: each.jaccard)
        return result.weight

    def _weight_for(self, aim: str) -> Tensor:
        """The weight that is pruned: W, or the one whose outputs are nearest to the target."""
        if aim in (LAYER, UNPRUNED):
            return self.weight
        if aim == STREAM:
            assert self.inputs.stream is not None
            mu, statistics = self.yardsticks.target_damping, self.inputs.statistics
            return corrected_weight(self.weight, statistics, self.inputs.stream, mu)[0].to(self.weight.dtype)
        return self.corrected.to(self.weight.dtype)

    @property
    def nearest(self) -> Recognized | None:
        """None where nothing was tried; of equals the first."""
        best = max(self.tried, key=lambda key: self.tried[key].jaccard, default=None)
        return Recognized(*best, self.tried[best], self.tried) if best else None

    def _run(self, weight: Tensor, settings: Settings, aim: str) -> LayerResult:
        """ROSE sweeps a layer that is not columnar as SparseGPT does: that is done once."""
        before = self.swept.get(aim)
        if settings.method == "rose" and before is not None and not before.plan.is_columnar:
            return before
        statistics = self.inputs.unpruned if aim == UNPRUNED else self.inputs.statistics
        assert statistics is not None
        result = prune_with(weight, statistics, settings)
        if settings.method == "sparsegpt":
            self.swept[aim] = result
        return result

    def try_again(self) -> None:
        """While the mask is not exactly a method's, tries other inputs and targets, successful ones first."""
        for attempt in self.yardsticks.promising():
            if self.nearest is None or self.nearest.shared.jaccard >= EXACT:
                return
            aim, before = self._aim_here(attempt.aim), self.nearest
            methods = [method for method in attempt.methods if method in self.yardsticks.methods]
            methods = [method for method in methods if (method, aim) not in self.done]
            is_others = before.is_same and before.method not in attempt.methods
            if not methods or (attempt.is_costly and is_others):
                continue
            for method in methods:
                self.prune(method, aim)
            attempt.layers += 1
            attempt.hits += self.nearest.is_same and self.nearest.shared.jaccard > before.shared.jaccard

    def _aim_here(self, aim: str) -> str:
        """The aim in this layer: what the residual stream lacks is made good by the layers that write into it."""
        if aim == DENSE and self.inputs.stream is not None:
            return STREAM
        return LAYER if aim == UNPRUNED and self.inputs.unpruned is None else aim


def _error_by(
    weight: Tensor, inputs: LayerInputs, towards: InputGap | OutputGap | None = None
) -> Callable[[Tensor], float]:
    """The error of a weight in place of W: ‖X_d Wᵀ − X_p Vᵀ‖² / ‖X_d Wᵀ‖², or `towards` another target than X_d Wᵀ."""
    gap, energy = (towards or inputs.gap).of(weight), quadratic_form(weight, inputs.statistics.hessian)

    def error(other: Tensor) -> float:
        change = quadratic_form(difference(weight, other), inputs.statistics.hessian)
        return target_error(weight, other, gap, change_energy=change, dense_energy=energy)

    return error


class _Judge:
    """Errors of weights in place of W: on calibration and held-out tokens, and towards what the stream lacks."""

    def __init__(self, weight: Tensor, after: Tensor, inputs: LayerInputs, held_out: LayerInputs | None) -> None:
        self.error = _error_by(weight, inputs)
        self.held_out = _error_by(weight, held_out) if held_out else None
        self.stream = _error_by(weight, inputs, inputs.stream) if inputs.stream else None
        self.stream_error = self.stream(after) if self.stream else nan

    def beside(self, other: Tensor) -> Rival:
        return Rival(
            self.error(other),
            self.held_out(other) if self.held_out else None,
            ratio(self.stream_error, self.stream(other)) if self.stream else None,
        )


def _dense_input_error(weight: Tensor, after: Tensor, inputs: LayerInputs) -> float:
    hessian = inputs.dense_hessian
    return ratio(quadratic_form(difference(weight, after), hessian), quadratic_form(weight, hessian))


def _pattern_of(change: WeightChange, block_size: int) -> Pattern:
    """The pattern to prune to for comparison: N:M where the mask is N:M, else its share of zeros."""
    pattern = change.pattern
    if pattern.name == "N:M" and not pattern.broken and block_size % pattern.of == 0:
        return Pattern(1 - pattern.keep / pattern.of, pattern.keep, pattern.of)
    return Pattern(change.sparsity)
