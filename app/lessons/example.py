"""The layers that the lessons prune: three inputs and one output, and four outputs of nine inputs.

The larger one has the importance S of the ROSE paper's worked example (arXiv 2603.05878, overview figure, part b). The
paper names no inputs. All inputs here have size 1, so S = |W|. Signs and overlaps were drawn at random, and chosen so
that the effects of an order are large enough to be seen. No Streamlit here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

import rose
from rose.layer.error import quadratic_form

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
    return rose.prune_layer(torch.tensor(weight), hessian(), order=chosen, budget=budget, **options)


def energy(weight: Weights = WEIGHT) -> float:
    """tr(W H Wᵀ), what errors are relative to."""
    return quadratic_form(torch.tensor(weight), hessian())


def prices(order: str | Sequence[int] = "natural") -> list[float]:
    """d of every column, as visited."""
    chosen = order if isinstance(order, str) else torch.tensor(order)
    return rose.price_columns(plan(), chosen).price.tolist()


# Three inputs and one output


@dataclass(frozen=True)
class Removal:
    """Three weights, of which one is removed."""

    hessian: Tensor  # (3, 3)
    inverse: Tensor  # H⁻¹, (3, 3)
    before: Tensor  # (3,)
    after: Tensor  # (3,)
    alone: float  # cost if no other weight changes, w² H_jj
    cost: float  # w² / [H⁻¹]_jj


THREE = (1.0, 0.8, 0.6)
SECOND_OVERLAP = 0.3  # of inputs 2 and 3; inputs 1 and 3 have none


def remove_one(alike: float, column: int) -> Removal:
    """Removes one of three weights; `alike` is the overlap of inputs 1 and 2."""
    rows = [[1.0, alike, 0.0], [alike, 1.0, SECOND_OVERLAP], [0.0, SECOND_OVERLAP, 1.0]]
    matrix = torch.tensor(rows, dtype=torch.float64)
    inverse = torch.linalg.inv(matrix)
    before = torch.tensor(THREE, dtype=torch.float64)
    after = before - before[column] / inverse[column, column] * inverse[column]
    after[column] = 0
    square = float(before[column] ** 2)
    alone, cost = square * float(matrix[column, column]), square / float(inverse[column, column])
    return Removal(matrix, inverse, before, after, alone, cost)
