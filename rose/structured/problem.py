"""Removal of columns of one output projection: exact cost, greedy choice, compensation, error.

y = W x, with x in units of `width` consecutive columns, which stay or go whole. Tokens enter by the second moment S =
mean of x xᵀ = H/T and the mean μ. If the projection may have a bias, a constant costs nothing, so the covariance C = S
− μμᵀ counts, otherwise S. Call it A.

Least squares for the kept columns K gives Ŵ = W A_:K (A_KK)⁻¹. With P = A⁻¹ the error of removing the columns R is
tr(W_R (P_RR)⁻¹ W_Rᵀ): Optimal Brain Surgeon (Hassibi and Stork 1992) for sets of columns of all rows. Without R, P
becomes P − P_:R (P_RR)⁻¹ P_R:, and W is compensated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from rose.layer.error import difference, quadratic_form
from rose.layer.hessian import DampedHessian, damp
from rose.layer.pattern import DAMPING
from rose.structured.parts import Shape

LAZY = 64  # removals between two full updates of the inverse: the rest are products of matrices, not of vectors
COMPACT = 0.75  # share of columns left at which those that went are cut out of the inverse, to save time and memory


@dataclass(frozen=True)
class Problem:
    """One output projection and statistics of its inputs."""

    weight: Tensor  # W, (out, in) float32, or a corrected target in its place
    second: Tensor  # S, the mean of x xᵀ, (in, in) float32
    mean: Tensor  # μ, (in,)
    shape: Shape  # the units; `width` columns each
    width: int
    with_bias: bool = True  # whether the projection may have a bias
    damping: float = DAMPING  # added to the diagonal of A, relative to its mean
    tokens: int | None = None
    # for scores of the rows that make the units: ((rows, in) weights, (in,) root mean square of inputs)
    sources: tuple[tuple[Tensor, Tensor], ...] = ()
    fine: Problem | None = None  # of a coarse one, which has the same inverse

    @cached_property
    def moment(self) -> Tensor:
        """A, without damping: C where a bias is possible, else S; (in, in)."""
        return self.second - torch.outer(self.mean, self.mean) if self.with_bias else self.second

    @cached_property
    def damped(self) -> Tensor:
        """A with damping, and 1 on the diagonal of columns that are always zero; (in, in)."""
        return self._factorize().matrix

    @cached_property
    def inverse(self) -> Tensor:
        """P, the inverse of the damped A, (in, in)."""
        if self.fine is not None:
            return self.fine.inverse
        return torch.cholesky_inverse(self._factorize().lower).flip(0, 1)

    @cached_property
    def used_damping(self) -> float:
        """`damping`, or the raised value after a failed factorization."""
        return self.damping

    def _factorize(self) -> DampedHessian:
        factorized = damp(self.moment, self.damping)
        # Not to be factorized again; the factor itself is not kept.
        self.__dict__.update(damped=factorized.matrix, used_damping=factorized.damping)
        return factorized

    @cached_property
    def live_weight(self) -> Tensor:
        """W with zeros in columns of dead inputs, (out, in), whose removal costs nothing. The damped A has 1 there."""
        return self.weight.masked_fill(self.moment.diagonal() == 0, 0)

    @cached_property
    def energy(self) -> float:
        """tr(W S Wᵀ), the mean square of y, summed over output channels."""
        return quadratic_form(self.weight, self.second)

    @property
    def columns(self) -> Tensor:
        """Columns of each unit, (units, width)."""
        return torch.arange(self.weight.shape[1], device=self.weight.device).view(-1, self.width)

    def coarse(self) -> Problem:
        """The same with whole groups as units."""
        return replace(self, shape=Shape(1, self.shape.groups), width=self.width * self.shape.per_group, fine=self)

    def columns_of(self, units: Tensor) -> Tensor:
        """Columns of these units, (in,) bool; `units`: (units,) bool."""
        return units.repeat_interleave(self.width).to(self.weight.device)


def unit_costs(problem: Problem) -> Tensor:
    """Error after compensation of removing each unit alone, tr(W_u (P_uu)⁻¹ W_uᵀ); (units,)."""
    columns = problem.columns
    blocks = problem.inverse[columns[:, :, None], columns[:, None, :]]  # (units, width, width)
    weights = problem.live_weight[:, columns].transpose(0, 1)  # (units, out, width)
    solved = torch.linalg.solve(blocks, weights.transpose(1, 2))  # (units, width, out)
    return (weights.transpose(1, 2) * solved).sum((1, 2))


def set_cost(problem: Problem, stay: Tensor) -> float:
    """Error after compensation of removing all other units, tr(W_R (P_RR)⁻¹ W_Rᵀ)."""
    removed = ~problem.columns_of(stay)
    if not removed.any():
        return 0.0
    weight = problem.live_weight[:, removed]
    solved = torch.linalg.solve(problem.inverse[removed][:, removed], weight.T)
    return float((weight.T * solved).sum(dtype=torch.float64))


def greedy(problem: Problem, remove: int, pools: Sequence[Tensor], removed: Tensor) -> tuple[Tensor, Tensor]:
    """Removes the cheapest of the competing units in each of the `pools`, `remove` times, and updates inverse and
    weights each time; `removed`: earlier removals, (units,) bool. Returns units in the order of removal, and their
    costs; both (removed,)."""
    if problem.width == 1 and len(pools) == 1 and not removed.any():
        return _greedy_columns(problem, remove)
    inverse, weight = problem.inverse.clone(), problem.live_weight.clone()
    away = problem.columns_of(removed)
    if away.any():
        inverse, weight = _without(inverse, weight, away.nonzero().flatten())
    left = [pool.tolist() for pool in pools]
    order, costs = [], []
    columns = problem.columns
    for _ in range(remove):
        for pool in left:
            prices = [_cost(inverse, weight, columns[unit]) for unit in pool]
            best = min(range(len(pool)), key=prices.__getitem__)
            order.append(pool[best])
            costs.append(prices[best])
            inverse, weight = _without(inverse, weight, columns[pool.pop(best)])
    return torch.tensor(order, dtype=torch.long), torch.tensor(costs, dtype=torch.float64)


def _cost(inverse: Tensor, weight: Tensor, columns: Tensor) -> float:
    part = weight[:, columns]
    return float((part.T * torch.linalg.solve(inverse[columns][:, columns], part.T)).sum())


def _without(inverse: Tensor, weight: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse and compensated weights without these columns, which become zero."""
    share = torch.linalg.solve(inverse[columns][:, columns], inverse[columns])  # (gone, in)
    weight = weight - weight[:, columns] @ share
    inverse = inverse - inverse[:, columns] @ share
    inverse[columns], inverse[:, columns], weight[:, columns] = 0, 0, 0
    return inverse, weight


def _greedy_columns(problem: Problem, remove: int) -> tuple[Tensor, Tensor]:
    """`greedy` for thousands of units of one column. Within `LAZY` removals P stands for P₀ − FFᵀ and W for W₀ − GFᵀ. F
    gets the removed column of P over the root of its pivot, and G the column of W over it. Only P's diagonal and the
    norms of W's columns are updated."""
    inverse, weight = problem.inverse.clone(), problem.live_weight.clone()
    columns = torch.arange(len(inverse), device=inverse.device)  # of `inverse` and `weight`
    live = torch.ones_like(columns, dtype=torch.bool)
    order: list[int] = []
    costs: list[float] = []
    while len(order) < remove:
        count = min(LAZY, remove - len(order))
        factors, moves = inverse.new_zeros(count, len(inverse)), weight.new_zeros(count, len(weight))
        diagonal, norms = inverse.diagonal().clone(), weight.square().sum(0)
        for step in range(count):
            price = (norms / diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny)).masked_fill(~live, torch.inf)
            unit = int(price.argmin())
            root = float(diagonal[unit]) ** 0.5
            factor = (inverse[unit] - factors[:step, unit] @ factors[:step]) / root
            move = (weight[:, unit] - factors[:step, unit] @ moves[:step]) / root
            inner = move @ weight - (moves[:step] @ move) @ factors[:step]  # gᵀw_j of every column
            norms = (norms - 2 * factor * inner + move.square().sum() * factor.square()).clamp_min_(0)
            diagonal = diagonal - factor.square()
            factors[step], moves[step] = factor, move
            live[unit] = False
            order.append(int(columns[unit]))
            costs.append(float(price[unit]))
        inverse.addmm_(factors.T, factors, alpha=-1)
        weight.addmm_(moves.T, factors, alpha=-1)
        if live.sum() < COMPACT * len(live):
            inverse, weight, columns, live = inverse[live][:, live], weight[:, live], columns[live], live[live]
    return torch.tensor(order, dtype=torch.long), torch.tensor(costs, dtype=torch.float64)


def swaps(cost: Callable[[Tensor], float], stay: Tensor, pools: Sequence[Tensor]) -> Tensor:
    """Exchanges removed units for remaining ones while that lowers a cost, one pass; the remaining units. Each removed
    unit takes the best place in its pool (SlimLLM, section 3.2)."""
    best = cost(stay)
    for pool in pools:
        for back in [unit for unit in pool.tolist() if not stay[unit]]:
            choice = None
            for out in [unit for unit in pool.tolist() if stay[unit]]:
                tried = stay.clone()
                tried[back], tried[out] = True, False
                value = cost(tried)
                if value < best:
                    best, choice = value, out
            if choice is not None:
                stay = stay.clone()
                stay[back], stay[choice] = True, False
    return stay


def recover(problem: Problem, kept_units: Tensor, how: str) -> tuple[Tensor, Tensor | None]:
    """Ŵ, (out, in) float32, zero in removed columns, for the remaining units, (units,) bool; and the change of the
    bias, (out,), or None. `how`: "none", "bias" (restores the mean), "linear" (also scales each output channel) or
    "exact" (least squares)."""
    stay = problem.columns_of(kept_units)
    if bool(stay.all()):
        return problem.weight, None
    pruned = problem.weight.masked_fill(~stay, 0)
    if how == "exact":  # W A_:K (A_KK)⁻¹ under the damped A, without the whole inverse
        index = stay.nonzero().flatten()
        lower = torch.linalg.cholesky(problem.damped[index][:, index])
        solved = torch.cholesky_solve(problem.damped[index] @ problem.weight.T, lower)  # (kept, out)
        pruned[:, index] = solved.T
    elif how == "linear":  # slopes of the regression y ≈ a ŷ + b by output channel; 1 where ŷ is constant
        image = pruned @ problem.moment
        variance = (image * pruned).sum(1)
        slopes = torch.where(variance > 0, (image * problem.weight).sum(1) / variance.clamp_min(1e-30), 1.0)
        pruned = pruned * slopes[:, None]
    if how == "none" or not problem.with_bias:
        return pruned, None
    return pruned, (problem.weight - pruned) @ problem.mean


def error(weight: Tensor, pruned: Tensor, bias: Tensor | None, second: Tensor, mean: Tensor) -> float:
    """Mean of ‖Wx − Ŵx − b‖² over tokens, from S and μ."""
    change = difference(weight, pruned)
    touched = change.any(0)  # where nothing is refitted, the columns that went alone
    if touched.all():
        total = quadratic_form(change, second)
    else:
        total = quadratic_form(change[:, touched], second[touched][:, touched])
    if bias is not None:
        total += float((bias * (bias - 2 * (change @ mean))).sum(dtype=torch.float64))
    return max(total, 0.0)


def relative_errors(
    weight: Tensor, second: Tensor, mean: Tensor, tried: Sequence[tuple[Tensor, Tensor | None]]
) -> list[float]:
    """`error` of each (Ŵ, b), relative to tr(W S Wᵀ), the mean square of y."""
    scale = max(quadratic_form(weight, second), 1e-30)
    return [error(weight, pruned, bias, second, mean) / scale for pruned, bias in tried]
