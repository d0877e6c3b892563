"""`rose compare`: methods over sparsities and calibration draws; rows are kept as they come."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from rose.commands import shared, terminal
from rose.files import reachable
from rose.launch import launched_place
from rose.model.estimate.duration import estimate_evaluation
from rose.model.estimate.memory import estimate_memory
from rose.model.load.models import parse_dtype
from rose.model.measure.comparison import (
    ComparisonFolder,
    ComparisonRow,
    cautions_of,
    compare_methods,
    conclusions,
    mean_and_spread,
    plan_comparison,
    summarize,
)
from rose.model.network.layers import count_parameters
from rose.recipe.file import Recipe
from rose.recipe.steps import Compare
from rose.rows import records_table
from rose.wording import count

ADDED = ("methods", "sparsity", "seeds", "seed")  # may be added to a folder later; the others are those of all its rows


def run(spec: Compare, console: Console) -> None:
    methods, sparsities, seeds = spec.methods, spec.sparsity, spec.seeds
    chosen = shared.run_options(spec)
    del chosen["sparsity"]
    _, runs = plan_comparison(methods, sparsities, **chosen)
    reachable(spec.output)  # before a model is asked how it is stored
    spec = shared.settle_dtype(spec, spec.model)
    settings = {name: value for name, value in spec.to_dict("changes").items() if name not in ADDED}
    folder = ComparisonFolder(spec.output, settings)
    model, tokenizer = shared.load(spec, console)
    windows = shared.windows(spec, spec.evaluate, tokenizer)

    @lru_cache(maxsize=1)
    def draw(seed: int) -> tuple[Tensor, Tensor | None]:
        drawn = shared.calibration(spec, tokenizer, seed)
        return drawn.tokens, drawn.held_out

    first, _ = draw(seeds[0])
    Recipe((spec,)).write(spec.output)
    folder.know(model, {"evaluation": windows, f"calibration (seed {seeds[0]})": first})
    once = sum(shared.pruning_seconds(spec, model, one.layer.method, one.target) for one in runs)
    passes = (1 + len(runs) * len(seeds)) * estimate_evaluation(model, tokens=windows.numel())
    sizes: dict[str, Any] = {"layers": spec.layers, "sequential": spec.true_sequential}
    kinds = {(one.layer.method, one.target == "dense") for one in runs}
    estimates = [partial(estimate_memory, method=name, dense_targets=dense, **sizes) for name, dense in kinds]
    copied = count_parameters(model) * parse_dtype(spec.dtype).itemsize  # the dense weights, to go back to
    shared.tell_cost(spec, "Comparing", len(seeds) * once + passes, estimates, model, console, besides=copied)
    with terminal.bar(console, "Comparing") as follow:

        def begin(what: str) -> Any:
            follow(0.0, what)
            return partial(follow, what=what)

        for row in compare_methods(
            model,
            draw,
            windows,
            methods=methods,
            sparsities=sparsities,
            seeds=seeds,
            done=folder.rows,
            progress=begin,
            part=launched_place(),
            layers=spec.layers,
            **chosen,
        ):
            folder.add(row)
            console.print(f"{row.method} {row.sparsity} seed {row.seed}: perplexity {row.perplexity:.2f}")
    if not folder.rows:  # one of many processes, for which there was nothing to do
        return
    for where in dict.fromkeys(row.environment for row in folder.rows):  # rows of different ones are not compared
        rows = [row for row in folder.rows if row.environment == where]
        dense = rows[0].dense_perplexity
        kept = f", kept weights in {spec.bits} bits" if spec.bits else ""
        _print(rows, f"Perplexity on {spec.evaluate}, {count(len(windows), 'window')}; dense {dense:.2f}{kept}")
        terminal.say(f"Computed with {where or 'an earlier version, which did not say where'}")
    terminal.say(f"Rows and summaries are in {spec.output}")


def _print(rows: Sequence[ComparisonRow], title: str) -> None:
    """Perplexity, error, time and memory of every method: what fits into 80 columns; the rest is in the files."""
    summary = summarize(rows)
    held_out, drift = summary["mean_held_out_error"], summary["drift"]
    columns = {
        "sparsity": summary["sparsity"],
        "seeds": summary["seeds"].astype(str),
        "perplexity": map(mean_and_spread, summary["perplexity"], summary["spread"], summary["seeds"]),
        "error": summary["mean_relative_error"].map("{:.4f}".format),
        "held-out": held_out.map("{:.4f}".format).where(held_out.notna(), "–"),
        "drift": drift.map("{:.3f}".format).where(drift.notna(), "–"),
        "time": summary["seconds"].map("{:.0f} s".format),
        "memory": (summary["peak_memory"] / 1e9).map("{:.1f} GB".format),
    }
    shown = Table(title=title, **terminal.NARROW)
    cells = {name: list(column) for name, column in columns.items()}
    widths = {name: max(map(len, [name, *column])) for name, column in cells.items()}
    methods = list(summary["method"])
    for spare in ("memory", "time"):
        if max(map(len, methods)) > terminal.room_beside([*widths.values()]):
            del widths[spare]
    room = terminal.room_beside([*widths.values()])
    shown.add_column("method", overflow="fold")
    for name, width in widths.items():
        shown.add_column(name, justify="right", min_width=width)
    for method, *row in zip(methods, *(cells[name] for name in widths), strict=True):
        shown.add_row(method if len(method) <= room else re.sub(r"(?=@|:\D)", "\n", method), *row)
    terminal.show(shown)
    table = records_table(rows, ComparisonRow)
    terminal.say(*conclusions(table), *cautions_of(table))
