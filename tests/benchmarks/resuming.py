"""Benchmarks of many runs that go on where they were stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rose.files import write_atomically

Row = dict[str, Any]


def resume(folder: Path, key: Sequence[str], runs: Callable[[set[Any]], Iterable[Row]]) -> pd.DataFrame:
    """All rows of FOLDER/rows.csv, those of `runs` among them, each written and printed as it comes.

    Args:
        folder: made where it is missing.
        key: columns that tell runs apart.
        runs: given the keys that the file has, yields the rows that it lacks.
    """
    path = folder / "rows.csv"
    folder.mkdir(parents=True, exist_ok=True)
    # What is empty stays text: a dense model has no method.
    rows = pd.read_csv(path, keep_default_na=False).to_dict("records") if path.exists() else []
    for row in runs({tuple(row[name] for name in key) for row in rows}):
        rows.append(row)
        write_atomically(path, pd.DataFrame(rows).to_csv(index=False).encode())
        print(row, flush=True)
    return pd.DataFrame(rows)
