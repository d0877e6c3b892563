"""The same share of one layer removed at three sizes: single weights, columns, and heads. No Streamlit here.

All three are Optimal Brain Surgeon: least squares on what stays, for a set of weights chosen to cost least.
"""

from __future__ import annotations

from functools import lru_cache

import pandas as pd
import torch
from torch import Tensor

import rose
from app.lessons.subjects import BLOCK_SIZE, LayerDesign, generate
from rose.layer.error import relative_error
from rose.structured.parts import Shape
from rose.structured.problem import Problem, greedy, recover

DESIGN = LayerDesign(strength=0.0)  # six heads alike, so that size alone makes the difference
HEADS = 6
SIZES = {"weights": "Weights", "columns": "Columns", "heads": "Heads"}


@lru_cache(maxsize=8)
def errors(heads: int) -> pd.DataFrame:
    """Relative error of the outputs when as much goes as `heads` of six heads hold.

    Returns:
        A row per size: size, removed (units), units, dropped (error without compensation), compensated (error of the
        least-squares solution for what stays).
    """
    weight, statistics = generate(DESIGN)
    rows = [_weights(weight, statistics, heads)]
    rows += [_units(weight, statistics, size, width, heads) for size, width in (("columns", 1), ("heads", BLOCK_SIZE))]
    return pd.DataFrame(rows)


def _weights(weight: Tensor, statistics: rose.InputStatistics, heads: int) -> dict[str, object]:
    result = rose.prune_layer(weight, statistics, method="rose_admm", sparsity=heads / HEADS, options={"effort": 3})
    dropped = relative_error(weight, weight.masked_fill(result.mask, 0), statistics.hessian)
    return _row("weights", int(result.mask.sum()), weight.numel(), dropped, result.relative_error)


def _units(weight: Tensor, statistics: rose.InputStatistics, size: str, width: int, heads: int) -> dict[str, object]:
    units = weight.shape[1] // width
    problem = Problem(
        weight=weight,
        second=statistics.hessian / statistics.tokens,
        mean=statistics.mean,
        shape=Shape(1, units),
        width=width,
        with_bias=False,
        damping=0.01,
        sources=(),
    )
    count = units * heads // HEADS
    gone, _ = greedy(problem, count, [torch.arange(units)], torch.zeros(units, dtype=torch.bool))
    kept = torch.ones(units, dtype=torch.bool)
    kept[gone] = False
    dropped, compensated = (
        relative_error(weight, recover(problem, kept, how)[0], statistics.hessian) for how in ("none", "exact")
    )
    return _row(size, count, units, dropped, compensated)


def _row(size: str, removed: int, units: int, dropped: float, compensated: float) -> dict[str, object]:
    return {"size": size, "removed": removed, "units": units, "dropped": dropped, "compensated": compensated}
