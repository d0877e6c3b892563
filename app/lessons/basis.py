"""A generated attention layer without its attention, in several bases: what a rotation of its heads changes, and what
not. No Streamlit here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import rose
from app.lab.basis import BASES
from rose.layer.basis import HeadLayout, find_rotations, rotate_columns
from rose.layer.error import relative_error
from rose.layer.pattern import Pattern

WIDTH, HEADS, BLOCK_SIZE, SPARSITY = 96, 6, 16, 0.7  # of the stream; heads as wide as a block
TOKENS = 512  # of calibration; equally many are held out
SHARED = 0.6  # part of an input channel's variance that it has in common with others
LAYOUT = HeadLayout(BLOCK_SIZE, tuple(range(HEADS)))
STEEPEST = 0.35  # by how much the parts of the last head's values fall, one after another, as exponents
METHODS = ("sparsegpt", "rose")


@dataclass(frozen=True)
class Turned:
    """The layer in one basis."""

    importance: list[float]  # of its columns, (in,)
    relative_range: float
    moved: float  # ‖y' − y‖ / ‖y‖, y being the dense output in the given basis
    errors: dict[str, float]  # held out, by method


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
            rotations = find_rotations(output, hessian, LAYOUT, name, pattern=Pattern(SPARSITY), block_size=BLOCK_SIZE)
            turned_output = rotate_columns(output, LAYOUT, rotations).float()
            turned_values = rotate_columns(values.T, LAYOUT, rotations).float().T  # RᵀW_v
        read = tokens @ turned_values.T
        statistics, held_out = _statistics(read[:TOKENS]), _statistics(read[TOKENS:])
        errors, options = {}, dict[str, Any](sparsity=SPARSITY, block_size=BLOCK_SIZE)
        for method in METHODS:
            pruned = rose.prune_layer(turned_output, statistics, method=method, **options).weight
            errors[method] = relative_error(turned_output, pruned, held_out.hessian)
        plan = rose.plan_order(turned_output, statistics, **options)
        moved = float((read @ turned_output.T - dense).norm() / dense.norm())
        layers[name] = Turned(plan.importance.sum(0).tolist(), plan.relative_range, moved, errors)
    return layers


def errors() -> pd.DataFrame:
    """One row per basis and method: basis, method, error."""
    rows = [(basis, method, error) for basis, layer in turned().items() for method, error in layer.errors.items()]
    return pd.DataFrame(rows, columns=["basis", "method", "error"])


def _generate() -> tuple[Tensor, Tensor, Tensor]:
    """W_v, (columns, width), W_o, (width, columns), and tokens, calibration first; channels share common sources."""
    generator = torch.Generator().manual_seed(0)
    columns, sources = HEADS * BLOCK_SIZE, WIDTH // 4
    heads = []
    for head in range(HEADS):  # equal in strength; from head to head fewer parts carry it, and each mixes its parts
        sizes = torch.exp(-STEEPEST * head / (HEADS - 1) * torch.arange(BLOCK_SIZE))
        sizes *= BLOCK_SIZE**0.5 / sizes.norm()
        mixing = torch.linalg.qr(torch.randn(BLOCK_SIZE, BLOCK_SIZE, generator=generator)).Q
        heads.append(mixing @ (sizes[:, None] * torch.randn(BLOCK_SIZE, WIDTH, generator=generator)) / WIDTH**0.5)
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
