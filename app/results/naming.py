"""What records are called where several stand beside each other, their settings as texts, and those of a study. No
Streamlit here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import rose
from app import words
from app.study import tables
from app.study.study import Study
from app.words import short_text
from rose.environment import versions
from rose.layer.methods import make_settings
from rose.layer.paper import WIDEST, paper_figures
from rose.layer.registry import METHODS, label_of

TOTALS = (
    *("layers", "columnar_layers", "weights", "removed_fraction", "mean_relative_error", "mean_held_out_error"),
    *("mean_target_error", "mean_held_out_target_error", "mean_pruning_error", "mean_rounding_error"),
    *("plain_bytes", "packed_bytes", "tokens_per_second", "continuation", "after", "paper"),
    *("layers_with_raised_damping", "seconds", "perplexity_before", "perplexity_after", "drift", "zero_shot"),
    *("block_parameters", "kept_block_parameters", "parameters", "kept_parameters", "made_with", "device"),
)
ASKED_AS = {"held_out_samples": "held_out", "evaluated_on": "evaluate"}  # what was done -> what was asked


def runs_of_study(study: Study, threshold: float, layer: str | None = None) -> list[rose.RunReport]:
    """A run for each method; with the paper's figures of this layer, where its inputs are there and it is small."""
    setup, overview = study.setup, study.overview(threshold)
    if overview.empty:
        return []
    keys = ["layer", "rows", "columns", "damping", "dead_columns", "tokens", "is_damping_raised"]
    before = study.records().drop_duplicates("layer")[["layer", "zeros_before"]]
    records = tables.error_records(overview).merge(overview[keys], on="layer").merge(before, on="layer")
    methods = list(dict.fromkeys(records["method"]))
    asked = setup.recipe([name for name in methods if name in METHODS], threshold)
    recipe = {"run": asked.run, **asked.to_dict(), "methods": methods}
    recipe = {name: value for name, value in recipe.items() if value is not None}
    results: dict[str, Any] = {
        "remarks": study.calibration.cautions,
        "held_out_samples": setup.held_out,
        "columnar_layers": int(overview["is_columnar"].sum()),
        "made_with": study.kept.made_with if study.is_example and study.kept is not None else versions(),
        **({} if setup.layer_patterns is None else {"chosen_layers": setup.layers.strip()}),
    }
    if layer is not None and study.has(layer) and study.statistics(layer).columns <= WIDEST:
        weight, statistics = study.weight(layer), study.statistics(layer)
        settings = make_settings(**study.layer_options())
        results["paper"] = study.remember(
            ("paper", layer), lambda: asdict(paper_figures(layer, weight, statistics, settings))
        )
    return rose.RunReport(records, results, recipe, origin=(setup,)).runs


def model_of(run: rose.RunReport) -> str:
    return short_text(Path(str(run.summary.get("model", ""))).name)


def size_of(run: rose.RunReport) -> str:
    return "" if run.kind == "slim" else words.count(len(run.by_layer), "layer")


def calibration_of(run: rose.RunReport) -> str:
    seed = f", seed {run.summary['seed']}" if "seed" in run.summary else ""
    return short_text(f"{run.summary.get('samples')} × {run.summary.get('length')} tokens{seed}")


def label(run: rose.RunReport) -> str:
    """Model, method, sparsity and layers; "smollm2-135m · ROSE · 0.7 · 210 layers"."""
    how = f"Slim by {run.method}" if run.kind == "slim" else words.sentence(label_of(run.method))
    how = run.name if run.kind == "check" else how
    if run.kind == "prune" and run.target == "layer":
        how += ", target layer"
    how += ", tuned" if run.is_tuned else ""
    how += " (study)" if run.kind == "study" else " after slimming" if run.start == "slimmed" else ""
    return " · ".join(filter(None, (model_of(run), how, run.asked, size_of(run))))


def name_apart(runs: Sequence[rose.RunReport]) -> dict[str, rose.RunReport]:
    """The runs by name, which gets what tells them apart: folder, model, layers, calibration, at last a number.

    Models and numbers of layers are named wherever they are not the same in all runs.
    """
    models, sizes = ({each(run) for run in runs} - {""} for each in (model_of, size_of))
    folders = _folders(runs)
    named: dict[str, rose.RunReport] = {}
    for run in runs:
        more = [folders[run.place]]
        more += [model_of(run)] if len(models) > 1 else []
        more += [size_of(run)] if len(sizes) > 1 else []
        alike = {calibration_of(other) for other in runs if other.name == run.name}
        more += [calibration_of(run)] if len(alike) > 1 else []
        name = run.name
        if marks := ", ".join(filter(None, more)):  # "ROSE at 0.7 (folder)", or "ROSE at 0.7 (study, folder)"
            name = f"{name[:-1]}, {marks})" if name.endswith(")") else f"{name} ({marks})"
        name = words.unused(name, named)
        named[name] = replace(run, called=name, origin=run.identity)
    return named


def _folders(runs: Sequence[rose.RunReport]) -> dict[str, str]:
    """What to call the folder of each place: its last part, or as many as tell it from the others; "" of a server."""
    paths = {run.place: Path(run.place).resolve().parts for run in runs if run.place}
    names = {"": ""}
    for place, parts in paths.items():
        others = set(paths.values()) - {parts}
        depth = next(at for at in range(1, len(parts) + 1) if all(other[-at:] != parts[-at:] for other in others))
        names[place] = short_text("/".join(parts[-depth:]))
    return names


def labelled(runs: Sequence[rose.RunReport]) -> dict[str, rose.RunReport]:
    """The runs by label, to choose from; the same label gets what tells runs apart: calibration, folder, a number."""
    by_label: dict[str, rose.RunReport] = {}
    folders = _folders(runs)
    labels = [label(run) for run in runs]
    for run, own in zip(runs, labels, strict=True):
        alike = [other for other, its in zip(runs, labels, strict=True) if its == own]
        parts = [own]
        parts += [calibration_of(run)] if len({calibration_of(other) for other in alike}) > 1 else []
        parts += [folders[run.place]] if folders[run.place] and len({other.place for other in alike}) > 1 else []
        by_label[words.unused(" · ".join(parts), by_label)] = run
    return by_label


def settings_of(run: rose.RunReport) -> dict[str, str]:
    told = {asked for name, asked in ASKED_AS.items() if name in run.summary}
    settings = {
        name: _setting(value)
        for name, value in run.summary.items()
        if name not in (*TOTALS, *told) and not isinstance(value, list | tuple)
    }
    return settings | ({"tuned": says_tuned(run.tuned)} if run.is_tuned else {})


def says_tuned(tuned: dict[str, Any]) -> str:
    """ "3 min, 45 steps, 215 × 512 tokens, loss kl, rate 0.001, seed 0"."""
    steps = words.count(tuned["steps"], "step")
    steps = steps if tuned["steps"] >= tuned["steps_planned"] else f"{steps} of {tuned['steps_planned']}"
    how = f"loss {short_text(tuned.get('loss'))}, rate {tuned['rate']:g}, seed {short_text(tuned.get('seed'))}"
    return f"{words.duration(tuned['seconds'])}, {steps}, {tuned['samples']} × {tuned['length']} tokens, {how}"


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value)[:300] if value else "–"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)[:300]
