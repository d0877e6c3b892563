"""Names of records that stand beside each other, and the records of a study; no Streamlit here."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import rose
from app import words
from app.study import tables
from app.study.study import Study
from app.words import short_text
from rose.environment import versions
from rose.layer.columnar import WIDEST, paper_figures
from rose.layer.registry import METHODS, label_of
from rose.layer.settings import SharedSettings


def runs_of_study(study: Study, threshold: float, layer: str | None = None) -> list[rose.RunReport]:
    """A record for each method; with the paper's figures of a small layer whose inputs are there."""
    setup, overview = study.setup, study.overview(threshold)
    if overview.empty:
        return []
    keys = ["layer", "rows", "columns", "damping", "dead_columns", "tokens", "is_damping_raised"]
    before = study.records().drop_duplicates("layer")[["layer", "zeros_before"]]
    records = tables.error_records(overview).merge(overview[keys], on="layer").merge(before, on="layer")
    methods = list(dict.fromkeys(records["method"]))
    spec = setup.recipe([name for name in methods if name in METHODS], threshold)
    recipe = {"run": spec.run, **spec.to_dict(), "methods": methods}
    recipe = {name: value for name, value in recipe.items() if value is not None}
    results: dict[str, Any] = {
        "remarks": study.calibration.cautions,
        "held_out_samples": setup.held_out,
        "columnar_layers": int(overview["is_columnar"].sum()),
        "made_with": study.kept.made_with if study.is_example and study.kept is not None else versions(),
        **({} if setup.layers is None else {"chosen_layers": setup.layers_text}),
    }
    if layer is not None and study.has(layer) and (statistics := study.statistics(layer)).columns <= WIDEST:
        weight, settings = study.weight(layer), SharedSettings.of(**study.layer_options())
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
    """Model, method, sparsity and layers: "smollm2-135m · ROSE · 0.7 · 210 layers"."""
    how = f"Slim by {run.method}" if run.kind == "slim" else words.sentence(label_of(run.method))
    how = run.name if run.kind == "check" else how
    if run.kind == "prune" and run.target == "layer":
        how += ", target layer"
    how += ", tuned" if run.is_tuned else ""
    how += " (study)" if run.kind == "study" else " after slimming" if run.start == "slimmed" else ""
    return " · ".join(filter(None, (model_of(run), how, run.asked, size_of(run))))


def name_apart(runs: Sequence[rose.RunReport]) -> dict[str, rose.RunReport]:
    """The runs by distinct names; a name gets folder, model, layers or calibration where runs differ in them."""
    folders, run_by_name = _folders(runs), dict[str, rose.RunReport]()
    for run in runs:
        alike = [other for other in runs if other.name == run.name]
        marks = [(of, [other for other in runs if of(other)]) for of in (model_of, size_of)] + [(calibration_of, alike)]
        text = ", ".join(filter(None, [folders[run.place], *(_mark(of, run, compared) for of, compared in marks)]))
        name = run.name
        if text:  # "ROSE at 0.7 (folder)", or "ROSE at 0.7 (study, folder)"
            name = f"{name[:-1]}, {text})" if name.endswith(")") else f"{name} ({text})"
        name = words.unused(name, run_by_name)
        # The run itself where it keeps its name: its tables are made once.
        run_by_name[name] = run if name == run.name else replace(run, called=name, origin=run.identity)
    return run_by_name


def labelled(runs: Sequence[rose.RunReport]) -> dict[str, rose.RunReport]:
    """The runs by label, to choose from; equal labels get calibration, folder or a number."""
    folders, by_label = _folders(runs), dict[str, rose.RunReport]()
    labels = [label(run) for run in runs]
    for run, text in zip(runs, labels, strict=True):
        alike = [other for other, other_label in zip(runs, labels, strict=True) if other_label == text]
        marks = _mark(calibration_of, run, alike), _mark(lambda other: folders[other.place], run, alike)
        by_label[words.unused(" · ".join(filter(None, (text, *marks))), by_label)] = run
    return by_label


def _mark(of: Callable[[rose.RunReport], str], run: rose.RunReport, compared: Sequence[rose.RunReport]) -> str:
    """What tells a run from the others; "" where they do not differ in it."""
    return of(run) if len({of(other) for other in compared}) > 1 else ""


def _folders(runs: Sequence[rose.RunReport]) -> dict[str, str]:
    """A name for the folder of each place: the last parts that tell it from the other folders."""
    paths = {run.place: Path(run.place).resolve().parts for run in runs if run.place}
    names = {"": ""}
    for place, parts in paths.items():
        rest = set(paths.values()) - {parts}
        depth = next(at for at in range(1, len(parts) + 1) if all(other[-at:] != parts[-at:] for other in rest))
        names[place] = short_text("/".join(parts[-depth:]))
    return names
