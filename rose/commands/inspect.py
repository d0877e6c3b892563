"""`rose inspect`: what is in a file of tensors, and how two differ."""

from __future__ import annotations

import pandas as pd
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from rose.commands import terminal
from rose.commands.console import Output
from rose.model.inspect import SAME, TensorFiles, compare_files, inspect_file, to_json, tree
from rose.output import check_file, write_file
from rose.recipe.tools import Inspect
from rose.rows import csv_text
from rose.wording import count, number, size, whole

WIDTH = 140  # letters of a line of the tree
SHOWN = 10  # tensors that have a line of their own
DIFFERENCES = ["name", "status", "moved", "change", "cosine", "rows", "columns"]


def run(spec: Inspect, console: Console) -> None:
    for path in filter(None, (spec.output, spec.json_file)):
        check_file(path)
    with TensorFiles(spec.file) as files, terminal.bar(console, "Reading") as follow:
        texts = files.texts()
        if spec.other is None:
            table = inspect_file(files, follow)
        else:
            with TensorFiles(spec.other) as second:
                table = compare_files(files, second, follow)
        follow(1.0)
    if spec.output:
        write_file(spec.output, csv_text(table))
    if spec.json_file:
        write_file(spec.json_file, to_json(table, texts))
    if spec.other is None:
        _print_file(spec.file, table)
        terminal.say(f"Texts, which --json FILE.json has: {', '.join(texts)}" if texts else "")
    else:
        _print_difference(spec.file, spec.other, table)


def _print_file(name: str, table: pd.DataFrame) -> None:
    numbers, stored = int(table["numbers"].sum()), int(table["stored"].sum())
    top = Tree(Text(f"{name}: {count(len(table), 'tensor')}, {whole(numbers)} numbers, {size(stored)}"))
    branches: dict[str, Tree] = {"": top}
    for row in tree(table).itertuples(index=False):
        before, _, last = row.name.rpartition(".*.")
        if before not in branches:
            branches[before] = top.add(Text(f"{before}.*"))
        bits = "" if pd.isna(row.true_bits) else f", {number(row.true_bits)} bits, {row.zeros} zeros {row.pattern}"
        many = f"{row.tensors} of " if row.tensors > 1 else ""
        branches[before].add(Text(f"{last}: {many}{row.shape}, {row.kind}, {size(row.stored)}{bits}".rstrip()))
    Output(highlight=False, width=WIDTH).print(top)
    _print_lines(table)


def _print_difference(name: str, other: str, table: pd.DataFrame) -> None:
    counts = ", ".join(f"{size} {status}" for status, size in table["status"].value_counts().items())
    terminal.say(f"{name} and {other}: {counts}")
    moved = int((table["moved_to"].fillna("") != "").sum())
    terminal.say(f"{count(moved, 'tensor')} in a file of another name" if moved else "")
    differing = table[table["status"] != SAME]
    if len(differing):
        shown = differing.sort_values("change", ascending=False)[DIFFERENCES]
        terminal.print_table(shown.map(lambda x: "–" if pd.isna(x) else number(x) if isinstance(x, float) else x), "")
    _print_lines(differing)


def _print_lines(table: pd.DataFrame) -> None:
    """A line for each tensor with something to say."""
    table = table[table["says"] != ""]
    terminal.say(*(f"{row.name}: {row.says}" for row in table.head(SHOWN).itertuples(index=False)))
    terminal.say(f"… and {len(table) - SHOWN} more, which --output FILE.csv has" if len(table) > SHOWN else "")
