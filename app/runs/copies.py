"""Runs that make copies of a model, pruned or smaller, and tuning of such a copy. No Streamlit here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

import rose
from app import words
from app.jobs import Job, Run
from app.runs.kept_copies import RESERVE, FileRun, free_space, written_beside
from app.study.setup import Setup
from app.study.study import LoadedModel
from rose.files import expand
from rose.layer.pattern import Grid
from rose.model.load.tokens import load_apart, tuning_draw
from rose.model.measure.perplexity import continue_prompt, perplexity_of, plain_english, window_losses
from rose.model.network.layers import keep_low_rank
from rose.model.progress import Progress
from rose.model.settings import TuneSettings
from rose.model.tune.task import TuneReport, TuneTask
from rose.model.tune.tuning import Parts, Tuner, tune_until_stopped
from rose.verdicts import EvaluationSetup, Result, compare, rank, says_move, says_perplexity

DENSE = "dense"  # in place of a method
NEW_TOKENS = 30  # that continue a prompt
MINUTES = 3.0  # of tuning
STOPPED = "Stopping: the best so far is kept"
# Name of the step and its estimated seconds -> a callback for the share done.
Step = Callable[[str, float], Callable[[float], None]]


def dense_record(results: dict[str, Any]) -> rose.RunReport:
    """The record of the unchanged model, with its measurements."""
    return rose.RunReport(pd.DataFrame(columns=["layer"]), results, {"method": DENSE, "sparsity": "0"}, called="Dense")


def as_before(record: rose.RunReport) -> dict[str, Any]:
    """A model's perplexities as the "before" of another record, without those that were not measured."""
    names = {"perplexity_after": "perplexity_before", "losses_after": "losses_before"}
    names["perplexity_second"] = "perplexity_second_before"
    return {later: record.summary[name] for name, later in names.items() if name in record.summary}


def case_name(method: str, sparsity: str, target: str = DENSE, grid: Grid | None = None) -> str:
    """For files and folders: "rose-0.7", "sparsegpt-2-4", "rose-0.7-4bits", "rose-0.7-layer"."""
    name = f"{method}-{sparsity.replace(':', '-')}" + (f"-{grid.brief.replace(' ', '')}" if grid else "")
    return name if target == DENSE else f"{name}-{target}"


def file_name(copy: rose.RunReport) -> str:
    """A name for the folder and the files of a copy, and for keys of its widgets."""
    if copy.kind == "slim":
        return f"slim-{copy.method}-{copy.summary['ratio']:g}" + ("-tuned" if copy.is_tuned else "")
    name = case_name(copy.method, str(copy.summary["sparsity"]), copy.target, copy.grid)
    return name + copy.tuned_suffix.replace(", ", "-").replace(" ", "-")


def results_in_run(copies: Sequence[rose.RunReport]) -> list[Result]:
    """For `rose.verdicts`: the copies of one run have the same set-up."""
    return [replace(copy.result, setup=EvaluationSetup()) for copy in copies]


def worth_keeping(copies: Sequence[rose.RunReport]) -> list[str]:
    """Names of the recommended copies."""
    return [ranking.results[0].name for ranking in rank(results_in_run(copies))]


class CopyRun(Run):
    """Work that makes copies of a model, which may be tuned once it has ended, in a run of its own."""

    def __init__(
        self,
        setup: Setup,
        load: Callable[[], LoadedModel],
        *,
        prompt: str = "",
        new_tokens: int = NEW_TOKENS,
        folder: str = "",
        publish: Callable[[rose.RunReport], None] = lambda _copy: None,
    ) -> None:
        """`publish` gets the record of every finished copy; checkpoints lie in `folder`, "" for a temporary folder."""
        super().__init__()
        self.setup = setup
        self.prompt, self.new_tokens = prompt, new_tokens  # a text that every model continues, "" for none
        self.dense: rose.RunReport | None = None
        self.copies: list[rose.RunReport] = []
        self.checkpoints: dict[str, Path] = {}  # folders that were kept, by the names of the copies
        self.tuning: Tuning | None = None  # the latest
        self.file: FileRun | None = None  # the latest
        self._load, self._kept_in, self._publish = load, folder, publish

    def windows(self, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """The windows that perplexity is measured on, (windows, tokens)."""
        raise NotImplementedError

    def evaluation_seconds(self, _model: nn.Module) -> float:
        """Estimated seconds of perplexity and of the prompt."""
        return 0.0

    def judge(self, model_name: str, model: Any, tokenizer: Any, windows: Tensor, step: Step) -> dict[str, Any]:
        """Measures what the run asks of each model, as the results of a record."""
        tell = step(f"Perplexity and text of {model_name}", self.evaluation_seconds(model))
        losses = {"second": window_losses(model, plain_english(model, tokenizer))}
        if len(windows):
            losses["after"] = window_losses(model, windows, progress=tell)
        results: dict[str, Any] = {f"perplexity_{text}": perplexity_of(values) for text, values in losses.items()}
        results |= {f"losses_{text}": values.tolist() for text, values in losses.items()}  # nats a token
        if self.prompt.strip():
            results["continuation"] = continue_prompt(model, tokenizer, self.prompt, new_tokens=self.new_tokens)
        return results

    def _step(self, doing: str, _seconds: float) -> Callable[[float], None]:
        self._say(doing)
        return lambda _share: self.job.check()

    @property
    def models(self) -> list[rose.RunReport]:
        """The dense model and the finished copies. The run goes on: read this once for numbers that must agree."""
        return ([self.dense] if self.dense else []) + self.copies

    def kept(self, copy: rose.RunReport) -> Path | None:
        """The checkpoint of a copy, where it was kept and is still there."""
        place = self.checkpoints.get(copy.name)
        return place if place is not None and place.exists() else None

    def add(self, copy: rose.RunReport) -> None:
        """Adds a finished copy, in place of a copy of the same name."""
        self.copies = [*(other for other in self.copies if other.name != copy.name), copy]
        self._publish(copy)

    def write(self, model: Any, tokenizer: PreTrainedTokenizerBase, copy: rose.RunReport) -> rose.RunReport:
        """Writes a copy beside this run's checkpoints, replacing a copy of its name; returns its record with sizes, or
        unchanged where the disk is full. Raises RoseError where it cannot be written."""
        former = self.kept(copy)
        if not self._kept_in and free_space() < sum(weight.nbytes for weight in model.parameters()) + RESERVE:
            if former is None:
                return copy
            raise rose.RoseError(
                f"The disk has no room for another checkpoint of {copy.name}; free some space and tune again."
            )
        output = (expand(self._kept_in) if self._kept_in else self._temporary()) / file_name(copy)
        with written_beside(output, former is not None) as place:
            rose.save_model(model, tokenizer, place, report=copy)
        self.checkpoints[copy.name] = output
        return copy

    @property
    def untuned(self) -> list[rose.RunReport]:
        """The copies as they were made, whose checkpoints are there."""
        return [copy for copy in self.copies if not copy.is_tuned and self.kept(copy) is not None]

    @property
    def tunable(self) -> dict[str, rose.RunReport]:
        """Copies that can be tuned, by name, the recommended first; tuned copies begin anew."""
        copies = [copy for copy in self.untuned if copy.grid is None]  # whose weights would leave their grid
        best = worth_keeping(copies)
        return {copy.name: copy for copy in sorted(copies, key=lambda copy: copy.name not in best)}

    @property
    def is_tuning(self) -> bool:
        return self.tuning is not None and self.tuning.is_in_use

    @property
    def is_in_use(self) -> bool:
        return super().is_in_use or any(run.is_in_use for run in self.begun)

    @property
    def begun(self) -> list[Run]:
        """Work on the copies: the latest tuning, and the latest file."""
        return [run for run in (self.tuning, self.file) if run]

    def begin(self, slot: Literal["tuning", "file"], work: Run) -> None:
        """Keeps work on the copies, whose files stay until it has ended, in place of earlier work of its kind."""
        if (earlier := getattr(self, slot)) is not None:
            earlier.discard()
        setattr(self, slot, work)
        work.job.then.append(self.clean_up)

    def discard(self) -> None:
        for run in self.begun:
            run.discard()
        super().discard()


def kept_checkpoints(runs: Sequence[CopyRun], model: str) -> dict[str, Path]:
    """Folders of copies of this model that runs have kept, by label, the latest first."""
    checkpoints: dict[str, Path] = {}
    for run in reversed(runs):
        for copy in reversed(run.copies):
            if run.setup.model == model and (place := run.kept(copy)) is not None:
                checkpoints[words.unused(copy.name, checkpoints)] = place
    return checkpoints


class Tuning(Run):
    """One tuning of one checkpoint. After a cancel the best step so far is evaluated and kept."""

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
        self.copy: rose.RunReport | None = None  # the tuned copy, once the run is done; None where tuning did not help
        self.curve, self.steps = pd.DataFrame(), 0  # losses by step so far; the number of steps, 0 until it is set
        self.dense: float | None = None  # the dense model's loss of next tokens on held-out windows, once measured
        self.report: TuneReport | None = None
        self._checkpoint, self._load, self._is_enough = place, load, False

    def cancel(self) -> None:
        """The first call ends tuning; the second call ends the whole run, and nothing is kept."""
        if self._is_enough:
            self.job.stop()
        self._is_enough, self.job.message = True, STOPPED

    def _run(self, job: Job) -> None:
        setup = self.run.setup
        self._say("Loading both models")
        loaded = self._load()
        dense = self._copy(loaded.model, loaded.lock)  # hooks are put on it
        model, tokenizer = rose.load_model(str(self._checkpoint), dtype=setup.dtype)
        keep_low_rank(model, self._checkpoint)
        self._say("Drawing text to tune on")
        windows = self.run.windows(loaded.tokenizer)
        sizes = tuning_draw(setup.length)._asdict()
        tokens, held_out = load_apart(setup.calibration, loaded.tokenizer, seed=setup.seed, apart_from=windows, **sizes)
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
        self.report, self.fraction = report, 1.0

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

    def _tell(self, tuner: Tuner, progress: Progress) -> None:
        if len(tuner.curve) != len(self.curve):
            self.curve, self.steps, self.dense = tuner.table, tuner.steps, tuner.dense_held_out
        self.fraction = 0.95 * progress.fraction
        if self._is_enough:
            raise rose.Cancelled
        self.job.tell(progress)

    def _step(self, doing: str, _seconds: float) -> Callable[[float], None]:
        if self.job.abandoned:
            self.job.watch("tuning")  # what was reached is kept, though nobody watches any more
        self._say(doing)
        return lambda _share: self.job.check()

    def says(self) -> str:
        """The effect of tuning on the copy, in sentences."""
        assert self.report is not None
        summary, copy, source = self.report.summary, self.copy, self.source
        steps = words.count(summary["steps"], "step")
        if summary["steps"] < summary["steps_planned"]:
            steps += f" of {words.whole(summary['steps_planned'])}"
        text = f"{words.sentence(steps)} in {words.duration(summary['seconds'])}"
        takes = f" {'takes' if summary['steps'] == 1 else 'take'} perplexity"
        if not summary["kept_step"]:
            text += f": none was better than the start on held-out windows, so {source.name} stays as it was."
        elif copy is not None and copy.kind == "slim":
            if "perplexity_after" in copy.summary:
                text += f"{takes} {says_perplexity(copy.summary, copy.summary['tuned'])[0]}"
            text += ". Checkpoint and report above belong to the tuned copy."
        elif copy is not None:
            verdict = compare(*results_in_run([source, copy]))
            move = says_move(source.perplexity, copy.perplexity, f"{source.name}'s", verdict)
            zeros = f"{words.whole(summary['zeros'])} of {words.whole(summary['weights'])} weights are zero"
            before = summary["zeros_before"]
            zeros += ", as before" if before == summary["zeros"] else f"; before tuning, {words.whole(before)} were"
            text += f"{takes} {move}. {words.sentence(zeros)}."
        return f"{text} {self.report.caution}".rstrip()
