"""Why a layer is columnar, or not: weights, inputs, importance and loss over one axis of columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import words
from app.figures import marks, palette, shrinking, style
from app.figures.palette import Style, Theme
from app.figures.style import Drawing
from rose import OrderPlan

STRIPS = {
    "weight norm": palette.BLUE,
    "input norm": palette.TEAL,
    "importance": palette.GREEN,
    "column loss": palette.ORANGE,
}
GAP = 0.035  # between strips, of the height of the plot
NUMBERED_HEADS = 32  # numbers of more heads would touch
STRONG = 0.05  # share of the columns that count as those with the largest weights
FOLLOWS = 0.3  # rank correlation below which loss follows nothing
APART = 2.0  # factor from which on the caption calls two sizes different


def layer_strips(
    weight: Any,
    plan: OrderPlan,
    input_norm: Any,
    *,
    heads: int = 0,
    layer: str = "",
    marked_block: int | None = None,
    theme: Theme = "light",
) -> Drawing:
    """Four strips over the same columns: ‖W_j‖, ‖x_j‖, mean S and column loss; the cursor marks a column in all four.

    Args:
        weight: W, (out, in).
        input_norm: root mean square of each input over calibration tokens, (in,).
        heads: attention heads whose outputs lie side by side in the columns, 0 where the inputs are no heads' outputs.
    """
    values = {
        "weight norm": np.sqrt(np.square(shrinking.to_numpy(weight).astype(np.float64)).sum(0)),
        "input norm": shrinking.to_numpy(input_norm).astype(np.float64),
        "importance": shrinking.to_numpy(plan.importance).mean(0, dtype=np.float64),
        "column loss": shrinking.to_numpy(plan.column_loss).astype(np.float64),
    }
    table = pd.DataFrame(values).rename_axis("column").reset_index()
    finding, caption = _why(table, plan)
    heads = heads if heads and len(table) % heads == 0 else 0
    figure = go.Figure()
    shape: dict[str, Any] = {"mode": "lines", "line": {"shape": "hvh"}, "fill": "tozeroy"}
    for number, (name, colour) in enumerate(STRIPS.items(), 1):
        strip, look = table[name].astype(np.float32), Style(colour, name)
        marks.lines(figure, table["column"], strip, look, f"{name} %{{y:.4g}}", width=1, yaxis=f"y{number}", **shape)
    of_heads = f"; dotted: {heads} attention heads of {len(table) // heads} columns" if heads else ""
    what = f"Columns{words.of(layer)}; solid: edges of {words.count(len(plan.block_width), 'block')}{of_heads}"
    _stack(figure, len(table))
    _edges(figure, plan.block_width, heads, len(table), theme)
    marks.outline_block(figure, plan.block_width, marked_block)
    caption += _inside_heads(table, heads) + marks.mark_words(marked_block)
    alt = f"Weight norm, input norm, importance and loss of every column{words.of(layer)}"
    block = np.repeat(np.arange(len(plan.block_width)), plan.block_width)
    table = table.rename(columns=lambda c: c.replace(" ", "_")).assign(block=block)
    room = {"height": 600, "headroom": 14 if heads else 0}
    return style.finish(figure, theme, finding, what, caption, alt, table, x="input channel (column)", **room)


def _stack(figure: go.Figure, columns: int) -> None:
    """One x axis under four y axes, and one cursor through all of them."""
    count = len(STRIPS)
    high = (1 - GAP * (count - 1)) / count
    for number, name in enumerate(STRIPS):
        top = 1 - number * (high + GAP)
        title = {"text": name, "font": {"size": style.FONT_SIZE}}
        axis = {"domain": [max(0.0, top - high), top], "anchor": "x", "nticks": 4, "title": title}
        figure.update_layout({f"yaxis{number + 1}": axis})
    figure.update_layout(hovermode="x unified", hoversubplots="axis")
    cursor = {"showspikes": True, "spikemode": "across", "spikesnap": "hovered data", "spikethickness": 1.5}
    cursor |= {"spikecolor": palette.MARK, "spikedash": "solid"}
    figure.update_xaxes(range=[-0.5, columns - 0.5], anchor=f"y{count}", zeroline=False, **cursor)


def _edges(figure: go.Figure, widths: Sequence[int], heads: int, columns: int, theme: Theme) -> None:
    """Vertical lines through all strips, at once: one by one they take seconds on a wide layer."""
    ink = palette.INKS[theme]
    edge = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "layer": "above"}
    block = edge | {"line": {"color": ink.text, "width": 1}}
    shapes = [block | {"x0": x - 0.5, "x1": x - 0.5} for x in np.cumsum(widths)[:-1].tolist()]
    if heads:
        size = columns // heads
        head = edge | {"y1": 1.02, "line": {"color": ink.muted, "width": 1.5, "dash": "dot"}}
        shapes += [head | {"x0": x - 0.5, "x1": x - 0.5} for x in range(size, columns, size)]
    if 0 < heads <= NUMBERED_HEADS:
        font = {"size": style.FONT_SIZE, "color": ink.muted}
        number = {"y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False, "font": font}
        at = [size * (place + 0.5) - 0.5 for place in range(heads)]
        figure.update_layout(annotations=[number | {"x": x, "text": str(place)} for place, x in enumerate(at)])
    figure.update_layout(shapes=shapes)


def _why(table: pd.DataFrame, plan: OrderPlan) -> tuple[str, str]:
    """Title and caption: whether loss goes with the weights or with the inputs, in numbers."""
    ranks = table.rank()
    by_weight, by_input = (_correlation(ranks["column loss"], ranks[name]) for name in ("weight norm", "input norm"))
    leader, other = ("input norm", "weight norm") if by_input >= by_weight else ("weight norm", "input norm")
    finding = f"Column loss follows the {leader} rather than the {other}"
    if max(by_weight, by_input) < FOLLOWS:
        finding = "Column loss follows neither weight norm nor input norm"
    elif abs(by_weight - by_input) < 0.1:
        finding = "Column loss follows weight norm and input norm alike"
    count = max(1, round(STRONG * len(table)))
    strong = table.nlargest(count, "weight norm")
    loss = _times(strong["column loss"].mean(), table["column loss"].mean())
    norm = _times(strong["input norm"].median(), table["input norm"].median())
    who = "The column with the largest weights" if count == 1 else f"The {count} columns with the largest weights"
    verb = "loses" if count == 1 else "lose"
    link = ": their median input norm is" if loss > APART and norm > APART else "; their median input norm is"
    if loss < 1 / APART and norm < 1 / APART:
        finding = f"{who} {verb} little: {'its input is' if count == 1 else 'their inputs are'} weak"
        link = ", because their median input norm is only"
    says = f"{who} {verb} {words.number(loss)} times the mean column loss{link} {words.number(norm)} times that of all"
    worst = int(table["column loss"].idxmax())
    weights, inputs = (
        words.number(_times(table.loc[worst, name], table[name].median())) for name in ("weight norm", "input norm")
    )
    correlations = f"{by_weight:.2f}, with input norm {by_input:.2f}".replace("-", "−")
    return finding, (
        f"{says} columns. Rank correlation of column loss with weight norm {correlations}; relative range "
        f"{plan.relative_range:.2f}. Column {worst} loses most: its weight norm is {weights} times the median, its "
        f"input norm {inputs} times."
    )


def _inside_heads(table: pd.DataFrame, heads: int) -> str:
    """Which head the loss lies in."""
    if not heads:
        return ""
    by_head = table["column loss"].to_numpy().reshape(heads, -1).sum(1)
    total = by_head.sum()
    share = by_head.max() / total if total > 0 else 0.0
    return f" Head {int(by_head.argmax())} of 0 to {heads - 1} holds {words.percent(float(share), 0)} of the loss."


def _correlation(one: pd.Series, other: pd.Series) -> float:
    """0 where one of them does not vary."""
    return float(one.corr(other)) if one.std() > 0 and other.std() > 0 else 0.0


def _times(value: float, base: float) -> float:
    return float(value / base) if base > 0 else 0.0
