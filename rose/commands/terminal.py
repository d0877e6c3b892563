"""What commands show on a terminal: progress, sentences, and tables that fit into 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

import rose

MAX_ROWS = 40  # of a table on the terminal; files have them all
NARROW: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0)}  # tables of numbers, to fit into 80 columns


def show(*tables: Table) -> None:
    """Prints tables to standard output."""
    for table in tables:
        Console(markup=False).print(table)


def say(*sentences: str) -> None:
    """Prints sentences to standard output, a line each however long, without those that are empty; names in them, as of
    folders, are no markup."""
    for sentence in filter(None, sentences):
        Console(markup=False, highlight=False, soft_wrap=True).print(sentence)


class Follow(Protocol):
    """Moves a progress bar, by the progress of a run or by a share of all there is to do; may rename it."""

    def __call__(self, progress: rose.Progress | float, what: str = ...) -> None: ...


@contextmanager
def bar(console: Console, what: str, total: int = 100) -> Iterator[Follow]:
    """A progress bar on the console for progress and remarks; gives what moves it.

    A `Progress` moves it a step per layer, with fractions of the work in between; a share moves it over `total` steps.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bar(*columns, console=console) as shown:
        task = shown.add_task(what, total=total, note="")

        def follow(progress: rose.Progress | float, what: str = what) -> None:
            if not isinstance(progress, rose.Progress):
                shown.update(task, completed=round(progress * total))
                return
            note = ""
            if progress.layer is not None and progress.relative_error is not None:
                note = f"error {progress.relative_error:.4f} in {progress.layer}"
            done = round(progress.fraction * progress.layers)
            shown.update(task, description=what, total=progress.layers, completed=done, note=note)

        yield follow


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
    show(shown)
    if len(table) > MAX_ROWS:
        say(f"… and {len(table) - MAX_ROWS} more rows")
