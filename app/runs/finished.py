"""Finished runs in one form, wherever they come from: this server, a study, or a folder. No Streamlit here.

A folder is read and never executed: its report.json, and zero_shot.csv where there is one. What it says is checked, as
somebody else may have written it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

import rose
from app import words
from app.runs.recipes import analyze_command
from app.runs.request import Case
from app.study import tables
from app.study.study import Study
from rose.files import check_small, expand
from rose.layer.methods import make_settings
from rose.layer.paper import WIDEST, PaperFigures, paper_figures, read_paper_figures
from rose.layer.registry import label_of
from rose.model.measure.zero_shot import FILE as ZERO_SHOT_FILE
from rose.report import mean_or_none, pruned_rows
from rose.verdicts import caution_column

REPORT = "report.json"
SERVER = "this server"
MOST_RUNS = 40  # of one folder of folders
MOST_BLOCKS = 4096
SLIM = "slim"
NUMBERS = (
    *("rows", "columns", "sparsity", "relative_error", "held_out_error", "target_error", "held_out_target_error"),
    *("pruning_error", "rounding_error"),
    *("relative_range", "damping", "target_damping", "dead_columns", "seconds", "tokens", "change"),
    *("zeros_before", "asked_sparsity"),
)
ENOUGH = 0.8  # of the minutes asked for, from which on a tuned copy is named by them
TARGETS = ("layer", "dense", "dense and stream")  # of a layer
FLAGS = ("is_columnar", "is_damping_raised")
# Of the summary of a run in two stages, what holds for the second as well.
CONCLUDED = (
    *("model", "dtype", "calibration", "seed", "bos", "evaluated_on", "windows", "perplexity_before"),
    *("perplexity_after", "losses_before", "losses_after", "command", "made_with", "tuned", "tuned_before"),
)
_NAME = re.compile(r"[\w.:@/%+-]{1,200}")  # of layers, projections and methods
Kind = Literal["prune", "slim", "study", "check"]


@dataclass(frozen=True)
class FinishedRun:
    """One method on one model.

    "prune" and "slim" have changed a model, block by block; a "study" has measured every layer of the dense model by
    itself. `layers` has a row per layer: layer, block_index, projection, and of `NUMBERS` those that are known, NaN
    elsewhere; `FLAGS` where they are known. It is empty where whole decoder blocks went.
    """

    name: str  # for people; unique after `name_apart`
    kind: Kind
    layers: pd.DataFrame
    summary: dict[str, Any]  # as in `rose.RunReport`
    zero_shot: pd.DataFrame | None = None  # task, questions, accuracy
    place: str = SERVER  # or the folder
    origin: Any = None  # what was measured on this server: a report, or a study's set-up and the method
    paper: PaperFigures | None = None  # of one layer, where an analysis has tried orders on it
    start: str = "dense"  # the model that it changed; "slimmed" where it pruned what slimming had left

    @property
    def identity(self) -> Any:
        """The same for as long as the run is offered, whatever it is called; for `components.keep_choice`."""
        return self.origin if self.place == SERVER else (self.place, self.kind, self.method)

    @property
    def method(self) -> str:
        return str(self.summary.get("method"))

    @property
    def target(self) -> str:
        """ "layer" or "dense"; "" where nothing says which, as of a model that was pruned elsewhere."""
        known = self.summary.get("target", "layer" if self.kind == "study" else "")
        return known if known in ("layer", "dense") else ""

    @property
    def asked(self) -> str:
        if self.kind == SLIM:
            return f"{100 * float(self.summary['ratio']):g} % out"
        bits = self.summary.get("bits")
        return short_text(self.summary.get("sparsity")) + (f", {bits} bits" if isinstance(bits, int) else "")

    @property
    def model(self) -> str:
        return short_text(Path(str(self.summary.get("model", ""))).name)

    @property
    def is_tuned(self) -> bool:
        return "tuned" in self.summary

    @property
    def untuned(self) -> str:
        """The name of the copy that was tuned."""
        return self.name.replace(tuned_suffix(self.summary), "", 1)

    @property
    def size(self) -> str:
        return "" if self.kind == SLIM else words.count(len(self.layers), "layer")

    @property
    def calibration(self) -> str:
        known = self.summary
        seed = f", seed {known['seed']}" if "seed" in known else ""
        return short_text(f"{known.get('samples')} × {known.get('length')} tokens{seed}")

    @property
    def label(self) -> str:
        """Model, method, sparsity and layers; "smollm2-135m · ROSE · 0.7 · 210 layers"."""
        how = f"Slim by {self.method}" if self.kind == SLIM else words.sentence(label_of(self.method))
        how = self.name if self.kind == "check" else how
        if self.kind == "prune" and self.target == "layer":
            how += ", target layer"
        how += ", tuned" if self.is_tuned else ""
        how += " (study)" if self.kind == "study" else " after slimming" if self.start == "slimmed" else ""
        return " · ".join(filter(None, (self.model, how, self.asked, self.size)))

    @property
    def pruned(self) -> pd.DataFrame:
        """The rows of `layers` that count in means: without experts that were left dense beside pruned ones."""
        pruned = self.layers if self.kind == SLIM else pruned_rows(self.layers)
        return self.layers if pruned.empty else pruned

    @property
    def remarks(self) -> list[str]:
        """How far its numbers can be trusted, a sentence each, as its report says it."""
        said = [*self.summary.get("remarks", ())]
        if self.kind != "check":  # whose errors are no method's on what it was fitted to
            said = [*rose.RunReport(self.layers, self.summary).remarks, *said, *self._lost()]
        return list(dict.fromkeys(said))

    def _lost(self) -> list[str]:
        """How many layers are in no mean, which files and figures have no number for; errors of none are those of a
        tuned copy."""
        known = self.pruned["relative_error"].notna()
        if known.all() or not known.any():
            return []
        some = words.sentence(f"in {words.out_of(int((~known).sum()), len(known), 'layer')}")
        return [f"{some} the error on calibration is no finite number, so no mean holds it."]

    def number(self, name: str) -> float | None:
        """A total or setting; None where it is no number that a figure can draw."""
        value = self.summary.get(name)
        if isinstance(value, bool) or not isinstance(value, float | int):
            return None
        return float(value) if abs(value) < 1e300 else None

    def losses(self, stage: str) -> tuple[float, ...]:
        """Of each evaluation window, "before" (the dense model) or "after", in nats a token; () where not kept."""
        return _losses(self.summary.get(f"losses_{stage}"))

    @property
    def drift(self) -> list[dict[str, Any]]:
        """Of every decoder block, see `rose.model.walk.dense_states.BlockDrift`; none without held-out tokens."""
        return self.summary.get("drift") or []

    @property
    def knows_origin(self) -> bool:
        """Whether it is known where its drift arises, not only how large it is."""
        return bool(self.drift) and all(isfinite(entry["arisen"]) for entry in self.drift)

    def goes_on(self, other: FinishedRun) -> bool:
        return self.start == "slimmed" and (other.place, other.kind) == (self.place, SLIM)


def runs_of(report: rose.RunReport, place: str = SERVER) -> list[FinishedRun]:
    """The one run of a report; of an analysis, one for each method; of slimming and pruning, one for each.

    Raises ValueError for what `rose` does not write.
    """
    whole = report.summary
    if "methods" in whole and "method" not in whole:
        return _runs_of_analysis(report, place)
    first, *rest = report.stages
    if not rest:
        return [_run_of(report, place)]
    rest_of = ("pruned", "perplexity_slimmed", "perplexity_after", "losses_after", "tuned", "tuned_before")
    own = {name: value for name, value in whole.items() if name not in rest_of}
    for number in ("perplexity", "losses"):
        if f"{number}_slimmed" in whole:
            own[f"{number}_after"] = whole[f"{number}_slimmed"]
    slimmed = _run_of(rose.RunReport(first.layers, own), place)
    known = {name: whole[name] for name in CONCLUDED if name in whole}
    pruned = _run_of(rose.RunReport(rest[0].layers, known | rest[0].summary), place)
    return [slimmed, replace(pruned, name=f"{slimmed.name}, then {pruned.name}", start="slimmed")]


def _run_of(report: rose.RunReport, place: str) -> FinishedRun:
    summary = dict(report.summary)
    method = summary.get("method")
    _require(isinstance(method, str) and bool(_NAME.fullmatch(method)), "it names no method")
    rows = summary.get("zero_shot")
    found = _accuracies(pd.DataFrame(rows)) if isinstance(rows, list) and rows else None
    if summary.get("drift"):
        summary["drift"] = _drift(summary["drift"])
    kind: Kind = "slim" if "ratio" in summary else "prune"
    layers = report.layers
    if "tuned" in summary:
        summary["tuned"] = _tuned(summary["tuned"])
        summary["tuned_before"] = [_tuned(one) for one in summary.get("tuned_before", [])]
        after = rose.RunReport(layers, summary).without_errors()
        layers, summary = after.layers, after.summary
        layers = layers.assign(change=layers["layer"].map(summary["tuned"]["change"]))
    run = FinishedRun("", kind, _layers(layers), summary, found, place, report)
    name = (
        f"Slim by {method}, {run.asked}" if kind == SLIM else Case(run.method, run.asked, run.target or "dense").label
    )
    return replace(run, name=name + tuned_suffix(summary))


def tuned_suffix(summary: dict[str, Any]) -> str:
    """ ", tuned 3 min", as names of copies end: what was asked for, or what was done where that is less; "" without
    tuning."""
    if "tuned" not in summary:
        return ""
    known = summary["tuned"]
    asked = 60 * (known.get("minutes") or 0)
    if known["steps"] < known["steps_planned"] or known["seconds"] < ENOUGH * asked:
        return f", tuned {words.duration(known['seconds'])}"
    if asked:
        return f", tuned {words.duration(asked)}"
    return f", tuned {words.whole(known['steps'])} steps"


def seconds_of(summary: dict[str, Any]) -> float:
    """What it took to make a pruned copy: pruning, and tuning where that followed; 0 where neither is known."""
    tunings = [*summary.get("tuned_before", []), summary.get("tuned", {})]
    return sum(float(one.get("seconds", 0.0)) for one in (summary, *tunings))


def _losses(known: Any) -> tuple[float, ...]:
    if not isinstance(known, list) or not all(type(one) is float and isfinite(one) for one in known):
        return ()
    return tuple(known)


def _tuned(known: dict[str, Any]) -> dict[str, Any]:
    """What a report says of tuning, checked."""
    counts = {
        name: int(known[name])
        for name in ("steps", "steps_planned", "kept_step", "zeros", "weights", "samples", "length")
    }
    numbers = {name: float(known[name]) for name in ("seconds", "rate")}
    given = {name: None if known.get(name) is None else float(known[name]) for name in ("minutes", "held_out_dense")}
    change = {str(layer): float(moved) for layer, moved in known["change"].items()}
    numbers["perplexity_before"] = _number(known.get("perplexity_before"))
    _require(isfinite(numbers["seconds"] + numbers["rate"]), "a number of its tuning is not finite")
    _require(min(counts.values()) >= 0 and isfinite(given["minutes"] or 0.0), "a count of its tuning is negative")
    curve = [{name: _number(row[name]) for name in ("step", "seconds", "loss", "held_out")} for row in known["curve"]]
    losses = {"losses_before": _losses(known.get("losses_before"))}
    return {**known, **counts, **numbers, **given, **losses, "change": change, "curve": curve}


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _runs_of_analysis(report: rose.RunReport, place: str) -> list[FinishedRun]:
    _require("method" in report.layers and len(report.layers) > 0, "it has no layers")
    of_all = ("methods", "layers", "mean_errors", "paper")
    paper = read_paper_figures(report.summary["paper"]) if report.summary.get("paper") else None
    _require(paper is None or bool(_NAME.fullmatch(paper.layer)), "a layer has no such name")
    shared = {name: value for name, value in report.summary.items() if name not in of_all}
    runs = []
    for method, rows in report.layers.groupby("method", sort=False):
        _require(bool(_NAME.fullmatch(str(method))), "a method has no such name")
        run = FinishedRun("", "study", _layers(rows), {**shared, "method": str(method)}, place=place, paper=paper)
        totals = {  # as in the summary of a pruned model
            "layers": len(run.layers),
            "columnar_layers": int(run.layers["is_columnar"].sum()) if "is_columnar" in run.layers else None,
            "mean_relative_error": mean_or_none(run.pruned["relative_error"]),
            "mean_held_out_error": mean_or_none(run.pruned["held_out_error"]),
        }
        name = words.sentence(f"{label_of(run.method)} at {run.asked} (study)")
        runs.append(replace(run, name=name, summary=run.summary | totals))
    return runs


def runs_of_study(study: Study, threshold: float, layer: str | None = None) -> list[FinishedRun]:
    """A run for each method; with the paper's figures of this layer, where its inputs are there and it is small."""
    setup, overview = study.setup, study.overview(threshold)
    if overview.empty:
        return []
    keys = ["layer", "rows", "columns", "damping", "dead_columns", "tokens", "is_damping_raised"]
    before = study.records().drop_duplicates("layer")[["layer", "zeros_before"]]
    records = tables.error_records(overview).merge(overview[keys], on="layer").merge(before, on="layer")
    shared = {
        "remarks": study.calibration.cautions,
        **setup.origin,
        **setup.drawn,
        **({} if setup.layer_patterns is None else {"chosen_layers": setup.layers.strip()}),
        "sparsity": setup.sparsity,
        "block_size": setup.block_size,
        "damping": setup.damping,
        "threshold": threshold,
        "command": analyze_command(setup, list(dict.fromkeys(records["method"])), threshold),
    }
    if study.is_example and study.kept is not None:
        shared["made_with"] = study.kept.made_with
    if layer is not None and study.has(layer) and study.statistics(layer).columns <= WIDEST:
        weight, statistics = study.weight(layer), study.statistics(layer)
        settings = make_settings(**study.layer_options())
        shared["paper"] = study.remember(
            ("paper", layer), lambda: asdict(paper_figures(layer, weight, statistics, settings))
        )
    runs = _runs_of_analysis(rose.RunReport(records, shared), SERVER)
    return [replace(run, origin=(setup, run.method)) for run in runs]


def read_runs(path: str, skip: Callable[[rose.RoseError], Any] | None = None) -> list[FinishedRun]:
    """Reads a report.json, the one in a folder, or those in the folders of a folder; RoseError names a bad file.

    Of several, each that cannot be read goes to `skip`, where that is given, and the others are read.
    """
    place = expand(path.strip())
    try:
        files = [place] if place.is_file() else [place / REPORT] if (place / REPORT).is_file() else []
        files = files or sorted(place.glob(f"*/{REPORT}"))
    except (OSError, ValueError) as problem:
        raise rose.RoseError(f"{path[:200]} cannot be read ({problem}); check the path.") from problem
    if not files:
        raise rose.RoseError(
            f"There is no {REPORT} in {place}; give a folder that `rose prune`, `slim`, `tune` or `analyze` wrote."
        )
    if len(files) > MOST_RUNS:
        raise rose.RoseError(f"{place} holds {len(files)} runs; give a folder of at most {MOST_RUNS}, or a single one.")
    runs: list[FinishedRun] = []
    for file in files:
        try:
            runs += read_report(file)
        except rose.RoseError as problem:
            if skip is None or len(files) == 1:
                raise
            skip(problem)
    return runs


def read_report(file: Path) -> list[FinishedRun]:
    """The runs of one report, see `runs_of`; RoseError where it is none."""
    beside = file.with_name(ZERO_SHOT_FILE)
    check_small(file)
    try:
        *runs, last = runs_of(rose.RunReport.from_json(file.read_text(encoding="utf-8"), str(file)), str(file.parent))
        if beside.is_file():
            last = replace(last, zero_shot=_accuracies(pd.read_csv(beside)))
        runs.append(last)
        _require(all(isinstance(one, str) for run in runs for one in run.remarks), "its remarks are no sentences")
        return runs
    except (OSError, UnicodeDecodeError, RecursionError) as problem:
        raise rose.RoseError(f"{file} cannot be read ({problem}); check the path.") from problem
    except rose.RoseError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as problem:
        raise rose.RoseError(f"{file} is not a report written by rose ({problem!s:.100}); choose another.") from problem


def _require(holds: bool, what: str) -> None:
    """Raises ValueError for what `rose` does not write."""
    if not holds:
        raise ValueError(what)


def _layers(table: pd.DataFrame) -> pd.DataFrame:
    names = ["layer", "block_index", "projection", *NUMBERS]
    if table.empty:
        return pd.DataFrame(columns=names).astype(dict.fromkeys(NUMBERS, float))
    _require("layer" in table and "block_index" in table, "its rows name no layer and no decoder block")
    table = table.dropna(axis=1, how="all")  # of two stages, each has columns of its own
    layers = table["layer"].tolist()
    _require(all(isinstance(name, str) and _NAME.fullmatch(name) for name in layers), "a layer has no such name")
    _require(len(set(layers)) == len(layers), "a layer is there twice")
    blocks = pd.to_numeric(table["block_index"])
    _require(bool(blocks.isin(range(MOST_BLOCKS)).all()), f"a decoder block is no whole number below {MOST_BLOCKS}")
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
        result[name] = _numbers(table, name)
    if "kept_parameters" in table:  # of a slimmed model
        result["sparsity"] = 1 - _numbers(table, "kept_parameters") / _numbers(table, "parameters")
    if "target" in table and table["target"].isin(TARGETS).all():
        result["target"] = table["target"].to_numpy()
    for name in FLAGS:
        if name in table:
            result[name] = (table[name] == True).to_numpy()  # noqa: E712  None is no bool
    result["cautions"] = caution_column(result)  # before what no figure can draw goes
    return result.replace([float("inf"), float("-inf")], float("nan"))


def _numbers(table: pd.DataFrame, name: str) -> np.ndarray:
    """A column as floats, NaN where there is no number."""
    if name not in table:
        return np.full(len(table), np.nan)
    return pd.to_numeric(table[name], errors="coerce").to_numpy(float)


def _drift(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drift by decoder block; none where hidden states overflowed, as no figure can draw that."""
    parts = ("drift", "passed_on", "arisen")
    found = [
        {"block_index": int(one["block_index"]), **{part: _number(one[part]) for part in parts}} for one in entries
    ]
    _require(all(0 <= one["block_index"] < MOST_BLOCKS for one in found), "its drift is not that of decoder blocks")
    return found if all(isfinite(one[part]) for one in found for part in parts) else []


def _accuracies(table: pd.DataFrame) -> pd.DataFrame:
    _require({"task", "questions", "accuracy"} <= set(table.columns), "its zero-shot table names no task or accuracy")
    result = pd.DataFrame({"task": [short_text(task) for task in table["task"]]})
    for name in ("questions", "accuracy", "accuracy_error", "accuracy_norm"):
        result[name] = _numbers(table, name)
    _require(bool(result["accuracy"].dropna().between(0, 1).all()), "an accuracy is not from 0 to 1")
    return result.drop_duplicates("task", ignore_index=True)


def short_text(value: Any, most: int = 40) -> str:
    """A setting as a short text without anything that a page could take for a command, nor the (R) of a processor."""
    return re.sub(r"[^\w .,:%×+=-]", "·", re.sub(r"\((R|TM)\)", "", str(value)))[:most]


def name_apart(runs: Sequence[FinishedRun]) -> dict[str, FinishedRun]:
    """The runs by name, which gets what tells them apart: folder, model, layers, calibration, at last a number.

    Models and numbers of layers are named wherever they are not the same in all runs.
    """
    models, sizes = ({getattr(run, name) for run in runs} - {""} for name in ("model", "size"))
    folders = _folders(runs)
    named: dict[str, FinishedRun] = {}
    for run in runs:
        more = [folders[run.place]]
        more += [run.model] if len(models) > 1 else []
        more += [run.size] if len(sizes) > 1 else []
        alike = {one.calibration for one in runs if one.name == run.name}
        more += [run.calibration] if len(alike) > 1 else []
        name = run.name
        if said := ", ".join(filter(None, more)):  # "ROSE at 0.7 (folder)", or "ROSE at 0.7 (study, folder)"
            name = f"{name[:-1]}, {said})" if name.endswith(")") else f"{name} ({said})"
        name = words.unused(name, named)
        named[name] = replace(run, name=name)
    return named


def _folders(runs: Sequence[FinishedRun]) -> dict[str, str]:
    """What to call the folder of each place: its last part, or as many as tell it from the others; "" of a server."""
    paths = {run.place: Path(run.place).resolve().parts for run in runs if run.place != SERVER}
    names = {SERVER: ""}
    for place, parts in paths.items():
        others = set(paths.values()) - {parts}
        depth = next(at for at in range(1, len(parts) + 1) if all(one[-at:] != parts[-at:] for one in others))
        names[place] = short_text("/".join(parts[-depth:]))
    return names


def labelled(runs: Sequence[FinishedRun]) -> dict[str, FinishedRun]:
    """The runs by label, to choose from; the same label gets what tells runs apart: calibration, folder, a number."""
    found: dict[str, FinishedRun] = {}
    folders = _folders(runs)
    for run in runs:
        alike = [one for one in runs if one.label == run.label]
        folder = folders[run.place]
        parts = [run.label]
        parts += [run.calibration] if len({one.calibration for one in alike}) > 1 else []
        parts += [folder] if folder and len({one.place for one in alike}) > 1 else []
        found[words.unused(" · ".join(parts), found)] = run
    return found


def settings_of(run: FinishedRun) -> dict[str, str]:
    known = {
        name: _setting(value)
        for name, value in run.summary.items()
        if name not in TOTALS and not isinstance(value, list | tuple)
    }
    return known | ({"tuned": says_tuned(run.summary["tuned"])} if "tuned" in run.summary else {})


def says_tuned(known: dict[str, Any]) -> str:
    """ "3 min, 45 steps, 215 × 512 tokens, loss kl, rate 0.001, seed 0"."""
    steps = words.count(known["steps"], "step")
    steps = steps if known["steps"] >= known["steps_planned"] else f"{steps} of {known['steps_planned']}"
    how = f"loss {short_text(known.get('loss'))}, rate {known['rate']:g}, seed {short_text(known.get('seed'))}"
    return f"{words.duration(known['seconds'])}, {steps}, {known['samples']} × {known['length']} tokens, {how}"


TOTALS = (
    *("layers", "columnar_layers", "weights", "removed_fraction", "mean_relative_error", "mean_held_out_error"),
    *("mean_target_error", "mean_held_out_target_error", "mean_pruning_error", "mean_rounding_error"),
    *("plain_bytes", "packed_bytes"),
    *("layers_with_raised_damping", "seconds", "perplexity_before", "perplexity_after", "drift", "zero_shot"),
    *("block_parameters", "kept_block_parameters", "parameters", "kept_parameters", "made_with", "command", "device"),
)


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value)[:300] if value else "–"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)[:300]
