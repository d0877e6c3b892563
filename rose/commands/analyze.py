"""`rose analyze`: every layer by several methods, on the dense model's inputs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

import rose
from rose import verdicts
from rose.commands import options as shared
from rose.commands import terminal
from rose.layer.paper import WIDEST, paper_figures
from rose.model.estimate.duration import estimate_cost, sweeps_of
from rose.model.estimate.memory import estimate_memory
from rose.model.network.heads import rotated_heads
from rose.model.network.layers import PrunableLayer
from rose.model.network.network import Network
from rose.model.network.precision import Precision
from rose.model.run.settings import run_settings
from rose.model.workers import Workers
from rose.output import check_output
from rose.rows import pruned_rows

MOST = f"the most columnar layer of at most {WIDEST} columns"


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("analyze", help="which layers are columnar, and how order changes their error")
    shared.add(parser, f"{shared.MODEL} stream compute {shared.TEXT} {shared.SWEEP} rotate")
    says = f"methods to compare {shared.DEFAULT}"
    parser.add_argument("--methods", default="sparsegpt,rose", metavar="A,B", help=says)
    shared.add(
        parser,
        "output",
        required=False,
        help=f"write report.json, layers.csv and layers.parquet; a single process also tries orders on {MOST}",
    )
    parser.set_defaults(run=run, divided=True)


def run(options: argparse.Namespace, console: Console) -> None:
    methods = shared.split(options.methods, "--methods")
    chosen = shared.run_options(options)
    settings = [run_settings(method=method, **chosen).layer for method in methods]
    if options.output:
        check_output(options.output)
    model, tokenizer = shared.load(options, console)
    sizes = shared.drawn_sizes(options) | shared.pick(options, ("layers", "compute"))
    seconds = estimate_cost(model, sweeps=sweeps_of(methods), **sizes).seconds
    estimates = [partial(estimate_memory, method=one, layers=options.layers) for one in methods]
    shared.tell_cost(options, "Analyzing", seconds, estimates, model, console)
    tokens, held_out = shared.calibration(options, tokenizer, options.seed)
    shared.rotate(options, model, tokens, settings, console)
    most = _MostColumnar()
    with terminal.bar(console, "Analyzing") as follow:
        chosen |= {"methods": methods, "layers": options.layers}
        seen = most.see if options.output and Workers.here().count == 1 else None
        records = list(rose.analyze_model(model, tokens, held_out=held_out, progress=follow, seen=seen, **chosen))
    network = Network(model)
    facts = {"samples": options.samples, "length": options.length, "held_out_samples": options.held_out}
    facts |= shared.origin(options) | {"bos_token": network.bos_in_front(tokens), "rotated_heads": rotated_heads(model)}
    # Of what was done, which is more than what was asked for.
    precision = Precision.of(chosen.pop("compute"), network.dtype, network.device)
    facts |= {"compute": precision.describe()["compute"], "environment": precision.environment(network.device)}
    if most.known is not None:
        with console.status("Trying orders on the most columnar layer"):
            facts["paper"] = asdict(paper_figures(*most.known, settings[0]))
    report = rose.RunReport.from_records(records, chosen, **facts)
    if options.output:
        Workers.here().from_first(lambda: _save(report, options.output))
    _print(report, methods, options.threshold, "relative_error" if held_out is None else "held_out_error")
    if options.output:
        terminal.say(f"Orders were tried on {most.known[0]}, {MOST}." if most.known else most.why_none)


class _MostColumnar:
    """The most columnar layer so far of those that are not too wide to try orders on."""

    def __init__(self) -> None:
        self.known: tuple[str, Tensor, rose.InputStatistics] | None = None
        self.range = 0.0
        self.why_none = f"No orders were tried: that takes a single process, and a layer of at most {WIDEST} columns."

    def see(self, layer: PrunableLayer, statistics: rose.InputStatistics, record: rose.LayerRecord) -> None:
        if statistics.columns <= WIDEST:
            alike = "blocks of columns lose alike in every layer"
            self.why_none = f"No orders were tried: {alike} of at most {WIDEST} columns."
        if statistics.columns <= WIDEST and record.relative_range > self.range:
            self.known = layer.name, layer.weight.detach().clone(), statistics
            self.range = record.relative_range


def _save(report: rose.RunReport, folder: Path) -> None:
    try:
        report.save(folder)
    except OSError as problem:
        raise rose.RoseError(f"The report cannot be written to {folder} ({problem.strerror}); make room.") from problem


def _print(report: rose.RunReport, methods: Sequence[str], threshold: float, error: str) -> None:
    """Every layer, those with the largest relative range first, and means over them."""
    name = error.replace("_", " ")
    pruned = pruned_rows(report.layers)
    table = report.layers if pruned.empty else pruned  # experts may be left dense
    wide = table.pivot(index="layer", columns="method", values=error)[methods]
    facts = table.drop_duplicates("layer").set_index("layer")[["relative_range", "is_columnar"]]
    ranked = facts.join(wide.add_suffix(f" {name}")).sort_values("relative_range", ascending=False).reset_index()
    columnar = int(facts["is_columnar"].sum())
    title = f"{columnar} of {len(facts)} layers are columnar (relative range above {threshold:g})"
    terminal.print_table(ranked, title)
    terminal.say(*report.remarks)
    means = [f"{method} {wide[method].mean():.4f}" for method in methods]
    terminal.say(f"Mean {name} over layers: {', '.join(means)}")
    first, *others = methods
    relative = {method: verdicts.mean_ratio(wide[first], wide[method]) for method in others}
    if ratios := [f"{method} {found.value:.3f}" for method, found in relative.items() if found]:
        terminal.say(f"Mean over layers of the error relative to {first}'s: {', '.join(ratios)}")
