"""One layer in depth: weights, Hessian, importance, losses, and the order that ROSE draws from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app.figures import style
from app.figures.style import Drawing, Shrunk, Theme
from rose import Order, OrderPlan, RoseError, make_order

SURFACE_CELLS = 160  # a side; a surface is drawn as triangles, several per cell
PICTURE_LINES = 640  # columns that the order picture draws one by one


def _of(layer: str) -> str:
    return f" of {layer}" if layer else ""


def _matrix(
    shrunk: Shrunk,
    shape: tuple[int, int],
    finding: str,
    what: str,
    unit: str,
    theme: Theme,
    widths: Sequence[int],
    marked_block: int | None,
    **more: Any,
) -> go.Figure:
    """A heatmap of one value per weight, with the chosen block outlined."""
    zmax, saturates = style.ceiling(shrunk.array)
    figure = go.Figure(style.heatmap(shrunk, unit, **({"zmax": zmax} | more)))
    style.base(
        figure,
        theme,
        finding,
        what + ("" if "zmax" in more else saturates),
        x="input channel",
        y="output channel",
        height=460,
    )
    style.matrix_axes(figure, *shape)
    style.outline_block(figure, widths, marked_block)
    return figure


# Weights


def weight_map(
    weight: Any,
    *,
    widths: Sequence[int] = (),
    layer: str = "",
    marked_block: int | None = None,
    theme: Theme = "light",
) -> Drawing:
    """|W| as a heatmap.

    Args:
        weight: W, (out, in).
        widths: block widths left to right; needed to outline a block.
    """
    magnitude = np.abs(style.to_numpy(weight))
    shrunk = style.shrink(magnitude)
    finding, strongest = _strongest_column(magnitude)
    largest = float(shrunk.array.max())
    figure = _matrix(
        shrunk,
        magnitude.shape,
        finding,
        f"|W|{_of(layer)}, {_size(magnitude.shape)}; {shrunk.note}",
        "|W|",
        theme,
        widths,
        marked_block,
    )
    caption = (
        f"The largest weight is {style.number(largest)}, the median |W| is {style.number(_median(magnitude))}; "
        f"{strongest}.{style.mark_words(marked_block)}"
    )
    alt = f"Heatmap of the absolute weights{_of(layer)}, input channels across, output channels down. {caption}"
    return Drawing(figure, caption, alt, style.frame(shrunk))


def weight_surface(
    weight: Any,
    *,
    widths: Sequence[int] = (),
    layer: str = "",
    marked_block: int | None = None,
    theme: Theme = "light",
) -> Drawing:
    """|W| as a surface over input channel × output channel (the paper's Figure 1b)."""
    magnitude = np.abs(style.to_numpy(weight))
    shrunk = style.shrink(magnitude, SURFACE_CELLS)
    finding, strongest = _strongest_column(magnitude)
    rows, columns = shrunk.array.shape
    surface = go.Surface(
        z=shrunk.array.astype(np.float32),
        x=(np.arange(columns) * shrunk.columns).astype(np.float32),
        y=(np.arange(rows) * shrunk.rows).astype(np.float32),
        colorscale=style.SEQUENTIAL,
        cmin=0,
        colorbar=style.colourbar("|W|", len=0.7),
        hovertemplate="input channel %{x}<br>output channel %{y}<br>|W| %{z:.4g}<extra></extra>",
    )
    figure = go.Figure(surface)
    if marked_block is not None:
        start, end = style.block_span(widths, marked_block)
        deep, top = len(magnitude) - 1, 0.6 * float(shrunk.array.max())
        for edge in (start, end - 1):  # a gate at each side of the block
            figure.add_scatter3d(
                x=[edge] * 4,
                y=[0, 0, deep, deep],
                z=[0, top, top, 0],
                mode="lines",
                line={"color": style.MARK, "width": 6},
                hoverinfo="skip",
            )
    style.base(figure, theme, finding, f"|W|{_of(layer)} as a surface; {shrunk.note}", height=560)
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
    figure.update_layout(margin={"l": 8, "r": 8, "b": 8})
    caption = f"Ridges along the output channels are strong input channels: {strongest}."
    if marked_block is not None:
        caption += f" Block {marked_block} stands between the two frames."
    alt = f"3-D surface of the absolute weights{_of(layer)} over input and output channel. {caption}"
    return Drawing(figure, caption, alt, style.frame(shrunk))


def _strongest_column(magnitude: np.ndarray) -> tuple[str, str]:
    """The finding and the sentence about the input channel with the largest sum of |W|."""
    sums = magnitude.sum(0, dtype=np.float64)
    best, median = int(sums.argmax()), float(np.median(sums))
    times = sums[best] / median if median > 0 else float("inf")
    share = sums[best] / sums.sum() if sums.sum() > 0 else 0.0
    strongest = (
        f"input channel {best} holds {style.percent(share, 2)} of all |W|, "
        f"{style.number(times)} times the median channel"
    )
    return f"The strongest input channel is {best}, {style.number(times)} times the median one", strongest


def _median(values: np.ndarray) -> float:
    # A sample is enough for a caption's three digits, and a full median of 45 million values takes a second.
    flat = values.reshape(-1)
    return float(np.median(flat[:: max(1, flat.size // 1_000_000)]))


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} output × {shape[1]} input channels"


# Hessian


def hessian_diagonal(
    diagonal: Any,
    *,
    added: float = 0.0,
    arrange: Literal["natural", "sorted"] = "natural",
    scale: Literal["linear", "log"] = "linear",
    widths: Sequence[int] = (),
    layer: str = "",
    marked_block: int | None = None,
    theme: Theme = "light",
) -> Drawing:
    """diag(H) by input channel, dead columns and the damping level marked.

    Args:
        diagonal: diag(H), (in,), the sum of x_j² over calibration tokens.
        added: λ, the absolute damping (`LayerResult.added_damping`).
        arrange: by channel number, or from largest to smallest.
        marked_block: its channels are drawn in another colour, wherever they stand.
    """
    values = style.to_numpy(diagonal).astype(np.float64)
    order = np.argsort(-values, kind="stable") if arrange == "sorted" else np.arange(len(values))
    place = np.arange(len(values))
    dead = values == 0
    live = values[~dead]
    floor = _log_floor(live, added) if scale == "log" else 0.0
    shown = values[order]
    y = np.where(shown > 0, shown, np.nan) if scale == "log" else shown
    hover = "input channel %{customdata}<br>H<sub>jj</sub> %{y:.4g}<extra></extra>"
    figure = go.Figure()
    figure.add_scatter(
        x=place.astype(np.float32),
        y=y.astype(np.float32),
        customdata=order.astype(np.int32),
        mode="lines" if len(values) > 1 else "markers",
        line={"color": style.TEAL, "width": 1.5},
        name="diag(H)",
        hovertemplate=hover,
    )
    if marked_block is not None:
        start, end = style.block_span(widths, marked_block)
        inside = (order >= start) & (order < end)
        figure.add_scatter(
            x=place[inside].astype(np.float32),
            y=y[inside].astype(np.float32),
            customdata=order[inside].astype(np.int32),
            mode="markers",
            marker={"color": style.MARK, "size": 5},
            name=f"block {marked_block}",
            hovertemplate=hover,
        )
    if dead.any():
        at = dead[order]
        figure.add_scatter(
            x=place[at].astype(np.float32),
            y=np.full(int(at.sum()), floor, np.float32),
            customdata=order[at].astype(np.int32),
            mode="markers",
            marker={"symbol": "x", "size": 9, "color": style.ORANGE},
            name="dead, H = 0",
            hovertemplate="input channel %{customdata} is dead<extra></extra>",
        )
    below = int((live < added).sum())
    if added > 0:
        style.level(figure, added, (-0.5, len(values) - 0.5), f"damping λ = {style.number(added)}", theme)
    spread = live.max() / live.min() if len(live) else 1.0
    mean = float(values.mean())
    top = int(values.argmax())
    finding = f"Input channel {top} is {style.number(values[top] / mean if mean else 0)} times as active as the mean"
    log_words = ", logarithmic scale, which has no 0" if scale == "log" else ""
    style.base(
        figure,
        theme,
        finding,
        f"Hessian diagonal{_of(layer)}, the sum of x² over calibration tokens{log_words}",
        x="input channel" if arrange == "natural" else "input channels, most active first (rank)",
        y="H<sub>jj</sub>",
        legend=len(figure.data) > 1,
    )
    figure.update_xaxes(range=[-0.01 * len(values) - 0.5, 1.01 * len(values) - 0.5], zeroline=False)
    if scale == "log":
        figure.update_yaxes(type="log", exponentformat="power", dtick=1)
        figure.update_yaxes(range=[np.log10(floor), np.log10(values.max() * 1.3)] if len(live) else None)
    else:
        figure.update_yaxes(rangemode="tozero")
    caption = (
        f"{style.sentence(style.count(int(dead.sum()), 'dead column'))} of {len(values)}; the live ones span a factor "
        f"of {style.number(spread)}, and {style.count(below, 'of them lies', 'of them lie')} below the damping level."
    )
    alt = f"Line chart of the Hessian diagonal{_of(layer)}. {finding}. {caption}"
    table = pd.DataFrame({"input_channel": order, "hessian_diagonal": shown, "dead": dead[order]})
    return Drawing(figure, caption, alt, table)


def _log_floor(live: np.ndarray, added: float) -> float:
    """A decade mark below everything shown on a logarithmic axis."""
    smallest = min([v for v in (float(live.min()) if len(live) else 0.0, added) if v > 0], default=1.0)
    return float(10.0 ** np.floor(np.log10(smallest * 0.8)))


def hessian_spectrum(eigenvalues: Any, *, added: float = 0.0, layer: str = "", theme: Theme = "light") -> Drawing:
    """Eigenvalues of H, descending, on a logarithmic axis, with the damping level.

    Args:
        eigenvalues: of the undamped H, (in,), any order; rounding may have made some negative.
        added: λ, absolute.
    """
    values = np.sort(style.to_numpy(eigenvalues).astype(np.float64))[::-1]
    largest = float(values[0])
    if largest <= 0:
        raise RoseError("All eigenvalues are 0, so there is no spectrum to show; check the calibration inputs.")
    positive = values[values > 0]
    floor = max(_log_floor(positive, added), 10.0 ** np.floor(np.log10(largest) - 12))
    shown = np.where(values > floor, values, np.nan)
    below = int((values < added).sum())
    half = int(np.searchsorted(np.cumsum(positive), 0.5 * positive.sum())) + 1
    condition = (largest + added) / max(values[-1] + added, np.finfo(np.float64).tiny)
    figure = go.Figure()
    figure.add_scatter(
        x=np.arange(1, len(values) + 1, dtype=np.float32),
        y=shown.astype(np.float32),
        mode="lines",
        line={"color": style.TEAL, "width": 2.5},
        name="of H",
        hovertemplate="eigenvalue %{x:.0f}<br>%{y:.4g}<extra>H</extra>",
    )
    if added > 0:
        figure.add_scatter(
            x=np.arange(1, len(values) + 1, dtype=np.float32),
            y=(np.maximum(values, 0) + added).astype(np.float32),
            mode="lines",
            line={"color": style.ORANGE, "width": 1.5, "dash": "dot"},
            name="of H + λI, which is factorized",
            hovertemplate="eigenvalue %{x:.0f}<br>%{y:.4g}<extra>H + λI</extra>",
        )
        style.level(figure, added, (1, len(values)), f"damping λ = {style.number(added)}", theme)
    finding = f"{sentence_count(half, 'direction carries', 'directions carry')} half of the input's energy"
    style.base(
        figure,
        theme,
        finding,
        f"Eigenvalues of the Hessian{_of(layer)}, largest first, logarithmic scale, which has no 0",
        x="eigenvalue (rank)",
        y="eigenvalue",
        legend=added > 0,
    )
    figure.update_xaxes(range=[0, len(values) + 1])
    figure.update_yaxes(
        type="log", exponentformat="power", dtick=1, range=[np.log10(floor), np.log10((largest + added) * 1.5)]
    )
    caption = (
        f"{style.sentence(style.count(below, 'eigenvalue'))} of {len(values)} "
        f"{'lies' if below == 1 else 'lie'} below the damping λ = {style.number(added)}, "
        f"which brings the condition number to {style.number(condition)}."
    )
    alt = f"Line chart of the Hessian's eigenvalues{_of(layer)} on a logarithmic axis. {finding}. {caption}"
    table = pd.DataFrame({"rank": np.arange(1, len(values) + 1), "eigenvalue": values, "damped": values + added})
    return Drawing(figure, caption, alt, table)


def sentence_count(value: int, one: str, many: str) -> str:
    """ "Seven directions carry"."""
    return style.sentence(style.count(value, one, many))


# Importance and pre-pruning


def importance_map(
    plan: OrderPlan, *, layer: str = "", marked_block: int | None = None, theme: Theme = "light"
) -> Drawing:
    """S = |W|·sqrt(mean x²) as a heatmap."""
    values = style.to_numpy(plan.importance)
    shrunk = style.shrink(values)
    columns = values.sum(0, dtype=np.float64)
    total = columns.sum()
    keep = max(1, round(0.01 * len(columns)))
    share = np.sort(columns)[::-1][:keep].sum() / total if total else 0.0
    finding = (
        f"{sentence_count(keep, 'column', 'columns')} of {len(columns)} hold {style.percent(share)} of the importance"
    )
    figure = _matrix(
        shrunk,
        values.shape,
        finding if keep > 1 else finding.replace(" hold ", " holds "),
        f"Importance S = |W|·√(mean x²){_of(layer)}; {shrunk.note}",
        "S",
        theme,
        plan.block_width,
        marked_block,
    )
    caption = (
        f"S is at most {style.number(float(values.max()))}, its median {style.number(_median(values))}; the most "
        f"important input channel is {int(columns.argmax())}.{style.mark_words(marked_block)}"
    )
    alt = f"Heatmap of the importance{_of(layer)}, input channels across, output channels down. {caption}"
    return Drawing(figure, caption, alt, style.frame(shrunk))


def potential_loss_map(
    plan: OrderPlan, *, layer: str = "", marked_block: int | None = None, theme: Theme = "light"
) -> Drawing:
    """L as a heatmap: what pre-pruning would remove, by importance."""
    values = style.to_numpy(plan.potential_loss)
    shrunk = style.shrink(values)
    per_column = style.to_numpy(plan.loss_per_column)
    worst = int(per_column.argmax())
    total, importance = float(values.sum(dtype=np.float64)), float(plan.importance.double().sum())
    finding = f"Block {worst} would lose most, {style.number(float(per_column[worst]))} per column"
    figure = _matrix(
        shrunk,
        values.shape,
        finding,
        f"Potential loss L{_of(layer)} at sparsity {plan.pattern}: S where pre-pruning removes, else 0; {shrunk.note}",
        "L",
        theme,
        plan.block_width,
        marked_block,
    )
    caption = (
        f"Pre-pruning would remove {style.percent(total / importance if importance else 0)} of all importance; the "
        f"largest weight to go has S = {style.number(float(values.max()))}.{style.mark_words(marked_block)}"
    )
    alt = f"Heatmap of the potential loss{_of(layer)}, input channels across, output channels down. {caption}"
    return Drawing(figure, caption, alt, style.frame(shrunk))


def prepruning_mask(
    plan: OrderPlan, *, layer: str = "", marked_block: int | None = None, theme: Theme = "light"
) -> Drawing:
    """How many weights of each cell pre-pruning would remove.

    Weights of no importance at all count as removed: L cannot tell them, and removing them costs nothing.
    """
    loss, score = style.to_numpy(plan.potential_loss), style.to_numpy(plan.importance)
    mask = (loss > 0) | ((score == 0) & (plan.pattern.ratio > 0))
    shrunk = style.shrink(mask, how="sum")
    cell = shrunk.rows * shrunk.columns
    per_column = mask.mean(0)
    spared, hit = int(per_column.argmin()), int(per_column.argmax())
    removed = int(mask.sum())
    finding = (
        f"Input channel {spared} would lose {style.percent(float(per_column[spared]))} of its weights, "
        f"channel {hit} {style.percent(float(per_column[hit]))}"
    )
    figure = _matrix(
        Shrunk(shrunk.array.astype(np.uint8 if cell < 256 else np.float32), shrunk.rows, shrunk.columns, shrunk.note),
        mask.shape,
        finding,
        f"Pre-pruning mask{_of(layer)} at sparsity {plan.pattern}, weights removed; {shrunk.note}",
        "removed",
        theme,
        plan.block_width,
        marked_block,
        zmax=cell,
        colorscale="Greys" if theme == "light" else "Greys_r",
    )
    caption = f"{removed:,} of {mask.size:,} weights ({style.percent(removed / mask.size)}) would go.".replace(
        ",", " "
    ) + style.mark_words(marked_block)
    alt = f"Heatmap of the pre-pruning mask{_of(layer)}. {finding}. {caption}"
    return Drawing(figure, caption, alt, style.frame(shrunk))


# Losses of columns and blocks


def column_loss_map(
    plan: OrderPlan, *, layer: str = "", marked_block: int | None = None, theme: Theme = "light"
) -> Drawing:
    """Column loss as block × position within the block; a narrower last block ends early."""
    loss = style.to_numpy(plan.column_loss).astype(np.float64)
    widths = plan.block_width
    grid = np.full((len(widths), max(widths)), np.nan)
    start = 0
    for block, width in enumerate(widths):
        grid[block, :width] = loss[start : start + width]
        start += width
    filled = np.where(np.isnan(grid), -np.inf, grid)
    shrunk = style.shrink(filled, what="columns")
    shown = np.where(np.isinf(shrunk.array), np.nan, shrunk.array)
    top = int(loss.argmax())
    block = style.block_of(widths, top)
    median = float(np.median(loss))
    times = style.number(loss[top] / median) if median > 0 else "∞"
    finding = f"Column {top} in block {block} would lose most, {times} times the median column"
    figure = go.Figure(
        style.heatmap(
            Shrunk(shown, shrunk.rows, shrunk.columns, shrunk.note),
            "column loss",
            hovertemplate="block %{y:.0f}, position %{x:.0f}<br>column loss %{z:.4g}<extra></extra>",
        )
    )
    note = "" if shrunk.rows == shrunk.columns == 1 else f"; {shrunk.note}"
    narrow = f"; the last block has only {widths[-1]}" if widths[-1] < widths[0] else ""
    style.base(
        figure,
        theme,
        finding,
        f"Column loss{_of(layer)}, sum of L over output channels, in blocks of {widths[0]} columns{narrow}{note}",
        x="position within the block (columns)",
        y="block",
        height=max(300, min(620, 170 + 26 * len(widths))),
    )
    figure.update_layout(plot_bgcolor=style.INKS[theme].blank)
    style.matrix_axes(figure, len(widths), max(widths))
    if len(widths) <= 16:
        figure.update_yaxes(dtick=1)
    if marked_block is not None:
        style.block_span(widths, marked_block)
        style.outline(figure, -0.5, widths[marked_block] - 0.5, marked_block - 0.5, marked_block + 0.5)
    caption = (
        f"Column losses run from {style.number(float(loss.min()))} to {style.number(float(loss[top]))}, median "
        f"{style.number(median)}.{style.mark_words(marked_block)}"
    )
    alt = f"Heatmap of the column loss{_of(layer)} by block and position. {finding}. {caption}"
    columns = np.arange(len(loss))
    starts = np.repeat(np.cumsum([0, *widths[:-1]]), widths)
    table = pd.DataFrame(
        {
            "column": columns,
            "block": np.repeat(np.arange(len(widths)), widths),
            "position": columns - starts,
            "column_loss": loss,
        }
    )
    return Drawing(figure, caption, alt, table)


def block_loss_bars(
    plan: OrderPlan,
    *,
    layer: str = "",
    threshold: float | None = None,
    marked_block: int | None = None,
    theme: Theme = "light",
) -> Drawing:
    """Block losses as bars, and the line that the smallest must stay above for the layer not to be columnar.

    Blocks are compared by loss per column, so that is what is drawn where a block is narrower.

    Args:
        threshold: on the relative range; the plan's own if not given.
    """
    threshold = plan.threshold if threshold is None else threshold
    columnar = plan.relative_range > threshold
    widths = np.array(plan.block_width)
    uneven = bool((widths != widths[0]).any())
    values = style.to_numpy(plan.loss_per_column if uneven else plan.block_loss).astype(np.float64)
    blocks = np.arange(len(values))
    if marked_block is not None:
        style.block_span(plan.block_width, marked_block)
    ink = style.INKS[theme]
    narrow = widths < widths.max()
    unit = "block loss per column" if uneven else "block loss"
    bar = go.Bar(
        x=blocks,
        y=values,
        customdata=np.stack([style.to_numpy(plan.block_loss).astype(np.float64), widths], axis=1),
        marker={
            "color": [style.MARK if b == marked_block else style.TEAL for b in blocks],
            "pattern": {"shape": ["/" if n else "" for n in narrow], "solidity": 0.25},
        },
        hovertemplate=f"block %{{x}}, %{{customdata[1]:.0f}} columns<br>{unit} %{{y:.4g}}<br>"
        "block loss %{customdata[0]:.4g}<extra></extra>",
    )
    figure = go.Figure(bar)
    largest, smallest = float(values.max()), float(values.min())
    line = (1 - threshold) * largest
    if largest > 0:
        figure.add_hline(y=line, line={"color": ink.text, "dash": "dash", "width": 2})
    sign = "above" if columnar else "not above"
    verdict = "Columnar" if columnar else "Not columnar"
    finding = f"{verdict}: relative range {plan.relative_range:.2f}, {sign} {threshold:.2f}"
    hatched = f"; hatched: only {int(widths.min())} columns wide" if uneven else ""
    style.base(
        figure,
        theme,
        finding,
        f"{style.sentence(unit)}{_of(layer)}, blocks of {int(widths.max())} columns{hatched}; columnar if a bar ends "
        f"below the dashed line, {style.percent(1 - threshold, 0)} of the highest",
        x="block",
        y=unit,
    )
    figure.update_yaxes(rangemode="tozero")
    if len(values) <= 33:
        figure.update_xaxes(dtick=1)
    caption = (
        f"Block {int(values.argmax())} has the highest {unit}, {style.number(largest)}, and block "
        f"{int(values.argmin())} the lowest, {style.number(smallest)}: relative range "
        f"({style.number(largest)} − {style.number(smallest)}) / {style.number(largest)} = {plan.relative_range:.3f}."
    )
    alt = f"Bar chart of {unit}{_of(layer)}. {finding}. {caption}"
    table = pd.DataFrame(
        {
            "block": blocks,
            "columns": widths,
            "block_loss": style.to_numpy(plan.block_loss),
            "block_loss_per_column": style.to_numpy(plan.loss_per_column),
        }
    )
    return Drawing(figure, caption, alt, table)


# Order


def order_picture(
    plan: OrderPlan,
    order: Order | str | None = None,
    *,
    layer: str = "",
    marked_column: int | None = None,
    marked_block: int | None = None,
    theme: Theme = "light",
) -> Drawing:
    """Where every column goes: natural order above, pruning order below, a line for each column.

    Lines have the colour of their block's loss. A layer wider than 640 columns shows a ribbon per block where
    blocks stay whole, else every k-th column.

    Args:
        order: as visited; the plan's own if not given.
        marked_column: original column to follow.

    Raises:
        RoseError: a block or column that does not exist.
    """
    visited = make_order(plan, order) if order is not None else _planned(plan)
    columns = len(visited.permutation)
    if marked_column is not None and not 0 <= marked_column < columns:
        raise RoseError(f"This layer has columns 0 to {columns - 1}, so column {marked_column} cannot be followed.")
    widths = plan.block_width
    if marked_block is not None:
        style.block_span(widths, marked_block)
    step = style.to_numpy(visited.inverse)
    loss = style.to_numpy(plan.loss_per_column).astype(np.float64)
    colours = style.magnitude_colours(loss, theme)
    figure = go.Figure()
    ribbons, every = False, 1
    if columns > PICTURE_LINES:
        ribbons = _whole_blocks(step, widths)
        every = -(-columns // PICTURE_LINES)
    start = 0
    for block, width in enumerate(widths):
        members = np.arange(start, start + width)
        shape = _ribbon(step[members], members) if ribbons else _lines(step, members[members % every == 0])
        chosen = block == marked_block
        colour = style.MARK if chosen else colours[block]
        figure.add_scatter(
            x=shape[0],
            y=shape[1],
            mode="lines",
            line={"color": colour, "width": 1 if ribbons else (2 if chosen else 1.2)},
            fill="toself" if ribbons else "none",
            fillcolor=colour,
            opacity=0.75,
            hoveron="fills" if ribbons else "points",
            name=f"block {block}: loss {style.number(loss[block])} per column",
            text=f"block {block}",
            hovertemplate=None if ribbons else f"block {block}<br>column or step %{{x:.0f}}<extra></extra>",
            hoverinfo="text" if ribbons else None,
        )
        start += width
    _block_rows(figure, plan, visited, theme)
    if marked_column is not None:
        figure.add_scatter(
            x=[marked_column, int(step[marked_column])],
            y=[1, 0],
            mode="lines+markers",
            line={"color": style.MARK, "width": 4},
            marker={"size": 11, "color": style.MARK},
            hoverinfo="skip",
        )
        middle = (marked_column + int(step[marked_column])) / 2
        left = middle > columns / 2
        style.note(
            figure,
            f"column {marked_column} → step {int(step[marked_column])}",
            theme,
            x=middle,
            y=0.5,
            xshift=-8 if left else 8,
            xanchor="right" if left else "left",
        )
    moved = int((step != np.arange(columns)).sum())
    first = int(style.to_numpy(visited.permutation)[0])
    label = style.order_style(visited.name).label
    if visited.is_natural:
        finding = "The columns stay in their natural order"
    else:
        finding = f"{label}: pruning starts in block {style.block_of(widths, first)}, with column {first}"
    drawn = "a ribbon for each block" if ribbons else "a line for each column"
    if not ribbons and every > 1:
        drawn = f"a line for one column in {every}"
    style.base(
        figure,
        theme,
        finding,
        f"Columns{_of(layer)} before (top) and in pruning order (bottom), {drawn}; brighter: more loss per column",
        x="column (top), step at which it is pruned (bottom)",
        height=420,
    )
    figure.update_xaxes(range=[-0.5 - 0.01 * columns, columns - 0.5 + 0.01 * columns], showgrid=False, zeroline=False)
    figure.update_yaxes(
        range=[-0.28, 1.28],
        tickvals=[1, 0],
        ticktext=["natural", "pruning"],
        showgrid=False,
        zeroline=False,
        showline=False,
    )
    caption = f"{moved} of {columns} columns change place; the relative range is {plan.relative_range:.2f}."
    if marked_column is not None:
        caption += (
            f" Column {marked_column} (block {style.block_of(widths, marked_column)}, loss "
            f"{style.number(float(plan.column_loss[marked_column]))}) is pruned at step {int(step[marked_column])}."
        )
    alt = f"Two rows of columns{_of(layer)} joined by lines from natural to pruning order. {finding}. {caption}"
    table = pd.DataFrame(
        {
            "column": np.arange(columns),
            "block": np.repeat(np.arange(len(widths)), widths),
            "step": step,
            "column_loss": style.to_numpy(plan.column_loss),
        }
    )
    return Drawing(figure, caption, alt, table)


def _planned(plan: OrderPlan) -> Order:
    name = "two_level" if plan.is_columnar else "natural"
    return make_order(plan, name)


def _whole_blocks(step: np.ndarray, widths: Sequence[int]) -> bool:
    """Whether every block is visited in one run."""
    parts = np.split(step, np.cumsum(widths)[:-1])
    return all(int(part.max() - part.min()) == len(part) - 1 for part in parts)


def _lines(step: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Line from (column, 1) to (step, 0) for each column; NaN between lines."""
    x = np.full((len(columns), 3), np.nan, np.float32)
    y = np.full((len(columns), 3), np.nan, np.float32)
    x[:, 0], x[:, 1] = columns, step[columns]
    y[:, 0], y[:, 1] = 0.93, 0.07
    return x.ravel(), y.ravel()


def _ribbon(steps: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The band from a block's place above to its place below."""
    top, bottom = (columns[0] - 0.5, columns[-1] + 0.5), (steps.min() - 0.5, steps.max() + 0.5)
    x = np.array([top[0], top[1], bottom[1], bottom[0], top[0]], np.float32)
    return x, np.array([0.93, 0.93, 0.07, 0.07, 0.93], np.float32)


def _block_rows(figure: go.Figure, plan: OrderPlan, visited: Order, theme: Theme) -> None:
    """Block boundaries and numbers above the natural row and below the pruning row."""
    ink = style.INKS[theme]
    natural: list[int | None] = list(range(len(plan.block_width)))
    permutation = style.to_numpy(visited.permutation)
    rows: list[tuple[Sequence[int], list[int | None], float, float]] = [(plan.block_width, natural, 0.93, 1.0)]
    ends = np.cumsum(visited.widths)
    members = np.split(style.blocks_of(plan.block_width, permutation), ends[:-1])
    names = [int(m[0]) if (m == m[0]).all() else None for m in members]
    rows.append((visited.widths, names, 0.0, 0.07))
    shapes, labels = [], []
    for widths, blocks, low, high in rows:
        at = 0
        for width, name in zip(widths, blocks, strict=True):
            shapes.append(
                {
                    "type": "rect",
                    "x0": at - 0.5,
                    "x1": at + width - 0.5,
                    "y0": low,
                    "y1": high,
                    "line": {"color": ink.muted, "width": 1},
                    "fillcolor": ink.blank,
                }
            )
            labels.append(
                {
                    "x": at + width / 2 - 0.5,
                    "y": high if low > 0.5 else low,
                    "text": "·" if name is None else str(name),
                    "showarrow": False,
                    "yanchor": "bottom" if low > 0.5 else "top",
                    "font": {"size": style.FONT_SIZE},
                }
            )
            at += width
    # All at once: adding shapes one by one takes seconds for the 86 blocks of a wide layer.
    every = -(-len(plan.block_width) // 40)  # so that the numbers do not touch
    figure.update_layout(shapes=shapes, annotations=labels[::every] if every > 1 else labels)


# Methods


def method_errors(
    records: pd.DataFrame, *, column: str = "relative_error", baseline: str = "sparsegpt", theme: Theme = "light"
) -> Drawing:
    """Relative error of several methods on one or several layers, as bars.

    Args:
        records: columns as in `rose.LayerRecord`.
        column: "relative_error" or "held_out_error".
        baseline: the method that others are compared with in the title.

    Raises:
        RoseError: no row with this error.
    """
    table = records.dropna(subset=[column])
    if table.empty:
        raise RoseError("No error has been measured yet; prune a layer first.")
    methods = list(dict.fromkeys(table["method"]))
    layers = list(dict.fromkeys(table["layer"]))
    wide = table.pivot_table(index="layer", columns="method", values=column, sort=False).loc[layers, methods]
    figure = go.Figure()
    for method in methods:
        look = style.method_style(method)
        values = wide[method].to_numpy(np.float64)
        figure.add_bar(
            x=[style.short_layer(layer) for layer in layers],
            y=values,
            customdata=layers,
            name=look.label,
            marker={"color": look.colour},
            text=[style.number(v) for v in values] if len(layers) * len(methods) <= 16 else None,
            textposition="outside",
            cliponaxis=False,
            hovertemplate=f"%{{customdata}}<br>{look.label} %{{y:.4g}}<extra></extra>",
        )
    best = str(wide.mean().idxmin())
    mean = wide.mean()
    if baseline in methods and best != baseline and mean[baseline] > 0:
        saved = style.percent(1 - mean[best] / mean[baseline])
        finding = f"{style.method_style(best).label} has {saved} less error than {style.method_style(baseline).label}"
    else:
        finding = f"{style.method_style(best).label} has the lowest error"
    held = "held-out" if column == "held_out_error" else "calibration"
    where = (
        f"decoder block · layer {style.short_layer(layers[0])}" if len(layers) == 1 else f"{len(layers)} layers, mean"
    )
    style.base(
        figure,
        theme,
        finding,
        f"Relative error on {held} tokens, {where}",
        x="layer (decoder block · projection)" if len(layers) > 1 else "",
        y=style.ERROR,
        legend=len(methods) > 1,
    )
    figure.update_yaxes(rangemode="tozero")
    if len(layers) == 1:
        figure.update_layout(bargap=0.5)
    listed = ", ".join(f"{style.method_style(m).label} {style.number(mean[m])}" for m in mean.sort_values().index)
    caption = f"{'Mean error' if len(layers) > 1 else 'Error'}, lowest first: {listed}."
    alt = f"Bar chart of relative error by method. {finding}. {caption}"
    return Drawing(figure, caption, alt, wide.reset_index())
