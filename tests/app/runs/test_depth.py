"""Drift of saved runs, whatever they took out."""

from __future__ import annotations

import pandas as pd

import rose
from app.runs.depth import drift_table

DRIFT = [{"block_index": 0, "drift": 0.1, "passed_on": 0.0, "arisen": 0.1}]


def test_pruned_and_slimmed_runs_stand_in_one_table() -> None:
    """A run that took heads and channels out has a ratio and no sparsity."""
    pruned = rose.RunReport(pd.DataFrame(), {"method": "rose", "sparsity": "0.5", "target": "dense", "drift": DRIFT})
    slimmed = rose.RunReport(pd.DataFrame(), {"method": "obs", "ratio": 0.2, "target": "dense", "drift": DRIFT})
    table = drift_table({"A": pruned, "B": slimmed})
    assert list(table["sparsity"]) == ["0.5", "20 % out"]
    assert list(table["drift"]) == [0.1, 0.1]
