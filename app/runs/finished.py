"""Finished runs in one form, wherever they come from: this server, a study, or a folder. No Streamlit here.

A folder is read and never executed: its report.json, and zero_shot.csv where there is one. What it says is checked, as
somebody else may have written it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import pandas as pd

import rose
from app import words
from app.study import tables
from app.study.study import Study
from rose.files import expand
from rose.model.measure.zero_shot import FILE as ZERO_SHOT_FILE
from rose.report import mean_or_none

REPORT = "report.json"
LARGEST = 64 * 2**20  # bytes of a report; a model of a hundred thousand layers takes less
MOST_RUNS = 40  # of one folder of folders
MOST_BLOCKS = 4096
SLIM = "slim"
NUMBERS = (
    *("rows", "columns", "sparsity", "relative_error", "held_out_error", "target_error", "held_out_target_error"),
    *("relative_range", "damping", "dead_columns", "seconds"),
)
_NAME = re.compile(r"[\w.:@/%+-]{1,200}")  # of layers, projections and methods
Kind = Literal["prune", "slim", "study"]


@dataclass(frozen=True)
class FinishedRun:
    """One method on one model.

    Attributes:
        name: for people; unique among those that are shown together once they went through `name_apart`.
        kind: "prune" and "slim" have changed a model, block by block; a "study" has measured every layer of the dense
            model by itself.
        layers: a row per layer: layer, block_index, projection, and of `NUMBERS` those that are known, NaN elsewhere;
            `is_columnar` where it is known. Empty where whole decoder blocks went.
        summary: settings and totals, as in `rose.RunReport`.
        zero_shot: task, questions, accuracy; None where it was not measured.
        place: the folder, or "this server".
        origin: what was measured on this server: a report, or a study's set-up and the method.
    """

    name: str
    kind: Kind
    layers: pd.DataFrame
    summary: dict[str, Any]
    zero_shot: pd.DataFrame | None = None
    place: str = "this server"
    origin: Any = None

    @property
    def identity(self) -> Any:
        """The same for as long as the run is offered, whatever it is called; for `components.keep_choice`."""
        return self.origin if self.place == "this server" else (self.place, self.method)

    @property
    def method(self) -> str:
        return str(self.summary.get("method"))

    @property
    def pruned(self) -> pd.DataFrame:
        """The rows of `layers` that count in means: without experts that were left dense beside pruned ones."""
        is_pruned = self.layers["sparsity"] != 0
        return self.layers[is_pruned] if self.kind != SLIM and is_pruned.any() else self.layers

    @property
    def has_drift(self) -> bool:
        return bool(self.summary.get("drift"))


def method_label(method: str) -> str:
    """As people read it; a study measures two-level order as if it were a method."""
    return rose.METHODS[method].label if method in rose.METHODS else method.replace("_", " ")


def asked_of(summary: Mapping[str, Any]) -> str:
    """The sparsity of a run, or, where heads and channels were taken out, the share of parameters that was to go."""
    return f"{_fraction(summary['ratio'])} out" if "ratio" in summary else _plain(summary.get("sparsity"))


def run_of(report: rose.RunReport, place: str = "this server") -> FinishedRun:
    """A run that has changed a model.

    Raises:
        RoseError: not such a report.
    """
    summary = report.summary
    if not isinstance(summary.get("method"), str) or not _NAME.fullmatch(summary["method"]):
        raise rose.RoseError("This report names no method; choose one of `rose prune`, `rose slim` or `rose analyze`.")
    kind: Kind = "slim" if "ratio" in summary else "prune"
    asked = asked_of(summary)
    name = (
        f"{method_label(summary['method'])} at {asked}" if kind == "prune" else f"Slim by {summary['method']}, {asked}"
    )
    if kind == "prune" and summary.get("target", "layer") != "dense":
        name += ", target layer"
    rows = summary.get("zero_shot")
    found = _accuracies(pd.DataFrame(rows)) if isinstance(rows, list) and rows else None
    return FinishedRun(name, kind, _layers(report.layers), _checked_drift(summary), found, place, report)


def runs_of_analysis(report: rose.RunReport, place: str) -> list[FinishedRun]:
    """What `rose analyze` has measured, as one run per method.

    Raises:
        RoseError: not such a report.
    """
    if "method" not in report.layers or not len(report.layers):
        raise rose.RoseError("This report has no layers; choose one of `rose prune`, `rose slim` or `rose analyze`.")
    runs = []
    for method, rows in report.layers.groupby("method", sort=False):
        if not _NAME.fullmatch(str(method)):
            raise rose.RoseError(f"{str(method)[:40]!r} is no name of a method; choose another report.")
        of_all = ("methods", "layers", "mean_errors")
        summary = {name: value for name, value in report.summary.items() if name not in of_all}
        summary |= {"method": str(method)} | _totals(rows)
        name = f"{method_label(str(method))} at {_plain(summary.get('sparsity'))} (study)"
        runs.append(FinishedRun(name, "study", _layers(rows), summary, None, place))
    return runs


def runs_of_study(study: Study, threshold: float) -> list[FinishedRun]:
    """A study of the app as one run per method."""
    setup, overview = study.setup, study.overview(threshold)
    if overview.empty:
        return []
    keys = ["layer", "rows", "columns", "damping", "dead_columns"]
    records = tables.error_records(overview).merge(overview[keys], on="layer")
    shared = {
        "model": setup.model,
        "dtype": setup.dtype,
        "calibration": setup.text,
        "samples": setup.samples,
        "length": setup.length,
        "seed": setup.seed,
        "held_out_samples": setup.held_out,
        **({} if setup.layer_patterns is None else {"chosen_layers": setup.layers.strip()}),
        "sparsity": setup.sparsity,
        "block_size": setup.block_size,
        "damping": setup.damping,
        "threshold": threshold,
    }
    if study.is_example and study.kept is not None:
        shared["made_with"] = study.kept.made_with
    runs = []
    for method, rows in records.groupby("method", sort=False):
        name = f"{method_label(str(method))} at {setup.sparsity} (study)"
        summary = {"method": str(method), **shared, **_totals(rows)}
        runs.append(FinishedRun(name, "study", _layers(rows), summary, origin=(setup, method)))
    return runs


def _totals(rows: pd.DataFrame) -> dict[str, Any]:
    """What a report of a pruned model says in its summary, of one method's rows."""

    pruned = rows[rows["sparsity"] > 0] if "sparsity" in rows else rows  # experts may have been left dense

    def mean(column: str) -> float | None:
        return mean_or_none(pd.to_numeric(pruned[column], errors="coerce")) if column in pruned else None

    columnar = int(rows["is_columnar"].fillna(False).astype(bool).sum()) if "is_columnar" in rows else None
    return {
        "layers": len(rows),
        "columnar_layers": columnar,
        "mean_relative_error": mean("relative_error"),
        "mean_held_out_error": mean("held_out_error"),
    }


# Folders


def read_runs(path: str) -> list[FinishedRun]:
    """Reads a report.json, the one in a folder, or those in the folders of a folder.

    Raises:
        RoseError: nothing there, or not what `rose` writes; says which file.
    """
    return [run for file in report_files(path) for run in read_report(file)]


def report_files(path: str) -> list[Path]:
    """A report.json, the one in a folder, or those in the folders of a folder.

    Raises:
        RoseError: nothing there, too many, or a path that cannot be looked at.
    """
    place = expand(path.strip())
    try:
        files = [place] if place.is_file() else [place / REPORT] if (place / REPORT).is_file() else []
        files = files or sorted(place.glob(f"*/{REPORT}"))
    except (OSError, ValueError) as problem:
        raise rose.RoseError(f"{path[:200]} cannot be read ({problem}); check the path.") from problem
    if not files:
        raise rose.RoseError(
            f"There is no {REPORT} in {place}; give a folder that `rose prune`, `slim` or `analyze` has written."
        )
    if len(files) > MOST_RUNS:
        raise rose.RoseError(f"{place} holds {len(files)} runs; give a folder of at most {MOST_RUNS}, or a single one.")
    return files


def read_report(file: Path) -> list[FinishedRun]:
    """The run of one report, or, of an analysis, one for each method.

    Raises:
        RoseError: as for `read_runs`.
    """
    try:
        if file.stat().st_size > LARGEST:
            raise rose.RoseError(f"It is larger than {LARGEST // 2**20} MB; choose another file.")
        report = rose.RunReport.from_json(file.read_text(encoding="utf-8"))
        if not isinstance(report.summary, dict):
            raise rose.RoseError("Its summary is no table of settings; choose another file.")
        folder = str(file.parent)
        if "methods" in report.summary and "method" not in report.summary:
            return runs_of_analysis(report, folder)
        run = run_of(report, folder)
        beside = file.with_name(ZERO_SHOT_FILE)
        return [replace(run, zero_shot=_read_accuracies(beside)) if beside.is_file() else run]
    except rose.RoseError as problem:
        raise rose.RoseError(f"{file}: {problem}") from problem
    except (OSError, UnicodeDecodeError, RecursionError) as problem:
        raise rose.RoseError(f"{file} cannot be read ({problem}); check the path.") from problem
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as problem:
        raise rose.RoseError(f"{file} is not a report written by rose ({problem!r:.100}); choose another.") from problem


def _layers(table: pd.DataFrame) -> pd.DataFrame:
    """The rows in the form that every page shows.

    Raises:
        RoseError: a row without a layer's name, without a decoder block, or a layer twice.
    """
    names = ["layer", "block_index", "projection", *NUMBERS]
    if table.empty:
        return pd.DataFrame(columns=names).astype(dict.fromkeys(NUMBERS, float))
    if "layer" not in table or "block_index" not in table:
        raise rose.RoseError("Its rows name no layer and no decoder block; choose a report of `rose prune`.")
    layers = table["layer"].tolist()
    if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in layers):
        raise rose.RoseError("A row has a layer name that no model has; choose another report.")
    if len(set(layers)) < len(layers):
        raise rose.RoseError("A layer is there twice; choose a report of one method.")
    blocks = pd.to_numeric(table["block_index"], errors="coerce")
    if blocks.isna().any() or not blocks.between(0, MOST_BLOCKS).all() or (blocks % 1 != 0).any():
        raise rose.RoseError(f"A decoder block must be a whole number from 0 to {MOST_BLOCKS}; choose another report.")
    kinds = table["projection"].tolist() if "projection" in table else [None] * len(layers)
    result = pd.DataFrame(
        {
            "layer": layers,
            "block_index": blocks.astype(int).to_numpy(),
            "projection": [
                kind if isinstance(kind, str) and _NAME.fullmatch(kind) else words.place_of(layer)[1]
                for kind, layer in zip(kinds, layers, strict=True)
            ],
        }
    )
    for name in NUMBERS:
        values = pd.to_numeric(table[name], errors="coerce") if name in table else float("nan")
        result[name] = pd.Series(values, index=table.index, dtype=float).to_numpy()
    if {"parameters", "kept_parameters"} <= set(table.columns):  # of a slimmed model
        kept = pd.to_numeric(table["kept_parameters"], errors="coerce") / pd.to_numeric(table["parameters"])
        result["sparsity"] = (1 - kept).to_numpy()
    if "is_columnar" in table:
        result["is_columnar"] = (table["is_columnar"] == True).to_numpy()  # noqa: E712  None is no bool
    return result.replace([float("inf"), float("-inf")], float("nan"))


def _checked_drift(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary with drift only where every entry has its numbers.

    Raises:
        RoseError: drift that is not that of decoder blocks.
    """
    drift = summary.get("drift")
    if not drift:
        return summary
    parts = ("drift", "passed_on", "arisen")
    try:
        entries = [
            {"block_index": int(entry["block_index"]), **{part: float(entry[part]) for part in parts}}
            for entry in drift
        ]
        if not all(0 <= entry["block_index"] <= MOST_BLOCKS and isfinite(sum(entry.values())) for entry in entries):
            raise ValueError(drift)
    except (KeyError, TypeError, ValueError, OverflowError) as problem:
        raise rose.RoseError("Its drift is not that of decoder blocks; choose another report.") from problem
    return {**summary, "drift": entries}


def _read_accuracies(file: Path) -> pd.DataFrame:
    if file.stat().st_size > LARGEST:
        raise rose.RoseError(f"{file.name} is larger than {LARGEST // 2**20} MB; take it out of the folder.")
    try:
        table = pd.read_csv(file)
    except ValueError as problem:
        raise rose.RoseError(f"{file.name} is no table of accuracies; take it out of the folder.") from problem
    return _accuracies(table)


def _accuracies(table: pd.DataFrame) -> pd.DataFrame:
    """task, questions, accuracy and accuracy_error of every task.

    Raises:
        RoseError: not such a table.
    """
    if not {"task", "questions", "accuracy"} <= set(table.columns):
        raise rose.RoseError("Its zero-shot table needs the columns task, questions and accuracy.")
    result = pd.DataFrame({"task": [_plain(task) for task in table["task"]]})
    for name in ("questions", "accuracy", "accuracy_error", "accuracy_norm"):
        values = pd.to_numeric(table[name], errors="coerce") if name in table else float("nan")
        result[name] = pd.Series(values, index=table.index, dtype=float).to_numpy()
    return result.drop_duplicates("task", ignore_index=True)


def _plain(value: Any) -> str:
    """A setting as a short text without anything that a page could take for a command."""
    return re.sub(r"[^\w .:%+=-]", "·", str(value))[:40]


def _fraction(value: Any) -> str:
    return words.percent(float(value), 0)


def name_apart(runs: Sequence[FinishedRun]) -> dict[str, FinishedRun]:
    """The runs by name; those with the same name get what tells them apart: folder, model, or a number."""
    names = [run.name for run in runs]
    named: dict[str, FinishedRun] = {}
    for run, name in zip(runs, names, strict=True):
        if run.place != "this server":
            name = _with(name, _plain(Path(run.place).resolve().name))
        elif names.count(name) > 1:
            name = _with(name, _plain(Path(str(run.summary.get("model", "model"))).name))
        number, unique = 2, name
        while unique in named:
            unique, number = f"{name}, run {number}", number + 1
        named[unique] = replace(run, name=unique)
    return named


def _with(name: str, more: str) -> str:
    """ "ROSE at 0.7 (folder)", or "ROSE at 0.7 (study, folder)"."""
    return f"{name[:-1]}, {more})" if name.endswith(")") else f"{name} ({more})"


def with_model(run: FinishedRun) -> str:
    """The run's name, and the model's unless the name has it."""
    model = _plain(Path(str(run.summary.get("model", ""))).name)
    return run.name if model in run.name else _with(run.name, model)


def settings_of(run: FinishedRun) -> dict[str, str]:
    """What was asked for, as texts, in the order in which the report has it."""
    return {
        name: _setting(value)
        for name, value in run.summary.items()
        if name not in TOTALS and not isinstance(value, list | tuple)
    }


TOTALS = (
    *("layers", "columnar_layers", "weights", "removed_fraction", "mean_relative_error", "mean_held_out_error"),
    *("layers_with_raised_damping", "seconds", "perplexity_before", "perplexity_after", "drift", "zero_shot"),
    *("block_parameters", "kept_block_parameters", "parameters", "kept_parameters", "made_with", "command", "device"),
)


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value)[:300] if value else "–"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)[:300]
