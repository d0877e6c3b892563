"""Pictures of one layer with a cell for each weight: its size, its importance, and what pre-pruning makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from app import words
from app.figures import marks, palette, shrinking, style
from app.figures.palette import Theme
from app.figures.shrinking import Shrunk
from app.figures.style import Drawing
from rose import OrderPlan

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
    figure = go.Figure(marks.heatmap(shrunk, unit, **({"zmax": zmax} | more)))
    marks.matrix_axes(figure, *shape)
    marks.outline_block(figure, widths, marked_block)
    what = f"{what}; {shrunk.note}" + ("" if "zmax" in more else saturates)
    caption += marks.mark_words(marked_block)
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
        colorbar=marks.colourbar("|W|", len=0.7),
        hovertemplate="input channel %{x}<br>output channel %{y}<br>|W| %{z:.4g}<extra></extra>",
    )
    figure = go.Figure(surface)
    caption = f"Ridges along the output channels are strong input channels: {strongest}."
    if marked_block is not None:
        caption += f" Block {marked_block} stands between the two frames."
        start, end = marks.block_span(widths, marked_block)
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
