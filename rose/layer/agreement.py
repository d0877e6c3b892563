"""Parts of a layer that do not follow the dense weights as the rest of the layer does: rows, columns, tiles, weights.

V, (out, in), is compared with W where V is not zero. Compensation moves kept weights, and it moves all weights of a
column for the same reason: H couples columns, not rows. So each residual is weighed by the variance of residuals in its
column; a row is then compared with W by weighted least squares,

    cosine = Σ v w / s² / sqrt(Σ v²/s² · Σ w²/s²)      slope = Σ v w / s² / Σ w²/s²

and tangents of angles are compared with the layer's median tangent. A column has no such weights. The column of a
massive activation may turn round lawfully, as only its product with another one is determined; so a column is wrong
only where another explanation fits, and else may be lawful. All limits come from sane copies: see docs/check.md.
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
TELLING, FEW = 16, 4  # kept weights from which on a direction tells something, where weights moved or stayed
STILL, MOVED = 2**-7, 0.1  # residuals by weights below which differences tell nothing, where weights stayed or moved
ROW_ANGLE = 15.0  # of the layer's median tangent
ROW_SCALE = 2.0  # logarithm of a slope by tangent
COLUMN_ANGLE = 12.0
COLUMNS_LAWFUL = 0.02  # share of a layer's columns that may turn round
NEGATIVE = {(1, 32): 20.0, (1, 128): 20.0, (32, 32): 20.0, (128, 128): 20.0}  # Σ −v w / s² of a tile
RESIDUAL = {(32, 32): 8.0, (128, 128): 5.0}  # mean r² / s² of a tile
ONE_RESIDUAL, SEVERAL = 1000.0, 3  # r² / s² of a weight where weights stayed, and such weights that make a tile
LAYER = 0.3  # cosine of a layer below which it is another one altogether
LARGEST = 16.0  # times the largest dense weight
PRIOR = 8  # weights of the layer's mean that a variance begins with
EXPLAINED = 0.7  # cosine with other dense weights that explains a part
TRADED = 0.85  # the same of a column that was compensated, as collinear inputs trade weights
CHANCE = 5.0  # standard deviations of a cosine of random directions
SEARCHED = 512  # parts of a kind that are told, the first ones
LIKE = 4.0  # of the layer's usual tangent: weights of another scale and no other direction
LIKE_ITSELF = 1.0  # logarithm of a slope by tangent, of a column that was turned round whole
MOSTLY = 0.6  # share of the weights that must have the opposite sign in what is negated
SAME_SIGN = 0.75  # share of the weights that must have the sign of those that explain them
ITS_OWN = 0.5  # cosine from which on weights are their own, with either sign
PIECE = 0.3  # share of the kept weights of a row or column
SAME_COUNT = 0.9  # share of rows that keep the same number of weights
SAMPLED, NEARLY = 64, 0.95  # rows that tell of a layer, and the share of them that must agree
GROWN = 1.3  # norm of a row beside its dense norm, by the layer's median
CORRECTED = (UNLIKE_DENSE, NEGATED)  # what a correction may look like
SHOWN = 8  # rectangles that are told apart
EMPTIED = 4  # of an empty row: dense weights above the mean of those that their column keeps


@dataclass(frozen=True)
class Misfit:
    """A part of V that does not follow W.

    Attributes:
        kind: one of the words above.
        axis: ROW, COLUMN, TILE or WEIGHT.
        rows, columns: first and last, both included.
        kept: nonzeros of V in it.
        opposite: how many of them have the other sign.
        cosine: of the angle between V and W there.
        factor: slope of V on W there beside that of the layer.
        source: for weights of another row or column, the one that the first row or column holds.
        shift: of SHIFTED, columns to the right for a row, rows down for a column.
        value, dense: of WEIGHT and CONSTANT, the value in V; the dense weight, or for ABSURD the largest one.
        may_be_lawful: whether weights alone cannot tell it from compensation.
    """

    kind: str
    axis: str
    rows: tuple[int, int]
    columns: tuple[int, int]
    kept: int
    opposite: int = 0
    cosine: float = 0.0
    factor: float = 1.0
    source: int | None = None
    shift: int = 0
    value: float = 0.0
    dense: float = 0.0
    may_be_lawful: bool = False


@torch.no_grad()
def misfits(before: Tensor, after: Tensor) -> tuple[Misfit, ...]:
    """Parts of V that stand out from the rest, the largest first; () where nothing does, or nothing is kept.

    Args:
        before: W, (out, in), finite.
        after: V, (out, in), on the same device. NaN and infinity count as removed.
    """
    now = torch.nan_to_num(after.float(), 0, 0, 0)
    was = before.float()
    if not was.any():
        return ()
    absurd = now.abs() > LARGEST * was.abs().amax()
    found = [_weight(ABSURD, now, was.abs().amax().expand_as(was), place) for place in absurd.nonzero()[:SEARCHED]]
    now = now.masked_fill(absurd, 0)
    if not now.any() or _cosine(now.flatten(), torch.where(now == 0, 0, was).flatten()) < LAYER:
        return tuple(found)  # what became of it is no matter of parts, see `whole_fate`
    layer = _Layer.of(was, now)
    rows = layer.odd_rows()
    layer = layer.without_rows(rows)
    columns = layer.odd_columns()
    empty = _empty_rows(was, now)
    told = {*rows.tolist(), *(row for part in empty for row in range(part.rows[0], part.rows[1] + 1))}
    found += empty + _other_counts(now, told)
    for axis, numbers in ((ROW, rows), (COLUMN, columns)):
        found += _named(axis, layer, was, now, numbers) if len(numbers) else []
    layer = layer.without_columns(columns)
    tiles = layer.odd_tiles()
    found += _tiles(layer, tiles) + (layer.odd_weights(tiles) if layer.floor == STILL else [])
    if layer.floor == MOVED:
        found = _with_grown_rows(found, was, now)
    return tuple(sorted(found, key=lambda misfit: (misfit.may_be_lawful, -misfit.kept)))


@dataclass(frozen=True)
class _Layer:
    """Kept weights of V beside those of W, and how much columns move in this layer.

    Attributes:
        was, now: W where V is not zero, and V, (out, in); zero in rows and columns that were taken out.
        moved: whether kept weights are neither those of W nor those rounded to 16 bits, (out, in).
        floor: STILL where most rows or most columns are those of W, or W rounded to 16 bits, else MOVED.
        slope: of V on W over ordinary rows.
        variance: of residuals V − slope · W by column, (in,).
    """

    was: Tensor
    now: Tensor
    moved: Tensor
    floor: float
    slope: float
    variance: Tensor

    @classmethod
    def of(cls, was: Tensor, now: Tensor) -> _Layer:
        was = torch.where(now == 0, 0, was)
        formats = (torch.bfloat16, torch.float16)
        moved = (now != was) & (now != was.to(formats[0]).float()) & (now != was.to(formats[1]).float())
        is_still = max(float((~moved.any(axis)).float().mean()) for axis in (0, 1)) > 0.5
        floor = STILL if is_still else MOVED
        energy, product = was.square().sum(1), (was * now).sum(1)
        slope = float((product / energy)[energy > 0].median()) if energy.any() else 1.0
        slope = 1.0 if is_still else slope
        residual = (now - slope * was).square().sum(1) / energy.clamp_min(1e-30)
        usual = float(residual[energy > 0].quantile(0.3)) if energy.any() else 0.0
        return cls(was, now, moved, floor, slope, was[0])._fitted(residual <= 10 * (usual + floor**2))

    def _fitted(self, ordinary: Tensor) -> _Layer:
        """With the variance of these rows, (out,) bool."""
        some_was, some = (self.was, self.now) if ordinary.all() else (self.was[ordinary], self.now[ordinary])
        energy = some_was.square().sum()
        squares, counts = (some - self.slope * some_was).square().sum(0), (some != 0).sum(0)
        kept = counts.sum().clamp_min(1)
        variance = (self.floor**2 * energy / kept).expand_as(squares)
        if self.floor == MOVED:
            variance = variance + (squares + PRIOR * squares.sum() / kept) / (counts + PRIOR)
        return replace(self, variance=variance.clamp_min(1e-30))

    def without_rows(self, rows: Tensor) -> _Layer:
        """Fitted again to all others, those too that `of` has left out."""
        ordinary = torch.ones(len(self.was), dtype=torch.bool, device=self.was.device)
        ordinary[rows] = False
        left = ordinary[:, None]
        return replace(self, was=self.was * left, now=self.now * left)._fitted(ordinary)

    def without_columns(self, columns: Tensor) -> _Layer:
        if not len(columns):
            return self
        ordinary = torch.ones(self.was.shape[1], device=self.was.device)
        ordinary[columns] = 0
        return replace(self, was=self.was * ordinary, now=self.now * ordinary)

    @property
    def telling(self) -> int:
        """Kept weights from which on the direction of a row or column tells something."""
        return FEW if self.floor == STILL else TELLING

    @property
    def tangent(self) -> float:
        """The usual one of the angle between a column of V and one of W."""
        energy, product, square = (x.sum(0) for x in (self.was**2, self.was * self.now, self.now**2))
        known = (self.now != 0).sum(0) >= self.telling
        tangent = _tangent(product / (energy * square).sqrt().clamp_min(1e-30))
        return float(tangent[known].median()) if known.any() else 0.0

    def odd_rows(self) -> Tensor:
        """Numbers of rows of another direction or scale than the layer's."""
        weights = 1 / self.variance
        energy, product, square = (x @ weights for x in (self.was**2, self.was * self.now, self.now**2))
        counts = (self.now != 0).sum(1)
        opposite = (self.was * self.now < 0).sum(1)
        negative = (-product > NEGATIVE[1, 128]) & (opposite > MOSTLY * counts)
        tangent = _tangent(product / (energy * square).sqrt().clamp_min(1e-30))
        known = counts >= self.telling
        if not known.any():
            return self._whole(negative, 1)
        scale = (product / energy.clamp_min(1e-30)).abs()
        scale = (scale / scale[known].median()).clamp_min(1e-6).log().abs()
        usual = tangent[known].median() + self.floor
        odd = known & ((tangent > ROW_ANGLE * usual) | (scale > ROW_SCALE * (tangent + self.floor)))
        return self._whole(odd | negative, 1)

    def odd_columns(self) -> Tensor:
        """Numbers of columns of another direction than the layer's, and where kept weights did not move of any other
        scale."""
        energy, product, square = (x.sum(0) for x in (self.was**2, self.was * self.now, self.now**2))
        known = (self.now != 0).sum(0) >= self.telling
        if not known.any():
            return self._whole(known, 0)
        tangent = _tangent(product / (energy * square).sqrt().clamp_min(1e-30))
        odd = tangent > COLUMN_ANGLE * (tangent[known].median() + self.floor)
        if self.floor == STILL:
            scale = (product / energy.clamp_min(1e-30)).abs()
            odd |= (scale / scale[known].median()).log().abs() > ROW_SCALE * (tangent + STILL)
        return self._whole(known & odd, 0)

    def _whole(self, odd: Tensor, axis: int) -> Tensor:
        """Numbers of odd rows or columns: where weights stayed, of those of which not only a piece has moved."""
        if self.floor == STILL:
            odd = odd & (self.moved.sum(axis) > PIECE * (self.now != 0).sum(axis))
        return odd.nonzero().flatten()

    @property
    def negative(self) -> Tensor:
        """−v w / s², (out, in)."""
        return -(self.was * self.now) / self.variance

    @property
    def residual(self) -> Tensor:
        """r² / s², (out, in)."""
        return (self.now - self.slope * self.was).square() / self.variance

    def odd_tiles(self) -> Tensor:
        """Which runs of 32 columns of each row lie in a tile of another direction, (out, runs) bool."""
        if self.floor == STILL:
            return _runs((self.residual > ONE_RESIDUAL).float()) >= SEVERAL
        negative = self.negative
        signs = [(matrix != 0).float() for matrix in (self.now, negative.clamp_min(0))]
        kept, opposite, negative, residual = (_runs(matrix) for matrix in (*signs, negative, self.residual))
        odd = torch.zeros_like(kept, dtype=torch.bool)
        for (rows, columns), limit in NEGATIVE.items():
            shape = (rows, columns // 32)
            count, turned, backward, moved = (_tile_sums(x, shape) for x in (kept, opposite, negative, residual))
            is_odd = ((backward > limit) & (turned > MOSTLY * count)) | (
                moved > RESIDUAL.get((rows, columns), torch.inf) * (count + PRIOR)
            )
            odd |= is_odd.repeat_interleave(rows, 0).repeat_interleave(shape[1], 1)[: len(odd), : odd.shape[1]]
        return odd & (kept > 0)

    def odd_weights(self, tiles: Tensor) -> list[Misfit]:
        """Single weights outside of such tiles."""
        odd = self.residual > ONE_RESIDUAL
        odd &= ~tiles.repeat_interleave(32, 1)[:, : odd.shape[1]]
        return [_weight(CHANGED, self.now, self.was, place) for place in odd.nonzero()[:SEARCHED]]


def _tangent(cosine: Tensor) -> Tensor:
    """Of the angle; infinite from 90 degrees on."""
    return torch.where(cosine > 0, (1 - cosine**2).clamp_min(0).sqrt() / cosine.clamp_min(1e-9), torch.inf)


def _runs(matrix: Tensor) -> Tensor:
    """Sums of 32 neighbouring columns, (out, runs)."""
    return pad(matrix, (0, -matrix.shape[1] % 32)).unflatten(1, (-1, 32)).sum(2)


def _tile_sums(runs: Tensor, shape: tuple[int, int]) -> Tensor:
    rows, columns = shape
    padded = pad(runs, (0, -runs.shape[1] % columns, 0, -len(runs) % rows))
    return padded.unflatten(1, (-1, columns)).sum(2).unflatten(0, (-1, rows)).sum(1)


def _weight(kind: str, now: Tensor, dense: Tensor, place: Tensor) -> Misfit:
    row, column = place.tolist()
    value, other = float(now[row, column]), float(dense[row, column])
    return Misfit(kind, WEIGHT, (row, row), (column, column), 1, int(value * other < 0), value=value, dense=other)


def _named(axis: str, layer: _Layer, was: Tensor, now: Tensor, numbers: Tensor) -> list[Misfit]:
    """What happened to these rows or columns; neighbours of the same fate are joined."""
    if axis == COLUMN:
        was, now = was.T, now.T
    numbers = numbers[:SEARCHED]
    usual = layer.tangent + layer.floor
    may_turn = axis == COLUMN and len(numbers) <= max(1, COLUMNS_LAWFUL * len(was))
    least = TRADED if axis == COLUMN and layer.floor == MOVED else EXPLAINED
    sources, shifts = _source(was, now[numbers]), _shift(was[numbers], now[numbers])
    found = []
    for place, number in enumerate(numbers.tolist()):
        dense, vector = was[number], now[number]
        ends, others = (number, number), (0, was.shape[1] - 1)
        cosine = _cosine(vector, torch.where(vector == 0, 0, dense))
        energy = float(torch.where(vector == 0, 0, dense).square().sum())
        part = Misfit(
            UNLIKE_DENSE,
            axis,
            rows=ends if axis == ROW else others,
            columns=others if axis == ROW else ends,
            kept=int((vector != 0).sum()),
            opposite=int((vector * dense < 0).sum()),
            cosine=cosine,
            factor=float(vector @ dense) / max(energy, 1e-30) / layer.slope,
        )
        (whose, likeness), (shift, _) = ((int(of[place]), float(like[place])) for of, like in (sources, shifts))
        others_negated = OTHERS if likeness > 0 else OTHERS_NEGATED
        part = _explained(
            part,
            vector,
            least,
            {
                replace(part, kind=others_negated, source=whose): was[whose] * (1 if likeness > 0 else -1),
                replace(part, kind=SHIFTED, shift=shift): dense.roll(shift),
                replace(part, kind=REVERSED): dense.flip(0),
            },
        )
        if part.kind == UNLIKE_DENSE:
            tangent = float(_tangent(torch.tensor(abs(cosine))))
            angle = ROW_ANGLE if axis == ROW else COLUMN_ANGLE
            itself = abs(log(max(abs(part.factor), 1e-9))) < LIKE_ITSELF * (tangent + layer.floor)
            if cosine < -ITS_OWN and tangent < angle * usual:
                itself &= part.opposite > SAME_SIGN * part.kept
                part = replace(part, kind=NEGATED, may_be_lawful=may_turn and not itself)
            elif cosine > ITS_OWN and tangent < max(LIKE * usual, 2 * layer.floor):
                part = replace(part, kind=SCALED, may_be_lawful=may_turn and tangent > 2 * STILL)
            else:
                part = replace(part, may_be_lawful=may_turn and (layer.floor == MOVED or cosine > ITS_OWN))
        found.append(part)
    return _joined(found)


def _explained(part: Misfit, vector: Tensor, least: float, others: Mapping[Misfit, Tensor]) -> Misfit:
    """What explains a row or column: that all its weights are one, or other dense weights than its own.

    Args:
        least: cosine that explains something.
        others: by what they would make of the part, the dense weights that would explain it.
    """
    kept = vector != 0
    if part.kept > 1 and bool((vector[kept] == vector[kept][0]).all()):
        return replace(part, kind=CONSTANT, value=float(vector[kept][0]))
    needed = max(least, abs(part.cosine) + 0.4, CHANCE * max(1, part.kept) ** -0.5)
    for other, dense in others.items():
        # A cosine alone can come from a few large weights.
        same_sign = float((vector * dense > 0).sum()) / max(1, part.kept)
        if _cosine(vector, torch.where(kept, dense, 0)) > needed and same_sign > SAME_SIGN:
            return other
    return part


def whole_fate(before: Tensor, after: Tensor) -> str | None:
    """What became of a layer V that is not like W, (out, in) each, as a sentence's rest about "it"; None where unknown.

    Some rows and columns tell.
    """
    was, now = before.float(), torch.nan_to_num(after.float(), 0, 0, 0)
    kept = now != 0
    if _cosine(now.flatten(), torch.where(kept, was, 0).flatten()) < -EXPLAINED:
        return "has the opposite sign"
    if was.shape[0] == was.shape[1] and _cosine(now.flatten(), torch.where(kept, was.T, 0).flatten()) > EXPLAINED:
        return "is the dense layer's transpose"
    for axis, one, other in (("row", was, now), ("column", was.T, now.T)):
        some = torch.linspace(0, len(one) - 1, min(SAMPLED, len(one)), dtype=torch.float64).long().to(was.device)
        shift, at_shift = _shift(one[some], other[some])
        if float((at_shift > EXPLAINED).float().mean()) > NEARLY and len(shift.unique()) == 1:
            return f"has every {axis} shifted by {abs(int(shift[0]))}"
        source, likeness = _source(one, other[some])
        if float((likeness > EXPLAINED).float().mean()) > NEARLY and len(source.unique()) > NEARLY * len(some):
            return f"has the dense layer's {axis}s in another order"
    return None


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()).clamp_min(1e-30))


def _source(was: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
    """The row of W that each of these rows is most like over its nonzeros, and the cosine with it."""
    energy = (parts != 0).float() @ was.square().T
    cosines = parts @ was.T / (energy.sqrt() * parts.norm(dim=1, keepdim=True)).clamp_min(1e-30)
    best = cosines.abs().argmax(1)
    return best, cosines.gather(1, best[:, None])[:, 0]


def _shift(was: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
    """How far each row of W would have to go round to the right to be most like its part, and the cosine then."""
    turned = torch.fft.rfft(torch.stack([was, was.square()])).conj()
    reads = torch.stack([parts, (parts != 0).float()])
    product, energy = torch.fft.irfft(torch.fft.rfft(reads) * turned, was.shape[1])
    cosines = product / (energy.clamp_min(1e-9 * was.square().sum(1, keepdim=True)).sqrt() * parts.norm(dim=1)[:, None])
    cosines[:, 0] = 0
    best = cosines.argmax(1)
    length = was.shape[1]
    return torch.where(best > length // 2, best - length, best), cosines.gather(1, best[:, None])[:, 0]


def _joined(found: list[Misfit]) -> list[Misfit]:
    """Neighbouring rows or columns of the same fate as one."""
    joined: list[Misfit] = []
    for part in found:
        last = joined[-1] if joined else None
        if last is not None and _continues(last, part):
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
        else:
            joined.append(part)
    return joined


def _continues(last: Misfit, part: Misfit) -> bool:
    ends, starts = (last.rows, part.rows) if part.axis == ROW else (last.columns, part.columns)
    first, second = ((one.kind, one.shift, one.value, one.may_be_lawful) for one in (last, part))
    same = first == second
    if not same or starts[0] != ends[1] + 1:
        return False
    if part.kind == SCALED:
        return abs(log(max(part.factor, 1e-9) / max(last.factor, 1e-9))) < 0.2
    if part.source is None or last.source is None:
        return part.source is last.source
    return part.source - starts[0] == last.source - ends[0]


def _with_grown_rows(found: list[Misfit], was: Tensor, now: Tensor) -> list[Misfit]:
    """What lies in rows that have grown may be lawful: a correction towards the dense model adds to few rows, those of
    massive channels of the residual stream, more than their own weights."""
    growth = now.norm(dim=1) / was.norm(dim=1).clamp_min(1e-30)
    grown = growth > GROWN * growth.median()
    return [
        replace(part, may_be_lawful=part.may_be_lawful or part.axis == TILE or part.kind in CORRECTED)
        if part.axis != COLUMN and bool(grown[part.rows[0] : part.rows[1] + 1].all())
        else part
        for part in found
    ]


def _empty_rows(was: Tensor, now: Tensor) -> list[Misfit]:
    """Rows without a weight, though more than a few of their dense weights are large among those of their columns."""
    kept = now != 0
    empty = (~kept.any(1)).nonzero().flatten()
    if not len(empty):
        return []
    counts = kept.sum(0)
    large = (was.abs() * kept).sum(0) / counts.clamp_min(1)
    lost = ((was[empty].abs() > large) & (counts > 0)).sum(1)
    last = was.shape[1] - 1
    return _joined([Misfit(EMPTY, ROW, (row, row), (0, last), 0) for row in empty[lost >= EMPTIED].tolist()])


def _other_counts(now: Tensor, told: set[int]) -> list[Misfit]:
    """Rows that keep another number of weights, where nearly all keep the same; without those that are `told` of."""
    counts = (now != 0).sum(1)
    usual = counts.mode().values
    if float(((counts - usual).abs() <= 1).float().mean()) < SAME_COUNT or int(usual) in (0, now.shape[1]):
        return []
    odd = (counts - usual).abs() > 2 + 0.02 * usual
    last = now.shape[1] - 1
    places = [row for row in odd.nonzero().flatten().tolist() if row not in told]
    kinds = {row: COUNT if counts[row] else EMPTY for row in places}
    parts = [
        Misfit(kind, ROW, (row, row), (0, last), int(counts[row]), value=float(usual)) for row, kind in kinds.items()
    ]
    return _joined(parts)


def _tiles(layer: _Layer, odd: Tensor) -> list[Misfit]:
    """Odd runs of 32 columns, joined where they fill most of a rectangle."""
    rest = odd.clone()
    found: list[Misfit] = []
    while rest.any() and len(found) < SHOWN:
        row, run = (int(x) for x in rest.nonzero()[0])
        bottom, right = row, run
        for _ in range(2):  # grows to the right and down while half of the next line is odd
            while right + 1 < rest.shape[1] and rest[row : bottom + 1, right + 1].float().mean() >= 0.5:
                right += 1
            while bottom + 1 < len(rest) and rest[bottom + 1, run : right + 1].float().mean() >= 0.5:
                bottom += 1
        rest[row : bottom + 1, run : right + 1] = False
        rows, columns = (row, bottom), (32 * run, min(32 * right + 31, layer.was.shape[1] - 1))
        place = (slice(row, bottom + 1), slice(columns[0], columns[1] + 1))
        was, now = layer.was[place].flatten(), layer.now[place].flatten()
        cosine = _cosine(was, now)
        factor = float(was @ now / (was @ was).clamp_min(1e-30)) / layer.slope
        kind = NEGATED if cosine < -0.5 else SCALED if cosine > 0.8 else UNLIKE_DENSE
        kept, opposite = int((now != 0).sum()), int((was * now < 0).sum())
        found.append(Misfit(kind, TILE, rows, columns, kept, opposite, cosine, factor))
    return found
