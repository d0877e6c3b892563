"""What pre-pruning says of one layer: losses of columns and of blocks, and whether the layer is columnar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from app import words
from app.figures import marks, palette, shrinking, style
from app.figures.palette import Theme
from app.figures.style import Drawing
from rose import OrderPlan, verdicts


def column_loss_map(
    plan: OrderPlan, *, layer: str = "", marked_block: int | None = None, theme: Theme = "light"
) -> Drawing:
    """Column loss as block × position within the block; a narrower last block ends early."""
    loss = shrinking.to_numpy(plan.column_loss).astype(np.float64)
    widths = plan.block_width
    grid = np.full((len(widths), max(widths)), np.nan)
    block = np.repeat(np.arange(len(widths)), widths)
    position = np.concatenate([np.arange(width) for width in widths])
    grid[block, position] = loss
    shrunk = shrinking.shrink(np.where(np.isnan(grid), -np.inf, grid), what="columns")
    shown = np.where(np.isinf(shrunk.array), np.nan, shrunk.array)
    top = int(loss.argmax())
    median = float(np.median(loss))
    times = f"{words.number(loss[top] / median)} times" if median > 0 else "and nothing in"
    finding = f"Column {top} in block {block[top]} would lose most, {times} the median column"
    if not loss[top] > 0:
        finding = "Nothing is removed, so no column loses anything"
    hover = "block %{y:.0f}, position %{x:.0f}<br>column loss %{z:.4g}<extra></extra>"
    figure = go.Figure(marks.heatmap(shrunk._replace(array=shown), "column loss", hovertemplate=hover))
    note = "" if shrunk.rows == shrunk.columns == 1 else f"; {shrunk.note}"
    narrow = f"; the last block has only {widths[-1]}" if widths[-1] < widths[0] else ""
    what = (
        f"Column loss{words.of(layer)}, sum of L over output channels, in blocks of {widths[0]} columns{narrow}{note}"
    )
    figure.update_layout(plot_bgcolor=palette.INKS[theme].blank)
    marks.matrix_axes(figure, len(widths), max(widths))
    figure.update_yaxes(dtick=marks.whole_step(len(widths)))
    if marked_block is not None:
        start, end = marks.block_span(widths, marked_block)
        marks.outline(figure, -0.5, end - start - 0.5, marked_block - 0.5, marked_block + 0.5)
    caption = (
        f"Column losses run from {words.number(float(loss.min()))} to {words.number(float(loss[top]))}, median "
        f"{words.number(median)}.{marks.mark_words(marked_block)}"
    )
    alt = f"Heatmap of the column loss{words.of(layer)} by block and position"
    columns = {"column": np.arange(len(loss)), "block": block, "position": position, "column_loss": loss}
    height = max(300, min(620, 170 + 26 * len(widths)))
    frame = {"x": "position within the block (columns)", "y": "block", "height": height}
    return style.finish(figure, theme, finding, what, caption, alt, pd.DataFrame(columns), **frame)


def block_loss_bars(
    plan: OrderPlan, *, layer: str = "", marked_block: int | None = None, theme: Theme = "light"
) -> Drawing:
    """Block losses as bars, and the line that the smallest must stay above for the layer not to be columnar.

    Blocks are compared by loss per column, so that is what is drawn where a block is narrower.
    """
    widths = np.array(plan.block_width)
    uneven = bool((widths != widths[0]).any())
    whole, each = (shrinking.to_numpy(loss).astype(np.float64) for loss in (plan.block_loss, plan.loss_per_column))
    unit, values = ("block loss per column", each) if uneven else ("block loss", whole)
    blocks = np.arange(len(values))
    marker = {
        "color": [palette.MARK if block == marked_block else palette.TEAL for block in blocks],
        "pattern": {"shape": np.where(widths < widths.max(), "/", "").tolist(), "solidity": 0.25},
    }
    hover = f"block %{{x}}, %{{customdata[1]:.0f}} columns<br>{unit} %{{y:.4g}}<br>block loss %{{customdata[0]:.4g}}"
    figure, behind = go.Figure(), np.stack([whole, widths], axis=1)
    marks.bars(figure, blocks, values, palette.Style(palette.TEAL, unit), hover, customdata=behind, marker=marker)
    largest, smallest = float(values.max()), float(values.min())
    if largest > 0:
        figure.add_hline(y=(1 - plan.threshold) * largest, line=marks.dashed(theme))
    sign = "above" if plan.is_columnar else "not above"
    verdict = "Columnar" if plan.is_columnar else "Not columnar"
    finding = f"{verdict}: relative range {plan.relative_range:.3f}, {sign} {plan.threshold:g}"
    hatched = f"; hatched: only {int(widths.min())} columns wide" if uneven else ""
    what = (
        f"{words.sentence(unit)}{words.of(layer)}, blocks of {int(widths.max())} columns{hatched}; columnar if a bar "
        f"ends below the dashed line, {words.percent(1 - plan.threshold, 0)} of the highest"
    )
    figure.update_xaxes(dtick=marks.whole_step(len(values)))
    caption = (
        f"Block {int(values.argmax())} has the highest {unit}, {words.number(largest)}, and block "
        f"{int(values.argmin())} the lowest, {words.number(smallest)}: relative range "
        f"({words.number(largest)} − {words.number(smallest)}) / {words.number(largest)} = {plan.relative_range:.3f}."
    )
    if not largest > 0:
        caption = f"The {unit} of every block is 0, and so is the relative range."
    table = pd.DataFrame({"block": blocks, "columns": widths, "block_loss": whole, "block_loss_per_column": each})
    alt = f"Bar chart of {unit}{words.of(layer)}"
    return style.finish(figure, theme, finding, what, caption, alt, table, x="block", y=unit)


def losses_in_order(
    losses: np.ndarray,
    visited: Sequence[int],
    errors: Mapping[str, np.ndarray],
    *,
    layer: str = "",
    theme: Theme = "light",
) -> Drawing:
    """Block losses in natural order and reordered, and the error that each block adds there (the paper's Figure 1a).

    Args:
        losses: loss per column of each block, (blocks,), in natural order.
        visited: the blocks as two-level order visits them.
        errors: relative error that each pruned block adds, (blocks,), by "natural" and "two_level" order.
    """
    places = {"natural": list(range(len(losses))), "two_level": list(visited)}
    top = int(losses.argmax())
    figure, rows, left = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.07), [], {}
    steps = np.arange(1, len(losses) + 1)
    for order, blocks in places.items():
        look, added = palette.order_style(order), errors[order]
        left[order] = blocks.index(top), float(added[blocks.index(top)])
        for row, (what, values) in enumerate({"loss per column": losses[blocks], "adds an error of": added}.items(), 1):
            hover = f"{look.label}<br>%{{x}}. pruned: block %{{customdata}}<br>{what} %{{y:.4g}}"
            marks.bars(figure, steps, values, look, hover, customdata=blocks, showlegend=row == 1, row=row, col=1)
        shown = {"order": order, "position": steps, "block": blocks, "loss_per_column": losses[blocks], "error": added}
        rows.append(pd.DataFrame(shown))
    (before, alone), (after, helped) = left.values()
    every = [float(errors[order].sum()) for order in places]
    stands = f"; pruned as number {after + 1}, not {before + 1}, it leaves"
    change = helped, alone
    if before == after:
        stands, change = f" and is number {after + 1} in both orders; all together leave", (every[1], every[0])
    finding = f"Block {top} loses most{stands} {verdicts.says_change(*change, 'in natural order')}"
    what = f"Blocks{words.of(layer)} in the order pruned: above, what pre-pruning says; below, relative error added"
    caption = (
        f"Block {top} adds {words.number(alone)} to the error as number {before + 1} and {words.number(helped)} as "
        f"number {after + 1} of {len(losses)}; all blocks together {words.number(every[0])} in natural order and "
        f"{words.number(every[1])} in two-level order, on the calibration inputs."
    )
    figure.update_xaxes(dtick=marks.whole_step(len(losses)))
    figure.update_xaxes(title_text="position at which a block is pruned", row=2)
    for row, title in enumerate(("loss per column", "relative error added"), 1):
        figure.update_yaxes(title_text=title, row=row)
    alt = f"Two bar charts{words.of(layer)}: block losses, and the error that each block adds, in two orders"
    table = pd.concat(rows, ignore_index=True)
    return style.finish(figure, theme, finding, what, caption, alt, table, height=520, legend=True)
