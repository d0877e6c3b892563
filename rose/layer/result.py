"""What pruning one layer gives."""

from dataclasses import dataclass, field
from math import nan

import torch
from torch import Tensor

from rose.errors import RoseError
from rose.layer.loss import block_sums
from rose.layer.order import Order, OrderPlan, Prices
from rose.layer.pattern import Pattern
from rose.layer.statistics import check_tensor
from rose.layer.trace import SweepTrace


@dataclass(frozen=True, eq=False, repr=False)  # tensors have no one truth value, and are long to print
class LayerResult:
    """The result of pruning one layer.

    Attributes:
        weight: Ŵ, (out, in), dtype of W.
        mask: True = removed, (out, in).
        plan: losses, relative range and whether the layer is columnar.
        order: columns and blocks as visited; natural if the method does not sweep.
        budget: "block", "layer", "own", or "row" where each output row gives up the same number.
        damping: λ relative to the mean of diag(H); above the request where H was singular.
        added_damping: λ, absolute.
        relative_error: tr(ΔW H ΔWᵀ) / tr(W H Wᵀ) on calibration inputs, without damping; NaN until it is measured.
        column_error: Σ_rows e² under the damped H, (in,), original column order; sums to tr(ΔW H ΔWᵀ) + λ‖ΔW‖² over
            live columns. A sweep counts it. Otherwise it is the e² of this ΔW in `order`, and NaN until it is measured.
        trace: the recorded sweep, if requested.
        low_rank: factors (out, rank) and (rank, in) inside `weight`, for OATS alone; `mask` is then the sparse part's.
        method: name in the registry.
        pruning_error, rounding_error: what removing and rounding add to `relative_error` of the W given to the
            method; None without a grid. A sweep that does both counts the e² of removed and of kept weights;
            otherwise rounding comes second.
        prices: of the columns in `order`; None if the method does not sweep.
    """

    weight: Tensor
    mask: Tensor
    plan: OrderPlan
    order: Order
    budget: str
    damping: float
    added_damping: float
    relative_error: float = nan
    column_error: Tensor = field(default_factory=lambda: torch.tensor(nan))
    trace: SweepTrace | None = field(default=None, repr=False)
    low_rank: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    method: str = ""
    pruning_error: float | None = None
    rounding_error: float | None = None
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
    def block_error(self) -> Tensor:
        """The column error of each block of `order`, (blocks,), as visited."""
        return block_sums(self.column_error[self.order.permutation], self.order.widths)

    @property
    def shares(self) -> Tensor:
        """The part of the layer's weights that each block has given up, (blocks,) float64, in the order visited."""
        removed = self.mask.sum(0)[self.order.permutation]
        return block_sums(removed, self.order.widths).double() / self.mask.numel()


def check_result(subject: str, result: object, weight: Tensor, pattern: Pattern) -> None:
    """Raises RoseError unless this is the result of W, (out, in): Ŵ as W, an N:M mask if requested, and without factors
    0 where the mask is True."""
    if not isinstance(result, LayerResult):
        raise RoseError(f"{subject} must return a LayerResult, such as rose.result_of makes.")
    pruned, mask = result.weight, result.mask
    if (pruned.shape, pruned.dtype, pruned.device) != (weight.shape, weight.dtype, weight.device):
        raise RoseError(
            f"{subject} returned {tuple(pruned.shape)} weights of {pruned.dtype} on {pruned.device}; they "
            f"must be as W, {tuple(weight.shape)} of {weight.dtype} on {weight.device}."
        )
    check_mask(mask, weight)
    if pattern.is_grouped and mask.unflatten(1, (-1, pattern.of)).sum(2).min() < pattern.of - pattern.keep:
        raise RoseError(
            f"{subject} keeps more than {pattern.keep} weights in some groups of {pattern.of} input columns, "
            f"which is not {pattern}; let its mask remove more there, as rose.prune_by_score does."
        )
    if result.low_rank is None and pruned.ne(0).logical_and_(mask).any():
        raise RoseError(f"{subject} returned weights that are not 0 where its mask is True; set them to 0.")


def check_mask(mask: Tensor, weight: Tensor) -> None:
    """Raises RoseError unless the mask is bool and of W's shape."""
    check_tensor("The mask", mask)
    if mask.dtype != torch.bool or mask.shape != weight.shape:
        raise RoseError(
            f"The mask must be bool, True where a weight goes, of W's shape {tuple(weight.shape)}, not {mask.dtype} of "
            f"{tuple(mask.shape)}."
        )
