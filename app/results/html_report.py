"""Finished runs, or the check of a checkpoint, as one HTML file to send. No Streamlit here.

`html_page.html.jinja` is the page, which is read without a network. Jinja escapes every text except the plots' JSON,
which `_plot` makes safe: a run may be somebody else's.
"""

import base64
import gzip
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from plotly.offline import get_plotlyjs

import rose
from app import words
from app.figures import drift, maps, methods, style, trust
from app.figures.orders import paper_drawings
from app.figures.palette import Theme
from app.figures.style import Drawing
from app.results import pairs
from app.results.naming import name_apart
from app.runs.checked import CheckpointRun, differs, facts, name_of, record_of
from rose import RunReport, verdicts
from rose.environment import says_versions, versions
from rose.layer.pattern import THRESHOLD
from rose.model.check.findings import lines
from rose.model.check.result import CheckpointCheck, headline
from rose.model.defaults import HELD_OUT
from rose.output import check_file, write_file
from rose.recipe import Recipe
from rose.report import read_runs
from rose.rows import csv_text

LIMIT = 5 * 10**6  # bytes, so that it can be sent by mail
ROWS = 2000  # of layers that are shown, some 2 MB
BARS = 3  # layers of a check whose errors are drawn


@dataclass(frozen=True)
class ReportPage:
    """The content of the file."""

    title: str
    subtitle: str
    findings: list[str]
    drawings: list[Drawing]
    tables: dict[str, pd.DataFrame]  # by heading
    layers: pd.DataFrame  # folded
    recipes: dict[str, str]  # that make the runs again, by the runs' names
    versions: dict[str, str]  # of the programs that made them, by the run's name


def to_html(report: ReportPage) -> str:
    """The file; figures that do not fit into it are left out, the last first, and it says how many.

    Raises RoseError where it would be larger than 5 MB without any figure.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"cell": _cell, "href": _href, "plot": _plot}
    page = environment.from_string(Path(__file__).with_name("html_page.html.jinja").read_text(encoding="utf-8"))
    for count in range(len(report.drawings), -1, -1):
        text = page.render(
            report=report,
            drawings=report.drawings[:count],
            max_rows=ROWS,
            rows=words.count(len(report.layers), "row"),
            nonce=secrets.token_hex(16),
            plotly=_packed_plotly(),
            made_with=says_versions(),
        )
        if (size := len(text.encode())) <= LIMIT:
            return text
    raise rose.RoseError(f"The report would take {words.size(size)}, more than {words.size(LIMIT)}; report fewer runs.")


@cache
def _packed_plotly() -> str:
    return _packed(get_plotlyjs())


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _plot(drawing: Drawing) -> str:
    """Plotly's JSON without the title, which is the section's heading; no text in it can end the script around it."""
    return style.untitled(drawing.figure).update_layout(autosize=True).to_json().replace("<", "\\u003c")


def _href(table: pd.DataFrame, name: str) -> str:
    """The table as a CSV file inside a link, compressed where its name says so."""
    if name.endswith(".gz"):
        return f"data:application/gzip;base64,{_packed(csv_text(table))}"
    return f"data:text/csv;base64,{base64.b64encode(csv_text(table).encode()).decode()}"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e9 else words.number(value, 4)
    return "–" if value is None else str(value)


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
    """The content for one run, for a study's methods, or for several runs; two runs stand side by side.

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
        tables["Every pair, ratio of perplexities"] = pd.DataFrame(pairs.verdict_table(measured))
    is_pair = len(runs) == 2 and not pairs.goes_on(runs[1], runs[0])
    for run in runs[1:] if is_pair or len(runs) > 2 else ():
        both = pairs.pair(runs[0], run)
        if both.problem and is_pair:
            raise rose.RoseError(both.problem)
        if both.apart:
            compared = [*([] if is_pair else compared), both.apart]  # of two, in place of a ranking
        elif not both.problem and (measure := both.told_apart_by):
            names, rows, label = (runs[0].name, run.name), both.rows(measure), pairs.MEASURES[measure]
            before = "" if is_pair else f"Against {runs[0].name}: "
            compared.append(f"{before}{verdicts.says_layers(rows, names, label)}.")
            if is_pair:
                drawings.append(maps.run_difference(rows, names, label))
                drawings.append(maps.run_maps(rows, names, label))
    if is_pair:
        tables["Settings that differ"] = pairs.settings(runs, only_different=True)
    findings = [*compared, *(sentence for run in runs for sentence in run_findings(run)), *pairs.cautions_of(runs)]
    drawings += _figures(runs, errors=not drawings)
    tables |= {f"Zero-shot accuracy of {run.name}": run.zero_shot for run in runs if run.zero_shot is not None}
    tables["Settings"] = pairs.settings(runs)
    layers = pd.concat([run.by_layer.dropna(axis=1, how="all").assign(run=run.name) for run in runs], ignore_index=True)
    made_by: dict[str, list[str]] = {}  # an analysis makes several runs
    for run in runs:
        step = run.as_step()
        made_by.setdefault(str(Recipe(step)) if step else "", []).append(run.name)
    return ReportPage(
        title=_title(runs),
        subtitle="; ".join(dict.fromkeys(map(_calibration, runs))),
        findings=list(dict.fromkeys(findings)),
        drawings=drawings,
        tables={
            name: table.rename(columns={"setting": "", "number": ""}) for name, table in tables.items() if len(table)
        },
        layers=layers[["run", *layers.columns.drop("run")]],
        recipes={", ".join(names): recipe for recipe, names in made_by.items()},
        versions={run.name: _versions_of(run) for run in runs},
    )


def _title(runs: Sequence[RunReport]) -> str:
    if len(runs) > 2 and {run.kind for run in runs} == {"study"}:
        return f"{words.sentence(words.count(len(runs), 'method'))} on one model"
    if len(runs) > 2:
        return f"{words.sentence(words.count(len(runs), 'run'))} compared"
    return runs[1].name if pairs.goes_on(runs[-1], runs[0]) else " beside ".join(run.name for run in runs)


def _calibration(run: RunReport) -> str:
    """The model and its calibration text."""
    summary = run.summary
    if "step_weights" in summary:  # of a diffusion model
        drawn = f"{summary.get('samples') or '?'} pictures × {summary.get('steps', '?')} steps"
    else:
        drawn = f"{summary.get('samples', '?')} × {summary.get('length', '?')} tokens"
        drawn += words.of(words.text_name(summary.get("calibration") or ""))
    return f"{summary.get('model', 'a model')}, calibrated on {drawn}"


def run_findings(run: RunReport) -> list[str]:
    findings = [*filter(None, [pairs.says_lost(run)])]
    before, after = run.number("perplexity_before"), pairs.result_of(run)
    if before and after is not None:
        dense = replace(after, name="the dense model", value=before, losses=run.losses("before"))
        text = run.summary.get("evaluated_on")
        where = " on held-out windows" if text == HELD_OUT else f" on {words.text_name(text)}" if text else ""
        move = verdicts.says_move(before, after.value, "the dense model's", verdicts.compare(dense, after))
        findings.append(f"{run.name} takes perplexity{where} {move}.")
        findings += filter(None, [verdicts.says_odd_windows(run.losses("before"), run.losses("after"))])
    findings += _tuning_findings(run) + _error_findings(run)
    if steps := run.drift:
        rises = [entry["drift"] - (steps[at - 1]["drift"] if at else 0) for at, entry in enumerate(steps)]
        steepest = steps[max(range(len(rises)), key=rises.__getitem__)]["block_index"]
        findings.append(
            f"After the last decoder block the drift of {run.name} from the {run.start} model is "
            f"{words.number(steps[-1]['drift'])}; it rises most in decoder block {steepest}."
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
    part = pairs.rounding_part(run)
    if run.grid and part is not None:
        finding += (
            f" Of what pruning and rounding to {run.grid.brief} add on the calibration tokens, rounding adds "
            f"{words.percent(part)}."
        )
    columnar = run.by_layer["is_columnar"].sum() if "is_columnar" in run.by_layer else None
    if columnar is None or run.kind == "slim":
        return [finding]
    settings = {"threshold": "relative range above {:g}", "block_size": "blocks of {:g}"}
    parts = [text.format(value) for name, text in settings.items() if (value := run.number(name)) is not None]
    above = f" ({', '.join(parts)})" if parts else ""
    count = words.word(int(columnar)) if columnar else "none"
    some = f"{count} of {words.count(len(run.by_layer), 'layer')}"
    if run.kind == "study":  # the same for all of its methods
        return [finding, f"{words.sentence(some)} {'is' if columnar == 1 else 'are'} columnar{above}."]
    return [finding, f"{run.name} found {some} columnar{above}."]


def best_measure(run: RunReport) -> str | None:
    measured = (name for name in ("held_out_error", "relative_error") if name in run.by_layer)
    return next((name for name in measured if run.by_layer[name].notna().any()), None)


def _figures(runs: Sequence[RunReport], *, errors: bool) -> list[Drawing]:
    drawings: list[Drawing] = []
    measured = pairs.results_of(runs)
    if len(measured) > 1 and not any(measured[0].setup.differs(result.setup) for result in measured):
        drawings.append(methods.perplexity_bars(measured, dense=measured[0].setup.dense))
    if len(answered := pairs.accuracy_table(runs).dropna(subset="accuracy")):
        drawings.append(methods.accuracy_bars(answered))
    for run in runs:
        if run.by_layer["change"].notna().any():
            tuned = run.tuned
            if tuned["held_out_dense"] is not None:
                curve = pd.DataFrame(tuned["curve"])
                drawings.append(methods.tuning_curve(curve, tuned["steps"], dense=tuned["held_out_dense"]))
            drawings.append(maps.model_map(run.by_layer, "change"))
        if errors and (measure := best_measure(run)) is not None:
            drawings.append(methods.layer_map(run.by_layer.assign(method=run.method), run.method, column=measure))
    if ranged := next((run for run in runs if run.by_layer["relative_range"].notna().any()), None):
        threshold = ranged.number("threshold")
        drawings.append(maps.model_map(ranged.by_layer, threshold=THRESHOLD if threshold is None else threshold))
    if paper := next((run.paper for run in runs if run.paper is not None), None):
        drawings += paper_drawings(paper)
    if drifting := [run for run in runs if run.drift]:
        table = pairs.drift_table(drifting)
        drawings.append(drift.drift_curves(table, finding=pairs.drift_finding(drifting)))
        drawings += [drift.drift_shares(table[table["run"] == run.name]) for run in drifting if run.kind != "check"]
    return drawings


def _versions_of(run: RunReport) -> str:
    """Versions of the programs that made a run, by its report, or by this server for its own runs."""
    noted = run.summary.get("made_with", None if run.place else versions())
    if isinstance(noted, dict):
        return ", ".join(f"{str(name)[:40]} {str(version)[:40]}" for name, version in list(noted.items())[:20])
    return noted[:200] if isinstance(noted, str) else "not recorded"


# ---- the check of a checkpoint


def check_report(run: CheckpointRun) -> ReportPage:
    """The headline, a line for each verdict, the map, layers that stand out, drift and numbers."""
    check, request, name = run.check, run.request, name_of(run.request)
    assert check is not None
    short, setup = words.short_layer, run.setup
    drawings = [check_map(check)] if differs(check) else []
    drawings += [trust.broken_pattern(excerpt, layer=short(layer)) for layer, excerpt in run.excerpts.items()]
    worst = [row for _, row in check.by_error.head(BARS).iterrows()]
    drawings += [trust.compensation_bars(row, layer=short(row["layer"])) for row in worst]
    drawings += [check_drift(run)] if check.summary["drift"] else []
    tokens = "the weights alone" if request.calibration is None else f"on {setup.tokens}"
    tables = {"Wrong tensors": check.wrong, "Others that differ": check.others}
    return ReportPage(
        title=f"Check of {name}",
        subtitle=f"Against {setup.model}, {tokens}",
        findings=[headline(check).text, *map(": ".join, lines(check, short)), *facts(run)],
        drawings=drawings,
        tables={heading: table for heading, table in tables.items() if len(table)},
        layers=check.layers,
        recipes={name: str(Recipe(request))},
        versions={name: says_versions()},
    )


def check_drift(run: CheckpointRun, theme: Theme = "light") -> Drawing:
    table = pairs.drift_table([record_of(run)])
    last = table.iloc[-1]
    finding = f"After decoder block {last['block_index']:.0f} the drift is {words.number(float(last['drift']))}"
    return drift.drift_curves(table, finding=finding, theme=theme)


def check_map(check: CheckpointCheck, **look: Any) -> Drawing:
    """The verdicts on all layers, titled by where the wrong ones lie."""
    wrong = check.layers[check.layers["is_wrong"]]
    finding = words.sentence(maps.where_layers(wrong, "wrong")) if len(wrong) else "No layer is wrong"
    return trust.verdict_map(check.layers, finding, **look)
