"""What commands show on a terminal: progress, and tables that fit into 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

import rose
from rose.model.measure.comparison import ComparisonRow, mean_and_spread, summarize
from rose.model.measure.damage_report import PREDICTORS, DamageReport, correlations, outliers

MAX_ROWS = 40  # of a table on the terminal; files have them all
NARROW: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0)}  # tables of numbers, to fit into 80 columns


def results(**more: Any) -> Console:
    """Standard output; names on it, such as those of folders, are no markup. `more`: of `rich.console.Console`."""
    return Console(markup=False, **more)


@contextmanager
def bar(console: Console, what: str) -> Iterator[Bar]:
    """A progress bar with one task, on the console for progress and remarks."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bar(*columns, console=console) as shown:
        shown.add_task(what, note="")
        yield shown


def follow(bar: Bar) -> Callable[[rose.Progress], None]:
    """A progress callback that moves the bar: one step per layer, fractions of the work in between."""
    task = bar.tasks[0].id

    def moved(progress: rose.Progress) -> None:
        note = ""
        if progress.layer is not None and progress.relative_error is not None:
            note = f"error {progress.relative_error:.4f} in {progress.layer}"
        bar.update(task, total=progress.layers, completed=round(progress.fraction * progress.layers), note=note)

    return moved


def print_table(table: pd.DataFrame, title: str) -> None:
    """Prints the first `MAX_ROWS` rows of a table with one row per layer to standard output."""
    shown = Table(title=title, **NARROW)
    for name in table.columns:
        head = name.replace("_", " ")  # breaks between words where there is little room
        if pd.api.types.is_numeric_dtype(table[name]):
            shown.add_column(head, justify="right", min_width=max(map(len, head.split())))
        else:
            shown.add_column(head, no_wrap=True, min_width=min(int(table[name].str.len().max()), 48))
    for row in table.head(MAX_ROWS).itertuples(index=False):
        shown.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row))
    out = results()
    out.print(shown)
    if len(table) > MAX_ROWS:
        out.print(f"… and {len(table) - MAX_ROWS} more layers")


def print_pruned(report: rose.RunReport) -> None:
    """Every pruned layer: its sparsity and errors, on held-out tokens where there are any."""
    table = report.layers
    errors = ["relative_error", "held_out_error"]
    if report.summary["target"] == "dense":
        held_out = table["held_out_target_error"].notna().any()
        errors = ["held_out_error", "held_out_target_error"] if held_out else ["relative_error", "target_error"]
    print_table(table[["layer", "sparsity", "relative_range", *errors]], "Layers")


def print_parts(parts: pd.DataFrame) -> None:
    """Every part that was reduced: what is left of it, and its errors, against the dense model's output where that was
    the target; what fits into 80 columns."""
    errors = ["target_error", "held_out_target_error"]
    if not parts["target_error"].notna().any():
        errors = ["relative_error", "held_out_error"]
    known = [name for name in errors if parts[name].notna().any()]
    shown = parts[["layer", *known, "unrecovered_error"]].copy()
    shown = shown.rename(columns={"unrecovered_error": "error_before_recovery"})
    shown.insert(1, "kept", parts["kept_units"].astype(str) + " of " + parts["units"].astype(str))
    print_table(shown, "Parts")


def print_comparison(rows: Sequence[ComparisonRow], title: str) -> None:
    """Perplexity, error, time and memory of every method: what fits into 80 columns; the rest is in the files."""
    summary = summarize(rows)
    held_out = summary["mean_held_out_error"]
    columns = {
        "sparsity": summary["sparsity"],
        "seeds": summary["seeds"].astype(str),
        "perplexity": map(mean_and_spread, summary["perplexity"], summary["spread"], summary["seeds"]),
        "error": summary["mean_relative_error"].map("{:.4f}".format),
        "held-out": held_out.map("{:.4f}".format).where(held_out.notna(), "–"),
        "drift": summary["drift"].map("{:.3f}".format).where(summary["drift"].notna(), "–"),
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
    results().print(shown)


def print_slimmed(report: rose.RunReport, folder: Path) -> None:
    """What slimming has done; `folder` is where the model was written."""
    out, summary = results(), report.summary
    out.print(
        f"{summary['parameters']:,} parameters before, {summary['kept_parameters']:,} after: "
        f"{100 * summary['removed_fraction']:.1f} % of the decoder blocks taken out, {summary['seconds']:.0f} s",
        highlight=False,
        soft_wrap=True,
    )
    slimmed, *rest = report.stages
    _print_targets(out, slimmed)
    for pruned in rest:
        then = pruned.summary
        out.print(
            f"Then {100 * then['removed_fraction']:.1f} % of the weights of {then['layers']} layers pruned by "
            f"{then['method']}, {then['seconds']:.0f} s",
            highlight=False,
            soft_wrap=True,
        )
        _print_targets(out, pruned)
    _print_perplexity(out, summary)
    reader = "any program that uses transformers" if summary["uniform"] else "rose.load_model"
    out.print(f"Checkpoint, report.json and layers.csv are in {folder}, for {reader}", soft_wrap=True)


def print_summary(report: rose.RunReport, folder: Path) -> None:
    """Prints the outcome of a pruning run; `folder` is where it was written."""
    out, summary = results(), report.summary
    out.print(
        f"{summary['layers']} layers, {100 * summary['removed_fraction']:.2f} % of their weights removed, "
        f"{summary['seconds']:.0f} s",
        soft_wrap=True,
    )
    errors = f"Mean relative error on calibration tokens: {summary['mean_relative_error']:.4f} of layers' own outputs"
    if summary["mean_target_error"] is not None:
        errors += f", {summary['mean_target_error']:.4f} of the dense model's, which were the target"
    out.print(errors, soft_wrap=True)
    _print_targets(out, report)
    if summary.get("experts_left_dense"):
        out.print(
            f"{summary['experts_left_dense']} layers of experts stayed dense, because fewer than "
            f"{summary['min_expert_tokens']} calibration tokens were routed to them",
            highlight=False,
        )
    _print_perplexity(out, summary)
    out.print(f"Checkpoint, report.json and layers.csv are in {folder}", soft_wrap=True)


def _print_targets(out: Console, report: rose.RunReport) -> None:
    """How far the residual stream is from that of the dense model, and where it could not be corrected."""
    said = report.remarks
    if report.last_drift is not None:
        where = "after the last pruned decoder block, on held-out tokens"
        said = [f"Drift of the residual stream {where}: {report.last_drift:.4f}", *said]
    for sentence in said:
        out.print(sentence, highlight=False, soft_wrap=True)


def _print_perplexity(out: Console, summary: Mapping[str, Any]) -> None:
    if summary["perplexity_after"] is not None:
        before, after = summary["perplexity_before"], summary["perplexity_after"]
        text, windows = summary["evaluated_on"], summary["windows"]
        out.print(f"Perplexity on {text}, {windows} windows: {before:.2f} before, {after:.2f} after")


def print_damage(report: DamageReport, folder: Path) -> None:
    """What the model loses by its units, and how well error told; `folder` is where the rows are."""
    out, table, summary = results(), report.units, report.summary
    ranked = table.sort_values("damage", ascending=False)
    print_table(ranked[["unit", "held_out_error", "drift", "damage", "standard_error"]], "Damage, nats per token")
    told = correlations(table)
    told.insert(0, "units ranked", (told["group"] + " " + told["name"]).str.strip())
    print_table(told[["units ranked", "units", *PREDICTORS]], "Rank correlation of damage with")
    found = outliers(table)
    if len(found):
        out.print(f"Small error, large damage: {', '.join(found['unit'])}", highlight=False, soft_wrap=True)
    if summary["together"] is not None:
        out.print(
            f"All at once cost {summary['together']:.3f} nats per token, the sum of each alone is "
            f"{summary['sum_of_damages']:.3f}; loss without a change {summary['base_loss']:.3f}",
            highlight=False,
            soft_wrap=True,
        )
    out.print(f"Rows and summary are in {folder}", soft_wrap=True)
