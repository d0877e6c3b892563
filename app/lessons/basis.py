"""A generated attention layer without its attention, in several bases: what a rotation of its heads changes, and what
not. No Streamlit here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import pandas as pd
import torch
from torch import Tensor

import rose
from app.lab.bases import BASES, METHODS
from app.lessons.subjects import BLOCK_SIZE, SPARSITY, correlated, statistics_of
from rose.layer.basis import HeadLayout, find_rotations, rotate_columns
from rose.layer.error import relative_error
from rose.layer.pattern import Pattern

WIDTH, HEADS = 96, 6  # of the stream; heads as wide as a block
TOKENS = 1024  # of calibration, and as many held out
LAYOUT = HeadLayout(BLOCK_SIZE, tuple(range(HEADS)))


@dataclass(frozen=True)
class Turned:
    """The layer in one basis.

    Attributes:
        plan: of its output projection.
        moved: ‖y' − y‖ / ‖y‖ of what the dense layer puts out, y as given.
        errors: by method, (calibration, held out).
    """

    plan: rose.OrderPlan
    moved: float
    errors: dict[str, tuple[float, float]]


@lru_cache(maxsize=1)
def turned() -> dict[str, Turned]:
    """The layer in every basis of `BASES`."""
    values, output, tokens = _generate()
    given = tokens @ values.T @ output.T
    hessian = statistics_of(tokens[:TOKENS] @ values.T).hessian
    found = {}
    for name in BASES:
        turned_values, turned_output = values, output
        if name != "given":
            rotations = find_rotations(output, hessian, LAYOUT, name, pattern=Pattern(SPARSITY), block_size=BLOCK_SIZE)
            turned_output = rotate_columns(output, LAYOUT, rotations).float()
            turned_values = rotate_columns(values.T, LAYOUT, rotations).float().T  # RᵀW_v
        read = tokens @ turned_values.T
        statistics, held_out = statistics_of(read[:TOKENS]), statistics_of(read[TOKENS:])
        errors = {}
        for method in METHODS:
            result = rose.prune_layer(
                turned_output, statistics, method=method, sparsity=SPARSITY, block_size=BLOCK_SIZE
            )
            errors[method] = result.relative_error, relative_error(turned_output, result.weight, held_out.hessian)
        plan = rose.plan_order(turned_output, statistics, sparsity=SPARSITY, block_size=BLOCK_SIZE)
        moved = float((read @ turned_output.T - given).norm() / given.norm())
        found[name] = Turned(plan, moved, errors)
    return found


def errors() -> pd.DataFrame:
    """One row per basis and method, as `figures.orders` reads them."""
    rows = [(basis, method, *pair) for basis, one in turned().items() for method, pair in one.errors.items()]
    return pd.DataFrame(rows, columns=["basis", "method", "relative_error", "held_out_error"])


def _generate() -> tuple[Tensor, Tensor, Tensor]:
    """W_v, (columns, width), W_o, (width, columns), and tokens, calibration first; their channels are correlated."""
    generator = torch.Generator().manual_seed(0)
    columns = HEADS * BLOCK_SIZE
    values = torch.randn(columns, WIDTH, generator=generator) / WIDTH**0.5
    output = torch.randn(WIDTH, columns, generator=generator)
    return values, output, correlated(2 * TOKENS, WIDTH, generator)
