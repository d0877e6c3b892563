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
from app.lessons.subjects import BLOCK_SIZE, correlated, statistics_of
from rose.layer.target import OutputGap, corrected_weight, target_damping

WIDTH = 64  # of the stream
HELD_OUT = 1024  # tokens
STEPS, BATCH = 100, 256  # of training the kept weights, and tokens of each
RATE = 3e-3
TUNED = "Through the loss as well"
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
    """Drift after every layer on held-out tokens, by kind of compensation; columns as `figures.drift` reads them."""
    return pd.concat(
        [
            _rows(design, name, method, target, _prune(design, method, target))
            for name, (method, target) in KINDS.items()
        ],
        ignore_index=True,
    )


@lru_cache(maxsize=32)
def drifts_tuned(design: ChainDesign) -> pd.DataFrame:
    """As `drifts`, and of the last of them once the kept weights of all layers are trained together.

    What is made small is the drift after the last layer on calibration tokens; zeros stay.
    """
    method, target = KINDS["Between layers too"]
    tuned = _tune(design, _prune(design, method, target))
    return pd.concat([drifts(design), _rows(design, TUNED, "tuned", target, tuned)], ignore_index=True)


def _rows(design: ChainDesign, name: str, method: str, target: str, weights: list[Tensor]) -> pd.DataFrame:
    """Drift after every layer on held-out tokens, of a chain with these weights."""
    known = {"run": name, "method": method, "sparsity": f"{design.sparsity:g}", "target": target}
    dense_weights, stream = _generate(design)
    dense = pruned = stream[:HELD_OUT]
    rows = []
    for number, (weight, other) in enumerate(zip(dense_weights, weights, strict=True), 1):
        dense, pruned = dense + norm(dense) @ weight.T, pruned + norm(pruned) @ other.T
        rows.append({**known, "block_index": number, "drift": drift(pruned, dense)})
    return pd.DataFrame(rows)


def _tune(design: ChainDesign, weights: list[Tensor]) -> list[Tensor]:
    """The weights after `STEPS` steps of Adam on calibration tokens; what was removed stays 0."""
    dense_weights, stream = _generate(design)
    every = wanted = stream[HELD_OUT:]
    generator = torch.Generator().manual_seed(0)
    for weight in dense_weights:
        wanted = wanted + norm(wanted) @ weight.T
    tuned = [weight.clone().requires_grad_() for weight in weights]
    optimizer = torch.optim.Adam(tuned, lr=RATE)
    with torch.enable_grad():
        for step in range(STEPS):
            some = torch.randperm(len(every), generator=generator)[:BATCH]
            hidden, aim = every[some], wanted[some]
            for one in tuned:
                hidden = hidden + norm(hidden) @ one.T
            ((hidden - aim).square().sum(-1) / aim.square().sum(-1)).mean().backward()
            for one, weight in zip(tuned, weights, strict=True):
                assert one.grad is not None
                one.grad[weight == 0] = 0.0
            optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
            optimizer.step()
            optimizer.zero_grad()
    return [one.detach() for one in tuned]


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
    mixing = torch.randn(WIDTH // 4, WIDTH, generator=generator)
    return weights, torch.cat([correlated(count, WIDTH, generator, mixing) for count in (HELD_OUT, design.tokens)])


def _prune(design: ChainDesign, method: str, target: str) -> list[Tensor]:
    """Prunes layer after layer, each on what the pruned ones before it make of the calibration tokens; the weights."""
    weights, dense = _generate(design)
    pruned, found = dense, []
    for weight in weights:
        x_pruned, x_dense = norm(pruned), norm(dense)
        statistics = statistics_of(x_pruned[HELD_OUT:])
        aim = weight
        if target == "dense":
            gap = OutputGap(WIDTH, WIDTH)
            lost = (x_dense - x_pruned) @ weight.T + dense - pruned
            gap.update(x_pruned[HELD_OUT:], lost[HELD_OUT:])
            aim, _ = corrected_weight(weight, statistics, gap, damping(design))
        result = rose.prune_layer(aim, statistics, method=method, sparsity=design.sparsity, block_size=BLOCK_SIZE)
        dense = dense + x_dense @ weight.T
        pruned = pruned + x_pruned @ result.weight.T
        found.append(result.weight)
    return found
