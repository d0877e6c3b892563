"""Cost of removing each unit of the dense model, measured in one pass, for the allocation."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rose.layer.pattern import DAMPING
from rose.layer.statistics import InputStatistics
from rose.model.network.layers import PrunableLayer, by_block, naming
from rose.model.network.network import Network
from rose.model.network.stand_ins import hooked
from rose.model.progress import ProgressCallback
from rose.model.walk.forward import hidden_of
from rose.model.walk.walk import BlockStatistics, check_streams, start_walk
from rose.model.workers import Workers
from rose.structured.methods import StructuredMethod
from rose.structured.parts import CHANNELS, HEADS, Part, Shape
from rose.structured.problem import Problem, greedy, unit_costs


@dataclass(frozen=True)
class PartSurvey:
    """One part of the dense model, priced."""

    part: Part
    unit_costs: Tensor  # error after least squares without each unit, (units,)
    energy: float  # mean square of the part's output, in the same unit, summed over channels
    # error by shape, with units removed greedily; all shapes of heads, every number of channels
    costs: dict[Shape, float]
    order: Tensor  # channels in the order of removal


@dataclass(frozen=True)
class BlockSurvey:
    """One decoder block of the dense model with its priced parts. `similarity` is the mean cosine of output and input
    by token, `stream` the mean square of its output summed over channels."""

    block_index: int
    similarity: float
    stream: float
    parts: list[PartSurvey]


def survey(
    model: nn.Module,
    tokens: Tensor,
    parts: Sequence[Sequence[Part]],
    *,
    biases: Sequence[str] = (),
    damping: float = DAMPING,
    progress: ProgressCallback | None = None,
) -> Iterator[BlockSurvey]:
    """Prices the parts of every decoder block on the dense model's inputs; the model is not changed. `parts` as from
    `find_parts`, or empty for similarity alone; `biases`: kinds whose output projections may have a bias."""
    names = [part.output.name for of_block in parts for part in of_block]
    network = Network(model)
    walk = start_walk(network, check_streams(network, tokens, None), visited_layers(network, names), progress)
    sums = torch.zeros(len(network.blocks), 3, dtype=torch.float64, device="cpu")  # cosines, squares, tokens

    def seen(index: int, _block: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        before = (args[0] if args else kwargs["hidden_states"]).flatten(0, -2).float()
        after = hidden_of(output).flatten(0, -2).float()
        sums[index, 0] += float(torch.cosine_similarity(before, after, dim=-1).sum())
        sums[index, 1] += float(after.square().sum(dtype=torch.float64))
        sums[index, 2] += len(before)

    # Only now: recording the inputs calls the blocks too, as stand-ins.
    blocks = enumerate(network.blocks)
    with hooked([block.register_forward_hook(partial(seen, index), with_kwargs=True) for index, block in blocks]):
        for block in walk.visit_dense():
            index = block.block_index
            priced = []
            for part in parts[index] if parts else []:

                def price(part: Part = part, block: BlockStatistics = block) -> tuple[Any, ...]:
                    with naming(part.output):  # the first process prices for all; only numbers are sent
                        result = price_part(part, block.calibration[part.output.name], part.kind in biases, damping)
                    return result.unit_costs, result.energy, result.costs, result.order

                priced.append(PartSurvey(part, *Workers.here().from_first(price)))
            block.clear()
            total = sums[index].to(network.device)
            Workers.here().sum_tensor(total)  # of all processes
            cosines, squares, count = total.tolist()
            yield BlockSurvey(index, cosines / count, squares / count, priced)


def visited_layers(network: Network, names: Sequence[str]) -> list[PrunableLayer]:
    """The layers with these names; without names the smallest layer of each decoder block."""
    if names:
        return network.select(names)
    of_blocks = by_block(network.layers).values()
    return [min(layers, key=lambda layer: layer.weight.numel()) for layers in of_blocks]


def layers_read(method: StructuredMethod, parts: Iterable[Part]) -> list[PrunableLayer]:
    """The layers whose inputs are needed: output projections and, for some methods, the layers that make channels."""
    parts = list(parts)
    layers = {part.output.name: part.output for part in parts}
    if method.looks_at_inputs:
        layers |= {layer.name: layer for part in parts if part.kind == CHANNELS for layer in part.makers}
    return list(layers.values())


def sources_of(
    part: Part, method: StructuredMethod, size: Callable[[str], Tensor]
) -> tuple[tuple[Tensor, Tensor], ...]:
    """For methods that need it: rows of weights that make the channels, (units, in), and root mean square inputs,
    (in,); `size` gives the latter by layer name."""
    if not method.looks_at_inputs or part.kind == HEADS:
        return ()
    return tuple(
        (rows.layer.weight[rows.start : rows.start + part.shape.units].float(), size(rows.layer.name))
        for rows in part.rows
    )


def make_problem(
    part: Part,
    statistics: InputStatistics,
    with_bias: bool,
    damping: float,
    sources: tuple[tuple[Tensor, Tensor], ...] = (),
) -> Problem:
    """The problem of one part's output projection, on these statistics."""
    second = statistics.hessian / statistics.total_weight
    return Problem(
        part.output.weight.float(), second, statistics.mean, part.shape, part.width, with_bias, damping,
        statistics.tokens, sources,
    )  # fmt: skip


def price_part(part: Part, statistics: InputStatistics, with_bias: bool, damping: float) -> PartSurvey:
    """Costs of one part; see `PartSurvey`."""
    problem = make_problem(part, statistics, with_bias, damping)
    costs = unit_costs(problem).cpu()
    if part.kind == HEADS:
        return PartSurvey(part, costs, problem.energy, head_costs(problem), torch.empty(0, dtype=torch.long))
    units = part.shape.units
    order, steps = greedy(problem, units - 1, [torch.arange(units)], torch.zeros(units, dtype=torch.bool))
    total = steps.cumsum(0).tolist()
    curve = {part.shape: 0.0} | {Shape(1, units - 1 - i): cost for i, cost in enumerate(total)}
    return PartSurvey(part, costs, problem.energy, curve, order)


def head_costs(problem: Problem) -> dict[Shape, float]:
    """Cost of every shape: whole groups go first, greedily, then equally many queries from each remaining group."""
    groups, per_group = problem.shape.groups, problem.shape.per_group
    pool = [torch.arange(groups)]
    order, steps = greedy(problem.coarse(), groups - 1, pool, torch.zeros(groups, dtype=torch.bool))
    costs: dict[Shape, float] = {}
    units = torch.arange(problem.shape.units).view(groups, per_group)
    away = torch.zeros(groups, dtype=torch.bool)
    spent = 0.0
    for step in range(groups):
        left = groups - step
        costs[Shape(left, per_group)] = spent
        if per_group > 1:
            pools = list(units[~away])
            _, costs_within = greedy(problem, per_group - 1, pools, away.repeat_interleave(per_group))
            for number, extra in enumerate(costs_within.view(per_group - 1, left).sum(1).cumsum(0).tolist()):
                costs[Shape(left, per_group - 1 - number)] = spent + extra
        if step < groups - 1:
            away[order[step]] = True
            spent += float(steps[step])
    return costs
