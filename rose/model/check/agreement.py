"""Parts of a layer that do not follow the dense weights as the rest of the layer does: rows, columns, tiles, weights.

V, (out, in), is compared with W where V is not zero. Compensation moves all weights of a column for the same reason, as
H couples columns and not rows. So each residual is divided by the variance s² of residuals in its column, and a row is
compared with W by weighted least squares:

    cosine = Σ v w / s² / sqrt(Σ v²/s² · Σ w²/s²)      slope = Σ v w / s² / Σ w²/s²

The tangent of its angle is compared with the layer's median tangent. Columns have no such variances, and the column of
a massive activation may reverse lawfully, because only its joint output with another column is determined. So a column
is wrong only if other weights explain it. All limits come from sane copies: see docs/check.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log

import torch
from torch import Tensor
from torch.nn.functional import pad

ROW, COLUMN, TILE, WEIGHT = "row", "column", "tile", "weight"
NEGATED, OTHERS, OTHERS_NEGATED, SHIFTED, REVERSED, CONSTANT, SCALED, UNLIKE_DENSE, EMPTY, COUNT, CHANGED, ABSURD = (
    *("negated", "another one's", "another one's, negated", "shifted", "reversed", "constant", "scaled", "unlike"),
    *("empty", "other count", "changed", "absurd"),
)
CORRECTED = (UNLIKE_DENSE, NEGATED)  # a correction towards the dense model may look like these
# Fewest kept weights that show a direction: where weights moved; in a tile, or where they stayed.
TELLING, FEW = 16, 4
STILL, MOVED = 2**-7, 0.1  # least relative residuals judged: where weights stayed, where they moved
ROW_ANGLE, COLUMN_ANGLE = 15.0, 12.0  # least tangents of wrong rows and odd columns, over the layer's median
ROW_SCALE, COLUMN_SCALE, TOO_LARGE = 2.0, 4.0, 6.0  # logarithm of a slope, by tangent; the last is never lawful
COLUMNS_LAWFUL = 0.02  # share of a layer's columns that may reverse
NEGATIVE = {(1, 32): 20.0, (1, 128): 20.0, (32, 32): 20.0, (128, 128): 20.0}  # Σ −v w / s² of a tile
RESIDUAL = {(32, 32): 8.0, (128, 128): 5.0}  # mean r² / s² of a tile
ONE_RESIDUAL, SEVERAL = 1000.0, 3  # r² / s² of a changed weight where weights stayed; fewest such weights in a tile
LAYER = 0.3  # cosine of a whole layer below which no part is judged
LARGEST = 16.0  # times the largest dense weight
PRIOR = 8  # weights with the layer's mean variance that are added to each column
EXPLAINED, TRADED = 0.7, 0.85  # least cosines with weights that explain a part, and a column where weights moved
CHANCE = 5.0  # standard deviations of a cosine of random directions
SEARCHED = 512  # most parts of a kind that are searched
LIKE = 4.0  # over the layer's median tangent: another scale, the same direction
LIKE_ITSELF = 1.0  # logarithm of a slope, by tangent: a column that was negated and not compensated
MOSTLY = 0.6  # least share of opposite signs in a negated part
SAME_SIGN = 0.75  # share of signs that must agree with the weights that explain a part
ITS_OWN = 0.5  # absolute cosine above which a part still holds its dense weights
PIECE = 0.3  # least share of a row's or column's kept weights that makes it odd
SAME_COUNT = 0.9  # share of rows that keep the same number of weights
SAMPLED, NEARLY = 64, 0.95  # rows sampled from a whole layer, and the share that must agree
GROWN = 1.3  # norm of a row over its dense norm, relative to the layer's median
SHOWN = 8  # most rectangles that are reported
EMPTIED = 4  # fewest dense weights of an empty row above the mean kept weight of their column


@dataclass(frozen=True)
class Misfit:
    """A part of V that does not follow W."""

    kind: str  # a word of those above
    axis: str  # ROW, COLUMN, TILE or WEIGHT
    rows: tuple[int, int]  # first and last
    columns: tuple[int, int]
    kept: int  # nonzeros of V
    opposite: int = 0  # nonzeros of V with the opposite sign in W
    cosine: float = 0.0  # between V and W
    factor: float = 1.0  # slope of V on W, relative to the layer's slope
    source: int | None = None  # the row or column of W that is now the first row or column of the part
    shift: int = 0  # how far: columns to the right for a row, rows down for a column
    value: float = 0.0  # of CONSTANT and WEIGHT
    dense: float = 0.0  # of WEIGHT: its value in W, or for ABSURD the largest value of W
    may_be_lawful: bool = False  # whether weights alone cannot distinguish it from compensation


@torch.no_grad()
def misfits(before: Tensor, after: Tensor) -> tuple[Misfit, ...]:
    """Parts of V that stand out from the rest of the layer, the largest first. W is finite; V, (out, in) as W, is on
    the same device, and its NaN and infinity count as removed."""
    pruned, dense = torch.nan_to_num(after.float(), 0, 0, 0), before.float()
    if not dense.any():
        return ()
    absurd = pruned.abs() > LARGEST * dense.abs().amax()
    parts = [_weight(ABSURD, pruned, dense.abs().amax().expand_as(dense), place) for place in _first(absurd)]
    pruned = pruned.masked_fill(absurd, 0)
    if not pruned.any() or _cosine(pruned, torch.where(pruned == 0, 0, dense)) < LAYER:
        return tuple(parts)  # `whole_fate` is about such layers
    layer = _Layer.of(dense, pruned)
    rows = layer.odd_rows()
    layer = layer.without(rows, 0)
    columns = layer.odd_columns()
    empty = _empty_rows(dense, pruned)
    reported = {*rows.tolist(), *(row for part in empty for row in range(part.rows[0], part.rows[1] + 1))}
    parts += empty + _other_counts(pruned, reported)
    parts += _named(ROW, layer, dense, pruned, rows) + _named(COLUMN, layer, dense, pruned, columns)
    layer = layer.without(columns, 1)
    tiles = layer.odd_tiles()
    parts += _tiles(layer, tiles)
    if layer.is_still:
        odd = layer.changed & ~tiles.repeat_interleave(32, 1)[:, : dense.shape[1]]
        parts += [_weight(CHANGED, layer.pruned, layer.dense, place) for place in _first(odd)]
    # Grown rows may be lawful: where a row writes into a massive channel of the residual stream, a correction towards
    # the dense model can exceed the row's own weights.
    growth = pruned.norm(dim=1) / dense.norm(dim=1).clamp_min(1e-30)
    grown = growth > GROWN * growth.median()
    for number, part in enumerate(parts):
        may_grow = not layer.is_still and part.axis != COLUMN and (part.axis == TILE or part.kind in CORRECTED)
        if may_grow and bool(grown[part.rows[0] : part.rows[1] + 1].all()):
            parts[number] = replace(part, may_be_lawful=True)
    return tuple(sorted(parts, key=lambda misfit: (misfit.may_be_lawful, -misfit.kept)))


@dataclass(frozen=True)
class _Layer:
    """V and W where V keeps weights, and how much the columns of this layer vary."""

    # dense, pruned: W where V is not zero, and V, (out, in); zero in rows and columns that were taken out
    dense: Tensor
    pruned: Tensor
    moved: Tensor  # kept weights that differ from W and from W rounded to 16 bits, (out, in) bool
    is_still: bool  # whether most rows or most columns have no moved weight
    slope: float  # of V on W over ordinary rows
    variance: Tensor  # of residuals V − slope · W by column, (in,)

    @classmethod
    def of(cls, dense: Tensor, pruned: Tensor) -> _Layer:
        dense = torch.where(pruned == 0, 0, dense)
        moved = pruned != dense
        for dtype in (torch.bfloat16, torch.float16):
            moved &= pruned != dense.to(dtype).float()
        is_still = max(float((~moved.any(axis)).float().mean()) for axis in (0, 1)) > 0.5
        energy, product = dense.square().sum(1), (dense * pruned).sum(1)
        live = energy > 0
        slope = float((product / energy)[live].median()) if live.any() and not is_still else 1.0
        layer = cls(dense, pruned, moved, is_still, slope, dense[0])
        residual = (pruned - slope * dense).square().sum(1) / energy.clamp_min(1e-30)
        usual = float(residual[live].quantile(0.3)) if live.any() else 0.0
        return layer._fitted(residual <= 10 * (usual + layer.floor**2))

    @property
    def floor(self) -> float:
        """Relative residual below which nothing is judged."""
        return STILL if self.is_still else MOVED

    def _fitted(self, ordinary: Tensor) -> _Layer:
        """The same layer with slope and variance fitted to the `ordinary` rows, (out,) bool."""
        dense, pruned = (self.dense, self.pruned) if ordinary.all() else (self.dense[ordinary], self.pruned[ordinary])
        squares, counts = (pruned - self.slope * dense).square().sum(0), (pruned != 0).sum(0)
        total = counts.sum().clamp_min(1)
        variance = (self.floor**2 * dense.square().sum() / total).expand_as(squares)
        if not self.is_still:
            variance = variance + (squares + PRIOR * squares.sum() / total) / (counts + PRIOR)
        return replace(self, variance=variance.clamp_min(1e-30))

    def without(self, numbers: Tensor, axis: int) -> _Layer:
        """The layer without these rows (axis 0) or columns (axis 1), with the variance of all other rows."""
        ordinary = torch.ones(self.dense.shape[axis], dtype=torch.bool, device=self.dense.device)
        ordinary[numbers] = False
        left = ordinary[:, None] if axis == 0 else ordinary
        layer = replace(self, dense=self.dense * left, pruned=self.pruned * left) if len(numbers) else self
        return layer._fitted(ordinary) if axis == 0 else layer

    def _fits(self, axis: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tangent, slope, Σ v w, and whether enough weights remain, of weighted rows (axis 1) or columns (axis 0)."""
        pairs = ((self.dense, self.dense), (self.dense, self.pruned), (self.pruned, self.pruned))
        if axis == 1:
            energy, product, square = ((x * y) @ (1 / self.variance) for x, y in pairs)
        else:
            energy, product, square = ((x * y).sum(0) for x, y in pairs)
        tangent, counts = _tangent(product / (energy * square).sqrt().clamp_min(1e-30)), (self.pruned != 0).sum(axis)
        return tangent, product / energy.clamp_min(1e-30), product, counts >= (FEW if self.is_still else TELLING)

    @property
    def tangent(self) -> float:
        """The median tangent of the angles between columns of V and W."""
        tangent, _, _, enough = self._fits(0)
        return float(tangent[enough].median()) if enough.any() else 0.0

    def odd_rows(self) -> Tensor:
        """Numbers of rows whose direction or scale differs from the layer's."""
        tangent, slope, product, enough = self._fits(1)
        opposite, counts = (self.dense * self.pruned < 0).sum(1), (self.pruned != 0).sum(1)
        odd = (-product > NEGATIVE[1, 128]) & (opposite > MOSTLY * counts) & (counts >= FEW)
        if enough.any():
            scale = (slope.abs() / slope.abs()[enough].median()).clamp_min(1e-6).log().abs()
            usual = tangent[enough].median() + self.floor
            odd |= enough & ((tangent > ROW_ANGLE * usual) | (scale > ROW_SCALE * (tangent + self.floor)))
        return self._whole(odd, 1)

    def odd_columns(self) -> Tensor:
        """Numbers of columns whose direction or scale differs from the layer's."""
        tangent, slope, _, enough = self._fits(0)
        if not enough.any():
            return self._whole(enough, 0)
        odd = tangent > COLUMN_ANGLE * (tangent[enough].median() + self.floor)
        limit = ROW_SCALE if self.is_still else COLUMN_SCALE
        odd |= (slope.abs() / slope.abs()[enough].median()).log().abs() > limit * (tangent + self.floor)
        return self._whole(enough & odd, 0)

    def _whole(self, odd: Tensor, axis: int) -> Tensor:
        """Numbers of odd rows or columns; where weights stayed, only if more than a `PIECE` of their weights moved."""
        if self.is_still:
            odd = odd & (self.moved.sum(axis) > PIECE * (self.pruned != 0).sum(axis))
        return odd.nonzero().flatten()

    @property
    def residual(self) -> Tensor:
        """r² / s², (out, in)."""
        return (self.pruned - self.slope * self.dense).square() / self.variance

    @property
    def changed(self) -> Tensor:
        """Kept weights that differ from W, (out, in) bool; rounding to 16 bits does not count."""
        return self.moved & (self.residual > ONE_RESIDUAL)

    def odd_tiles(self) -> Tensor:
        """The runs of 32 columns that lie in a tile of another direction, (out, runs) bool."""
        if self.is_still:
            return _runs(self.changed.float()) >= SEVERAL
        negative = -(self.dense * self.pruned) / self.variance
        matrices = ((self.pruned != 0).float(), (negative > 0).float(), negative, self.residual)
        runs = [_runs(matrix) for matrix in matrices]
        # A whole row may lawfully move more than its neighbours: its residuals are relative to its usual residual.
        usual = (runs[3] / runs[0].clamp_min(1)).median(1, keepdim=True).values.clamp_min(1)
        nearby = pad(usual, (0, 0, 0, -len(usual) % 32), value=1).unflatten(0, (-1, 32)).median(1).values
        runs[3] = runs[3] / (usual / nearby.repeat_interleave(32, 0)[: len(usual)]).clamp_min(1)
        odd = torch.zeros_like(runs[0], dtype=torch.bool)
        for (rows, columns), limit in NEGATIVE.items():
            sizes, opposite, backward, residual = (_tile_sums(run, rows, columns // 32) for run in runs)
            is_odd = (backward > limit) & (opposite > MOSTLY * sizes)
            is_odd |= residual > RESIDUAL.get((rows, columns), torch.inf) * (sizes + PRIOR)
            is_odd &= sizes >= FEW
            odd |= is_odd.repeat_interleave(rows, 0).repeat_interleave(columns // 32, 1)[: len(odd), : odd.shape[1]]
        return odd & (runs[0] > 0)


def _first(mask: Tensor) -> Tensor:
    return mask.nonzero()[:SEARCHED]


def _tangent(cosine: Tensor) -> Tensor:
    """Of the angle; infinite from 90 degrees on."""
    return torch.where(cosine > 0, (1 - cosine**2).clamp_min(0).sqrt() / cosine.clamp_min(1e-9), torch.inf)


def _cosine(first: Tensor, second: Tensor) -> float:
    first, second = first.flatten(), second.flatten()
    return float(first @ second / (first.norm() * second.norm()).clamp_min(1e-30))


def _runs(matrix: Tensor) -> Tensor:
    """Sums of 32 neighbouring columns, (out, runs)."""
    return pad(matrix, (0, -matrix.shape[1] % 32)).unflatten(1, (-1, 32)).sum(2)


def _tile_sums(runs: Tensor, rows: int, columns: int) -> Tensor:
    padded = pad(runs, (0, -runs.shape[1] % columns, 0, -len(runs) % rows))
    return padded.unflatten(1, (-1, columns)).sum(2).unflatten(0, (-1, rows)).sum(1)


def _weight(kind: str, pruned: Tensor, dense: Tensor, place: Tensor) -> Misfit:
    row, column = place.tolist()
    value, other = float(pruned[row, column]), float(dense[row, column])
    return Misfit(kind, WEIGHT, (row, row), (column, column), 1, int(value * other < 0), value=value, dense=other)


def _part(
    axis: str, rows: tuple[int, int], columns: tuple[int, int], dense: Tensor, pruned: Tensor, slope: float
) -> Misfit:
    """Measures a part; `dense` and `pruned` are its weights in W and V, flat."""
    dense = torch.where(pruned == 0, 0, dense)
    product, energy = float(dense @ pruned), float(dense @ dense)
    return Misfit(
        UNLIKE_DENSE,
        axis,
        rows,
        columns,
        kept=int((pruned != 0).sum()),
        opposite=int((dense * pruned < 0).sum()),
        cosine=_cosine(pruned, dense),
        factor=product / max(energy, 1e-30) / slope,
    )


def _named(axis: str, layer: _Layer, dense: Tensor, pruned: Tensor, numbers: Tensor) -> list[Misfit]:
    """Names the fault of each of these rows or columns; neighbours with the same fault are joined."""
    if not len(numbers):
        return []
    if axis == COLUMN:
        dense, pruned = dense.T, pruned.T
    numbers = numbers[:SEARCHED]
    may_turn = axis == COLUMN and len(numbers) <= max(1, COLUMNS_LAWFUL * len(dense))
    least = TRADED if axis == COLUMN and not layer.is_still else EXPLAINED
    sources, shifts = _source(dense, pruned[numbers]), _shift(dense[numbers], pruned[numbers])
    parts, tangent, along = [], layer.tangent, (0, dense.shape[1] - 1)
    for place, number in enumerate(numbers.tolist()):
        vector, row = pruned[number], dense[number]
        across = (number, number)
        rows, columns = (across, along) if axis == ROW else (along, across)
        part = _part(axis, rows, columns, row, vector, layer.slope)
        source, likeness, shift = int(sources[0][place]), float(sources[1][place]), int(shifts[0][place])
        kind, other = (OTHERS, dense[source]) if likeness > 0 else (OTHERS_NEGATED, -dense[source])
        explanations = {
            replace(part, kind=kind, source=source): other,
            replace(part, kind=SHIFTED, shift=shift): row.roll(shift),
            replace(part, kind=REVERSED): row.flip(0),
        }
        part = _explained(part, vector, least, explanations)
        parts.append(_by_angle(part, layer, tangent, may_turn) if part.kind == UNLIKE_DENSE else part)
    return _joined(parts)


def _by_angle(part: Misfit, layer: _Layer, usual: float, may_turn: bool) -> Misfit:
    """Names a row or column that no other weights explain: negated, scaled, or unlike its dense weights."""
    tangent = float(_tangent(torch.tensor(abs(part.cosine))))
    usual += layer.floor
    if part.cosine < -ITS_OWN and tangent < (ROW_ANGLE if part.axis == ROW else COLUMN_ANGLE) * usual:
        is_whole = abs(log(max(abs(part.factor), 1e-9))) < LIKE_ITSELF * (tangent + layer.floor)
        is_whole &= part.opposite > SAME_SIGN * part.kept
        return replace(part, kind=NEGATED, may_be_lawful=may_turn and not is_whole)
    if part.cosine > ITS_OWN and tangent < max(LIKE * usual, 2 * layer.floor):
        is_too_large = abs(log(max(part.factor, 1e-9))) > TOO_LARGE * (tangent + layer.floor)
        return replace(part, kind=SCALED, may_be_lawful=may_turn and not is_too_large)
    return replace(part, may_be_lawful=may_turn and (not layer.is_still or part.cosine > ITS_OWN))


def _explained(part: Misfit, vector: Tensor, least: float, explanations: Mapping[Misfit, Tensor]) -> Misfit:
    """Names a row or column whose weights are all equal, or come from another part of W; else returns it unchanged.

    Weights explain it if their cosine is above `least`; `explanations`: the part as it would be named -> weights."""
    mask = vector != 0
    if part.kept > 1 and bool((vector[mask] == vector[mask][0]).all()):
        return replace(part, kind=CONSTANT, value=float(vector[mask][0]))
    needed = max(least, abs(part.cosine) + 0.4, CHANCE * max(1, part.kept) ** -0.5)
    for other, dense in explanations.items():
        # A cosine alone can come from a few large weights.
        same_sign = float((vector * dense > 0).sum()) / max(1, part.kept)
        if _cosine(vector, torch.where(mask, dense, 0)) > needed and same_sign > SAME_SIGN:
            return other
    return part


def whole_fate(before: Tensor, after: Tensor) -> str | None:
    """Why a layer V is unlike W, (out, in) each, as the end of a sentence; None if unknown. A sample decides."""
    dense, pruned = before.float(), torch.nan_to_num(after.float(), 0, 0, 0)
    mask = pruned != 0
    if _cosine(pruned, torch.where(mask, dense, 0)) < -EXPLAINED:
        return "has the opposite sign"
    if dense.shape[0] == dense.shape[1] and _cosine(pruned, torch.where(mask, dense.T, 0)) > EXPLAINED:
        return "is the dense layer's transpose"
    for axis, first, second in (("row", dense, pruned), ("column", dense.T, pruned.T)):
        places = torch.linspace(0, len(first) - 1, min(SAMPLED, len(first)), dtype=torch.float64).long()
        places = places.to(dense.device)
        shift, at_shift = _shift(first[places], second[places])
        if float((at_shift > EXPLAINED).float().mean()) > NEARLY and len(shift.unique()) == 1:
            return f"has every {axis} shifted by {abs(int(shift[0]))}"
        source, likeness = _source(first, second[places])
        if float((likeness > EXPLAINED).float().mean()) > NEARLY and len(source.unique()) > NEARLY * len(places):
            return f"has the dense layer's {axis}s in another order"
    return None


def _source(dense: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
    """The row of W that is most like the nonzeros of each of these rows, and their cosine."""
    energy = (parts != 0).float() @ dense.square().T
    cosines = parts @ dense.T / (energy.sqrt() * parts.norm(dim=1, keepdim=True)).clamp_min(1e-30)
    best = cosines.abs().argmax(1)
    return best, cosines.gather(1, best[:, None])[:, 0]


def _shift(dense: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
    """The shift to the right that makes the row of W most like each part, and their cosine."""
    length = dense.shape[1]
    turned = torch.fft.rfft(torch.stack([dense, dense.square()])).conj()
    reads = torch.stack([parts, (parts != 0).float()])
    product, energy = torch.fft.irfft(torch.fft.rfft(reads) * turned, length)
    energy = energy.clamp_min(1e-9 * dense.square().sum(1, keepdim=True))
    cosines = product / (energy.sqrt() * parts.norm(dim=1)[:, None])
    cosines[:, 0] = 0
    best = cosines.argmax(1)
    return torch.where(best > length // 2, best - length, best), cosines.gather(1, best[:, None])[:, 0]


def _joined(parts: list[Misfit]) -> list[Misfit]:
    """Joins neighbouring rows or columns with the same fault."""
    joined: list[Misfit] = []
    for part in parts:
        if not joined or not _continues(joined[-1], part):
            joined.append(part)
            continue
        last = joined[-1]
        total = last.kept + part.kept
        share = part.kept / max(1, total)
        joined[-1] = replace(
            last,
            rows=(last.rows[0], part.rows[1]),
            columns=(last.columns[0], part.columns[1]),
            kept=total,
            opposite=last.opposite + part.opposite,
            cosine=last.cosine + share * (part.cosine - last.cosine),
            factor=last.factor + share * (part.factor - last.factor),
        )
    return joined


def _continues(last: Misfit, part: Misfit) -> bool:
    ends, starts = (last.rows, part.rows) if part.axis == ROW else (last.columns, part.columns)
    fates = [(each.kind, each.shift, each.value, each.may_be_lawful) for each in (last, part)]
    if fates[0] != fates[1] or starts[0] != ends[1] + 1:
        return False
    if part.kind == SCALED:
        return abs(log(max(part.factor, 1e-9) / max(last.factor, 1e-9))) < 0.2
    if part.source is None or last.source is None:
        return part.source is last.source
    return part.source - starts[0] == last.source - ends[0]


def _empty_rows(dense: Tensor, pruned: Tensor) -> list[Misfit]:
    """Rows without a weight, although several of their dense weights are above the mean kept weight of the column."""
    mask = pruned != 0
    empty = (~mask.any(1)).nonzero().flatten()
    if not len(empty):
        return []
    counts = mask.sum(0)
    large = (dense.abs() * mask).sum(0) / counts.clamp_min(1)
    lost = ((dense[empty].abs() > large) & (counts > 0)).sum(1)
    last = dense.shape[1] - 1
    return _joined([Misfit(EMPTY, ROW, (row, row), (0, last), 0) for row in empty[lost >= EMPTIED].tolist()])


def _other_counts(pruned: Tensor, reported: set[int]) -> list[Misfit]:
    """Rows that keep another number of weights than nearly all rows do; without `reported` rows."""
    counts, last = (pruned != 0).sum(1), pruned.shape[1] - 1
    usual = int(counts.mode().values)
    if float(((counts - usual).abs() <= 1).float().mean()) < SAME_COUNT or usual in (0, last + 1):
        return []
    odd = ((counts - usual).abs() > 2 + 0.02 * usual).nonzero().flatten().tolist()
    sizes = {row: int(counts[row]) for row in odd if row not in reported}
    kinds = {row: COUNT if size else EMPTY for row, size in sizes.items()}
    return _joined([Misfit(kinds[row], ROW, (row, row), (0, last), sizes[row], value=float(usual)) for row in sizes])


def _tiles(layer: _Layer, odd: Tensor) -> list[Misfit]:
    """Odd runs of 32 columns, joined if they fill most of a rectangle."""
    rest = odd.clone()
    parts: list[Misfit] = []
    while rest.any() and len(parts) < SHOWN:
        row, run = (int(x) for x in rest.nonzero()[0])
        bottom, right = row, run
        for _ in range(2):  # grows to the right and down while half of the next line is odd
            while right + 1 < rest.shape[1] and rest[row : bottom + 1, right + 1].float().mean() >= 0.5:
                right += 1
            while bottom + 1 < len(rest) and rest[bottom + 1, run : right + 1].float().mean() >= 0.5:
                bottom += 1
        rest[row : bottom + 1, run : right + 1] = False
        rows, columns = (row, bottom), (32 * run, min(32 * right + 31, layer.dense.shape[1] - 1))
        place = (slice(row, bottom + 1), slice(columns[0], columns[1] + 1))
        part = _part(TILE, rows, columns, layer.dense[place].flatten(), layer.pruned[place].flatten(), layer.slope)
        kind = NEGATED if part.cosine < -0.5 else SCALED if part.cosine > 0.8 else UNLIKE_DENSE
        parts.append(replace(part, kind=kind))
    return parts
