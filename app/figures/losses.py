"""What pre-pruning says of one layer: losses of columns and of blocks, and where an order takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from app import words
from app.figures import palette, shapes, shrinking, style
from app.figures.palette import Style, Theme
from app.figures.style import Drawing
from rose import Order, OrderPlan, make_order, verdicts
from rose.layer.order import block_of, visited_blocks


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
    figure = go.Figure(shapes.heatmap(shrunk._replace(array=shown), "column loss", hovertemplate=hover))
    note = "" if shrunk.rows == shrunk.columns == 1 else f"; {shrunk.note}"
    narrow = f"; the last block has only {widths[-1]}" if widths[-1] < widths[0] else ""
    what = (
        f"Column loss{words.of(layer)}, sum of L over output channels, in blocks of {widths[0]} columns{narrow}{note}"
    )
    figure.update_layout(plot_bgcolor=palette.INKS[theme].blank)
    shapes.matrix_axes(figure, len(widths), max(widths))
    figure.update_yaxes(dtick=shapes.whole_step(len(widths)))
    if marked_block is not None:
        start, end = shapes.block_span(widths, marked_block)
        shapes.outline(figure, -0.5, end - start - 0.5, marked_block - 0.5, marked_block + 0.5)
    caption = (
        f"Column losses run from {words.number(float(loss.min()))} to {words.number(float(loss[top]))}, median "
        f"{words.number(median)}.{shapes.mark_words(marked_block)}"
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
    shapes.bars(figure, blocks, values, palette.Style(palette.TEAL, unit), hover, customdata=behind, marker=marker)
    largest, smallest = float(values.max()), float(values.min())
    if largest > 0:
        figure.add_hline(y=(1 - plan.threshold) * largest, line=shapes.dashed(theme))
    sign = "above" if plan.is_columnar else "not above"
    verdict = "Columnar" if plan.is_columnar else "Not columnar"
    finding = f"{verdict}: relative range {plan.relative_range:.3f}, {sign} {plan.threshold:g}"
    hatched = f"; hatched: only {int(widths.min())} columns wide" if uneven else ""
    what = (
        f"{words.sentence(unit)}{words.of(layer)}, blocks of {int(widths.max())} columns{hatched}; columnar if a bar "
        f"ends below the dashed line, {words.percent(1 - plan.threshold, 0)} of the highest"
    )
    figure.update_xaxes(dtick=shapes.whole_step(len(values)))
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
            shapes.bars(figure, steps, values, look, hover, customdata=blocks, showlegend=row == 1, row=row, col=1)
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
    figure.update_xaxes(dtick=shapes.whole_step(len(losses)))
    figure.update_xaxes(title_text="position at which a block is pruned", row=2)
    for row, title in enumerate(("loss per column", "relative error added"), 1):
        figure.update_yaxes(title_text=title, row=row)
    alt = f"Two bar charts{words.of(layer)}: block losses, and the error that each block adds, in two orders"
    table = pd.concat(rows, ignore_index=True)
    return style.finish(figure, theme, finding, what, caption, alt, table, height=520, legend=True)


PICTURE_LINES = 640  # columns that the picture draws one by one


def order_picture(
    plan: OrderPlan,
    order: Order | str,
    *,
    layer: str = "",
    marked_column: int | None = None,
    marked_block: int | None = None,
    theme: Theme = "light",
) -> Drawing:
    """Where every column goes: natural order above, pruning order below, a line for each column.

    Lines have the colour of their block's loss. A layer wider than 640 columns shows a ribbon per block where blocks
    stay whole, else every k-th column. One column may be followed.
    """
    visited = make_order(plan, order)
    columns, widths = len(visited.permutation), plan.block_width
    step = shrinking.to_numpy(visited.inverse)
    finding, caption = _order_finding(plan, visited, step, marked_column)
    figure = go.Figure()
    drawn = _draw_blocks(figure, plan, step, marked_block, theme)
    _draw_block_rows(figure, plan, visited, theme)
    if marked_column is not None:
        _draw_column(figure, marked_column, int(step[marked_column]), columns, theme)
    what = (
        f"Columns{words.of(layer)} before (top) and in pruning order (bottom), {drawn}; brighter: more loss per column"
    )
    figure.update_xaxes(shapes.BARE, range=[-0.5 - 0.01 * columns, columns - 0.5 + 0.01 * columns])
    names = {"tickvals": [1, 0], "ticktext": ["natural", "pruning"]}
    figure.update_yaxes(shapes.BARE, range=[-0.28, 1.28], showline=False, **names)
    alt = f"Two rows of columns{words.of(layer)} joined by lines from natural to pruning order"
    table = pd.DataFrame(
        {
            "column": np.arange(columns),
            "block": np.repeat(np.arange(len(widths)), widths),
            "step": step,
            "column_loss": shrinking.to_numpy(plan.column_loss),
        }
    )
    x = "column (top), step at which it is pruned (bottom)"
    return style.finish(figure, theme, finding, what, caption, alt, table, x=x)


def _order_finding(plan: OrderPlan, visited: Order, step: np.ndarray, marked_column: int | None) -> tuple[str, str]:
    """Title and caption: where pruning starts, and how many columns move."""
    widths, columns = plan.block_width, len(step)
    finding = "The columns stay in their natural order"
    if not visited.is_natural:
        first = int(visited.permutation[0])
        label = palette.order_style(visited.name).label
        finding = f"{label}: pruning starts in block {block_of(widths, first)}, with column {first}"
    moved = int((step != np.arange(columns)).sum())
    caption = f"{moved} of {columns} columns change place; the relative range is {plan.relative_range:.3f}."
    if marked_column is not None:
        caption += (
            f" Column {marked_column} (block {block_of(widths, marked_column)}, loss "
            f"{words.number(float(plan.column_loss[marked_column]))}) is pruned at step {int(step[marked_column])}."
        )
    return finding, caption


def _draw_blocks(figure: go.Figure, plan: OrderPlan, step: np.ndarray, marked: int | None, theme: Theme) -> str:
    """Adds each block's lines, or its ribbon; says in words which."""
    widths, columns = plan.block_width, len(step)
    loss = shrinking.to_numpy(plan.loss_per_column).astype(np.float64)
    colours = palette.magnitude_colours(loss, theme)
    every = -(-columns // PICTURE_LINES)
    ribbons = every > 1 and _whole_blocks(step, widths)
    for block, members in enumerate(np.split(np.arange(columns), np.cumsum(widths)[:-1])):
        colour = palette.MARK if block == marked else colours[block]
        look = Style(colour, f"block {block}: loss {words.number(loss[block])} per column")
        if ribbons:
            x, y = _ribbon(step[members], members)
            fill: dict[str, Any] = {"fill": "toself", "fillcolor": colour, "hoveron": "fills", "hoverinfo": "text"}
            shapes.lines(figure, x, y, look, "", width=1, mode="lines", opacity=0.75, text=f"block {block}", **fill)
        else:
            x, y = _column_lines(step, members[members % every == 0])
            width, hover = 2 if block == marked else 1.2, f"block {block}<br>column or step %{{x:.0f}}"
            shapes.lines(figure, x, y, look, hover, width=width, mode="lines", opacity=0.75)
    if ribbons:
        return "a ribbon for each block"
    return "a line for each column" if every == 1 else f"a line for one column in {every}"


def _draw_column(figure: go.Figure, column: int, step: int, columns: int, theme: Theme) -> None:
    """Follows one column from its place to the step at which it is pruned."""
    shapes.lines(figure, [column, step], [1, 0], Style(palette.MARK, f"column {column}"), "", width=4, size=11)
    middle = (column + step) / 2
    shift, anchor = (-8, "right") if middle > columns / 2 else (8, "left")
    shapes.note(figure, f"column {column} → step {step}", theme, x=middle, y=0.5, xshift=shift, xanchor=anchor)


def _whole_blocks(step: np.ndarray, widths: Sequence[int]) -> bool:
    """Whether every block is visited in one run."""
    parts = np.split(step, np.cumsum(widths)[:-1])
    return all(int(part.max() - part.min()) == len(part) - 1 for part in parts)


def _column_lines(step: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def _draw_block_rows(figure: go.Figure, plan: OrderPlan, visited: Order, theme: Theme) -> None:
    """Block boundaries and numbers above the natural row and below the pruning row."""
    ink = palette.INKS[theme]
    rect = {"type": "rect", "line": {"color": ink.muted, "width": 1}, "fillcolor": ink.blank}
    label = {"showarrow": False, "font": {"size": style.FONT_SIZE}}
    above = ({"y0": 0.93, "y1": 1.0}, {"y": 1.0, "yanchor": "bottom"})
    below = ({"y0": 0.0, "y1": 0.07}, {"y": 0.0, "yanchor": "top"})
    shapes, labels = [], []
    for widths, blocks, (high, outside) in (
        (plan.block_width, range(len(plan.block_width)), above),
        (visited.widths, visited_blocks(plan, visited), below),
    ):
        ends = np.cumsum(widths).tolist()
        for width, end, name in zip(widths, ends, blocks, strict=True):
            shapes.append(rect | high | {"x0": end - width - 0.5, "x1": end - 0.5})
            text = "·" if name is None else str(name)
            labels.append(label | outside | {"x": end - width / 2 - 0.5, "text": text})
    # All at once: adding shapes one by one takes seconds for the 86 blocks of a wide layer.
    every = -(-len(plan.block_width) // 40)  # so that the numbers do not touch
    figure.update_layout(shapes=shapes, annotations=labels[::every] if every > 1 else labels)


def number_matrix(
    values: Any,
    widths: Sequence[int],
    *,
    finding: str = "",
    removed: Any = None,
    column_loss: Any = None,
    block_loss: Any = None,
    columns: Sequence[int] | None = None,
    marked_block: int | None = None,
    theme: Theme = "light",
) -> Drawing:
    """The importance of a small layer with all numbers printed, blocks outlined, and column and block losses below.

    Columns, rows and blocks are counted from 1 on screen, as in the paper's example; in arguments from 0.

    Args:
        values: S, (out, in), in the order in which columns shall stand; so are all others.
        finding: the title; the largest value if not given.
        removed: True where pre-pruning removes, (out, in); these are grey and struck.
        columns: original number of each column, as headings; natural order if not given.
    """
    matrix = shrinking.to_numpy(values).astype(np.float64)
    rows, width = matrix.shape
    gone = np.zeros(matrix.shape, bool) if removed is None else shrinking.to_numpy(removed).astype(bool)
    headings = [int(h) + 1 for h in (range(width) if columns is None else columns)]
    best = np.unravel_index(matrix.argmax(), matrix.shape)
    largest = f"{matrix.max():.1f} in row {best[0] + 1}, column {headings[best[1]]}"
    count = int(gone.sum())
    figure = go.Figure()
    _print_cells(figure, matrix, gone, theme)
    below = {"column loss": (column_loss, (1,) * width), "block loss": (block_loss, widths)}
    extra = {name: loss for name, loss in below.items() if loss[0] is not None}
    for at, (losses, sizes) in enumerate(extra.values()):
        _loss_row(figure, rows + 0.3 + at, shrinking.to_numpy(losses).astype(np.float64), sizes)
    for block, (size, end) in enumerate(zip(widths, np.cumsum(widths).tolist(), strict=True)):
        chosen = block == marked_block
        line = {"color": palette.MARK if chosen else palette.INKS[theme].text, "width": 4 if chosen else 2}
        shapes.outline(figure, end - size - 0.5, end - 0.5, -0.5, rows - 0.5, line=line)
    what = f"Importance S, {rows} outputs × {width} inputs in {words.count(len(widths), 'block')}"
    what += "; grey and struck: to be removed" if count else ""
    bare = shapes.BARE | {"showline": False, "ticks": "", "fixedrange": True}
    above = {"side": "top", "range": [-0.6, width - 0.4]}
    figure.update_xaxes(bare | above, tickvals=list(range(width)), ticktext=[str(h) for h in headings])
    figure.update_yaxes(
        bare,
        tickvals=[*range(rows), *(rows + 0.3 + i for i in range(len(extra)))],
        ticktext=[f"output {r + 1}" for r in range(rows)] + list(extra),
        range=[rows - 0.4 + (0.3 + len(extra) if extra else 0), -0.6],
    )
    caption = f"Importance S runs from {matrix.min():.1f} to {largest}."
    if count:
        caption += f" {count} of {matrix.size} are to be removed."
    table = pd.DataFrame(matrix, columns=[f"column {h}" for h in headings])
    table.insert(0, "output", np.arange(rows) + 1)
    finding, alt = finding or f"The largest importance S is {largest}", "Matrix with all numbers printed"
    room = {"height": 150 + 50 * (rows + len(extra)), "headroom": 26}
    drawing = style.finish(figure, theme, finding, what, caption, alt, table, **room)
    figure.update_layout(margin_b=16)
    return drawing


def _print_cells(figure: go.Figure, matrix: np.ndarray, gone: np.ndarray, theme: Theme) -> None:
    """A coloured cell with its number for each entry; grey and struck where it is gone."""
    ink, largest = palette.INKS[theme], float(matrix.max()) or 1.0
    rows, width = matrix.shape
    figure.add_heatmap(
        z=np.where(gone, np.nan, matrix).astype(np.float32),
        x=np.arange(width),
        y=np.arange(rows),
        colorscale=palette.SEQUENTIAL,
        zmin=0,
        zmax=largest,
        xgap=2,
        ygap=2,
        showscale=False,
        hoverinfo="skip",
    )
    for row, column in np.ndindex(*matrix.shape):
        printed = f"{matrix[row, column]:.1f}"
        if gone[row, column]:
            _cell(figure, column, row, ink.blank)
            _print(figure, column, row, f"<s>{printed}</s>", ink.muted)
        else:
            _print(figure, column, row, printed, palette.text_on(float(matrix[row, column]) / largest))


def _loss_row(figure: go.Figure, y: float, losses: np.ndarray, widths: Sequence[int]) -> None:
    """Losses below the matrix, each under its column, or under the columns of its block and in bold."""
    largest, start = float(losses.max()) or 1.0, 0
    for loss, width in zip(losses, widths, strict=True):
        middle, share = start + (width - 1) / 2, float(loss) / largest
        _cell(figure, middle, y, sample_colorscale(palette.SEQUENTIAL, [share])[0], width)
        _print(figure, middle, y, f"<b>{loss:.1f}</b>" if max(widths) > 1 else f"{loss:.1f}", palette.text_on(share))
        start += width


def _cell(figure: go.Figure, x: float, y: float, colour: str, width: float = 1) -> None:
    corners = {"x0": x - width / 2 + 0.02, "x1": x + width / 2 - 0.02, "y0": y - 0.47, "y1": y + 0.47}
    figure.add_shape(type="rect", **corners, fillcolor=colour, line={"width": 0}, layer="below")


def _print(figure: go.Figure, x: float, y: float, text: str, colour: str) -> None:
    figure.add_annotation(x=x, y=y, text=text, showarrow=False, font={"size": 16, "color": colour})
