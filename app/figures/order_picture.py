"""Where every column of a layer goes: natural order above, pruning order below."""

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
from rose import Order, OrderPlan, make_order
from rose.layer.order import block_of, visited_blocks

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
    finding, caption = _finding(plan, visited, step, marked_column)
    figure = go.Figure()
    drawn = _draw_blocks(figure, plan, step, marked_block, theme)
    _draw_block_rows(figure, plan, visited, theme)
    if marked_column is not None:
        _draw_column(figure, marked_column, int(step[marked_column]), columns, theme)
    what = (
        f"Columns{words.of(layer)} before (top) and in pruning order (bottom), {drawn}; brighter: more loss per column"
    )
    figure.update_xaxes(marks.BARE, range=[-0.5 - 0.01 * columns, columns - 0.5 + 0.01 * columns])
    names = {"tickvals": [1, 0], "ticktext": ["natural", "pruning"]}
    figure.update_yaxes(marks.BARE, range=[-0.28, 1.28], showline=False, **names)
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


def _finding(plan: OrderPlan, visited: Order, step: np.ndarray, marked_column: int | None) -> tuple[str, str]:
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
            marks.lines(figure, x, y, look, "", width=1, mode="lines", opacity=0.75, text=f"block {block}", **fill)
        else:
            x, y = _lines(step, members[members % every == 0])
            width, hover = 2 if block == marked else 1.2, f"block {block}<br>column or step %{{x:.0f}}"
            marks.lines(figure, x, y, look, hover, width=width, mode="lines", opacity=0.75)
    if ribbons:
        return "a ribbon for each block"
    return "a line for each column" if every == 1 else f"a line for one column in {every}"


def _draw_column(figure: go.Figure, column: int, step: int, columns: int, theme: Theme) -> None:
    """Follows one column from its place to the step at which it is pruned."""
    marks.lines(figure, [column, step], [1, 0], Style(palette.MARK, f"column {column}"), "", width=4, size=11)
    middle = (column + step) / 2
    shift, anchor = (-8, "right") if middle > columns / 2 else (8, "left")
    marks.note(figure, f"column {column} → step {step}", theme, x=middle, y=0.5, xshift=shift, xanchor=anchor)


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
