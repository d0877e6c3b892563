"""The sweep of SparseGPT (Frantar and Alistarh 2023, algorithm 1): mask, error, compensate, block by block.

U is the upper Cholesky factor of H⁻¹. Removing w_j costs e², e = w_j / U_jj, and later columns take w_{j:} −= e ·
U_{j,j:}. `tiles` prunes a block in less time and can round kept weights, `budget` counts the weights that each block
gives up, and `trace` records a sweep.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rose.layer.loss import smallest
from rose.layer.pattern import Pattern


@dataclass(frozen=True)
class Choice:
    """Chooses the weights of least (w/d)² for removal, which is e² if d_j = U_jj, as in SparseGPT."""

    pattern: Pattern
    divisor: Tensor  # d, (in,), in the order visited
    counts: Sequence[int]  # weights to remove from each block; N:M does not read them

    def in_block(self, W: Tensor, M: Tensor, block: slice, number: int) -> None:
        """Fills the mask M of a block before its first column. W and M are (out, in), M is True = removed."""
        if not self.pattern.is_grouped:
            M[:, block] = smallest((W[:, block] / self.divisor[block]).square().T, self.counts[number]).T

    def in_groups(self, W: Tensor, M: Tensor, columns: slice) -> None:
        """Fills the N:M mask of the groups that begin in these columns, just before the columns are pruned."""
        of = self.pattern.of
        if of and columns.start % of == 0:
            groups = slice(columns.start, max(columns.stop, columns.start + of))
            M[:, groups] = smallest((W[:, groups] / self.divisor[groups]).square(), of - self.pattern.keep, of)


def prune_block(W: Tensor, M: Tensor, U: Tensor, E: Tensor, block: slice, choice: Choice | None) -> None:
    """Prunes the columns of one block in turn, in place; the columns of the block that follow compensate."""
    for j in range(block.start, block.stop):
        if choice:
            choice.in_groups(W, M, slice(j, j + 1))
        E[:, j] = W[:, j] * M[:, j] / U[j, j]  # (out,): the error, 0 where a weight stays
        W[:, j : block.stop] -= E[:, j, None] * U[j, j : block.stop]


def sweep(
    W: Tensor,
    M: Tensor,
    U: Tensor,
    widths: Sequence[int],
    choice: Choice | None = None,
    prune: Callable[[Tensor, Tensor, Tensor, Tensor, slice, Choice | None], None] = prune_block,
) -> Tensor:
    """Prunes a layer in place, and returns the errors E, (out, in); a column's error is the sum of its e².

    All columns are in the order visited.

    Args:
        W: weights, (out, in) float32, dead columns already zero.
        M: mask, (out, in) bool, True = removed; filled by the `choice`, and read as it is without one.
        U: upper triangular with H⁻¹ = UᵀU, (in, in).
        widths: columns of each block.
        prune: prunes a block; `rose.layer.tiles.prune_in_tiles` is faster.
    """
    E, stop = torch.empty_like(W), 0
    for number, width in enumerate(widths):
        block = slice(stop, stop := stop + width)
        if choice:
            choice.in_block(W, M, block, number)
        prune(W, M, U, E, block, choice)
        W[:, stop:].addmm_(E[:, block], U[block, stop:], alpha=-1)  # W −= E U: all later blocks compensate
    W.masked_fill_(M, 0)  # rounding may have left 1e-8
    return E
