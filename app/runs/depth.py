"""Where pruned models drift from the dense one: reports of runs as the table that the Depth page draws. No Streamlit.

See `rose.model.walk.dense_states.BlockDrift` for what is measured, and on which tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

import rose
from app import words
from app.runs.finished import asked_of, report_files
from app.runs.request import HELD_OUT, PruneRequest
from app.study.setup import Setup

COLUMNS = (
    "run",
    "method",
    "sparsity",
    "target",
    "calibration",
    "block_index",
    "drift",
    "passed_on",
    "arisen",
    "cancelled",
    "perplexity",
    "target_damping",
)
# Of the small comparison: enough tokens for the correction to pay, few enough to wait for.
SAMPLES, LENGTH, HELD_OUT_SAMPLES = 16, 256, 4


def has_drift(report: rose.RunReport) -> bool:
    """Whether the run had held-out tokens, on which drift is measured."""
    return bool(report.summary.get("drift"))


def read_reports(path: str) -> tuple[dict[Path, rose.RunReport], list[str]]:
    """Reads a report.json, the one in a folder, or those in the folders of a folder.

    Returns:
        The reports by their files, and the names of folders left out because their runs have no drift.

    Raises:
        RoseError: nothing there, not a report, or no report with drift.
    """
    found = {file: _read(file) for file in report_files(path)}
    kept = {file: report for file, report in found.items() if report is not None}
    without = [file.parent.name for file, report in found.items() if report is None]
    if not kept:
        raise rose.RoseError(f"{next(iter(found))} has no drift; prune again with held-out tokens (--held-out 4).")
    return kept, without


def _read(file: Path) -> rose.RunReport | None:
    """The report; None where it has no drift."""
    try:
        report = rose.RunReport.from_json(file.read_text())
    except (OSError, UnicodeDecodeError) as problem:
        raise rose.RoseError(f"{file} cannot be read ({problem}); check the path.") from problem
    if not has_drift(report):
        return None
    try:
        drift_table({"": report})
    except (KeyError, TypeError, ValueError) as problem:
        raise rose.RoseError(f"{file} is not a report of a pruned model ({problem!r}); choose another.") from problem
    return report


def name_runs(reports: Sequence[rose.RunReport]) -> dict[str, rose.RunReport]:
    """A name for each run: method, sparsity and target, and whatever else tells it from the others.

    Models, and how many layers were pruned, are named wherever they are not the same in all runs.
    """
    plain = [_label(report.summary) for report in reports]
    twice = {name for name, count in Counter(plain).items() if count > 1}
    models, layers = ({tell(report) for report in reports} for tell in (_model, _layers))
    named: dict[str, rose.RunReport] = {}
    for report, name in zip(reports, plain, strict=True):
        said = [_model(report)] if name in twice or len(models) > 1 else []
        said += [_layers(report)] if len(layers) > 1 else []
        said += [_calibration(report.summary)] if name in twice else []
        full = f"{name} ({', '.join(filter(None, said))})" if any(said) else name
        number = 2
        unique = full
        while unique in named:
            unique, number = f"{full}, run {number}", number + 1
        named[unique] = report
    return named


def _label(summary: dict[str, Any]) -> str:
    method = str(summary.get("method"))
    name = rose.METHODS[method].label if method in rose.METHODS else method
    return f"{name} at {asked_of(summary)}, target {summary.get('target', 'layer')}"


def _model(report: rose.RunReport) -> str:
    return Path(report.summary["model"]).name if "model" in report.summary else ""


def _layers(report: rose.RunReport) -> str:
    return words.count(len(report.layers), "layer")


def _calibration(summary: dict[str, Any]) -> str:
    said = [f"{summary.get('samples')} × {summary.get('length')} tokens"]
    said += [f"seed {summary['seed']}"] if "seed" in summary else []
    return ", ".join(said)


def damping_of(report: rose.RunReport) -> float | None:
    """μ of the run's corrections, their median; None without one."""
    known = report.layers.get("target_damping", pd.Series(dtype=float)).dropna()
    return float(known.median()) if len(known) else None


def drift_table(named: dict[str, rose.RunReport]) -> pd.DataFrame:
    """One row per run and decoder block; `cancelled` is passed_on + arisen − drift.

    With a the passed-on difference of hidden states and b the one that arises, drift is ‖a + b‖² and what is cancelled
    −2⟨a, b⟩: positive where the block's pruned layers work against the error that they receive, negative where they
    add to it.
    """
    rows = []
    for name, report in named.items():
        run = {
            "run": name,
            "method": report.summary["method"],
            "sparsity": asked_of(report.summary),
            "target": report.summary.get("target", "layer"),
            "calibration": ", ".join(filter(None, (_model(report), _layers(report), _calibration(report.summary)))),
            "perplexity": report.summary.get("perplexity_after"),
            "target_damping": damping_of(report),
        }
        for entry in report.summary["drift"]:
            drift, passed_on, arisen = (float(entry[part]) for part in ("drift", "passed_on", "arisen"))
            parts = {"drift": drift, "passed_on": passed_on, "arisen": arisen, "cancelled": passed_on + arisen - drift}
            rows.append(run | {"block_index": int(entry["block_index"])} | parts)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def small_comparison(setup: Setup) -> tuple[Setup, PruneRequest]:
    """A comparison of "layer" and "dense" that takes a minute or two: SparseGPT with each target, on few tokens."""
    few = replace(
        setup,
        samples=min(SAMPLES, setup.samples),
        length=min(LENGTH, setup.length),
        held_out=min(HELD_OUT_SAMPLES, setup.held_out) or 2,
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
