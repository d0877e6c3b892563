"""`rose compare`: methods over sparsities and calibration draws; rows are kept as they come."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import pandas as pd
from rich.console import Console
from torch import Tensor

from rose.commands import shared, terminal
from rose.files import reachable
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

ADDED = ("methods", "sparsity", "seeds", "seed")  # may be added to a folder later; all its rows share the others


def run(spec: Compare, console: Console) -> None:
    methods, sparsities, seeds = spec.methods, spec.sparsity, spec.seeds
    chosen = shared.run_options(spec)
    del chosen["sparsity"]
    _, runs = plan_comparison(methods, sparsities, **chosen)
    reachable(spec.output)  # before the model's format is read
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
    once = sum(shared.pruning_seconds(spec, model, settings.layer.method, settings.target) for settings in runs)
    passes = (1 + len(runs) * len(seeds)) * estimate_evaluation(model, tokens=windows.numel())
    sizes: dict[str, Any] = {"layers": spec.layers, "sequential": spec.true_sequential}
    kinds = {(settings.layer.method, settings.target == "dense") for settings in runs}
    estimates = [partial(estimate_memory, method=name, dense_targets=dense, **sizes) for name, dense in kinds]
    copied = count_parameters(model) * parse_dtype(spec.dtype).itemsize  # the dense weights, to go back to
    shared.tell_cost(spec, "Comparing", len(seeds) * once + passes, estimates, model, console, besides=copied)
    with terminal.bar(console, "Comparing") as follow:

        def begin(doing: str) -> Any:
            follow(0.0, doing)
            return partial(follow, doing=doing)

        for row in compare_methods(
            model,
            draw,
            windows,
            methods=methods,
            sparsities=sparsities,
            seeds=seeds,
            done=folder.rows,
            progress=begin,
            layers=spec.layers,
            **chosen,
        ):
            folder.add(row)
            console.print(f"{row.method} {row.sparsity} seed {row.seed}: perplexity {row.perplexity:.2f}")
    if not folder.rows:  # a launched process without a run
        return
    for where in dict.fromkeys(row.environment for row in folder.rows):  # rows of different ones are not compared
        rows = [row for row in folder.rows if row.environment == where]
        dense = rows[0].dense_perplexity
        rounded = f", kept weights in {spec.bits} bits" if spec.bits else ""
        _print(rows, f"Perplexity on {spec.evaluate}, {count(len(windows), 'window')}; dense {dense:.2f}{rounded}")
        terminal.say(f"Computed with {where or 'an earlier version, which did not say where'}")
    terminal.say(f"Rows and summaries are in {spec.output}")


def _print(rows: Sequence[ComparisonRow], title: str) -> None:
    """Perplexity, error and time of every method, in 80 columns; the files have the rest."""
    summary = summarize(rows)
    held_out, drift = summary["mean_held_out_error"], summary["drift"]
    columns = {
        "method": summary["method"],
        "sparsity": summary["sparsity"],
        "perplexity": list(map(mean_and_spread, summary["perplexity"], summary["spread"], summary["seeds"])),
        "error": summary["mean_relative_error"].map("{:.4f}".format),
        "held-out": held_out.map("{:.4f}".format).where(held_out.notna(), "–"),
        "drift": drift.map("{:.3f}".format).where(drift.notna(), "–"),
        "time": summary["seconds"].map("{:.0f} s".format),
    }
    terminal.print_table(pd.DataFrame(columns), title)
    table = records_table(rows, ComparisonRow)
    terminal.say(*conclusions(table), *cautions_of(table))
