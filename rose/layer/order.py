"""Orders: the permutation in which a sweep visits the columns, and the widths of the blocks it visits.

The two-level order is ROSE's (arXiv 2603.05878, section 3): columns within each block by column loss, then blocks by
block loss per column, both descending. `columns`, `blocks`, `global` and `dealt` sort by the same losses; `hessian`,
`inverse`, `pivot`, `min_pivot` and `greedy` read H alone; `pivot_weighted` reads H and W. docs/orders.md compares them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self, TypeVar

import numpy as np
import torch
from scipy.linalg import lapack
from scipy.special import stdtrit
from torch import Tensor

from rose.errors import RoseError, check_word, failing, is_number, is_whole
from rose.layer import loss
from rose.layer.hessian import DampedHessian, damped_hessian, factorize
from rose.layer.pattern import BLOCK_SIZE, DAMPING, SPARSITY, THRESHOLD, Pattern, parse_sparsity
from rose.layer.registry import ORDER_NAMES, check_order_name
from rose.layer.statistics import InputStatistics, as_statistics, check_tensor, is_finite


@dataclass(frozen=True, eq=False)  # tensors have no one truth value
class Order:
    """A column order, (in,) int64, with its block widths as visited: `permutation[k]` is the original column visited
    at step k."""

    permutation: Tensor
    widths: tuple[int, ...]
    name: str

    @cached_property
    def inverse(self) -> Tensor:
        """(in,) int64; `inverse[j]` is the step at which original column j is visited."""
        return self.permutation.argsort()

    def visit(self, matrix: Tensor) -> Tensor:
        """A copy with the columns in the order visited, (out, in). A column is contiguous, as a sweep reads it."""
        return matrix.T.index_select(0, self.permutation).T

    def restore(self, visited: Tensor) -> Tensor:
        """A copy with the columns of (out, in) in their original order again; rows are contiguous."""
        return visited.T.index_select(0, self.inverse).T.contiguous()

    @property
    def is_natural(self) -> bool:
        return bool((self.permutation == torch.arange(len(self.permutation), device=self.permutation.device)).all())


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
    def of(cls, order: Order, factor: Tensor, damped: DampedHessian) -> Self:
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


@dataclass(frozen=True, eq=False)
class OrderPlan:
    """The losses of a pre-pruned layer, and the order that ROSE derives from them.

    Attributes:
        importance: S, (out, in) float32.
        potential_loss: L, (out, in) float32.
        column_loss: (in,) float32, original column order.
        block_loss, block_width: (blocks,) loss and columns of each block, left to right.
        hessian_diagonal: diag(H), (in,) float32.
        relative_range: (max − min) / max of block loss per column, 0 to 1.
        threshold: columnar above it.
        pattern, block_size: what the plan was made for.
        inputs, damping: the statistics with H, and λ relative to the mean of diag(H), for orders that read them; None
            where the plan was made from importance alone.
    """

    importance: Tensor
    potential_loss: Tensor
    column_loss: Tensor
    block_loss: Tensor
    block_width: tuple[int, ...]
    hessian_diagonal: Tensor
    relative_range: float
    threshold: float
    pattern: Pattern
    block_size: int
    inputs: InputStatistics | None = field(default=None, repr=False)
    damping: float = DAMPING

    @property
    def damped(self) -> DampedHessian:
        """H + λI of the layer's inputs; raises RoseError where the plan was made without H."""
        return damped_hessian(self._known_inputs, self.damping)

    @property
    def _known_inputs(self) -> InputStatistics:
        if self.inputs is None:
            raise RoseError("This plan was made from importance alone and has no H; make it by rose.plan_order.")
        return self.inputs

    def factorized(self, order: Order) -> tuple[DampedHessian, Tensor]:
        """H + λI, and U for this order, (in, in); errors as of `damped`."""
        return factorize(self._known_inputs, self.damping, order.permutation)

    @property
    def is_columnar(self) -> bool:
        return self.relative_range > self.threshold

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of `relative_range` over draws of text, by a jackknife over groups of windows;
        None where the statistics have no groups. W is the same in every draw, so diag(H) alone varies."""
        groups = self.inputs.by_group if self.inputs else None
        if groups is None:
            return None
        ranges = []
        for scale in left_out(groups):
            lost = loss.potential_loss(self.importance * scale, self.pattern, self.block_width).sum(0)
            ranges.append(loss.relative_range(loss.block_sums(lost, self.block_width), self.block_width))
        half = float(half_width(ranges))
        return max(0.0, self.relative_range - half), min(1.0, self.relative_range + half)

    @property
    def is_undecided(self) -> bool:
        """Whether another draw of text could call the layer columnar, or not: its interval holds the threshold."""
        return self.interval is not None and self.interval[0] <= self.threshold <= self.interval[1]

    @property
    def column_variation(self) -> float:
        """Standard deviation of the column losses, relative to their mean; 0 where no column loses anything."""
        mean = float(self.column_loss.mean())
        return float(self.column_loss.std(correction=0)) / mean if mean > 0 else 0.0

    @cached_property
    def order(self) -> Order:
        """The order that ROSE prunes in: two-level if the layer is columnar, else natural."""
        return make_order(self, "rose")

    @property
    def permutation(self) -> Tensor:
        """Columns as ROSE visits them, (in,) int64."""
        return self.order.permutation

    @property
    def loss_per_column(self) -> Tensor:
        """Block loss divided by the block's width, (blocks,): what blocks are compared by."""
        return loss.loss_per_column(self.column_loss, self.block_width)


def plan_order(
    weight: Tensor,
    hessian: Tensor | InputStatistics,
    *,
    sparsity: float | str | Pattern = SPARSITY,
    block_size: int = BLOCK_SIZE,
    damping: float = DAMPING,
    threshold: float = THRESHOLD,
) -> OrderPlan:
    """Pre-prunes a layer, W (out, in), and decides whether, and how, ROSE reorders its columns. Raises RoseError for
    shapes that do not fit, NaN or infinity, or a pattern that does not fit the layer.

    Args:
        hessian: H, (in, in), or the layer's `InputStatistics`.
        sparsity: a ratio, or N:M.
        block_size: columns per block.
        damping: λ relative to the mean of diag(H), for orders by H and prices.
        threshold: columnar is a relative range above it.
    """
    statistics = as_statistics(hessian, weight)
    score = loss.importance(weight, statistics.mean_square)
    plan = plan_from_importance(
        score, statistics.diagonal, sparsity=sparsity, block_size=block_size, threshold=threshold
    )
    return replace(plan, inputs=statistics, damping=damping)


def plan_from_importance(
    score: Tensor,
    hessian_diagonal: Tensor | None = None,
    *,
    sparsity: float | str | Pattern = SPARSITY,
    block_size: int = BLOCK_SIZE,
    threshold: float = THRESHOLD,
) -> OrderPlan:
    """As `plan_order`, from a given importance S, (out, in), as in the paper's worked example."""
    check_tensor("S", score)
    if score.ndim != 2 or score.numel() == 0:
        raise RoseError(f"W must be a non-empty (out, in) matrix, but its shape is {tuple(score.shape)}.")
    if not is_finite(score):
        raise RoseError("W holds NaN or infinity, or S does; reload the checkpoint in float32.")
    if not is_number(threshold) or not 0 <= threshold <= 1:
        raise RoseError(f"The threshold on the relative range must lie between 0 and 1, not {threshold!r}.")
    pattern = parse_sparsity(sparsity)
    pattern.check(score.shape[1], block_size)
    widths = loss.block_widths(score.shape[1], block_size)
    lost = loss.potential_loss(score, pattern, widths)
    column_loss = lost.sum(0)
    block_loss = loss.block_sums(column_loss, widths)
    return OrderPlan(
        importance=score,
        potential_loss=lost,
        column_loss=column_loss,
        block_loss=block_loss,
        block_width=widths,
        hessian_diagonal=score.new_full((score.shape[1],), float("nan"))
        if hessian_diagonal is None
        else hessian_diagonal,
        relative_range=loss.relative_range(block_loss, widths),
        threshold=threshold,
        pattern=pattern,
        block_size=int(block_size),
    )


def left_out(groups: Tensor) -> Tensor:
    """Factors of the importance of each column without one of the groups, (groups, in), from diag(H) by group."""
    total = groups.sum(0)
    return ((total - groups).clamp_min(0) / total.clamp_min(torch.finfo(torch.float32).tiny)).sqrt()


def half_width(replicates: Sequence[Any]) -> Any:
    """Half of the 95 % interval by a jackknife over groups, from the number without each (Efron 1979)."""
    count = len(replicates)
    return stdtrit(count - 1, 0.975) * np.std(replicates, axis=0) * (count - 1) ** 0.5


def live_range(plan: OrderPlan) -> float:
    """The relative range over live columns. Blocks of dead columns (H_jj = 0) are left out: they lose nothing, and make
    a layer look columnar."""
    losses, widths, split = [], [], list(plan.block_width)
    of_blocks = plan.hessian_diagonal.split(split), plan.column_loss.split(split), plan.importance.split(split, dim=1)
    for diagonal, lost, score in zip(*of_blocks, strict=True):
        alive = diagonal > 0
        if alive.any():
            if not plan.pattern.is_grouped:  # N:M groups stay whole, so a dead column keeps its place in its group
                lost = loss.potential_loss(score[:, alive], plan.pattern, (int(alive.sum()),))
            losses.append(lost.sum())
            widths.append(int(alive.sum()))
    return loss.relative_range(torch.stack(losses), widths) if losses else 0.0


def rank(score: Tensor, ascending: bool = False) -> Tensor:
    """Indices by score, descending unless asked otherwise; ties by index."""
    return score.argsort(descending=not ascending, stable=True)


def sort_columns(plan: OrderPlan, score: Tensor, ascending: bool = False) -> Tensor:
    """All columns by score, (in,), descending unless asked otherwise; N:M groups stay whole, by their summed score.
    Raises RoseError: a score that is no tensor, of another shape, or NaN."""
    check_tensor("A score", score)
    columns = plan.column_loss.numel()
    if score.shape != (columns,) or score.isnan().any():
        raise RoseError(f"A score must have one number, not NaN, for each of the {columns} columns.")
    return unit_rank(score, plan.pattern.of or 1, ascending)


def unit_rank(column_score: Tensor, unit: int, ascending: bool = False) -> Tensor:
    """Ranks columns, or whole N:M groups of `unit` columns by their summed score; columns of a group stay together."""
    groups = rank(column_score.view(-1, unit).sum(1), ascending)
    return (groups[:, None] * unit + torch.arange(unit, device=groups.device)).flatten()


def natural(plan: OrderPlan, ascending: bool) -> Tensor:
    """Left to right, as SparseGPT prunes; `ascending` has no effect."""
    return torch.arange(plan.column_loss.numel(), device=plan.column_loss.device)


def two_level(plan: OrderPlan, ascending: bool) -> Order:
    """ROSE: columns within each block by column loss, then blocks by block loss per column."""
    return sort_two_level(plan.column_loss, plan.block_width, plan.pattern.of or 1, ascending)


def sort_two_level(column_loss: Tensor, widths: Sequence[int], unit: int = 1, ascending: bool = False) -> Order:
    """Two-level order from column losses, (in,), alone; groups of `unit` columns stay whole."""
    columns = _within_blocks(column_loss, widths, unit, ascending)
    return _sort_blocks(columns, loss.loss_per_column(column_loss, widths), widths, ascending)


def columns_only(plan: OrderPlan, ascending: bool) -> Tensor:
    """Columns within each block by column loss; blocks stay."""
    return _within_blocks(plan.column_loss, plan.block_width, plan.pattern.of or 1, ascending)


def blocks_only(plan: OrderPlan, ascending: bool) -> Order:
    """Blocks by block loss per column; columns stay in natural order within each."""
    return _sort_blocks(natural(plan, ascending), plan.loss_per_column, plan.block_width, ascending)


def _within_blocks(column_loss: Tensor, widths: Sequence[int], unit: int, ascending: bool) -> Tensor:
    starts, losses = loss.block_starts(widths), column_loss.split(list(widths))
    return torch.cat([start + unit_rank(block, unit, ascending) for start, block in zip(starts, losses, strict=True)])


def _sort_blocks(columns: Tensor, per_column: Tensor, widths: Sequence[int], ascending: bool) -> Order:
    """Blocks by block loss per column; `columns` lists the columns of each block, left to right."""
    chosen, blocks = rank(per_column, ascending).tolist(), columns.split(list(widths))
    return Order(torch.cat([blocks[b] for b in chosen]), tuple(widths[b] for b in chosen), "two_level")


def global_order(plan: OrderPlan, ascending: bool) -> Tensor:
    """Ours: all columns by their loss in a layer-wide pre-pruning; meant for the layer-wide budget."""
    lost = loss.potential_loss(plan.importance, plan.pattern, (plan.importance.shape[1],)).sum(0)
    return sort_columns(plan, lost, ascending)


def dealt(plan: OrderPlan, ascending: bool) -> Tensor:
    """Ours: columns by their loss in a layer-wide pre-pruning, dealt over the blocks like cards; for the block
    budget and a refit."""
    unit = plan.pattern.of or 1
    cards = global_order(plan, ascending).view(-1, unit)
    columns = torch.empty_like(cards)
    # A block of n columns gets its k-th at (k + ½)/n of the deal, so that a narrow block is not full early.
    counts = [width // unit for width in plan.block_width]
    turns = torch.cat([(torch.arange(count, dtype=torch.float32) + 0.5) / count for count in counts])
    columns[turns.argsort(stable=True).to(cards.device)] = cards
    return columns.flatten()


def by_hessian(plan: OrderPlan, ascending: bool) -> Tensor:
    """All columns by diag(H): `act_order` of the program of GPTQ (Frantar et al. 2022)."""
    if torch.isnan(plan.hessian_diagonal).any():
        raise RoseError("The order by Hessian diagonal needs H; this plan was made from importance alone.")
    return sort_columns(plan, plan.hessian_diagonal, ascending)


def by_inverse(plan: OrderPlan, ascending: bool) -> Tensor:
    """All columns by diag(H⁻¹), the divisor of w² in Hassibi and Stork (1992): columns that others explain go first."""
    return sort_columns(plan, _inverse(plan).diagonal(), ascending)


def by_pivot(plan: OrderPlan, ascending: bool) -> Tensor:
    """Ours: pivoted Cholesky of H + λI in reverse. The last column varies most; the column before it varies most given
    the last, and so on. Redundant columns go first, explained by the columns that stay; for the layer-wide budget."""
    return _by_pivots(plan, _live_matrix(plan), ascending)


def by_weighted_pivot(plan: OrderPlan, ascending: bool) -> Tensor:
    """Ours: pivot order with each variance times ‖W_j‖²."""
    energy = plan.importance.square().sum(0) / plan.hessian_diagonal.clamp_min(torch.finfo(torch.float32).tiny)
    size = (energy / energy.max().clamp_min(torch.finfo(torch.float32).tiny)).sqrt()
    return _by_pivots(plan, size.unsqueeze(1) * _live_matrix(plan) * size, ascending)


def by_min_pivot(plan: OrderPlan, ascending: bool) -> Tensor:
    """The column of least variance goes last, before it the least given the last, and so on. This makes Σ d small: the
    min-pivot order that Chen et al. 2025 propose for rounding by GPTQ (arXiv 2507.18553)."""
    return _by_pivots(plan, _live_matrix(plan), ascending, smallest=True)


def greedy(plan: OrderPlan, ascending: bool) -> Tensor:
    """At each step the column that costs least given all that stay: Optimal Brain Compression (Frantar, Singh and
    Alistarh 2022) with one order for all rows. Pivoted Cholesky of H⁻¹ picks the same order."""
    return _by_pivots(plan, _inverse(plan), not ascending)


def _live_matrix(plan: OrderPlan) -> Tensor:
    """H + λI, (in, in), with dead columns nearly 0, so that other columns explain them without loss."""
    damped = plan.damped
    if not damped.dead.any():
        return damped.matrix
    matrix = damped.matrix.clone()
    matrix.diagonal()[damped.dead] = matrix.diagonal()[~damped.dead].min() * 1e-6 if (~damped.dead).any() else 1.0
    return matrix


def _inverse(plan: OrderPlan) -> Tensor:
    """The inverse of `_live_matrix`, (in, in)."""
    factor = plan.damped.natural_factor
    inverse = factor.T @ factor
    dead = plan.damped.dead
    if dead.any():
        inverse.diagonal()[dead] = 1 / _live_matrix(plan).diagonal()[dead]
    return inverse


def _by_pivots(plan: OrderPlan, matrix: Tensor, forward: bool, smallest: bool = False) -> Tensor:
    """Columns, or whole N:M groups, in the order of pivoted Cholesky or in reverse; ties by index in both."""
    unit, columns = plan.pattern.of or 1, len(matrix)
    if forward:
        return pivoted(matrix, unit, smallest)
    return columns - 1 - pivoted(matrix.flip(0, 1), unit, smallest).flip(0)


OrderFunction = Callable[[OrderPlan, bool], Order | Tensor | Sequence[int]]
Arranging = TypeVar("Arranging", bound=OrderFunction)
ORDERS: dict[str, OrderFunction] = {
    "natural": natural,
    "two_level": two_level,
    "columns": columns_only,
    "blocks": blocks_only,
    "global": global_order,
    "dealt": dealt,
    "hessian": by_hessian,
    "inverse": by_inverse,
    "pivot": by_pivot,
    "pivot_weighted": by_weighted_pivot,
    "min_pivot": by_min_pivot,
    "greedy": greedy,
}
"""Orders by name, with plugins. An order is ascending as NAME_ascending."""


def register_order(name: str) -> Callable[[Arranging], Arranging]:
    """Decorator that adds an order to `ORDERS`. The function
    takes an `OrderPlan` and whether to sort ascending. It returns an `Order`, or a permutation of the columns for
    blocks of the plan's own widths; `sort_columns` makes one from a score. The result is checked. The last
    registration of a name wins. Raises RoseError for a name that is not one word, or that `make_order` reads as another
    order."""
    reserved = ("random", "custom", "rose")
    check_word(name, "An order")
    if name in reserved or name.endswith("_ascending"):
        raise RoseError(f"An order cannot be named {name!r}, which means something else already; choose another name.")

    def add(function: Arranging) -> Arranging:
        def arrange(plan: OrderPlan, ascending: bool) -> Order:
            with failing(f"The order {name}"):
                order = function(plan, ascending)
            return _checked(plan, order, f"The order {name}")

        ORDERS[name] = arrange
        if name not in ORDER_NAMES:
            ORDER_NAMES.append(name)
        return function

    return add


def make_order(plan: OrderPlan, order: str | Order | Tensor | Sequence[int]) -> Order:
    """An order by name, "random:SEED", or a permutation of the columns; "rose" is two-level if the layer is columnar,
    else natural. Raises RoseError without a plan, for an unknown name, no permutation, or an order that splits N:M
    groups."""
    if not isinstance(plan, OrderPlan):
        raise RoseError(f"An order is made from a plan of rose.plan_order, not from a {type(plan).__name__}.")
    if not isinstance(order, str):
        return _checked(plan, order)
    if order == "rose":
        order = "two_level" if plan.is_columnar else "natural"
    if order not in ORDERS:
        check_order_name(order)
    name, _, seed = order.removesuffix("_ascending").partition(":")
    if name == "random":
        return _shuffled(plan, int(seed or 0))
    result = ORDERS[name](plan, name != order)
    if isinstance(result, Order):
        return replace(result, name=order)
    return Order(result, plan.block_width, order)  # type: ignore[arg-type]  # a plugin's order is checked already


def _shuffled(plan: OrderPlan, seed: int) -> Order:
    unit, generator = plan.pattern.of or 1, torch.Generator().manual_seed(seed)
    score = torch.rand(plan.column_loss.numel() // unit, generator=generator, dtype=torch.float32)
    shuffled = unit_rank(score.repeat_interleave(unit), unit)
    return Order(shuffled.to(plan.column_loss.device), plan.block_width, f"random:{seed}")


def _checked(plan: OrderPlan, order: Order | Tensor | Sequence[int], subject: str = "A custom order") -> Order:
    """The order on the plan's device; raises RoseError unless it is a permutation of all columns, N:M groups whole."""
    columns, device, unit = plan.column_loss.numel(), plan.column_loss.device, plan.pattern.of or 1
    wrong = RoseError(f"{subject} must name each of the {columns} columns exactly once, by whole numbers.")
    if not isinstance(order, Order):
        order = Order(order, plan.block_width, "custom")  # type: ignore[arg-type]
    try:
        permutation = torch.as_tensor(order.permutation, device=device)
    except (TypeError, ValueError, RuntimeError):
        raise wrong from None
    if permutation.is_floating_point() or not torch.equal(
        permutation.sort().values.long().cpu(), torch.arange(columns)
    ):
        raise wrong
    if sum(order.widths) != columns or min(order.widths) < 1:
        raise RoseError(f"{subject}: block widths must be positive and add up to {columns}.")
    groups = permutation.long().view(-1, unit)
    torn = (groups != groups[:, :1] + torch.arange(unit, device=device)).any() or (groups[:, 0] % unit).any()
    if torn or any(width % unit for width in order.widths):
        raise RoseError(f"{subject} must keep each group of {unit} neighbouring columns together under {plan.pattern}.")
    return replace(order, permutation=groups.flatten())


def move_block(plan: OrderPlan, order: str | Order | Tensor | Sequence[int], step: int, to: int) -> Order:
    """Moves the block visited at `step` to step `to`, and shifts the blocks between. Raises RoseError for a step that
    does not exist, and as `make_order`."""
    order = make_order(plan, order)
    widths = list(order.widths)
    if not (is_whole(step) and is_whole(to) and 0 <= step < len(widths) and 0 <= to < len(widths)):
        raise RoseError(f"This layer has blocks 0 to {len(widths) - 1}; cannot move {step!r} to {to!r}.")
    columns = list(order.permutation.split(widths))
    columns.insert(to, columns.pop(step))
    widths.insert(to, widths.pop(step))
    return make_order(plan, Order(torch.cat(columns), tuple(widths), "custom"))


def blocks_of(widths: Sequence[int], columns: Tensor | np.ndarray | Sequence[int]) -> np.ndarray:
    """The block that holds each of these columns."""
    return np.searchsorted(np.cumsum(widths), torch.as_tensor(columns).cpu(), side="right")


def visited_blocks(plan: OrderPlan, order: Order) -> list[int | None]:
    """The original block visited at each step; None if a step takes columns of several blocks."""
    steps = np.split(blocks_of(plan.block_width, order.permutation), np.cumsum(order.widths)[:-1])
    return [int(step[0]) if (step == step[0]).all() else None for step in steps]


def pivoted(matrix: Tensor, unit: int = 1, smallest: bool = False) -> Tensor:
    """Columns in the order in which pivoted Cholesky picks them, (in,) int64; ties by index. Each step picks the column
    with the largest (or `smallest`) variance that the columns picked before do not explain (LAPACK `pstrf`, Hammarling,
    Higham and Lucas 2007).

    The matrix, (in, in) float32, is symmetric and semidefinite, and not changed. `unit` columns stay together; a
    group's pivot is the determinant of its unexplained block.
    """
    if unit == 1 and not smallest and matrix.device.type == "cpu":
        pivots = lapack.spstrf(matrix.numpy(), tol=0.0, lower=1)[1]
        return torch.from_numpy(pivots).long() - 1
    columns = len(matrix)
    groups = columns // unit
    rows = matrix.new_zeros(columns, columns)  # rows of the factor, filled one after another
    at = torch.arange(columns, device=matrix.device).view(groups, unit)
    left = matrix[at.unsqueeze(2), at.unsqueeze(1)].double()  # (groups, unit, unit): each group's unexplained block
    picked = torch.zeros(groups, dtype=torch.bool, device=matrix.device)
    order = torch.empty(groups, dtype=torch.int64, device=matrix.device)
    lowest = torch.finfo(left.dtype).min
    for step in range(groups):
        size = left.flatten().log() if unit == 1 else torch.linalg.slogdet(left).logabsdet
        score = -size if smallest else size
        score = torch.where(score > lowest, score, lowest)  # NaN where the unexplained block is rounding noise
        score[picked] = -torch.inf
        order[step] = group = score.argmax()
        picked[group] = True
        done, chosen = step * unit, at[group]
        residual = matrix[chosen] - rows[:done, chosen].T @ rows[:done]
        block, failed = torch.linalg.cholesky_ex(residual[:, chosen])
        if failed:
            continue
        rows[done : done + unit] = torch.linalg.solve_triangular(block, residual, upper=False)
        new = rows[done : done + unit].view(unit, groups, unit).double()
        left -= torch.einsum("kgi,kgj->gij", new, new)
    return at[order].flatten()
