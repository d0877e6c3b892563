"""Cost of removing each unit of the dense model, measured in one pass, for the allocation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from rose.model.walk.walk import check_streams, start_walk
from rose.model.workers import Workers
from rose.structured.parts import HEADS, Part, Shape
from rose.structured.problem import Problem, greedy, unit_costs


@dataclass(frozen=True)
class PartSurvey:
    """One part of the dense model, priced.

    Attributes:
        unit_costs: error after least squares without each unit, (units,).
        energy: mean square of the part's output, in the same unit, summed over channels.
        costs: error by shape, with units removed greedily; all shapes of heads, every number of channels.
        order: channels in the order of removal.
    """

    part: Part
    unit_costs: Tensor
    energy: float
    costs: dict[Shape, float]
    order: Tensor


@dataclass(frozen=True)
class BlockSurvey:
    """One decoder block of the dense model: its priced parts, the mean cosine of output and input by token
    (`similarity`), and the mean square of its output summed over channels (`stream`)."""

    block_index: int
    similarity: float
    stream: float
    parts: list[PartSurvey]


class _Watch:
    """Forward hooks that compare each decoder block's input and output."""

    def __init__(self, network: Network) -> None:
        self.device, blocks = network.device, network.blocks
        self.cosines, self.squares, self.tokens = [0.0] * len(blocks), [0.0] * len(blocks), [0] * len(blocks)
        self.hooks = [
            block.register_forward_hook(partial(self._seen, index), with_kwargs=True)
            for index, block in enumerate(blocks)
        ]

    def _seen(self, index: int, _block: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        before = (args[0] if args else kwargs["hidden_states"]).flatten(0, -2).float()
        after = hidden_of(output).flatten(0, -2).float()
        self.cosines[index] += float(torch.cosine_similarity(before, after, dim=-1).sum())
        self.squares[index] += float(after.square().sum(dtype=torch.float64))
        self.tokens[index] += len(before)

    def means(self, index: int) -> tuple[float, float]:
        """Similarity and mean square of one decoder block over the tokens of all processes."""
        sums = [self.cosines[index], self.squares[index], float(self.tokens[index])]
        total = torch.tensor(sums, dtype=torch.float64, device=self.device)
        Workers.here().sum_tensor(total)
        return float(total[0] / total[2]), float(total[1] / total[2])


def survey(
    model: nn.Module,
    tokens: Tensor,
    parts: Sequence[Sequence[Part]],
    *,
    biases: Sequence[str] = (),
    damping: float = DAMPING,
    progress: ProgressCallback | None = None,
) -> Iterator[BlockSurvey]:
    """Prices the parts of every decoder block on the dense model's inputs; the model is not changed.

    `parts` as from `find_parts`, or empty for similarity alone; `biases`: kinds whose output projections may have a
    bias.
    """
    names = [part.output.name for of_block in parts for part in of_block]
    network = Network(model)
    walk = start_walk(network, check_streams(network, tokens, None), visited_layers(network, names), progress)
    watch = _Watch(network)  # only now: recording the inputs calls the blocks too, as stand-ins
    with hooked(watch.hooks):
        for block in walk.visit_dense():
            index = block.block_index
            priced = []
            for part in parts[index] if parts else []:
                price = partial(price_part, part, block.calibration[part.output.name], part.kind in biases, damping)
                priced.append(_from_first(part, price))
            block.let_go()
            yield BlockSurvey(index, *watch.means(index), priced)


def _from_first(part: Part, price: Callable[[], PartSurvey]) -> PartSurvey:
    """The first process prices for all; only numbers are sent."""

    def numbers() -> tuple[Any, ...]:
        with naming(part.output):
            survey_ = price()
        return survey_.unit_costs, survey_.energy, survey_.costs, survey_.order

    return PartSurvey(part, *Workers.here().from_first(numbers))


def visited_layers(network: Network, names: Sequence[str]) -> list[PrunableLayer]:
    """The layers with these names; without names the smallest layer of each decoder block."""
    if names:
        return network.select(names)
    of_blocks = by_block(network.layers).values()
    return [min(layers, key=lambda layer: layer.weight.numel()) for layers in of_blocks]


def make_problem(
    part: Part,
    statistics: InputStatistics,
    with_bias: bool,
    damping: float,
    sources: tuple[tuple[Tensor, Tensor], ...] = (),
) -> Problem:
    """The problem of one part's output projection, on these statistics."""
    return Problem(
        weight=part.output.weight.float(),
        second=statistics.hessian / statistics.total_weight,
        mean=statistics.mean,
        shape=part.shape,
        width=part.width,
        with_bias=with_bias,
        damping=damping,
        tokens=statistics.tokens,
        sources=sources,
    )


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
