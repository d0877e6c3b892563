"""Losses of one layer before pruning, by column and by block, and the order made from them."""

from typing import Unpack

import numpy as np
import pandas as pd

from app.figures import palette
from app.figures.palette import Style
from app.figures.shapes import BARE, Chart, Marked, block_span, shrink, to_numpy
from app.figures.style import FONT_SIZE, Drawing
from app.words import number, percent, sentence
from rose import Order, OrderPlan, make_order
from rose.layer.order import blocks_of, visited_blocks

PICTURE_LINES = 640  # columns with a line each


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


# Where every column goes


def order_picture(
    plan: OrderPlan, order: Order | str, *, marked_column: int | None = None, **shared: Unpack[Marked]
) -> Drawing:
    """A line for each column, in the colour of its block's loss, from natural order above to pruning order below.

    A layer wider than 640 columns shows a ribbon per block where blocks stay whole, else every k-th column.
    """
    visited, widths = make_order(plan, order), plan.block_width
    step, columns = to_numpy(visited.inverse), len(visited.permutation)
    chart = Chart(x="column (top), step at which it is pruned (bottom)", **shared)
    drawn = _draw_blocks(chart, plan, step)
    _draw_block_rows(chart, plan, visited)
    finding = "The columns stay in their natural order"
    if not visited.is_natural:
        label, first = palette.order_style(visited.name).label, int(visited.permutation[0])
        finding = f"{label}: pruning starts in block {blocks_of(widths, [first])[0]}, with column {first}"
    subtitle = f"Columns{chart.of} before (top) and in pruning order (bottom), {drawn}; brighter: more loss per column"
    if marked_column is not None:
        end, look = int(step[marked_column]), Style(palette.MARK, f"column {marked_column}")
        chart.line([marked_column, end], [1, 0], look, "", width=4, size=11)
        middle = (marked_column + end) / 2
        shift, anchor = (-8, "right") if middle > columns / 2 else (8, "left")
        chart.note(f"column {marked_column} → step {end}", x=middle, y=0.5, xshift=shift, xanchor=anchor)
    chart.x(**BARE, range=[-0.5 - 0.01 * columns, columns - 0.5 + 0.01 * columns])
    names = {"tickvals": [1, 0], "ticktext": ["natural", "pruning"]}
    chart.y(**BARE, **names, range=[-0.28, 1.28], showline=False)
    alt = f"Two rows of columns{chart.of} joined by lines from natural to pruning order"
    numbers = {"column": np.arange(columns), "block": np.repeat(np.arange(len(widths)), widths), "step": step}
    return chart.done(finding, subtitle, "", alt, pd.DataFrame(numbers | {"column_loss": to_numpy(plan.column_loss)}))


def _draw_blocks(chart: Chart, plan: OrderPlan, step: np.ndarray) -> str:
    """Adds the lines or the ribbon of each block; returns in words which of the two."""
    widths, every = plan.block_width, -(-len(step) // PICTURE_LINES)
    loss = to_numpy(plan.loss_per_column).astype(np.float64)
    colours = palette.magnitude_colours(loss, chart.theme)
    blocks = np.split(np.arange(len(step)), np.cumsum(widths)[:-1])
    # A ribbon needs blocks that are visited in one run each.
    ribbons = every > 1 and all(np.ptp(step[members]) == len(members) - 1 for members in blocks)
    for block, members in enumerate(blocks):
        is_marked = block == chart.marked_block
        colour = palette.MARK if is_marked else colours[block]
        look = Style(colour, f"block {block}: loss {number(loss[block])} per column")
        if ribbons:
            fill = {"fill": "toself", "fillcolor": colour, "hoveron": "fills", "hoverinfo": "text"}
            behind = {"mode": "lines", "opacity": 0.75, "text": f"block {block}"}
            above, steps = (members[0] - 0.5, members[-1] + 0.5), step[members]
            x = np.array([*above, steps.max() + 0.5, steps.min() - 0.5, above[0]], np.float32)
            y = np.array([0.93, 0.93, 0.07, 0.07, 0.93], np.float32)
            chart.line(x, y, look, "", width=1, **behind, **fill)
        else:
            hover, shown = f"block {block}<br>column or step %{{x:.0f}}", members[members % every == 0]
            x = np.stack([shown, step[shown], np.full(len(shown), np.nan)], axis=1)  # a gap after each line
            y = np.tile([0.93, 0.07, np.nan], len(shown))
            chart.line(
                x.ravel().astype(np.float32),
                y.astype(np.float32),
                look,
                hover,
                width=2 if is_marked else 1.2,
                mode="lines",
                opacity=0.75,
            )
    if ribbons:
        return "a ribbon for each block"
    return "a line for each column" if every == 1 else f"a line for one column in {every}"


def _draw_block_rows(chart: Chart, plan: OrderPlan, visited: Order) -> None:
    """Block boundaries and numbers above the natural row and below the pruning row."""
    ink = chart.ink
    rect = {"type": "rect", "line": {"color": ink.muted, "width": 1}, "fillcolor": ink.blank}
    label = {"showarrow": False, "font": {"size": FONT_SIZE}}
    above = ({"y0": 0.93, "y1": 1.0}, {"y": 1.0, "yanchor": "bottom"})
    below = ({"y0": 0.0, "y1": 0.07}, {"y": 0.0, "yanchor": "top"})
    natural = (plan.block_width, range(len(plan.block_width)), above)
    boxes, labels = [], []
    for widths, blocks, (high, outside) in (natural, (visited.widths, visited_blocks(plan, visited), below)):
        for width, end, name in zip(widths, np.cumsum(widths).tolist(), blocks, strict=True):
            boxes.append(rect | high | {"x0": end - width - 0.5, "x1": end - 0.5})
            text = "·" if name is None else str(name)
            labels.append(label | outside | {"x": end - width / 2 - 0.5, "text": text})
    # In one call: adding each of a wide layer's 86 shapes in its own call takes seconds.
    every = -(-len(plan.block_width) // 40)  # so that the numbers do not touch
    chart.figure.update_layout(shapes=boxes, annotations=labels[::every])
