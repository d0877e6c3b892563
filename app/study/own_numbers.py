"""Numbers that somebody else has found for layers, from a CSV file, or how far tuning moved them. No Streamlit here."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection
from math import isfinite

import pandas as pd

from rose import RoseError
from rose.files import LARGEST, check_small, expand
from rose.report import RunReport
from rose.rows import FLOAT32_MAX
from rose.wording import size

COLUMNS = ("layer", "value")


def read_numbers(source: str | bytes, layers: Collection[str]) -> tuple[pd.Series, list[str]]:
    """Reads a CSV file with the columns layer and value, from its path or its content; others are left out.

    Of the report.json of a tuned model it is the change of each layer, ‖ΔW‖/‖W‖.

    Returns:
        The numbers by layer, of those among `layers`; and the names that are not among them.

    Raises:
        RoseError: no such file, other columns, no layer of these, or a row that is none, with its line and column.
    """
    content = _content(source)
    found = _moved(content) if content.lstrip().startswith("{") else _listed(content)
    known = pd.Series({name: value for name, value in found.items() if name in layers}, dtype=float)
    if known.empty:
        example = f", such as {next(iter(found))[:80]}" if found else ""
        raise RoseError(f"The file names no layer of this model{example}; its layers are called {next(iter(layers))}.")
    return known, [name for name in found if name not in layers]


def _moved(content: str) -> dict[str, float]:
    report = RunReport.from_json(content, "The file")
    if not report.is_tuned:
        raise RoseError("The file is no report of a tuned model; give its report.json, or a CSV file.")
    return {name: _number(str(moved), f"Layer {name[:80]}", "change") for name, moved in report.tuned["change"].items()}


def _listed(content: str) -> dict[str, float]:
    found: dict[str, float] = {}
    try:
        rows = csv.reader(io.StringIO(content), strict=True)
        head = [name.strip() for name in next(rows, [])]
        if not set(COLUMNS) <= set(head):
            raise RoseError(f"The file has no columns {' and '.join(COLUMNS)} in its first line; add them.")
        name_at, value_at = map(head.index, COLUMNS)
        for row in filter(None, rows):
            where = f"Line {rows.line_num}"
            if len(row) != len(head):
                raise RoseError(f"{where} has {len(row)} fields, and the first line {len(head)}; correct the file.")
            name, text = row[name_at].strip(), row[value_at].strip()
            if name in found:
                raise RoseError(f"{where}, column layer: {name[:80]} is there twice; correct the file.")
            found[name] = _number(text, where)
    except csv.Error as problem:
        raise RoseError(f"The file cannot be read as CSV ({problem}); correct it.") from problem
    return found


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


def _number(text: str, where: str, column: str = "value") -> float:
    try:
        value = float(text.replace("_", "?"))  # which Python reads, and no other program
    except ValueError:
        value = float("nan")
    if not (isfinite(value) and abs(value) <= FLOAT32_MAX):
        raise RoseError(f"{where}, column {column}: {text[:40]!r} is no finite number; correct the file.")
    return value
