"""Pruning methods: a layer's weight, the statistics of its input and settings give a `LayerResult`; `registry`
declares them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rose.errors import RoseError, failing
from rose.layer import error
from rose.layer.hessian import factorize
from rose.layer.order import Order
from rose.layer.pattern import BLOCK_SIZE, DAMPING, SPARSITY, THRESHOLD, Pattern
from rose.layer.registry import Method, Value, get_method
from rose.layer.result import LayerResult, check_result
from rose.layer.rounding import round_kept
from rose.layer.settings import LayerSettings
from rose.layer.statistics import InputStatistics, as_statistics, check_tensor, is_finite


@dataclass(frozen=True)
class Context:
    """What pruning one layer needs besides its settings, from the code that prunes it.

    Attributes:
        trace: True records the sweep with the weights after every block, "errors" only its errors.
        products: number format of ADMM's products in `rose_admm`; everything else is float32.
        zeros: weights that are 0 and stay 0, (out, in) bool; see `zeros_to_keep`.
    """

    trace: bool | Literal["errors"] = False
    products: torch.dtype = torch.float32
    zeros: Tensor | None = None


PLAIN = Context()


def prune_layer(
    weight: Tensor,
    hessian: Tensor | InputStatistics,
    *,
    method: str,
    sparsity: float | str | Pattern = SPARSITY,
    block_size: int = BLOCK_SIZE,
    damping: float = DAMPING,
    threshold: float = THRESHOLD,
    order: str | Order | Tensor | Sequence[int] | None = None,
    budget: str | Sequence[float] | None = None,
    options: Mapping[str, Value] | None = None,
    bits: int | None = None,
    group: int | str | None = None,
    trace: bool | Literal["errors"] = False,
) -> LayerResult:
    """Prunes one weight matrix; W is not changed. Raises RoseError for bad input, in one sentence.

    Args:
        weight: W, (out, in), of 16 bits or more; the arithmetic is float32.
        hessian: H, (in, in), or the layer's `InputStatistics`.
        method: name in the registry.
        sparsity: ratio, or N:M such as "2:4".
        block_size: columns per block.
        damping: λ relative to the mean of diag(H).
        threshold: relative range above which a layer is columnar.
        order: a name, an `Order`, or a permutation of the columns, in place of the method's.
        budget: "block", "layer", or shares, see `LayerSettings`, in place of the method's.
        options: the method's, see `rose models`.
        bits: 3, 4 or 8 for kept weights.
        group: input columns that share a scale: 32, 64, 128, or "row".
        trace: True records the sweep with the weights after every block, "errors" only its errors.
    """
    if trace not in (False, True, "errors"):
        raise RoseError(f"The trace must be True, False or 'errors', not {trace!r}.")
    settings, context = LayerSettings.among(locals()), Context(trace)
    return measured(weight, hessian, prune_with(weight, hessian, settings, context))


def prune_with(
    weight: Tensor, hessian: Tensor | InputStatistics, settings: LayerSettings, context: Context = PLAIN
) -> LayerResult:
    """As `prune_layer`, by complete settings; the result has no errors yet, see `measured`."""
    check_tensor("W", weight)
    if not weight.is_floating_point() or weight.itemsize < 2:  # torch computes hardly anything in eight bits
        raise RoseError(f"W must be real floating-point numbers, not {weight.dtype}; dequantize it first.")
    if weight.ndim != 2 or weight.numel() == 0:
        raise RoseError(f"W must be a non-empty (out, in) matrix, but its shape is {tuple(weight.shape)}.")
    if not is_finite(weight):
        raise RoseError("W holds NaN or infinity; reload the checkpoint, or load it in float32.")
    settings.pattern.check(weight.shape[1], settings.block_columns)
    if settings.grid:
        settings.grid.width(weight.shape[1])
    # Otherwise a model's parameter would record every step for a backward pass.
    weight, statistics = weight.detach(), as_statistics(hessian, weight)
    if settings.grid and context.zeros is None:
        context = replace(context, zeros=zeros_to_keep(weight, settings))
    method = get_method(settings.method)
    if method.function is None:
        result = method.prune(weight, statistics, settings, context)
    else:
        result = _prune_by_plugin(method, weight, statistics, settings)
    if settings.grid and result.rounding_error is None:  # the method does not sweep, or changes weights after its sweep
        result = round_kept(weight, statistics, result, settings.grid, context.zeros)
    if not is_finite(result.weight):
        if result.weight.isnan().any():
            other = "raise the damping, calibrate on more tokens, or choose another method"
            raise RoseError(f"{method.label} gave NaN, although W and H are finite; {other}.")
        raise RoseError(f"Pruned weights are too large for {weight.dtype}; load the model in bfloat16 or float32.")
    return replace(result, method=settings.method)


def _prune_by_plugin(
    method: Method, weight: Tensor, statistics: InputStatistics, settings: LayerSettings
) -> LayerResult:
    """The checked result of a plugin's method; raises RoseError, with its name, if it breaks the interface."""
    copy = weight.clone()  # the plugin may write into its copy; the model's W stays unchanged
    with failing(method.label):
        result: LayerResult = method.prune(copy, statistics, settings)
        check_result(method.label, result, weight, settings.pattern)
        if not torch.equal(copy, weight):
            raise RoseError(f"{method.label} writes into W; let it change a copy, such as weight.clone().")
    return result


def measured(
    weight: Tensor, hessian: Tensor | InputStatistics, result: LayerResult, dense: float | None = None
) -> LayerResult:
    """The result with its errors; `weight` is W, (out, in), `hessian` as of `prune_layer`, and `dense` tr(W H Wᵀ), if
    known. Column errors that no sweep has counted are those under U for the order of the result."""
    weight, statistics = weight.detach(), as_statistics(hessian, weight)
    relative = error.relative_error(weight, result.weight, statistics.hessian, dense)
    columns, order = result.column_error, result.order
    if columns.isnan().any():
        damped, factor = factorize(statistics, result.damping, order.permutation)
        change = error.difference(weight, result.weight).masked_fill_(damped.dead, 0)
        change = change if order.is_natural else change[:, order.permutation]
        columns = error.column_error(change, factor)[order.inverse]
    return replace(result, relative_error=relative, column_error=columns)


def zeros_to_keep(weight: Tensor, settings: LayerSettings) -> Tensor | None:
    """The zeros of W, (out, in) bool, if weights are rounded and none is removed; otherwise None. Rounding keeps
    them."""
    if settings.grid is None or settings.pattern.ratio > 0:
        return None
    zeros = weight.eq(0)
    return zeros if zeros.any() else None
