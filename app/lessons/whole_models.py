"""Measurements of orders in layers and whole models that come with the app.

`python -m tests.benchmarks.examples whole_models` copies the file out of docs/results.
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


@lru_cache(maxsize=1)
def rows() -> pd.DataFrame:
    """file of docs/results, method (or order/budget), tuned, seed, value: perplexities at 70 %, or mean errors."""
    return pd.read_csv(DATA)


def perplexity_ratio(method: str, *, tuned: bool = False, base_tuned: bool = False) -> Interval:
    """Perplexity over SparseGPT's, paired over draws of calibration."""
    logs = [_perplexities(name, is_tuned) for name, is_tuned in ((method, tuned), ("sparsegpt", base_tuned))]
    return verdicts.paired_ratio(*(list(np.log(values)) for values in logs))


def _perplexities(method: str, tuned: bool) -> pd.Series:
    table = rows()
    chosen = (table["file"] == "headline.csv") & (table["method"] == method) & (table["tuned"] == tuned)
    return table[chosen].sort_values("seed")["value"]


def perplexity(method: str, *, tuned: bool = False) -> float:
    """Mean over draws."""
    return float(_perplexities(method, tuned).mean())


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
