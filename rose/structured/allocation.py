"""How many heads and channels each decoder block keeps, so that the whole comes out at the asked ratio."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, pairwise

import torch
from torch import Tensor

from rose.errors import RoseError
from rose.structured.parts import CHANNELS, HEADS, Part, Shape
from rose.structured.survey import BlockSurvey, PartSurvey

NEAR = 0.95  # of what was asked for must go
MUCH = 1.25  # of what was asked for is too much
MOST = 0.9  # of one decoder block's parts, so that something is left of each
NOTHING = "At this ratio nothing would go; ask for a larger one, or for a smaller multiple."

Shapes = list[list[Shape]]  # [block][part]
Candidate = tuple[float, dict[str, Shape]]  # how far from what is wanted it saves; shapes by kind of part


def uniform_candidates(parts: Sequence[Part], wanted: float, multiple: int) -> list[Candidate]:
    """Shapes that save about `wanted` parameters of one decoder block, the nearest first."""
    by_kind = {part.kind: part for part in parts}
    candidates = []
    for heads in head_shapes(by_kind[HEADS].shape) if HEADS in by_kind else [None]:
        chosen, left = {}, wanted
        if heads:
            chosen[HEADS], left = heads, wanted - by_kind[HEADS].saved(heads)
        if CHANNELS in by_kind:
            if (kept := channels_for(by_kind[CHANNELS], left, multiple)) is None:
                continue
            chosen[CHANNELS] = kept
        distance = abs(sum(part.saved(chosen[kind]) for kind, part in by_kind.items()) - wanted)
        if distance <= wanted / 2:
            candidates.append((distance, chosen))
    return sorted(candidates, key=lambda entry: entry[0])


def uniform_shapes(
    candidates: Sequence[Candidate],
    surveys: Sequence[BlockSurvey] | None,
    allowed: Callable[[Mapping[str, Shape]], bool],
    wanted: float,
) -> Mapping[str, Shape]:
    """Shapes for every decoder block: of the allowed candidates (the nearest first; one at least is) that save about as
    much as wanted the one that costs least in sum; without prices, or where pieces are too large for that, the one
    that comes nearest."""

    def cost(chosen: Mapping[str, Shape]) -> float:
        return sum(price(part, one, chosen[part.part.kind]) for one in surveys or () for part in one.parts)

    near = [chosen for distance, chosen in candidates if distance <= (1 - NEAR) * wanted]  # the first ones
    far = [chosen for _, chosen in candidates[len(near) :]]
    # What saves less would always cost less, so only those that save alike are compared.
    return next(filter(allowed, [*(sorted(near, key=cost) if surveys else near), *far]))


def saved_by(parts: Sequence[Sequence[Part]], shapes: Shapes) -> int:
    """Parameters that go with these shapes; both [block][part]."""
    return sum(part.saved(shape) for part, shape in _pairs(parts, shapes))


def _pairs(parts: Sequence[Sequence[Part]], shapes: Shapes) -> Iterator[tuple[Part, Shape]]:
    return zip(chain.from_iterable(parts), chain.from_iterable(shapes), strict=True)


def head_shapes(shape: Shape) -> list[Shape]:
    """Every shape that is left when groups, or as many queries of each, are taken out."""
    return [
        Shape(groups, queries) for groups in range(shape.groups, 0, -1) for queries in range(shape.per_group, 0, -1)
    ]


def channels_for(part: Part, saved: float, multiple: int) -> Shape | None:
    """The channels to keep so that about this many parameters go; None where that is more than may."""
    each = part.saved(Shape(1, part.shape.units - 1))
    exact = part.shape.units - saved / each
    kept = round(exact / multiple) * multiple
    if exact > part.shape.units + multiple / 2 or kept < max(1, (1 - MOST) * part.shape.units):
        return None
    return Shape(1, min(kept, part.shape.units))


def check_multiple(parts: Sequence[Sequence[Part]], multiple: int) -> None:
    """Raises RoseError where channels, of parts as [block][part], are no more than the multiple, so that none could
    go."""
    units = [part.shape.units for of_block in parts for part in of_block if part.kind == CHANNELS]
    fewest = min(units, default=None)
    if fewest is not None and fewest <= multiple:
        raise RoseError(f"Of {fewest} channels no smaller multiple of {multiple} can be kept; give a smaller multiple.")


def price(found: PartSurvey, survey: BlockSurvey, shape: Shape) -> float:
    """Cost of a shape relative to the mean square of the residual stream that it goes into."""
    return found.costs[shape] / survey.stream


def similarity_ratios(similarities: Sequence[float], ratio: float) -> list[float]:
    """Ratios of decoder blocks by SlimLLM, section 3.4: ratio · n · softmax(α cos) over the K most similar of n blocks.

    K and α are the published ones for 20 % (26 of 32, 10) and 50 % (30 of 32, 7), and in proportion between. No decoder
    block loses more than `MOST`.
    """
    between = min(max((ratio - 0.2) / 0.3, 0.0), 1.0)
    count = max(1, round(len(similarities) * (26 + 4 * between) / 32))
    values = torch.tensor(similarities, dtype=torch.float64)
    chosen = values.argsort(descending=True)[:count]
    shares = torch.zeros(len(similarities), dtype=torch.float64)
    shares[chosen] = (values[chosen] * (10 - 3 * between)).softmax(0)
    return _at_most(shares, ratio * len(similarities)).tolist()


def _at_most(shares: Tensor, total: float) -> Tensor:
    """`total` divided in proportion to shares, none above `MOST`; what that cuts off goes to the others."""
    full = torch.zeros(len(shares), dtype=torch.bool)
    while True:
        left = max(total - MOST * int(full.sum()), 0.0)
        divided = left * shares / shares[~full].sum().clamp_min(1e-30)
        divided[full] = MOST
        if not (divided > MOST).any():
            return divided
        full |= divided > MOST


def similarity_shapes(parts: Sequence[Sequence[Part]], ratios: Sequence[float], multiple: int) -> Shapes:
    """Heads and channels of each decoder block reduced by its ratio, see `shapes_by_ratio`."""
    return [shapes_by_ratio(of_block, ratio, multiple) for of_block, ratio in zip(parts, ratios, strict=True)]


def fewest_channels(part: Part, multiple: int) -> Shape:
    """The smallest shape that may be left of channels."""
    least = math.ceil((1 - MOST) * part.shape.units / multiple) * multiple
    return Shape(1, min(least, part.shape.units))


def shapes_by_ratio(
    parts: Sequence[Part], ratio: float, multiple: int, fewest: Callable[[Part, int], Shape] = fewest_channels
) -> list[Shape]:
    """The shapes of one decoder block that loses a share of its parts' parameters: heads as near as they can, channels
    by what is then left to save; of those that should lose more than may, `fewest` says what is left."""
    left = ratio * sum(part.parameters(part.shape) for part in parts)
    whole = sum(part.parameters(part.shape) for part in parts if part.kind == CHANNELS)
    chosen: dict[str, Shape] = {}
    for part in sorted(parts, key=lambda part: part.kind == CHANNELS):
        own = part.parameters(part.shape)
        if part.kind == HEADS:
            want = ratio * own
            shape = min(head_shapes(part.shape), key=lambda shape: (abs(part.saved(shape) - want), -shape.groups))
            left -= part.saved(shape)
        else:
            shape = channels_for(part, max(left, 0.0) * (own / whole), multiple) or fewest(part, multiple)
        chosen[part.output.name] = shape
    return [chosen[part.output.name] for part in parts]


def changed(parts: Sequence[Sequence[Part]], shapes: Shapes) -> list[tuple[Part, Shape]]:
    """The parts that get another shape, both [block][part]; raises RoseError where none does."""
    if not (found := [(part, shape) for part, shape in _pairs(parts, shapes) if shape != part.shape]):
        raise RoseError(NOTHING)
    return found


def cost_shapes(surveys: Sequence[BlockSurvey], wanted: float, multiple: int) -> Shapes:
    """Shapes that save `wanted` parameters where each costs least: along the lower convex hulls of cost against
    parameters saved, the flattest pieces of all parts first."""
    hulls = {}
    for one in surveys:
        for number, found in enumerate(one.parts):
            points = [
                (found.part.saved(shape), price(found, one, shape), shape)
                for shape in found.costs
                if found.part.kind == HEADS or shape.units % multiple == 0 or shape == found.part.shape
            ]
            floor = (1 - MOST) * found.part.shape.units
            hulls[one.block_index, number] = _lower_hull([p for p in points if p[2].units >= floor or p[0] == 0])
    pieces = [
        ((after[1] - before[1]) / (after[0] - before[0]), key, step)
        for key, hull in hulls.items()
        for step, (before, after) in enumerate(pairwise(hull))
    ]
    at = dict.fromkeys(hulls, 0)
    saved = 0.0
    for _, key, step in sorted(pieces):
        gain = hulls[key][step + 1][0] - hulls[key][step][0]
        # Where a piece is too long for what is left, a shorter one may fit.
        if at[key] == step and saved < wanted and saved + gain - wanted <= wanted - saved:
            at[key], saved = step + 1, saved + gain
    while saved < NEAR * wanted:  # pieces are large, so that the next one takes more than what was left
        steps = [
            (hull[at[key] + 1][0] - hull[at[key]][0], key) for key, hull in hulls.items() if at[key] + 1 < len(hull)
        ]
        if not steps or saved + min(steps)[0] > MUCH * wanted:
            break
        gain, key = min(steps)
        at[key], saved = at[key] + 1, saved + gain
    check_saved(saved, wanted)
    return [
        [hulls[one.block_index, number][at[one.block_index, number]][2] for number in range(len(one.parts))]
        for one in surveys
    ]


def check_saved(saved: float, wanted: float) -> None:
    """Raises RoseError where shapes save much less than asked for, though more could go."""
    if saved < NEAR * wanted:
        raise RoseError(
            "Heads and channels are too large pieces to come near that ratio; ask for a larger one, or give a smaller "
            "multiple."
        )


def check_possible(parts: Sequence[Sequence[Part]], ratio: float, whole: int, multiple: int, allocation: str) -> None:
    """Raises RoseError, before anything is measured, unless shapes that differ can save that much, and that little;
    `whole`: parameters of the decoder blocks, of which the ratio is a share."""
    every = [part for of_block in parts for part in of_block]
    if allocation == "similarity":
        most = saved_by(parts, similarity_shapes(parts, similarity_ratios([1.0] * len(parts), 1.0), multiple))
    else:
        most = sum(part.saved(_fewest(part, multiple)) for part in every)
    if most < NEAR * ratio * whole:
        raise too_much(most / whole)
    if min(_least_saved(part, multiple) for part in every) > 2 * ratio * whole:
        raise RoseError(NOTHING)


def too_much(most: float) -> RoseError:
    """For more than the parts hold: `most` of all parameters of the decoder blocks."""
    return RoseError(
        f"The parts that may go do not hold that much; ask for a ratio of at most {math.floor(1000 * most) / 1000:g}."
    )


def most_uniform(parts: Sequence[Part], multiple: int, allowed: Callable[[Mapping[str, Shape]], bool]) -> int:
    """The most parameters of one decoder block that shapes save which are allowed in all; 0 where none is."""
    by_kind = {part.kind: part for part in parts}
    fewest = {kind: fewest_channels(part, multiple) for kind, part in by_kind.items() if kind == CHANNELS}
    heads = head_shapes(by_kind[HEADS].shape) if HEADS in by_kind else []
    every = [fewest | {HEADS: shape} for shape in heads] or [fewest]
    saved = {index: sum(by_kind[kind].saved(shape) for kind, shape in one.items()) for index, one in enumerate(every)}
    return next((saved[index] for index in sorted(saved, key=lambda one: -saved[one]) if allowed(every[index])), 0)


def _fewest(part: Part, multiple: int) -> Shape:
    """The smallest shape that `cost_shapes` may leave of a part."""
    if part.kind == CHANNELS:
        return fewest_channels(part, multiple)
    floor = (1 - MOST) * part.shape.units
    return max((one for one in head_shapes(part.shape) if one.units >= floor), key=part.saved)


def _least_saved(part: Part, multiple: int) -> int:
    """Parameters of the smallest piece that can go."""
    if part.kind == HEADS:
        return min((saved for shape in head_shapes(part.shape) if (saved := part.saved(shape))), default=0)
    return part.saved(Shape(1, max(1, part.shape.units - multiple)))


def _lower_hull(points: Sequence[tuple[int, float, Shape]]) -> list[tuple[int, float, Shape]]:
    """The lower convex hull of (saved, cost), from nothing saved on."""
    hull: list[tuple[int, float, Shape]] = []
    for point in sorted(points, key=lambda entry: entry[:2]):
        if hull and point[0] == hull[-1][0]:
            continue
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (point[0] - hull[-1][0]) >= (point[1] - hull[-1][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append(point)
    return hull
