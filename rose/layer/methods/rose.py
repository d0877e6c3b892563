"""ROSE: SparseGPT in an order of its own, and ours after it with one budget for the layer."""

from __future__ import annotations

from torch import Tensor

from rose.layer.methods import LayerResult, Settings
from rose.layer.methods.toolkit import prune_by_sweep
from rose.layer.statistics import InputStatistics


def rose(weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """Two-level order where the layer is columnar, else natural; block budget."""
    return prune_by_sweep(weight, statistics, settings, order="rose", budget="block")


def rose_global(weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """Global order, descending column loss of a layer-wide pre-pruning; layer budget."""
    return prune_by_sweep(weight, statistics, settings, order="global", budget="layer")
