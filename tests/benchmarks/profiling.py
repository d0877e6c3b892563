"""Where the time of a whole-model prune goes, by the functions that do the work."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

import rose
from rose.layer.error import quadratic_form
from rose.layer.methods import toolkit
from rose.layer.statistics import InputStatistics
from rose.layer.sweep import sweep
from rose.model.walk.forward import run_block
from tests.benchmarks.timing import Row

# None of them calls another.
PARTS: dict[str, Callable[..., Any]] = {
    "decoder blocks": run_block,
    "Hessians": InputStatistics.update,
    "planning": toolkit._plan,
    "damping and factors": toolkit.factorize,
    "sweeps": sweep,
    "errors": quadratic_form,
}


def profile(model: nn.Module, tokens: Tensor, method: str) -> list[Row]:
    """A prune under Python's own profiler, which slows it by a few per cent; changes the model."""
    profiler = cProfile.Profile()
    profiler.runcall(rose.prune_model, model, tokens, method=method, target="layer")
    stats = pstats.Stats(profiler)
    seconds = {what: _cumulative(stats, function) for what, function in PARTS.items()}
    total = stats.total_tt  # type: ignore[attr-defined]
    seconds["everything else"] = total - sum(seconds.values())
    return [(f"{method}: {what}", spent, "the whole", spent / total) for what, spent in seconds.items()]


def _cumulative(stats: pstats.Stats, function: Callable[..., Any]) -> float:
    code = function.__code__
    return stats.stats[code.co_filename, code.co_firstlineno, code.co_name][3]  # type: ignore[attr-defined]
