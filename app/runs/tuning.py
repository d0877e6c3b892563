"""Pruned or smaller copies tuned in the background: the weights that are left, towards the dense model.

No Streamlit here. See `rose.tune_model` for what is done.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import rose
from app import words
from app.jobs import Job, Run
from app.runs import slimming
from app.runs.checkpoints import worth_keeping
from app.runs.pruning import PruningRun, judge, results_of
from app.runs.request import evaluation_seconds
from app.runs.slimming import Slimming
from app.study.setup import Setup
from app.study.study import LoadedModel
from rose.model.estimate.tuning import tuning_memory
from rose.model.formats.low_rank import keep_low_rank
from rose.model.load.tokens import load_apart, tuning_draw
from rose.model.network.network import Network
from rose.model.progress import Progress
from rose.model.tune.parts import Parts, tune_until_stopped
from rose.model.tune.task import TuneReport, TuneTask
from rose.model.tune.tuning import Tuner
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
        label: of the copy that is tuned.
        steps: how many there will be, 0 until it is known.
        dense: loss of next tokens of the dense model on held-out windows, once it is known.
    """

    CANCEL = "Stop here, keep the best"
    UNIT = " steps"

    def __init__(
        self, setup: Setup, label: str, checkpoint: Path, minutes: float, load: Callable[[], LoadedModel]
    ) -> None:
        super().__init__()
        self.setup, self.label, self.minutes = setup, label, minutes
        self.curve, self.steps = pd.DataFrame(), 0
        self.dense: float | None = None
        self.found: TuneReport | None = None
        self._checkpoint, self._load, self._is_enough = checkpoint, load, False

    def cancel(self) -> None:
        """Once ends tuning; again, all of it, and nothing is kept."""
        if self._is_enough:
            self.job.stop()
        self._is_enough, self.job.message = True, STOPPED

    def _judged_on(self, tokenizer: Any) -> Tensor:
        """Windows that perplexity is measured on, which share no text with others, (windows, tokens)."""
        raise NotImplementedError

    def _conclude(self, found: TuneReport, model: Any, tokenizer: Any, windows: Tensor) -> None:
        """Judges and keeps a model that tuning has made better."""
        raise NotImplementedError

    def _run(self, job: Job) -> None:
        setup = self.setup
        self._say("Loading both models")
        loaded = self._load()
        dense = self._copy(loaded.model, loaded.lock)  # hooks are put on it
        model, tokenizer = rose.load_model(str(self._checkpoint), dtype=setup.dtype)
        keep_low_rank(model, self._checkpoint)
        self._say("Drawing text to tune on")
        windows = self._judged_on(loaded.tokenizer)
        tokens, held_out = load_apart(
            setup.text,
            loaded.tokenizer,
            seed=setup.seed,
            apart_from=windows,
            **tuning_draw(setup.length)._asdict(),
        )
        parts = Parts(TuneTask(model, dense, tokens, held_out), TuneSettings(minutes=self.minutes, seed=setup.seed))
        tuner = parts.tuner
        self._say(f"Tuning {self.label}")
        found, stopped = tune_until_stopped(lambda: parts, nullcontext(partial(self._tell, tuner)))
        is_enough = isinstance(stopped, rose.Cancelled) and (self._is_enough or job.abandoned) and len(tuner.curve) > 1
        if stopped and not is_enough:
            raise stopped
        assert found is not None
        self.curve, self.steps, self.dense = found.curve, tuner.steps, tuner.dense_held_out
        if found.summary["kept_step"]:
            self._conclude(found, model, tokenizer, windows)
        self.found, self.fraction = found, 1.0

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


# ---- a copy of a pruning run


@dataclass(frozen=True)
class TuneRequest:
    copy: str  # label of the copy that is tuned
    minutes: float = MINUTES

    def estimate(self, run: PruningRun, skeleton: nn.Module) -> tuple[float, int]:
        """Seconds, with evaluation, and bytes besides the two models; `skeleton` is that of the model."""
        return 60 * self.minutes + evaluation_seconds(skeleton, run.request), tuned_memory(run.setup, skeleton)


def offered(run: PruningRun) -> dict[str, rose.RunReport]:
    """Copies that can be tuned, by name, those first that are recommended; tuned ones begin anew."""
    copies = [copy for copy in _kept(run) if copy.bits is None]
    best = worth_keeping(results_of(copies))
    return {copy.name: copy for copy in sorted(copies, key=lambda copy: copy.name not in best)}


def rounded(run: PruningRun) -> list[str]:
    """Names of the kept copies that tuning would move off their grid."""
    return [copy.name for copy in _kept(run) if copy.bits is not None]


def _kept(run: PruningRun) -> list[rose.RunReport]:
    """Copies as pruned whose checkpoint is there, without tuned ones."""
    return [copy for copy in run.copies if not copy.is_tuned and run.kept(copy) is not None]


class TuningRun(Tuning):
    """The tuning of a kept copy of a pruning run; `copy` is there once it is done, where tuning has helped."""

    def __init__(self, run: PruningRun, request: TuneRequest, load: Callable[[], LoadedModel]) -> None:
        """Raises RoseError where the copy is not offered any more."""
        source = offered(run).get(request.copy)
        place = None if source is None else run.kept(source)
        if source is None or place is None:
            raise rose.RoseError(f"The checkpoint of {request.copy} is not there any more; choose another copy.")
        self.run, self.source = run, source
        super().__init__(run.setup, source.name, place, request.minutes, load)
        self.copy: rose.RunReport | None = None

    def _judged_on(self, tokenizer: Any) -> Tensor:
        return self.run.request.evaluated(tokenizer, self.setup, self.setup.draw(tokenizer))

    def _conclude(self, found: TuneReport, model: Any, tokenizer: Any, windows: Tensor) -> None:
        source, run = self.source, self.run
        before = {"perplexity_before": source.perplexity, "losses_before": list(source.losses("after"))}
        copy = found.added_to(source, **before)
        measured = judge(run.request, copy.name, model, tokenizer, windows, self._step)
        prunes, *evaluates = str(source.summary["command"]).splitlines()
        command = "\n".join([f"{prunes} --tune {self.minutes:g}", *evaluates])
        copy = copy.with_summary(**measured, command=command)
        self._say(f"Writing the checkpoint of {copy.name}")
        replaces = run.kept(copy) is not None
        written = run.write(model, tokenizer, copy, replaces)
        if replaces and written is None:
            raise rose.RoseError(
                f"There is no room for another checkpoint of {copy.name}, so the earlier one stays; free some space."
            )
        self.copy = written or copy
        run.add_tuned(self.copy)


# ---- a copy with fewer heads and channels


class SlimTuning(Tuning):
    """The tuning of a smaller copy, which takes its place where that has helped."""

    def __init__(self, slim: Slimming, minutes: float, load: Callable[[], LoadedModel]) -> None:
        self.slim = slim
        super().__init__(slim.setup, slim.models[1].name, slim.untuned, minutes, load)

    def _judged_on(self, tokenizer: Any) -> Tensor:
        held_out = self.setup.draw(tokenizer)[1]
        return torch.empty(0, self.setup.length, dtype=torch.int64) if held_out is None else held_out

    def _conclude(self, found: TuneReport, model: Any, tokenizer: Any, windows: Tensor) -> None:
        label = f"{self.label}, tuned"
        self._step(f"Perplexity and text: {label}")
        measured = slimming.judge(model, tokenizer, windows, self.slim.prompt)
        self._say(f"Writing the checkpoint of {label}")
        self.slim.add_tuned(label, measured, model, tokenizer, found)


def says(tuning: TuningRun) -> str:
    """What tuning did to the copy, in sentences."""
    found, copy, source = tuning.found, tuning.copy, tuning.source
    assert found is not None
    summary = found.summary
    if copy is None:
        return says_steps(tuning)
    verdict = compare(*results_of([source, copy]))
    moved = says_move(source.perplexity, copy.perplexity, source.name + "'s", verdict)
    zeros = f"{words.whole(summary['zeros'])} of {words.whole(summary['weights'])} weights are zero"
    before = summary["zeros_before"]
    zeros += ", as before" if before == summary["zeros"] else f"; before tuning, {words.whole(before)} were"
    return f"{says_steps(tuning)}{_verb(found)} perplexity {moved}. {words.sentence(zeros)}. {found.caution}".rstrip()


def says_slim(tuning: SlimTuning) -> str:
    """The same of a smaller copy."""
    found, report = tuning.found, tuning.slim.models[-1]
    assert found is not None
    said = says_steps(tuning)
    if found.summary["kept_step"]:
        if report.summary.get("perplexity_after") is not None:
            said += f"{_verb(found)} perplexity {says_perplexity(report.summary, report.summary['tuned'])[0]}"
        said += ". Checkpoint and report above are those of the tuned copy."
    return f"{said} {found.caution}".rstrip()


def _verb(found: TuneReport) -> str:
    return " takes" if found.summary["steps"] == 1 else " take"


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
    return f"{done}: none was better than the start on held-out windows, so {tuning.label} stays as it was."


def moved(tuning: TuningRun) -> pd.DataFrame:
    """Every tuned layer and how far it moved, ‖ΔW‖/‖W‖: layer, block_index, projection, change."""
    assert tuning.found is not None
    rows = tuning.found.layers
    blocks, projections = zip(*map(words.place_of, rows["layer"]), strict=True)
    rows = rows.assign(block_index=[block or 0 for block in blocks], projection=projections)
    return rows[["layer", "block_index", "projection", "change"]]
