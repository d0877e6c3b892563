"""`rose slim`: heads, channels or decoder blocks taken out; what is left may then be pruned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
from rich.console import Console
from transformers import PreTrainedModel

import rose
from rose.commands import saving, shared, terminal
from rose.commands.tune import check_tuning, draw_texts, tune_after
from rose.layer.methods import Settings
from rose.model.estimate.duration import estimate_cost, sweeps_of
from rose.model.estimate.memory import Memory, estimate_memory
from rose.model.network.network import Network
from rose.model.network.precision import DEFAULT
from rose.model.run.settings import run_settings
from rose.recipe.parts import SlimSettings
from rose.recipe.steps import Slim
from rose.structured.parts import HEADS, block_parameters, find_parts
from rose.structured.plan import estimate_slim_memory, estimate_slimming
from rose.structured.slimming import check_slimming
from rose.wording import whole


def run(spec: Slim, console: Console) -> int:
    slimming, pruning = _slim_options(spec), _prune_options(spec)
    settings = SlimSettings(**slimming)
    rest = run_settings(**pruning).layer if pruning else None
    saving.check(spec)
    check_tuning(spec)
    if spec.allocation != "uniform" and spec.method != "depth":
        readers = "rose.load_model reads the result, plain transformers does not."
        console.print(f"The decoder blocks will differ in shape: {readers}", soft_wrap=True)
    spec = shared.settle_dtype(spec, spec.model)
    model, tokenizer = shared.load(spec, console, scratch=spec.output.parent)
    saving.check_room(spec, model, removed=spec.ratio * block_parameters(model))
    possible = check_slimming(model, settings)
    estimates: list[Callable[..., Memory]] = [partial(estimate_slim_memory, settings=settings)]
    sizes = shared.drawn_sizes(spec)
    seconds = estimate_slimming(model, settings, **sizes)
    if rest:
        _check_rest(model, possible.kinds if possible else (), rest)
        is_dense = pruning["target"] == "dense"
        estimates.append(partial(estimate_memory, method=rest.method, dense_targets=is_dense))
        options = {
            "target": pruning["target"],
            "compute": DEFAULT,
        }  # of a model that is a little larger than it will be
        seconds += estimate_cost(model, sweeps=sweeps_of([rest.method]), passes=2, **sizes, **options).seconds
    shared.tell_cost(spec, "Slimming and pruning" if rest else "Slimming", seconds, estimates, model, console)
    drawn = shared.calibration(spec, tokenizer, spec.seed)
    tokens, held_out = drawn.tokens, drawn.held_out
    outcome = saving.Outcome(spec, spec.model, tokenizer, console)
    texts = draw_texts(spec, model, tokenizer, outcome.windows)
    outcome.begin(model)
    with terminal.bar(console, "Slimming") as follow:
        options = {"held_out": held_out, "progress": follow, "checkpoint": spec.checkpoint}
        done = slimmed = rose.prune_structured(model, tokens, **slimming | options)
    if rest:
        between = outcome.measure(model, "slimmed")
        with terminal.bar(console, "Pruning") as follow:
            options |= {"progress": follow, "checkpoint": spec.checkpoint and spec.checkpoint / "pruned"}
            pruned = rose.prune_model(model, tokens, **pruning | options)
        done = replace(slimmed, then=pruned).with_summary(**between)
    tuned = tune_after(spec, console, model, texts)
    report = outcome.save(model, shared.signed(tuned.added_to(done), spec, drawn))
    if len(slimmed.layers):
        _print_parts(slimmed.layers)
    _print_summary(done)
    tuned.say()
    saving.say_perplexity(report.summary)
    kind = "any program that uses transformers" if report.summary["uniform"] else "rose.load_model"
    terminal.say(f"Checkpoint, report.json and layers.csv are in {spec.output}, for {kind}")
    return tuned.status()


def _slim_options(spec: Slim) -> dict[str, Any]:
    """Keywords of `rose.prune_structured`. With --prune the target's damping may be for that alone."""
    target = spec.target or "layer"
    damping = None if spec.prune and target == "layer" else spec.target_damping
    return shared.pick(spec, SlimSettings.fields()) | {"target": target, "target_damping": damping}


# ---- what slimming leaves, pruned


def _prune_options(spec: Slim) -> dict[str, Any]:
    """Keywords of `rose.prune_model`; none where nothing is pruned then."""
    if not spec.prune:
        return {}
    method = {"method": spec.prune_method or rose.RECOMMENDED, "sparsity": spec.prune, "damping": spec.damping}
    return method | {"target": spec.target or "dense", "target_damping": spec.target_damping}


def _check_rest(model: PreTrainedModel, kinds: Sequence[str], settings: Settings) -> None:
    """Raises RoseError if pruning would refuse the slimmed model."""
    pattern = settings.pattern
    Network(model).to_prune(None, pattern, settings.block_size)
    wide = [part.width for part in find_parts(model, kinds)[0] if part.kind == HEADS] if kinds else []
    if wide and pattern.is_grouped and wide[0] % pattern.of:
        raise rose.RoseError(
            f"--prune {pattern} needs widths divisible by {pattern.of}, and heads have {wide[0]} columns each; "
            "give --parts channels, or another pattern."
        )


# ---- what is printed


def _print_parts(parts: pd.DataFrame) -> None:
    """Every part that was reduced: what is left of it, and its errors, against the dense model's output where that was
    the target; what fits into 80 columns."""
    errors = ["target_error", "held_out_target_error"]
    if not parts["target_error"].notna().any():
        errors = ["relative_error", "held_out_error"]
    measured = [name for name in errors if parts[name].notna().any()]
    shown = parts[["layer", *measured, "unrecovered_error"]].copy()
    shown = shown.rename(columns={"unrecovered_error": "error_before_recovery"})
    shown.insert(1, "kept", parts["kept_units"].astype(str) + " of " + parts["units"].astype(str))
    terminal.print_table(shown, "Parts")


def _print_summary(report: rose.RunReport) -> None:
    summary = report.summary
    terminal.say(
        f"{whole(summary['parameters'])} parameters before, {whole(summary['kept_parameters'])} after: "
        f"{100 * summary['removed_fraction']:.1f} % of the decoder blocks taken out, {summary['seconds']:.0f} s"
    )
    if dropped := summary.get("dropped_blocks"):
        terminal.say(f"Decoder block{'s' if len(dropped) > 1 else ''} {', '.join(map(str, dropped))} dropped")
    slimmed, *rest = report.stages
    saving.say_targets(slimmed)
    for pruned in rest:
        then = pruned.summary
        terminal.say(
            f"Then {100 * then['removed_fraction']:.1f} % of the weights of {then['layers']} layers pruned by "
            f"{then['method']}, {then['seconds']:.0f} s"
        )
        saving.say_targets(pruned)
