"""What a structured run will do: the shapes of every decoder block and the memory, before anything is changed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict

from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from rose.errors import RoseError
from rose.model.estimate.duration import estimate_cost, matmul_rate
from rose.model.estimate.memory import Memory, estimate_memory
from rose.model.network.layers import check_not_shared, prunable_layers
from rose.model.network.network import Network
from rose.model.progress import ProgressCallback
from rose.recipe.parts import SlimSettings
from rose.structured.allocation import (
    Candidate,
    Shapes,
    check_multiple,
    check_possible,
    check_saved,
    cost_shapes,
    most_uniform,
    saved_by,
    similarity_ratios,
    similarity_shapes,
    too_much,
    uniform_candidates,
    uniform_shapes,
)
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
from rose.structured.parts import CHANNELS, Part, Shape, block_parameters, find_parts
from rose.structured.reduction import layers_read
from rose.structured.survey import BlockSurvey, survey, visited_layers

# Matrices of the size of A that are alive at once while one output projection is reduced: H, its mean S, A, A damped,
# its inverse, and three parts of A with their Cholesky factor (least squares), or two copies of the inverse (greedy).
SQUARES_AT_WORK = 8
# Floating-point operations a cubed column of an output projection, at the rate of a matrix product, measured: to price
# one part, which updates an inverse for each of its columns in turn, and to compensate by least squares.
PRICING, COMPENSATING = 20.0, 2.5
# Float32 matrices of the weight's size: W, its target and its gap, W compensated, reduced, and only masked.
WEIGHTS_AT_WORK = 6


class CutOptions(TypedDict, total=False):
    """Keywords of whatever takes out heads and channels; `SlimSettings` has their defaults."""

    method: str
    ratio: float
    parts: Sequence[str] | None
    recovery: str | None
    damping: float
    multiple: int


class SlimOptions(CutOptions, total=False):
    """Keywords of `rose.prune_structured`, which says what they mean."""

    allocation: str
    target: str
    target_damping: float | None


def repair_of(settings: SlimSettings) -> str:
    """The recovery asked for, or the method's own."""
    return settings.recovery or structured_method(settings.method).recovery


@dataclass(frozen=True)
class SlimPlan:
    """The shapes that a run will produce, [block][part], and the kinds of parts that may get a bias; whether the
    configuration says the result (`uniform`), so that any program loads it."""

    parts: list[list[Part]]
    shapes: Shapes
    biased: tuple[str, ...]
    uniform: bool


@dataclass(frozen=True)
class PossibleShapes:
    """What may be reduced, and to what: the parts as [block][part], the kinds that may get a bias, which uniform
    shapes the configuration can say (`allowed`), and those that are near (see `uniform_candidates`), none where shapes
    may differ."""

    parts: list[list[Part]]
    biased: tuple[str, ...]
    allowed: Callable[[Mapping[str, Shape]], bool]
    candidates: list[Candidate]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of the parts of every decoder block, in their order."""
        return tuple(part.kind for part in self.parts[0])


def possible_shapes(model: nn.Module, settings: SlimSettings) -> PossibleShapes:
    """Raises RoseError, before anything is measured, for shapes that are impossible or cannot be expressed."""
    uniform, multiple = settings.allocation == "uniform", settings.multiple
    found = parts_to_reduce(model, settings)
    repairs = repair_of(settings) != "none"
    readers: Readers = "rose" if not uniform else "transformers" if settings.recovery else "all"
    biased = tuple(part.kind for part in found[0] if repairs and can_bias(model, found, part.kind, readers))
    check_multiple(found, multiple)
    if not uniform and type(model.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise RoseError(
            f"{type(model).__name__} is code of a repository, which rose cannot build with shapes that differ; choose "
            "the allocation uniform."
        )
    whole = block_parameters(model)
    allowed = partial(can_say, model, found, biased=biased)
    candidates = []
    if uniform:
        candidates = _uniform_candidates(model, found, settings.ratio * whole, multiple, allowed)
    else:
        check_possible(found, settings.ratio, whole, multiple, settings.allocation)
    return PossibleShapes(found, biased, allowed, candidates)


def plan_slimming(
    model: nn.Module,
    tokens: Tensor,
    settings: SlimSettings,
    possible: PossibleShapes,
    *,
    surveys: Sequence[BlockSurvey] | None = None,
    progress: ProgressCallback | None = None,
    remember: Callable[[Callable[[], str]], str] = lambda compute: compute(),
) -> SlimPlan:
    """Which shapes the decoder blocks will have; the model is not changed.

    `possible` is what `possible_shapes` finds. Prices are those of the dense model, where the allocation asks for them;
    `remember` gives the shapes as text that an earlier run has kept, else what it is given to compute. Raises RoseError
    for shapes that come nowhere near the ratio.
    """
    allocation, multiple = settings.allocation, settings.multiple
    found, biased, wanted = possible.parts, possible.biased, settings.ratio * block_parameters(model)

    def priced(of_blocks: Sequence[Sequence[Part]]) -> Sequence[BlockSurvey]:
        damping = settings.damping
        return surveys or list(survey(model, tokens, of_blocks, biases=biased, damping=damping, progress=progress))

    def find() -> str:
        if allocation == "similarity":
            shapes = _similar(found, [one.similarity for one in priced([])], settings.ratio, wanted, multiple)
        elif allocation == "cost":
            shapes = cost_shapes(priced(found), wanted, multiple)
        else:
            prices = priced(found) if len(possible.kinds) > 1 else None
            chosen = uniform_shapes(possible.candidates, prices, possible.allowed, wanted / len(found))
            shapes = [[chosen[part.kind] for part in of_block] for of_block in found]
        return json.dumps([[dataclasses.astuple(shape) for shape in of_block] for of_block in shapes])

    shapes = [[Shape(*shape) for shape in of_block] for of_block in json.loads(remember(find))]
    return SlimPlan(found, shapes, biased, allocation == "uniform")


def _uniform_candidates(
    model: nn.Module,
    found: Sequence[Sequence[Part]],
    wanted: float,
    multiple: int,
    allowed: Callable[[Mapping[str, Shape]], bool],
) -> list[Candidate]:
    """See `uniform_candidates`; one at least is allowed, or RoseError says why none is."""
    every = parts_of_any(model)
    if len({(part.kind, part.shape) for part in every}) > len({part.kind for part in every}):
        raise RoseError(
            "The decoder blocks of this model differ in shape already; choose an allocation that lets them differ "
            "(cost or similarity)."
        )
    if CHANNELS in {part.kind for part in found[0]} and not can_say(model, found, {CHANNELS: Shape(1, 1)}):
        raise RoseError(
            f"The configuration of {type(model).__name__} has no number for MLP channels, so plain transformers could "
            "not load the result; allow shapes that rose alone reads (allocation cost), or choose the method depth."
        )
    candidates = uniform_candidates(found[0], wanted / len(found), multiple)
    if not any(allowed(chosen) for _, chosen in candidates):
        most = len(found) * most_uniform(found[0], multiple, allowed)
        if 0 < most < wanted:
            raise too_much(most / block_parameters(model))
        raise RoseError(
            "No uniform shapes that the configuration can say save about that much; ask for another ratio or parts, or "
            "allow shapes that differ (allocation cost)."
        )
    return candidates


def parts_to_reduce(model: nn.Module, settings: SlimSettings) -> list[list[Part]]:
    """The parts that settings name, else all that every program reads after the cut, [block][part]; raises RoseError
    for none, or parts that the model does not offer."""
    kinds: Sequence[str] | None = settings.parts
    if kinds is None:
        offered = kinds_of(model)
        read = [kind for kind in offered if settings.allocation != "uniform" or is_cut_everywhere(model, kind)]
        if not (kinds := read or offered):
            raise RoseError(
                f"Neither heads nor channels of {type(model).__name__} can be taken out, as its layers are not known, "
                "or other tensors belong to them; choose the method depth."
            )
    found = find_parts(model, kinds)
    if settings.parts is not None:  # `kinds_of` has checked the others
        check_cuttable(model, found)
    check_not_shared(
        [layer for of_block in found for part in of_block for layer in part.layers], prunable_layers(model)
    )
    return found


def _similar(
    parts: Sequence[Sequence[Part]], similarities: Sequence[float], ratio: float, wanted: float, multiple: int
) -> Shapes:
    """By similarity; heads are coarse, so that the ratio is adjusted until the whole comes out."""
    asked, best = ratio, None
    for _ in range(8):
        shapes = similarity_shapes(parts, similarity_ratios(similarities, asked), multiple)
        saved = saved_by(parts, shapes)
        if best is None or abs(saved - wanted) < abs(best[0] - wanted):
            best = (saved, shapes)
        asked *= wanted / max(saved, 1)
    assert best is not None
    check_saved(best[0], wanted)
    return best[1]


def estimate_slimming(model: nn.Module, settings: SlimSettings, *, samples: int, length: int) -> float:
    """Seconds that `prune_structured` takes on this machine; only shapes are read, so a skeleton will do.

    `samples` counts held-out ones too. A walk of the dense model prices the parts where the shapes ask for it; another
    one reduces them, where `obs` updates an inverse for every column that goes.
    """

    def walk(found: Sequence[Part]) -> float:
        names = [part.output.name for part in found]
        names = [layer.name for layer in visited_layers(Network(model), names)]
        return estimate_cost(model, samples=samples, length=length, layers=names, sweeps=0).seconds

    if structured_method(settings.method).select is None:
        return walk([])
    blocks = parts_to_reduce(model, settings)
    found = [part for of_block in blocks for part in of_block]
    work, seconds = 0.0, walk(found)
    if settings.allocation == "similarity":
        seconds += walk([])
    elif settings.allocation == "cost" or len(blocks[0]) > 1:
        work, seconds = PRICING, seconds + walk(found)
    if repair_of(settings) == "exact":
        work += PRICING * settings.ratio + COMPENSATING
    return seconds + work * sum(part.output.weight.shape[1] ** 3 for part in found) / matmul_rate()


def estimate_slim_memory(model: nn.Module, settings: SlimSettings, *, held_out: bool = False, **sizes: Any) -> Memory:
    """What `prune_structured` takes for a streamed model or a skeleton, besides the interpreter and its libraries.

    See docs/large-models.md. `sizes` (`samples`, `length`, `dtype` and `on_disk`) as for `estimate_memory`.
    """
    if structured_method(settings.method).select is None:
        names = [layer.name for layer in visited_layers(Network(model), [])]
        return estimate_memory(model, layers=names, held_out=held_out, **sizes | {"on_disk": False})
    found = [part for of_block in parts_to_reduce(model, settings) for part in of_block]
    names = [layer.name for layer in layers_read(structured_method(settings.method), found)]
    sizes |= {"layers": names, "held_out": held_out, "dense_targets": settings.target == "dense"}
    base = estimate_memory(model, sequential=True, **sizes)
    squares = SQUARES_AT_WORK + held_out
    work = [
        4 * (squares * part.output.weight.shape[1] ** 2 + WEIGHTS_AT_WORK * part.output.weight.numel())
        for part in found
    ]
    return dataclasses.replace(base, work=max(work))
