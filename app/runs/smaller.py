"""Ways to make a model smaller, estimated and then measured in the background; no Streamlit here."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import rose
from app.jobs import Job, Run
from app.study.study import LoadedModel
from rose.recipe.steps import Smaller
from rose.smaller import Bench, Row


class SmallerRun(Run):
    """Every way estimated, then measured, the most promising first, for the minutes that were asked for.

    Attributes:
        rows: one a way, measured rows in place of their estimates.
        left_out: sentences on ways that cannot be made.
    """

    def __init__(self, spec: Smaller, load: Callable[[], LoadedModel]) -> None:
        super().__init__()
        self.spec, self.left_out, self.rows, self._load = spec, list[str](), list[Row](), load

    def _run(self, job: Job) -> None:
        self._say("Loading the model")
        loaded = self._load()
        model = self._copy(loaded.model, loaded.lock)
        self._say("Estimating every way")
        bench = Bench(self.spec, model, loaded.tokenizer, self._temporary())
        self.rows, seconds = bench.rows, 60 * self.spec.minutes
        end = time.monotonic() + seconds
        while (way := bench.best_next(end - time.monotonic())) is not None:

            def follow(_share: float, doing: str, name: str = way.name) -> None:
                self.fraction = min(0.999, 1 - (end - time.monotonic()) / seconds)
                if (text := f"{name}: {doing}") != self.job.message:
                    self._say(text)
                self.job.check()

            try:
                bench.measure(way, follow)
            except rose.RoseError as problem:
                self.left_out.append(f"{way.name} cannot be made: {problem}")
                bench.leave_out(way)
            self.rows = bench.rows
        self.fraction = 1.0

    def kept(self, key: str) -> Path | None:
        """The folder of a copy; only recommended copies are kept."""
        place = self._folder / key if self._folder is not None else None
        return place if place is not None and place.exists() else None
