"""SparseGPT: one sweep from left to right, see `rose.layer.sweep`."""

from __future__ import annotations

from torch import Tensor

from rose.layer.methods import LayerResult, Settings, register
from rose.layer.methods.toolkit import prune_by_sweep
from rose.layer.statistics import InputStatistics


@register(
    "sparsegpt",
    "SparseGPT",
    "Natural column order, the same ratio in every block, with compensation (Frantar and Alistarh 2023).",
    sweeps=True,
)
def sparsegpt(weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """Natural order, block budget."""
    return prune_by_sweep(weight, statistics, settings, order="natural", budget="block")
