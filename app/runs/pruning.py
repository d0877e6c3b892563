"""Pruning copies of a whole model in the background: several methods and sparsities, one after another.

No Streamlit here. The shared model is only copied, under its lock; one copy exists at a time, and only its report,
perplexity, text and requested checkpoint are kept.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import Tensor
from transformers import PreTrainedTokenizerBase

import rose
from app import words
from app.jobs import Job, TunableRun
from app.runs.checkpoints import RESERVE, Checkpoint, free_space, written_beside
from app.runs.finished import seconds_of, tuned_suffix
from app.runs.recipes import command_lines
from app.runs.request import Case, PruneRequest, estimate_case, evaluation_seconds, task_seconds
from app.runs.shipping import worth_keeping
from app.study.setup import Setup, check_memory, weights_size
from app.study.study import LoadedModel
from rose.files import expand
from rose.model.measure.generation import continue_prompt
from rose.model.measure.perplexity import perplexity_of, window_losses
from rose.model.measure.zero_shot import zero_shot
from rose.model.ship.packing import packed_size
from rose.output import check_output, check_room
from rose.verdicts import Result

if TYPE_CHECKING:
    from app.runs.files import FileRun

DENSE = Case("dense", "0", "")


@dataclass(frozen=True)
class EvaluatedModel:
    """Results of one copy, or of the dense model, whose report is None."""

    case: Case
    perplexity: float
    losses: tuple[float, ...]  # mean of each window, nats a token
    text: str = ""  # the continuation of the prompt
    zero_shot: pd.DataFrame | None = None  # see `rose.model.measure.zero_shot.zero_shot`
    report: rose.RunReport | None = None
    checkpoint: Path | None = None  # folder, where one was kept

    @property
    def label(self) -> str:
        return "Dense" if self.report is None else self.case.label + tuned_suffix(self.summary)

    @property
    def name(self) -> str:
        """For files and folders, and for keys of widgets."""
        return self.case.name + tuned_suffix(self.summary).replace(", ", "-").replace(" ", "-")

    @property
    def is_tuned(self) -> bool:
        return "tuned" in self.summary

    @property
    def result(self) -> Result:
        """As `rose.verdicts` compares it; all models of one run have the same set-up."""
        return Result(
            name=self.label,
            method=self.case.method,
            value=self.perplexity,
            losses=self.losses,
            amount=self.case.asked,
            seconds=seconds_of(self.summary),
            target=self.case.target,
            is_tuned=self.is_tuned,
        )

    @property
    def summary(self) -> dict[str, Any]:
        return {} if self.report is None else self.report.summary

    @property
    def measured(self) -> dict[str, Any]:
        """What was measured of it, as a report has it."""
        found: dict[str, Any] = {"perplexity_after": self.perplexity, "losses_after": list(self.losses)}
        if self.zero_shot is not None:  # JSON does not know NaN
            known = self.zero_shot.astype(object).where(self.zero_shot.notna(), None)
            found["zero_shot"] = known.to_dict(orient="records")
        return found


def model_table(models: Sequence[EvaluatedModel]) -> pd.DataFrame:
    """One row per model, the dense one first: perplexity, its ratio to dense, mean errors, seconds."""
    totals = (
        *("mean_relative_error", "mean_held_out_error", "mean_held_out_target_error", "columnar_layers"),
        *("mean_pruning_error", "mean_rounding_error"),
    )
    rows = [
        {
            "method": model.case.method,
            "sparsity": model.case.asked,
            "perplexity": model.perplexity,
            "ratio_to_dense": model.perplexity / models[0].perplexity,
            **{name: model.summary.get(name) for name in totals},
            "drift": None if model.report is None else model.report.last_drift,
            "removed_fraction": model.summary.get("removed_fraction", 0.0),
            "seconds": seconds_of(model.summary),
        }
        for model in models
    ]
    return pd.DataFrame(rows)


def accuracy_table(models: Sequence[EvaluatedModel]) -> pd.DataFrame:
    """One row per model and task: task, questions, accuracy, accuracy_error (standard error), run, method."""
    tables = [
        model.zero_shot[["task", "questions", "accuracy", "accuracy_error"]].assign(
            run=model.label, method=model.case.method
        )
        for model in models
        if model.zero_shot is not None
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def layer_table(models: Sequence[EvaluatedModel]) -> pd.DataFrame:
    """The pruned models' layers, one under the other; `sparsity` is realised, `asked` as it was asked for.

    Tuning measures no errors, so that tuned models have no rows.
    """
    tables = [
        model.report.layers.assign(asked=model.case.sparsity, target=model.case.target)
        for model in models
        if model.report and not model.is_tuned
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def judge(
    request: PruneRequest,
    case: Case,
    whose: str,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    windows: Tensor,
    step: Callable[[str, float], Callable[[float], None]],
) -> EvaluatedModel:
    """Asks a model what the request asks of each. `step` begins one of so many estimated seconds, and gives what is
    told its share done; `whose` is the model in words."""
    asking = task_seconds(model, request)
    tell = step(f"Perplexity of {whose}", evaluation_seconds(model, request) - asking)
    losses = window_losses(model, windows, progress=tell)
    text, answered = "", None
    if request.prompt.strip():
        step(f"Prompt continued by {whose}", 0.0)
        text = continue_prompt(model, tokenizer, request.prompt, new_tokens=request.new_tokens)
    if request.tasks:
        tell = step(f"Zero-shot tasks answered by {whose}", asking)
        folder = expand(request.task_folder.strip()) if request.task_folder.strip() else None
        answered = zero_shot(
            model, tokenizer, tasks=request.tasks, task_folder=folder, limit=request.questions, progress=tell
        )
    return EvaluatedModel(case, perplexity_of(losses), tuple(losses.tolist()), text, answered)


class PruningRun(TunableRun):
    """One run over all copies of a request, growing while its job runs."""

    def __init__(
        self,
        setup: Setup,
        request: PruneRequest,
        load: Callable[[], LoadedModel],
        publish: Callable[[rose.RunReport], None] = lambda _report: None,
    ) -> None:
        """`publish` is told the report of every copy as it is finished."""
        super().__init__()
        self.setup, self.request = setup, request
        self.dense: EvaluatedModel | None = None
        self.copies: list[EvaluatedModel] = []  # those that are finished
        self.pruned: list[dict[str, Any]] = []  # of the copy at work: layer, relative_error, seconds
        self.layers = 0  # that it has in all
        self.cautions: list[str] = []  # on the calibration text
        self.file: FileRun | None = None  # that one of the copies is written into, the latest
        self._load, self._publish = load, publish
        self._begun = self._total = 0.0  # estimated seconds of the steps that were begun, and of all

    @property
    def models(self) -> list[EvaluatedModel]:
        """What is finished at this moment, the dense model first. The run goes on: ask once for what must agree."""
        return ([self.dense] if self.dense else []) + self.copies

    def _run(self, job: Job) -> None:
        request, new_folder = self.request, None
        if request.keep == "folder":
            first = request.output(request.cases[0])
            new_folder = None if first.parent.exists() else first.parent
            check_output(first)  # not after an hour of pruning
        try:
            self._work(job)
        except rose.Cancelled:
            self.discard()  # nobody would look for the checkpoints of a stopped run
            raise
        finally:
            if new_folder is not None:
                with contextlib.suppress(OSError):  # not empty: it holds checkpoints, each of them whole
                    new_folder.rmdir()

    def _work(self, job: Job) -> None:
        setup, request = self.setup, self.request
        self._say("Loading the model")
        loaded = self._load()
        job.check()
        tokens, held_out = setup.draw(loaded.tokenizer, self.cautions.append)
        whole = request.estimate(setup, loaded.model)
        check_memory(whole, setup.dtype)
        if request.keep == "folder":
            check_room(request.folder, len(request.cases) * weights_size(whole, setup.dtype), RESERVE)
        windows = request.evaluated(loaded.tokenizer, setup, (tokens, held_out))
        costs = [estimate_case(loaded.model, setup, request, case).seconds for case in request.cases]
        self._total = sum(costs) + evaluation_seconds(loaded.model, request) * (len(costs) + 1)
        model = self._copy(loaded.model, loaded.lock)
        self.dense = judge(request, DENSE, "the dense model", model, loaded.tokenizer, windows, self._step)
        for case, cost in zip(request.cases, costs, strict=True):
            if model is None:
                model = self._copy(loaded.model, loaded.lock)
            report = rose.prune_model(
                model,
                tokens,
                **request.settings(setup, case),
                layers=request.layer_patterns,
                true_sequential=request.true_sequential,
                held_out=held_out,
                progress=self._by_layer(self._step(f"Pruning by {case.label}", cost)),
            )
            judged = judge(request, case, case.label, model, loaded.tokenizer, windows, self._step)
            copy = self._saved(model, loaded.tokenizer, replace(judged, report=self._told(report, judged)))
            self.copies.append(copy)
            assert copy.report is not None
            self._publish(copy.report)
            self._drop_beaten()
            model = None  # before the next copy is made
        self.fraction = 1.0

    def _step(self, doing: str, cost: float) -> Callable[[float], None]:
        """Begins a step of so many estimated seconds; its progress callback moves that of the whole run."""
        self._say(doing)
        begun = self._begun
        self._begun += cost

        def tell(share: float) -> None:
            self.fraction = min(0.999, (begun + cost * share) / self._total)
            self.job.check()

        return tell

    def _by_layer(self, tell: Callable[[float], None]) -> Callable[[rose.Progress], None]:
        self.pruned, last = [], time.monotonic()

        def follow(progress: rose.Progress) -> None:
            nonlocal last
            began, last = last, time.monotonic()
            self.layers = progress.layers
            if progress.layer is not None:
                row = {"layer": progress.layer, "relative_error": progress.relative_error, "seconds": last - began}
                self.pruned.append(row)
            tell(progress.fraction)

        return follow

    def _told(self, report: rose.RunReport, judged: EvaluatedModel) -> rose.RunReport:
        setup, request, case = self.setup, self.request, judged.case
        one = replace(
            request, methods=(case.method,), sparsities=(case.sparsity,), targets=(case.target,), bits=(case.bits,)
        )
        assert self.dense is not None
        more = {} if request.layer_patterns is None else {"chosen_layers": request.layers.strip()}
        return report.with_summary(
            **setup.origin,
            text_cautions=self.cautions,
            evaluated_on=request.evaluate,
            windows=request.windows,
            window_length=request.window_length,
            perplexity_before=self.dense.perplexity,
            losses_before=list(self.dense.losses),
            command=command_lines(setup, one),
            **judged.measured,
            **more,
        )

    def _saved(self, model: Any, tokenizer: PreTrainedTokenizerBase, copy: EvaluatedModel) -> EvaluatedModel:
        """The copy, with its checkpoint where one is kept."""
        keep = self.request.keep
        if keep == "none" or (keep == "best" and copy.label not in self._worth_keeping([*self.copies, copy])):
            return copy
        self._say(f"Writing the checkpoint of {copy.label}")
        return self.write(model, tokenizer, copy)

    def write(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, copy: EvaluatedModel, replaces: bool = False
    ) -> EvaluatedModel:
        """The copy with its checkpoint, where those of this run are, and its sizes; as it was where there is no room.

        `replaces`: whether it takes the place of the checkpoint of that name once it is written. Raises RoseError where
        it cannot be written.
        """
        output = expand(self.request.folder) / copy.name
        if self.request.keep != "folder":
            if free_space() < sum(weight.nbytes for weight in model.parameters()) + RESERVE:
                return copy
            output = self._temporary() / copy.name
        assert copy.report is not None
        size = packed_size(model)
        report = copy.report.with_summary(plain_bytes=size.plain, packed_bytes=size.stored)
        with written_beside(output, replaces) as place:
            rose.save_model(model, tokenizer, place, report=report)
        return replace(copy, checkpoint=output, report=report)

    def add_tuned(self, copy: EvaluatedModel) -> None:
        """Adds a copy that tuning has made to those of this run, which has ended; one of the same name goes."""
        assert copy.report is not None
        self.copies = [*(one for one in self.copies if one.label != copy.label), copy]
        self._publish(copy.report)

    @property
    def is_at_work(self) -> bool:
        return super().is_at_work or (self.file is not None and self.file.is_at_work)

    def discard(self) -> None:
        if self.file is not None:
            self.file.job.stop()
            self.file.discard()
        super().discard()

    def _worth_keeping(self, copies: Sequence[EvaluatedModel]) -> list[str]:
        return worth_keeping([copy.result for copy in copies])

    def _drop_beaten(self) -> None:
        """Deletes the checkpoints that are not recommended any more."""
        if self.request.keep != "best":
            return
        worth = self._worth_keeping(self.copies)
        for number, copy in enumerate(self.copies):
            if copy.checkpoint is not None and copy.label not in worth:
                self.copies[number] = replace(copy, checkpoint=None)
                shutil.rmtree(copy.checkpoint, ignore_errors=True)


def kept_checkpoints(runs: Sequence[PruningRun], model: str) -> dict[str, Checkpoint]:
    """Checkpoints of copies of this model that runs have kept, by label, the latest first."""
    found: dict[str, Checkpoint] = {}
    for run in reversed(runs):
        for copy in reversed(run.copies):
            if run.setup.model == model and copy.checkpoint is not None and copy.checkpoint.exists():
                name = words.unused(copy.label, found)
                found[name] = Checkpoint(name, copy.checkpoint)
    return found
