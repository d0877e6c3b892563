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
from app.study import cache
from app.study.setup import Setup
from rose import verdicts
from rose.layer.error import quadratic_form
from rose.layer.forecast import price_columns
from rose.layer.pattern import SPARSITY as USUAL
from rose.layer.profile import HEADS, SPARSITIES, Profile
from rose.layer.split import split_error
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


def magnitude(zeros: int) -> tuple[Tensor, float]:
    """The mask of so many smallest weights, True = removed, (out, in), and the error that removing them makes."""
    weight = torch.tensor(WEIGHT)
    mask = torch.zeros_like(weight, dtype=torch.bool)
    mask.view(-1)[weight.abs().flatten().argsort(stable=True)[:zeros]] = True
    return mask, quadratic_form(weight * mask, hessian()) / energy()


def compensated(block: int) -> dict[str, float]:
    """The relative error of removing the weights of a block that pre-pruning chooses: if nothing else changes, and at
    best if the block goes last, when its own kept weights alone can change, or first, when all columns can."""
    H, W, mask = hessian().double(), torch.tensor(WEIGHT).double(), plan().potential_loss > 0
    columns = range(BLOCK_SIZE * block, BLOCK_SIZE * (block + 1))
    errors = {}
    for turn, helpers in (("nobody helps", ()), ("last", columns), ("first", NATURAL)):
        errors[turn] = 0.0
        for weights, removed in zip(W, mask, strict=True):
            gone = [column for column in columns if removed[column]]
            free = [column for column in helpers if column not in gone]
            # The least of δHδᵀ with δ fixed on the removed weights: the Schur complement of the free columns.
            left = H[gone][:, gone]
            if free:
                left = left - H[gone][:, free] @ torch.linalg.solve(H[free][:, free], H[free][:, gone])
            errors[turn] += float(weights[gone] @ left @ weights[gone]) / energy()
    return errors


def split(order: str, budget: str) -> tuple[float, float]:
    """The error of a sweep and the mask's part of it, as parts of SparseGPT's error; "random": the mean of `RANDOM`."""
    weight, base = torch.tensor(WEIGHT), prune("natural").relative_error
    names = RANDOM if order == "random" else (order,)
    parts = [split_error(weight, hessian(), prune(name, budget)) for name in names]
    return float(np.mean([part.error for part in parts])) / base, float(np.mean([part.mask for part in parts])) / base


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
    explained: dict[str, float]  # of the input's variance, by each other input and by both


def remove_one(alike: float, column: int) -> Removal:
    """Removes a weight of three; `alike` is the overlap of inputs 1 and 2, and 1 and 3 have none."""
    matrix = torch.tensor([[1.0, alike, 0.0], [alike, 1.0, 0.3], [0.0, 0.3, 1.0]], dtype=torch.float64)
    inverse = torch.linalg.inv(matrix)
    before = torch.tensor([1.0, 0.8, 0.6], dtype=torch.float64)
    after = before - before[column] / inverse[column, column] * inverse[column]
    after[column] = 0
    square = float(before[column] ** 2)
    alone, cost = square * float(matrix[column, column]), square / float(inverse[column, column])
    explained = {f"input {k}": float(matrix[column, k] ** 2) for k in range(3) if k != column}
    explained["both"] = 1 - 1 / float(inverse[column, column])
    return Removal(matrix, inverse, before, after, alone, cost, explained)


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
    table = pd.DataFrame([vars(record) for record in _study().records])
    errors = table.pivot_table(index="layer", columns="method", values="held_out_error", sort=False)
    facts = table.drop_duplicates("layer").set_index("layer")[["block_index", "projection", "is_columnar"]]
    return facts.join(errors).reset_index()


def _study() -> cache.Kept:
    study = cache.read_example(Setup())
    assert study is not None, "the example comes with the app"
    return study


def output_profile(block: int) -> tuple[str, Profile]:
    """An output projection of the example by its columns, and its name."""
    name = f"model.layers.{block}.self_attn.o_proj"
    return name, _study().profiles[name]


def head_width() -> int:
    """Columns of an attention head of the example's model."""
    width = _study().head_width
    assert width
    return width


def part_of(sweep: str, part: str) -> float:
    """The mean error of a sweep, or its mask's part, over output projections, as a part of SparseGPT's error."""
    return mean_of("splits.csv", f"{sweep.replace('random/', 'random:0/')} {part}")


@lru_cache(maxsize=1)
def ranges_by_heads() -> np.ndarray:
    """Relative range of every output projection of the example and its interval, (4 block sizes, 30 layers, 3)."""
    at, blocks = SPARSITIES.index(USUAL), example_layers()["block_index"].max() + 1
    profiles = [output_profile(block)[1] for block in range(blocks)]
    return np.stack([profile.ranges[at, : len(HEADS)].numpy() for profile in profiles], axis=1)


def saved_by_rose() -> float:
    """Share of SparseGPT's held-out error that ROSE's order saves, mean over the columnar layers of the example."""
    columnar = example_layers().query("is_columnar")
    return 1 - float((columnar["two_level"] / columnar["sparsegpt"]).mean())
