"""Losses of one layer before pruning, by column and by block."""

from typing import Unpack

import numpy as np
import pandas as pd

from app.figures import palette
from app.figures.palette import Style
from app.figures.shapes import Chart, Marked, block_span, shrink, to_numpy
from app.figures.style import Drawing
from app.words import number, percent, sentence
from rose import OrderPlan


def column_loss_map(plan: OrderPlan, **shared: Unpack[Marked]) -> Drawing:
    """Column loss as block × position within the block; a narrower last block ends early."""
    loss, widths = to_numpy(plan.column_loss).astype(np.float64), plan.block_width
    grid = np.full((len(widths), max(widths)), -np.inf)
    block = np.repeat(np.arange(len(widths)), widths)
    position = np.concatenate([np.arange(width) for width in widths])
    grid[block, position] = loss
    shrunk, height = shrink(grid, entries="columns"), max(300, min(620, 170 + 26 * len(widths)))
    shown = np.where(np.isinf(shrunk.array), np.nan, shrunk.array)
    chart = Chart(x="position within the block (columns)", y="block", height=height, **shared)
    hover = "block %{y:.0f}, position %{x:.0f}<br>column loss %{z:.4g}<extra></extra>"
    chart.cells(shrunk._replace(array=shown), "column loss", hovertemplate=hover)
    chart.figure.update_layout(plot_bgcolor=chart.ink.blank)
    chart.matrix_axes(len(widths), max(widths))
    chart.y(count=len(widths))
    if (marked := chart.marked_block) is not None:
        start, end = block_span(widths, marked)
        chart.outline(-0.5, end - start - 0.5, marked - 0.5, marked + 0.5)
    top, median = int(loss.argmax()), float(np.median(loss))
    times = f"{number(loss[top] / median)} times" if median > 0 else "and nothing in"
    finding = f"Column {top} in block {block[top]} would lose most, {times} the median column"
    if not loss[top] > 0:
        finding = "Nothing is removed, so no column loses anything"
    subtitle = f"Column loss{chart.of}, sum of L over output channels, in blocks of {widths[0]} columns"
    subtitle += f"; the last block has only {widths[-1]}" if widths[-1] < widths[0] else ""
    subtitle += "" if shrunk.rows == shrunk.columns == 1 else f"; {shrunk.note}"
    caption = f"Column losses run from {number(loss.min())} to {number(loss[top])}, median {number(median)}."
    alt = f"Heatmap of the column loss{chart.of} by block and position"
    columns = {"column": np.arange(len(loss)), "block": block, "position": position, "column_loss": loss}
    return chart.done(finding, subtitle, caption + chart.marked_words, alt, pd.DataFrame(columns))


def block_loss_bars(plan: OrderPlan, **shared: Unpack[Marked]) -> Drawing:
    """Block losses per column as bars; the layer is columnar if one ends below the line."""
    widths, blocks, unit = np.array(plan.block_width), np.arange(len(plan.block_width)), "block loss per column"
    whole, values = (to_numpy(loss).astype(np.float64) for loss in (plan.block_loss, plan.loss_per_column))
    chart = Chart(x="block", y=unit, **shared)
    colours = [palette.MARK if block == chart.marked_block else palette.TEAL for block in blocks]
    pattern = {"shape": np.where(widths < widths.max(), "/", "").tolist(), "solidity": 0.25}
    hover = f"block %{{x}}, %{{customdata[1]:.0f}} columns<br>{unit} %{{y:.4g}}<br>block loss %{{customdata[0]:.4g}}"
    behind = {"customdata": np.stack([whole, widths], axis=1), "marker": {"color": colours, "pattern": pattern}}
    chart.bars(blocks, values, Style(palette.TEAL, unit), hover, **behind)
    if values.max() > 0:
        chart.figure.add_hline(y=(1 - plan.threshold) * values.max(), line=chart.dashed)
    chart.x(count=len(values))
    verdict, sign = ("Columnar", "above") if plan.is_columnar else ("Not columnar", "not above")
    finding = f"{verdict}: relative range {plan.relative_range:.3f}, {sign} {plan.threshold:g}"
    subtitle = f"{sentence(unit)}{chart.of}, blocks of {widths.max()} columns"
    subtitle += f"; hatched: only {widths.min()} columns wide" if widths.min() < widths.max() else ""
    subtitle += f"; columnar if a bar ends below the dashed line, {percent(1 - plan.threshold, 0)} of the highest"
    high, low = number(values.max()), number(values.min())
    caption = f"Block {values.argmax()} has the highest {unit}, {high}, and block {values.argmin()} the lowest, {low}: "
    caption += f"relative range ({high} − {low}) / {high} = {plan.relative_range:.3f}."
    if not values.max() > 0:
        caption = f"The {unit} of every block is 0, and so is the relative range."
    table = pd.DataFrame({"block": blocks, "columns": widths, "block_loss": whole, "block_loss_per_column": values})
    return chart.done(finding, subtitle, caption, f"Bar chart of {unit}{chart.of}", table)
