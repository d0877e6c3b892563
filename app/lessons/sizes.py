"""The same share of one layer removed at three sizes: single weights, columns, and heads. No Streamlit here.

All three are Optimal Brain Surgeon: least squares on what stays, for a set of weights chosen to cost least.
"""

from __future__ import annotations

from functools import lru_cache

import pandas as pd
import torch

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
    """Relative error of the outputs by size when as much goes as `heads` of six heads hold.

    It is `dropped` without compensation, and `compensated` with the least-squares solution for what stays.
    """
    weight, statistics = generate(DESIGN)
    hessian = statistics.hessian
    result = rose.prune_layer(weight, statistics, method="rose_admm", sparsity=heads / HEADS, options={"effort": 3})
    dropped = relative_error(weight, weight.masked_fill(result.mask, 0), hessian)
    rows = [("weights", int(result.mask.sum()), weight.numel(), dropped, result.relative_error)]
    for size, width in (("columns", 1), ("heads", BLOCK_SIZE)):
        units = weight.shape[1] // width
        problem = Problem(
            weight=weight,
            second=hessian / statistics.tokens,
            mean=statistics.mean,
            shape=Shape(1, units),
            width=width,
            with_bias=False,
        )
        count = units * heads // HEADS
        gone, _ = greedy(problem, count, [torch.arange(units)], torch.zeros(units, dtype=torch.bool))
        kept = torch.ones(units, dtype=torch.bool)
        kept[gone] = False
        dropped, left = (relative_error(weight, recover(problem, kept, how)[0], hessian) for how in ("none", "exact"))
        rows.append((size, count, units, dropped, left))
    return pd.DataFrame(rows, columns=["size", "removed", "units", "dropped", "compensated"])
