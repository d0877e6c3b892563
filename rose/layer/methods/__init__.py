"""Pruning methods: a layer's weight, the statistics of its input and settings give a `LayerResult`; `registry`
declares them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Literal, Unpack
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rose.errors import RoseError, check_keywords, failing
from rose.layer.error import MassiveActivation, quadratic_form
from rose.layer.forecast import Prices
from rose.layer.loss import block_sums
from rose.layer.order import Order, OrderPlan
from rose.layer.pattern import (
    BLOCK_SIZE,
    DAMPING,
    METHOD,
    SPARSITY,
    THRESHOLD,
    BasicOptions,
    Grid,
    Pattern,
    PlanOptions,
    SettingsOptions,
    parse_grid,
    parse_sparsity,
)
from rose.layer.registry import Method, Value, check_damping, check_order_name, check_threshold, get_method
from rose.layer.statistics import InputStatistics, as_statistics, check_tensor, is_finite
from rose.layer.sweep import SweepTrace, check_budget


@dataclass
class Cache:
    """Values that methods compared on one layer share, also in several threads; the first that needs a value stores
    it."""

    weight: Tensor  # W, (out, in), the model's tensor; all other values are of this tensor alone
    plan: OrderPlan | None = None  # for one H, pattern and block size
    energies: WeakKeyDictionary[InputStatistics, float] = field(default_factory=WeakKeyDictionary)  # tr(W H Wᵀ)

    def is_of(self, weight: Tensor) -> bool:
        """Whether this is the same W. Some methods also measure weights that they computed from W."""
        return weight.data_ptr() == self.weight.data_ptr() and weight.shape == self.weight.shape

    def energy(self, weight: Tensor, statistics: InputStatistics) -> float:
        """tr(W H Wᵀ), computed once for W."""
        if not self.is_of(weight):
            return quadratic_form(weight, statistics.hessian)
        if statistics not in self.energies:
            self.energies[statistics] = quadratic_form(weight, statistics.hessian)
        return self.energies[statistics]


@dataclass(frozen=True)
class Settings:
    """How to prune one layer.

    Attributes:
        method: name in the registry.
        pattern: the share of weights to remove, or N:M.
        block_size: columns per block.
        damping: λ relative to the mean of diag(H).
        threshold: a layer is columnar if its relative range is above this value.
        order: overrides the method's order: a name, an `Order`, or a permutation of the columns.
        budget: overrides the method's budget: "block", "layer", or shares. A share is the part of the layer's weights
            that a block gives up, in the order visited; shares sum to the sparsity.
        trace: True records the sweep with the weights after every block, "errors" only its errors.
        options: all options of the method, checked; see `Method.options`.
        products: number format of ADMM's products in `rose_admm`; everything else is float32.
        cache: values shared by methods that prune the same layer.
        measures: False leaves errors NaN, for callers that measure against other targets.
        grid: kept weights are rounded to it.
        zeros: weights that are 0 and stay 0, (out, in) bool; see `zeros_to_keep`.
    """

    method: str
    pattern: Pattern
    block_size: int = BLOCK_SIZE
    damping: float = DAMPING
    threshold: float = THRESHOLD
    order: str | Order | Tensor | Sequence[int] | None = None
    budget: str | Sequence[float] | None = None
    trace: bool | Literal["errors"] = False
    options: Mapping[str, Value] = field(default_factory=dict)
    products: torch.dtype = torch.float32
    cache: Cache | None = field(default=None, repr=False, compare=False)
    measures: bool = True
    grid: Grid | None = None
    zeros: Tensor | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, eq=False, repr=False)  # tensors have no one truth value, and are long to print
class LayerResult:
    """The result of pruning one layer.

    Attributes:
        weight: Ŵ, (out, in), dtype of W.
        mask: True = removed, (out, in).
        relative_error: tr(ΔW H ΔWᵀ) / tr(W H Wᵀ) on calibration inputs, without damping.
        column_error: Σ_rows e² under the damped H, (in,), original column order; sums to tr(ΔW H ΔWᵀ) + λ‖ΔW‖² over
            live columns. Without a sweep it is the e² of this ΔW in natural order, after a refit in `order`.
        block_error: the sum per block of `order`, (blocks,), as visited.
        plan: losses, relative range and whether the layer is columnar.
        order: columns and blocks as visited; natural if the method does not sweep.
        budget: "block", "layer", "own", or "row" where each output row gives up the same number.
        damping: λ relative to the mean of diag(H); above the request where H was singular.
        added_damping: λ, absolute.
        trace: the recorded sweep, if requested.
        low_rank: factors (out, rank) and (rank, in) inside `weight`, for OATS alone; `mask` is then the sparse part's.
        method: name in the registry.
        pruning_error, rounding_error: the parts of `relative_error` that removing and rounding add; None without a
            grid. A sweep that does both counts the e² of removed and of kept weights; otherwise rounding comes second.
        massive: the few channels that carry nearly all of the input, and the error over all others; None without such.
        prices: of the columns in `order`; None if the method does not sweep.
    """

    weight: Tensor
    mask: Tensor
    relative_error: float
    column_error: Tensor
    block_error: Tensor
    plan: OrderPlan
    order: Order
    budget: str
    damping: float
    added_damping: float
    trace: SweepTrace | None = field(default=None, repr=False)
    low_rank: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    method: str = ""
    pruning_error: float | None = None
    rounding_error: float | None = None
    massive: MassiveActivation | None = None
    prices: Prices | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        rows, columns = self.mask.shape
        summary = f"sparsity {self.sparsity:.3g}, relative error {self.relative_error:.3g}"
        return f"<LayerResult of {self.method}: {rows} × {columns}, {summary}>"

    @property
    def parameters(self) -> int:
        """How many numbers must be stored: kept weights, and every entry of the factors."""
        factors = sum(factor.numel() for factor in self.low_rank or ())
        return self.mask.numel() - int(self.mask.sum()) + factors

    @property
    def sparsity(self) -> float:
        """Realised fraction removed, 1 − parameters / size; without factors, the share of True in `mask`."""
        return 1 - self.parameters / self.mask.numel()

    @property
    def shares(self) -> Tensor:
        """The part of the layer's weights that each block has given up, (blocks,) float64, in the order visited."""
        removed = self.mask.sum(0)[self.order.permutation]
        return block_sums(removed, self.order.widths).double() / self.mask.numel()


def make_settings(
    method: str = METHOD,
    *,
    order: str | Order | Tensor | Sequence[int] | None = None,
    budget: str | Sequence[float] | None = None,
    trace: bool | Literal["errors"] = False,
    options: Mapping[str, Value] | None = None,
    bits: int | str | None = None,
    group: int | str | None = None,
    **plan: Unpack[PlanOptions],
) -> Settings:
    """Complete settings of a method, checked as far as possible without a layer: see `Settings`."""
    chosen = get_method(method)
    pattern = parse_sparsity(plan.pop("sparsity", SPARSITY))
    size, damping = plan.pop("block_size", BLOCK_SIZE), plan.pop("damping", DAMPING)
    threshold = plan.pop("threshold", THRESHOLD)
    check_keywords(plan, SettingsOptions.__optional_keys__)
    pattern.check(pattern.of, size)  # N:M always fits its own M columns; the block size may not fit
    check_damping(damping)
    check_threshold(threshold)
    if isinstance(order, str) and order != "rose":  # two-level or natural, as the layer is columnar or not
        check_order_name(order)
    if budget is not None:
        budget = check_budget(budget, pattern)
    if trace not in (False, True, "errors"):
        raise RoseError(f"The trace must be True, False or 'errors', not {trace!r}.")
    grid = parse_grid(bits, group)
    orders = order is not None or budget is not None
    complete = chosen.check_request(pattern, options=options, orders=orders, rounds=grid is not None)
    # JSON cannot store NumPy's numbers.
    size, damping, threshold = int(size), float(damping), float(threshold)
    return Settings(method, pattern, size, damping, threshold, order, budget, trace, complete, grid=grid)


def prune_layer(
    weight: Tensor,
    hessian: Tensor | InputStatistics,
    *,
    method: str = METHOD,
    order: str | Order | Tensor | Sequence[int] | None = None,
    budget: str | Sequence[float] | None = None,
    trace: bool | Literal["errors"] = False,
    options: Mapping[str, Value] | None = None,
    **basic: Unpack[BasicOptions],
) -> LayerResult:
    """Prunes one weight matrix; W is not changed. Raises RoseError for bad input, in one sentence.

    Args:
        weight: W, (out, in), of 16 bits or more; the arithmetic is float32.
        hessian: H, (in, in), or the layer's `InputStatistics`.
        method: a name in the registry.
        order, budget, trace, options: see `Settings`.
        basic: `sparsity`, a ratio (default 0.7) or N:M such as "2:4"; `block_size` (128), `damping` (0.01), `threshold`
            (0.5); `bits` (3, 4 or 8) for kept weights; `group`: a scale has 32, 64 or 128 columns, or "row".
    """
    check_keywords(basic, {*SettingsOptions.__optional_keys__, "trace"})
    settings = make_settings(method, order=order, budget=budget, trace=trace, options=options, **basic)
    return prune_with(weight, hessian, settings)


def prune_with(weight: Tensor, hessian: Tensor | InputStatistics, settings: Settings) -> LayerResult:
    """As `prune_layer`, by settings that `make_settings` has made."""
    check_tensor("W", weight)
    if not weight.is_floating_point() or weight.itemsize < 2:  # torch computes hardly anything in eight bits
        raise RoseError(f"W must be real floating-point numbers, not {weight.dtype}; dequantize it first.")
    if weight.ndim != 2 or weight.numel() == 0:
        raise RoseError(f"W must be a non-empty (out, in) matrix, but its shape is {tuple(weight.shape)}.")
    if not is_finite(weight):
        raise RoseError("W holds NaN or infinity; reload the checkpoint, or load it in float32.")
    settings.pattern.check(weight.shape[1], settings.block_size)
    if settings.grid:
        settings.grid.width(weight.shape[1])
    # Otherwise a model's parameter would record every step for a backward pass.
    weight, statistics = weight.detach(), as_statistics(hessian, weight)
    if settings.zeros is None:
        settings = replace(settings, zeros=zeros_to_keep(weight, settings))
    result = _prune_by(get_method(settings.method), weight, statistics, settings)
    if settings.grid and result.rounding_error is None:  # the method does not sweep, or changes weights after its sweep
        result = import_module(f"{__name__}.toolkit").round_kept(weight, statistics, result, settings)
    if not is_finite(result.weight):
        if result.weight.isnan().any():
            other = "raise the damping, calibrate on more tokens, or choose another method"
            raise RoseError(f"{get_method(settings.method).label} gave NaN, although W and H are finite; {other}.")
        raise RoseError(f"Pruned weights are too large for {weight.dtype}; load the model in bfloat16 or float32.")
    massive = MassiveActivation.find(weight, result.weight, statistics) if settings.measures else None
    return replace(result, method=settings.method, massive=massive)


def _prune_by(method: Method, weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """The checked result of a method; raises RoseError, with the method's name, if the result breaks the interface."""
    is_ours = method.prune.__module__.startswith(__name__)
    untouched = weight if is_ours else weight.clone()  # a plugin may write into its copy; the model's W stays unchanged
    with failing(method.label):
        result = method.prune(untouched, statistics, settings)
        if not isinstance(result, LayerResult):
            raise RoseError(f"{method.label} must return a LayerResult, such as rose.measured_result makes.")
        pruned, mask = result.weight, result.mask
        if (pruned.shape, pruned.dtype, pruned.device) != (weight.shape, weight.dtype, weight.device):
            raise RoseError(
                f"{method.label} returned {tuple(pruned.shape)} weights of {pruned.dtype} on {pruned.device}; they "
                f"must be as W, {tuple(weight.shape)} of {weight.dtype} on {weight.device}."
            )
        check_mask(mask, weight)
        pattern = settings.pattern
        if pattern.is_grouped and mask.unflatten(1, (-1, pattern.of)).sum(2).min() < pattern.of - pattern.keep:
            raise RoseError(
                f"{method.label} keeps more than {pattern.keep} weights in some groups of {pattern.of} input columns, "
                f"which is not {pattern}; let its mask remove more there, as rose.prune_by_score does."
            )
        if result.low_rank is None and pruned.ne(0).logical_and_(mask).any():
            raise RoseError(f"{method.label} returned weights that are not 0 where its mask is True; set them to 0.")
        if not is_ours and not torch.equal(untouched, weight):
            raise RoseError(f"{method.label} writes into W; let it change a copy, such as weight.clone().")
    return result


def check_mask(mask: Tensor, weight: Tensor) -> None:
    """Raises RoseError unless the mask is bool and of W's shape."""
    check_tensor("The mask", mask)
    if mask.dtype != torch.bool or mask.shape != weight.shape:
        raise RoseError(
            f"The mask must be bool, True where a weight goes, of W's shape {tuple(weight.shape)}, not {mask.dtype} of "
            f"{tuple(mask.shape)}."
        )


def zeros_to_keep(weight: Tensor, settings: Settings) -> Tensor | None:
    """The zeros of W, (out, in) bool, if weights are rounded and none is removed; otherwise None. Rounding keeps
    them."""
    if settings.grid is None or settings.pattern.ratio > 0:
        return None
    zeros = weight.eq(0)
    return zeros if zeros.any() else None
