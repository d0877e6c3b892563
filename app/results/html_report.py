"""Finished runs as one HTML file to send: findings, interactive figures, numbers, settings. No Streamlit here.

How the file is written is in `html_page`. A run may be somebody else's: what it says is text and nothing more.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path

import pandas as pd

import rose
from app import words
from app.figures import drift as depth_figures
from app.figures import maps, methods
from app.figures import maps as run_figures
from app.figures.methods import tuning_curve
from app.figures.orders import paper_drawings
from app.figures.style import Drawing
from app.results import pairs
from app.results.drift import drift_finding, drift_table, knows_origin
from app.results.html_page import ReportPage, to_html
from app.results.naming import name_apart
from app.runs.request import HELD_OUT
from rose import RunReport, verdicts
from rose.environment import versions
from rose.layer.pattern import THRESHOLD
from rose.output import check_file, write_file
from rose.report import read_runs


def write_report(folders: Sequence[str], output: str | Path) -> list[str]:
    """Writes the report of one folder, or of two side by side; returns its findings."""
    output = Path(output)
    if output.suffix not in (".html", ".htm"):
        raise rose.RoseError(f"The report is an HTML file: name one that ends in .html, not {output}.")
    check_file(output)
    runs = [run for folder in folders for run in read_runs(folder)]
    report = report_of(runs)
    write_file(output, to_html(report))
    return report.findings


def report_of(runs: Sequence[RunReport]) -> ReportPage:
    """Of one run, of a study's methods, or of several runs; two are put side by side.

    Raises RoseError for none, and for two whose layers have different shapes.
    """
    if not runs:
        raise rose.RoseError("No run to report yet; prune a model or measure its layers first.")
    if len({run.name for run in runs}) < len(runs):
        runs = list(name_apart(runs).values())
    measured = pairs.results_of(runs)
    compared = [f"{verdicts.says_ranking(verdicts.rank(measured))}."] if len(measured) > 1 else []
    drawings: list[Drawing] = []
    tables = {"Numbers": pairs.in_words(pairs.numbers(runs))}
    if len(measured) > 1:
        tables["Perplexity of the row, times the column's"] = pairs.verdict_matrix(measured)
    if len(runs) == 2 and not pairs.goes_on(runs[1], runs[0]):
        both = pairs.pair(*runs)
        if both.problem and not both.elsewhere:
            raise rose.RoseError(both.problem)
        if both.elsewhere:
            compared = [both.elsewhere]  # in place of a ranking
        elif measure := both.told_apart_by:
            names, rows, label = (runs[0].name, runs[1].name), both.rows(measure), pairs.MEASURES[measure]
            compared.append(verdicts.says_layers(rows, names, label) + ".")
            drawings.append(run_figures.run_difference(rows, names, label, as_share=True))
            drawings.append(run_figures.run_maps(rows, names, label))
        tables["Settings that differ"] = pairs.settings(runs, only_different=True)
    elif len(runs) > 2:
        compared += _against_first(runs)
    run_sentences = [sentence for run in runs for sentence in run_findings(run)]
    findings = [*compared, *run_sentences, *pairs.cautions_of(runs)]
    drawings += _figures(runs, errors=not drawings)
    for run in runs:
        if run.zero_shot is not None:
            tables[f"Zero-shot accuracy of {run.name}"] = run.zero_shot
    tables["Settings"] = pairs.settings(runs)
    layers = pd.concat([run.by_layer.dropna(axis=1, how="all").assign(run=run.name) for run in runs], ignore_index=True)
    columns = ["run", *(name for name in layers.columns if name != "run")]
    made_by: dict[str, list[str]] = {}  # an analysis makes several runs
    for run in runs:
        made_by.setdefault(str(run.as_recipe() or ""), []).append(run.name)
    return ReportPage(
        title=_title(runs),
        subtitle=_subtitle(runs),
        findings=list(dict.fromkeys(findings)),
        drawings=drawings,
        tables={
            name: table.rename(columns={"setting": "", "number": ""}) for name, table in tables.items() if len(table)
        },
        layers=layers[columns],
        recipes={", ".join(names): recipe for recipe, names in made_by.items()},
        versions={run.name: versions_of(run) for run in runs},
    )


def _against_first(runs: Sequence[RunReport]) -> list[str]:
    findings = []
    for run in runs[1:]:
        both = pairs.pair(runs[0], run)
        if both.elsewhere:
            findings.append(both.elsewhere)
        elif not both.problem and (measure := both.told_apart_by):
            names = (runs[0].name, run.name)
            finding = verdicts.says_layers(both.rows(measure), names, pairs.MEASURES[measure])
            findings.append(f"Against {runs[0].name}: {finding}.")
    return findings


def _title(runs: Sequence[RunReport]) -> str:
    if len(runs) > 2 and {run.kind for run in runs} == {"study"}:
        return f"{words.sentence(words.count(len(runs), 'method'))} on one model"
    if len(runs) > 2:
        return f"{words.sentence(words.count(len(runs), 'run'))} compared"
    return runs[1].name if pairs.goes_on(runs[-1], runs[0]) else " beside ".join(run.name for run in runs)


def _subtitle(runs: Sequence[RunReport]) -> str:
    def said(run: RunReport) -> str:
        summary = run.summary
        if "step_weights" in summary:  # of a diffusion model
            drawn = f"{summary.get('samples') or '?'} pictures × {summary.get('steps', '?')} steps"
            return f"{summary.get('model', 'a model')}, calibrated on {drawn}"
        text = f"{summary.get('model', 'a model')}, calibrated on "
        text += f"{summary.get('samples', '?')} × {summary.get('length', '?')}"
        return f"{text} tokens" + words.of(words.text_name(summary.get("calibration") or ""))

    return "; ".join(dict.fromkeys(said(run) for run in runs))


def run_findings(run: RunReport) -> list[str]:
    findings = [*filter(None, [pairs.says_lost(run)])]
    before, after = run.number("perplexity_before"), run.number("perplexity_after")
    if before and after and (verdict := pairs.against_dense(run)) is not None:
        text = run.summary.get("evaluated_on")
        where = " on held-out windows" if text == HELD_OUT else f" on {words.text_name(text)}" if text else ""
        move = verdicts.says_move(before, after, "the dense model's", verdict)
        findings.append(f"{run.name} takes perplexity{where} {move}.")
        findings += filter(None, [verdicts.says_odd_windows(run.losses("before"), run.losses("after"))])
    findings += _tuning_findings(run) + _error_findings(run)
    if drift := run.drift:
        steps = [entry["drift"] - (drift[at - 1]["drift"] if at else 0) for at, entry in enumerate(drift)]
        steepest = drift[max(range(len(steps)), key=steps.__getitem__)]["block_index"]
        findings.append(
            f"After the last decoder block the drift of {run.name} from the {run.start} model is "
            f"{words.number(drift[-1]['drift'])}; it rises most in decoder block {steepest}."
        )
    answered = pd.Series() if run.zero_shot is None else run.zero_shot["accuracy"].dropna()
    if len(answered):
        tasks = words.count(len(answered), "zero-shot task")
        findings.append(f"{run.name} answers {words.percent(answered.mean())} correctly, the mean over {tasks}.")
    return findings


def _tuning_findings(run: RunReport) -> list[str]:
    tuned, after = run.tuned, pairs.result_of(run)
    if not tuned:
        return []
    finding = f"{run.name}: tuning for {words.duration(tuned['seconds'])} keeps {words.whole(tuned['zeros'])} of "
    finding += f"{words.whole(tuned['weights'])} weights zero"
    if after is not None and isfinite(tuned["perplexity_before"]):
        before = replace(after, name="before", value=tuned["perplexity_before"], losses=tuned["losses_before"])
        move = verdicts.says_move(before.value, after.value, "that before", verdicts.compare(before, after))
        finding += f", and takes perplexity {move}"
    return [f"{finding}."]


def _error_findings(run: RunReport) -> list[str]:
    measure = best_measure(run)
    if measure is None:
        return []
    rows = run.pruned.dropna(subset=[measure])
    worst = rows.loc[rows[measure].idxmax()]
    label = pairs.MEASURES[measure]
    finding = (
        f"The {label} of {run.name} is {words.number(float(rows[measure].mean()))} on average over "
        f"{words.count(len(rows), 'layer')}, highest in {words.short_layer(worst['layer'])} "
        f"({words.number(float(worst[measure]))})."
    )
    apart = run.number("mean_pruning_error"), run.number("mean_rounding_error")
    if apart[0] is not None and apart[1] is not None:
        finding += (
            f" On the calibration tokens pruning adds {words.number(apart[0])} in the mean, and rounding to "
            f"{run.summary.get('bits')} bits {words.number(apart[1])}: together {words.number(apart[0] + apart[1])}."
        )
    columnar = run.by_layer["is_columnar"].sum() if "is_columnar" in run.by_layer else None
    if columnar is None or run.kind == "slim":
        return [finding]
    threshold = run.number("threshold")
    above = f" (relative range above {threshold:g})" if threshold is not None else ""
    count = words.word(int(columnar)) if columnar else "none"
    some = f"{count} of {words.count(len(run.by_layer), 'layer')}"
    if run.kind == "study":  # the same for all of its methods
        return [finding, f"{words.sentence(some)} {'is' if columnar == 1 else 'are'} columnar{above}."]
    return [finding, f"{run.name} found {some} columnar{above}."]


def best_measure(run: RunReport) -> str | None:
    for name in ("held_out_error", "relative_error"):
        if name in run.by_layer and run.by_layer[name].notna().any():
            return name
    return None


def _figures(runs: Sequence[RunReport], *, errors: bool) -> list[Drawing]:
    drawings: list[Drawing] = []
    measured = pairs.results_of(runs)
    if len(measured) > 1 and not any(measured[0].setup.differs(result.setup) for result in measured):
        drawings.append(methods.perplexity_bars(measured, dense=measured[0].setup.dense))
    tables = [run.zero_shot.assign(run=run.name, method=run.method) for run in runs if run.zero_shot is not None]
    answered = pd.concat(tables, ignore_index=True).dropna(subset="accuracy") if tables else ()
    if len(answered):
        drawings.append(methods.accuracy_bars(answered))
    ranged = next((run for run in runs if run.by_layer["relative_range"].notna().any()), None)
    for run in runs:
        if run.by_layer["change"].notna().any():
            tuned = run.tuned
            curve = pd.DataFrame(tuned["curve"])
            if tuned["held_out_dense"] is not None:
                drawings.append(tuning_curve(curve, tuned["steps"], dense=tuned["held_out_dense"]))
            drawings.append(maps.model_map(run.by_layer, "change"))
        if errors and (measure := best_measure(run)) is not None:
            drawings.append(methods.layer_map(run.by_layer.assign(method=run.method), run.method, column=measure))
    if ranged is not None:
        threshold = ranged.number("threshold")
        drawings.append(maps.model_map(ranged.by_layer, threshold=THRESHOLD if threshold is None else threshold))
    if paper := next((run.paper for run in runs if run.paper is not None), None):
        drawings += paper_drawings(paper)
    if drifting := [run for run in runs if run.drift]:
        table = drift_table(drifting)
        drawings.append(depth_figures.drift_curves(table, finding=drift_finding(drifting)))
        drawings += [
            depth_figures.drift_shares(table[table["run"] == run.name]) for run in drifting if knows_origin(run)
        ]
    return drawings


def versions_of(run: RunReport) -> str:
    """Of the programs that made it, as its report says; a run of this server was made by those here."""
    noted = run.summary.get("made_with")
    if noted is None and not run.place:
        noted = versions()
    if isinstance(noted, str):
        return noted[:200]
    if not isinstance(noted, dict):
        return "not recorded"
    return ", ".join(f"{str(name)[:40]} {str(version)[:40]}" for name, version in list(noted.items())[:20])
