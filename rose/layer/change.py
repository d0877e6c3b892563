"""What happened to one weight matrix: W before, and V, which somebody has pruned, tuned, merged or quantized.

Nothing here asks how V was made. Its zeros show what was removed, the rest what was changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rose.errors import RoseError
from rose.layer.agreement import Misfit, misfits, whole_fate
from rose.layer.facts import FORMATS, FactsOf, WeightFacts, count

UNLIKE = 0.3  # cosine below which two vectors of weights have nothing to do with each other
ROUNDING = 2**-8  # of a weight, as bfloat16 rounds it


@dataclass(frozen=True)
class WeightChange(WeightFacts):
    """The facts of V, (out, in), and how it differs from W. `grid` is None where most kept weights did not move."""

    zeros_before: int  # of W
    refilled: int  # zeros of W where V has a weight
    empty_rows: tuple[int, ...]  # without a nonzero in V, but with one in W
    empty_columns: tuple[int, ...]
    moved: float  # share of V's nonzeros that differ from W; 0 where all are W rounded
    rounded: str | None  # the format of 16 bits in which V's nonzeros are W
    change: float  # ‖V − W‖/‖W‖ over V's nonzeros
    row_change: Tensor  # the same by row, (out,)
    column_change: Tensor  # by column, (in,)
    cosine: float  # of the angle between V and W over V's nonzeros; 0 where V has none
    slope: float  # of V on W over V's nonzeros; 1 where V has none
    fate: str | None = None  # of a layer that is not like W, see `rose.layer.agreement.whole_fate`
    misfits: tuple[Misfit, ...] = ()  # parts that do not follow W as the rest does, see `rose.layer.agreement`

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
    return change_by_rows([(before, after)], (before.shape[0], before.shape[1]), lambda: (before, after))


def change_by_rows(
    pairs: Iterable[tuple[Tensor, Tensor]],
    shape: tuple[int, int],
    whole: Callable[[], tuple[Tensor, Tensor]] | None = None,
) -> WeightChange:
    """Compares two matrices that come in runs of rows.

    Args:
        pairs: runs of W and V, (rows, in) each.
        shape: (out, in).
        whole: gives W and V, to seek `misfits` and `fate`; without it they are not sought.
    """
    sums = _Sums(shape)
    for dense, pruned in pairs:
        sums.add(dense.float(), pruned)
    facts, nonzeros = vars(sums.facts.result()), shape[0] * shape[1] - sums.zeros
    energies, gaps = ([sums.by(axis, name) for axis in (0, 1)] for name in ("energy", "gap"))
    length, pruned_length = energies[0].sum().sqrt().item(), facts["row_norms"].double().norm().item()
    gap, product = gaps[0].sum().sqrt().item(), sums.product
    cosine, slope = (
        (product / (length * pruned_length), product / length**2) if length and pruned_length else (0.0, 1.0)
    )
    live = [sums.by(axis, "live") for axis in (0, 1)]
    rounded = next(iter(sums.formats), None) if sums.differ and gap < ROUNDING * length else None
    moved = 0.0 if rounded else sums.differ / max(1, nonzeros)
    change = WeightChange(
        **facts | {"grid": facts["grid"] if moved > 0.5 else None},
        zeros_before=sums.zeros_before,
        refilled=sums.refilled,
        empty_rows=tuple(row for row in facts["zero_rows"] if live[0][row]),
        empty_columns=tuple(column for column in facts["zero_columns"] if live[1][column]),
        moved=moved,
        rounded=rounded,
        change=gap / length if length else 0.0,
        row_change=_share(gaps[0], energies[0]),
        column_change=_share(gaps[1], energies[1]),
        cosine=cosine if sums.differ else float(length > 0),
        slope=slope if sums.differ else 1.0,
    )
    if whole is None or not (sums.differ or change.zeros > change.zeros_before):
        return change
    matrices = whole()
    fate = whole_fate(*matrices) if pruned_length and length and change.cosine < UNLIKE else None
    return replace(change, fate=fate, misfits=misfits(*matrices))


class _Sums:
    """Gathers from runs of rows what W and V, or W and V's nonzeros, have in common."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.facts = FactsOf(shape)
        self.zeros = self.zeros_before = self.refilled = self.differ = 0  # of V with NaN and infinity, of W, …
        self.product = 0.0
        self.formats = dict(FORMATS)  # in which all of V's nonzeros so far are W
        self.rows: dict[str, list[Tensor]] = {"energy": [], "gap": [], "live": []}
        self.columns: dict[str, Tensor] = {}

    def add(self, dense: Tensor, after: Tensor) -> None:
        pruned = self.facts.add(after)
        zero, zero_before = pruned == 0, dense == 0
        dense_kept = dense.masked_fill(zero, 0)
        zeros_before, differ = count(zero_before), count(pruned != dense_kept)
        self.zeros += count(zero)
        self.zeros_before += zeros_before
        self.refilled += count(zero_before & ~zero) if zeros_before else 0
        self.differ += differ
        self.product += torch.dot(pruned.flatten(), dense_kept.flatten()).item()
        sums = {"energy": dense_kept.square(), "gap": (pruned - dense_kept).square(), "live": (~zero_before).float()}
        for name, matrix in sums.items():
            self.rows[name].append(matrix.sum(1))
            self.columns[name] = matrix.sum(0).double() + self.columns.get(name, 0)
        if differ:
            is_near = self.rows["gap"][-1].sum() < ROUNDING**2 * self.rows["energy"][-1].sum()
            formats = self.formats.items() if is_near else ()
            self.formats = {name: dtype for name, dtype in formats if torch.equal(dense_kept.to(dtype).float(), pruned)}

    def by(self, axis: int, name: str) -> Tensor:
        """Sums of rows (axis 0) or columns (axis 1)."""
        return torch.cat(self.rows[name]).double() if axis == 0 else self.columns[name]


def _share(gap: Tensor, energy: Tensor) -> Tensor:
    """sqrt(gap / energy); 0 where nothing has changed, infinite where nothing was."""
    return torch.where(gap > 0, gap / energy, 0).sqrt().float()


@dataclass(frozen=True)
class Removal:
    """How much two masks have in common.

    Attributes:
        jaccard: |A ∩ B| / |A ∪ B|; 1 where nothing is removed in either.
        chance: what two random masks of these sizes would have.
    """

    jaccard: float
    chance: float


def same_removed(first: Tensor, second: Tensor) -> Removal:
    """Compares two masks of one shape, True = removed."""
    both, either = int((first & second).sum()), int((first | second).sum())
    a, b = float(first.float().mean()), float(second.float().mean())
    joined = a + b - a * b
    return Removal(both / either if either else 1.0, a * b / joined if joined else 1.0)
