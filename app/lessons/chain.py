"""Layers one after another on a residual stream, small enough to be pruned while the page is drawn. No Streamlit here.

Each layer adds W norm(h) to the stream h. So errors of the first layers reach all later ones, as in a transformer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import pandas as pd
import torch
from torch import Tensor

import rose
from app.lessons.subjects import BLOCK_SIZE, SHARED
from rose.layer.target import OutputGap, corrected_weight, target_damping

WIDTH = 64  # of the stream
HELD_OUT = 1024  # tokens
# Name -> method and target: what each kind of compensation adds.
KINDS = {
    "No compensation": ("magnitude", "layer"),
    "Inside each layer": ("sparsegpt", "layer"),
    "Between layers too": ("sparsegpt", "dense"),
}


@dataclass(frozen=True)
class ChainDesign:
    """Layers to be generated and pruned."""

    layers: int = 4
    sparsity: float = 0.7
    tokens: int = 2048  # of calibration


def norm(hidden: Tensor) -> Tensor:
    """Scales every token to length √width: what a layer reads."""
    return hidden / hidden.square().mean(-1, keepdim=True).sqrt()


def drift(pruned: Tensor, dense: Tensor) -> float:
    """Mean over tokens of ‖h_p − h_d‖²/‖h_d‖²; both (tokens, width)."""
    return float(((pruned - dense).square().sum(-1) / dense.square().sum(-1)).mean())


@lru_cache(maxsize=32)
def drifts(design: ChainDesign) -> pd.DataFrame:
    """Drift after every layer on held-out tokens, by kind of compensation; columns as `figures.depth` reads them."""
    rows = [
        {"run": name, "method": method, "sparsity": f"{design.sparsity:g}", "target": target, **found}
        for name, (method, target) in KINDS.items()
        for found in _prune(design, method, target)
    ]
    return pd.DataFrame(rows)


def ends(table: pd.DataFrame) -> list[float]:
    """Drift after the last layer, by kind of compensation."""
    return table.groupby("run", sort=False)["drift"].last().tolist()


def damping(design: ChainDesign) -> float:
    """μ of the correction."""
    return target_damping(WIDTH, design.tokens, design.layers)


def _generate(design: ChainDesign) -> tuple[list[Tensor], Tensor]:
    """Weights, (width, width) each, and the stream of all tokens, held-out ones first; its channels are correlated."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5 for _ in range(design.layers)]
    sources = WIDTH // 4
    mixing = torch.randn(sources, WIDTH, generator=generator)

    def draw(count: int) -> Tensor:
        common = torch.randn(count, sources, generator=generator) @ mixing
        own = torch.randn(count, WIDTH, generator=generator)
        return common * (SHARED / sources) ** 0.5 + own * (1 - SHARED) ** 0.5

    return weights, torch.cat([draw(HELD_OUT), draw(design.tokens)])


def _prune(design: ChainDesign, method: str, target: str) -> list[dict[str, float]]:
    """Prunes layer after layer, each on what the pruned ones before it make of the calibration tokens."""
    weights, dense = _generate(design)
    pruned, found = dense, []
    for number, weight in enumerate(weights, 1):
        x_pruned, x_dense = norm(pruned), norm(dense)
        statistics = rose.InputStatistics(WIDTH)
        statistics.update(x_pruned[HELD_OUT:])
        aim = weight
        if target == "dense":
            gap = OutputGap(WIDTH, WIDTH)
            lost = (x_dense - x_pruned) @ weight.T + dense - pruned
            gap.update(x_pruned[HELD_OUT:], lost[HELD_OUT:])
            aim, _ = corrected_weight(weight, statistics, gap, damping(design))
        result = rose.prune_layer(aim, statistics, method=method, sparsity=design.sparsity, block_size=BLOCK_SIZE)
        dense = dense + x_dense @ weight.T
        pruned = pruned + x_pruned @ result.weight.T
        found.append({"block_index": number, "drift": drift(pruned[:HELD_OUT], dense[:HELD_OUT])})
    return found
