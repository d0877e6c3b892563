"""The methods that remove the smallest scores and compensate nothing."""

from __future__ import annotations

from torch import Tensor

from rose.layer.loss import importance
from rose.layer.methods import LayerResult, Settings
from rose.layer.methods.toolkit import prune_by_score
from rose.layer.statistics import InputStatistics


def wanda(weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """|W|·sqrt(mean x_j²), compared within each output row (Sun et al. 2024, section 3)."""
    score = importance(weight, statistics.mean_square)
    return prune_by_score(weight, statistics, settings, score, budget="row")


def magnitude(weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """|W|, compared over the whole layer."""
    return prune_by_score(weight, statistics, settings, weight.float().abs(), budget="layer")
