"""One HTML file with figures and tables, to be read without a network and to be sent. No Streamlit here.

The file needs no network and may not use one: its policy forbids it. Plotly's script goes along compressed, and the
reader's browser unpacks it. All text is escaped.
"""

import base64
import gzip
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

import rose
from app import words
from app.figures import style
from app.figures.style import Drawing
from rose.environment import says_versions
from rose.report import csv_text

LIMIT = 5 * 10**6  # bytes, so that it can be sent by mail
ROWS = 2000  # of layers that are shown, some 2 MB
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
})();
"""


@dataclass(frozen=True)
class Report:
    """What goes into the file."""

    title: str
    subtitle: str
    findings: list[str]
    drawings: list[Drawing]
    tables: dict[str, pd.DataFrame]  # by heading
    layers: pd.DataFrame  # folded
    commands: dict[str, str]  # that made the runs, by the runs' names
    versions: dict[str, str]  # of the programs that made them, by the run's name


def to_html(report: Report) -> str:
    """The file; figures that do not fit into it are left out, the last first, and it says how many.

    Raises RoseError where it would be larger than 5 MB without any figure.
    """
    kept = [_figure(drawing, f"figure-{number}") for number, drawing in enumerate(report.drawings, 1)]
    tables = _tables(report)
    left = LIMIT - len(_page(report, [], tables).encode())
    while kept and sum(len(figure.encode()) + 1 for figure in kept) > left:
        kept.pop()
    text = _page(report, kept, tables)
    if len(text.encode()) > LIMIT:
        raise rose.RoseError(
            f"The report would take {words.size(len(text.encode()))}, more than {words.size(LIMIT)}; report fewer runs."
        )
    return text


def _page(report: Report, figures: Sequence[str], tables: str) -> str:
    nonce = secrets.token_hex(16)
    body = [_list("Findings", report.findings), *figures]
    if missing := len(report.drawings) - len(figures):
        body.append(
            f"<p>{missing} of {len(report.drawings)} figures are left out to keep this file small; report fewer runs "
            "to see them.</p>"
        )
    body.append(tables)
    return PAGE.format(
        nonce=nonce,
        title=escape(report.title),
        subtitle=escape(report.subtitle),
        body="\n".join(body),
        made=escape(f"Written by ROSE Explorer ({says_versions()})."),
        plotly=_packed_plotly(),
        script=SCRIPT,
    )


def _tables(report: Report) -> str:
    """All that stands below the figures."""
    body = [f"<h2>{escape(name)}</h2>{_table(table)}" for name, table in report.tables.items()]
    rows = escape(words.count(len(report.layers), "row"))
    if len(report.layers) > ROWS:
        link = _link(report.layers, "layers.csv.gz")
        body.append(f"<h2>Layers</h2><p class='data'>{link}, {rows}, compressed</p>")
    elif len(report.layers):
        body.append(
            f"<h2>Layers</h2><p class='data'>{_link(report.layers, 'layers.csv')}</p>"
            f"<details><summary>All layers, {rows}</summary>{_table(report.layers)}</details>"
        )
    body.append("<h2>How it was made</h2>" + _made(report))
    return "\n".join(body)


@cache
def _packed_plotly() -> str:
    return _packed(get_plotlyjs().encode())


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


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
    content = csv_text(table).encode()
    if name.endswith(".gz"):
        kind, packed = "application/gzip", _packed(content)
    else:
        kind, packed = "text/csv", base64.b64encode(content).decode()
    return f"<a download='{name}' href='data:{kind};base64,{packed}'>Data, CSV</a>"


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
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e9 else words.number(value, 4)
    return "–" if value is None else str(value)


def _made(report: Report) -> str:
    commands = [
        f"<p>{escape(name)}</p><pre>{escape(command)}</pre>" for name, command in report.commands.items() if command
    ]
    made = "".join(f"<li>{escape(name)}: {escape(text)}</li>" for name, text in report.versions.items())
    return f"{''.join(commands)}<p>Made with</p><ul>{made}</ul>"
