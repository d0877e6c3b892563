"""`rose prune`: a whole model, decoder block by decoder block."""

from __future__ import annotations

from functools import partial
from typing import Any

from rich.console import Console

import rose
from rose.commands import saving, shared, terminal
from rose.commands.tune import check_tuning, draw_texts, tune_after
from rose.layer.pattern import Grid
from rose.model.estimate.memory import estimate_memory
from rose.model.network.network import Network
from rose.model.network.precision import Precision
from rose.model.run.settings import run_settings
from rose.recipe.steps import Prune


def run(spec: Prune, console: Console) -> int:
    chosen = shared.run_options(spec)
    run_setup = run_settings(**chosen)
    settings = run_setup.layer
    saving.check(spec)
    check_tuning(spec)
    spec = shared.settle_dtype(spec, spec.model)
    model, tokenizer = shared.load(spec, console, scratch=spec.output.parent)
    saving.check_room(spec, model)
    network = Network(model)
    run_setup.select(network, spec.layers)
    Precision.of(spec.compute, network.dtype, network.device)
    sizes: dict[str, Any] = {"layers": spec.layers, "sequential": spec.true_sequential, "method": spec.method}
    sizes["dense_targets"] = spec.target == "dense"
    seconds = shared.pruning_seconds(spec, model, spec.method, spec.target)
    shared.tell_cost(spec, "Pruning", seconds, [partial(estimate_memory, **sizes)], model, console)
    drawn = shared.calibration(spec, tokenizer, spec.seed)
    shared.rotate(spec, model, drawn.tokens, [settings], console)
    outcome = saving.Outcome(spec, spec.model, tokenizer, console)
    texts = draw_texts(spec, model, tokenizer, outcome.windows)
    outcome.begin(model)
    with terminal.bar(console, "Pruning") as follow:
        chosen |= {"layers": spec.layers, "checkpoint": spec.checkpoint}
        pruned = rose.prune_model(model, drawn.tokens, held_out=drawn.held_out, progress=follow, **chosen)
    tuned = tune_after(spec, console, model, texts)
    report = outcome.save(model, shared.signed(tuned.added_to(pruned), spec, drawn))
    _print_layers(pruned)
    _print_summary(pruned)
    tuned.say()
    saving.say_perplexity(report.summary)
    terminal.say(f"Checkpoint, report.json and layers.csv are in {spec.output}")
    return tuned.status()


def _print_layers(report: rose.RunReport) -> None:
    """Every pruned layer: its sparsity and errors, on held-out tokens where there are any."""
    table = report.layers
    errors = ["relative_error", "held_out_error"]
    if report.summary["target"] == "dense":
        held_out = table["held_out_target_error"].notna().any()
        errors = ["held_out_error", "held_out_target_error"] if held_out else ["relative_error", "target_error"]
    rounded = "bits" in report.summary  # 80 columns do not hold all
    shown = [*errors, "pruning_error", "rounding_error"] if rounded else ["relative_range", *errors]
    terminal.print_table(table[["layer", "sparsity", *shown]], "Layers")


def _print_summary(report: rose.RunReport) -> None:
    """What pruning has done."""
    summary = report.summary
    errors = f"Mean relative error on calibration tokens: {summary['mean_relative_error']:.4f} of layers' own outputs"
    if summary["mean_target_error"] is not None:
        errors += f", {summary['mean_target_error']:.4f} of the dense model's, which were the target"
    terminal.say(
        f"{summary['layers']} layers, {100 * summary['removed_fraction']:.2f} % of their weights removed, "
        f"{summary['seconds']:.0f} s",
        errors,
    )
    if "bits" in summary:
        grid = Grid(summary["bits"], summary["group"])
        terminal.say(
            f"Rounded to {grid}: of the error against what each layer was to put out, pruning made "
            f"{summary['mean_pruning_error']:.4f} and rounding {summary['mean_rounding_error']:.4f}, in the mean"
        )
    saving.say_targets(report)
    if summary.get("experts_left_dense"):
        terminal.say(
            f"{summary['experts_left_dense']} layers of experts stayed dense, because fewer than "
            f"{summary['min_expert_tokens']} calibration tokens were routed to them"
        )
