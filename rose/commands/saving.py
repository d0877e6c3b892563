"""Evaluation before and after, and saving with a report, for `prune`, `slim` and `tune`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from torch import nn
from transformers import PreTrainedModel

import rose
from rose import output, verdicts
from rose.commands import shared, terminal
from rose.model.load.models import parse_dtype, stored_dtype
from rose.model.measure.perplexity import perplexity_of
from rose.model.network.precision import name_of
from rose.model.workers import Workers
from rose.output import check_folder, check_output
from rose.recipe.file import Recipe
from rose.recipe.steps import Prune, Slim, Tune
from rose.wording import count

Saved = Prune | Slim | Tune


def check(spec: Saved) -> None:
    """Raises RoseError, before a model is loaded, unless it can be evaluated and written."""
    check_output(spec.output)
    # The output folder must still be empty once the run is over.
    if spec.checkpoint:
        check_folder(spec.checkpoint)
    if spec.checkpoint and spec.checkpoint.resolve().is_relative_to(spec.output.resolve()):
        raise rose.RoseError("--checkpoint must not be inside --output, which is empty until the end; choose another.")


def check_room(spec: Saved, model: nn.Module, removed: float = 0.0) -> None:
    """Raises RoseError unless the copy will fit on the disk; `gone`: parameters that will not be in it."""
    parameters = list(model.parameters())
    stored = sum(parameter.nbytes for parameter in parameters)
    output.check_room(spec.output, round(stored - removed * parameters[0].itemsize))


class Outcome:
    """Evaluates a model on the text of --evaluate, if given, and saves it. `source` names the model to change."""

    def __init__(self, spec: Saved, source: str, tokenizer: Any, console: Console) -> None:
        self.spec, self.tokenizer, self.console = spec, tokenizer, console
        self.windows = shared.windows(spec, spec.evaluate, tokenizer) if spec.evaluate else None
        self.before: dict[str, Any] = {}
        _say_format(source, spec.dtype, console)

    def begin(self, dense: nn.Module, of: str = "") -> None:
        """Evaluates the model before the change."""
        self.before = self.measure(dense, "before", of)

    def measure(self, model: nn.Module, stage: str, of: str = "") -> dict[str, Any]:
        """Perplexity and losses by window for a report; None without --evaluate. `of` replaces the stage on the bar."""
        windows, doing = self.windows, f"Perplexity {of or stage}"
        if windows is None:
            return {f"perplexity_{stage}": None, f"losses_{stage}": None}
        losses = Workers.here().from_first(lambda: shared.losses(model, windows, self.console, doing))
        return {f"perplexity_{stage}": perplexity_of(losses), f"losses_{stage}": losses.tolist()}

    def save(self, model: PreTrainedModel, report: rose.RunReport) -> rose.RunReport:
        """Saves the model with its report, then evaluates it, and returns the report with what came out: a model whose
        evaluation fails is there all the same."""
        folder, workers = self.spec.output, Workers.here()
        windows = 0 if self.windows is None else len(self.windows)
        report = report.with_summary(
            evaluated_on=self.spec.evaluate, windows=windows, **self.before, perplexity_after=None, losses_after=None
        )
        with self.console.status(escape(f"Writing {folder}")):
            workers.from_first(lambda: self._write(model, report))
        if not windows:
            return report
        evaluated = report.with_summary(**self.measure(model, "after"))
        workers.from_first(lambda: evaluated.save(folder))
        return evaluated

    def _write(self, model: PreTrainedModel, report: rose.RunReport) -> None:
        rose.save_model(model, self.tokenizer, self.spec.output, report=report)
        Recipe((self.spec,)).write(self.spec.output)


def _say_format(source: str, dtype: str, console: Console) -> None:
    """Warns if the copy will take more bytes per weight than its source."""
    stored = stored_dtype(source)
    if stored.itemsize < parse_dtype(dtype).itemsize:
        format = name_of(stored)
        console.print(f"The copy will be in {dtype}, twice the bytes; --dtype {format} keeps {format}", soft_wrap=True)


def say_targets(report: rose.RunReport) -> None:
    """Prints the drift of the residual stream and the remarks."""
    if report.last_drift is not None:
        where = "after the last pruned decoder block, on held-out tokens"
        terminal.say(f"Drift of the residual stream {where}: {report.last_drift:.4f}")
    terminal.say(*report.remarks)


def say_perplexity(summary: Mapping[str, Any]) -> None:
    """Prints how perplexity moved from the dense model's, and for a tuned model from the pruned one's."""
    if summary["perplexity_after"] is None:
        return
    moved, *odd = verdicts.says_perplexity(summary)
    terminal.say(f"Perplexity on {summary['evaluated_on']}, {count(summary['windows'], 'window')}: {moved}")
    if (tuned := summary.get("tuned", {})).get("perplexity_before") is not None:
        terminal.say(f"Tuning took it {verdicts.says_perplexity(summary, tuned)[0]}")
    if odd:
        terminal.say(*odd, "With --bos always every window begins with one, if the tokenizer has one.")
