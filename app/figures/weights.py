"""One layer over its channels: weights, importance, what pre-pruning makes of them, and why it is columnar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from app import words
from app.figures import palette, shapes, shrinking, style
from app.figures.palette import Style, Theme
from app.figures.shrinking import Shrunk
from app.figures.style import Drawing
from rose import OrderPlan
from rose.layer.columnar import Outlier, outlier

SURFACE_CELLS = 160  # a side; a surface is drawn as triangles, several per cell


def _cells(
    shrunk: Shrunk,
    shape: tuple[int, int],
    unit: str,
    finding: str,
    what: str,
    caption: str,
    alt: str,
    widths: Sequence[int],
    *,
    marked_block: int | None = None,
    theme: Theme = "light",
    **more: Any,
) -> Drawing:
    """A heatmap of one value per weight, with the chosen block outlined."""
    zmax, saturates = shrinking.ceiling(shrunk.array)
    figure = go.Figure(shapes.heatmap(shrunk, unit, **({"zmax": zmax} | more)))
    shapes.matrix_axes(figure, *shape)
    shapes.outline_block(figure, widths, marked_block)
    what = f"{what}; {shrunk.note}" + ("" if "zmax" in more else saturates)
    caption += shapes.mark_words(marked_block)
    alt = f"Heatmap of {alt}, input channels across, output channels down"
    axes = {"x": "input channel", "y": "output channel"}
    return style.finish(figure, theme, finding, what, caption, alt, shrinking.frame(shrunk), height=460, **axes)


def weight_map(weight: Any, *, widths: Sequence[int] = (), layer: str = "", **look: Any) -> Drawing:
    """|W| as a heatmap; W is (out, in). Here and below: `look` are the block to be marked and the theme.

    To mark a block, `widths` of all blocks are needed.
    """
    magnitude = np.abs(shrinking.to_numpy(weight))
    shrunk = shrinking.shrink(magnitude)
    finding, strongest = _strongest_column(magnitude)
    rows, columns = magnitude.shape
    what = f"|W|{words.of(layer)}, {rows} output × {columns} input channels"
    caption = (
        f"The largest weight is {words.number(float(shrunk.array.max()))}, the median |W| is "
        f"{words.number(_median(magnitude))}; {strongest}."
    )
    alt = f"the absolute weights{words.of(layer)}"
    return _cells(shrunk, magnitude.shape, "|W|", finding, what, caption, alt, widths, **look)


def weight_surface(
    weight: Any, *, widths: Sequence[int] = (), layer: str = "", marked_block: int | None = None, theme: Theme = "light"
) -> Drawing:
    """|W| as a surface over input channel × output channel (the paper's Figure 1b)."""
    magnitude = np.abs(shrinking.to_numpy(weight))
    shrunk = shrinking.shrink(magnitude, SURFACE_CELLS)
    finding, strongest = _strongest_column(magnitude)
    rows, columns = shrunk.array.shape
    surface = go.Surface(
        z=shrunk.array.astype(np.float32),
        x=np.arange(columns) * shrunk.columns,
        y=np.arange(rows) * shrunk.rows,
        colorscale=palette.SEQUENTIAL,
        cmin=0,
        colorbar=shapes.colourbar("|W|", len=0.7),
        hovertemplate="input channel %{x}<br>output channel %{y}<br>|W| %{z:.4g}<extra></extra>",
    )
    figure = go.Figure(surface)
    caption = f"Ridges along the output channels are strong input channels: {strongest}."
    if marked_block is not None:
        caption += f" Block {marked_block} stands between the two frames."
        start, end = shapes.block_span(widths, marked_block)
        deep, top = len(magnitude) - 1, 0.6 * float(shrunk.array.max())
        gate = {"y": [0, 0, deep, deep], "z": [0, top, top, 0], "line": {"color": palette.MARK, "width": 6}}
        for edge in (start, end - 1):
            figure.add_scatter3d(x=[edge] * 4, mode="lines", hoverinfo="skip", **gate)
    axis = {"tickfont": {"size": 12}}
    figure.update_layout(
        scene={
            "xaxis": {"title": {"text": "input channel"}, **axis},
            "yaxis": {"title": {"text": "output channel"}, **axis},
            "zaxis": {"title": {"text": ""}, "rangemode": "tozero", **axis},  # the colour bar names it
            "aspectratio": {"x": 1.5, "y": 1.1, "z": 0.6},
            "camera": {"eye": {"x": 1.2, "y": -1.6, "z": 0.85}, "center": {"x": 0, "y": 0, "z": -0.22}},
        }
    )
    what = f"|W|{words.of(layer)} as a surface; {shrunk.note}"
    alt = f"3-D surface of the absolute weights{words.of(layer)} over input and output channel"
    drawing = style.finish(figure, theme, finding, what, caption, alt, shrinking.frame(shrunk), height=560)
    figure.update_layout(margin={"l": 8, "r": 8, "b": 8})
    return drawing


def _strongest_column(magnitude: np.ndarray) -> tuple[str, str]:
    """The finding and the sentence about the input channel with the largest sum of |W|."""
    sums = magnitude.sum(0, dtype=np.float64)
    best, median = int(sums.argmax()), float(np.median(sums))
    if not sums[best]:
        return "All weights are 0", "no input channel has a weight"
    times = sums[best] / median if median > 0 else float("inf")
    share = sums[best] / sums.sum() if sums.sum() > 0 else 0.0
    strongest = (
        f"input channel {best} holds {words.percent(share, 2)} of all |W|, "
        f"{words.number(times)} times the median channel"
    )
    return f"The strongest input channel is {best}, {words.number(times)} times the median one", strongest


def _median(values: np.ndarray) -> float:
    # A sample is enough for a caption's three digits, and a full median of 45 million values takes a second.
    flat = values.reshape(-1)
    return float(np.median(flat[:: max(1, flat.size // 1_000_000)]))


def importance_map(plan: OrderPlan, *, layer: str = "", **look: Any) -> Drawing:
    """S = |W|·sqrt(mean x²) as a heatmap."""
    values = shrinking.to_numpy(plan.importance)
    columns = values.sum(0, dtype=np.float64)
    total = columns.sum()
    keep = max(1, round(0.01 * len(columns)))
    share = np.sort(columns)[::-1][:keep].sum() / total if total else 0.0
    hold = "holds" if keep == 1 else "hold"
    who = words.sentence(words.count(keep, "column"))
    finding = f"{who} of {len(columns)} {hold} {words.percent(share)} of the importance"
    what = f"Importance S = |W|·√(mean x²){words.of(layer)}"
    caption = (
        f"S is at most {words.number(float(values.max()))}, its median {words.number(_median(values))}; the most "
        f"important input channel is {int(columns.argmax())}."
    )
    alt, shrunk = f"the importance{words.of(layer)}", shrinking.shrink(values)
    return _cells(shrunk, values.shape, "S", finding, what, caption, alt, plan.block_width, **look)


def potential_loss_map(plan: OrderPlan, *, layer: str = "", **look: Any) -> Drawing:
    """L as a heatmap: what pre-pruning would remove, by importance."""
    values = shrinking.to_numpy(plan.potential_loss)
    per_column = shrinking.to_numpy(plan.loss_per_column)
    worst = int(per_column.argmax())
    total, importance = float(values.sum(dtype=np.float64)), float(plan.importance.double().sum())
    finding = f"Block {worst} would lose most, {words.number(float(per_column[worst]))} per column"
    if not total:
        finding = "No block would lose anything"
    what = f"Potential loss L{words.of(layer)} at sparsity {plan.pattern}: S where pre-pruning removes, else 0"
    caption = (
        f"Pre-pruning would remove {words.percent(total / importance if importance else 0)} of all importance; the "
        f"largest weight to go has S = {words.number(float(values.max()))}."
    )
    alt, shrunk = f"the potential loss{words.of(layer)}", shrinking.shrink(values)
    return _cells(shrunk, values.shape, "L", finding, what, caption, alt, plan.block_width, **look)


def prepruning_mask(plan: OrderPlan, *, layer: str = "", theme: Theme = "light", **look: Any) -> Drawing:
    """How many weights of each cell pre-pruning would remove.

    Weights of no importance at all count as removed: L cannot tell them, and removing them costs nothing.
    """
    loss, score = shrinking.to_numpy(plan.potential_loss), shrinking.to_numpy(plan.importance)
    mask = (loss > 0) | ((score == 0) & (plan.pattern.ratio > 0))
    shrunk = shrinking.shrink(mask, how="sum")
    cell = shrunk.rows * shrunk.columns
    per_column = mask.mean(0)
    spared, hit = int(per_column.argmin()), int(per_column.argmax())
    removed = int(mask.sum())
    shrunk = shrunk._replace(array=shrunk.array.astype(np.uint8 if cell < 256 else np.float32))
    finding = (
        f"Input channel {spared} would lose {words.percent(float(per_column[spared]))} of its weights, channel {hit} "
        f"{words.percent(float(per_column[hit]))}"
    )
    if not removed:
        finding = "No weight would go"
    what = f"Pre-pruning mask{words.of(layer)} at sparsity {plan.pattern}, weights removed"
    share = words.percent(removed / mask.size)
    caption = f"{words.whole(removed)} of {words.whole(mask.size)} weights ({share}) would go."
    look |= {"theme": theme, "zmax": cell, "colorscale": "Greys" if theme == "light" else "Greys_r"}
    alt = f"the pre-pruning mask{words.of(layer)}"
    return _cells(shrunk, mask.shape, "removed", finding, what, caption, alt, plan.block_width, **look)


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
        shapes.lines(figure, table["column"], strip, look, f"{name} %{{y:.4g}}", width=1, yaxis=f"y{number}", **shape)
    of_heads = f"; dotted: {heads} attention heads of {len(table) // heads} columns" if heads else ""
    what = f"Columns{words.of(layer)}; solid: edges of {words.count(len(plan.block_width), 'block')}{of_heads}"
    _stack(figure, len(table))
    _edges(figure, plan.block_width, heads, len(table), theme)
    if found is not None:
        what += f"; shaded: block {found.block}"
        start, end = shapes.block_span(plan.block_width, found.block)
        shade = {"fillcolor": palette.INKS[theme].blank, "line": {"width": 0}, "layer": "below"}
        figure.add_shape(type="rect", x0=start - 0.5, x1=end - 0.5, y0=0, y1=1, yref="paper", **shade)
    shapes.outline_block(figure, plan.block_width, marked_block)
    caption = _in_numbers(table, plan, found) + shapes.mark_words(marked_block)
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
