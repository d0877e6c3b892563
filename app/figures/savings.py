"""Losses of a smaller layer or model: fewer bits, zeros, fewer heads and channels."""

from __future__ import annotations

import numpy as np
import pandas as pd

from app.figures import palette
from app.figures.palette import Style, Theme
from app.figures.shapes import BARE, CHOSEN, Chart, colourbar
from app.figures.style import Drawing
from app.words import count, number, percent, whole
from rose import verdicts

LOOKS = {
    "0": Style(palette.SLATE, "No zeros", symbol="circle"),
    "0.5": Style(palette.BLUE, "50 % zeros", symbol="square"),
    "2:4": Style(palette.ORANGE, "2:4", symbol="diamond"),
    "0.7": Style(palette.GREEN, "70 % zeros", symbol="triangle-up"),
}
DASHES = ("solid", "dash", "dot")  # of the usual method and of others
UNROUNDED = "16 bits"

# Bits and zeros


def perplexity_and_bits(table: pd.DataFrame, *, model: str, theme: Theme = "light") -> Drawing:
    """Perplexity of whole models by bits a weight, a line for each sparsity and method.

    The table has a row per model: sparsity (of `LOOKS`), bits (0 where weights are not rounded), bits_a_weight,
    perplexity, and `by`, the method, or "" for the usual one. The dense model is a row of 16 bits a weight.
    """
    chart = Chart(x="bits a weight", y="perplexity", height=460, legend=True, theme=theme)
    _draw_bits(chart, table, "perplexity", "perplexity")
    usual, bits = table[table["by"] == ""], table["bits_a_weight"]
    for trace in chart.figure.data:  # few points, far apart: each shows its bits
        if trace.line.dash == DASHES[0]:
            places = ["top right" if names == UNROUNDED else "bottom left" for names in trace.customdata]
            trace.update(mode="lines+markers+text", text=trace.customdata, textposition=places)
    chart.y(range=(0.95 * table["perplexity"].min(), 1.08 * table["perplexity"].max()))
    sizes = np.log10([0.85 * bits.min(), 1.25 * bits.max()])
    chart.x(type="log", range=sizes, tickvals=[2, 3, 4, 6, 8, 12, 16], exponentformat="none")
    both, alone = _row(usual, "0.5", 4), _row(usual, "0", 3)
    options = verdicts.says_change(both["perplexity"], alone["perplexity"], "all of them at 3 bits", "perplexity")
    note = f"Perplexity of {model} by bits a weight on a log scale; marks name the bits of weights that are kept; the "
    note += "axis of perplexity does not begin at 0"
    caption = f"Half the weights at 4 bits take {both['bits_a_weight']:.2f} bits a weight, as all of them at 3 bits do."
    alt = "Line chart of perplexity against bits a weight, a line for each sparsity"
    return chart.done(f"Half the weights at 4 bits make {options}", note, caption, alt, table)


def _draw_bits(chart: Chart, table: pd.DataFrame, column: str, noun: str) -> None:
    """A line for each sparsity and method, `column` against bits a weight."""
    dashes = dict(zip(table["by"].unique(), DASHES, strict=False))
    for (sparsity, by), rows in table.groupby(["sparsity", "by"], sort=False):
        rows, look = rows.sort_values("bits_a_weight"), LOOKS[sparsity]
        look = look._replace(label=", ".join(filter(None, (look.label, by))), dash=dashes[by])
        names = [UNROUNDED if bits == 0 else f"{bits} bits" for bits in rows["bits"]]
        hover = f"{look.label}, %{{customdata}}<br>%{{x:.2f}} bits a weight<br>{noun} %{{y:.4g}}"
        chart.line(rows["bits_a_weight"], rows[column], look, hover, customdata=names, size=10)


def _row(table: pd.DataFrame, sparsity: str, bits: int) -> pd.Series:
    return table[(table["sparsity"] == sparsity) & (table["bits"] == bits)].iloc[0]


# Heads and channels


def head_map(table: pd.DataFrame, *, marked_block: int | None = None, theme: Theme = "light") -> Drawing:
    """Relative error once a query head alone is gone, after least squares, as a map of head × decoder block."""
    grid = table.pivot(index="head", columns="block_index", values="cost")
    # Blocks that were not measured have an empty place: a heatmap would stretch its neighbours over it.
    grid = grid.reindex(columns=range(grid.columns.min(), grid.columns.max() + 1))
    chart = Chart(x="decoder block", y="query head", height=150 + max(220, 24 * len(grid)), theme=theme)
    scale = {"colorscale": palette.SEQUENTIAL, "zmin": 0, "zmax": float(table["cost"].max()) or 1.0}
    scale |= {"colorbar": colourbar("relative error without the head")}
    hover = "decoder block %{x}<br>head %{y}<br>%{z:.4g}<extra></extra>"
    cells = {"z": grid.to_numpy(np.float32), "x": grid.columns, "y": grid.index}
    chart.figure.add_heatmap(**cells, **scale, hovertemplate=hover)
    chart.y(**BARE, count=len(grid), autorange="reversed")
    chart.x(**BARE, count=len(grid.columns))
    if marked_block is not None and marked_block in grid.columns:
        chart.outline(marked_block - 0.5, marked_block + 0.5, -0.5, len(grid) - 0.5)
    least = table.loc[table["cost"].idxmin()]
    finding = f"Head {int(least['head'])} of decoder block {int(least['block_index'])} costs least"
    note = "Relative error of the attention's output without one head, after the others compensate"
    return chart.done(finding, note, "", "Map of head costs", table)


def channel_curve(table: pd.DataFrame, cut: int, *, block: int, theme: Theme = "light") -> Drawing:
    """Channels of one MLP in the order of removal, each with its own cost and the error of all removed so far."""
    chart = Chart(x="channels taken out", y="relative error", height=440, legend=True, theme=theme)
    step = np.arange(1, len(table) + 1)
    together, each = (table[column].clip(lower=1e-12) for column in ("together", "alone"))  # a log axis has no 0
    look, hover = Style(palette.ORANGE, "all so far, together"), "without %{x} channels<br>together %{y:.3g}"
    chart.line(step, together, look, hover, mode="lines")
    look, hover = Style(palette.BLUE, "each alone"), "channel %{customdata}<br>alone %{y:.3g}"
    chart.points(step, each, look, hover, size=3, customdata=table["channel"])
    chart.y(type="log", exponentformat="power")
    chart.figure.add_vline(x=cut, line=CHOSEN)
    error, alone = float(table["together"].iloc[cut - 1]) if cut else 0.0, float(table["alone"].iloc[:cut].sum())
    finding = f"Without {count(cut, 'channel')} of {whole(len(table))} the error is {percent(error)}"
    note = f"MLP of decoder block {block}: relative error after least squares, in the order of exact cost; log scale"
    caption = ""
    if cut > 1 and alone < error:
        caption = (
            f"One by one these channels cost {number(alone)}: removed together they cannot compensate for one another."
        )
    return chart.done(finding, note, caption, "Channel costs with the cut", table)
