"""SparseGPT: one sweep from left to right, see `rose.layer.sweep`; and the same with other masks."""

from __future__ import annotations

from torch import Tensor

from rose.layer.methods import LayerResult, Settings
from rose.layer.methods.toolkit import prune_by_sweep
from rose.layer.statistics import InputStatistics


def sparsegpt(weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """Natural order, block budget."""
    return prune_by_sweep(weight, statistics, settings, order="natural", budget="block")


def isc(weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """Natural order, block budget; masks by the sum of the saliencies of Optimal Brain Damage and Surgeon (Shao et
    al. 2024). The authors' program adds 1/U_jj in place of 1/U_jj², which depends on the scale of H."""
    inverse = str(settings.options["inverse"])
    return prune_by_sweep(weight, statistics, settings, order="natural", budget="block", sum_saliency=inverse)
