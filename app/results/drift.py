"""Where pruned models drift from the dense one: runs as a table. No Streamlit here.

See `rose.model.walk.storage.BlockDrift` for what is measured, and on which tokens.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

import pandas as pd

from app import words
from app.results.naming import calibration_of, model_of, size_of
from app.runs.request import HELD_OUT, PruneRequest
from app.study.setup import Setup
from rose import RunReport, verdicts
from rose.layer.registry import label_of
from rose.model.defaults import DRIFT
from rose.verdicts import Result


def drift_table(runs: Sequence[RunReport]) -> pd.DataFrame:
    """One row per run and decoder block; `cancelled` is passed_on + arisen − drift.

    With a the passed-on difference of hidden states and b the one that arises, drift is ‖a + b‖² and what is cancelled
    −2⟨a, b⟩: positive where the block's pruned layers work against the error that they receive, negative where they
    add to it.
    """
    rows = [
        {
            "run": run.name,
            "method": run.method,
            "sparsity": run.asked,
            "target": run.target,
            "calibration": ", ".join(filter(None, (model_of(run), size_of(run), calibration_of(run)))),
            "perplexity": run.summary.get("perplexity_after"),
            "target_damping": run.by_layer["target_damping"].median(),
            **entry,
            "cancelled": entry["passed_on"] + entry["arisen"] - entry["drift"],
        }
        for run in runs
        for entry in run.drift
    ]
    return pd.DataFrame(rows)


def knows_origin(run: RunReport) -> bool:
    """Whether it is known where its drift arises, not only how large it is."""
    return bool(run.drift) and all(isfinite(entry["arisen"]) for entry in run.drift)


def drift_problem(runs: Sequence[RunReport]) -> str:
    """Why the drifts of these runs are not ranked; "" where they may be."""
    rankings = verdicts.rank([_result(run) for run in runs], "drift")
    if len(rankings) > 1:
        amounts = words.listing([one.results[0].amount for one in rankings])
        return f"different amounts were asked of the runs ({amounts})"
    return rankings[0].problem


def drift_finding(runs: Sequence[RunReport]) -> str:
    """The story if it is there: target dense against layer with all else equal; else which run drifts least, of those
    that may be compared."""
    rankings = verdicts.rank([_result(run) for run in runs], "drift")
    for ranking in rankings:
        both = sorted(ranking.results, key=lambda one: one.target, reverse=True)
        is_pair = [one.target for one in both] == ["layer", "dense"] and both[0].method == both[1].method
        if is_pair and not ranking.problem:
            layer, dense = both
            before, after = words.apart(layer.value, dense.value)
            verb = "takes" if dense.value < layer.value else "brings"
            return (
                f"{label_of(dense.method)} at {ranking.results[0].amount}: target dense {verb} the last decoder "
                f"block's drift from {before} to {after}"
            )
    return verdicts.says_ranking(rankings)


def _result(run: RunReport) -> Result:
    """Its drift after the last decoder block; runs on other held-out tokens are not compared with it."""
    setup = replace(run.setup, windows=calibration_of(run), dense=None)
    drift = run.drift[-1]["drift"]
    return Result(run.name, run.method, drift, setup=setup, amount=run.asked, target=run.target)


def small_comparison(setup: Setup) -> tuple[Setup, PruneRequest]:
    """A comparison of "layer" and "dense" that takes a minute or two: SparseGPT with each target, on few tokens."""
    few = replace(
        setup,
        samples=min(DRIFT.samples, setup.samples),
        length=min(DRIFT.length, setup.length),
        held_out=min(DRIFT.held_out, setup.held_out) or 2,
        layers="*",
    )
    request = PruneRequest(
        ("sparsegpt",),
        (setup.sparsity,),
        evaluate=HELD_OUT,
        windows=few.held_out,
        window_length=few.length,
        targets=("layer", "dense"),
    )
    return few, request
