"""The price of a column, and forecasts of a sweep's error for any order and budget, from one factorization for each
order.

Removing a weight w of column j costs w² d_j. The price d_j = 1/U_jj² is the part of input j that the free columns
cannot explain, squared and summed over tokens (docs/orders.md). Rows share H, the order and its prices. They depend on
each other only by how many weights each gives up. So a sweep of some rows forecasts the error of all rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from rose.errors import RoseError
from rose.layer.budget import count_by_block
from rose.layer.error import quadratic_form, ratio, sweep_error
from rose.layer.hessian import DampedHessian
from rose.layer.loss import block_sums
from rose.layer.order import Order, OrderPlan, Prices, make_order, plan_order
from rose.layer.pattern import BLOCK_SIZE, DAMPING, SPARSITY, THRESHOLD, Pattern
from rose.layer.settings import as_budget, check_shares
from rose.layer.statistics import InputStatistics
from rose.layer.sweep import Choice, sweep
from rose.layer.tiles import prune_in_tiles


def price_columns(plan: OrderPlan, order: str | Order | Tensor | Sequence[int] = "natural") -> Prices:
    """The prices of a layer's columns in an order, as `make_order` takes it, by one factorization. Raises RoseError: a
    plan without H, and as `make_order`."""
    factored = _Factored.of(plan, order)
    return Prices.of(factored.order, factored.factor, factored.damped)


ROWS = 64  # of W that are swept for a forecast
GROUPED_ROWS = 96  # the same under N:M, where orders differ by a few per cent
SAMPLES = 0.4  # independent samples a token: chosen on SmolLM2-135M, judged on Qwen2.5 (docs/lab-notes/orders.md)
ROUNDS = 3  # of Newton's method in `best_shares`
STEP = 0.05  # difference of a block's share, in parts of its weights, for derivatives
FLATTEST = 0.05  # least second derivative, relative to the largest, because single blocks are noisy
AnyOrder = str | Order | Tensor | Sequence[int]
AnyBudget = str | Sequence[float]


@dataclass(frozen=True, eq=False)  # tensors have no one truth value
class Forecast:
    """The forecast error of a sweep by one order and budget.

    Attributes:
        budget: "block", "layer", "own", or "best" for `best_shares`.
        error: forecast of `LayerResult.relative_error`.
        held_out: forecast of the relative error on other inputs; NaN for a bare H, whose number of tokens is unknown.
        block_error: the part of it from each visited block, (blocks,) float64.
        shares: the part of the layer's weights that each visited block gives up, (blocks,) float64.
    """

    order: Order
    budget: str
    prices: Prices
    error: float
    held_out: float
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
    """Forecasts the error of a sweep; arguments and errors as of `rose.prune_layer`."""
    sizes: dict[str, Any] = {"block_size": block_size, "damping": damping, "threshold": threshold}
    return forecasts(weight, hessian, [(order, budget)], sparsity=sparsity, **sizes)[0]


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
    """Forecasts the errors of sweeps by these orders and budgets; neighbouring pairs of one order share its factor.
    Other arguments and errors as of `rose.prune_layer`."""
    plan = plan_order(weight, hessian, sparsity=sparsity, block_size=block_size, damping=damping, threshold=threshold)
    sample = _Sample.of(weight, plan)
    factored: _Factored | None = None
    results = []
    for position, (order, budget) in enumerate(pairs):
        check_shares(budget := as_budget(budget) or "block", sample.plan.pattern)
        if factored is None or order is not pairs[position - 1][0]:
            factored = _Factored.of(sample.plan, order)
        results.append(sample.forecast(factored, budget))
    return results


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
    """The forecast of this order with the shares that make its error on other inputs least; on calibration inputs for
    a bare H. Raises RoseError as `rose.prune_layer`, and for N:M, which leaves no shares to choose.

    Newton's method begins with the shares of budget "layer". A round costs two forecasts for each block.
    """
    plan = plan_order(weight, hessian, sparsity=sparsity, block_size=block_size, damping=damping, threshold=threshold)
    sample = _Sample.of(weight, plan)
    pattern = sample.plan.pattern
    if pattern.is_grouped:
        raise RoseError(f"{pattern} fixes what every block gives up, so shares cannot be chosen.")
    factored = _Factored.of(sample.plan, order)
    least = sample.forecast(factored, "layer", "best")
    if 0 < pattern.ratio < 1:
        for _ in range(ROUNDS):
            shares = _newton_step(lambda at: _expected(*sample.swept(factored, at)[1:]), least, pattern.ratio)
            tries = [least.shares + part * (shares - least.shares) for part in (1.0, 0.5, 0.25)]
            results = [sample.forecast(factored, trial.tolist(), "best") for trial in tries]
            better = min(results, key=lambda result: _expected(result.error, result.held_out))
            if _expected(better.error, better.held_out) >= _expected(least.error, least.held_out):
                break
            least = better
    return least


def _expected(error: float, held_out: float) -> float:
    return error if math.isnan(held_out) else held_out


def _newton_step(error: Callable[[Tensor], float], at: Forecast, total: float) -> Tensor:
    """Shares, (blocks,), that minimise a parabola in each block's share, with the sum `total`."""
    most = torch.tensor(at.order.widths, dtype=torch.float64) / sum(at.order.widths)
    step, middle = STEP * most, error(at.shares)
    above = torch.tensor([error(at.shares + change) for change in step.diag()], dtype=torch.float64)
    below = torch.tensor([error(at.shares - change) for change in step.diag()], dtype=torch.float64)
    slope, bend = (above - below) / (2 * step), (above + below - 2 * middle) / step.square()
    if not bend.max() > 0:
        return at.shares
    bend = bend.clamp(min=float(bend.max()) * FLATTEST)
    low, high = float((slope - bend).min()), float((slope + bend).max())  # the cost of one more weight, the same in all
    for _ in range(60):
        cost = (low + high) / 2
        shares = torch.minimum((at.shares + (cost - slope) / bend).clamp(min=0), most)
        low, high = (cost, high) if shares.sum() < total else (low, cost)
    return shares * total / shares.sum()


@dataclass(frozen=True, eq=False)
class _Factored:
    """An order with its factor U, (in, in)."""

    order: Order
    damped: DampedHessian
    factor: Tensor
    tokens: int  # 1 for a bare H

    @classmethod
    def of(cls, plan: OrderPlan, order: AnyOrder) -> _Factored:
        visited = make_order(plan, order)
        return cls(visited, *plan.factorized(visited), plan.inputs.tokens if plan.inputs else 1)

    @cached_property
    def over_fitting(self) -> Tensor:
        """How much more each column costs on other inputs, (in,) float64, in the order visited; NaN for a bare H.

        Compensating column j fits the columns after it, F, to its input. These are k = |F| − λ tr((H_F + λI)⁻¹)
        parameters. Fitted on n samples, the residual on other inputs is larger by (1 − k/n)⁻² (generalized
        cross-validation, Golub, Heath and Wahba 1979). That is exp(2 k/n) for small k/n, which stays finite.
        """
        norms = torch.linalg.vector_norm(self.factor, dim=1).double()
        live = ~self.damped.dead[self.order.permutation]
        each = live * (1 - self.damped.added * norms.square())
        samples = SAMPLES * self.tokens if self.tokens > 1 else math.nan
        return (2 * (each.sum() - each.cumsum(0)) / samples).exp()


@dataclass(frozen=True, eq=False)
class _Sample:
    """Some rows that stand for all."""

    plan: OrderPlan
    all_rows: Tensor  # W, (out, in) float32, dead columns zero
    rows: Tensor  # the rows that are swept, (sample, in); under N:M scaled
    energy: float  # tr(W H Wᵀ) of the sample

    @classmethod
    def of(cls, weight: Tensor, plan: OrderPlan) -> _Sample:
        """Every k-th row, sorted by ‖S_i‖, so that the sample has strong and weak rows in proportion. N:M masks do not
        depend on the scale of a row, so these rows are drawn in proportion to ‖S_i‖ and divided by √‖S_i‖.
        """
        live = weight.detach().float()
        if plan.pattern.ratio > 0:
            live = live.masked_fill(plan.damped.dead, 0)
        strength, strongest = plan.importance.norm(dim=1).double().sort(descending=True, stable=True)
        if plan.pattern.is_grouped and len(live) > GROUPED_ROWS and strength[0] > 0:
            parts = (torch.arange(GROUPED_ROWS, dtype=torch.float64, device=live.device) + 0.5) / GROUPED_ROWS
            chosen = torch.searchsorted(strength.cumsum(0), parts * strength.sum())
            rows = live[strongest[chosen]] * strength[chosen].rsqrt().float().unsqueeze(1)
        else:
            step = max(1, len(live) // ROWS)
            rows = live[strongest[step // 2 :: step].sort().values]
        assert plan.inputs is not None
        return cls(plan, live, rows, quadratic_form(rows, plan.inputs.hessian))

    def forecast(self, factored: _Factored, budget: AnyBudget, name: str = "") -> Forecast:
        """The forecast for a budget or shares; `name` is the name of the shares in the result."""
        order, factor = factored.order, factored.factor
        counts = count_by_block(budget, self.all_rows, factor.diagonal(), self.plan.pattern, order)
        shares = torch.tensor(counts, dtype=torch.float64) / self.all_rows.numel()
        columns, error, held_out = self.swept(factored, shares)
        blocks = block_sums(columns, order.widths)
        name = name or (budget if isinstance(budget, str) else "own")
        each = blocks * ratio(error, float(blocks.sum()))
        return Forecast(order, name, Prices.of(order, factor, factored.damped), error, held_out, each, shares)

    def swept(self, factored: _Factored, shares: Tensor) -> tuple[Tensor, float, float]:
        """The sample's e² by visited column, (in,) float64, and its relative error without damping, on calibration and
        on other inputs. Shares may have any sum; N:M ignores them."""
        sizes = torch.tensor(factored.order.widths) * len(self.rows)
        counts = (shares * self.rows.numel()).round().long().clamp(min=0).minimum(sizes).tolist()
        order, U, damped = factored.order, factored.factor, factored.damped
        choice = Choice(self.plan.pattern, U.diagonal(), counts)
        before, after = order.visit(self.rows), order.visit(self.rows)
        mask = torch.zeros_like(after, dtype=torch.bool)
        errors = sweep(after, mask, U, order.widths, choice, partial(prune_in_tiles, few_rows=True))
        columns = errors.square().sum(0).masked_fill(damped.dead[order.permutation], 0).double()
        error = ratio(sweep_error(columns, before - after, damped.added), self.energy)
        return columns, error, float(columns @ factored.over_fitting) * ratio(error, float(columns.sum()))
