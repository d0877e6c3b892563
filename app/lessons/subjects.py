"""What the lessons are about: the paper's worked example, a generated layer, and layers of a study.

No Streamlit here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import pandas as pd
import torch
from torch import Tensor

import rose
from app.lab.sweeps import dense_energy
from app.study.study import Study
from rose.layer.columnar import Outlier, outlier
from rose.layer.error import quadratic_form
from rose.layer.order import plan_from_importance, visited_blocks

STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
SPARSITY = 0.7  # of the generated layer
BLOCK_SIZE = 16
TOKENS_PER_COLUMN = 4
SHARED = 0.6  # share of an input channel's variance that it has in common with others
SEPARATED = ("natural", "two_level", "random:0", "global")  # orders of the last lesson


# The paper's worked example: figure (b) of its overview illustration (arXiv 2603.05878)

EXAMPLE_IMPORTANCE = (
    (2.3, 1.2, 1.5, 2.4, 1.5, 1.0, 3.9, 4.6, 4.8),
    (1.4, 1.9, 1.5, 1.8, 0.6, 1.4, 4.8, 4.2, 4.7),
    (2.1, 1.6, 1.1, 2.2, 0.3, 1.1, 6.7, 5.1, 1.9),
    (2.8, 1.0, 2.0, 0.7, 1.1, 1.8, 4.9, 4.8, 1.6),
)


@lru_cache(maxsize=1)
def example() -> rose.OrderPlan:
    """The example's losses and order: blocks of three columns, a third of the weights to go."""
    return plan_from_importance(torch.tensor(EXAMPLE_IMPORTANCE), sparsity=1 / 3, block_size=3)


# A generated layer


@dataclass(frozen=True)
class LayerDesign:
    """A layer to be generated."""

    rows: int = 64
    blocks: int = 6
    strength: float = 2.0  # how much larger the weights of one block are: 0 not at all, 1 twice as large
    place: int = 5  # that block, counted from 0 on the left; the last one if there are fewer
    seed: int = 0

    @property
    def strong_block(self) -> int:
        return min(self.place, self.blocks - 1)


def generate(design: LayerDesign) -> tuple[Tensor, rose.InputStatistics]:
    """Weights, (rows, columns), and the statistics of correlated inputs."""
    generator = torch.Generator().manual_seed(design.seed)
    columns = design.blocks * BLOCK_SIZE
    statistics = statistics_of(correlated(TOKENS_PER_COLUMN * columns, columns, generator))
    weight = torch.randn(design.rows, columns, generator=generator)
    start = design.strong_block * BLOCK_SIZE
    weight[:, start : start + BLOCK_SIZE] *= 1 + design.strength
    return weight, statistics


def correlated(tokens: int, columns: int, generator: torch.Generator, mixing: Tensor | None = None) -> Tensor:
    """Inputs, (tokens, columns), that mix a few common sources with noise of their own.

    So columns can stand in for one another, as in a trained network; without that there would be nothing to compensate
    with. `mixing`: (sources, columns), for more tokens of the same kind.
    """
    sources = max(4, columns // 4)
    common = torch.randn(tokens, sources, generator=generator)
    mixing = torch.randn(sources, columns, generator=generator) if mixing is None else mixing
    own = torch.randn(tokens, columns, generator=generator)
    return common @ mixing * (SHARED / sources) ** 0.5 + own * (1 - SHARED) ** 0.5


def statistics_of(inputs: Tensor) -> rose.InputStatistics:
    statistics = rose.InputStatistics(inputs.shape[1])
    statistics.update(inputs)
    return statistics


# What a lesson looks at


@dataclass(frozen=True)
class Subject:
    """A layer, real or generated, ready to be pruned."""

    name: str
    plan: rose.OrderPlan
    energy: float  # tr(W H Wᵀ), what errors are relative to
    prune: Callable[[str, str, bool], rose.LayerResult]  # by order, budget and whether to trace; remembered
    found: Outlier | None  # the block that makes it columnar, or would
    study: Study | None = None  # that measured it

    @property
    def signature(self) -> tuple[str, float]:
        """Tells apart layers of one name, from studies begun at different times."""
        return self.name, self.study.created if self.study else 0.0


@lru_cache(maxsize=64)
def generated(design: LayerDesign) -> Subject:
    """The generated layer as a subject."""
    weight, statistics = generate(design)

    @lru_cache(maxsize=16)
    def prune(order: str, budget: str, trace: bool) -> rose.LayerResult:
        return rose.prune_layer(
            weight, statistics, sparsity=SPARSITY, block_size=BLOCK_SIZE, order=order, budget=budget, trace=trace
        )

    plan = rose.plan_order(weight, statistics, sparsity=SPARSITY, block_size=BLOCK_SIZE)
    found = outlier(plan, weight, statistics.mean_square.sqrt())
    return Subject("generated layer", plan, quadratic_form(weight, statistics.hessian), prune, found)


def real(study: Study, plan: rose.OrderPlan, layer: str) -> Subject:
    """A measured layer as a subject."""

    def prune(order: str, budget: str, trace: bool) -> rose.LayerResult:
        return study.prune(layer, order=order, budget=budget, trace=trace)

    norm = study.statistics(layer).mean_square.sqrt()
    found = outlier(plan, study.weight(layer), norm, study.heads(layer))
    return Subject(layer, plan, dense_energy(study, layer), prune, found, study)


def examples(study: Study, overview: pd.DataFrame) -> tuple[str, str] | None:
    """Of the layers measured so far, one that shows what an order does and one where there is nothing to show.

    The first has the highest relative range of the columnar layers whose blocks change places in two-level order, or
    of all where there is none; the second the lowest. None before the first layer is measured. Inputs may be missing
    still, and then it is not known which blocks move.
    """
    if overview.empty:
        return None
    table = overview.sort_values("relative_range", ascending=False, kind="stable")
    known = [layer for layer in table["layer"][table["is_columnar"]] if study.has(layer)]
    moving = (layer for layer in known if blocks_move(study.plan(layer)))
    return next(moving, table["layer"].iloc[0]), table["layer"].iloc[-1]


def blocks_move(plan: rose.OrderPlan) -> bool:
    """Whether two-level order visits blocks in another order than natural order does."""
    blocks = visited_blocks(plan, rose.make_order(plan, "two_level"))
    return blocks != list(range(len(blocks)))


def strengths(design: LayerDesign, values: Sequence[float]) -> list[tuple[float, float, float]]:
    """(strength, relative range, error of two-level order over that of natural order), block budget."""
    points = []
    for value in values:
        subject = generated(replace(design, strength=value))
        natural, ordered = (subject.prune(order, "block", False).relative_error for order in ("natural", "two_level"))
        points.append((value, subject.plan.relative_range, ordered / natural))
    return points
