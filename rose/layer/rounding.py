"""Rounding in a sweep (GPTQ, Frantar et al. 2022; with a mask, SparseGPT, section 3.5), then coordinate descent on
the codes (QuantEase, Behdin et al. 2023). A weight rounded to q leaves e = (w_j − q)/U_jj."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rose.interrupt import stop_point
from rose.layer.bits import Grid
from rose.layer.grid import choose_scales, inverse_of, per_column, round_each
from rose.layer.order import Order

PASSES = 3  # of coordinate descent; they take off a fifth of the rounding error, and one alone an eighth
TILE = 32  # columns that are revised before the others hear of it


@dataclass(frozen=True)
class Rounder:
    """How a sweep rounds; columns and rows as the sweep holds them, transposed, in the order visited.

    Attributes:
        steps: the scale of every weight, (in, out); filled group by group where there is `importance`.
        importance: of the columns' squared errors, (in,), or None with all scales filled.
    """

    grid: Grid
    steps: Tensor
    importance: Tensor | None = None

    def part(self, start: int, end: int) -> Rounder:
        """The same for these columns alone."""
        return Rounder(
            self.grid, self.steps[start:end], None if self.importance is None else self.importance[start:end]
        )

    def reach(self, wt: Tensor, mask: Tensor, start: int) -> None:
        """Chooses the scales of the group that begins at this column, if any, from the part's weights and mask,
        (columns, out)."""
        if self.importance is None or start % int(self.grid.group):
            return
        group = slice(start, start + int(self.grid.group))
        weight = wt[group].masked_fill(mask[group], 0).T.contiguous()
        self.steps[group] = choose_scales(weight, Grid(self.grid.bits, "row"), self.importance[group]).T


def plan_rounding(weight: Tensor, grid: Grid, order: Order, factor: Tensor, dead: Tensor, unit: int) -> Rounder:
    """How to round in a sweep by this order. Scales are chosen from compensated weights when the sweep reaches their
    group, if every group lies whole within a block, else from the weights before the sweep. Squared errors count
    1/U_jj².

    Args:
        weight: W, (out, in) float32, original column order.
        factor: U for `order`, (in, in).
        dead: columns without any input, (in,), original order.
        unit: columns that are masked at once, which must not reach over the end of a group.
    """
    importance = factor.diagonal().square().reciprocal().masked_fill_(dead[order.permutation], torch.inf)
    lowest = importance.amin()  # dead columns count as little as any; H holds a 1 for them, of no scale
    importance = torch.where(importance.isinf(), lowest if lowest.isfinite() else 1.0, importance)
    width = grid.width(weight.shape[1])
    if (
        order.is_natural
        and grid.group != "row"
        and not any(block % width for block in order.widths)
        and not width % unit
    ):
        return Rounder(grid, torch.zeros_like(weight.T, memory_format=torch.contiguous_format), importance)
    scales = choose_scales(weight, grid, importance[order.inverse])
    return Rounder(grid, per_column(scales, weight.shape[1]).T.index_select(0, order.permutation))


def revise(target: Tensor, rounded: Tensor, mask: Tensor, hessian: Tensor, steps: Tensor, grid: Grid) -> Tensor:
    """Coordinate descent on tr((W − Q) H (W − Q)ᵀ), `PASSES` times: each kept weight in turn takes the multiple of
    its scale that is best with all others fixed. The error never rises.

    Args:
        target: W, (out, in) float32.
        rounded: Q to begin with, on the grid, (out, in).
        mask: True = removed, (out, in).
        hessian: H, (in, in), damped.
        steps: the scale of every weight, (in, out), original column order.
    """
    wt, steps = rounded.T.contiguous(), steps.masked_fill(mask.T, 0)  # without a step a weight stays 0
    inverses, reach = inverse_of(steps), hessian.diagonal().reciprocal().tolist()
    pull = hessian @ (target.T - wt)  # half the slope of the error, with its sign turned
    for _ in range(PASSES):
        for start in range(0, len(wt), TILE):
            stop_point()
            tile = slice(start, min(start + TILE, len(wt)))
            now, before, slope = wt[tile], wt[tile].clone(), pull[tile].clone()
            for j in range(len(now)):
                optimum = now[j].add(slope[j], alpha=reach[start + j])
                best = round_each(optimum, steps[start + j], inverses[start + j], grid)
                slope[j + 1 :].addr_(hessian[start + j, start + j + 1 : tile.stop], best - now[j], alpha=-1)
                now[j] = best
            pull.addmm_(hessian[:, tile], now - before, alpha=-1)
    return wt.T.contiguous()
