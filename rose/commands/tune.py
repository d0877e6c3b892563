"""`rose tune`: the weights that pruning has kept are trained towards the dense model; zeros stay."""

from __future__ import annotations

import argparse
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
from rose.commands import checkpoints, terminal
from rose.commands import options as shared
from rose.files import expand
from rose.interrupt import CANCELLED
from rose.layer.pattern import parse_sparsity
from rose.model.defaults import LOSSES, RATE, TUNING
from rose.model.formats.low_rank import keep_low_rank
from rose.model.load.models import has_tokenizer
from rose.model.load.tokens import load_apart, tuning_draw
from rose.model.network.layers import count_zeros, prunable_layers
from rose.model.network.network import Network
from rose.model.progress import ProgressCallback
from rose.model.run.checkpoint import begun_with
from rose.model.tune.kept import PRUNED
from rose.model.tune.parts import Parts, tune_until_stopped
from rose.model.tune.task import TuneReport, TuneSettings, TuneTask, TuningProgress, check_memory, check_pair
from rose.model.tune.tuning import texts_digest
from rose.report import report_beside
from rose.rows import removed_fraction
from rose.wording import whole

Texts = tuple[Tensor, Tensor | None]  # to train on, and held out
TUNED = "tuned"  # of --checkpoint, the folder of what --tune does


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("tune", help="train the kept weights of a pruned model; its zeros stay")
    add = parser.add_argument
    add("pruned", metavar="PRUNED", help="folder of the pruned model, whoever pruned it")
    add("--dense", required=True, metavar="DENSE", help="the model before: packaged name, Hub id, folder or .gguf file")
    add("--minutes", type=float, help="how long it may take")
    add("--epochs", type=float, help="or: passes over the windows (default: 1)")
    says = "kl: towards the dense model; ce: by the text's own next tokens"
    add("--loss", choices=LOSSES, default=TuneSettings.loss, help=f"{says} (default: %(default)s)")
    says = f"learning rate at its highest (default: at most {RATE:g}, by steps, weights and the dense model)"
    add("--rate", type=float, help=says)
    add("--batch", type=int, default=TuneSettings.batch, help="windows per step (default: %(default)s)")
    add(
        "--parts",
        type=int,
        default=1,
        help="tune the decoder blocks in so many parts, one after another, for less memory (default: %(default)s)",
    )
    add("--unpruned", action="store_true", help="allow a model without zeros")
    shared.add(parser, "dtype trust-remote-code compute")
    shared.add(parser, "stream", help=argparse.SUPPRESS)  # refused in a sentence
    shared.add(parser, "calibration", help=f"text to train on: {shared.TEXTS} {shared.DEFAULT}")
    shared.add(parser, "samples", help=f"windows to train on {shared.DEFAULT}")
    shared.add(parser, "length seed")
    says = f"further windows that say which step is kept, 0: the last one {shared.DEFAULT}"
    shared.add(parser, "held-out", help=says)
    shared.add(parser, "bos layers evaluate windows output")
    says = "keep weights and progress here; the same command resumes an interrupted run"
    shared.add(parser, "checkpoint", help=says)
    parser.set_defaults(run=run, divided=True, **TUNING._asdict())


def run(options: argparse.Namespace, console: Console) -> int:
    if options.stream:
        raise rose.RoseError("`rose tune` needs both models in memory; leave --stream out. --parts N needs less.")
    settings = TuneSettings(**shared.pick(options, ("minutes", "epochs", "loss", "rate", "batch", "seed", "compute")))
    checkpoints.check(options)
    known = report_beside(expand(options.pruned))
    shared.settle_dtype(options, options.pruned)
    dense, tokenizer = shared.load(options, console, options.dense)
    if has_tokenizer(options.pruned):  # and its chat template, which a copy keeps
        model, tokenizer = shared.load(options, console, options.pruned)
    else:
        model, _ = shared.load(options, console, options.pruned, tokenizer=options.dense)
    checkpoints.check_room(options, model)
    check_pair(model, dense, by_text_alone=options.unpruned and options.loss == "ce")
    outcome = checkpoints.Outcome(options, options.pruned, tokenizer, console)
    sizes = shared.pick(options, ("samples", "held_out", "length"))
    texts = _texts(options, tokenizer, outcome.windows, **sizes)
    report = known or _as_found(model)
    keep_low_rank(model, expand(options.pruned))
    tuner = Parts(TuneTask(model, dense, *texts, options.layers, options.unpruned), settings, options.parts)
    outcome.begin(dense, "of the dense model")
    pruned = outcome.measure(model, "before", "of the pruned model")
    tuned = Tuned(*tune_until_stopped(lambda: tuner, _bar(console), options.checkpoint))
    if tuned.stopped and not tuned.found:  # PRUNED is as good as what there is
        raise tuned.stopped
    tuned.say_stop(console)
    report = tuned.added_to(report, **shared.origin(options), dense=options.dense, **pruned)
    report = outcome.save(model, report)
    tuned.say()
    checkpoints.say_perplexity(report.summary)
    terminal.say(f"Checkpoint and report.json are in {options.output}")
    return tuned.status()


def check_minutes(options: argparse.Namespace) -> None:
    """Raises RoseError, before a model is loaded, for minutes of `--tune` that cannot be."""
    if options.tune is None:
        return
    TuneSettings(minutes=options.tune)
    if "sparsity" in options and parse_sparsity(options.sparsity).ratio < PRUNED:
        raise rose.RoseError(
            f"--tune trains what pruning has kept, and sparsity {options.sparsity} prunes less than "
            f"{100 * PRUNED:g} %; leave one of them out. `rose tune` takes a model that is pruned already."
        )
    begun = begun_with(options.checkpoint and options.checkpoint / TUNED, "minutes")
    if begun not in (None, options.tune):
        raise rose.RoseError(
            f"The checkpoint in {options.checkpoint} was begun with --tune {begun:g}; give that, or another checkpoint."
        )
    if options.stream:
        raise rose.RoseError("--tune needs both models in memory; leave it out, or leave --stream out.")
    if getattr(options, "bits", None) is not None:
        raise rose.RoseError(
            "--tune would move weights off the grid of --bits; leave --bits out, and then round what was tuned "
            f"(rose prune --model {options.output} --sparsity 0 --bits {options.bits}), which keeps its zeros."
        )


def draw_texts(options: argparse.Namespace, model: nn.Module, tokenizer: Any, evaluated: Tensor | None) -> Texts | None:
    """What --tune of a command will train on, drawn before it prunes; None without.

    Raises RoseError for too short a text, for too little memory, for a model that is pruned as much already, and for a
    checkpoint whose tuning was begun on other windows.
    """
    if options.tune is None:
        return None
    _check_sparser(options, model)
    sizes = tuning_draw(options.length)._asdict()
    dense = sum(parameter.nbytes for parameter in model.parameters())  # is read once more
    check_memory(Network(model), sizes["length"], compute=getattr(options, "compute", "auto"), besides=dense)
    texts = _texts(options, tokenizer, evaluated, **sizes)
    if begun_with(options.checkpoint and options.checkpoint / TUNED, "tokens") not in (None, texts_digest(*texts)):
        raise rose.RoseError(
            f"The checkpoint in {options.checkpoint} was begun with other windows to tune on, which share no text with "
            "those of --evaluate; give --evaluate and --windows as it was begun, or another checkpoint."
        )
    return texts


def _texts(options: argparse.Namespace, tokenizer: Any, evaluated: Tensor | None, **sizes: int) -> Texts:
    """Windows to train on and held-out ones, none of which shares text with another or with those of --evaluate."""
    apart_from = torch.empty(0, sizes["length"], dtype=torch.int64) if evaluated is None else evaluated
    tokens, held_out = load_apart(
        options.calibration, tokenizer, seed=options.seed, bos=options.bos, apart_from=apart_from, **sizes
    )
    return tokens, held_out if len(held_out) else None


def _check_sparser(options: argparse.Namespace, model: nn.Module) -> None:
    """Raises RoseError for a model that `rose prune` will make no sparser, and that is to be its own dense one."""
    if "sparsity" not in options:
        return
    zeros, count = count_zeros(Network(model).select(options.layers))
    if zeros >= parse_sparsity(options.sparsity).ratio * count:
        raise rose.RoseError(
            f"{100 * zeros / count:.3g} % of the model's weights are zero already, so it cannot be the dense one for "
            f"--tune after sparsity {options.sparsity}; give the model it was pruned from, or leave --tune out."
        )


def tune_after(options: argparse.Namespace, console: Console, model: nn.Module, texts: Texts | None) -> Tuned:
    """Tunes what a command has pruned, for the minutes of its --tune, if any.

    The dense model is read again, as pruning has changed the one that was loaded.
    """
    if texts is None:
        return Tuned()

    def make() -> Parts:
        dense, _ = shared.load(options, console)
        settings = TuneSettings(minutes=options.tune, seed=options.seed, compute=getattr(options, "compute", "auto"))
        return Parts(TuneTask(model, dense, *texts), settings)

    checkpoint = options.checkpoint and options.checkpoint / TUNED
    tuned = Tuned(*tune_until_stopped(make, _bar(console), checkpoint))
    tuned.say_stop(console)
    return tuned


@dataclass(frozen=True)
class Tuned:
    """How tuning ended: what it found, if it took a step, and what stopped it, if it did not come to its end."""

    found: TuneReport | None = None
    stopped: BaseException | None = None

    def added_to(self, report: rose.RunReport, **more: Any) -> rose.RunReport:
        return self.found.added_to(report, **more) if self.found else report

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
        parts = summary.get("parts")
        kept = f"{parts} parts, each at its best" if parts else f"the weights of step {summary['kept_step']} are kept"
        if not summary["kept_step"] and len(self.found.curve) > 1:
            kept = f"no step was better, so nothing was changed; a --rate below {summary['rate']:.2g} may do"
        terminal.say(f"Held-out perplexity {before:.2f} -> {after:.2f}, dense {dense:.2f}; {kept}")

    def status(self) -> int:
        """The exit status, once the model is written; raises what has stopped tuning, other than Ctrl-C."""
        if self.stopped and not isinstance(self.stopped, KeyboardInterrupt):
            raise self.stopped
        return CANCELLED if self.stopped else 0


@contextmanager
def _bar(console: Console) -> Iterator[ProgressCallback]:
    with terminal.bar(console, "Tuning") as follow:
        yield lambda progress: follow(progress, _says(progress))


def _says(progress: rose.Progress) -> str:
    """What is done, and the held-out perplexity at the last look, if there are held-out windows."""
    curve = progress.curve if isinstance(progress, TuningProgress) else ()
    loss = curve[-1].held_out if curve else None
    return "Tuning" if loss is None else f"Tuning, held-out perplexity {math.exp(min(loss, 700)):.2f}"  # no overflow


def _as_found(model: nn.Module) -> rose.RunReport:
    """The report of a pruned model that has none beside it: its layers as they are."""
    rows = []
    for layer in prunable_layers(model):
        share = float((layer.weight == 0).float().mean())
        rows.append((layer.name, layer.block_index, layer.projection, *layer.weight.shape, share))
    table = pd.DataFrame(rows, columns=["layer", "block_index", "projection", "rows", "columns", "sparsity"])
    removed = removed_fraction(table)
    facts = {"method": "as-found", "sparsity": f"{removed:.3g}", "layers": len(table), "removed_fraction": removed}
    return rose.RunReport(table, facts | {"drift": []})
