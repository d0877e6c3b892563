"""Finished runs as one HTML file to send: findings, interactive figures, numbers, settings. No Streamlit here.

The file needs no network and may not use one: its policy forbids it. Plotly's script goes along compressed, and the
reader's browser unpacks it. Everything that comes from a run is escaped: the run may be somebody else's.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import secrets
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

import rose
from app import words
from app.figures import depth as depth_figures
from app.figures import overview, prune, style
from app.figures import runs as run_figures
from app.figures.style import Drawing
from app.runs import depth, pairs
from app.runs.finished import SLIM, FinishedRun, name_apart, read_runs, settings_of
from app.runs.request import HELD_OUT
from rose.report import versions, write_atomically

LIMIT = 5 * 10**6  # bytes, so that it can be sent by mail
MOST_FIGURES = 40
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'nonce-{nonce}'; \
style-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<style>
:root {{ color-scheme: light; --ink: #1a1c22; --muted: #555b66; --line: #d5d8de; }}
body {{ font: 16px/1.5 "Source Sans", "Segoe UI", system-ui, sans-serif; color: var(--ink); background: #fff;
  max-width: 1080px; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }}
h1 {{ font-size: 1.75rem; line-height: 1.25; margin: 0 0 .25rem; }}
h2 {{ font-size: 1.25rem; margin: 2.5rem 0 .5rem; }}
h3 {{ font-size: 1.1rem; line-height: 1.35; margin: 2rem 0 0; }}
p {{ margin: .25rem 0 .75rem; }}
.what, .caption, footer {{ color: var(--muted); }}
.findings li {{ margin: .3rem 0; }}
figure {{ margin: 0; overflow: hidden; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; vertical-align: top; padding: .25rem .9rem .25rem 0; }}
th, td {{ border-bottom: 1px solid var(--line); }}
td.number, th.number {{ text-align: right; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; padding: .75rem; border: 1px solid var(--line); }}
summary {{ cursor: pointer; }}
a {{ color: #0b5f94; }}
.plain {{ display: none; }}
.undrawn .plain {{ display: block; }}
@page {{ margin: 15mm; }}
@media print {{
  body {{ max-width: none; padding: 0; font-size: 11pt; }}
  .data, details:not([open]) {{ display: none; }}
  h2, h3 {{ break-after: avoid; }}
  section, tr, figure {{ break-inside: avoid; }}
}}
</style>
</head>
<body>
<header><h1>{title}</h1><p class="what">{subtitle}</p></header>
<noscript><p>The figures need JavaScript; findings and numbers are here without it.</p></noscript>
<p class="plain">The figures could not be drawn: this browser is too old to unpack them. Findings and numbers are
here.</p>
<main>
{body}
</main>
<footer><p>{made}</p></footer>
<script type="text/plain" id="plotly">{plotly}</script>
<script nonce="{nonce}">{script}</script>
</body>
</html>
"""
SCRIPT = """
(async () => {
  const nonce = document.currentScript.nonce;
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (one) => one.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.nonce = nonce;
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  const places = [...document.querySelectorAll("figure")];
  const look = { responsive: true, displaylogo: false, toImageButtonOptions: { format: "svg" },
    modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] };
  for (const place of places) {
    const drawn = JSON.parse(place.nextElementSibling.textContent);
    await Plotly.newPlot(place, drawn.data, drawn.layout, look);
  }
  window.addEventListener("beforeprint", () => places.forEach((place) => Plotly.relayout(place, { width: 660 })));
  window.addEventListener("afterprint", () => places.forEach((place) => Plotly.relayout(place, { width: null })));
  document.body.dataset.drawn = places.length;
})().catch((problem) => {
  document.body.classList.add("undrawn");
  console.error(problem);
});
"""


@dataclass(frozen=True)
class Report:
    """What goes into the file.

    Attributes:
        title, subtitle: what was run, and on what.
        findings: sentences.
        drawings: with their titles, which become headings.
        tables: heading -> table; texts left, numbers right.
        layers: all rows, folded.
        commands: that made the runs, by the runs' names.
        versions: of the programs that made them, by the run's name.
    """

    title: str
    subtitle: str
    findings: list[str]
    drawings: list[Drawing]
    tables: dict[str, pd.DataFrame]
    layers: pd.DataFrame
    commands: dict[str, str]
    versions: dict[str, str]


def write_report(folders: Sequence[str], output: str | Path) -> list[str]:
    """Writes the report of one folder, or of two side by side; returns its findings.

    Raises:
        RoseError: not what `rose` has written, different shapes, or an output that cannot be written.
    """
    output = Path(output)
    if output.suffix not in (".html", ".htm"):
        raise rose.RoseError(f"The report is an HTML file: name one that ends in .html, not {output}.")
    if not output.parent.is_dir():
        raise rose.RoseError(f"There is no folder {output.parent}; make it first.")
    runs = [run for folder in folders for run in read_runs(folder)]
    report = report_of(runs)
    text = to_html(report)
    try:
        write_atomically(output, text.encode())
    except OSError as problem:
        raise rose.RoseError(f"{output} cannot be written ({problem.strerror}); make room.") from problem
    return report.findings


def report_of(runs: Sequence[FinishedRun]) -> Report:
    """Of one run, of a study's methods, or of several runs; two are put side by side.

    Raises:
        RoseError: none, or two whose layers have different shapes.
    """
    if not runs:
        raise rose.RoseError("There is no run to report; prune a model or measure its layers first.")
    if len({run.name for run in runs}) < len(runs):
        runs = list(name_apart(runs).values())
    both = pairs.pair(*runs) if len(runs) == 2 else None
    findings = [sentence for run in runs for sentence in run_findings(run)]
    drawings: list[Drawing] = []
    mapped = False  # whether the errors of every layer are shown already
    tables = {"Numbers": _numbers(runs)}
    if both is not None:
        measure = next(iter(both.measures), None)
        names = (runs[0].name, runs[1].name)
        if measure:
            rows, label = both.rows(measure), pairs.MEASURES[measure]
            findings.insert(0, run_figures.difference_finding(rows, names, label) + ".")
            drawings.append(run_figures.run_difference(rows, names, label, as_share=True))
            drawings.append(run_figures.run_maps(rows, names, label))
            mapped = True
        tables["Settings that differ"] = _named(pairs.settings(*runs), runs)
        if pairs.windows_differ(*runs):
            findings.append("The two perplexities were measured on different windows: do not compare them.")
    elif len(runs) > 2:
        findings = _against_first(runs) + findings
    drawings += _figures(runs, errors=not mapped)
    for run in runs:
        if run.zero_shot is not None:
            tables[f"Zero-shot accuracy of {run.name}"] = run.zero_shot
    tables["Settings"] = _settings(runs)
    layers = pd.concat([run.layers.dropna(axis=1, how="all").assign(run=run.name) for run in runs], ignore_index=True)
    columns = ["run", *(name for name in layers.columns if name != "run")]
    return Report(
        title=_title(runs),
        subtitle=_subtitle(runs),
        findings=list(dict.fromkeys(findings)),
        drawings=drawings[:MOST_FIGURES],
        tables={name: table for name, table in tables.items() if len(table)},
        layers=layers[columns] if len(layers) else layers,
        commands=_commands(runs),
        versions={run.name: versions_of(run) for run in runs},
    )


def _against_first(runs: Sequence[FinishedRun]) -> list[str]:
    """What distinguishes each run from the first, where their layers match."""
    found = []
    for run in runs[1:]:
        with contextlib.suppress(rose.RoseError):
            both = pairs.pair(runs[0], run)
            if measure := next(iter(both.measures), None):
                names = (runs[0].name, run.name)
                said = run_figures.difference_finding(both.rows(measure), names, pairs.MEASURES[measure])
                found.append(f"Against {runs[0].name}: {said}.")
    return found


def _commands(runs: Sequence[FinishedRun]) -> dict[str, str]:
    """By the names of the runs that each has made: an analysis makes several."""
    measured = [run for run in runs if run.kind == "study"]
    names: dict[str, list[str]] = {}
    for run in runs:
        beside = [one.method for one in measured if _origin(one) == _origin(run)]
        names.setdefault(command_of(run, beside if run.kind == "study" else ()), []).append(run.name)
    return {", ".join(made): command for command, made in names.items()}


def _origin(run: FinishedRun) -> tuple[str, Any]:
    return run.place, run.summary.get("model")


def _title(runs: Sequence[FinishedRun]) -> str:
    if len(runs) > 2:
        kinds = {run.kind for run in runs}
        return (
            f"{words.sentence(words.count(len(runs), 'method'))} on one model"
            if kinds == {"study"}
            else (f"{words.sentence(words.count(len(runs), 'run'))} compared")
        )
    return " beside ".join(run.name for run in runs)


def _subtitle(runs: Sequence[FinishedRun]) -> str:
    def said(run: FinishedRun) -> str:
        known = run.summary
        text = (
            f"{known.get('model', 'a model')}, calibrated on {known.get('samples', '?')} × {known.get('length', '?')}"
        )
        return f"{text} tokens of {known['calibration']}" if known.get("calibration") else f"{text} tokens"

    return "; ".join(dict.fromkeys(said(run) for run in runs))


# Findings


def run_findings(run: FinishedRun) -> list[str]:
    """What can be said of one run, as sentences with its numbers."""
    found, summary = [], run.summary
    before, after = (_known(summary.get(name)) for name in ("perplexity_before", "perplexity_after"))
    if before and after:
        where = f" on {summary['evaluated_on']}" if summary.get("evaluated_on") else ""
        found.append(
            f"{run.name} takes perplexity{where} from {words.number(before)} to {words.number(after)}, "
            f"{words.number(after / before)} times the dense model's."
        )
    found += _error_findings(run)
    if run.has_drift:
        drift = summary["drift"]
        steps = [entry["drift"] - (drift[at - 1]["drift"] if at else 0) for at, entry in enumerate(drift)]
        steepest = drift[max(range(len(steps)), key=steps.__getitem__)]["block_index"]
        found.append(
            f"After the last decoder block the drift of {run.name} from the dense model is "
            f"{words.number(drift[-1]['drift'])}; it rises most in decoder block {steepest}."
        )
    if run.zero_shot is not None:
        mean = float(run.zero_shot["accuracy"].mean())
        tasks = words.count(len(run.zero_shot), "zero-shot task")
        found.append(f"{run.name} answers {words.percent(mean)} correctly, the mean over {tasks}.")
    raised = _known(summary.get("layers_with_raised_damping"))
    if raised:
        found.append(
            f"{words.sentence(words.count(int(raised), 'layer'))} of {run.name} needed more damping than asked."
        )
    return found


def _error_findings(run: FinishedRun) -> list[str]:
    measure = best_measure(run)
    if measure is None:
        return []
    rows = run.layers.dropna(subset=[measure])
    worst = rows.loc[rows[measure].idxmax()]
    label = pairs.MEASURES[measure]
    said = (
        f"The {label} of {run.name} is {words.number(float(rows[measure].mean()))} on average over "
        f"{words.count(len(rows), 'layer')}, highest in {words.short_layer(worst['layer'])} "
        f"({words.number(float(worst[measure]))})."
    )
    columnar = run.layers["is_columnar"].sum() if "is_columnar" in run.layers else None
    if columnar is None or run.kind == SLIM:
        return [said]
    threshold = _known(run.summary.get("threshold"))
    above = f" (relative range above {threshold:g})" if threshold is not None else ""
    count = words.word(int(columnar)) if columnar else "none"
    some = f"{count} of {words.count(len(run.layers), 'layer')}"
    if run.kind == "study":  # the same for all of its methods
        return [said, f"{words.sentence(some)} {'is' if columnar == 1 else 'are'} columnar{above}."]
    return [said, f"{run.name} found {some} columnar{above}."]


def best_measure(run: FinishedRun) -> str | None:
    """The error that says most: held-out where it was measured."""
    for name in ("held_out_error", "relative_error"):
        if name in run.layers and run.layers[name].notna().any():
            return name
    return None


def _known(value: Any) -> float | None:
    """A number that a figure can draw."""
    return (
        float(value) if isinstance(value, float | int) and not isinstance(value, bool) and abs(value) < 1e300 else None
    )


# Figures and tables


def _figures(runs: Sequence[FinishedRun], *, errors: bool) -> list[Drawing]:
    """Those of every run; `errors`: also the map of each."""
    found: list[Drawing] = []
    pruned = [run for run in runs if _known(run.summary.get("perplexity_after"))]
    if len(pruned) > 1 and len({run.summary.get("perplexity_before") for run in pruned}) == 1:
        bars = pd.DataFrame(
            {
                "run": [run.name for run in pruned],
                "method": [run.method for run in pruned],
                "perplexity": [float(run.summary["perplexity_after"]) for run in pruned],
            }
        )
        found.append(prune.perplexity_bars(bars, dense=_known(pruned[0].summary.get("perplexity_before"))))
    ranged = next((run for run in runs if run.layers["relative_range"].notna().any()), None)
    for run in runs:
        if errors and (measure := best_measure(run)) is not None:
            found.append(prune.layer_map(run.layers.assign(method=run.method), run.method, column=measure))
    if ranged is not None:
        threshold = _known(ranged.summary.get("threshold"))
        found.append(overview.model_map(ranged.layers, threshold=0.5 if threshold is None else threshold))
    drifting = {run.name: rose.RunReport(run.layers, run.summary) for run in runs if run.has_drift}
    if drifting:
        table = depth.drift_table(drifting)
        found.append(depth_figures.drift_curves(table))
        found += [depth_figures.drift_shares(table[table["run"] == name]) for name in drifting]
    return found


def _numbers(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """Totals, a column for each run."""
    rows = []
    for name, read in pairs.NUMBERS.items():
        values = [pairs.as_number(read(run)) for run in runs]
        if not all(value != value for value in values):
            rows.append([name, *(pairs.said(name, value) for value in values)])
    return pd.DataFrame(rows, columns=["", *(run.name for run in runs)])


def _settings(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    known = [settings_of(run) for run in runs]
    rows = [
        [name, *(one.get(name, "–") for one in known)] for name in dict.fromkeys(key for one in known for key in one)
    ]
    return pd.DataFrame(rows, columns=["", *(run.name for run in runs)])


def _named(table: pd.DataFrame, runs: Sequence[FinishedRun]) -> pd.DataFrame:
    return table.set_axis(["", *(run.name for run in runs)], axis=1)


def command_of(run: FinishedRun, methods: Sequence[str] = ()) -> str:
    """As the command line has noted it; else made from the settings, or empty where they do not say.

    Args:
        methods: of an analysis, all that it has measured.
    """
    noted = run.summary.get("command")
    if isinstance(noted, str):
        return noted
    known = run.summary
    names = {
        "--model": "model",
        "--dtype": "dtype",
        "--calibration": "calibration",
        "--samples": "samples",
        "--length": "length",
        "--seed": "seed",
        "--held-out": "held_out_samples",
        "--method": "method",
        "--sparsity": "sparsity",
        "--ratio": "ratio",
        "--target": "target",
        "--allocation": "allocation",
        "--block-size": "block_size",
        "--damping": "damping",
        "--threshold": "threshold",
    }
    if known.get("model") is None:
        return ""
    command = {"prune": "prune", "slim": "slim", "study": "analyze"}[run.kind]
    left_out = {"prune": (), "slim": ("--threshold",), "study": ("--method", "--target", "--allocation")}[run.kind]
    parts = ["python", "-m", "rose", command]
    for option, name in names.items():
        if option not in left_out and known.get(name) is not None:
            parts += [option, f"{known[name]:g}" if isinstance(known[name], float) else str(known[name])]
    if run.kind != "study" and known.get("evaluated_on") not in (None, HELD_OUT):
        parts += ["--evaluate", str(known["evaluated_on"]), "--windows", str(known.get("windows"))]
    if run.kind == "study":
        parts += ["--methods", ",".join(methods or [run.method])]
    return shlex.join([*parts, "--output", "pruned/" if run.kind != "study" else "study/"])


def versions_of(run: FinishedRun) -> str:
    """Of the programs that made it, as its report says; a run of this server was made by those here."""
    noted = run.summary.get("made_with")
    if noted is None and run.place == "this server":
        noted = versions()
    if isinstance(noted, str):
        return noted[:200]
    if not isinstance(noted, dict):
        return "not recorded"
    return ", ".join(f"{str(name)[:40]} {str(version)[:40]}" for name, version in list(noted.items())[:20])


# HTML


def to_html(report: Report) -> str:
    """The file.

    Raises:
        RoseError: it would be larger than 5 MB.
    """
    nonce = secrets.token_hex(16)
    body = [_list("Findings", report.findings)]
    body += [_figure(drawing, f"figure-{number}") for number, drawing in enumerate(report.drawings, 1)]
    body += [f"<h2>{escape(name)}</h2>{_table(table)}" for name, table in report.tables.items()]
    if len(report.layers):
        rows = words.count(len(report.layers), "row")
        body.append(
            f"<h2>Layers</h2><p class='data'>{_link(report.layers, 'layers.csv')}</p>"
            f"<details><summary>All layers, {escape(rows)}</summary>{_table(report.layers)}</details>"
        )
    body.append("<h2>How it was made</h2>" + _made(report))
    here = ", ".join(f"{name} {version}" for name, version in versions().items())
    text = PAGE.format(
        nonce=nonce,
        title=escape(report.title),
        subtitle=escape(report.subtitle),
        body="\n".join(body),
        made=escape(f"Written by ROSE Explorer ({here})."),
        plotly=_packed_plotly(),
        script=SCRIPT,
    )
    if len(text.encode()) > LIMIT:
        raise rose.RoseError(
            f"The report would take {len(text.encode()) / 1e6:.1f} MB, more than {LIMIT / 1e6:.0f}; report fewer runs."
        )
    return text


@cache
def _packed_plotly() -> str:
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


def _list(heading: str, sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<h2>{heading}</h2><ul class='findings'>{items}</ul>" if items else ""


def _figure(drawing: Drawing, name: str) -> str:
    """The title becomes a heading, which wraps with the page, and the plot keeps its size."""
    said = drawing.figure.layout.meta
    figure = go.Figure(drawing.figure)
    freed = 10 + round(1.35 * style.TITLE_SIZE * said["lines"])
    figure.update_layout(
        title=None, margin_t=figure.layout.margin.t - freed, height=figure.layout.height - freed, autosize=True
    )
    drawn = figure.to_json().replace("<", "\\u003c")  # no text in it can end the script that holds it
    return (
        f"<section><h3>{escape(said['finding'])}</h3><p class='what'>{escape(said['what'])}</p>"
        f"<figure id='{name}' role='img' aria-label='{escape(drawing.alt)}'></figure>"
        f"<script type='application/json'>{drawn}</script>"
        f"<p class='caption'>{escape(drawing.caption)} "
        f"<span class='data'>{_link(drawing.data, f'{name}.csv')}</span></p></section>"
    )


def _link(table: pd.DataFrame, name: str) -> str:
    packed = base64.b64encode(table.to_csv(index=False).encode()).decode()
    return f"<a download='{name}' href='data:text/csv;base64,{packed}'>Data, CSV</a>"


def _table(table: pd.DataFrame) -> str:
    numeric = [pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind) for kind in table.dtypes]
    marks = ["<{0} class='number'>" if is_number else "<{0}>" for is_number in numeric]
    head = "".join(mark.format("th") + escape(str(name)) + "</th>" for mark, name in zip(marks, table, strict=True))
    rows = [
        "".join(mark.format("td") + escape(_cell(value)) + "</td>" for mark, value in zip(marks, row, strict=True))
        for row in table.itertuples(index=False, name=None)
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "–" if value != value else f"{value:.0f}" if value.is_integer() else f"{value:.4g}"
    return "–" if value is None else str(value)


def _made(report: Report) -> str:
    commands = [
        f"<p>{escape(name)}</p><pre>{escape(command)}</pre>" for name, command in report.commands.items() if command
    ]
    made = "".join(f"<li>{escape(name)}: {escape(text)}</li>" for name, text in report.versions.items())
    return f"{''.join(commands)}<p>Made with</p><ul>{made}</ul>"
