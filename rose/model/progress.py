"""Progress of a run over a model, as events that a command line or an app can draw."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Progress:
    """The state of a run.

    Attributes:
        stage: "allocate" (patterns of the layers), "embed", "calibrate", "prune" (a layer is done), "propagate";
            "damage" (a unit's windows), "check" (a layer is judged) or "tune" (steps); "done" at the end.
        block_index, blocks: the current decoder block, and the number to visit.
        layer, relative_error: the layer just pruned and its error; None in other stages.
        layers_done, layers: the number of finished layers, and of all.
        fraction: share of the work done, 0 to 1.
        seconds, remaining: since the start, and the estimated time left (None at first).
    """

    stage: str
    block_index: int
    blocks: int
    layer: str | None
    relative_error: float | None
    layers_done: int
    layers: int
    fraction: float
    seconds: float
    remaining: float | None


ProgressCallback = Callable[[Progress], Any]


def part_callback(
    callback: ProgressCallback | None, start: float, low: float, high: float, stage: str | None = None
) -> ProgressCallback | None:
    """A callback for one part of a run that began at `start`: its 0 to 1 is `low` to `high` of the whole.

    The time left follows from the speed of this part alone, because a resumed part starts in its middle.
    """
    if callback is None:
        return None
    first: list[float] = []  # seconds and fraction when this part began

    def tell(progress: Progress) -> None:
        fraction = low + (high - low) * progress.fraction
        seconds = time.perf_counter() - start
        first[:] = first or [seconds, fraction]
        remaining = time_left(seconds - first[0], fraction, first[1])
        part = replace(progress, fraction=fraction, seconds=seconds, remaining=remaining)
        callback(replace(part, stage=stage, layers_done=0) if stage else part)

    return tell


def time_left(seconds: float, fraction: float, before: float) -> float | None:
    """Estimated seconds for the rest, after `seconds` from `before` to `fraction` of the work; None at first."""
    return seconds * (1 - fraction) / (fraction - before) if fraction > before else None


class Meter:
    """Turns steps into `Progress` events. A callback that raises stops the run."""

    def __init__(self, callback: ProgressCallback | None, blocks: int, layers: int) -> None:
        self.callback, self.blocks, self.layers = callback, blocks, layers
        self.layers_done = 0
        self.start = time.perf_counter()

    def tell(
        self, stage: str, block_index: int, within: float, layer: str | None = None, error: float | None = None
    ) -> None:
        """Reports progress; `within`: share of this decoder block's work that is done."""
        self.tell_share(stage, block_index, (block_index + within) / self.blocks, layer, error)

    def tell_share(
        self, stage: str, block_index: int, share: float, layer: str | None = None, error: float | None = None
    ) -> None:
        if self.callback is not None:
            seconds = time.perf_counter() - self.start
            left, done = time_left(seconds, share, 0.0), (self.layers_done, self.layers)
            self.callback(Progress(stage, block_index, self.blocks, layer, error, *done, share, seconds, left))
