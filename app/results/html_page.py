"""One HTML file with figures and tables, to be read without a network and to be sent. No Streamlit here.

`html_page.html.jinja` is the page. Jinja escapes every text except the plots' JSON, which `_plot` makes safe.
"""

import base64
import gzip
import secrets
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from plotly.offline import get_plotlyjs

import rose
from app import words
from app.figures import style
from app.figures.style import Drawing
from rose.environment import says_versions
from rose.rows import csv_text

LIMIT = 5 * 10**6  # bytes, so that it can be sent by mail
ROWS = 2000  # of layers that are shown, some 2 MB


@dataclass(frozen=True)
class ReportPage:
    """What goes into the file."""

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
    environment.filters |= {"cell": _cell, "numeric_columns": _numeric_columns, "href": _href, "plot": _plot}
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
    return _base64(gzip.compress(get_plotlyjs().encode(), 9, mtime=0))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _plot(drawing: Drawing) -> str:
    """Plotly's JSON; the title is the section's heading."""
    return (
        style.untitled(drawing.figure).update_layout(autosize=True).to_json().replace("<", "\\u003c")
    )  # no text in it can end the script that holds it


def _href(table: pd.DataFrame, name: str) -> str:
    """The table as a CSV file inside a link, compressed where its name says so."""
    content = csv_text(table).encode()
    if name.endswith(".gz"):
        return f"data:application/gzip;base64,{_base64(gzip.compress(content, 9, mtime=0))}"
    return f"data:text/csv;base64,{_base64(content)}"


def _numeric_columns(table: pd.DataFrame) -> list[bool]:
    numeric = table.select_dtypes("number").columns
    return [name in numeric for name in table]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e9 else words.number(value, 4)
    return "–" if value is None else str(value)
