"""Progress, sentences, and tables of 80 columns on the terminal."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

import rose
from rose.commands import Output
from rose.wording import duration

MINUTE = 60.0  # seconds between lines of progress
MAX_ROWS = 40  # most rows of a table on the terminal; files have all rows
NARROW: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0)}  # tables of numbers, to fit into 80 columns


def say(*sentences: str) -> None:
    """Prints each sentence that is not empty on a line of standard output, without markup."""
    for sentence in filter(None, sentences):
        Output(highlight=False, soft_wrap=True).print(sentence)


class Follow(Protocol):
    """Moves a progress bar by the progress of a run or by a share of the work; may rename the bar."""

    def __call__(self, progress: rose.Progress | float, doing: str = ...) -> None: ...


@contextmanager
def bar(console: Console, doing: str, total: int = 100) -> Iterator[Follow]:
    """A progress bar on the console; yields the function that moves it.

    A `Progress` moves the bar one step per layer, with fractions between; a share moves it over `total` steps.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Bar(*columns, console=console) as shown:
        shown.add_task(doing, total=total, note="")
        (task,), last = shown.tasks, time.monotonic()

        def follow(progress: rose.Progress | float, doing: str = doing) -> None:
            nonlocal last
            if isinstance(progress, rose.Progress):
                note = ""
                if progress.layer is not None and progress.relative_error is not None:
                    note = f"error {progress.relative_error:.4f} in {progress.layer}"
                done = round(progress.fraction * progress.layers)
                shown.update(task.id, description=doing, total=progress.layers, completed=done, note=note)
            else:
                done = round(progress * total)
                if done < task.completed:  # another piece of work, with its own clock
                    shown.reset(task.id, total=total)
                shown.update(task.id, description=doing, completed=done)
            if console.is_terminal or time.monotonic() - last < MINUTE:
                return
            # A line a minute where no bar can be seen, as in the log of a batch job.
            last, passed, of = time.monotonic(), task.elapsed or 0.0, task.total or 0.0
            left = f", about {duration(passed * (of - task.completed) / task.completed)} left" if task.completed else ""
            line = f"{task.description}: {task.completed} of {of}, {duration(passed)}{left}"
            console.print(line, soft_wrap=True)

        try:
            yield follow
        finally:
            shown.live.transient = not task.completed  # no bar stays if nothing was done


def print_table(table: pd.DataFrame, title: str) -> None:
    """Prints the first `MAX_ROWS` rows of a table to standard output; its first column has names.

    Numbers are never cut. A narrow terminal wraps headings, moves the common beginning of names into the title, and
    continues long names on the next line.
    """
    console = Output()
    names, *columns = (
        [f"{value:.3g}" if isinstance(value, float) else str(value) for value in table[name].head(MAX_ROWS)]
        for name in table.columns
    )
    first, *heads = (name.replace("_", " ") for name in table.columns)
    widths = [max(map(len, [*head.split(), *column])) for head, column in zip(heads, columns, strict=True)]
    # The width of the first column: a column has a space on both sides, the table one more.
    room = console.width - sum(widths) - 2 * len(widths) - 3
    if max(map(len, names), default=0) > room and (shared := _shared(names)):
        names, title = [name.removeprefix(shared) for name in names], f"{title}, names without {shared}"
    wide = [max(len(head), width) for head, width in zip(heads, widths, strict=True)]
    longest = max(map(len, [first, *names]))
    if longest + sum(wide) <= room + sum(widths):
        widths = wide
    shown = Table(title=title, **NARROW)
    shown.add_column(first, overflow="fold", width=max(min(longest, room), 1))
    for name, head, width in zip(table.columns[1:], heads, widths, strict=True):
        shown.add_column(head, justify="right" if pd.api.types.is_numeric_dtype(table[name]) else "left", width=width)
    for row in zip(names, *columns, strict=True):
        shown.add_row(*row)
    console.print(shown)
    if len(table) > MAX_ROWS:
        say(f"… and {len(table) - MAX_ROWS} more rows")


def _shared(names: Sequence[str]) -> str:
    """The common beginning of names before the number of the decoder block; "" if they differ."""
    starts = {match and match.group() for match in (re.match(r"(\D+\.)?(?=\d+(\.|$))", name) for name in names)}
    return (starts.pop() or "") if len(starts) == 1 else ""
