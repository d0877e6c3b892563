"""Results of many runs from a file: one row per method, sparsity and calibration seed, and their spread over seeds."""

from __future__ import annotations

from typing import IO

import pandas as pd

from rose import RoseError

NUMBERS = ("perplexity", "mean_held_out_error", "seconds")


def read_results(source: str | IO[bytes]) -> pd.DataFrame:
    """Reads a CSV file with the columns method, sparsity, seed, perplexity, mean_held_out_error and seconds.

    Further columns are left out. A missing held-out error is allowed.

    Args:
        source: path or open file.

    Raises:
        RoseError: not such a file.
    """
    try:
        table = pd.read_csv(source, dtype={"method": str, "sparsity": str})
    except (OSError, ValueError) as problem:
        raise RoseError(f"The file cannot be read as CSV ({problem}); check the path.") from problem
    wanted = ["method", "sparsity", "seed", *NUMBERS]
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        raise RoseError(f"The file has no column {missing[0]!r}; it needs {', '.join(wanted)}.")
    table = table[wanted].copy()
    if table.empty:
        raise RoseError("The file holds no runs yet.")
    for name in ("seed", *NUMBERS):
        table[name] = pd.to_numeric(table[name], errors="coerce")
    bad = table[["method", "sparsity", "seed", "perplexity"]].isna().any(axis=1)
    if bad.any():
        raise RoseError(f"Row {int(bad.idxmax()) + 1} has no method, sparsity, seed or perplexity; correct the file.")
    return table


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """One row per method and sparsity, in the order first seen: mean, and half the range over seeds as `_spread`.

    Half the range and not the standard deviation: of three values it says plainly how far they lie apart.
    """
    groups = table.groupby(["method", "sparsity"], sort=False)
    result = groups.agg(seeds=("seed", "nunique"), **{name: (name, "mean") for name in NUMBERS})
    for name in NUMBERS[:2]:
        result[f"{name}_spread"] = (groups[name].max() - groups[name].min()) / 2
    return result.reset_index()
