"""What a sweep will cost, foretold for any order and budget from one factorization an order.

Rows share H, the order and its prices, and a row is pruned by itself but for how much it gives up. So a sweep of some
rows foretells the error of all: for 64 of 2048 rows in a twentieth of the time (docs/orders.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rose.errors import RoseError
from rose.given import check_choice
from rose.layer.defaults import BLOCK_SIZE, BUDGETS, DAMPING, SPARSITY, THRESHOLD
from rose.layer.error import quadratic_form, ratio, sweep_error
from rose.layer.hessian import DampedHessian
from rose.layer.loss import block_sums
from rose.layer.order import Order, OrderPlan, make_order, plan_order
from rose.layer.pattern import Pattern
from rose.layer.prices import Prices
from rose.layer.statistics import InputStatistics
from rose.layer.sweep import Sweep, check_shares, sweep, visited_budget

ROWS = 64  # swept for a forecast
ROUNDS = 3  # of `best_shares`
STEP = 0.05  # of a block's weights, by which its share is varied
FLATTEST = 0.05  # of the largest second derivative: those of single blocks are noisy
AnyOrder = str | Order | Tensor | Sequence[int]
AnyBudget = str | Sequence[float]


@dataclass(frozen=True, eq=False)  # tensors have no one truth value
class Forecast:
    """What a sweep by one order and budget will cost.

    Attributes:
        order: the columns as visited.
        budget: "block", "layer", "own", or "best" for shares of `best_shares`.
        prices: of the columns in this order.
        error: forecast of `LayerResult.relative_error`.
        block_error: what each visited block adds to it, (blocks,) float64.
        shares: the part of the layer's weights that each visited block gives up, (blocks,) float64.
    """

    order: Order
    budget: str
    prices: Prices
    error: float
    block_error: Tensor
    shares: Tensor


def forecast(
    weight: Tensor,
    hessian: Tensor | InputStatistics,
    *,
    order: AnyOrder = "natural",
    budget: AnyBudget = "block",
    sparsity: float | str | Pattern = SPARSITY,
    block_size: int = BLOCK_SIZE,
    damping: float = DAMPING,
    threshold: float = THRESHOLD,
) -> Forecast:
    """What a sweep will cost; arguments and errors as of `rose.prune_layer`."""
    basic = {"block_size": block_size, "damping": damping, "threshold": threshold}
    return forecasts(weight, hessian, [(order, budget)], sparsity=sparsity, **basic)[0]  # type: ignore[arg-type]


def forecasts(
    weight: Tensor,
    hessian: Tensor | InputStatistics,
    pairs: Sequence[tuple[AnyOrder, AnyBudget]],
    *,
    sparsity: float | str | Pattern = SPARSITY,
    block_size: int = BLOCK_SIZE,
    damping: float = DAMPING,
    threshold: float = THRESHOLD,
) -> list[Forecast]:
    """What sweeps by these orders and budgets will cost; pairs of the same order that follow one another share its
    factor. Other arguments and errors as of `rose.prune_layer`."""
    plan = plan_order(weight, hessian, sparsity=sparsity, block_size=block_size, damping=damping, threshold=threshold)
    sample, last = _Sample.of(weight, plan), None
    told = []
    for order, budget in pairs:
        if isinstance(budget, str):
            check_choice("The budget", budget, BUDGETS)
        else:
            budget = check_shares(budget, plan.pattern)
        if last is None or order is not last[0]:
            last = order, _Factored.of(plan, order)
        told.append(sample.foretell(last[1], budget))
    return told


def best_shares(
    weight: Tensor,
    hessian: Tensor | InputStatistics,
    *,
    order: AnyOrder = "natural",
    sparsity: float | str | Pattern = SPARSITY,
    block_size: int = BLOCK_SIZE,
    damping: float = DAMPING,
    threshold: float = THRESHOLD,
) -> Forecast:
    """The forecast for the shares that make it least in this order, as far as a few rounds find them.

    Each round is a step of Newton's method from the forecasts of a little more and a little less from every block, at
    first from what the threshold of budget "layer" takes; it costs two forecasts a block.

    Raises:
        RoseError: as `rose.prune_layer`; N:M, which leaves no shares to choose.
    """
    plan = plan_order(weight, hessian, sparsity=sparsity, block_size=block_size, damping=damping, threshold=threshold)
    if plan.pattern.is_grouped:
        raise RoseError(f"{plan.pattern} fixes what every block gives up, so there are no shares to choose.")
    sample, factored = _Sample.of(weight, plan), _Factored.of(plan, order)
    least = sample.foretell(factored, "layer", "best")
    if 0 < plan.pattern.ratio < 1:
        for _ in range(ROUNDS):
            shares = _newton_step(partial(sample.error, factored), least, plan.pattern.ratio)
            tries = [least.shares + part * (shares - least.shares) for part in (1.0, 0.5, 0.25)]
            told = min((sample.foretell(factored, one.tolist(), "best") for one in tries), key=lambda one: one.error)
            if told.error >= least.error:
                break
            least = told
    return least


def _newton_step(error: Callable[[Tensor], float], at: Forecast, ratio: float) -> Tensor:
    """Shares, (blocks,), at the least of a parabola in each block's share, their sum held at `ratio`."""
    most = torch.tensor(at.order.widths, dtype=torch.float64) / sum(at.order.widths)
    step, here = STEP * most, error(at.shares)
    more = torch.tensor([error(at.shares + one) for one in step.diag()], dtype=torch.float64)
    less = torch.tensor([error(at.shares - one) for one in step.diag()], dtype=torch.float64)
    slope, bend = (more - less) / (2 * step), (more + less - 2 * here) / step.square()
    bend = bend.clamp(min=float(bend.max()) * FLATTEST)
    if not bend.max() > 0:
        return at.shares
    low, high = float((slope - bend).min()), float((slope + bend).max())  # of what another weight may cost
    for _ in range(60):
        price = (low + high) / 2
        shares = torch.minimum((at.shares + (price - slope) / bend).clamp(min=0), most)
        low, high = (price, high) if shares.sum() < ratio else (low, price)
    return shares * ratio / shares.sum()


@dataclass(frozen=True, eq=False)
class _Factored:
    """An order with its factor U, (in, in)."""

    order: Order
    factor: Tensor
    damped: DampedHessian

    @classmethod
    def of(cls, plan: OrderPlan, order: AnyOrder) -> _Factored:
        visited = make_order(plan, order)
        damped, factor = plan.factorized(visited)
        return cls(visited, factor, damped)


@dataclass(frozen=True, eq=False)
class _Sample:
    """Some rows that stand for all.

    Attributes:
        all_rows: W, (out, in) float32, live columns alone.
        rows: those swept, (sample, in).
        energy: tr(W H Wᵀ) of those.
    """

    plan: OrderPlan
    all_rows: Tensor
    rows: Tensor
    energy: float

    @classmethod
    def of(cls, weight: Tensor, plan: OrderPlan) -> _Sample:
        """Every k-th row by Σ S², so that strong and weak rows are there in their proportion."""
        assert plan.inputs is not None
        live = weight.detach().float()
        if plan.pattern.ratio > 0:
            live = live.masked_fill(plan.damped.dead, 0)
        step = max(1, len(live) // ROWS)
        strongest = plan.importance.square().sum(1).argsort(descending=True, stable=True)
        rows = live[strongest[step // 2 :: step].sort().values]
        return cls(plan, live, rows, quadratic_form(rows, plan.inputs.hessian))

    def foretell(self, factored: _Factored, budget: AnyBudget, name: str = "") -> Forecast:
        """The forecast for shares or a budget's name, which `name` calls otherwise."""
        order, factor = factored.order, factored.factor
        counts = visited_budget(budget, self.all_rows, factor.diagonal(), self.plan.pattern, order)
        shares = torch.tensor(counts, dtype=torch.float64) / self.all_rows.numel()
        swept, error = self._swept(factored, shares)
        columns = swept.column_error.masked_fill(factored.damped.dead, 0).double()
        blocks = block_sums(columns[order.permutation], order.widths)
        return Forecast(
            order=order,
            budget=name or (budget if isinstance(budget, str) else "own"),
            prices=Prices.of(order, factor, factored.damped),
            error=error,
            block_error=blocks * ratio(error, float(blocks.sum())),
            shares=shares,
        )

    def error(self, factored: _Factored, shares: Tensor) -> float:
        """The forecast's error for shares of any sum."""
        return self._swept(factored, shares)[1]

    def _swept(self, factored: _Factored, shares: Tensor) -> tuple[Sweep, float]:
        """The sample's sweep and its relative error without damping; N:M needs no shares."""
        damped, widths = factored.damped, torch.tensor(factored.order.widths)
        sizes = widths * len(self.rows)
        counts = (shares * self.rows.numel()).round().long().clamp(min=0).minimum(sizes).tolist()
        swept = sweep(self.rows, factored.factor, factored.order, self.plan.pattern, counts, few_rows=True)
        columns = swept.column_error.masked_fill(damped.dead, 0)
        total = sweep_error(columns, self.rows - swept.weight, damped.added)
        return swept, ratio(total, self.energy)
