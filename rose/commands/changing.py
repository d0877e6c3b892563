"""`rose prune`, `slim` and `tune`: commands that write a changed copy of a model.

The first two can also tune the result.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from torch import Tensor, nn
from transformers import PreTrainedModel

import rose
from rose.commands import shared, terminal
from rose.files import expand
from rose.interrupt import CANCELLED
from rose.layer.settings import LayerSettings
from rose.model.estimate import Memory, estimate_cost, estimate_memory, pruning_cost, sweeps_of
from rose.model.load.models import has_tokenizer
from rose.model.load.tokens import load_apart, tuning_draw
from rose.model.network.layers import count_zeros, keep_low_rank, prunable_layers
from rose.model.network.network import Network
from rose.model.network.precision import DEFAULT
from rose.model.progress import ProgressCallback
from rose.model.run.checkpoint import begun_with
from rose.model.run.prune import check_layers
from rose.model.settings import PruneSettings, TuneSettings
from rose.model.tune.task import TuneReport, TuneTask, TuningProgress, check_memory, check_pair
from rose.model.tune.tuning import Parts, texts_digest, tune_until_stopped
from rose.recipe.steps import Prune, Slim, Tune
from rose.report import report_beside
from rose.rows import removed_fraction
from rose.structured.parts import HEADS, block_parameters, find_parts
from rose.structured.plan import estimate_slim_memory, estimate_slimming
from rose.structured.settings import SlimSettings
from rose.structured.slimming import check_slimming
from rose.wording import count, whole

Texts = tuple[Tensor, Tensor | None]  # to train on, and held out
TUNED = "tuned"  # folder of --tune inside --checkpoint
HIGHEST = 5  # layers that are printed; layers.csv has all


def prune(spec: Prune, console: Console) -> int:
    """Prunes a whole model, decoder block by decoder block."""
    chosen = spec.pick(PruneSettings.fields())
    spec.check()
    copy = Copy(spec, console)
    model = copy.model
    shared.check_room(spec, model)
    network = Network(model)
    check_layers(network.select(spec.layers), network, spec)
    network.precision(spec.compute)
    memory = partial(estimate_memory, layers=spec.layers, sequential=spec.true_sequential, method=spec.method)
    seconds = pruning_cost(spec, model, spec.method, spec.target).seconds + shared.evaluation_seconds(spec, model)
    estimates = [partial(memory, dense_targets=spec.target == "dense")]
    shared.tell_cost(copy.spec, "Pruning", seconds, estimates, model, console)
    copy.draw()
    pruned = copy.prune(**chosen, checkpoint=spec.checkpoint)
    report = copy.save(pruned)
    _print_pruned(pruned)
    return copy.say(report)


def _print_pruned(report: rose.RunReport) -> None:
    """Prints the layers of the highest error, on held-out tokens if there are any, and a summary."""
    table, summary = report.layers, report.summary
    errors, is_held_out = ["relative_error", "held_out_error"], summary["mean_held_out_error"] is not None
    if summary["target"] == "dense":
        errors = ["held_out_error", "held_out_target_error"] if is_held_out else ["relative_error", "target_error"]
    grid, total = report.grid, "relative_error" if summary["mean_target_error"] is None else "target_error"
    # 80 columns cannot show all; parts stand beside the error that they are parts of
    shown = [total, "pruning_error", "rounding_error"] if grid else ["relative_range", *errors]
    highest = table.nlargest(HIGHEST, shown[0] if grid else errors[-1])
    terminal.print_table(highest[["layer", "sparsity", *shown]], "Layers with the highest error")
    kind, tokens = ("held_out", "held-out") if is_held_out else ("relative", "calibration")
    mean = f"Mean relative error on {tokens} tokens: {summary[f'mean_{kind}_error']:.4f} of layers' own outputs"
    to_target = summary["mean_held_out_target_error" if is_held_out else "mean_target_error"]
    if to_target is not None:
        mean += f", {to_target:.4f} of the dense model's, which were the target"
    terminal.say(
        f"{summary['layers']} layers, {100 * summary['removed_fraction']:.2f} % of their weights removed, "
        f"{summary['seconds']:.0f} s",
        mean,
    )
    if grid:
        terminal.say(
            f"Rounded to {grid}: of a mean {total.replace('_', ' ')} of {summary[f'mean_{total}']:.4f} on calibration "
            f"tokens, pruning added {summary['mean_pruning_error']:.4f} and rounding "
            f"{summary['mean_rounding_error']:.4f}"
        )
    shared.say_targets(report)
    if summary.get("experts_left_dense"):
        terminal.say(
            f"{summary['experts_left_dense']} layers of experts stayed dense, because fewer than "
            f"{summary['min_expert_tokens']} calibration tokens were routed to them"
        )


def slim(spec: Slim, console: Console) -> int:
    """Removes heads, channels or decoder blocks; the rest may then be pruned."""
    slimming, pruning = spec.stages()
    settings = SlimSettings(**slimming)
    rest = PruneSettings(**pruning).layer if pruning else None
    copy = Copy(spec, console)
    model = copy.model
    if spec.allocation != "uniform" and spec.method != "depth":
        readers = "rose.load_model reads the result, plain transformers does not."
        console.print(f"The decoder blocks will differ in shape: {readers}", soft_wrap=True)
    shared.check_room(spec, model, removed=spec.ratio * block_parameters(model))
    possible = check_slimming(model, settings)
    estimates: list[Callable[..., Memory]] = [partial(estimate_slim_memory, settings=settings)]
    sizes = spec.extent
    seconds = estimate_slimming(model, settings, **sizes)
    if rest:
        _check_rest(model, possible.kinds if possible else (), rest)
        is_dense = pruning["target"] == "dense"
        estimates.append(partial(estimate_memory, method=rest.method, dense_targets=is_dense))
        # Estimated for a model slightly larger than the result.
        cost = partial(estimate_cost, model, sweeps=sweeps_of([rest.method]), passes=2, compute=DEFAULT)
        seconds += cost(target=pruning["target"], **sizes).seconds
    doing = "Slimming and pruning" if rest else "Slimming"
    shared.tell_cost(copy.spec, doing, seconds, estimates, model, console)
    copy.draw()
    done = slimmed = copy.slim(**slimming, checkpoint=spec.checkpoint)
    if rest:
        between = copy.evaluation.measure(model, "slimmed")
        pruned = copy.prune(**pruning, checkpoint=spec.checkpoint and spec.checkpoint / "pruned")
        done = replace(slimmed, then=pruned).with_summary(**between)
    report = copy.save(done)
    _print_slimmed(done)
    readers = "any program that uses transformers" if report.summary["uniform"] else "rose.load_model"
    return copy.say(report, f", for {readers}")


def _check_rest(model: PreTrainedModel, kinds: Sequence[str], settings: LayerSettings) -> None:
    """Raises RoseError if pruning would refuse the slimmed model."""
    pattern = settings.pattern
    Network(model).to_prune(None, pattern, settings.block_columns)
    wide = [part.width for part in find_parts(model, kinds)[0] if part.kind == HEADS] if kinds else []
    if wide and pattern.is_grouped and wide[0] % pattern.of:
        raise rose.RoseError(
            f"--prune {pattern} needs widths divisible by {pattern.of}, and heads have {wide[0]} columns each; "
            "give --parts channels, or another pattern."
        )


def _print_slimmed(report: rose.RunReport) -> None:
    """Prints the size and errors of every reduced part, and then of the model."""
    summary, (slimmed, *rest) = report.summary, report.stages
    if len(parts := slimmed.layers):
        errors = ["target_error", "held_out_target_error"]
        if not parts["target_error"].notna().any():
            errors = ["relative_error", "held_out_error"]
        measured = [name for name in errors if parts[name].notna().any()]
        shown = parts[["layer", *measured]].assign(error_before_recovery=parts["unrecovered_error"])
        shown.insert(1, "kept", parts["kept_units"].astype(str) + " of " + parts["units"].astype(str))
        terminal.print_table(shown, "Parts")
    terminal.say(
        f"{whole(summary['parameters'])} parameters before, {whole(summary['kept_parameters'])} after: "
        f"{100 * summary['removed_fraction']:.1f} % of the decoder blocks taken out, {summary['seconds']:.0f} s"
    )
    if dropped := summary.get("dropped_blocks"):
        terminal.say(f"Decoder block{'s' if len(dropped) > 1 else ''} {', '.join(map(str, dropped))} dropped")
    shared.say_targets(slimmed)
    for pruned in rest:
        then = pruned.summary
        terminal.say(
            f"Then {100 * then['removed_fraction']:.1f} % of the weights of {then['layers']} layers pruned by "
            f"{then['method']}, {then['seconds']:.0f} s"
        )
        shared.say_targets(pruned)


def tune(spec: Tune, console: Console) -> int:
    """Trains the kept weights towards the dense model; zeros stay."""
    settings = TuneSettings(**spec.pick(TuneSettings.fields()))
    shared.check_saving(spec)
    earlier = report_beside(expand(spec.pruned))
    spec = shared.settle_dtype(spec, spec.pruned)
    dense, tokenizer = shared.load(spec, console, spec.dense)
    if has_tokenizer(spec.pruned):  # with its chat template, which the copy keeps
        model, tokenizer = shared.load(spec, console, spec.pruned)
    else:
        model, _ = shared.load(spec, console, spec.pruned, tokenizer=spec.dense)
    shared.check_room(spec, model)
    check_pair(model, dense, by_text_alone=spec.unpruned and spec.loss == "ce")
    evaluation = shared.Evaluation(spec, spec.pruned, tokenizer, console)
    sizes = spec.pick(("samples", "held_out", "length"))
    texts = _texts(spec, tokenizer, evaluation.windows, **sizes)
    report = earlier or _as_found(model)
    keep_low_rank(model, expand(spec.pruned))
    tuner = Parts(TuneTask(model, dense, *texts, spec.layers, spec.unpruned), settings, spec.parts)
    evaluation.before = evaluation.measure(dense, "before", "of the dense model")
    pruned = evaluation.measure(model, "before", "of the pruned model")
    tuned = Tuned(*tune_until_stopped(lambda: tuner, _bar(console), spec.checkpoint))
    if tuned.stopped and not tuned.found:  # PRUNED is unchanged
        raise tuned.stopped
    tuned.say_stop(console)
    report = tuned.added_to(report, **shared.origin(spec), dense=spec.dense, **pruned)
    report = evaluation.save(model, report)
    tuned.say()
    shared.say_perplexity(report.summary)
    terminal.say(f"Checkpoint and report.json are in {spec.output}")
    return tuned.status()


class Copy:
    """A model that `prune` or `slim` changes, from loading to saving.

    Raises RoseError, before the model is loaded, if its copy cannot be written, or if the checkpoint was begun with
    another --tune.
    """

    def __init__(self, spec: Prune | Slim, console: Console) -> None:
        shared.check_saving(spec)
        self.tuning = spec.checkpoint and spec.checkpoint / TUNED
        begun = begun_with(self.tuning, "minutes")
        if spec.tune is not None and begun not in (None, spec.tune):
            was = f"The checkpoint in {spec.checkpoint} was begun with --tune {begun:g}"
            raise rose.RoseError(f"{was}; give that, or another checkpoint.")
        self.spec, self.console = shared.settle_dtype(spec, spec.model), console
        self.model, self.tokenizer = shared.load(self.spec, console, scratch=spec.output.parent)
        self.tuned = Tuned()

    def draw(self) -> None:
        """Draws all windows, and evaluates the model before the change."""
        self.tokens, self.held_out, self.cautions = shared.calibration(self.spec, self.tokenizer)
        read = self.spec.model, self.tokenizer, self.console, self.held_out
        self.evaluation = shared.Evaluation(self.spec, *read)
        self.texts = draw_texts(self.spec, self.model, self.tokenizer, self.evaluation.windows)
        self.evaluation.before = self.evaluation.measure(self.model, "before")

    def prune(self, **options: Any) -> rose.RunReport:
        """See `rose.prune_model`."""
        with terminal.bar(self.console, "Pruning") as follow:
            return rose.prune_model(self.model, self.tokens, held_out=self.held_out, progress=follow, **options)

    def slim(self, **options: Any) -> rose.RunReport:
        """See `rose.prune_structured`."""
        with terminal.bar(self.console, "Slimming") as follow:
            return rose.prune_structured(self.model, self.tokens, held_out=self.held_out, progress=follow, **options)

    def save(self, report: rose.RunReport) -> rose.RunReport:
        """Tunes the copy for the minutes of --tune, saves and evaluates it; returns the whole report."""
        if self.texts is not None:
            self.tuned = Tuned(*tune_until_stopped(self._tuner, _bar(self.console), self.tuning))
            self.tuned.say_stop(self.console)
        signed = self.tuned.added_to(report).signed(self.spec, text_cautions=self.cautions)
        return self.evaluation.save(self.model, signed)

    def _tuner(self) -> Parts:
        """The parts of tuning towards the dense model, which is loaded again."""
        assert self.texts is not None
        dense, _ = shared.load(self.spec, self.console)
        settings = TuneSettings(minutes=self.spec.tune, seed=self.spec.seed, **self.spec.pick(["compute"]))
        return Parts(TuneTask(self.model, dense, *self.texts), settings)

    def say(self, report: rose.RunReport, readers: str = "") -> int:
        """Prints the end of a run; returns the exit status."""
        self.tuned.say()
        shared.say_perplexity(report.summary)
        terminal.say(f"Checkpoint, report.json and layers.csv are in {self.spec.output}{readers}")
        if self.tuned.found is None and report.grid is None:
            tuning = f"rose tune {self.spec.output} --dense {self.spec.model} --minutes 10 --output TUNED"
            terminal.say(f"Next: {tuning} lowers perplexity; rose check {self.spec.model} {self.spec.output} judges it")
        return self.tuned.status()


def draw_texts(spec: Prune | Slim, model: nn.Module, tokenizer: Any, evaluated: Tensor | None) -> Texts | None:
    """Windows for --tune, drawn before pruning; None without --tune.

    Raises RoseError for a short text, too little memory, a model that is already as sparse, or a checkpoint that was
    begun with other windows.
    """
    if spec.tune is None:
        return None
    if isinstance(spec, Prune):  # tuning needs a denser model as its target
        zeros, weights = count_zeros(Network(model).select(spec.layers))
        if zeros >= spec.pattern.ratio * weights:
            raise rose.RoseError(
                f"{100 * zeros / weights:.3g} % of the model's weights are zero already, so it cannot be the dense one "
                f"for --tune after sparsity {spec.sparsity}; give the model it was pruned from, or leave --tune out."
            )
    sizes = tuning_draw(spec.length)._asdict()
    dense = sum(parameter.nbytes for parameter in model.parameters())  # it is loaded again
    check_memory(Network(model), sizes["length"], compute=getattr(spec, "compute", "auto"), besides=dense)
    texts = _texts(spec, tokenizer, evaluated, **sizes)
    if begun_with(spec.checkpoint and spec.checkpoint / TUNED, "tokens") not in (None, texts_digest(*texts)):
        raise rose.RoseError(
            f"The checkpoint in {spec.checkpoint} was begun with other windows to tune on, because these share no text "
            "with --evaluate; give the same --evaluate and --windows as before, or another checkpoint."
        )
    return texts


def _texts(spec: Prune | Slim | Tune, tokenizer: Any, evaluated: Tensor | None, **sizes: int) -> Texts:
    """Training and held-out windows, without overlap with each other or with the windows of --evaluate."""
    apart_from = torch.empty(0, sizes["length"], dtype=torch.int64) if evaluated is None else evaluated
    tokens, held_out = load_apart(
        spec.calibration, tokenizer, seed=spec.seed, bos=spec.bos, apart_from=apart_from, **sizes
    )
    return tokens, held_out if len(held_out) else None


@dataclass(frozen=True)
class Tuned:
    """The report of tuning, None before the first step, and the exception that stopped tuning, if any."""

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
        terminal.say(f"Tuned {count(summary['steps'], 'step')} in {summary['seconds']:.0f} s; {of}", self.found.caution)
        if summary["held_out_before"] is None:
            return
        before, after, dense = (math.exp(summary[f"held_out_{name}"]) for name in ("before", "after", "dense"))
        result = f"the weights of step {summary['kept_step']} are kept, chosen by these windows"
        if summary.get("parts"):
            result = "the best step of every part is kept, chosen by these windows"
        if not summary["kept_step"] and len(self.found.curve) > 1:
            result = f"no step was better, so nothing was changed; a --rate below {summary['rate']:.2g} may do"
        terminal.say(f"Held-out perplexity {before:.2f} -> {after:.2f}, dense {dense:.2f}; {result}")

    def status(self) -> int:
        """The exit status; raises the exception that stopped tuning, except Ctrl-C."""
        if self.stopped and not isinstance(self.stopped, KeyboardInterrupt):
            raise self.stopped
        return CANCELLED if self.stopped else 0


@contextmanager
def _bar(console: Console) -> Iterator[ProgressCallback]:
    with terminal.bar(console, "Tuning") as follow:

        def tell(progress: rose.Progress) -> None:
            """Moves the bar; its text has the last held-out perplexity."""
            curve = progress.curve if isinstance(progress, TuningProgress) else ()
            loss = curve[-1].held_out if curve else None
            perplexity = "" if loss is None else f", held-out perplexity {math.exp(min(loss, 700)):.2f}"  # no overflow
            follow(progress, f"Tuning{perplexity}")

        yield tell


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
