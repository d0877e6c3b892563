"""SparseGPT: one sweep from left to right, see `rose.layer.sweep`; and the same with other masks."""

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


@register(
    "sensitivity",
    "Sensitivity-aware",
    "SparseGPT with masks chosen by w²·(H_jj + 1/[H⁻¹]_jj), the improved saliency of Shao et al. 2024.",
    sweeps=True,
)
def sensitivity(weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """Natural order, block budget; the sum of the saliencies of Optimal Brain Damage and Surgeon decides.

    As in SparseGPT's sweep, [H⁻¹]_jj is that of the columns not yet visited, which is U_jj².
    """
    return prune_by_sweep(weight, statistics, settings, order="natural", budget="block", sum_saliency=True)
