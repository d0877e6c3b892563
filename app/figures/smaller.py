"""Ways to make a model smaller: the size of their files against what they cost."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from app.figures import palette
from app.figures.palette import Style, Theme
from app.figures.shapes import Chart
from app.figures.style import FONT_SIZE, Drawing
from app.words import number
from rose.smaller import Row
from rose.smaller.ways import AS_IS
from rose.verdicts.smaller import SAME_QUALITY, recommend

SIZES = (10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300, 400, 600, 800)  # ticks, and a thousand times each
UNFILED = "bits-3"  # a grid that no file has, so that its file is the one of 4 bits


def size_and_quality(rows: Sequence[Row], *, theme: Theme = "light") -> Drawing:
    """Perplexity over the dense model's against the smallest file that other programs read; estimates are open."""
    table = _table([row for row in rows if not row.key.startswith(UNFILED)])
    chart = Chart(x="smallest file that other programs read, MB", height=480, theme=theme)
    chart.margins = {"l": 56, "r": 24, "b": 52}
    looks = {
        "rounded": Style(chart.ink.text, "rounded"),
        "slimmed": Style(palette.QUIET[theme][1], "slimmed", symbol="diamond"),
        "zeros": Style(palette.ACCENT[theme][1], "zeros", symbol="square"),
    }
    front = _front(table)
    if len(front) > 1:
        line = {"color": chart.ink.grid, "width": 6}
        chart.line(front["megabytes"], front["times"], Style("", ""), "", mode="lines", line=line)
    for kind, look in looks.items():
        for is_measured in (False, True):
            part = table[(table["kind"] == kind) & (table["measured"] == is_measured)]
            if len(part):
                _ways(chart, part, look if is_measured else look.opened(), is_measured=is_measured)
    low, high = np.log10([table["megabytes"].min(), table["megabytes"].max()])
    values = [value * power for power in (1, 1000) for value in SIZES]
    chart.x(type="log", range=[low - 0.08, high + 0.16], tickvals=values, ticktext=[f"{value:,}" for value in values])
    top = float(table["times"].max())
    chart.y(range=[min(0.97, float(table["times"].min()) - 0.03), 1.04 * top], tickprefix="× ", rangemode="normal")
    same = next((answer.name for answer in recommend(rows) if answer.goal == SAME_QUALITY and answer.key), "")
    finding = f"{same} cost nothing, zeros alone save no byte" if same else "Every way costs, zeros alone save no byte"
    subtitle = "Perplexity as a multiple of the model's as it is: ● rounded, ◆ slimmed, ■ zeros; open: estimated"
    return chart.done(finding, subtitle, "", "Scatter chart of perplexity against size of file", table)


def _table(rows: Sequence[Row]) -> pd.DataFrame:
    """A row a way with an estimate's middle, if it has no measurement."""
    lines = []
    for row in rows:
        kind = "slimmed" if "slim" in row.key else "zeros" if row.key[:3] in ("hal", "2:4") else "rounded"
        middle = math.sqrt((row.times_low or math.nan) * (row.times_high or math.nan))
        times = row.times or middle
        lines.append((row.name, kind, row.bytes / 1e6, times, row.is_measured, row.key == AS_IS))
    columns = ["name", "kind", "megabytes", "times", "measured", "is_dense"]
    return pd.DataFrame(lines, columns=columns).dropna(subset=["times"])


def _front(table: pd.DataFrame) -> pd.DataFrame:
    """Measured ways than which none is both smaller and better."""
    measured = table[table["measured"]].sort_values(["megabytes", "times"])
    return measured[measured["times"] < measured["times"].cummin().shift(fill_value=math.inf)]


def _ways(chart: Chart, part: pd.DataFrame, look: Style, *, is_measured: bool) -> None:
    hover = "%{text}<br>%{x:.0f} MB, perplexity × %{y:.3f}" + ("" if is_measured else ", estimated")
    beside = [_side(row) for row in part.to_dict("records")]
    font = {"size": FONT_SIZE - (0 if is_measured else 2), "color": look.colour if is_measured else chart.ink.muted}
    marker = {"line": {"width": 2}}
    how = {"mode": "markers+text", "text": part["name"], "textposition": beside, "textfont": font, "marker": marker}
    chart.points(part["megabytes"], part["times"], look, hover, size=12 if is_measured else 10, cliponaxis=False, **how)


def _side(row: dict[str, Any]) -> str:
    """Where the name of a way stands, so that names of neighbours do not meet."""
    if row["measured"]:
        return "top left" if row["is_dense"] else "middle right"
    return "middle left" if row["kind"] == "slimmed" and "bits" not in row["name"] else "top center"


def says(value: float | None) -> str:
    """A perplexity over the dense model's."""
    return "–" if value is None else f"× {number(value)}"
