"""Grids of 3, 4 or 8 bits with an exact zero, value = code · scale, and rounding to them in a sweep.

- Code 0 is exactly 0, so a removed weight stays removed. The weights of a row in a group of input columns share a
  scale. Groups are consecutive in the layer's own order, whatever order a sweep visits. Codes of 3 and 4 bits run from
  −4 to 3 and −8 to 7, with scales of either sign, as in GGUF's Q4_0. Codes of 8 bits run from −127 to 127 (Q8_0).
- A scale has 6 significant bits beside codes of 3 bits, 5 beside 4, 1 beside 8. So scales are exact in float16, and
  values in bfloat16, float16 and float32. An ordinary checkpoint stores every bit, and `find_grid` reads them back.
- A sweep rounds as it goes (GPTQ, Frantar et al. 2022; with a mask, SparseGPT, section 3.5): a weight rounded to q
  leaves e = (w_j − q)/U_jj. Coordinate descent on the codes follows (QuantEase, Behdin et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import nan

import torch
from torch import Tensor

from rose.interrupt import stop_point
from rose.layer.error import quadratic_form, relative_error
from rose.layer.hessian import factorize
from rose.layer.order import Order, make_order
from rose.layer.pattern import BITS, GROUPS, Grid, Pattern
from rose.layer.result import LayerResult
from rose.layer.statistics import InputStatistics
from rose.layer.sweep import Choice, sweep
from rose.layer.tiles import prune_in_tiles

SIGNIFICANT = 8  # bits of a number in bfloat16
LARGEST = float(torch.finfo(torch.float16).max)
TRIED = 24  # scales tried, from LEAST to 1 times the scale that fits the largest weight
LEAST = 0.4
ROWS = 256  # rows that `find_grid` reads at once


@dataclass(frozen=True)
class Coded:
    """A weight matrix on a grid."""

    grid: Grid
    codes: Tensor  # (out, in) int8, from `grid.least` to `grid.most`; 0 where the weight is 0
    scales: Tensor  # (out, groups) float32, each exact in float16; 0 for a group of zeros

    @property
    def weight(self) -> Tensor:
        """code · scale, (out, in) float32, exact."""
        return self.codes * per_column(self.scales, self.codes.shape[1])


def choose_scales(weight: Tensor, grid: Grid, importance: Tensor | None = None) -> Tensor:
    """Scales, (out, groups) float32, of least squared error for weights, (out, in) float32, among `TRIED` for each
    group. `importance` weighs the squared errors of each column, (in,), such as diag(H); None weighs all alike. Raises
    RoseError for groups that do not fill the rows."""
    width, bits = grid.width(weight.shape[1]), SIGNIFICANT - (grid.bits - 1)
    parts = weight.unflatten(1, (-1, width))
    least, most = parts.amin(2), parts.amax(2)
    # There is one more negative code, so the side with the larger weight gets the negative codes.
    fitting = torch.where(-least > most, -least, -most if grid.least < -grid.most else most) / grid.most
    weights = None if importance is None else importance.float().view(-1, width)
    best, error = torch.zeros_like(fitting), torch.full_like(fitting, torch.inf)
    for number in range(TRIED + 1):  # the last is rounded up, which matters for scales that are powers of two
        share = min(1.0, LEAST + (1 - LEAST) * number / (TRIED - 1))
        scale = _few_bits(fitting * share, bits, LARGEST / -grid.least, up=number == TRIED)
        missed = (parts - round_each(parts, scale.unsqueeze(2), inverse_of(scale).unsqueeze(2), grid)).square_()
        squares = (missed if weights is None else missed.mul_(weights)).sum(2)
        better = squares < error
        best, error = torch.where(better, scale, best), torch.where(better, squares, error)
    return best


def round_each(weight: Tensor, scale: Tensor, inverse: Tensor, grid: Grid) -> Tensor:
    """Every weight at the nearest multiple of its scale, of shapes that broadcast; `inverse`: see `inverse_of`."""
    return (weight * inverse).round_().clamp_(grid.least, grid.most).mul_(scale)


def inverse_of(scale: Tensor) -> Tensor:
    """1/scale, and 0 for a scale of 0, so that weights without a scale become 0."""
    return torch.where(scale == 0, 0, 1 / scale)


def per_column(scales: Tensor, columns: int) -> Tensor:
    """The scale of each weight, (out, groups) -> (out, columns)."""
    return scales.repeat_interleave(columns // scales.shape[1], dim=1)


def find_grid(weight: Tensor, bits: int, group: int | str) -> Coded | None:
    """Codes and scales of weights, (out, in), that lie exactly on such a grid, the coarsest that fits; None where
    they do not. Raises RoseError for unknown bits or group."""
    grid = Grid(bits, group)
    if weight.shape[1] % (1 if group == "row" else int(group)):
        return None
    width, rows, codes, scales = grid.width(weight.shape[1]), 1, [], []
    start = 0
    while start < len(weight):
        parts = _read(weight[start : start + rows].float().unflatten(1, (-1, width)), grid)
        if parts is None:
            return None
        codes.append(parts[0].flatten(1))
        scales.append(parts[1])
        start, rows = start + rows, ROWS
    return Coded(grid, torch.cat(codes), torch.cat(scales))


def coarsest_grid(weight: Tensor) -> Coded | None:
    """The grid of fewest bits, then widest groups, that holds the weights exactly; None if they lie on no grid."""
    tried = (find_grid(weight, bits, group) for bits in BITS for group in reversed(GROUPS))
    return next((coded for coded in tried if coded), None)


def _few_bits(scale: Tensor, bits: int, most: float, up: bool) -> Tensor:
    """The nearest float16 number with this number of significant bits, or the next away from 0."""
    fraction, exponent = torch.frexp(scale.clamp(-most, most))
    fraction = fraction * 2**bits
    whole = fraction.abs().ceil().copysign(fraction) if up else fraction.round()
    return torch.ldexp(whole, exponent - bits).clamp(-most, most).half().float()


def _read(parts: Tensor, grid: Grid) -> tuple[Tensor, Tensor] | None:
    """Codes, int8, and scales, (rows, groups), of weights, (rows, groups, width); None if no scales fit."""
    fraction, exponent = torch.frexp(parts)
    lowest = torch.where(parts == 0, 2**20, exponent).amin(2, keepdim=True)
    shift = torch.where(parts == 0, 0, exponent - lowest)
    if int(shift.max()) >= grid.bits:  # a largest weight more than 2^(bits − 1) times the smallest
        return None
    whole = (fraction * 2**24).long() << shift  # the weights in units of 2^(lowest − 24)
    divisor = _common_divisor(whole.abs())
    top = whole.abs().amax(2) // divisor.clamp_min(1)
    unit = torch.ldexp(divisor.double(), lowest.squeeze(2) - 24)
    scale = torch.zeros_like(unit)
    for part in range(1, -grid.least + 1):  # the common divisor itself may have more bits than float16
        tried = unit / part
        fits = (scale == 0) & (tried.half() == tried) & (top * part <= -grid.least)
        scale = torch.where(fits, tried, scale)
    codes = (parts.double() / scale.unsqueeze(2)).nan_to_num_(0.0, 0.0, 0.0).round_()
    turned = codes.amax(2) > grid.most
    codes = torch.where(turned.unsqueeze(2), -codes, codes)
    scale = torch.where(turned, -scale, scale)
    fits_all = (codes * scale.unsqueeze(2) == parts).all() and codes.amax() <= grid.most and codes.amin() >= grid.least
    return (codes.to(torch.int8), scale.float()) if bool(fits_all) else None


def _common_divisor(whole: Tensor) -> Tensor:
    """The greatest common divisor along the last dimension, int64; 0 of zeros."""
    while whole.shape[-1] > 1:
        half = (whole.shape[-1] + 1) // 2
        folded = torch.gcd(whole[..., : whole.shape[-1] - half], whole[..., half:])
        whole = torch.cat([folded, whole[..., whole.shape[-1] - half : half]], -1)
    return whole.squeeze(-1)


PASSES = 3  # of coordinate descent: three passes remove a fifth of the rounding error, one pass an eighth
TILE = 32  # columns that are revised before the other columns are updated


@dataclass(frozen=True)
class Rounder:
    """How a sweep rounds. Columns are in the order visited."""

    grid: Grid
    steps: Tensor  # the scale of every weight, (out, in); filled group by group where there is `importance`
    importance: Tensor | None = None  # of the columns' squared errors, (in,), or None with all scales filled

    def reach(self, W: Tensor, M: Tensor, start: int) -> None:
        """Chooses the scales of a group that begins at this column, from the weights and mask, (out, in)."""
        if self.importance is None or start % int(self.grid.group):
            return
        group = slice(start, start + int(self.grid.group))
        weight = W[:, group].masked_fill(M[:, group], 0).contiguous()
        self.steps[:, group] = choose_scales(weight, Grid(self.grid.bits, "row"), self.importance[group])

    def prune(self, W: Tensor, M: Tensor, U: Tensor, E: Tensor, block: slice, choice: Choice | None) -> None:
        """As `rose.layer.sweep.prune_block`, and rounds kept weights."""
        prune_in_tiles(W, M, U, E, block, choice, self.solve)

    def solve(self, W: Tensor, M: Tensor, U: Tensor, E: Tensor, tile: slice) -> None:
        """e_j = (w_j − q_j)/U_jj and w_{j+1:} −= e_j · U_{j,j+1:}, column by column; q_j is 0 where w_j is removed,
        else rounded."""
        self.reach(W, M, tile.start)
        W, E, U = W[:, tile], E[:, tile], U[tile, tile]
        steps = self.steps[:, tile].masked_fill(M[:, tile], 0)  # without a step a weight becomes 0
        inverses, diagonal = inverse_of(steps), U.diagonal().tolist()
        for j in range(W.shape[1]):
            q = round_each(W[:, j], steps[:, j], inverses[:, j], self.grid)
            torch.sub(W[:, j], q, out=E[:, j]).div_(diagonal[j])
            W[:, j] = q
            W[:, j + 1 :].addr_(E[:, j], U[j, j + 1 :], alpha=-1)


def plan_rounding(weight: Tensor, grid: Grid, order: Order, factor: Tensor, dead: Tensor, unit: int) -> Rounder:
    """The rounder of a sweep by this order. If every group lies within a block, scales are chosen from compensated
    weights when the sweep reaches the group, otherwise from the weights before the sweep. Squared errors are weighted
    by 1/U_jj². W, (out, in) float32, and `dead` columns, (in,), are in original order; U, (in, in), is for `order`.
    `unit` columns are masked at once, and must lie within a group."""
    importance = factor.diagonal().square().reciprocal().masked_fill_(dead[order.permutation], torch.inf)
    lowest = importance.amin()  # H holds a 1 for dead columns, which has no scale; they get the lowest weight
    importance = torch.where(importance.isinf(), lowest if lowest.isfinite() else 1.0, importance)
    width = grid.width(weight.shape[1])
    fits = not width % unit and not any(block % width for block in order.widths)
    if fits and order.is_natural and grid.group != "row":
        return Rounder(grid, order.visit(torch.zeros_like(weight)), importance)
    scales = choose_scales(weight, grid, importance[order.inverse])
    return Rounder(grid, order.visit(per_column(scales, weight.shape[1])))


def revise(target: Tensor, rounded: Tensor, mask: Tensor, hessian: Tensor, steps: Tensor, grid: Grid) -> Tensor:
    """Coordinate descent on tr((W − Q) H (W − Q)ᵀ), `PASSES` times. Each kept weight in turn takes the multiple of
    its scale that is best with all others fixed. The error never rises. W, Q to begin with, on the grid, and the mask,
    True = removed, are (out, in); H, (in, in), is damped; `steps`, (out, in), are the scales of all weights."""
    wt, steps = rounded.T.contiguous(), steps.masked_fill(mask, 0).T.contiguous()  # without a step a weight stays 0
    inverses, reach = inverse_of(steps), hessian.diagonal().reciprocal().tolist()
    pull = hessian @ (target.T - wt)  # half of the negative gradient of the error
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


def round_kept(
    weight: Tensor, statistics: InputStatistics, result: LayerResult, grid: Grid, zeros: Tensor | None
) -> LayerResult:
    """Rounds the kept weights of a result, by a sweep with its mask in descending H_jj, and then `revise`. Both
    approximate the weights of the method. `weight` is the dense W, (out, in), and `zeros`, (out, in) bool, stay 0."""
    order = make_order(replace(result.plan, pattern=Pattern(0.0)), "hessian")  # N:M groups need not stay whole here
    damped, factor = factorize(statistics, result.damping, order.permutation)
    unrounded = result.weight.float()
    removed = result.mask if zeros is None else result.mask | zeros
    mask = removed | (unrounded == 0)
    rounder = plan_rounding(unrounded, grid, order, factor, damped.dead, 1)
    swept = order.visit(unrounded)
    sweep(swept, order.visit(mask), factor, order.widths, None, rounder.prune)
    steps = order.restore(rounder.steps)
    rounded = revise(unrounded, order.restore(swept), mask, damped.matrix, steps, grid).to(weight.dtype)
    dense = quadratic_form(weight, statistics.hessian)
    pruning, both = (relative_error(weight, pruned, statistics.hessian, dense) for pruned in (result.weight, rounded))
    return replace(
        result,
        weight=rounded,
        mask=removed,
        damping=damped.damping,
        added_damping=damped.added,
        column_error=torch.full_like(result.column_error, nan),
        pruning_error=pruning,
        rounding_error=both - pruning,
    )
