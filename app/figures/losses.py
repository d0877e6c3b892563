"""What pre-pruning says of one layer: losses of columns and of blocks, and whether the layer is columnar."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import words
from app.figures import palette, shrinking, style
from app.figures.palette import Theme
from app.figures.shrinking import Shrunk
from app.figures.style import Drawing
from rose import OrderPlan
from rose.layer.order import block_of


def column_loss_map(
    plan: OrderPlan, *, layer: str = "", marked_block: int | None = None, theme: Theme = "light"
) -> Drawing:
    """Column loss as block × position within the block; a narrower last block ends early."""
    loss = shrinking.to_numpy(plan.column_loss).astype(np.float64)
    widths = plan.block_width
    grid = np.full((len(widths), max(widths)), np.nan)
    start = 0
    for block, width in enumerate(widths):
        grid[block, :width] = loss[start : start + width]
        start += width
    filled = np.where(np.isnan(grid), -np.inf, grid)
    shrunk = shrinking.shrink(filled, what="columns")
    shown = np.where(np.isinf(shrunk.array), np.nan, shrunk.array)
    top = int(loss.argmax())
    block = block_of(widths, top)
    median = float(np.median(loss))
    times = f"{words.number(loss[top] / median)} times" if median > 0 else "and nothing in"
    finding = f"Column {top} in block {block} would lose most, {times} the median column"
    if not loss[top] > 0:
        finding = "Nothing is removed, so no column loses anything"
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
        f"Column loss{words.of(layer)}, sum of L over output channels, in blocks of {widths[0]} columns{narrow}{note}",
        x="position within the block (columns)",
        y="block",
        height=max(300, min(620, 170 + 26 * len(widths))),
    )
    figure.update_layout(plot_bgcolor=palette.INKS[theme].blank)
    style.matrix_axes(figure, len(widths), max(widths))
    figure.update_yaxes(dtick=style.whole_step(len(widths)))
    if marked_block is not None:
        style.block_span(widths, marked_block)
        style.outline(figure, -0.5, widths[marked_block] - 0.5, marked_block - 0.5, marked_block + 0.5)
    caption = (
        f"Column losses run from {words.number(float(loss.min()))} to {words.number(float(loss[top]))}, median "
        f"{words.number(median)}.{style.mark_words(marked_block)}"
    )
    alt = f"Heatmap of the column loss{words.of(layer)} by block and position. {finding}. {caption}"
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
    plan: OrderPlan, *, layer: str = "", marked_block: int | None = None, theme: Theme = "light"
) -> Drawing:
    """Block losses as bars, and the line that the smallest must stay above for the layer not to be columnar.

    Blocks are compared by loss per column, so that is what is drawn where a block is narrower.
    """
    widths = np.array(plan.block_width)
    uneven = bool((widths != widths[0]).any())
    values = shrinking.to_numpy(plan.loss_per_column if uneven else plan.block_loss).astype(np.float64)
    blocks = np.arange(len(values))
    if marked_block is not None:
        style.block_span(plan.block_width, marked_block)
    ink = palette.INKS[theme]
    narrow = widths < widths.max()
    unit = "block loss per column" if uneven else "block loss"
    bar = go.Bar(
        x=blocks,
        y=values,
        customdata=np.stack([shrinking.to_numpy(plan.block_loss).astype(np.float64), widths], axis=1),
        marker={
            "color": [palette.MARK if b == marked_block else palette.TEAL for b in blocks],
            "pattern": {"shape": ["/" if n else "" for n in narrow], "solidity": 0.25},
        },
        hovertemplate=f"block %{{x}}, %{{customdata[1]:.0f}} columns<br>{unit} %{{y:.4g}}<br>"
        "block loss %{customdata[0]:.4g}<extra></extra>",
    )
    figure = go.Figure(bar)
    largest, smallest = float(values.max()), float(values.min())
    line = (1 - plan.threshold) * largest
    if largest > 0:
        figure.add_hline(y=line, line={"color": ink.text, "dash": "dash", "width": 2})
    sign = "above" if plan.is_columnar else "not above"
    verdict = "Columnar" if plan.is_columnar else "Not columnar"
    finding = f"{verdict}: relative range {plan.relative_range:.2f}, {sign} {plan.threshold:.2f}"
    hatched = f"; hatched: only {int(widths.min())} columns wide" if uneven else ""
    style.base(
        figure,
        theme,
        finding,
        f"{words.sentence(unit)}{words.of(layer)}, blocks of {int(widths.max())} columns{hatched}; columnar if a bar "
        f"ends below the dashed line, {words.percent(1 - plan.threshold, 0)} of the highest",
        x="block",
        y=unit,
    )
    figure.update_yaxes(rangemode="tozero")
    figure.update_xaxes(dtick=style.whole_step(len(values)))
    caption = (
        f"Block {int(values.argmax())} has the highest {unit}, {words.number(largest)}, and block "
        f"{int(values.argmin())} the lowest, {words.number(smallest)}: relative range "
        f"({words.number(largest)} − {words.number(smallest)}) / {words.number(largest)} = {plan.relative_range:.3f}."
    )
    if not largest > 0:
        caption = f"The {unit} of every block is 0, and so is the relative range."
    alt = f"Bar chart of {unit}{words.of(layer)}. {finding}. {caption}"
    table = pd.DataFrame(
        {
            "block": blocks,
            "columns": widths,
            "block_loss": shrinking.to_numpy(plan.block_loss),
            "block_loss_per_column": shrinking.to_numpy(plan.loss_per_column),
        }
    )
    return Drawing(figure, caption, alt, table)
