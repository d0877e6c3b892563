"""SparseGPT: one sweep from left to right, see `rose.layer.sweep`; and the same with other masks."""

from __future__ import annotations

from torch import Tensor

from rose.layer.methods import LayerResult, Settings, register
from rose.layer.methods.options import Option
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
    "isc",
    "ISC",
    "SparseGPT with masks chosen by w²·(H_jj + 1/[H⁻¹]_jj), the improved saliency criterion of Shao et al. 2024.",
    sweeps=True,
    options={
        "inverse": Option(
            "layer",
            "H⁻¹ of all columns, or, as in SparseGPT's sweep, of those not yet visited",
            choices=("layer", "remaining"),
        )
    },
)
def isc(weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """Natural order, block budget; the sum of the saliencies of Optimal Brain Damage and Surgeon decides.

    With H⁻¹ of the layer, as the paper writes it, the factor of w² does not depend on the order; with that of the
    remaining columns [H⁻¹]_jj is U_jj², as in SparseGPT. The authors' program takes 1/U_jj and not 1/U_jj², a sum that
    depends on the scale of H; neither choice here does.
    """
    inverse = str(settings.options["inverse"])
    return prune_by_sweep(weight, statistics, settings, order="natural", budget="block", sum_saliency=inverse)
