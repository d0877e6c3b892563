"""What became of one weight matrix: W as it was, and V, which somebody has pruned, tuned, merged or quantized.

Nothing here asks how V was made. What was removed is read from its zeros, and what was changed from the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rose.errors import RoseError
from rose.layer.agreement import Misfit, misfits, whole_fate
from rose.layer.statistics import is_finite

GROUPS = (2, 4, 8, 16, 32)  # M of the N:M patterns that are looked for
NEARLY = 0.95  # share of the groups that keep exactly N, from which on the others break a pattern
BLOCK = 128  # columns of a block, in SparseGPT's and ROSE's programs and here
GRIDS = ("row", 128, 64, 32)  # columns that share a scale, the coarsest first
LEVELS = (4, 8, 16, 32, 64, 256)  # values of grids of 2, 3, 4, 5, 6 and 8 bits
TELLING = 8  # nonzeros that tell a grid, and groups of so many
UNLIKE = 0.3  # cosine below which two vectors of weights have nothing to do with each other
ROUNDING = 2**-8  # of a weight, as bfloat16 rounds it
COMMON = 32  # columns of a group in which a common value is looked for
SAMPLED_ROWS, FEW_ROWS = 64, 16  # rows that grids are looked for in, and those that tell that there is none


@dataclass(frozen=True)
class FoundPattern:
    """The pattern that removed weights follow.

    Attributes:
        name: "none" where nothing was removed, "N:M", "row" (each row gave up the same number, up to one, and at least
            one), "block" (each block of 128 columns did), or "layer".
        keep, of: N and M of N:M, at most N nonzeros in every M consecutive input columns; 0 for other patterns.
        broken: groups with more than N nonzeros.
        first_broken: (row, first column) of the first of them.
    """

    name: str
    keep: int = 0
    of: int = 0
    broken: int = 0
    first_broken: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}" if self.name == "N:M" else self.name


@dataclass(frozen=True)
class FoundGrid:
    """Kept weights that take few values.

    Attributes:
        levels: how many, at most, in one group.
        group: columns that share a scale, None for a whole row.
    """

    levels: int
    group: int | None


@dataclass(frozen=True)
class WeightChange:
    """How V, (out, in), differs from W.

    Attributes:
        shape: (out, in).
        not_finite: entries of V that are NaN or infinite.
        zeros_before, zeros: exact zeros of W and of V.
        refilled: zeros of W that V has not.
        pattern: what the zeros of V follow.
        empty_rows, empty_columns: rows and columns of V without a nonzero, where W had one.
        moved: share of V's nonzeros that differ from W, and from W rounded where all are that.
        rounded: the format of 16 bits that W's weights were rounded to, None where they were to none.
        change: ‖V − W‖/‖W‖ over V's nonzeros.
        cosine: of the angle between V and W over V's nonzeros; 0 where V has none.
        grid: the grid that moved weights lie on, None where they lie on none.
        slope: of V on W over V's nonzeros; 1 where V has none.
        fate: of a layer that is not like W, what became of it, else None; see `rose.layer.agreement.whole_fate`.
        misfits: parts that do not follow W as the rest of the layer does; see `rose.layer.agreement.misfits`.
        common: mean share of 32 columns at one and the same value other than 0: where zeros went that a grid moved.
    """

    shape: tuple[int, int]
    not_finite: int
    zeros_before: int
    zeros: int
    refilled: int
    pattern: FoundPattern
    empty_rows: tuple[int, ...]
    empty_columns: tuple[int, ...]
    moved: float
    rounded: str | None
    change: float
    cosine: float
    grid: FoundGrid | None
    common: float
    slope: float
    fate: str | None
    misfits: tuple[Misfit, ...] = ()

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def sparsity(self) -> float:
        """Share of zeros in V, those of W among them."""
        return self.zeros / self.size

    @property
    def is_untouched(self) -> bool:
        """Whether V is W, or W in a format of 16 bits, with the same zeros."""
        return self.not_finite == 0 and self.moved == 0 and self.zeros == self.zeros_before and self.refilled == 0


def weight_change(before: Tensor, after: Tensor) -> WeightChange:
    """Compares two matrices of one shape, entry by entry.

    Args:
        before: W, (out, in), finite.
        after: V, (out, in), on the same device; may hold NaN and infinity.

    Raises:
        RoseError: other shapes.
    """
    if before.ndim != 2 or before.shape != after.shape:
        raise RoseError(
            f"W is of shape {tuple(before.shape)} and V of {tuple(after.shape)}; they do not belong together."
        )
    was, now, broken = before.float(), after.float(), 0
    if not is_finite(after):
        finite = torch.isfinite(after)
        broken, now = after.numel() - _count(finite), torch.where(finite, now, 0)
    zero, zero_before = now == 0, was == 0
    of_kept = was.masked_fill(zero, 0)
    differ = _count(now != of_kept)
    length, own = (torch.linalg.vector_norm(x).item() for x in (of_kept, now))
    gap, alike, slope = 0.0, float(length > 0), 1.0
    if differ:
        gap = torch.linalg.vector_norm(now - of_kept).item()
        product = torch.dot(now.flatten(), of_kept.flatten()).item()
        alike, slope = (product / (length * own), product / length**2) if length else (0.0, 1.0)
    rounded = rounded_to(of_kept, now) if differ and gap < ROUNDING * length else None
    moved = 0.0 if rounded else differ / max(1, now.numel() - _count(zero))
    removed = zero & finite if broken else zero
    count, count_before = _count(removed), _count(zero_before)
    return WeightChange(
        shape=(before.shape[0], before.shape[1]),
        not_finite=broken,
        zeros_before=count_before,
        zeros=count,
        refilled=_count(zero_before & ~zero) if count_before else 0,
        pattern=find_pattern(removed) if count else FoundPattern("none"),
        empty_rows=_empty(was, now, 1),
        empty_columns=_empty(was, now, 0),
        moved=moved,
        rounded=rounded,
        change=gap / length if length else 0.0,
        cosine=alike,
        grid=apparent_grid(now) if moved > 0.5 else None,
        common=common_value(now),
        slope=slope,
        fate=whole_fate(was, now) if alike < UNLIKE and own and length else None,
        misfits=misfits(was, now) if differ or count > count_before else (),
    )


def rounded_to(before: Tensor, after: Tensor) -> str | None:
    """The format of 16 bits in which V is W rounded, None where it is not."""
    formats = (torch.bfloat16, torch.float16)
    found = (one for one in formats if torch.equal(before.to(one).float(), after.float()))
    return next((str(one).removeprefix("torch.") for one in found), None)


def _count(mask: Tensor) -> int:
    """How many are True; NumPy counts bytes at once, ten times as fast as a sum."""
    return int(np.count_nonzero(mask.numpy())) if mask.device.type == "cpu" else int(mask.sum())


def _empty(before: Tensor, after: Tensor, axis: int) -> tuple[int, ...]:
    was, now = (torch.linalg.vector_norm(x, ord=torch.inf, dim=axis) for x in (before, after))
    return tuple(((now == 0) & (was != 0)).nonzero().flatten().tolist())


def find_pattern(mask: Tensor) -> FoundPattern:
    """The narrowest pattern that a mask, (out, in), True = zero, follows or nearly follows."""
    if not mask.any():
        return FoundPattern("none")
    some = _some_rows(mask)  # a few rows tell nearly always that there is no such pattern
    for of in GROUPS:
        found = _grouped(some, of) and _grouped(mask, of)
        if found:
            return found
    ones, columns = mask.float(), mask.shape[1]  # exact sums, and quick ones
    rows = ones.sum(1)
    # With none in some rows or blocks, zeros are too few to tell.
    if len(rows) > 1 and int(rows.max() - rows.min()) <= 1 and int(rows.min()) > 0 and int(rows.max()) < columns:
        return FoundPattern("row")
    if columns >= 2 * BLOCK:
        whole = ones.sum(0)[: columns // BLOCK * BLOCK].unflatten(0, (-1, BLOCK)).sum(1)
        if int(whole.max() - whole.min()) <= 1 and int(whole.min()) > 0 and int(whole.max()) < BLOCK * len(mask):
            return FoundPattern("block")
    return FoundPattern("layer")


def _grouped(mask: Tensor, of: int) -> FoundPattern | None:
    """N:M for this M, where nearly all groups keep the same N; zeros that came by themselves may make it fewer."""
    if mask.shape[1] % of or mask.shape[1] == of:
        return None
    left = (~mask).unflatten(1, (-1, of)).sum(2, dtype=torch.uint8)  # (out, groups)
    keep = int(torch.bincount(left.flatten()).argmax())
    if not 0 < keep < of or (left == keep).float().mean() < NEARLY:
        return None
    broken = (left > keep).nonzero()
    first = (int(broken[0, 0]), int(broken[0, 1]) * of) if len(broken) else None
    return FoundPattern("N:M", keep, of, len(broken), first)


def apparent_grid(weight: Tensor) -> FoundGrid | None:
    """The grid of fewest levels that nonzero weights, (out, in), lie on, a scale for each row or group of columns.

    Symmetric grids are multiples of a step, told by dividing by the largest weight; others by their few values, where
    there are clearly more places for them.
    """
    found = []
    for group in GRIDS:
        columns = weight.shape[1] if group == "row" else int(group)
        if weight.shape[1] % columns == 0 and (group == "row" or columns < weight.shape[1]):
            # Most weights lie on none, which few rows tell.
            levels = _levels(_some_rows(weight, FEW_ROWS), columns) and _levels(_some_rows(weight), columns)
            found += [FoundGrid(levels, None if group == "row" else columns)] if levels else []
    return min(found, key=lambda grid: grid.levels, default=None)


def _some_rows(matrix: Tensor, count: int = SAMPLED_ROWS) -> Tensor:
    at = torch.linspace(0, len(matrix) - 1, min(count, len(matrix)), dtype=torch.float32, device=matrix.device)
    return matrix[at.long()]


def _levels(weight: Tensor, columns: int) -> int | None:
    parts = weight.reshape(-1, columns)
    return _multiples(parts) or _few_values(parts)


def _multiples(parts: Tensor) -> int | None:
    """Levels of the symmetric grid whose multiples are the nonzeros of nearly all groups, (groups, columns)."""
    parts = parts[(parts != 0).sum(1) >= TELLING]
    if len(parts) < TELLING:
        return None
    scaled, fits = parts / parts.abs().amax(1, keepdim=True), torch.zeros(len(parts), dtype=torch.bool)
    for steps in (*range(1, 17), 127, 128):
        multiple = scaled * steps
        # A format of 16 bits rounds the weight itself, which shows where steps are many.
        fits |= ((multiple - multiple.round()).abs().amax(1) <= 0.02 + steps * (2**-8 if steps <= 16 else 2**-13)).cpu()
        if fits.float().mean() >= NEARLY:
            return next(count for count in LEVELS if 2 * steps <= count)
    return None


def _few_values(parts: Tensor) -> int | None:
    """Levels of a grid with an offset: at most so many different values in every group, (groups, columns)."""
    values = 1 + int((parts.sort(1).values.diff(dim=1) != 0).sum(1).max())
    places = int((parts != 0).sum(1).median())
    return next((count for count in LEVELS if values <= count and 2 * count <= places), None)


def common_value(weight: Tensor) -> float:
    """Mean share of each group of 32 columns, over rows, that stands at its most frequent value; 0 where that is 0.

    Of weights without a grid it is 1/32; a grid with an offset moves all zeros of a group to one value.
    """
    if weight.shape[1] % COMMON:
        return 0.0
    some = _some_rows(weight).reshape(-1, COMMON)
    value = some.mode(1).values
    share = (some == value[:, None]).float().mean(1)
    return float(torch.where(value == 0, 0, share).mean())


@dataclass(frozen=True)
class Removal:
    """How much two masks have in common.

    Attributes:
        jaccard: |A ∩ B| / |A ∪ B|; 1 where nothing is removed in either.
        chance: what two random masks of these sizes would have.
    """

    jaccard: float
    chance: float


def same_removed(one: Tensor, other: Tensor) -> Removal:
    """Compares two masks of one shape, True = removed."""
    both, either = int((one & other).sum()), int((one | other).sum())
    a, b = float(one.float().mean()), float(other.float().mean())
    joined = a + b - a * b
    return Removal(both / either if either else 1.0, a * b / joined if joined else 1.0)
