"""`rose prune`: a whole model, decoder block by decoder block."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from rich.console import Console

import rose
from rose.commands import checkpoints, terminal
from rose.commands import options as shared
from rose.commands.tune import check_minutes, draw_texts, tune_after
from rose.layer.grid import Grid
from rose.model.estimate.memory import estimate_memory
from rose.model.network.network import Network
from rose.model.network.precision import Precision
from rose.model.run.settings import run_settings


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("prune", help="prune a model and save the checkpoint")
    shared.add(parser, f"{shared.MODEL} stream compute {shared.TEXT} {shared.SWEEP} rotate")
    shared.add(parser, "method", default=rose.RECOMMENDED)
    shared.add(parser, f"bits group order budget option {shared.WALK} {shared.CHECKPOINT} tune")
    parser.set_defaults(run=run, divided=True)


def run(options: argparse.Namespace, console: Console) -> int:
    chosen = shared.run_options(options)
    wanted = run_settings(**chosen)
    settings = wanted.layer
    checkpoints.check(options)
    check_minutes(options)
    model, tokenizer = shared.load(options, console, scratch=options.output.parent)
    checkpoints.check_room(options, model)
    network = Network(model)
    wanted.check_experts(network.to_prune(options.layers, settings.pattern, settings.block_size, settings.grid))
    Precision.of(options.compute, network.dtype, network.device)
    sizes = {"layers": options.layers, "sequential": options.true_sequential, "method": options.method}
    sizes["dense_targets"] = options.target == "dense"
    seconds = shared.pruning_seconds(options, model, options.method, options.target)
    shared.tell_cost(options, "Pruning", seconds, [partial(estimate_memory, **sizes)], model, console)
    tokens, held_out = shared.calibration(options, tokenizer, options.seed)
    shared.rotate(options, model, tokens, [settings], console)
    outcome = checkpoints.Outcome(options, options.model, tokenizer, console)
    texts = draw_texts(options, model, tokenizer, outcome.windows)
    outcome.begin(model)
    with terminal.bar(console, "Pruning") as follow:
        chosen |= {"layers": options.layers, "checkpoint": options.checkpoint}
        pruned = rose.prune_model(model, tokens, held_out=held_out, progress=follow, **chosen)
    tuned = tune_after(options, console, model, texts)
    report = outcome.save(model, tuned.added_to(pruned).with_summary(**shared.origin(options)))
    _print_layers(pruned)
    _print_summary(pruned)
    tuned.say()
    checkpoints.say_perplexity(report.summary)
    terminal.say(f"Checkpoint, report.json and layers.csv are in {options.output}")
    return tuned.status()


def _print_layers(report: rose.RunReport) -> None:
    """Every pruned layer: its sparsity and errors, on held-out tokens where there are any."""
    table = report.layers
    errors = ["relative_error", "held_out_error"]
    if report.summary["target"] == "dense":
        held_out = table["held_out_target_error"].notna().any()
        errors = ["held_out_error", "held_out_target_error"] if held_out else ["relative_error", "target_error"]
    rounded = "bits" in report.summary  # there is no room for all
    more = [*errors, "pruning_error", "rounding_error"] if rounded else ["relative_range", *errors]
    terminal.print_table(table[["layer", "sparsity", *more]], "Layers")


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
    checkpoints.say_targets(report)
    if summary.get("experts_left_dense"):
        terminal.say(
            f"{summary['experts_left_dense']} layers of experts stayed dense, because fewer than "
            f"{summary['min_expert_tokens']} calibration tokens were routed to them"
        )
