"""Where the time of a whole-model prune goes, by the functions that do the work."""

from __future__ import annotations

import cProfile
import pstats
from pathlib import Path

from torch import Tensor, nn

import rose
from tests.benchmarks.timing import Row

# What: (file, function) pairs. None of them calls another, but for decoder blocks, whose hooks add to the Hessians.
PARTS = {
    "decoder blocks": [("model/forward.py", "run_block")],
    "Hessians": [("model/capture.py", "seen")],
    "planning": [("layer/methods.py", "_plan")],
    "damping and factors": [("layer/methods.py", "_factorize")],
    "sweeps": [("layer/sweep.py", "sweep")],
    "errors": [("layer/error.py", "quadratic_form")],
}


def profile(model: nn.Module, tokens: Tensor, method: str) -> list[Row]:
    """A prune under Python's own profiler, which slows it by a few per cent; changes the model."""
    profiler = cProfile.Profile()
    profiler.runcall(rose.prune_model, model, tokens, method=method, target="layer")
    stats = pstats.Stats(profiler)
    root = Path(rose.__file__).parent
    seconds = {
        what: sum(_cumulative(stats, str(root / file), name) for file, name in functions)
        for what, functions in PARTS.items()
    }
    seconds["decoder blocks"] -= _cumulative(stats, str(root / "model/capture.py"), "seen")
    total = stats.total_tt  # type: ignore[attr-defined]
    seconds["everything else"] = total - sum(seconds.values())
    return [(f"{method}: {what}", spent, "the whole", spent / total) for what, spent in seconds.items()]


def _cumulative(stats: pstats.Stats, file: str, name: str) -> float:
    entries = stats.stats.items()  # type: ignore[attr-defined]
    return sum(timing[3] for (path, _, function), timing in entries if (path, function) == (file, name))
