"""Plans of structured runs: shapes of every decoder block, and memory, before any change."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from rose.errors import RoseError
from rose.model.estimate import Memory, estimate_cost, estimate_memory, matmul_rate
from rose.model.network.layers import check_not_shared, prunable_layers
from rose.model.network.network import Network
from rose.model.progress import ProgressCallback
from rose.structured.configuration import (
    Readers,
    can_bias,
    can_say,
    check_cuttable,
    is_cut_everywhere,
    kinds_of,
    parts_of_any,
)
from rose.structured.methods import structured_method
from rose.structured.parts import CHANNELS, HEADS, Part, Shape, block_parameters, find_parts
from rose.structured.settings import SlimSettings
from rose.structured.survey import BlockSurvey, layers_read, survey, visited_layers

NEAR = 0.95  # of the target must be removed
MUCH = 1.25  # of the target is too much
MOST = 0.9  # of one decoder block's parts, so that something is left of each
NOTHING = "This ratio would remove nothing; ask for a larger ratio, or for a smaller multiple."

Shapes = list[list[Shape]]  # [block][part]
Candidate = tuple[float, dict[str, Shape]]  # distance from the target; shapes by kind of part


def saved_by(parts: Sequence[Sequence[Part]], shapes: Shapes) -> int:
    """Parameters removed by these shapes; both [block][part]."""
    return sum(part.saved(shape) for part, shape in _pairs(parts, shapes))


def _pairs(parts: Sequence[Sequence[Part]], shapes: Shapes) -> Iterator[tuple[Part, Shape]]:
    return zip(chain.from_iterable(parts), chain.from_iterable(shapes), strict=True)


def head_shapes(shape: Shape) -> list[Shape]:
    """Every shape after removing groups, or the same number of queries from each group."""
    return [Shape(groups, each) for groups in range(shape.groups, 0, -1) for each in range(shape.per_group, 0, -1)]


def channels_for(part: Part, saved: float, multiple: int) -> Shape | None:
    """The channels to keep so that about this many parameters go; None above the limit."""
    each = part.saved(Shape(1, part.shape.units - 1))
    exact = part.shape.units - saved / each
    channels = round(exact / multiple) * multiple
    if exact > part.shape.units + multiple / 2 or channels < max(1, (1 - MOST) * part.shape.units):
        return None
    return Shape(1, min(channels, part.shape.units))


def check_multiple(parts: Sequence[Sequence[Part]], multiple: int) -> None:
    """Raises RoseError where parts, [block][part], have no more channels than the multiple."""
    units = [part.shape.units for of_block in parts for part in of_block if part.kind == CHANNELS]
    if (fewest := min(units, default=multiple + 1)) <= multiple:
        raise RoseError(f"Of {fewest} channels no smaller multiple of {multiple} can be kept; give a smaller multiple.")


def similarity_ratios(similarities: Sequence[float], ratio: float) -> list[float]:
    """Ratios of decoder blocks by SlimLLM, section 3.4: ratio · n · softmax(α cos) over the K most similar of n blocks.
    K and α are published for 20 % (26 of 32, 10) and 50 % (30 of 32, 7), and interpolated between. No decoder block
    loses more than `MOST`."""
    between = min(max((ratio - 0.2) / 0.3, 0.0), 1.0)
    count = max(1, round(len(similarities) * (26 + 4 * between) / 32))
    values = torch.tensor(similarities, dtype=torch.float64)
    chosen = values.argsort(descending=True)[:count]
    shares = torch.zeros(len(similarities), dtype=torch.float64)
    shares[chosen] = (values[chosen] * (10 - 3 * between)).softmax(0)
    full = torch.zeros(len(shares), dtype=torch.bool)
    while True:  # what is above `MOST` goes to the others
        left = max(ratio * len(similarities) - MOST * int(full.sum()), 0.0)
        divided = left * shares / shares[~full].sum().clamp_min(1e-30)
        divided[full] = MOST
        if not (divided > MOST).any():
            return divided.tolist()
        full |= divided > MOST


def similarity_shapes(
    parts: Sequence[Sequence[Part]], similarities: Sequence[float], ratio: float, target: float, multiple: int
) -> Shapes:
    """Shapes by similarity, see `similarity_ratios`; heads are coarse, so the ratio is adjusted until the total fits.
    Raises RoseError for shapes far from the target."""
    tried = []
    for _ in range(8):
        ratios = similarity_ratios(similarities, ratio)
        shapes = [shapes_by_ratio(of_block, share, multiple) for of_block, share in zip(parts, ratios, strict=True)]
        tried.append((saved_by(parts, shapes), shapes))
        ratio *= target / max(tried[-1][0], 1)
    saved, shapes = min(tried, key=lambda entry: abs(entry[0] - target))  # the first of equal ones
    check_saved(saved, target)
    return shapes


def fewest_channels(part: Part, multiple: int) -> Shape:
    """The smallest allowed number of channels."""
    least = math.ceil((1 - MOST) * part.shape.units / multiple) * multiple
    return Shape(1, min(least, part.shape.units))


def shapes_by_ratio(parts: Sequence[Part], ratio: float, multiple: int) -> list[Shape]:
    """The shapes of one decoder block that loses a share of its parts' parameters: heads as near as possible,
    channels for the rest, with `fewest_channels` as their limit."""
    left = ratio * sum(part.parameters(part.shape) for part in parts)
    whole = sum(part.parameters(part.shape) for part in parts if part.kind == CHANNELS)
    chosen: dict[str, Shape] = {}
    for part in sorted(parts, key=lambda part: part.kind == CHANNELS):
        parameters = part.parameters(part.shape)
        if part.kind == HEADS:
            want = ratio * parameters
            shape = min(head_shapes(part.shape), key=lambda shape: (abs(part.saved(shape) - want), -shape.groups))
            left -= part.saved(shape)
        else:
            shape = channels_for(part, max(left, 0.0) * (parameters / whole), multiple) or fewest_channels(
                part, multiple
            )
        chosen[part.output.name] = shape
    return [chosen[part.output.name] for part in parts]


def changed(parts: Sequence[Sequence[Part]], shapes: Shapes) -> list[tuple[Part, Shape]]:
    """The parts with a new shape, both [block][part]; raises RoseError if none changes."""
    if not (changes := [(part, shape) for part, shape in _pairs(parts, shapes) if shape != part.shape]):
        raise RoseError(NOTHING)
    return changes


def cost_shapes(surveys: Sequence[BlockSurvey], target: float, multiple: int) -> Shapes:
    """Shapes that save `target` parameters where each costs least: pieces of the lower convex hulls of cost against
    parameters saved, the flattest first."""
    hulls = {}
    for block in surveys:
        for number, priced in enumerate(block.parts):
            points = [
                (priced.part.saved(shape), cost / block.stream, shape)
                for shape, cost in priced.costs.items()
                if priced.part.kind == HEADS or shape.units % multiple == 0 or shape == priced.part.shape
            ]
            floor = (1 - MOST) * priced.part.shape.units
            hulls[block.block_index, number] = _lower_hull([p for p in points if p[2].units >= floor or p[0] == 0])
    pieces = [
        ((after[1] - before[1]) / (after[0] - before[0]), key, step)
        for key, hull in hulls.items()
        for step, (before, after) in enumerate(pairwise(hull))
    ]
    at = dict.fromkeys(hulls, 0)
    saved = 0.0
    for _, key, step in sorted(pieces):
        gain = hulls[key][step + 1][0] - hulls[key][step][0]
        # If a piece is too long for the rest, a shorter piece may fit.
        if at[key] == step and saved < target and saved + gain - target <= target - saved:
            at[key], saved = step + 1, saved + gain
    while saved < NEAR * target:  # pieces are large, so the next piece exceeds the rest
        longer = {key: hull for key, hull in hulls.items() if at[key] + 1 < len(hull)}
        steps = [(hull[at[key] + 1][0] - hull[at[key]][0], key) for key, hull in longer.items()]
        if not steps or saved + min(steps)[0] > MUCH * target:
            break
        gain, key = min(steps)
        at[key], saved = at[key] + 1, saved + gain
    check_saved(saved, target)
    chosen = {key: hull[at[key]][2] for key, hull in hulls.items()}
    return [[chosen[block.block_index, number] for number in range(len(block.parts))] for block in surveys]


def check_saved(saved: float, target: float) -> None:
    """Raises RoseError where shapes save much less than the target."""
    if saved < NEAR * target:
        advice = "ask for a larger one, or give a smaller multiple"
        raise RoseError(f"Heads and channels are too large pieces to come near that ratio; {advice}.")


def check_possible(parts: Sequence[Sequence[Part]], ratio: float, whole: int, multiple: int, allocation: str) -> None:
    """Raises RoseError, before any measurement, unless differing shapes can save that much, and that little;
    `whole`: parameters of the decoder blocks."""
    every = [part for of_block in parts for part in of_block]

    def most_saved(part: Part) -> int:
        if part.kind == CHANNELS:
            return part.saved(fewest_channels(part, multiple))
        floor = (1 - MOST) * part.shape.units
        return max(part.saved(shape) for shape in head_shapes(part.shape) if shape.units >= floor)

    def least_saved(part: Part) -> int:  # the smallest removable piece
        if part.kind == HEADS:
            return min((saved for shape in head_shapes(part.shape) if (saved := part.saved(shape))), default=0)
        return part.saved(Shape(1, max(1, part.shape.units - multiple)))

    if allocation == "similarity":
        ratios = similarity_ratios([1.0] * len(parts), 1.0)
        shapes = [shapes_by_ratio(of_block, share, multiple) for of_block, share in zip(parts, ratios, strict=True)]
        most = saved_by(parts, shapes)
    else:
        most = sum(map(most_saved, every))
    if most < NEAR * ratio * whole:
        raise too_much(most / whole)
    if min(map(least_saved, every)) > 2 * ratio * whole:
        raise RoseError(NOTHING)


def too_much(most: float) -> RoseError:
    """The error for a ratio above the parts' share; `most`: share of the decoder blocks' parameters."""
    return RoseError(
        f"The parts that may go do not hold that much; ask for a ratio of at most {math.floor(1000 * most) / 1000:g}."
    )


def _lower_hull(points: Sequence[tuple[int, float, Shape]]) -> list[tuple[int, float, Shape]]:
    """The lower convex hull of (saved, cost), from zero saved."""
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


# Matrices of the size of A that are alive at once while one output projection is reduced: H, its mean S, A, A damped,
# its inverse, and three parts of A with their Cholesky factor (least squares), or two copies of the inverse (greedy).
SQUARES_AT_WORK = 8
# Floating-point operations a cubed column of an output projection, at the rate of a matrix product, measured: to price
# one part, which updates an inverse for each of its columns in turn, and to compensate by least squares.
PRICING, COMPENSATING = 20.0, 2.5
CACHE, BEYOND = 2**25, 3  # above this size of an inverse in bytes, updates are 3 times slower (at 4864 columns)
# Float32 matrices of the weight's size: W, its target and its gap, W compensated, reduced, and only masked.
WEIGHTS_AT_WORK = 6


def repair_of(settings: SlimSettings) -> str:
    """The requested recovery, or the method's own."""
    return settings.recovery or structured_method(settings.method).recovery


@dataclass(frozen=True)
class PossibleShapes:
    """Parts that may be reduced, [block][part], and kinds that may get a bias. `allowed` has the uniform shapes that
    the configuration can express; `candidates` are those near the ratio, empty where shapes may differ."""

    parts: list[list[Part]]
    biased: tuple[str, ...]
    allowed: Callable[[Mapping[str, Shape]], bool]
    candidates: list[Candidate]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of the parts of every decoder block, in their order."""
        return tuple(part.kind for part in self.parts[0])


def possible_shapes(model: nn.Module, settings: SlimSettings) -> PossibleShapes:
    """Raises RoseError, before any measurement, for shapes that are impossible or cannot be expressed."""
    uniform, multiple = settings.allocation == "uniform", settings.multiple
    parts = parts_to_reduce(model, settings)
    repairs = repair_of(settings) != "none"
    readers: Readers = "rose" if not uniform else "transformers" if settings.recovery else "all"
    biased = tuple(part.kind for part in parts[0] if repairs and can_bias(model, parts, part.kind, readers))
    check_multiple(parts, multiple)
    if not uniform and type(model.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise RoseError(
            f"{type(model).__name__} is code of a repository, which rose cannot build with shapes that differ; choose "
            "the allocation uniform."
        )
    whole = block_parameters(model)
    allowed = partial(can_say, model, parts, biased=biased)
    if uniform:
        candidates = _uniform_candidates(model, parts, settings.ratio * whole, multiple, allowed)
        return PossibleShapes(parts, biased, allowed, candidates)
    check_possible(parts, settings.ratio, whole, multiple, settings.allocation)
    return PossibleShapes(parts, biased, allowed, [])


def plan_slimming(
    model: nn.Module,
    tokens: Tensor,
    settings: SlimSettings,
    possible: PossibleShapes,
    *,
    surveys: Sequence[BlockSurvey] | None = None,
    progress: ProgressCallback | None = None,
    decide: Callable[[Callable[[], str]], str] = lambda compute: compute(),
) -> Shapes:
    """The future shapes of the decoder blocks, from `possible_shapes`; the model is not changed. Prices are measured on
    the dense model where the allocation needs them. `decide` returns shapes that an earlier run has stored, or calls
    its argument. Raises RoseError for shapes far from the ratio."""
    allocation, multiple = settings.allocation, settings.multiple
    parts, target = possible.parts, settings.ratio * block_parameters(model)

    def priced(of_blocks: Sequence[Sequence[Part]]) -> Sequence[BlockSurvey]:
        options: dict[str, Any] = {"biases": possible.biased, "damping": settings.damping, "progress": progress}
        return surveys or list(survey(model, tokens, of_blocks, **options))

    def find() -> str:
        if allocation == "similarity":
            similarities = [block.similarity for block in priced([])]
            shapes = similarity_shapes(parts, similarities, settings.ratio, target, multiple)
        elif allocation == "cost":
            shapes = cost_shapes(priced(parts), target, multiple)
        else:
            prices = priced(parts) if len(possible.kinds) > 1 else []
            near = [shapes for distance, shapes in possible.candidates if distance <= (1 - NEAR) * target / len(parts)]
            far = [shapes for _, shapes in possible.candidates[len(near) :]]

            def cost(chosen: Mapping[str, Shape]) -> float:
                return sum(
                    part.costs[chosen[part.part.kind]] / block.stream for block in prices for part in block.parts
                )

            # The cheapest one near the target, or the nearest: what saves less would always cost less.
            chosen = next(filter(possible.allowed, [*sorted(near, key=cost), *far]))
            shapes = [[chosen[part.kind] for part in of_block] for of_block in parts]
        return json.dumps([[dataclasses.astuple(shape) for shape in of_block] for of_block in shapes])

    return [[Shape(*shape) for shape in of_block] for of_block in json.loads(decide(find))]


def _uniform_candidates(
    model: nn.Module,
    parts: Sequence[Sequence[Part]],
    target: float,
    multiple: int,
    allowed: Callable[[Mapping[str, Shape]], bool],
) -> list[Candidate]:
    """Shapes of every decoder block that together save about `target` parameters, the nearest first. Raises RoseError
    if no shapes are allowed."""
    every = parts_of_any(model)
    if len({(part.kind, part.shape) for part in every}) > len({part.kind for part in every}):
        raise RoseError(
            "The decoder blocks of this model differ in shape already; choose an allocation that lets them differ "
            "(cost or similarity)."
        )
    by_kind = {part.kind: part for part in parts[0]}
    if CHANNELS in by_kind and not can_say(model, parts, {CHANNELS: Shape(1, 1)}):
        raise RoseError(
            f"The configuration of {type(model).__name__} has no number for MLP channels, so plain transformers could "
            "not load the result; allow shapes that rose alone reads (allocation cost), or choose the method depth."
        )

    def saved(shapes: Mapping[str, Shape]) -> int:
        return sum(by_kind[kind].saved(shape) for kind, shape in shapes.items())

    heads = [{HEADS: shape} for shape in head_shapes(by_kind[HEADS].shape)] if HEADS in by_kind else [{}]
    of_block, candidates = target / len(parts), []
    for chosen in heads:
        if CHANNELS in by_kind:
            if (channels := channels_for(by_kind[CHANNELS], of_block - saved(chosen), multiple)) is None:
                continue
            chosen = chosen | {CHANNELS: channels}
        if (distance := abs(saved(chosen) - of_block)) <= of_block / 2:
            candidates.append((distance, chosen))
    candidates.sort(key=lambda entry: entry[0])
    if not any(allowed(chosen) for _, chosen in candidates):
        fewest = {CHANNELS: fewest_channels(by_kind[CHANNELS], multiple)} if CHANNELS in by_kind else {}
        largest = next(filter(allowed, sorted((fewest | shapes for shapes in heads), key=saved, reverse=True)), {})
        most = len(parts) * saved(largest)
        if 0 < most < target:
            raise too_much(most / block_parameters(model))
        raise RoseError(
            "No uniform shapes that the configuration can say save about that much; ask for another ratio or parts, or "
            "allow shapes that differ (allocation cost)."
        )
    return candidates


def parts_to_reduce(model: nn.Module, settings: SlimSettings) -> list[list[Part]]:
    """The requested parts, or all that every program reads after the cut, [block][part]; raises RoseError for none,
    or for parts that the model does not offer."""
    kinds: Sequence[str] | None = settings.parts
    if kinds is None:
        offered = kinds_of(model)
        read = [kind for kind in offered if settings.allocation != "uniform" or is_cut_everywhere(model, kind)]
        if not (kinds := read or offered):
            raise RoseError(
                f"Neither heads nor channels of {type(model).__name__} can be taken out, as its layers are not known, "
                "or other tensors belong to them; choose the method depth."
            )
    parts = find_parts(model, kinds)
    if settings.parts is not None:  # `kinds_of` has checked the others
        check_cuttable(model, parts)
    check_not_shared(
        [layer for of_block in parts for part in of_block for layer in part.layers], prunable_layers(model)
    )
    return parts


def estimate_slimming(model: nn.Module, settings: SlimSettings, *, samples: int, length: int) -> float:
    """Seconds of `prune_structured` on this machine; a skeleton is enough. `samples` includes held-out ones. One walk
    of the dense model prices the parts if necessary, another reduces them; `obs` updates an inverse for every removed
    column."""

    def walk(parts: Sequence[Part]) -> float:
        names = [part.output.name for part in parts]
        names = [layer.name for layer in visited_layers(Network(model), names)]
        return estimate_cost(model, samples=samples, length=length, layers=names, sweeps=0).seconds

    if structured_method(settings.method).select is None:
        return walk([])
    blocks = parts_to_reduce(model, settings)
    parts = [part for of_block in blocks for part in of_block]
    work, seconds = 0.0, walk(parts)
    if settings.allocation == "similarity":
        seconds += walk([])
    elif settings.allocation == "cost" or len(blocks[0]) > 1:
        work, seconds = PRICING, seconds + walk(parts)
    if repair_of(settings) == "exact":
        work += PRICING * settings.ratio + COMPENSATING
    widths = [part.output.weight.shape[1] for part in parts]
    return seconds + work * sum(width**3 * (BEYOND if 4 * width**2 > CACHE else 1) for width in widths) / matmul_rate()


def estimate_slim_memory(model: nn.Module, settings: SlimSettings, *, held_out: bool = False, **sizes: Any) -> Memory:
    """Memory of `prune_structured` for a streamed model or a skeleton, besides the interpreter and its libraries. See
    docs/large-models.md. `sizes` (`samples`, `length`, `dtype` and `on_disk`) as for `estimate_memory`."""
    if structured_method(settings.method).select is None:
        names = [layer.name for layer in visited_layers(Network(model), [])]
        return estimate_memory(model, layers=names, held_out=held_out, **sizes | {"on_disk": False})
    parts = [part for of_block in parts_to_reduce(model, settings) for part in of_block]
    names = [layer.name for layer in layers_read(structured_method(settings.method), parts)]
    sizes |= {"layers": names, "held_out": held_out, "dense_targets": settings.target == "dense"}
    base = estimate_memory(model, sequential=True, **sizes)
    squares = SQUARES_AT_WORK + held_out
    weights = [part.output.weight for part in parts]
    work = max(4 * (squares * weight.shape[1] ** 2 + WEIGHTS_AT_WORK * weight.numel()) for weight in weights)
    return dataclasses.replace(base, work=work)
