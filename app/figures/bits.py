"""What a layer or a model loses, against the bits that it takes: zeros, fewer bits, or both."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import words
from app.figures import marks, palette, style
from app.figures.palette import Theme
from app.figures.style import Drawing
from rose import verdicts

LOOKS = {
    "0": palette.Style(palette.SLATE, "No zeros", symbol="circle"),
    "0.5": palette.Style(palette.BLUE, "50 % zeros", symbol="square"),
    "2:4": palette.Style(palette.ORANGE, "2:4", symbol="diamond"),
    "0.7": palette.Style(palette.GREEN, "70 % zeros", symbol="triangle-up"),
}

DASHES = ("solid", "dash", "dot")  # of the usual method and of others
UNROUNDED = "16 bits"


def bits_and_zeros(table: pd.DataFrame, *, layer: str = "", theme: Theme = "light") -> Drawing:
    """A line for each sparsity through its numbers of bits, error on a log scale.

    The table has a row per way: sparsity (of `LOOKS`), bits (0 where weights are not rounded), bits_a_weight,
    relative_error, held_out_error (NaN where there is none).
    """
    column, tokens = style.judged(table)
    figure = _lines(table.assign(by=""), column, f"{tokens} error")
    values = table[column].clip(lower=np.finfo(np.float32).tiny)
    span = [np.log10(values.min()) - 0.2, np.log10(values.max()) + 0.2]
    figure.update_yaxes(type="log", range=span, dtick=1, exponentformat="none")  # decades, as numbers
    figure.update_xaxes(range=[0, float(table["bits_a_weight"].max()) * 1.05])
    what = f"{words.sentence(tokens)} error{words.of(layer)} on a log scale; along a line 3 to 16 bits"
    both, alone = (_row(table, "0.5", 4), _row(table, "0", 3))
    change = verdicts.says_change(both[column], alone[column], "all of them at 3 bits")
    finding = f"Half the weights at 4 bits make {change}"
    others = (_row(table, "0.5", 0), _row(table, "0", 4))
    values = [_at_bits(row, column) for row in (both, alone, *others)]
    caption = (
        f"Compared are half the weights at 4 bits, {values[0]}, and all of them at 3 bits, {values[1]}. "
        f"Beside them: half the weights unrounded, {values[2]}; all of them at 4 bits, {values[3]}."
    )
    alt = "Line chart of error against bits a weight, a line for each sparsity"
    frame = {"x": "bits a weight", "y": style.ERROR, "height": 460, "legend": True}
    return style.finish(figure, theme, finding, what, caption, alt, table, **frame)


def perplexity_and_bits(table: pd.DataFrame, *, model: str, theme: Theme = "light") -> Drawing:
    """The same of whole models by `perplexity`; the dense model is a row of 16 bits a weight. `by` is "" or names
    another method than that of most rows, which then has lines of its own."""
    figure, usual = _lines(table, "perplexity", "perplexity"), table[table["by"] == ""]
    for trace in figure.data:  # few points, far apart: each says its bits; those of others stand above or below them
        if trace.line.dash == DASHES[0]:
            places = ["top right" if named == UNROUNDED else "bottom left" for named in trace.customdata]
            trace.update(mode="lines+markers+text", text=trace.customdata, textposition=places)
    reach = 0.95 * float(table["perplexity"].min()), 1.08 * float(table["perplexity"].max())
    figure.update_yaxes(range=reach)
    sizes = np.log10([0.85 * float(table["bits_a_weight"].min()), 1.25 * float(table["bits_a_weight"].max())])
    figure.update_xaxes(type="log", range=sizes, tickvals=[2, 3, 4, 6, 8, 12, 16], exponentformat="none")
    both, alone = _row(usual, "0.5", 4), _row(usual, "0", 3)
    more = verdicts.says_change(both["perplexity"], alone["perplexity"], "all of them at 3 bits", "perplexity")
    finding = f"Half the weights at 4 bits make {more}"
    what = f"Perplexity of {model} by bits a weight on a log scale; marks name the bits of weights that are kept; the "
    what += "axis of perplexity does not begin at 0"
    caption = f"Half the weights at 4 bits take {both['bits_a_weight']:.2f} bits a weight, as all of them at 3 bits do."
    alt = "Line chart of perplexity against bits a weight, a line for each sparsity"
    frame = {"x": "bits a weight", "y": "perplexity", "height": 460, "legend": True}
    return style.finish(figure, theme, finding, what, caption, alt, table, **frame)


def _lines(table: pd.DataFrame, column: str, noun: str) -> go.Figure:
    """A line for each sparsity and method, `column` against bits a weight."""
    figure, dashes = go.Figure(), dict(zip(table["by"].unique(), DASHES, strict=False))
    for (sparsity, by), rows in table.groupby(["sparsity", "by"], sort=False):
        rows, look = rows.sort_values("bits_a_weight"), LOOKS[sparsity]
        look = look._replace(label=", ".join(filter(None, (look.label, by))), dash=dashes[by])
        named = [UNROUNDED if bits == 0 else f"{bits} bits" for bits in rows["bits"]]
        hover = f"{look.label}, %{{customdata}}<br>%{{x:.2f}} bits a weight<br>{noun} %{{y:.4g}}"
        marks.lines(figure, rows["bits_a_weight"], rows[column], look, hover, customdata=named, size=10)
    return figure


def _at_bits(row: pd.Series, column: str) -> str:
    return f"{words.number(row[column])} at {row['bits_a_weight']:.2f} bits a weight"


def _row(table: pd.DataFrame, sparsity: str, bits: int) -> pd.Series:
    return table[(table["sparsity"] == sparsity) & (table["bits"] == bits)].iloc[0]
