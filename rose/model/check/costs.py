"""Errors of a checkpoint's layer, of its bare mask, of the best weights under that mask, and of methods.

All have the inputs X_p, which the layer reads in the checkpoint, and the target X_d Wᵀ, its output in the dense model.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from rose.layer.error import MassiveActivation, difference, quadratic_form, ratio
from rose.layer.hessian import damped_hessian
from rose.layer.least_squares import solve_on_support
from rose.layer.methods import Context, prune_with
from rose.layer.pattern import DAMPING, METHOD, Pattern
from rose.layer.result import LayerResult
from rose.layer.settings import LayerSettings
from rose.layer.target import InputGap, OutputGap, corrected_weight, target_error
from rose.model.check.agreement import Misfit
from rose.model.check.change import Overlap, WeightChange, same_removed
from rose.model.check.inputs import LayerInputs
from rose.verdicts import massive_text

ERROR_OF = "error_of_"  # begins columns with a method's error at a layer's sparsity
HELD_OUT = "held_out_"  # begins columns of errors on held-out tokens
REFIT_STEPS = 12  # of conjugate gradients from the weights found; 24 find half a percent more (docs/lab-notes/check.md)
SAME_MASK = 0.9  # share of two masks' removed weights in common, above which a method has made both
EXACT = 0.99  # the share for equal inputs: all but rounding
MOST = 0.8  # share of the layers that must have a method's mask before the checkpoint is called that method's
EQUAL = 1e-4  # a smaller difference of two means over layers is chance
GAIN = 0.3  # of dense weights put back, above which what moved them is no compensation


@dataclass(frozen=True)
class Rival:
    """Errors of other weights in a layer: Wanda's, or the dense weights under the layer's own mask."""

    error: float
    held_out_error: float | None = None  # None without held-out tokens
    # For a layer that writes into the residual stream: the error of V by the error of these weights, where the target
    # compensates for the stream's gap.
    stream_ratio: float | None = None


@dataclass(frozen=True)
class Costs:
    """Errors of one layer on calibration tokens, ‖X_d Wᵀ − X_p Vᵀ‖² / ‖X_d Wᵀ‖² unless stated otherwise."""

    error: float  # of V
    held_out_error: float | None  # on held-out tokens
    dense_input_error: float  # on the dense model's inputs: ‖X_d (W − V)ᵀ‖² / ‖X_d Wᵀ‖²
    mask: Rival  # the dense weights under V's mask
    possible: Rival  # the lowest error under V's mask: of V, or of a least-squares refit to the calibration tokens
    methods: Mapping[str, Rival]  # at the same sparsity, by name
    target: str = "layer"  # that SparseGPT and ROSE have there, the checkpoint's as far as masks tell
    opposite: Rival | None = None  # where V is worse than its mask alone, the same compensation with the other sign
    massive: MassiveActivation | None = None  # the few channels that carry nearly all of the input
    has_few_tokens: bool = False  # fewer calibration tokens reached the layer than it has input channels

    @property
    def recovered(self) -> float | None:
        """The share of the recoverable error that compensation has recovered; None if nothing is recoverable. It is at
        most 1, because the refit begins at V."""
        alone = self.mask.error
        could = alone - self.possible.error
        return (alone - self.error) / could if could > 0.02 * alone else None

    def row(self) -> dict[str, Any]:
        """For a table."""
        names = ("error", "held_out_error", "dense_input_error", "recovered")
        rivals = {"mask_error": self.mask, "possible_error": self.possible}
        rivals |= {f"{ERROR_OF}{name}": rival for name, rival in self.methods.items()}
        return {
            **{name: getattr(self, name) for name in names},
            "massive": massive_text(self.massive) if self.massive else "",
            "error_without_massive": self.massive.error if self.massive else None,
            "compared_target": self.target,
            **{name: rival.error for name, rival in rivals.items()},
            **{f"{HELD_OUT}{name}": rival.held_out_error for name, rival in rivals.items()},
        }


@dataclass(frozen=True)
class Recognized:
    """The method with the nearest mask to a layer's."""

    method: str  # in the registry
    target: str  # "layer" if it pruned W, "dense" if it pruned the corrected W* (see `rose.layer.target`)
    shared: Overlap  # what both masks have in common
    tried: Mapping[tuple[str, str], Overlap]  # the same for every method and target that was tried

    @property
    def is_same(self) -> bool:
        """Whether the mask is that method's."""
        return self.shared.jaccard >= SAME_MASK


def maker_of(masks: Sequence[Recognized]) -> dict[str, dict[str, Any] | None]:
    """The method of a checkpoint, which its layers decide together, and by those alone in which methods differ.

    Returns:
        `nearest`: `name` and `target` of the method with the nearest masks, and the number of `layers` that have its
        mask (if it is not the checkpoint's method: that were compared). `agreement` is the mean share that masks have
        in common, beside `chance`, in `compared` layers. `alike` counts, by other methods with this target, layers with
        equal masks, as ROSE and SparseGPT have in layers that are not columnar. None where nothing was compared.
        `method`: the same, None where the method has not made nearly all masks.
    """

    def shared_with(mask: Recognized, key: tuple[str, str]) -> tuple[str, Overlap | None]:
        # A target is tried only until another target has explained the mask.
        target = key[1] if mask.tried.get(key) else LAYER
        return target, mask.tried.get((key[0], target))

    shared = {
        key: [removal for mask in masks if (removal := shared_with(mask, key)[1])]
        for key in dict.fromkeys(key for mask in masks for key in mask.tried)
    }
    means = {  # without abandoned methods
        key: fmean(removal.jaccard for removal in removals)
        for key, removals in shared.items()
        if 2 * len(removals) > len(masks)
    }
    if not means:
        return {"method": None, "nearest": None}
    # If two masks are equally near, up to chance, the simpler method wins, which stands first.
    best = next(key for key, mean in means.items() if mean > max(means.values()) - EQUAL)
    alike: Counter[str] = Counter()
    for mask in masks:
        target, removal = shared_with(mask, best)
        rivals = ((name, other) for (name, aim), other in mask.tried.items() if aim == target and name != best[0])
        alike.update(name for name, other in rivals if other == removal)
    same = sum(removal.jaccard >= SAME_MASK for removal in shared[best])
    is_same = same >= MOST * len(masks)
    nearest = {"name": best[0], "target": best[1], "layers": same if is_same else len(shared[best])}
    nearest |= {"agreement": means[best], "chance": fmean(removal.chance for removal in shared[best])}
    nearest |= {"alike": dict(alike), "compared": len(masks)}
    return {"method": nearest if is_same else None, "nearest": nearest}


# A method may reproduce the outputs of W on the inputs in the checkpoint, or on the inputs while the decoder block is
# still dense; the outputs of the dense model; or these and the residual stream's gap. The value is the run's target.
LAYER, UNPRUNED, DENSE, STREAM = "layer", "unpruned", "dense", "stream"
TARGET = {LAYER: LAYER, UNPRUNED: LAYER, DENSE: DENSE, STREAM: DENSE}
AIMED = ("sparsegpt", "rose", METHOD)  # methods that are tried with both targets
GIVEN_UP = 14  # an attempt ends after this many layers (two decoder blocks) without success


@dataclass
class Attempt:
    """Methods with another aim than the measured one, which may have made a mask."""

    aim: str  # of `TARGET`; DENSE becomes STREAM in layers that write into the residual stream
    methods: tuple[str, ...]
    is_costly: bool = False  # tried only if no other method has made the mask
    layers: int = 0  # in which it was tried
    hits: int = 0  # in which it has found a mask


@dataclass
class Yardsticks:
    """The methods that layers are compared with. Raises RoseError for an unknown method or an impossible block size."""

    methods: Sequence[str]
    block_size: int
    mu: float  # damping of the corrected weight W*
    products: torch.dtype = torch.float32  # number format of ADMM's products
    target: str = LAYER  # of the last mask that was recognized
    attempts: list[Attempt] = field(
        default_factory=lambda: [
            Attempt(UNPRUNED, ("wanda", "sparsegpt", "rose")),
            Attempt(DENSE, ("sparsegpt", "rose")),
            Attempt(DENSE, (METHOD,), is_costly=True),
            Attempt(UNPRUNED, (METHOD,), is_costly=True),
        ]
    )

    def __post_init__(self) -> None:
        for method in self.methods:
            LayerSettings(method=method, block_size=self.block_size)

    def measure(
        self, weight: Tensor, after: Tensor, change: WeightChange, inputs: LayerInputs, held_out: LayerInputs | None
    ) -> tuple[Costs, Recognized | None]:
        """Errors of V, `after`, in place of W, `weight`, (out, in) each, and the method with the nearest mask."""
        mask = after == 0
        error_of = _error_by(weight, inputs)
        error_held_out = _error_by(weight, held_out) if held_out else None
        stream_error = _error_by(weight, inputs, inputs.stream) if inputs.stream else None

        def beside(other: Tensor) -> Rival:
            stream_ratio = ratio(stream_error(after), stream_error(other)) if stream_error else None
            return Rival(error_of(other), error_held_out(other) if error_held_out else None, stream_ratio)

        corrected, _ = corrected_weight(weight, inputs.statistics, inputs.gap, self.mu)
        pattern = Pattern(change.sparsity)
        if change.pattern.name == "N:M" and not change.pattern.broken and self.block_size % change.pattern.of == 0:
            keep, of = change.pattern.keep, change.pattern.of
            pattern = Pattern(1 - keep / of, keep, of)
        trial, best = _Trial(self, weight, corrected, mask, pattern, inputs, beside), corrected
        if mask.any():
            matrix = damped_hessian(inputs.statistics, DAMPING).matrix
            start = corrected if change.moved == 0 else after.float()
            best = solve_on_support(weight.float(), mask, matrix, start, REFIT_STEPS, inputs.gap.of(weight).cross)
            for method in self.methods:
                trial.prune(method, DENSE if method == METHOD else LAYER)  # as users run them
            trial.try_again()
            if trial.nearest and trial.nearest.is_same:
                self.target = trial.nearest.target
        bare = weight.masked_fill(mask, 0)
        error, alone, hessian = error_of(after), beside(bare), inputs.dense_hessian
        dense_input_change = quadratic_form(difference(weight, after), hessian)
        costs = Costs(
            error=error,
            held_out_error=error_held_out(after) if error_held_out else None,
            dense_input_error=ratio(dense_input_change, quadratic_form(weight, hessian)),
            mask=alone,
            possible=min(beside(best), beside(after), key=lambda rival: rival.error),
            methods={method: trial.prune(method, trial.aim(method)) for method in self.methods} if mask.any() else {},
            target=self.target,
            opposite=beside(2 * bare - after) if mask.any() and error > alone.error else None,
            massive=MassiveActivation.find(weight, after, inputs.statistics, hessian),
            has_few_tokens=inputs.statistics.tokens < inputs.statistics.columns,
        )
        return costs, trial.nearest


@dataclass
class _Trial:
    """Methods on one layer; common values are computed once."""

    yardsticks: Yardsticks
    weight: Tensor
    corrected: Tensor  # W*
    mask: Tensor
    pattern: Pattern
    inputs: LayerInputs
    beside: Callable[[Tensor], Rival]
    tried: dict[tuple[str, str], Overlap] = field(default_factory=dict)
    done: dict[tuple[str, str], Rival] = field(default_factory=dict)  # by method and aim
    swept: dict[str, LayerResult] = field(default_factory=dict)  # SparseGPT's by aim
    weights: dict[str, Tensor] = field(default_factory=dict)  # to prune, (out, in), by aim

    def prune(self, method: str, aim: str) -> Rival:
        """Errors of a method on W, or on W*, with an aim of `TARGET`; notes how near its mask is."""
        if (method, aim) in self.done:
            return self.done[method, aim]
        if aim not in self.weights:
            self.weights[aim] = self._weight_for(aim)
        weight = self.weights[aim]
        settings = LayerSettings.of(method=method, sparsity=self.pattern, block_size=self.yardsticks.block_size)
        result = self.swept.get(aim)
        if method != "rose" or result is None or result.plan.is_columnar:  # else ROSE sweeps as SparseGPT does
            statistics = self.inputs.unpruned if aim == UNPRUNED else self.inputs.statistics
            assert statistics is not None
            result = prune_with(weight, statistics, settings, Context(products=self.yardsticks.products))
        if method == "sparsegpt":
            self.swept[aim] = result
        removal = same_removed(self.mask, result.mask.to(self.mask.device))
        self.done[method, aim] = self.beside(result.weight)
        # While inputs are still the dense model's, both targets are the same.
        for target in (LAYER, DENSE) if weight.equal(self.weight) and aim == DENSE else (TARGET[aim],):
            best = self.tried.get((method, target), removal)
            self.tried[method, target] = max(removal, best, key=lambda each: each.jaccard)
        return self.done[method, aim]

    def aim(self, method: str) -> str:
        """As users run a method; or the checkpoint's, as errors are lower for weights fitted to dense outputs."""
        if self.yardsticks.target == DENSE and method in AIMED:
            return DENSE if self.inputs.stream is None else STREAM
        return DENSE if method == METHOD else LAYER

    def _weight_for(self, aim: str) -> Tensor:
        """The weight that is pruned: W, or the one whose outputs are nearest to the target."""
        if aim in (LAYER, UNPRUNED):
            return self.weight
        corrected = self.corrected
        if aim == STREAM:
            assert self.inputs.stream is not None
            mu = self.yardsticks.mu
            corrected, _ = corrected_weight(self.weight, self.inputs.statistics, self.inputs.stream, mu)
        return corrected.to(self.weight.dtype)

    @property
    def nearest(self) -> Recognized | None:
        """The nearest mask, the first of equals; None if nothing was tried."""
        best = max(self.tried, key=lambda key: self.tried[key].jaccard, default=None)
        return Recognized(*best, self.tried[best], self.tried) if best else None

    def try_again(self) -> None:
        """While the mask is not exactly a method's, tries other inputs and targets: successful attempts first."""
        promising = [each for each in self.yardsticks.attempts if each.hits or each.layers < GIVEN_UP]
        for attempt in sorted(promising, key=lambda each: -each.hits):
            if (before := self.nearest) is None or before.shared.jaccard >= EXACT:
                return
            aim = attempt.aim
            if aim == DENSE and self.inputs.stream is not None:
                aim = STREAM  # such layers correct what the residual stream lacks
            elif aim == UNPRUNED and self.inputs.unpruned is None:
                aim = LAYER
            methods = [method for method in attempt.methods if method in self.yardsticks.methods]
            methods = [method for method in methods if (method, aim) not in self.done]
            is_others = before.is_same and before.method not in attempt.methods
            if not methods or (attempt.is_costly and is_others):
                continue
            for method in methods:
                self.prune(method, aim)
            attempt.layers += 1
            after = self.nearest or before
            attempt.hits += after.is_same and after.shared.jaccard > before.shared.jaccard


def _error_by(
    weight: Tensor, inputs: LayerInputs, towards: InputGap | OutputGap | None = None
) -> Callable[[Tensor], float]:
    """The error of a weight in place of W: ‖X_d Wᵀ − X_p Vᵀ‖² / ‖X_d Wᵀ‖², or `towards` another target than X_d Wᵀ."""
    gap, energy = (towards or inputs.gap).of(weight), quadratic_form(weight, inputs.statistics.hessian)

    def error(other: Tensor) -> float:
        change = quadratic_form(difference(weight, other), inputs.statistics.hessian)
        return target_error(weight, other, gap, change_energy=change, dense_energy=energy)

    return error


def with_inputs(
    misfits: Sequence[Misfit], weight: Tensor, after: Tensor, streams: Sequence[LayerInputs]
) -> tuple[Misfit, ...]:
    """Drops misfits that the inputs of a layer show to be lawful: dense weights would not lower the error.

    Args:
        misfits: of V, `after`, beside W, `weight`, (out, in) each.
        streams: calibration inputs, and held-out ones where there are any.
    """
    wrong = (part for part in misfits if not part.may_be_lawful or _gain(part, weight, after, streams) > GAIN)
    return tuple(replace(part, may_be_lawful=False) for part in wrong)


def _gain(part: Misfit, weight: Tensor, after: Tensor, streams: Sequence[LayerInputs]) -> float:
    """How much the error falls if dense weights are restored in a part of V, relative to the energy of that change δ:

        2 ⟨δ, GᵀX_p + (W − V) H⟩ / tr(δ H δᵀ) − 1

    It is −1 where kept weights are fitted to the inputs, near 1 where chance changed them. The least of all streams.
    """
    rows, columns = (slice(first, last + 1) for first, last in (part.rows, part.columns))
    difference, pruned = weight[rows].float() - after[rows].float(), after[rows, columns]
    change = torch.where(pruned == 0, 0, difference[:, columns])
    gains = []
    for inputs in streams:
        hessian = inputs.statistics.hessian
        energy = (change @ hessian[columns, columns] * change).sum().clamp_min(1e-30)
        missed = difference @ hessian[:, columns]
        for gap in (inputs.gap, inputs.stream) if inputs.stream else (inputs.gap,):
            target = gap.of(weight).cross[rows, columns]
            gains.append(2 * float((change * (missed + target)).sum() / energy) - 1)
    return min(gains)
