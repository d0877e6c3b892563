"""Pruning methods: a layer's weight, the statistics of its input and settings give a `LayerResult`; `registry`
declares them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, Unpack
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rose.errors import RoseError, check_keywords, failing
from rose.layer import error
from rose.layer.budget import check_budget
from rose.layer.hessian import factorize
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
from rose.layer.result import LayerResult, check_result
from rose.layer.rounding import round_kept
from rose.layer.statistics import InputStatistics, as_statistics, check_tensor, is_finite


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
            return error.quadratic_form(weight, statistics.hessian)
        if statistics not in self.energies:
            self.energies[statistics] = error.quadratic_form(weight, statistics.hessian)
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
    if settings.grid and settings.zeros is None:
        settings = replace(settings, zeros=zeros_to_keep(weight, settings))
    method = get_method(settings.method)
    prune = method.prune if method.function is None else partial(_prune_by_plugin, method)
    result: LayerResult = prune(weight, statistics, settings)
    if settings.grid and result.rounding_error is None:  # the method does not sweep, or changes weights after its sweep
        result = round_kept(weight, statistics, result, settings.grid, settings.zeros)
    if not is_finite(result.weight):
        if result.weight.isnan().any():
            other = "raise the damping, calibrate on more tokens, or choose another method"
            raise RoseError(f"{get_method(settings.method).label} gave NaN, although W and H are finite; {other}.")
        raise RoseError(f"Pruned weights are too large for {weight.dtype}; load the model in bfloat16 or float32.")
    if settings.measures:
        result = _measured(weight, statistics, result, settings.cache)
    return replace(result, method=settings.method)


def _prune_by_plugin(method: Method, weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """The checked result of a plugin's method; raises RoseError, with its name, if it breaks the interface."""
    copy = weight.clone()  # the plugin may write into its copy; the model's W stays unchanged
    with failing(method.label):
        result: LayerResult = method.prune(copy, statistics, settings)
        check_result(method.label, result, weight, settings.pattern)
        if not torch.equal(copy, weight):
            raise RoseError(f"{method.label} writes into W; let it change a copy, such as weight.clone().")
    return result


def _measured(weight: Tensor, statistics: InputStatistics, result: LayerResult, cache: Cache | None) -> LayerResult:
    """The result with its errors; `weight` is W, (out, in). Column errors that no sweep has counted are those under U
    for the order of the result."""
    relative = error.relative_error(
        weight, result.weight, statistics.hessian, cache.energy(weight, statistics) if cache else None
    )
    columns, order = result.column_error, result.order
    if columns.isnan().any():
        damped, factor = factorize(statistics, result.damping, order.permutation)
        change = error.difference(weight, result.weight).masked_fill_(damped.dead, 0)
        change = change if order.is_natural else change[:, order.permutation]
        columns = error.column_error(change, factor)[order.inverse]
    return replace(result, relative_error=relative, column_error=columns)


def zeros_to_keep(weight: Tensor, settings: Settings) -> Tensor | None:
    """The zeros of W, (out, in) bool, if weights are rounded and none is removed; otherwise None. Rounding keeps
    them."""
    if settings.grid is None or settings.pattern.ratio > 0:
        return None
    zeros = weight.eq(0)
    return zeros if zeros.any() else None
