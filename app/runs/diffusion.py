"""The packaged diffusion model, pruned in the background, beside the dense one. No Streamlit here."""

import threading
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from torch import Tensor

import rose
from app.jobs import Job, Run
from rose.diffusion.loading import GARMENTS, classes_in_turn
from rose.diffusion.pruning import prune_diffusion, step_diagonals
from rose.diffusion.steps import STEPS
from rose.diffusion.trajectory import Trajectory, record_trajectory, trajectory_drift
from rose.recipe.tools import DiffusePrune

PICTURES = len(GARMENTS)  # shown: a picture of each class
KEPT_NOISES = 32  # trajectories, of half a megabyte each
# Shares of a run, for its progress; the rest draws the pruned pictures.
DRAWN, PRUNED = 0.1, 0.9


def recipe(**chosen: Any) -> DiffusePrune:
    """How to prune the packaged diffusion model. Raises RoseError for impossible settings, before any work."""
    return DiffusePrune.of(**{"samples": 2 * PICTURES, "seed": 1, "output": "pruned-garments"} | chosen)


class DenseModel:
    """The dense model with its cached trajectories and diagonals; shared by all sessions, and never changed."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.lock = threading.Lock()  # a pipeline's scheduler and hooks belong to one trajectory at a time
        self._draw = lru_cache(KEPT_NOISES)(partial(draw, pipeline))
        self._diagonals: dict[str, Tensor] | None = None

    def trajectory(self, noise: int) -> Trajectory:
        with self.lock:
            return self._draw(noise)

    def diagonals(self) -> dict[str, Tensor]:
        """Each step's part of diag(H), by layer: (steps, in)."""
        with self.lock:
            if self._diagonals is None:
                self._diagonals = step_diagonals(self.pipeline, classes_in_turn(PICTURES), steps=STEPS)
            return self._diagonals


def draw(pipeline: Any, noise: int) -> Trajectory:
    return record_trajectory(pipeline, classes_in_turn(PICTURES), steps=STEPS, seed=noise)


class DiffusionRun(Run):
    """One pruned copy of the packaged model; its parts are None until they are made."""

    dense: Trajectory | None = None
    pruned: Trajectory | None = None
    report: rose.RunReport | None = None
    drift: Tensor | None = None

    def __init__(self, request: DiffusePrune, load: Callable[[], DenseModel]) -> None:
        """Calibration has noise of the recipe's seed, pictures that are shown have noise of the seed before."""
        super().__init__()
        self.request, self.noise, self._load = request, request.seed - 1, load

    def _run(self, job: Job) -> None:
        request = self.request
        self._say("Drawing with the dense model")
        model = self._load()
        self.dense = model.trajectory(self.noise)
        self.fraction = DRAWN
        self._say("Pruning")
        pipeline = self._copy(model.pipeline, model.lock)
        how = request.pick(("method", "sparsity", "steps", "step_weights", "packages", "seed"))
        follow = self._follow(DRAWN, PRUNED)
        self.report = prune_diffusion(pipeline, classes_in_turn(request.samples), **how, progress=follow)
        self._say("Drawing with the pruned model")
        self.pruned = draw(pipeline, self.noise)
        self.drift = trajectory_drift(self.pruned, self.dense)
        self.fraction = 1.0
