"""Pruning copies of a whole model in the background: several methods and sparsities, one after another.

No Streamlit here. The shared model is only copied, under its lock; one copy exists at a time, and only its report,
perplexity, text and requested checkpoint are kept.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
import tempfile
import threading
import time
import weakref
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import rose
from app.jobs import Job, acquire
from app.runs.recipes import command_lines
from app.runs.request import HELD_OUT, PruneRequest, estimate_case, evaluation_seconds, run_name, task_seconds
from app.study.setup import Setup
from app.study.study import LoadedModel
from rose.files import expand
from rose.layer.methods import get_method
from rose.model.load.tokens import cut_windows, first_token
from rose.model.measure.generation import continue_prompt
from rose.model.measure.perplexity import perplexity_of, window_losses
from rose.model.measure.zero_shot import zero_shot
from rose.output import check_output

GRACE = 120.0  # seconds that checkpoints outlive a lost connection; longer than an unwatched job runs on


@dataclass(frozen=True)
class EvaluatedModel:
    """Results of one copy, or of the dense model, whose report is None.

    Attributes:
        method, sparsity: as asked; "dense" and "0".
        perplexity: on the chosen windows.
        text: the continuation of the prompt, empty without one.
        report: of the pruning, with perplexities in its summary.
        checkpoint: .zip file or folder, where one was kept.
        losses: mean loss a token of each window, by which models are compared.
        target: what its layers were fitted to.
        zero_shot: accuracies by task, see `rose.model.measure.zero_shot.zero_shot`; None where none was asked for.
    """

    method: str
    sparsity: str
    perplexity: float
    text: str
    report: rose.RunReport | None = None
    checkpoint: Path | None = None
    losses: tuple[float, ...] = ()
    target: str = "dense"
    zero_shot: pd.DataFrame | None = None

    @property
    def label(self) -> str:
        return "Dense" if self.report is None else case_label(self.method, self.sparsity, self.target)


def case_label(method: str, sparsity: str, target: str) -> str:
    """ "ROSE at 0.7", or "ROSE at 0.7, target layer" where the target is not the usual one."""
    label = f"{get_method(method).label} at {sparsity}"
    return label if target == "dense" else f"{label}, target {target}"


def model_table(models: Sequence[EvaluatedModel]) -> pd.DataFrame:
    """One row per model, the dense one first: perplexity, its ratio to dense, mean errors, seconds."""
    rows = []
    for model in models:
        summary = {} if model.report is None else model.report.summary
        rows.append(
            {
                "method": model.method,
                "sparsity": model.sparsity,
                "perplexity": model.perplexity,
                "ratio_to_dense": model.perplexity / models[0].perplexity,
                "mean_relative_error": summary.get("mean_relative_error"),
                "mean_held_out_error": summary.get("mean_held_out_error"),
                "mean_held_out_target_error": summary.get("mean_held_out_target_error"),
                "drift": None if model.report is None else model.report.last_drift,
                "removed_fraction": summary.get("removed_fraction", 0.0),
                "columnar_layers": summary.get("columnar_layers"),
                "seconds": summary.get("seconds", 0.0),
            }
        )
    return pd.DataFrame(rows)


def accuracy_table(models: Sequence[EvaluatedModel]) -> pd.DataFrame:
    """One row per model and task: task, questions, accuracy, accuracy_error (standard error), run, method."""
    tables = [
        model.zero_shot[["task", "questions", "accuracy", "accuracy_error"]].assign(
            run=model.label, method=model.method
        )
        for model in models
        if model.zero_shot is not None
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def layer_table(models: Sequence[EvaluatedModel]) -> pd.DataFrame:
    """The pruned models' layers, one under the other; `sparsity` is realised, `asked` as it was asked for."""
    tables = [model.report.layers.assign(asked=model.sparsity, target=model.target) for model in models if model.report]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


class PruningRun:
    """One run over all copies of a request, growing while its job runs.

    Attributes:
        setup, request: what was asked.
        job: the background work; its message is the step at work.
        dense: the model before pruning, None until measured.
        copies: one per finished case.
        fraction: share of the estimated work done, 0 to 1.
        pruned: layers of the copy at work that are done: layer, relative_error, seconds.
        layers: how many it has in all.
    """

    def __init__(
        self,
        setup: Setup,
        request: PruneRequest,
        load: Callable[[], LoadedModel],
        publish: Callable[[rose.RunReport], None] = lambda _report: None,
    ) -> None:
        """`publish` is told the report of every copy as it is finished."""
        self.setup, self.request = setup, request
        self.dense: EvaluatedModel | None = None
        self.copies: list[EvaluatedModel] = []
        self.fraction = 0.0
        self.pruned: list[dict[str, Any]] = []
        self.layers = 0
        self._load, self._publish = load, publish
        self._done = self._total = 0.0  # estimated seconds of finished steps, and of all
        self._began = time.monotonic()
        self._folder: Path | None = None
        self._new_folder: Path | None = None  # where there was none before
        self._farewell: threading.Timer | None = None
        self._holders = 0  # sessions that show it
        self.job = Job(self._run)

    @property
    def seconds(self) -> float:
        """Since the run was made."""
        return time.monotonic() - self._began

    @property
    def remaining(self) -> float | None:
        """Estimated seconds left; None while there is nothing to go by."""
        worked = self.seconds - self.job.waited
        return worked * (1 - self.fraction) / self.fraction if self.fraction > 0.01 else None

    @property
    def models(self) -> list[EvaluatedModel]:
        """What is finished at this moment, the dense model first. The run goes on: ask once for what must agree."""
        return ([self.dense] if self.dense else []) + self.copies

    def _run(self, job: Job) -> None:
        try:
            self._work(job)
        except rose.Cancelled:
            self.discard()  # nobody would look for the checkpoints of a stopped run
            raise
        except BaseException:
            self._drop_new_folder()  # finished checkpoints have cost hours, and are whole
            raise

    def _work(self, job: Job) -> None:
        setup, request = self.setup, self.request
        if request.keep == "folder":
            first = request.output(*request.cases[0])
            self._new_folder = None if first.parent.exists() else first.parent
            check_output(first)  # not after an hour of pruning
        self._say("Loading the model")
        loaded = self._load()
        job.check()
        tokens, held_out = setup.draw(loaded.tokenizer)
        windows = self._windows(loaded.tokenizer, held_out)
        costs = [estimate_case(loaded.model, setup, request, case[0], case[2]).seconds for case in request.cases]
        evaluation = evaluation_seconds(loaded.model, request)
        self._total = sum(costs) + evaluation * (len(costs) + 1)
        model = self._copy(loaded, job)
        self.dense = self._judge(model, loaded.tokenizer, windows, ("dense", "0", ""), None, evaluation, job)
        for number, (case, cost) in enumerate(zip(request.cases, costs, strict=True)):
            if number:
                model = self._copy(loaded, job)
            method, sparsity, target = case
            self._say(f"Pruning by {_named(case)}")
            report = rose.prune_model(
                model,
                tokens,
                method=method,
                sparsity=sparsity,
                layers=request.layer_patterns,
                block_size=setup.block_size,
                damping=setup.damping,
                threshold=request.threshold,
                target=target,
                target_damping=request.damping_of(target),
                true_sequential=request.true_sequential,
                held_out=held_out,
                progress=self._follower(job, cost),
            )
            self._done += cost
            judged = self._judge(model, loaded.tokenizer, windows, case, report, evaluation, job)
            self.copies.append(judged)
            assert judged.report is not None
            self._publish(judged.report)
            del model  # before the next copy is made
        self.fraction = 1.0

    def _copy(self, loaded: LoadedModel, job: Job) -> PreTrainedModel:
        acquire(loaded.lock, job)
        try:
            return copy.deepcopy(loaded.model)  # type: ignore[return-value]
        finally:
            loaded.lock.release()

    def _windows(self, tokenizer: PreTrainedTokenizerBase, held_out: Tensor | None) -> Tensor:
        request = self.request
        if request.evaluate != HELD_OUT:
            return rose.load_tokens(
                request.evaluate,
                tokenizer,
                samples=request.windows,
                length=request.window_length,
                seed=None,
                split="test",
            )
        assert held_out is not None  # as checked
        return cut_windows(held_out, request.windows, request.window_length, first_token(tokenizer))

    def _say(self, doing: str) -> None:
        self.job.message = doing

    def _share(self, job: Job, cost: float) -> Callable[[float], None]:
        """Progress callback of a step of this many estimated seconds; moves the progress of the whole run."""

        def tell(share: float) -> None:
            self.fraction = min(0.999, (self._done + cost * share) / self._total) if self._total else 0.0
            job.check()

        return tell

    def _follower(self, job: Job, cost: float) -> Callable[[rose.Progress], None]:
        share = self._share(job, cost)
        self.pruned = []
        last = time.monotonic()

        def tell(progress: rose.Progress) -> None:
            nonlocal last
            self.layers = progress.layers
            now = time.monotonic()
            if progress.layer is not None:
                self.pruned.append(
                    {"layer": progress.layer, "relative_error": progress.relative_error, "seconds": now - last}
                )
            last = now
            share(progress.fraction)

        return tell

    def _judge(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        windows: Tensor,
        case: tuple[str, str, str],
        report: rose.RunReport | None,
        cost: float,
        job: Job,
    ) -> EvaluatedModel:
        """Perplexity, continuation and checkpoint of one model."""
        request = self.request
        method, sparsity, target = case
        whose = "the dense model" if report is None else _named(case)
        self._say(f"Perplexity of {whose}")
        asking = task_seconds(model, request)
        share = self._share(job, cost - asking)
        losses = window_losses(model, windows, progress=share)
        perplexity, by_window = perplexity_of(losses), tuple(losses.tolist())
        text = ""
        if request.prompt.strip():
            self._say(f"Prompt continued by {whose}")
            text = continue_prompt(
                model, tokenizer, request.prompt, new_tokens=request.new_tokens, tick=lambda: share(1.0)
            )
        self._done += cost - asking
        answered = self._answers(model, tokenizer, whose, self._share(job, asking))
        self._done += asking
        if report is None:
            return EvaluatedModel(method, sparsity, perplexity, text, losses=by_window, zero_shot=answered)
        assert self.dense is not None
        report = report.with_summary(
            model=self.setup.model,
            dtype=self.setup.dtype,
            calibration=self.setup.text,
            seed=self.setup.seed,
            **({} if request.layer_patterns is None else {"chosen_layers": request.layers.strip()}),
            evaluated_on=request.evaluate,
            windows=request.windows,
            window_length=request.window_length,
            perplexity_before=self.dense.perplexity,
            perplexity_after=perplexity,
            command=command_lines(
                self.setup, replace(request, methods=(method,), sparsities=(sparsity,), targets=(target,))
            ),
            **({} if answered is None else {"zero_shot": _rows(answered)}),
        )
        checkpoint = self._save(model, tokenizer, case, report, job)
        return EvaluatedModel(method, sparsity, perplexity, text, report, checkpoint, by_window, target, answered)

    def _answers(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, whose: str, share: Callable[[float], None]
    ) -> pd.DataFrame | None:
        """Zero-shot accuracies where tasks were asked for."""
        request = self.request
        if not request.tasks:
            return None
        self._say(f"Zero-shot tasks answered by {whose}")
        folder = expand(request.task_folder.strip()) if request.task_folder.strip() else None
        return zero_shot(
            model, tokenizer, tasks=request.tasks, task_folder=folder, limit=request.questions, progress=share
        )

    def _save(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        case: tuple[str, str, str],
        report: rose.RunReport,
        job: Job,
    ) -> Path | None:
        if self.request.keep == "nothing":
            return None
        self._say(f"Writing the checkpoint of {_named(case)}")
        job.check()
        if self.request.keep == "folder":
            output = self.request.output(*case)
            check_output(output)
            rose.save_model(model, tokenizer, output, report=report)
            return output
        folder = self._temporary() / run_name(*case)
        rose.save_model(model, tokenizer, folder, report=report)
        archive = folder.with_name(folder.name + ".zip")
        try:
            pack(folder, archive, job)
        except BaseException:
            archive.unlink(missing_ok=True)
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return archive

    def _temporary(self) -> Path:
        """Created on first use; deleted with this object, at the latest when the program ends."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="rose-pruned-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    def let_go(self, after: float = GRACE) -> None:
        """A viewer has gone. After the last one temporary checkpoints go in a while, unless `hold` is called before."""
        self._holders = max(0, self._holders - 1)
        if not self._holders:
            self._say_farewell(after)

    def _say_farewell(self, after: float) -> None:
        self._stay()
        self._farewell = threading.Timer(after, self._expire, (after,))
        self._farewell.daemon = True
        self._farewell.start()

    def hold(self) -> None:
        """A viewer is there, or there again."""
        self._holders += 1
        self._stay()

    @property
    def is_shared(self) -> bool:
        """Whether several sessions show it."""
        return self._holders > 1

    def _stay(self) -> None:
        if self._farewell is not None:
            self._farewell.cancel()

    def _expire(self, after: float) -> None:
        if self.job.status == "running":
            self._say_farewell(after)  # nobody watches it, so it will soon stop
        else:
            self.discard()

    def discard(self) -> None:
        """Deletes the temporary checkpoints; those in a folder that the user chose stay, each of them whole."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._drop_new_folder()

    def _drop_new_folder(self) -> None:
        if self._new_folder is not None:
            with contextlib.suppress(OSError):  # not empty: it holds a finished checkpoint
                self._new_folder.rmdir()


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """For JSON, which does not know NaN."""
    return table.astype(object).where(table.notna(), None).to_dict(orient="records")


def _named(case: tuple[str, str, str]) -> str:
    """What is at work, in words."""
    method, sparsity, target = case
    said = f"{get_method(method).label}, sparsity {sparsity}"
    return said if target == "dense" else f"{said}, target {target}"


def pack(folder: Path, archive: Path, job: Job) -> None:
    """Stored, not compressed: weights hardly shrink, and it would take minutes."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        for file in sorted(folder.iterdir()):
            job.check()
            packed.write(file, f"{folder.name}/{file.name}")
