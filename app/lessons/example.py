"""The layers that the lessons prune, and measurements of whole models that the lessons quote. No Streamlit here.

Two layers have printed numbers: three inputs and one output, and four outputs of nine inputs. The larger layer has the
importance S of the ROSE paper's worked example (arXiv 2603.05878, overview figure, part b). The paper names no inputs.
All inputs here have size 1, so S = |W|. Signs and overlaps were drawn at random, and chosen so that the effects of an
order are large enough to be seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import rose
from app.lab.basis import BASES
from app.study import cache
from app.study.setup import Setup
from rose import verdicts
from rose.layer.basis import HeadLayout, find_rotations, rotate_columns
from rose.layer.error import quadratic_form, relative_error
from rose.layer.forecast import price_columns
from rose.layer.pattern import Pattern
from rose.verdicts import Interval

SPARSITY, BLOCK_SIZE, DAMPING = 1 / 3, 3, 0.0  # no damping: the formulas hold to the last digit
WEIGHT = (
    (-2.3, 1.2, 1.5, -2.4, -1.5, 1.0, -3.9, 4.6, -4.8),
    (-1.4, 1.9, -1.5, -1.8, -0.6, 1.4, -4.8, 4.2, 4.7),
    (2.1, 1.6, 1.1, 2.2, -0.3, -1.1, -6.7, -5.1, -1.9),
    (-2.8, 1.0, 2.0, -0.7, -1.1, -1.8, 4.9, -4.8, -1.6),
)
OVERLAPS = (  # H below its diagonal, which is 1
    (-0.25,),
    (0.0, 0.35),
    (0.45, 0.25, 0.1),
    (0.15, -0.6, -0.6, -0.2),
    (-0.25, 0.3, 0.6, -0.2, -0.5),
    (-0.2, -0.05, -0.65, -0.05, 0.4, -0.55),
    (-0.1, 0.55, 0.0, 0.2, -0.3, 0.0, 0.15),
    (0.25, 0.4, 0.4, 0.6, -0.45, 0.1, -0.25, 0.15),
)
NATURAL = tuple(range(9))
RANDOM = tuple(f"random:{seed}" for seed in range(60))  # orders
Weights = tuple[tuple[float, ...], ...]


def hessian() -> Tensor:
    """H of the nine inputs, (9, 9)."""
    lower = torch.eye(9) / 2
    for row, values in enumerate(OVERLAPS, 1):
        lower[row, :row] = torch.tensor(values)
    return lower + lower.T


def plan(weight: Weights = WEIGHT) -> rose.OrderPlan:
    """Losses and order of ROSE: a third of the weights is to go, in blocks of three columns."""
    return rose.plan_order(torch.tensor(weight), hessian(), sparsity=SPARSITY, block_size=BLOCK_SIZE, damping=DAMPING)


@lru_cache(maxsize=1024)
def prune(order: str | tuple[int, ...], budget: str = "block", weight: Weights = WEIGHT) -> rose.LayerResult:
    """One sweep, traced. `order`: a name, or the columns as visited, counted from 0."""
    chosen = order if isinstance(order, str) else torch.tensor(order)
    options: dict[str, Any] = {"sparsity": SPARSITY, "block_size": BLOCK_SIZE, "damping": DAMPING, "trace": True}
    return rose.prune_layer(torch.tensor(weight), hessian(), method="rose", order=chosen, budget=budget, **options)


def order(name: str, weight: Weights = WEIGHT) -> tuple[int, ...]:
    """The columns as a named order visits them."""
    return tuple(prune(name, weight=weight).order.permutation.tolist())


def energy(weight: Weights = WEIGHT) -> float:
    """tr(W H Wᵀ), what errors are relative to."""
    return quadratic_form(torch.tensor(weight), hessian())


def prices(order: str | Sequence[int] = "natural") -> list[float]:
    """d of every column, as visited."""
    chosen = order if isinstance(order, str) else torch.tensor(order)
    return price_columns(plan(), chosen).price.tolist()


# Three inputs and one output


@dataclass(frozen=True)
class Removal:
    """Three weights before and after the removal of a weight."""

    hessian: Tensor  # (3, 3)
    inverse: Tensor  # H⁻¹, (3, 3)
    before: Tensor  # (3,)
    after: Tensor  # (3,)
    alone: float  # cost if no other weight changes, w² H_jj
    cost: float  # w² / [H⁻¹]_jj


def remove_one(alike: float, column: int) -> Removal:
    """Removes a weight of three; `alike` is the overlap of inputs 1 and 2, and 1 and 3 have none."""
    matrix = torch.tensor([[1.0, alike, 0.0], [alike, 1.0, 0.3], [0.0, 0.3, 1.0]], dtype=torch.float64)
    inverse = torch.linalg.inv(matrix)
    before = torch.tensor([1.0, 0.8, 0.6], dtype=torch.float64)
    after = before - before[column] / inverse[column, column] * inverse[column]
    after[column] = 0
    square = float(before[column] ** 2)
    alone, cost = square * float(matrix[column, column]), square / float(inverse[column, column])
    return Removal(matrix, inverse, before, after, alone, cost)


# A generated value and output projection without softmax, in several bases: what a rotation of its heads changes

WIDTH, HEADS, HEAD_SIZE, ZEROS = 96, 6, 16, 0.7  # of the stream; heads as wide as a block; sparsity
TOKENS = 512  # of calibration; equally many are held out
SHARED = 0.6  # part of an input channel's variance that it has in common with others
LAYOUT = HeadLayout(HEAD_SIZE, tuple(range(HEADS)))
STEEPEST = 0.35  # decay rate of the singular values of the last head
METHODS = ("sparsegpt", "rose")


@dataclass(frozen=True)
class Turned:
    """The layer in one basis."""

    importance: list[float]  # of its columns, (in,)
    relative_range: float
    moved: float  # ‖y' − y‖ / ‖y‖, y being the dense output in the given basis
    errors: dict[str, float]  # held out, by method
    fitted: dict[str, float]  # on calibration tokens, by method


@lru_cache(maxsize=1)
def turned() -> dict[str, Turned]:
    """The layer in every basis of `BASES`."""
    values, output, tokens = _generate()
    dense = tokens @ values.T @ output.T
    hessian = _statistics(tokens[:TOKENS] @ values.T).hessian
    layers = {}
    for name in BASES:
        turned_values, turned_output = values, output
        if name != "given":
            rotations = find_rotations(output, hessian, LAYOUT, name, pattern=Pattern(ZEROS), block_size=HEAD_SIZE)
            turned_output = rotate_columns(output, LAYOUT, rotations).float()
            turned_values = rotate_columns(values.T, LAYOUT, rotations).float().T  # RᵀW_v
        read = tokens @ turned_values.T
        statistics, held_out = _statistics(read[:TOKENS]), _statistics(read[TOKENS:])
        options: dict[str, Any] = {"sparsity": ZEROS, "block_size": HEAD_SIZE}
        pruned = {name: rose.prune_layer(turned_output, statistics, method=name, **options) for name in METHODS}
        fitted = {method: result.relative_error for method, result in pruned.items()}
        errors = {name: relative_error(turned_output, pruned[name].weight, held_out.hessian) for name in METHODS}
        plan = rose.plan_order(turned_output, statistics, **options)
        moved = float((read @ turned_output.T - dense).norm() / dense.norm())
        layers[name] = Turned(plan.importance.sum(0).tolist(), plan.relative_range, moved, errors, fitted)
    return layers


def errors_in_bases() -> pd.DataFrame:
    """One row per basis and method: basis, method, held_out_error, relative_error."""
    layers = turned().items()
    rows = [(basis, name, layer.errors[name], layer.fitted[name]) for basis, layer in layers for name in METHODS]
    return pd.DataFrame(rows, columns=["basis", "method", "held_out_error", "relative_error"])


def _generate() -> tuple[Tensor, Tensor, Tensor]:
    """W_v, (columns, width), W_o, (width, columns), and tokens, calibration first; channels share common sources."""
    generator = torch.Generator().manual_seed(0)
    columns, sources = HEADS * HEAD_SIZE, WIDTH // 4
    heads = []
    for head in range(HEADS):  # equal norms; later heads decay faster; each is rotated at random
        sizes = torch.exp(-STEEPEST * head / (HEADS - 1) * torch.arange(HEAD_SIZE))
        sizes *= HEAD_SIZE**0.5 / sizes.norm()
        mixing = torch.linalg.qr(torch.randn(HEAD_SIZE, HEAD_SIZE, generator=generator)).Q
        heads.append(mixing @ (sizes[:, None] * torch.randn(HEAD_SIZE, WIDTH, generator=generator)) / WIDTH**0.5)
    values = torch.cat(heads)
    output = torch.randn(WIDTH, columns, generator=generator)
    common = torch.randn(2 * TOKENS, sources, generator=generator)
    mixing = torch.randn(sources, WIDTH, generator=generator) * (SHARED / sources) ** 0.5
    noise = torch.randn(2 * TOKENS, WIDTH, generator=generator)
    return values, output, common @ mixing + noise * (1 - SHARED) ** 0.5


def _statistics(inputs: Tensor) -> rose.InputStatistics:
    statistics = rose.InputStatistics(inputs.shape[1])
    statistics.update(inputs)
    return statistics


# Measurements of whole models

# `python -m tests.benchmarks.example_study whole_models` copies the file out of docs/results.
DATA = Path(__file__).with_name("whole_models.csv")


def measured() -> pd.DataFrame:
    """file of docs/results, method (order/budget, basis), tuned, seed, value: perplexities at 70 %, or errors."""
    return pd.read_csv(DATA)


def perplexity_ratio(method: str, *, tuned: bool = False) -> Interval:
    """Perplexity over SparseGPT's, not tuned, paired over draws of calibration."""
    table = measured()[measured()["file"] == "headline.csv"].sort_values("seed")
    chosen = (
        (table["method"] == name) & (table["tuned"] == tunes) for name, tunes in ((method, tuned), ("sparsegpt", False))
    )
    return verdicts.paired_ratio(*(list(np.log(table["value"][rows])) for rows in chosen))


def mean_of(file: str, name: str) -> float:
    """A mean over a file's layers and draws, of held-out errors over SparseGPT's or of numbers of columnar layers."""
    table = measured()
    return float(table[(table["file"] == file) & (table["method"] == name)]["value"].mean())


@lru_cache(maxsize=1)
def example_layers() -> pd.DataFrame:
    """The finished study that the app opens with: a row a layer with is_columnar, and held-out errors by method."""
    example = cache.read_example(Setup())
    assert example is not None, "the example comes with the app"
    table = pd.DataFrame([vars(record) for record in example.records])
    errors = table.pivot_table(index="layer", columns="method", values="held_out_error", sort=False)
    facts = table.drop_duplicates("layer").set_index("layer")[["block_index", "projection", "is_columnar"]]
    return facts.join(errors).reset_index()


def saved_by_rose() -> float:
    """Share of SparseGPT's held-out error that ROSE's order saves, mean over the columnar layers of the example."""
    columnar = example_layers().query("is_columnar")
    return 1 - float((columnar["two_level"] / columnar["sparsegpt"]).mean())
