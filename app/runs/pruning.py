"""Pruning copies of a whole model in the background: several methods and sparsities, one after another.

No Streamlit here. The shared model is only copied, under its lock; one copy exists at a time, and only its report,
perplexity, text and requested checkpoint are kept.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import Tensor
from transformers import PreTrainedTokenizerBase

import rose
from app import words
from app.jobs import Job
from app.runs.copies import CopyRun, Step, as_before, dense_record, measured_perplexity, results_of, second_text
from app.runs.kept_copies import RESERVE, Checkpoint, worth_keeping
from app.runs.request import Case, PruneRequest, estimate_case, evaluation_seconds, task_seconds
from app.study.setup import Setup, check_memory, weights_size
from app.study.study import LoadedModel
from rose.files import expand
from rose.model.measure.perplexity import window_losses
from rose.model.measure.text import continue_prompt
from rose.model.measure.zero_shot import zero_shot
from rose.output import check_output, check_room

if TYPE_CHECKING:
    from app.runs.files import FileRun


def model_table(models: Sequence[rose.RunReport]) -> pd.DataFrame:
    """One row per model, the dense one first: perplexity, its ratio to dense, mean errors, seconds."""
    totals = (
        *("mean_relative_error", "mean_held_out_error", "mean_held_out_target_error", "columnar_layers"),
        *("mean_pruning_error", "mean_rounding_error"),
    )
    rows = [
        {
            "method": model.method,
            "sparsity": model.asked,
            "perplexity": model.perplexity,
            "ratio_to_dense": model.perplexity / models[0].perplexity,
            **{name: model.summary.get(name) for name in totals},
            "drift": model.last_drift,
            "removed_fraction": model.summary.get("removed_fraction", 0.0),
            "seconds": model.seconds,
        }
        for model in models
    ]
    return pd.DataFrame(rows)


def accuracy_table(models: Sequence[rose.RunReport]) -> pd.DataFrame:
    """One row per model and task: task, questions, accuracy, accuracy_error (standard error), run, method."""
    columns = ["task", "questions", "accuracy", "accuracy_error"]
    answered = [(model, model.zero_shot[columns]) for model in models if model.zero_shot is not None]
    tables = [table.assign(run=model.name, method=model.method) for model, table in answered]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def layer_table(copies: Sequence[rose.RunReport]) -> pd.DataFrame:
    """The copies' layers, one under the other; `sparsity` is realised, `asked` as it was asked for.

    Tuning measures no errors, so that tuned copies have no rows.
    """
    tables = [
        copy.layers.assign(asked=copy.summary["sparsity"], target=copy.target) for copy in copies if not copy.is_tuned
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


class PruningRun(CopyRun):
    """One run over all copies of a request, growing while its job runs."""

    def __init__(
        self,
        setup: Setup,
        request: PruneRequest,
        load: Callable[[], LoadedModel],
        publish: Callable[[rose.RunReport], None] = lambda _report: None,
    ) -> None:
        """`publish` gets the record of every finished copy."""
        super().__init__(setup, load, request.folder if request.keep == "folder" else "", publish)
        self.request = request
        self.cautions: list[str] = []  # on the calibration text
        self.file: FileRun | None = None  # the latest file written from a copy
        self._begun = self._total = 0.0  # estimated seconds of the steps that were begun, and of all

    def windows(self, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        return self.request.evaluated(tokenizer, self.setup, self.setup.draw(tokenizer))

    def judge(self, model_name: str, model: Any, tokenizer: Any, windows: Tensor, step: Step) -> dict[str, Any]:
        request = self.request
        asking = task_seconds(model, request)
        tell = step(f"Perplexity of {model_name}", evaluation_seconds(model, request) - asking)
        results = measured_perplexity(window_losses(model, windows, progress=tell)) | second_text(model, tokenizer)
        if request.prompt.strip():
            step(f"Prompt continued by {model_name}", 0.0)
            results["continuation"] = continue_prompt(model, tokenizer, request.prompt, new_tokens=request.new_tokens)
        if request.tasks:
            tell = step(f"Zero-shot tasks answered by {model_name}", asking)
            folder = expand(request.task_folder.strip()) if request.task_folder.strip() else None
            answered = zero_shot(
                model, tokenizer, tasks=request.tasks, task_folder=folder, limit=request.questions, progress=tell
            )
            results["zero_shot"] = answered.to_dict("records")
        return results

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
        self.dense = dense_record(self.judge("the dense model", model, loaded.tokenizer, windows, self._step))
        for case, cost in zip(request.cases, costs, strict=True):
            if model is None:
                model = self._copy(loaded.model, loaded.lock)
            tell = self._step(f"Pruning by {case.label}", cost)
            report = rose.prune_model(
                model,
                tokens,
                **request.settings(setup, case),
                layers=request.layer_patterns,
                held_out=held_out,
                progress=_by_share(tell),
            )
            measured = self.judge(case.label, model, loaded.tokenizer, windows, self._step)
            self.add(self._saved(model, loaded.tokenizer, self._told(report, case).with_summary(**measured)))
            self._drop_beaten()
            model = None  # before the next copy is made
        self.fraction = 1.0

    def _step(self, doing: str, cost: float) -> Callable[[float], None]:
        """Begins a step with its estimated seconds; its callback moves the progress of the whole run."""
        self._say(doing)
        begun = self._begun
        self._begun += cost

        def tell(share: float) -> None:
            self.fraction = min(0.999, (begun + cost * share) / self._total)
            self.job.check()

        return tell

    def _told(self, report: rose.RunReport, case: Case) -> rose.RunReport:
        setup, request = self.setup, self.request
        assert self.dense is not None
        layers = {} if request.layer_patterns is None else {"chosen_layers": request.layers.strip()}
        return report.signed(
            request.recipe(setup, case),
            text_cautions=self.cautions,
            evaluated_on=request.evaluate,
            windows=request.windows,
            window_length=request.window_length,
            **as_before(self.dense),
            **layers,
        )

    def _saved(self, model: Any, tokenizer: PreTrainedTokenizerBase, copy: rose.RunReport) -> rose.RunReport:
        """The copy, after its checkpoint is written if it is kept."""
        keep = self.request.keep
        if keep == "none" or (keep == "best" and copy.name not in self._worth_keeping([*self.copies, copy])):
            return copy
        self._say(f"Writing the checkpoint of {copy.name}")
        return self.write(model, tokenizer, copy)

    @property
    def is_at_work(self) -> bool:
        return super().is_at_work or (self.file is not None and self.file.is_at_work)

    def discard(self) -> None:
        if self.file is not None:
            self.file.job.stop()
            self.file.discard()
        super().discard()

    def _worth_keeping(self, copies: Sequence[rose.RunReport]) -> list[str]:
        return worth_keeping(results_of(copies))

    def _drop_beaten(self) -> None:
        """Deletes the checkpoints that are not recommended any more."""
        if self.request.keep != "best":
            return
        worth = self._worth_keeping(self.copies)
        for name in self.checkpoints.keys() - worth:
            shutil.rmtree(self.checkpoints.pop(name), ignore_errors=True)


def _by_share(tell: Callable[[float], None]) -> Callable[[rose.Progress], None]:
    return lambda progress: tell(progress.fraction)


def kept_checkpoints(runs: Sequence[PruningRun], model: str) -> dict[str, Checkpoint]:
    """Checkpoints of copies of this model that runs have kept, by label, the latest first."""
    checkpoints: dict[str, Checkpoint] = {}
    for run in reversed(runs):
        for copy in reversed(run.copies):
            if run.setup.model == model and (place := run.kept(copy)) is not None:
                name = words.unused(copy.name, checkpoints)
                checkpoints[name] = Checkpoint(name, place)
    return checkpoints
