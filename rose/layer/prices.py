"""The price of a column: what removing its weights costs in an order, w² d_j with d_j = 1/U_jj².

d_j is the part of input j, squared and summed over tokens, that the columns still free cannot explain (docs/orders.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rose.layer.hessian import DampedHessian
from rose.layer.order import Order, OrderPlan, make_order


@dataclass(frozen=True, eq=False)  # tensors have no one truth value
class Prices:
    """The prices of all columns in one order.

    Attributes:
        price: d_j = 1/U_jj², (in,) float64, in the order visited; a dead column's is 1 + λ.
        alone: H_jj + λ, (in,) float64, in the order visited: the price without any help.
    """

    order: Order
    price: Tensor
    alone: Tensor

    @classmethod
    def of(cls, order: Order, factor: Tensor, damped: DampedHessian) -> Prices:
        """From U for this order, (in, in)."""
        alone = damped.matrix.diagonal()[order.permutation]
        return cls(order, factor.diagonal().double().pow(-2), alone.double())

    @property
    def log_total(self) -> float:
        """Σ log d_j, which is log det(H + λI) for every order."""
        return float(self.price.log().sum())

    @property
    def total(self) -> float:
        """Σ d_j, which bounds the error of rounding every weight (Chen et al. 2025, arXiv 2507.18553)."""
        return float(self.price.sum())

    @property
    def level(self) -> float:
        """The mean of log d_j, the same for every order."""
        return self.log_total / len(self.price)


def price_columns(plan: OrderPlan, order: str | Order | Tensor | Sequence[int] = "natural") -> Prices:
    """The prices of a layer's columns in an order, as `make_order` takes it, by one factorization. Raises RoseError: a
    plan without H; as `make_order`."""
    visited = make_order(plan, order)
    damped, factor = plan.factorized(visited)
    return Prices.of(visited, factor, damped)
