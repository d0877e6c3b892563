"""Tables of layers that pages show beside their figures, and the reader of a user's file. Nothing is measured here."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection
from math import isfinite

import pandas as pd

from rose import Order, OrderPlan, RoseError, RunReport
from rose.files import LARGEST, check_small, expand
from rose.layer.order import rank
from rose.rows import FLOAT32_MAX
from rose.wording import size

SHOWN_METHODS = ("sparsegpt", "rose", "rose_global")
COLUMNS = ("layer", "value")


def read_numbers(source: str | bytes, layers: Collection[str]) -> tuple[pd.Series, list[str]]:
    """Reads numbers of layers: a CSV file with the columns layer and value, or a tuned model's report.json, ‖ΔW‖/‖W‖.

    `source` is a path or content. Returns the numbers of these layers, and the other names in the file.
    Raises RoseError for another file, or a row that is none, with its line and column.
    """
    content = _content(source)
    if content.lstrip().startswith("{"):
        report = RunReport.from_json(content, "The file")
        if not report.is_tuned:
            raise RoseError("The file is no report of a tuned model; give its report.json, or a CSV file.")
        rows = [(name, str(value), f"Layer {name[:80]}, change") for name, value in report.tuned["change"].items()]
    else:
        rows = _rows(content)
    numbers: dict[str, float] = {}
    for name, text, where in rows:
        if name in numbers:
            raise RoseError(f"{where.partition(', ')[0]}, column layer: {name[:80]} is there twice; correct the file.")
        numbers[name] = _number(text, where)
    matched = pd.Series({name: value for name, value in numbers.items() if name in layers}, dtype=float)
    if matched.empty:
        example = f", such as {next(iter(numbers))[:80]}" if numbers else ""
        raise RoseError(f"The file names no layer of this model{example}; its layers are called {next(iter(layers))}.")
    return matched, [name for name in numbers if name not in layers]


def _rows(content: str) -> list[tuple[str, str, str]]:
    """Layer, value and place of each line below the head."""
    reader, rows = csv.reader(io.StringIO(content), strict=True), []
    try:
        head = [name.strip() for name in next(reader, [])]
        if not set(COLUMNS) <= set(head):
            raise RoseError(f"The file has no columns {' and '.join(COLUMNS)} in its first line; add them.")
        for row in filter(None, reader):
            where = f"Line {reader.line_num}"
            if len(row) != len(head):
                raise RoseError(f"{where} has {len(row)} fields, and the first line {len(head)}; correct the file.")
            layer, value = (row[head.index(name)].strip() for name in COLUMNS)
            rows.append((layer, value, f"{where}, column value"))
    except csv.Error as problem:
        raise RoseError(f"The file cannot be read as CSV ({problem}); correct it.") from problem
    return rows


def _content(source: str | bytes) -> str:
    try:
        if isinstance(source, str):
            check_small(source)
            source = expand(source).read_bytes()
        if len(source) > LARGEST:
            raise RoseError(f"The file is larger than {size(LARGEST)}, so it is no table of layers.")
        return source.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise RoseError(f"The file cannot be read as text ({problem}); choose another.") from problem


def _number(text: str, where: str) -> float:
    try:
        value = float(text.replace("_", "?"))  # which Python reads, and no other program
    except ValueError:
        value = float("nan")
    if not (isfinite(value) and abs(value) <= FLOAT32_MAX):
        raise RoseError(f"{where}: {text[:40]!r} is no finite number; correct the file.")
    return value


def column_table(plan: OrderPlan, order: Order, block: int) -> pd.DataFrame:
    """Exact values of the columns of a block: place, `step` of the order, losses, `rank` in the layer from 1, most."""
    start = sum(plan.block_width[:block])
    inside = slice(start, start + plan.block_width[block])
    ranks = rank(plan.column_loss).argsort() + 1
    return pd.DataFrame(
        {
            "column": range(inside.start, inside.stop),
            "position": range(plan.block_width[block]),
            "step": order.inverse[inside].tolist(),
            "column_loss": plan.column_loss[inside].tolist(),
            "rank": ranks[inside].tolist(),
            "hessian_diagonal": plan.hessian_diagonal[inside].tolist(),
        }
    )


def error_records(overview: pd.DataFrame) -> pd.DataFrame:
    """One row per layer and method with `relative_error` and `held_out_error`, from `Study.overview`."""
    keys = ["layer", "block_index", "projection", "relative_range", "is_columnar"]
    parts = [
        overview[keys].assign(
            method=method, relative_error=overview[f"error_{method}"], held_out_error=overview[f"held_out_{method}"]
        )
        for method in SHOWN_METHODS
    ]
    table = pd.concat(parts, ignore_index=True)
    place = {layer: at for at, layer in enumerate(overview["layer"])}
    return table.sort_values("layer", key=lambda names: names.map(place), kind="stable", ignore_index=True)
