"""`rose analyze`: every layer by several methods, on the dense model's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from rich.console import Console
from torch import Tensor

import rose
from rose import verdicts
from rose.commands import shared, terminal
from rose.layer.columnar import WIDEST, paper_figures
from rose.model.estimate.duration import estimate_cost, sweeps_of
from rose.model.estimate.memory import estimate_memory
from rose.model.network.heads import rotated_heads
from rose.model.network.layers import PrunableLayer
from rose.model.network.network import Network
from rose.model.network.precision import Precision
from rose.model.run.settings import run_settings
from rose.model.workers import Workers
from rose.output import check_output
from rose.recipe.file import Recipe
from rose.recipe.steps import Analyze
from rose.rows import pruned_rows

MOST = f"the most columnar layer of at most {WIDEST} columns"


def run(spec: Analyze, console: Console) -> None:
    methods = list(spec.methods)
    chosen = shared.run_options(spec)
    settings = [run_settings(method=method, **chosen).layer for method in methods]
    if spec.output:
        check_output(spec.output)
    spec = shared.settle_dtype(spec, spec.model)
    model, tokenizer = shared.load(spec, console)
    sizes = shared.drawn_sizes(spec) | shared.pick(spec, ("layers", "compute"))
    seconds = estimate_cost(model, sweeps=sweeps_of(methods), **sizes).seconds
    estimates = [partial(estimate_memory, method=method, layers=spec.layers) for method in methods]
    shared.tell_cost(spec, "Analyzing", seconds, estimates, model, console)
    drawn = shared.calibration(spec, tokenizer, spec.seed)
    tokens, held_out = drawn.tokens, drawn.held_out
    shared.rotate(spec, model, tokens, settings, console)
    most = _MostColumnar()
    with terminal.bar(console, "Analyzing") as follow:
        chosen |= {"methods": methods, "layers": spec.layers}
        seen = most.see if spec.output and Workers.here().count == 1 else None
        records = list(rose.analyze_model(model, tokens, held_out=held_out, progress=follow, seen=seen, **chosen))
    network = Network(model)
    facts: dict[str, Any] = {"samples": spec.samples, "length": spec.length, "held_out_samples": spec.held_out}
    facts |= {"bos_token": network.bos_in_front(tokens), "rotated_heads": rotated_heads(model)}
    # What was used, not what was requested.
    precision = Precision.of(chosen.pop("compute"), network.dtype, network.device)
    facts |= {"compute": precision.describe()["compute"], "environment": precision.environment(network.device)}
    if most.known is not None:
        with console.status("Trying orders on the most columnar layer"):
            facts["paper"] = asdict(paper_figures(*most.known, settings[0]))
    report = shared.signed(rose.RunReport.from_records(records, chosen, **facts), spec, drawn)
    if spec.output:
        Workers.here().from_first(lambda: _save(report, spec))
    _print(report, methods, spec.threshold, "relative_error" if held_out is None else "held_out_error")
    if spec.output:
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


def _save(report: rose.RunReport, spec: Analyze) -> None:
    folder = spec.output
    assert folder is not None
    try:
        report.save(folder)
        Recipe((spec,)).write(folder)
    except OSError as problem:
        raise rose.RoseError(f"The report cannot be written to {folder} ({problem.strerror}); make room.") from problem


def _print(report: rose.RunReport, methods: Sequence[str], threshold: float, error: str) -> None:
    """Prints every layer, the largest relative range first, and means."""
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
    first, *rest = methods
    relative = {method: verdicts.mean_ratio(wide[first], wide[method]) for method in rest}
    if ratios := [f"{method} {ratio.value:.3f}" for method, ratio in relative.items() if ratio]:
        terminal.say(f"Mean over layers of the error relative to {first}'s: {', '.join(ratios)}")
