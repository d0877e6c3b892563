"""`rose tune`: the weights that pruning has kept are trained towards the dense model; zeros stay."""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from torch import Tensor, nn

import rose
from rose.commands import saving, shared, terminal
from rose.files import expand
from rose.interrupt import CANCELLED
from rose.model.load.models import has_tokenizer
from rose.model.load.tokens import load_apart, tuning_draw
from rose.model.network.layers import count_zeros, keep_low_rank, prunable_layers
from rose.model.network.network import Network
from rose.model.progress import ProgressCallback
from rose.model.run.checkpoint import begun_with
from rose.model.tune.task import TuneReport, TuneTask, TuningProgress, check_memory, check_pair
from rose.model.tune.tuning import Parts, texts_digest, tune_until_stopped
from rose.recipe.parts import TuneSettings
from rose.recipe.steps import Prune, Slim, Tune
from rose.report import report_beside
from rose.rows import removed_fraction
from rose.wording import whole

Texts = tuple[Tensor, Tensor | None]  # to train on, and held out
TUNED = "tuned"  # folder of --tune inside --checkpoint


def run(spec: Tune, console: Console) -> int:
    settings = TuneSettings(**shared.pick(spec, TuneSettings.fields()))
    saving.check(spec)
    earlier = report_beside(expand(spec.pruned))
    spec = shared.settle_dtype(spec, spec.pruned)
    dense, tokenizer = shared.load(spec, console, spec.dense)
    if has_tokenizer(spec.pruned):  # and its chat template, which a copy keeps
        model, tokenizer = shared.load(spec, console, spec.pruned)
    else:
        model, _ = shared.load(spec, console, spec.pruned, tokenizer=spec.dense)
    saving.check_room(spec, model)
    check_pair(model, dense, by_text_alone=spec.unpruned and spec.loss == "ce")
    outcome = saving.Outcome(spec, spec.pruned, tokenizer, console)
    sizes = shared.pick(spec, ("samples", "held_out", "length"))
    texts = _texts(spec, tokenizer, outcome.windows, **sizes)
    report = earlier or _as_found(model)
    keep_low_rank(model, expand(spec.pruned))
    tuner = Parts(TuneTask(model, dense, *texts, spec.layers, spec.unpruned), settings, spec.parts)
    outcome.begin(dense, "of the dense model")
    pruned = outcome.measure(model, "before", "of the pruned model")
    tuned = Tuned(*tune_until_stopped(lambda: tuner, _bar(console), spec.checkpoint))
    if tuned.stopped and not tuned.found:  # PRUNED is unchanged
        raise tuned.stopped
    tuned.say_stop(console)
    report = tuned.added_to(report, **shared.origin(spec), dense=spec.dense, **pruned)
    report = outcome.save(model, report)
    tuned.say()
    saving.say_perplexity(report.summary)
    terminal.say(f"Checkpoint and report.json are in {spec.output}")
    return tuned.status()


def check_tuning(spec: Prune | Slim) -> None:
    """Raises RoseError, before a model is loaded, for a checkpoint whose tuning was begun for other minutes."""
    begun = begun_with(spec.checkpoint and spec.checkpoint / TUNED, "minutes")
    if spec.tune is not None and begun not in (None, spec.tune):
        raise rose.RoseError(
            f"The checkpoint in {spec.checkpoint} was begun with --tune {begun:g}; give that, or another checkpoint."
        )


def draw_texts(spec: Prune | Slim, model: nn.Module, tokenizer: Any, evaluated: Tensor | None) -> Texts | None:
    """Windows for --tune, drawn before pruning; None without --tune.

    Raises RoseError for a short text, too little memory, a model that is already as sparse, or a checkpoint that was
    begun on other windows.
    """
    if spec.tune is None:
        return None
    _check_sparser(spec, model)
    sizes = tuning_draw(spec.length)._asdict()
    dense = sum(parameter.nbytes for parameter in model.parameters())  # is read once more
    check_memory(Network(model), sizes["length"], compute=getattr(spec, "compute", "auto"), besides=dense)
    texts = _texts(spec, tokenizer, evaluated, **sizes)
    if begun_with(spec.checkpoint and spec.checkpoint / TUNED, "tokens") not in (None, texts_digest(*texts)):
        raise rose.RoseError(
            f"The checkpoint in {spec.checkpoint} was begun with other windows to tune on, which share no text with "
            "those of --evaluate; give --evaluate and --windows as it was begun, or another checkpoint."
        )
    return texts


def _texts(spec: Prune | Slim | Tune, tokenizer: Any, evaluated: Tensor | None, **sizes: int) -> Texts:
    """Training and held-out windows, without overlap with each other or with the windows of --evaluate."""
    apart_from = torch.empty(0, sizes["length"], dtype=torch.int64) if evaluated is None else evaluated
    tokens, held_out = load_apart(
        spec.calibration, tokenizer, seed=spec.seed, bos=spec.bos, apart_from=apart_from, **sizes
    )
    return tokens, held_out if len(held_out) else None


def _check_sparser(spec: Prune | Slim, model: nn.Module) -> None:
    """Raises RoseError if pruning would not make the model sparser, as tuning needs a denser teacher."""
    if not isinstance(spec, Prune):
        return
    zeros, count = count_zeros(Network(model).select(spec.layers))
    if zeros >= spec.pattern.ratio * count:
        raise rose.RoseError(
            f"{100 * zeros / count:.3g} % of the model's weights are zero already, so it cannot be the dense one for "
            f"--tune after sparsity {spec.sparsity}; give the model it was pruned from, or leave --tune out."
        )


def tune_after(spec: Prune | Slim, console: Console, model: nn.Module, texts: Texts | None) -> Tuned:
    """Tunes a pruned model for the minutes of --tune, if any; the dense model is loaded again."""
    if texts is None:
        return Tuned()

    def make() -> Parts:
        dense, _ = shared.load(spec, console)
        settings = TuneSettings(minutes=spec.tune, seed=spec.seed, compute=getattr(spec, "compute", "auto"))
        return Parts(TuneTask(model, dense, *texts), settings)

    checkpoint = spec.checkpoint and spec.checkpoint / TUNED
    tuned = Tuned(*tune_until_stopped(make, _bar(console), checkpoint))
    tuned.say_stop(console)
    return tuned


@dataclass(frozen=True)
class Tuned:
    """The report of tuning, None before the first step, and the exception that stopped it, if any."""

    found: TuneReport | None = None
    stopped: BaseException | None = None

    def added_to(self, report: rose.RunReport, **facts: Any) -> rose.RunReport:
        return self.found.added_to(report, **facts) if self.found else report

    def say_stop(self, console: Console) -> None:
        if self.stopped:
            traceback.clear_frames(self.stopped.__traceback__)  # they hold all that tuning needed; memory may be short
            how = "was cancelled" if isinstance(self.stopped, KeyboardInterrupt) else "has failed"
            console.print(f"rose: tuning {how}; the best weights so far are kept")

    def say(self) -> None:
        if self.found is None:
            return
        summary = self.found.summary
        of = f"{whole(summary['zeros'])} of {whole(summary['weights'])} weights are zero, as before"
        steps = "1 step" if summary["steps"] == 1 else f"{summary['steps']} steps"
        terminal.say(f"Tuned {steps} in {summary['seconds']:.0f} s; {of}", self.found.caution)
        if summary["held_out_before"] is None:
            return
        before, after, dense = (math.exp(summary[f"held_out_{name}"]) for name in ("before", "after", "dense"))
        result = f"the weights of step {summary['kept_step']} are kept"
        if summary.get("parts"):
            result = "the best step of every part is kept"
        if not summary["kept_step"] and len(self.found.curve) > 1:
            result = f"no step was better, so nothing was changed; a --rate below {summary['rate']:.2g} may do"
        terminal.say(f"Held-out perplexity {before:.2f} -> {after:.2f}, dense {dense:.2f}; {result}")

    def status(self) -> int:
        """The exit status; raises the exception that stopped tuning, other than Ctrl-C."""
        if self.stopped and not isinstance(self.stopped, KeyboardInterrupt):
            raise self.stopped
        return CANCELLED if self.stopped else 0


@contextmanager
def _bar(console: Console) -> Iterator[ProgressCallback]:
    with terminal.bar(console, "Tuning") as follow:
        yield lambda progress: follow(progress, _says(progress))


def _says(progress: rose.Progress) -> str:
    """Text of the progress bar, with the last held-out perplexity."""
    curve = progress.curve if isinstance(progress, TuningProgress) else ()
    loss = curve[-1].held_out if curve else None
    return "Tuning" if loss is None else f"Tuning, held-out perplexity {math.exp(min(loss, 700)):.2f}"  # no overflow


def _as_found(model: nn.Module) -> rose.RunReport:
    """A report for a pruned model without one, from its weights."""
    rows = []
    for layer in prunable_layers(model):
        share = float((layer.weight == 0).float().mean())
        rows.append((layer.name, layer.block_index, layer.projection, *layer.weight.shape, share))
    table = pd.DataFrame(rows, columns=["layer", "block_index", "projection", "rows", "columns", "sparsity"])
    removed = removed_fraction(table)
    facts = {"method": "as-found", "sparsity": f"{removed:.3g}", "layers": len(table), "removed_fraction": removed}
    return rose.RunReport(table, facts | {"drift": []})
