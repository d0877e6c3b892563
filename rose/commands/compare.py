"""`rose compare`: methods over sparsities and calibration draws; rows are kept as they come."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

from rich.console import Console
from rich.table import Table

import rose
from rose.commands import options as shared
from rose.commands import terminal
from rose.files import reachable
from rose.model.estimate.duration import estimate_evaluation
from rose.model.estimate.memory import estimate_memory
from rose.model.load.models import parse_dtype
from rose.model.load.tokens import check_seed
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
from rose.model.workers import launched_place
from rose.rows import records_table
from rose.wording import count

METHODS = ("magnitude", "wanda", "sparsegpt", "rose", "rose_global", rose.RECOMMENDED)
# Settings shared by all runs in one folder; methods, sparsities and seeds may be added later.
FOLDER_SETTINGS = (
    *("model", "dtype", "calibration", "samples", "length", "held_out", "layers", "block_size", "damping", "threshold"),
    *("allocation", "target", "target_damping", "true_sequential", "min_expert_tokens", "compute"),
    *("evaluate", "windows", "bos", "bits", "group"),
)


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("compare", help="compare methods over sparsities and calibration seeds")
    shared.add(parser, f"{shared.MODEL} compute calibration samples length")
    says = f"seeds of the random choice of windows, a draw each {shared.DEFAULT}"
    parser.add_argument("--seeds", default="0,1,2", metavar="A,B", help=says)
    shared.add(parser, "held-out bos")
    shared.add(parser, "sparsity", default="0.5,0.6,0.7", help=f'ratios, or N:M such as "2:4" {shared.DEFAULT}')
    shared.add(parser, "layers block-size damping threshold bits group")
    parser.add_argument(
        "--methods",
        default=",".join(METHODS),
        metavar="A,B",
        help="METHOD, or METHOD@ORDER/BUDGET to override what a sweep would do; :layer or :dense behind it gives it a "
        "target of its own (default: %(default)s)",
    )
    shared.add(parser, shared.WALK)
    shared.add(parser, "evaluate", required=True, help="measure perplexity on this text")
    shared.add(parser, "windows")
    shared.add(parser, "output", help="rows and summaries; the same command resumes an interrupted run")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> None:
    methods, sparsities = (shared.split(getattr(options, name), f"--{name}") for name in ("methods", "sparsity"))
    seeds = [_seed(seed) for seed in shared.split(options.seeds, "--seeds")]
    chosen = shared.run_options(options)
    del chosen["sparsity"]
    _, runs = plan_comparison(methods, sparsities, **chosen)
    reachable(options.output)  # before a model is asked how it is stored
    shared.settle_dtype(options, options.model)
    places = shared.absolutes(options, "model calibration evaluate")
    folder = ComparisonFolder(options.output, shared.pick(options, FOLDER_SETTINGS) | places)
    options.rows = options.output
    model, tokenizer = shared.load(options, console)
    windows = shared.windows(options, options.evaluate, tokenizer)
    draw = lru_cache(maxsize=1)(partial(shared.calibration, options, tokenizer))
    first, _ = draw(seeds[0])
    folder.know(model, {"evaluation": windows, f"calibration (seed {seeds[0]})": first})
    once = sum(shared.pruning_seconds(options, model, one.layer.method, one.target) for one in runs)
    passes = (1 + len(runs) * len(seeds)) * estimate_evaluation(model, tokens=windows.numel())
    sizes = {"layers": options.layers, "sequential": options.true_sequential}
    kinds = {(one.layer.method, one.target == "dense") for one in runs}
    estimates = [partial(estimate_memory, method=name, dense_targets=dense, **sizes) for name, dense in kinds]
    copied = count_parameters(model) * parse_dtype(options.dtype).itemsize  # the dense weights, to go back to
    shared.tell_cost(options, "Comparing", len(seeds) * once + passes, estimates, model, console, besides=copied)
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
            layers=options.layers,
            **chosen,
        ):
            folder.add(row)
            console.print(f"{row.method} {row.sparsity} seed {row.seed}: perplexity {row.perplexity:.2f}")
    if not folder.rows:  # one of many processes, for which there was nothing to do
        return
    for where in dict.fromkeys(row.environment for row in folder.rows):  # rows of different ones are not compared
        rows = [row for row in folder.rows if row.environment == where]
        dense = rows[0].dense_perplexity
        kept = f", kept weights in {options.bits} bits" if options.bits else ""
        _print(rows, f"Perplexity on {options.evaluate}, {count(len(windows), 'window')}; dense {dense:.2f}{kept}")
        terminal.say(f"Computed with {where or 'an earlier version, which did not say where'}")
    terminal.say(f"Rows and summaries are in {options.output}")


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise rose.RoseError(f"A seed must be a whole number, not {text!r}.")
    check_seed(int(text))
    return int(text)


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
