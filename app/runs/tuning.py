"""Pruned or smaller copies tuned in the background: the weights that are left, towards the dense model.

No Streamlit here. `rose.tune_model` defines the training.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
from torch import Tensor, nn

import rose
from app import words
from app.jobs import Job, Run
from app.runs.copies import CopyRun, as_before, results_of
from app.study.setup import Setup
from app.study.study import LoadedModel
from rose.model.estimate.memory import tuning_memory
from rose.model.load.tokens import load_apart, tuning_draw
from rose.model.network.layers import keep_low_rank
from rose.model.network.network import Network
from rose.model.progress import Progress
from rose.model.tune.task import TuneReport, TuneTask
from rose.model.tune.tuning import Parts, Tuner, tune_until_stopped
from rose.recipe.parts import TuneSettings
from rose.verdicts import compare, says_move, says_perplexity

MINUTES = 3.0
STOPPED = "Stopping: the best so far is kept"


def tuned_memory(setup: Setup, model: nn.Module) -> int:
    """Bytes besides the two models; `model`: the dense one, or its skeleton."""
    network = Network(model)
    weights = sum(layer.weight.numel() for layer in network.layers)
    return tuning_memory(network, tuning_draw(setup.length).length, weights)


class Tuning(Run):
    """One tuning of one checkpoint. `found` is there once it is done; `curve` grows before.

    To cancel it is to have enough: it ends after the step at work, and the best so far is evaluated and kept.

    Attributes:
        source: the copy that is tuned.
        copy: the tuned one, once it is done, where tuning has helped.
        steps: how many there will be, 0 until it is known.
        dense: loss of next tokens of the dense model on held-out windows, once it is known.
    """

    CANCEL = "Stop here, keep the best"
    UNIT = " steps"

    def __init__(self, run: CopyRun, name: str, minutes: float, load: Callable[[], LoadedModel]) -> None:
        """Raises RoseError where the copy of this name cannot be tuned any more."""
        super().__init__()
        source = run.tunable.get(name)
        place = None if source is None else run.kept(source)
        if source is None or place is None:
            raise rose.RoseError(f"The checkpoint of {name} is not there any more; choose another copy.")
        self.run, self.source, self.minutes = run, source, minutes
        self.copy: rose.RunReport | None = None
        self.curve, self.steps = pd.DataFrame(), 0
        self.dense: float | None = None
        self.found: TuneReport | None = None
        self._checkpoint, self._load, self._is_enough = place, load, False

    def cancel(self) -> None:
        """Once ends tuning; again, all of it, and nothing is kept."""
        if self._is_enough:
            self.job.stop()
        self._is_enough, self.job.message = True, STOPPED

    def _conclude(self, report: TuneReport, model: Any, tokenizer: Any, windows: Tensor) -> None:
        """Judges and keeps a model that tuning has made better."""
        source, run = self.source, self.run
        copy = report.added_to(source, **as_before(source))
        if source.called:
            copy = replace(copy, called=f"{source.called}, tuned")
        copy = copy.with_summary(**run.judge(copy.name, model, tokenizer, windows, self._step))
        copy = copy.with_recipe(tune=self.minutes)
        self._say(f"Writing the checkpoint of {copy.name}")
        self.copy = run.write(model, tokenizer, copy)
        run.add(self.copy)

    def _run(self, job: Job) -> None:
        setup = self.run.setup
        self._say("Loading both models")
        loaded = self._load()
        dense = self._copy(loaded.model, loaded.lock)  # hooks are put on it
        model, tokenizer = rose.load_model(str(self._checkpoint), dtype=setup.dtype)
        keep_low_rank(model, self._checkpoint)
        self._say("Drawing text to tune on")
        windows = self.run.windows(loaded.tokenizer)
        tokens, held_out = load_apart(
            setup.text,
            loaded.tokenizer,
            seed=setup.seed,
            apart_from=windows,
            **tuning_draw(setup.length)._asdict(),
        )
        parts = Parts(TuneTask(model, dense, tokens, held_out), TuneSettings(minutes=self.minutes, seed=setup.seed))
        tuner = parts.tuner
        self._say(f"Tuning {self.source.name}")
        report, stopped = tune_until_stopped(lambda: parts, nullcontext(partial(self._tell, tuner)))
        is_enough = isinstance(stopped, rose.Cancelled) and (self._is_enough or job.abandoned) and len(tuner.curve) > 1
        if stopped and not is_enough:
            raise stopped
        assert report is not None
        self.curve, self.steps, self.dense = report.curve, tuner.steps, tuner.dense_held_out
        if report.summary["kept_step"]:
            self._conclude(report, model, tokenizer, windows)
        self.found, self.fraction = report, 1.0

    def _tell(self, tuner: Tuner, progress: Progress) -> None:
        if len(tuner.curve) != len(self.curve):
            self.curve, self.steps, self.dense = tuner.table, tuner.steps, tuner.dense_held_out
        self.fraction = 0.95 * progress.fraction
        if self._is_enough:
            raise rose.Cancelled
        self.job.tell(progress)

    def _step(self, doing: str, _seconds: float = 0.0) -> Callable[[float], None]:
        if self.job.abandoned:
            self.job.watch("tuning")  # what was reached is kept, though nobody watches any more
        self._say(doing)
        return lambda _share: self.job.check()


def says(tuning: Tuning) -> str:
    """What tuning did to the copy, in sentences."""
    report, copy, source = tuning.found, tuning.copy, tuning.source
    assert report is not None
    summary, text = report.summary, says_steps(tuning)
    takes = f" {'takes' if summary['steps'] == 1 else 'take'} perplexity"
    if copy is not None and copy.kind == "slim":
        if "perplexity_after" in copy.summary:
            text += f"{takes} {says_perplexity(copy.summary, copy.summary['tuned'])[0]}"
        text += ". Checkpoint and report above belong to the tuned copy."
    elif copy is not None:
        moved = says_move(source.perplexity, copy.perplexity, f"{source.name}'s", compare(*results_of([source, copy])))
        zeros = f"{words.whole(summary['zeros'])} of {words.whole(summary['weights'])} weights are zero"
        before = summary["zeros_before"]
        zeros += ", as before" if before == summary["zeros"] else f"; before tuning, {words.whole(before)} were"
        text += f"{takes} {moved}. {words.sentence(zeros)}."
    return f"{text} {report.caution}".rstrip()


def says_steps(tuning: Tuning) -> str:
    """How much was tuned; a whole sentence where it was for nothing."""
    assert tuning.found is not None
    summary = tuning.found.summary
    steps = words.count(summary["steps"], "step")
    if summary["steps"] < summary["steps_planned"]:
        steps += f" of {words.whole(summary['steps_planned'])}"
    done = f"{words.sentence(steps)} in {words.duration(summary['seconds'])}"
    if summary["kept_step"]:
        return done
    return f"{done}: none was better than the start on held-out windows, so {tuning.source.name} stays as it was."
