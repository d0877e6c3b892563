"""What `prune` and `slim` share: a model is evaluated before and after, and written with a report."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from transformers import PreTrainedModel

import rose
from rose import verdicts
from rose.commands import options as shared
from rose.commands import terminal
from rose.model.workers import Workers
from rose.output import check_folder, check_output
from rose.verdicts import Result


def check(options: argparse.Namespace) -> None:
    """Raises RoseError, before a model is loaded, unless it can be evaluated and written."""
    check_output(options.output)
    if options.stream and options.evaluate:
        raise rose.RoseError("--evaluate needs the whole model in memory; leave it out, or leave --stream out.")
    # The output folder must still be empty once the run is over.
    if options.checkpoint:
        check_folder(options.checkpoint)
    if options.checkpoint and options.checkpoint.resolve().is_relative_to(options.output.resolve()):
        raise rose.RoseError("--checkpoint must not be inside --output, which is empty until the end; choose another.")


class Outcome:
    """What becomes of a model: its perplexity on the text of --evaluate, where there is one, and the folder."""

    def __init__(self, options: argparse.Namespace, model: PreTrainedModel, tokenizer: Any, console: Console) -> None:
        self.options, self.model, self.tokenizer, self.console = options, model, tokenizer, console
        self.windows = shared.windows(options, options.evaluate, tokenizer) if options.evaluate else None
        self.before = self.measure("before")

    def measure(self, stage: str) -> dict[str, Any]:
        return shared.evaluated(self.model, self.windows, self.console, f"Perplexity {stage}", stage)

    def save(self, report: rose.RunReport) -> rose.RunReport:
        """Evaluates the model, saves it with its report, and returns the report with all that the command knows."""
        folder = self.options.output
        report = report.with_summary(
            **shared.origin(self.options),
            evaluated_on=self.options.evaluate,
            windows=0 if self.windows is None else len(self.windows),
            **self.before,
            **self.measure("after"),
        )
        with self.console.status(escape(f"Writing {folder}")):
            Workers.here().from_first(lambda: rose.save_model(self.model, self.tokenizer, folder, report=report))
        return report


def say_targets(report: rose.RunReport) -> None:
    """How far the residual stream is from that of the dense model, and where it could not be corrected."""
    if report.last_drift is not None:
        where = "after the last pruned decoder block, on held-out tokens"
        terminal.say(f"Drift of the residual stream {where}: {report.last_drift:.4f}")
    terminal.say(*report.remarks)


def say_perplexity(summary: Mapping[str, Any]) -> None:
    if summary["perplexity_after"] is not None:
        before, after = (
            Result(stage, "", summary[f"perplexity_{stage}"], tuple(summary[f"losses_{stage}"]))
            for stage in ("before", "after")
        )
        text, windows = summary["evaluated_on"], summary["windows"]
        moved = verdicts.says_move(before.value, after.value, "the dense model's", verdicts.compare(before, after))
        odd = verdicts.says_odd_windows(before.losses, after.losses)
        terminal.say(f"Perplexity on {text}, {windows} windows: {moved}", odd)
