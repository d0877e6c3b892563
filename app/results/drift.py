"""How far the hidden states of pruned models drift from the dense model's, as a table; no Streamlit here.

`rose.model.walk.storage.BlockDrift` defines the numbers and their tokens.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

import pandas as pd

from app import words
from app.results.naming import calibration_of
from rose import RunReport, verdicts
from rose.layer.registry import label_of
from rose.verdicts import Result

SCALE = "Drift 0: the hidden states are the dense model's. Drift 1: the difference is as large as these states."


def drift_table(runs: Sequence[RunReport]) -> pd.DataFrame:
    """One row per run and decoder block; `cancelled` is passed_on + arisen − drift.

    With a the passed-on difference of hidden states and b the arising one, drift is ‖a + b‖² and `cancelled` is
    −2⟨a, b⟩: positive where the block's pruned layers work against the error that they receive.
    """
    rows = [
        {
            "run": run.name,
            "method": run.method,
            "sparsity": run.asked,
            "target": run.target,
            **entry,
            "cancelled": entry["passed_on"] + entry["arisen"] - entry["drift"],
        }
        for run in runs
        for entry in run.drift
    ]
    return pd.DataFrame(rows)


def knows_origin(run: RunReport) -> bool:
    """Whether the record says where the drift arises, not only its size."""
    return bool(run.drift) and all(isfinite(entry["arisen"]) for entry in run.drift)


def drift_problem(runs: Sequence[RunReport]) -> str:
    """Why the drifts of these runs are not ranked; "" where they are."""
    rankings = verdicts.rank([_result(run) for run in runs], "drift")
    if len(rankings) > 1:
        amounts = words.listing([ranking.results[0].amount for ranking in rankings])
        return f"different amounts were asked of the runs ({amounts})"
    return rankings[0].problem


def drift_finding(runs: Sequence[RunReport]) -> str:
    """The effect of target dense where only the target differs; else the run of the least drift."""
    rankings = verdicts.rank([_result(run) for run in runs], "drift")
    for ranking in rankings:
        both = sorted(ranking.results, key=lambda result: result.target, reverse=True)
        is_pair = [result.target for result in both] == ["layer", "dense"] and both[0].method == both[1].method
        if is_pair and not ranking.problem:
            layer, dense = both
            before, after = words.apart(layer.value, dense.value)
            return (
                f"{label_of(dense.method)} at {ranking.results[0].amount}: target dense brings the last decoder "
                f"block's drift from {before} to {after}"
            )
    return verdicts.says_ranking(rankings)


def _result(run: RunReport) -> Result:
    """Its drift after the last decoder block; only drifts on the same held-out tokens are compared."""
    setup = replace(run.setup, windows=calibration_of(run), dense=None)
    return Result(run.name, run.method, run.drift[-1]["drift"], setup=setup, amount=run.asked, target=run.target)
