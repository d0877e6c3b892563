"""Runs that make copies of a model, pruned or smaller: what each came to, and its checkpoint. No Streamlit here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor
from transformers import PreTrainedTokenizerBase

import rose
from app.jobs import Run
from app.runs.kept_copies import RESERVE, free_space, worth_keeping, written_beside
from app.runs.request import Case
from app.study.setup import Setup
from app.study.study import LoadedModel
from rose.files import expand
from rose.model.measure.perplexity import perplexity_of, window_losses
from rose.model.network.network import Network
from rose.model.ship.packing import packed_size
from rose.verdicts import EvaluationSetup, Result

DENSE = "dense"  # in place of a method
SECOND = Path(__file__).with_name("plain_english.txt")  # written for this project, in the public domain
SECOND_LENGTH = 128  # tokens of its windows
Step = Callable[
    [str, float], Callable[[float], None]
]  # name of the step, its estimated seconds -> a callback for the share done


def dense_record(results: dict[str, Any]) -> rose.RunReport:
    """The record of the unchanged model, with its measurements."""
    return rose.RunReport(pd.DataFrame(columns=["layer"]), results, {"method": DENSE, "sparsity": "0"}, called="Dense")


def measured_perplexity(losses: Tensor) -> dict[str, Any]:
    """Losses of each window, in nats a token, as the results of a record."""
    return {"perplexity_after": perplexity_of(losses), "losses_after": losses.tolist()}


def second_text(model: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Perplexity and losses of each window on plain English, which calibrates nothing, as results of a record."""
    length = min(SECOND_LENGTH, Network(model).positions or SECOND_LENGTH)
    losses = window_losses(model, rose.load_tokens(str(SECOND), tokenizer, samples=None, length=length, seed=None))
    return {"perplexity_second": perplexity_of(losses), "losses_second": losses.tolist()}


def as_before(record: rose.RunReport) -> dict[str, Any]:
    """A model's perplexity as the "before" of another record; {} where it was not measured."""
    numbers = ("perplexity", "losses") if "perplexity_after" in record.summary else ()
    return {f"{number}_before": record.summary[f"{number}_after"] for number in numbers}


def file_name(copy: rose.RunReport) -> str:
    """Of the folder and the files of a copy, and for keys of its widgets."""
    if copy.kind == "slim":
        return f"slim-{copy.method}-{copy.summary['ratio']:g}" + ("-tuned" if copy.is_tuned else "")
    case = Case(copy.method, str(copy.summary["sparsity"]), copy.target, copy.bits)
    return case.name + copy.tuned_suffix.replace(", ", "-").replace(" ", "-")


def results_of(copies: Sequence[rose.RunReport]) -> list[Result]:
    """For `rose.verdicts`: all copies of one run have the same set-up, and those without finite perplexity count."""
    return [replace(copy.result, setup=EvaluationSetup()) for copy in copies]


class CopyRun(Run):
    """Work that makes copies of a model, which may be tuned once it has ended, in a run of its own.

    Attributes:
        dense, copies: records of the dense model and of the copies that are finished.
        checkpoints: folders that were kept, by the names of the copies.
        tuning: the latest.
    """

    def __init__(
        self,
        setup: Setup,
        load: Callable[[], LoadedModel],
        folder: str = "",
        publish: Callable[[rose.RunReport], None] = lambda _copy: None,
    ) -> None:
        """`folder`: of the checkpoints, "" for a temporary one. `publish` gets every copy as it is finished."""
        super().__init__()
        self.setup = setup
        self.dense: rose.RunReport | None = None
        self.copies: list[rose.RunReport] = []
        self.checkpoints: dict[str, Path] = {}
        self.tuning: Run | None = None
        self._load, self._kept_in, self._publish = load, folder, publish

    def windows(self, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """Those that perplexity is measured on, (windows, tokens)."""
        raise NotImplementedError

    def judge(self, model_name: str, model: Any, tokenizer: Any, windows: Tensor, step: Step) -> dict[str, Any]:
        """Measures what the run asks of each model, as the results of a record; `whose` is the model in words."""
        raise NotImplementedError

    @property
    def models(self) -> list[rose.RunReport]:
        """What is finished at this moment, the dense model first. The run goes on: read this once for numbers that must
        agree."""
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
        if copy.kind == "prune":
            size = packed_size(model)
            copy = copy.with_summary(plain_bytes=size.plain, packed_bytes=size.stored)
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
        """Copies that can be tuned, by name, those first that are recommended; tuned ones begin anew."""
        copies = [copy for copy in self.untuned if copy.bits is None]  # whose weights would leave their grid
        best = worth_keeping(results_of(copies))
        return {copy.name: copy for copy in sorted(copies, key=lambda copy: copy.name not in best)}

    @property
    def is_tuning(self) -> bool:
        return self.tuning is not None and self.tuning.is_at_work

    @property
    def is_at_work(self) -> bool:
        return super().is_at_work or self.is_tuning

    def discard(self) -> None:
        if self.tuning is not None:
            self.tuning.job.stop()
        super().discard()
