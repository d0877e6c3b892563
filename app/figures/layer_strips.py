"""Why a layer is columnar, or not: weights, inputs, importance and loss over one axis of columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from app import words
from app.figures import marks, palette, shrinking, style
from app.figures.palette import Style, Theme
from app.figures.style import Drawing
from rose import OrderPlan
from rose.layer.columnar import Outlier, outlier

STRIPS = {
    "weight norm": palette.BLUE,
    "input norm": palette.TEAL,
    "importance": palette.GREEN,
    "column loss": palette.ORANGE,
}
HEIGHT = 500  # pixels: all four strips are on a screen of 800, below the numbers of the layer
GAP = 0.035  # between strips, of the height of the plot
NUMBERED_HEADS = 32  # numbers of more heads would touch


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
    heads = heads if heads and len(table) % heads == 0 else 0
    found = outlier(plan, torch.as_tensor(weight), torch.as_tensor(input_norm), heads)
    figure = go.Figure()
    shape: dict[str, Any] = {"mode": "lines", "line": {"shape": "hvh"}, "fill": "tozeroy"}
    for number, (name, colour) in enumerate(STRIPS.items(), 1):
        strip, look = table[name].astype(np.float32), Style(colour, name)
        marks.lines(figure, table["column"], strip, look, f"{name} %{{y:.4g}}", width=1, yaxis=f"y{number}", **shape)
    of_heads = f"; dotted: {heads} attention heads of {len(table) // heads} columns" if heads else ""
    what = f"Columns{words.of(layer)}; solid: edges of {words.count(len(plan.block_width), 'block')}{of_heads}"
    _stack(figure, len(table))
    _edges(figure, plan.block_width, heads, len(table), theme)
    if found is not None:
        what += f"; shaded: block {found.block}"
        start, end = marks.block_span(plan.block_width, found.block)
        shade = {"fillcolor": palette.INKS[theme].blank, "line": {"width": 0}, "layer": "below"}
        figure.add_shape(type="rect", x0=start - 0.5, x1=end - 0.5, y0=0, y1=1, yref="paper", **shade)
    marks.outline_block(figure, plan.block_width, marked_block)
    caption = _in_numbers(table, plan, found) + marks.mark_words(marked_block)
    alt = f"Weight norm, input norm, importance and loss of every column{words.of(layer)}"
    block = np.repeat(np.arange(len(plan.block_width)), plan.block_width)
    table = table.rename(columns=lambda c: c.replace(" ", "_")).assign(block=block)
    room = {"height": HEIGHT, "headroom": 14 if heads else 0}
    return style.finish(
        figure, theme, words.because(plan, found), what, caption, alt, table, x="input channel (column)", **room
    )


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


def _in_numbers(table: pd.DataFrame, plan: OrderPlan, found: Outlier | None) -> str:
    """Caption: which of the two ways, the deciding block against the others, and why loss dips at spikes."""
    said = []
    if found is not None:
        said = [words.which_way(found)] if plan.is_columnar else []
        weights, inputs = words.number(found.weight_norm), words.number(found.input_norm)
        said.append(
            f"The mean weight norm of block {found.block} is {weights} times that of the other blocks (median), its "
            f"mean input norm {inputs} times."
        )
    said.append(f"Relative range {plan.relative_range:.3f}.")
    spikes = table["input norm"] > 2 * table["input norm"].median()
    if table["column loss"][spikes].mean() < table["column loss"][~spikes].mean():
        said.append(
            "Where inputs spike, the loss dips: it counts the weights that would go, and these columns keep theirs."
        )
    return " ".join(said)
