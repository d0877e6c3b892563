"""The methods that are one sweep or one score, and nothing else."""

from __future__ import annotations

from torch import Tensor

from rose.layer.loss import importance
from rose.layer.methods import LayerResult, Settings, register
from rose.layer.options import Option
from rose.layer.parts import prune_by_score, prune_by_sweep
from rose.layer.statistics import InputStatistics


@register(
    "rose",
    "ROSE",
    "SparseGPT with two-level column order on columnar layers (arXiv 2603.05878).",
    sweeps=True,
)
def rose(weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """Two-level order where the layer is columnar, else natural; block budget."""
    return prune_by_sweep(weight, statistics, settings, method="rose", order="rose", budget="block")


@register(
    "rose_global",
    "ROSE global",
    "Ours: global column order with a layer-wide budget.",
    sweeps=True,
)
def rose_global(weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """Global order, descending column loss of a layer-wide pre-pruning; layer budget."""
    return prune_by_sweep(weight, statistics, settings, method="rose_global", order="global", budget="layer")


@register(
    "sparsegpt",
    "SparseGPT",
    "Natural column order, the same ratio in every block, with compensation (Frantar and Alistarh 2023).",
    sweeps=True,
)
def sparsegpt(weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """Natural order, block budget."""
    return prune_by_sweep(weight, statistics, settings, method="sparsegpt", order="natural", budget="block")


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
    return prune_by_sweep(
        weight, statistics, settings, method="isc", order="natural", budget="block", sum_saliency=inverse
    )


@register("wanda", "Wanda", "Smallest |W|·‖x‖ of every output row, no compensation (Sun et al. 2024).")
def wanda(weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """|W|·sqrt(mean x_j²), compared within each output row (Sun et al. 2024, section 3)."""
    score = importance(weight, statistics.mean_square)
    return prune_by_score(weight, statistics, settings, score, method="wanda", budget="row")


@register("magnitude", "Magnitude", "Smallest |W| of the layer, no calibration, no compensation (Han et al. 2015).")
def magnitude(weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """|W|, compared over the whole layer."""
    return prune_by_score(weight, statistics, settings, weight.float().abs(), method="magnitude", budget="layer")
