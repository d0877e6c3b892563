"""Measurements of orders in layers and whole models that come with the app.

`python -m tests.benchmarks.example_study whole_models` copies the file out of docs/results.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from app.study import cache
from app.study.setup import Setup
from rose import verdicts
from rose.verdicts import Interval

DATA = Path(__file__).with_name("whole_models.csv")


def rows() -> pd.DataFrame:
    """file of docs/results, method (or order/budget), tuned, seed, value: perplexities at 70 %, or mean errors."""
    return pd.read_csv(DATA)


def perplexity_ratio(method: str, *, tuned: bool = False) -> Interval:
    """Perplexity over that of SparseGPT, not tuned, paired over draws of calibration."""
    table = rows()[rows()["file"] == "headline.csv"].sort_values("seed")
    chosen = (
        (table["method"] == name) & (table["tuned"] == tunes) for name, tunes in ((method, tuned), ("sparsegpt", False))
    )
    return verdicts.paired_ratio(*(list(np.log(table["value"][rows])) for rows in chosen))


def output_error(name: str) -> float:
    """Held-out error of output projections over SparseGPT's, mean over layers and draws. `name`: order/budget, or a
    method."""
    table = rows()
    chosen = (table["file"] == "orders-outputs.csv") & (table["method"] == name)
    return float(table[chosen]["value"].mean())


@lru_cache(maxsize=1)
def example_layers() -> pd.DataFrame:
    """The finished study that the app opens with: a row a layer with is_columnar, and held-out errors by method."""
    example = cache.read_example(Setup())
    assert example is not None, "the example comes with the app"
    table = pd.DataFrame([vars(record) for record in example.records])
    errors = table.pivot_table(index="layer", columns="method", values="held_out_error", sort=False)
    facts = table.drop_duplicates("layer").set_index("layer")[["block_index", "projection", "is_columnar"]]
    return facts.join(errors).reset_index()


def saved_by_rose() -> float:
    """Share of SparseGPT's held-out error that ROSE's order saves, mean over the columnar layers of the example."""
    columnar = example_layers().query("is_columnar")
    return 1 - float((columnar["two_level"] / columnar["sparsegpt"]).mean())
