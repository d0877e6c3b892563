"""Facts of one weight matrix (zeros, grid, norms), and how V, pruned, tuned, merged or quantized, differs from W.

Nothing here depends on how V was made. V may come in runs of rows, so that a large matrix is never whole in memory.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rose.errors import RoseError
from rose.model.check.agreement import Misfit, misfits, whole_fate

GROUPS = (2, 4, 8, 16, 32)  # M of the N:M patterns that are tried
NEARLY = 0.95  # least share of groups that keep exactly N; all other groups break the pattern
BLOCK = 128  # columns of a block, in SparseGPT's and ROSE's programs and here
GRIDS = ("row", 128, 64, 32)  # columns that share a scale, the coarsest first
LEVELS = (4, 8, 16, 32, 64, 256)  # values of grids of 2, 3, 4, 5, 6 and 8 bits
TELLING = 8  # fewest nonzeros of a group that show a grid, and fewest such groups
COMMON = 32  # columns of a group in which a common value is counted
SAMPLED_ROWS, FEW_ROWS = 64, 16  # rows in which grids are sought, and rows that can rule a grid out
FORMATS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
STANDS_OUT = 4.0  # times the median norm, or a quarter of it


@dataclass(frozen=True)
class FoundPattern:
    """The pattern of zeros: "none" without zeros, "N:M", "row" (all rows have equally many zeros, up to one, and at
    least one), "block" (all blocks of 128 columns do), or "layer"."""

    name: str
    keep: int = 0  # N of N:M, at most N nonzeros in every M consecutive input columns; 0 for other patterns
    of: int = 0  # M
    broken: int = 0  # groups with more than N nonzeros
    first_broken: tuple[int, int] | None = None  # row and first column of the first such group

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}" if self.name == "N:M" else self.name


@dataclass(frozen=True)
class FoundGrid:
    """Nonzeros that take few values: at most `levels` in one group of `group` columns, or of a whole row for None."""

    levels: int
    group: int | None


@dataclass(frozen=True)
class WeightFacts:
    """Facts of a matrix V, (out, in); all except `not_finite` are of its finite entries."""

    shape: tuple[int, int]
    not_finite: int  # entries that are NaN or infinite
    zeros: int
    pattern: FoundPattern  # of the zeros
    grid: FoundGrid | None  # of the nonzeros
    format_of_16_bits: str | None  # that stores all entries of some sampled rows exactly
    common: float  # mean share of 32 columns with one common value other than 0, as on a grid with an offset
    largest: float  # magnitude
    largest_at: tuple[int, int]  # row and column of the first such weight
    row_norms: Tensor  # (out,)
    column_norms: Tensor  # (in,)
    zero_rows: tuple[int, ...]  # numbers of rows without a nonzero
    zero_columns: tuple[int, ...]

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return self.zeros / self.size

    @property
    def norm(self) -> float:
        return float(self.row_norms.norm())

    @property
    def odd_rows(self) -> list[int]:
        """Numbers of rows whose norm is more than `STANDS_OUT` times the median or less than its inverse, and not 0."""
        return _odd(self.row_norms)

    @property
    def odd_columns(self) -> list[int]:
        return _odd(self.column_norms)


def _odd(norms: Tensor) -> list[int]:
    live = norms > 0
    usual = norms[live].median() if live.any() else 0
    return (live & ((norms > STANDS_OUT * usual) | (norms < usual / STANDS_OUT))).nonzero().flatten().tolist()


def weight_facts(runs: Iterable[Tensor], shape: tuple[int, int]) -> WeightFacts:
    """The facts of a matrix that comes in runs of rows, (rows, in) each."""
    facts = FactsOf(shape)
    for run in runs:
        facts.add(run)
    return facts.result()


class FactsOf:
    """Gathers `WeightFacts` from runs of rows."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape, self.at, self.not_finite, self.zeros = shape, 0, 0, 0
        self.row_norms: list[Tensor] = []
        self.squares: Tensor | None = None  # by column, float64
        self.nonzero: Tensor | None = None  # whether a column has a nonzero
        self.zero_rows: list[int] = []
        self.mask: Tensor | None = None  # of zeros, once there are any
        self.largest, self.largest_at = -1.0, (0, 0)
        self.sample: list[Tensor] = []
        self.sampled = _places(shape[0], SAMPLED_ROWS)

    def add(self, run: Tensor) -> Tensor:
        """Adds rows, and returns them in float32 with 0 for NaN and infinity."""
        values, rows = run.float(), slice(self.at, self.at + len(run))
        lowest, highest = torch.aminmax(values) if values.numel() else (torch.zeros(()), torch.zeros(()))
        broken = None
        if not bool((highest - lowest).isfinite()) and not values.isfinite().all():
            broken = ~values.isfinite()
            self.not_finite += count(broken)
            values = values.masked_fill(broken, 0)
            lowest, highest = torch.aminmax(values)
        if (largest := max(float(highest), -float(lowest))) > self.largest:
            place = int((values if largest == float(highest) else -values).argmax())
            self.largest, self.largest_at = largest, (self.at + place // self.shape[1], place % self.shape[1])
        self._count_zeros(values == 0, broken, rows)
        self.row_norms.append(torch.linalg.vector_norm(values, dim=1))
        squares = values.square().sum(0).double()
        self.squares = squares if self.squares is None else self.squares + squares
        self.sample.append(values[self.sampled[(self.sampled >= rows.start) & (self.sampled < rows.stop)] - self.at])
        self.at = rows.stop
        return values

    def _count_zeros(self, zero: Tensor, broken: Tensor | None, rows: slice) -> None:
        if zeros := count(zero):
            self.zero_rows += (rows.start + zero.all(1).nonzero().flatten()).tolist()
        nonzero = ~zero.all(0) if zeros else torch.ones_like(zero[0])
        self.nonzero = nonzero if self.nonzero is None else self.nonzero | nonzero
        if broken is not None:
            zero = zero & ~broken
            zeros = count(zero)
        self.zeros += zeros
        if zeros:
            if self.mask is None:
                self.mask = torch.zeros(self.shape, dtype=torch.bool, device=zero.device)
            self.mask[rows] = zero

    def result(self) -> WeightFacts:
        assert self.squares is not None
        assert self.nonzero is not None
        sample = torch.cat(self.sample)
        return WeightFacts(
            shape=self.shape,
            not_finite=self.not_finite,
            zeros=self.zeros,
            pattern=FoundPattern("none") if self.mask is None else find_pattern(self.mask),
            grid=apparent_grid(sample),
            format_of_16_bits=rounded_to(sample, sample),
            common=common_value(sample),
            largest=max(self.largest, 0.0),
            largest_at=self.largest_at,
            row_norms=torch.cat(self.row_norms),
            column_norms=self.squares.sqrt().float(),
            zero_rows=tuple(self.zero_rows),
            zero_columns=tuple((~self.nonzero).nonzero().flatten().tolist()),
        )


def count(mask: Tensor) -> int:
    """Counts True; NumPy counts bytes at once, ten times as fast as a sum."""
    return int(np.count_nonzero(mask.numpy())) if mask.device.type == "cpu" else int(mask.sum())


def rounded_to(before: Tensor, after: Tensor) -> str | None:
    """The format of 16 bits in which V is W rounded; None if V is not."""
    return next((name for name, dtype in FORMATS.items() if torch.equal(before.to(dtype).float(), after.float())), None)


def find_pattern(mask: Tensor) -> FoundPattern:
    """The narrowest pattern that a mask, (out, in), True = zero, follows or nearly follows."""
    sample = some_rows(mask)  # a few rows nearly always rule a pattern out
    for of in GROUPS:
        pattern = _grouped(sample, of) and _grouped(mask, of)
        if pattern:
            return pattern
    columns, by_row, by_column = mask.shape[1], [], torch.zeros(mask.shape[1], device=mask.device)
    for run in mask.split(1024):  # a run at a time, because float32 takes four times the memory of a mask
        run = run.float()
        by_row.append(run.sum(1))
        by_column += run.sum(0)
    rows = torch.cat(by_row)
    # If some rows or blocks have no zeros, zeros are too few to show a pattern.
    if len(rows) > 1 and int(rows.max() - rows.min()) <= 1 and int(rows.min()) > 0 and int(rows.max()) < columns:
        return FoundPattern("row")
    if columns >= 2 * BLOCK:
        blocks = by_column[: columns // BLOCK * BLOCK].unflatten(0, (-1, BLOCK)).sum(1)
        if int(blocks.max() - blocks.min()) <= 1 and int(blocks.min()) > 0 and int(blocks.max()) < BLOCK * len(mask):
            return FoundPattern("block")
    return FoundPattern("layer")


def _grouped(mask: Tensor, of: int) -> FoundPattern | None:
    """N:M for this M, if nearly all groups keep the same N; weights that were 0 already may leave fewer."""
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
    """The grid of fewest levels that nonzero weights, (out, in), lie on, with a scale for each row or group of columns.

    Symmetric grids are multiples of a step, found by division by the largest weight. Other grids are found by their few
    values, if clearly more nonzeros than values are there.
    """
    grids = []
    for group in GRIDS:
        columns = weight.shape[1] if group == "row" else int(group)
        if weight.shape[1] % columns == 0 and (group == "row" or columns < weight.shape[1]):
            # Most weights lie on no grid, and a few rows show that.
            groups, sample = (some_rows(weight, most).reshape(-1, columns) for most in (FEW_ROWS, SAMPLED_ROWS))
            levels = (_multiples(groups) or _few_values(groups)) and (_multiples(sample) or _few_values(sample))
            grids += [FoundGrid(levels, None if group == "row" else columns)] if levels else []
    return min(grids, key=lambda grid: grid.levels, default=None)


def _places(rows: int, most: int) -> Tensor:
    return torch.linspace(0, rows - 1, min(most, rows), dtype=torch.float32).long()


def some_rows(matrix: Tensor, most: int = SAMPLED_ROWS) -> Tensor:
    """Up to `most` rows, evenly spaced."""
    return matrix[_places(len(matrix), most).to(matrix.device)]


def _multiples(parts: Tensor) -> int | None:
    """Levels of the symmetric grid whose multiples are the nonzeros of nearly all groups, (groups, columns)."""
    parts = parts[(parts != 0).sum(1) >= TELLING]
    if len(parts) < TELLING:
        return None
    scaled, fits = parts / parts.abs().amax(1, keepdim=True), torch.zeros(len(parts), dtype=torch.bool)
    for steps in (*range(1, 17), 127, 128):
        multiple = scaled * steps
        # A format of 16 bits rounds the weight itself, which matters if a grid has many steps.
        fits |= ((multiple - multiple.round()).abs().amax(1) <= 0.02 + steps * (2**-8 if steps <= 16 else 2**-13)).cpu()
        if fits.float().mean() >= NEARLY:
            return next(levels for levels in LEVELS if 2 * steps <= levels)
    return None


def _few_values(parts: Tensor) -> int | None:
    """Levels of a grid with an offset: the most different values of any group, (groups, columns)."""
    places, levels = int((parts != 0).sum(1).median()), None
    for some in (parts[:TELLING], parts):  # a few groups nearly always have too many values
        values = 1 + int((some.sort(1).values.diff(dim=1) != 0).sum(1).max())
        levels = next((levels for levels in LEVELS if values <= levels and 2 * levels <= places), None)
        if levels is None:
            break
    return levels


def common_value(weight: Tensor) -> float:
    """Mean share of 32 columns that hold their most frequent value: 1/32 without a grid; 0 if that value is 0."""
    if weight.shape[1] % COMMON:
        return 0.0
    groups = some_rows(weight).reshape(-1, COMMON)
    value = groups.mode(1).values
    share = (groups == value[:, None]).float().mean(1)
    return float(torch.where(value == 0, 0, share).mean())


UNLIKE = 0.3  # cosine below which two vectors of weights have nothing to do with each other
ROUNDING = 2**-8  # relative rounding of a weight in bfloat16


@dataclass(frozen=True)
class WeightChange(WeightFacts):
    """The facts of V, (out, in), and how it differs from W. `grid` is None where most kept weights did not move."""

    zeros_before: int  # of W
    refilled: int  # zeros of W where V has a weight
    empty_rows: tuple[int, ...]  # all zero in V, but not in W
    empty_columns: tuple[int, ...]
    moved: float  # share of V's nonzeros that differ from W; 0 where all are W rounded
    rounded: str | None  # the format of 16 bits in which V's nonzeros equal W
    change: float  # ‖V − W‖/‖W‖ over V's nonzeros
    row_change: Tensor  # the same by row, (out,)
    column_change: Tensor  # by column, (in,)
    cosine: float  # of the angle between V and W over V's nonzeros; 0 where V has none
    slope: float  # of V on W over V's nonzeros; 1 where V has none
    fate: str | None = None  # why the layer is unlike W, see `rose.model.check.agreement.whole_fate`
    misfits: tuple[Misfit, ...] = ()  # parts that differ from W more than the rest does, see `x

    @property
    def is_untouched(self) -> bool:
        """Whether V is W, or W in a format of 16 bits, with the same zeros."""
        return self.not_finite == 0 and self.moved == 0 and self.zeros == self.zeros_before and self.refilled == 0


def weight_change(before: Tensor, after: Tensor) -> WeightChange:
    """Compares W, finite, and V, which may hold NaN and infinity, (out, in) each. Raises RoseError for other shapes."""
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
    """Compares two matrices, (out, in), that come in runs of W and V, (rows, in) each; `whole` gives both, to seek
    `misfits` and `fate`, which are not sought without it."""
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
    """Sums over runs of rows from which `WeightChange` is computed."""

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
    """sqrt(gap / energy); 0 if the gap is 0, infinite if only the energy is 0."""
    return torch.where(gap > 0, gap / energy, 0).sqrt().float()


@dataclass(frozen=True)
class Overlap:
    """The overlap of two masks."""

    jaccard: float  # |A ∩ B| / |A ∪ B|; 1 where nothing is removed in either
    chance: float  # the same for two random masks of these sizes


def same_removed(first: Tensor, second: Tensor) -> Overlap:
    """Compares two masks of one shape, True = removed."""
    both, either = int((first & second).sum()), int((first | second).sum())
    a, b = float(first.float().mean()), float(second.float().mean())
    joined = a + b - a * b
    return Overlap(both / either if either else 1.0, a * b / joined if joined else 1.0)
