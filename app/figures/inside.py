"""A tensor of a file of weights: its map, its histogram, the norms of its rows and columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from app.figures import palette
from app.figures.palette import Style, Theme
from app.figures.shapes import Chart
from app.figures.shrinking import Shrunk, ceiling, frame, to_numpy
from app.figures.style import PERCENT, Drawing
from app.words import number, percent


def tensor_map(cells: np.ndarray, block: tuple[int, int], *, name: str, theme: Theme = "light") -> Drawing:
    """|w| as cells, each the maximum of `block` rows × columns."""
    note = "each cell is one weight" if block == (1, 1) else f"each cell is the maximum of {block[0]} × {block[1]}"
    shrunk = Shrunk(cells, *block, note)
    end, clipped = ceiling(cells)
    chart = Chart(x="input channel", y="output channel", height=460, theme=theme)
    chart.cells(shrunk, "|w|", zmax=end)
    chart.matrix_axes(cells.shape[0] * block[0], cells.shape[1] * block[1])
    finding = f"The largest weight of {name} is {number(float(np.nanmax(cells, initial=0.0)))}"
    return chart.done(finding, f"Absolute weights; {note}{clipped}", "", "Map of absolute weights", frame(shrunk))


def histogram(counts: Any, edges: Any, *, theme: Theme = "light") -> Drawing:
    counts, edges = np.asarray(to_numpy(counts), np.float64), np.asarray(to_numpy(edges), np.float64)
    middles, share = (edges[1:] + edges[:-1]) / 2, counts / max(1.0, counts.sum())
    chart = Chart(x="weight", y="share of weights", height=360, theme=theme)
    chart.y(**PERCENT)
    chart.bars(middles, 100 * share, Style(palette.TEAL, "share"), "around %{x:.4g}<br>share %{y:.3f}\u2009%")
    chart.figure.update_layout(bargap=0)
    table = pd.DataFrame({"from": edges[:-1], "to": edges[1:], "count": counts})
    inside = share[np.abs(middles) < 0.1 * np.abs(edges).max()].sum()
    finding = f"{percent(float(inside), 0)} of the weights lie within a tenth of the largest"
    return chart.done(finding, "Finite weights by value", "", "Histogram of the weights", table)


def norms(norms_by_side: Mapping[str, Any], *, theme: Theme = "light") -> Drawing:
    """Norms of rows and columns, each sorted, relative to their median."""
    chart = Chart(x="rank, % of all", y="norm / median", height=360, legend=True, theme=theme)
    looks = {"row": Style(palette.BLUE, "rows"), "column": Style(palette.ORANGE, "columns", "dash")}
    tables, largest = [], {}
    for side, values in norms_by_side.items():
        values = np.sort(np.asarray(to_numpy(values), np.float64))[::-1]
        relative = values / (np.median(values) or 1.0)
        largest[side] = float(relative[0])
        rank = 100 * np.arange(len(values)) / max(1, len(values) - 1)
        chart.line(rank, relative, looks[side], f"{side} at %{{x:.1f}} %<br>%{{y:.3g}} times the median", mode="lines")
        tables.append(pd.DataFrame({"side": side, "norm": values}))
    finding = f"The largest row norm is {number(largest['row'], 2)} times the median, the largest column norm "
    finding += number(largest["column"], 2)
    note = "Norms, sorted, divided by their median"
    return chart.done(finding, note, "", "Lines of sorted norms of rows and columns", pd.concat(tables))
