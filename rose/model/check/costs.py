"""What a layer of a checkpoint costs on its tokens, beside the bare mask, the best weights of that mask, and methods.

All are measured against the same target on the same inputs: on what the layer reads in the checkpoint, X_p, it should
put out X_d Wᵀ, what the dense layer puts out in the dense model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rose.layer.change import Removal, WeightChange, same_removed
from rose.layer.error import difference, quadratic_form, ratio
from rose.layer.least_squares import solve_on_support
from rose.layer.methods import RECOMMENDED, Known, LayerResult, Settings, make_settings, prune_with
from rose.layer.methods.toolkit import damped_hessian
from rose.layer.pattern import Pattern
from rose.layer.target import InputGap, OutputGap, corrected_weight, target_error
from rose.model.check.inputs import LayerInputs

METHODS = ("magnitude", "wanda", "sparsegpt", "rose", RECOMMENDED)
REFIT_STEPS = 12  # of conjugate gradients from the weights found; 24 find half a percent more (docs/check.md)
DAMPING = 0.01
SAME_MASK = 0.9  # share in common of what two masks remove, from which on they are one method's
EXACT = 0.99  # the same of one method on the same inputs, but for rounding


@dataclass(frozen=True)
class Costs:
    """Errors of one layer, ‖X_d Wᵀ − X_p Vᵀ‖² / ‖X_d Wᵀ‖² of calibration tokens where nothing else is said.

    Attributes:
        error, held_out_error: of V, as it was found.
        dense_input_error: of V where its inputs are those of the dense model: ‖X_d (W − V)ᵀ‖² / ‖X_d Wᵀ‖².
        mask_error: of the dense weights under V's mask.
        possible_error: the least that the mask allows, by a refit of all kept weights.
        methods: what methods reach at the same sparsity, by name.
        wanda_held_out: what Wanda's mask has on held-out tokens, where both were asked for.
        stream_ratio: of a layer that writes into the residual stream, V's error beside that of Wanda's mask where the
            target makes good what the stream lacks too.
    """

    error: float
    held_out_error: float | None
    dense_input_error: float
    mask_error: float
    possible_error: float
    methods: Mapping[str, float]
    wanda_held_out: float | None
    stream_ratio: float | None = None

    @property
    def recovered(self) -> float | None:
        """Share of what compensation could take from the mask's error that it took; None where it can take nothing."""
        could = self.mask_error - self.possible_error
        return (self.mask_error - self.error) / could if could > 0.02 * self.mask_error else None

    def row(self) -> dict[str, float | None]:
        """For a table."""
        own = {
            "error": self.error,
            "held_out_error": self.held_out_error,
            "dense_input_error": self.dense_input_error,
            "mask_error": self.mask_error,
            "possible_error": self.possible_error,
            "recovered": self.recovered,
        }
        return own | {f"error_of_{name}": value for name, value in self.methods.items()}


@dataclass(frozen=True)
class Recognized:
    """The method whose mask is nearest to that of a layer.

    Attributes:
        method: in the registry.
        target: "layer" where it pruned W, "dense" where it pruned the corrected W* (see `rose.layer.target`).
        shared: what both masks have in common.
        tried: the same of every method and target that was tried.
    """

    method: str
    target: str
    shared: Removal
    tried: Mapping[tuple[str, str], Removal]

    @property
    def is_same(self) -> bool:
        """Whether the mask is that method's."""
        return self.shared.jaccard >= SAME_MASK


@dataclass(frozen=True)
class Yardsticks:
    """What layers are compared with.

    Attributes:
        methods: in the registry.
        block_size: columns per block of theirs.
        target_damping: μ of the corrected weight W*.
        products: number format of ADMM's products, see `Settings`.
    """

    methods: Sequence[str]
    block_size: int
    target_damping: float
    products: torch.dtype = torch.float32

    def check(self) -> None:
        """Raises RoseError for methods or a block size that there are not."""
        for method in self.methods:
            make_settings(method, block_size=self.block_size)

    def measure(
        self, weight: Tensor, after: Tensor, change: WeightChange, inputs: LayerInputs, held_out: LayerInputs | None
    ) -> tuple[Costs, Recognized | None]:
        """The costs of V, `after`, in place of W, `weight`, (out, in) each, and the method that its mask is nearest to;
        None without a mask or methods."""
        mask, error = after == 0, _error_by(weight, inputs)
        apart = _error_by(weight, held_out) if held_out else None
        wanted, _ = corrected_weight(weight, inputs.statistics, inputs.gap, self.target_damping)
        trial = _Trial(self, weight, wanted, mask, _pattern_of(change, self.block_size), inputs)
        if mask.any():
            matrix = damped_hessian(inputs.statistics, DAMPING).matrix
            start = wanted if change.moved == 0 else after.float()
            best = solve_on_support(wanted, mask, matrix, start, REFIT_STEPS)
            pruned = {method: trial.prune(method) for method in self.methods}
            trial.try_again_on_targets()
        else:
            best, pruned = wanted, {}
        wanda = pruned.get("wanda")
        costs = Costs(
            error=error(after),
            held_out_error=apart(after) if apart else None,
            dense_input_error=_dense_input_error(weight, after, inputs),
            mask_error=error(weight.masked_fill(mask, 0)),
            possible_error=error(best),
            methods={method: error(found) for method, found in pruned.items()},
            wanda_held_out=apart(wanda) if apart and wanda is not None else None,
            stream_ratio=_stream_ratio(weight, after, wanda, inputs),
        )
        return costs, trial.nearest


@dataclass
class _Trial:
    """Methods at work on one layer; what they have in common is computed once."""

    yardsticks: Yardsticks
    weight: Tensor
    wanted: Tensor
    mask: Tensor
    pattern: Pattern
    inputs: LayerInputs
    tried: dict[tuple[str, str], Removal] = field(default_factory=dict)
    swept: dict[str, LayerResult] = field(default_factory=dict)
    known: dict[str, Known] = field(default_factory=dict)

    def prune(self, method: str, target: str = "") -> Tensor:
        """What the method makes of W, or of W* as the recommended one should; notes how near its mask is.

        `target`: "layer", "dense", or "stream", which makes good what the residual stream lacks too.
        """
        target = target or ("dense" if method == RECOMMENDED else "layer")
        known = self.known.get(target) or self.known.setdefault(target, Known(self._aim(target)))
        made = make_settings(method, sparsity=self.pattern, block_size=self.yardsticks.block_size)
        settings = replace(made, measures=False, known=known, products=self.yardsticks.products)
        result = self._run(known.weight, settings, target)
        found = same_removed(self.mask, result.mask.to(self.mask.device))
        key = method, "dense" if target == "stream" else target
        self.tried[key] = max(found, self.tried.get(key, found), key=lambda one: one.jaccard)
        return result.weight

    def _aim(self, target: str) -> Tensor:
        """The weight that is pruned: W, or one whose outputs are nearest to the target."""
        if target == "layer":
            return self.weight
        if target == "stream":
            assert self.inputs.stream is not None
            mu, known = self.yardsticks.target_damping, self.inputs.statistics
            return corrected_weight(self.weight, known, self.inputs.stream, mu)[0].to(self.weight.dtype)
        return self.wanted.to(self.weight.dtype)

    @property
    def nearest(self) -> Recognized | None:
        """None where nothing was tried; of equals the first."""
        best = max(self.tried, key=lambda one: self.tried[one].jaccard, default=None)
        return Recognized(*best, self.tried[best], self.tried) if best else None

    def _run(self, aim: Tensor, settings: Settings, target: str) -> LayerResult:
        """ROSE sweeps a layer that is not columnar as SparseGPT does, so that is done once."""
        before = self.swept.get(target)
        if settings.method == "rose" and before is not None and not before.plan.is_columnar:
            return before
        result = prune_with(aim, self.inputs.statistics, settings)
        if settings.method == "sparsegpt":
            self.swept[target] = result
        return result

    def try_again_on_targets(self) -> None:
        """Where the mask is not exactly a method's so far, looks whether it is that of a run towards the dense model:
        sweeps, which cost little, and the recommended method where the mask is still nobody's."""
        if self.nearest is None or self.nearest.shared.jaccard >= EXACT:
            return
        writes = self.inputs.stream is not None
        for method in ("sparsegpt", "rose"):
            if method in self.yardsticks.methods:
                self.prune(method, "stream" if writes else "dense")
        if writes and RECOMMENDED in self.yardsticks.methods and not self.nearest.is_same:
            self.prune(RECOMMENDED, "stream")


def _error_by(
    weight: Tensor, known: LayerInputs, towards: InputGap | OutputGap | None = None
) -> Callable[[Tensor], float]:
    """The error of a weight in place of W: ‖X_d Wᵀ − X_p Vᵀ‖² / ‖X_d Wᵀ‖², or `towards` another target than X_d Wᵀ."""
    gap, energy = (towards or known.gap).of(weight), quadratic_form(weight, known.statistics.hessian)

    def error(other: Tensor) -> float:
        change = quadratic_form(difference(weight, other), known.statistics.hessian)
        return target_error(weight, other, gap, change_energy=change, dense_energy=energy)

    return error


def _stream_ratio(weight: Tensor, after: Tensor, wanda: Tensor | None, known: LayerInputs) -> float | None:
    if known.stream is None or wanda is None:
        return None
    error = _error_by(weight, known, known.stream)
    return ratio(error(after), error(wanda))


def _dense_input_error(weight: Tensor, after: Tensor, known: LayerInputs) -> float:
    return ratio(
        quadratic_form(difference(weight, after), known.dense_hessian), quadratic_form(weight, known.dense_hessian)
    )


def _pattern_of(change: WeightChange, block_size: int) -> Pattern:
    """The pattern to prune to for comparison: N:M where the mask is N:M, else its share of zeros."""
    found = change.pattern
    if found.name == "N:M" and not found.broken and block_size % found.of == 0:
        return Pattern(1 - found.keep / found.of, found.keep, found.of)
    return Pattern(change.sparsity)
