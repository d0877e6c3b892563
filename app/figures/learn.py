"""Teaching figures: small matrices with every number printed, and when order starts to matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale, unlabel_rgb

from app import words
from app.figures import palette, shrinking, style
from app.figures.palette import Theme
from app.figures.style import Drawing
from rose import RoseError

PRINTED_COLUMNS = 24  # more numbers than this in a row cannot be read


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

    Columns, rows and blocks are counted from 1 on screen, as in the paper's example.

    Args:
        values: S, (out, in), in the order in which columns shall stand.
        widths: block widths in that order.
        finding: the title; the largest value if not given.
        removed: True where pre-pruning or pruning removed, (out, in); these are grey and struck.
        column_loss: (in,), a row below.
        block_loss: (blocks,), a second row below.
        columns: original number of each column, counted from 0, as headings; natural order if not given.
        marked_block: outlined, counted from 0 in the order shown.

    Raises:
        RoseError: more columns than can be printed legibly.
    """
    matrix = shrinking.to_numpy(values).astype(np.float64)
    rows, width = matrix.shape
    if width > PRINTED_COLUMNS:
        raise RoseError(f"At most {PRINTED_COLUMNS} columns can be printed with their numbers, not {width}.")
    gone = np.zeros(matrix.shape, bool) if removed is None else shrinking.to_numpy(removed).astype(bool)
    headings = [int(h) + 1 for h in (range(width) if columns is None else columns)]
    best = np.unravel_index(matrix.argmax(), matrix.shape)
    largest = f"{matrix.max():.1f} in row {best[0] + 1}, column {headings[best[1]]}"
    count = int(gone.sum())
    figure = go.Figure()
    _print_cells(figure, matrix, gone, theme)
    extra = _loss_rows(figure, rows, widths, column_loss, block_loss)
    _outline_blocks(figure, rows, widths, marked_block, theme)
    what = f"Importance S, {rows} outputs × {width} inputs in {words.count(len(widths), 'block')}"
    what += "; grey and struck: to be removed" if count else ""
    height = 150 + 50 * (rows + len(extra))
    style.base(figure, theme, finding or f"The largest importance S is {largest}", what, x="", y="", height=height)
    bare = {"showgrid": False, "zeroline": False, "showline": False, "ticks": "", "fixedrange": True}
    figure.update_xaxes(
        side="top", tickvals=list(range(width)), ticktext=[str(h) for h in headings], range=[-0.6, width - 0.4], **bare
    )
    figure.update_yaxes(
        tickvals=[*range(rows), *(rows + 0.3 + i for i in range(len(extra)))],
        ticktext=[f"output {r + 1}" for r in range(rows)] + extra,
        range=[rows - 0.4 + (0.3 + len(extra) if extra else 0), -0.6],
        **bare,
    )
    figure.update_layout(margin={"t": figure.layout.margin.t + 26, "b": 16})
    caption = f"Importance S runs from {matrix.min():.1f} to {largest}."
    if count:
        caption += f" {count} of {matrix.size} are to be removed."
    table = pd.DataFrame(matrix, columns=[f"column {h}" for h in headings])
    table.insert(0, "output", np.arange(rows) + 1)
    return Drawing(figure, caption, f"Matrix with all numbers printed. {caption}", table)


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
            _print(figure, column, row, printed, _text_on(float(matrix[row, column]) / largest))


def _outline_blocks(figure: go.Figure, rows: int, widths: Sequence[int], marked: int | None, theme: Theme) -> None:
    start = 0
    for block, size in enumerate(widths):
        chosen = block == marked
        line = {"color": palette.MARK if chosen else palette.INKS[theme].text, "width": 4 if chosen else 2}
        style.outline(figure, start - 0.5, start + size - 0.5, -0.5, rows - 0.5, line=line)
        start += size


def _loss_rows(figure: go.Figure, rows: int, widths: Sequence[int], column_loss: Any, block_loss: Any) -> list[str]:
    """Prints the two rows of losses; returns their names from top to bottom."""
    names: list[str] = []
    if column_loss is not None:
        losses = shrinking.to_numpy(column_loss).astype(np.float64)
        colours = _shades(losses)
        y = rows + 0.3
        for column, loss in enumerate(losses):
            _cell(figure, column, y, colours[column])
            _print(figure, column, y, f"{loss:.1f}", _text_on(loss / (losses.max() or 1.0)))
        names.append("column loss")
    if block_loss is not None:
        losses = shrinking.to_numpy(block_loss).astype(np.float64)
        colours = _shades(losses)
        y = rows + 0.3 + len(names)
        start = 0
        for block, width in enumerate(widths):
            middle = start + (width - 1) / 2
            _cell(figure, middle, y, colours[block], width)
            _print(figure, middle, y, f"<b>{losses[block]:.1f}</b>", _text_on(losses[block] / losses.max()))
            start += width
        names.append("block loss")
    return names


def _shades(values: np.ndarray) -> list[str]:
    largest = float(values.max()) or 1.0
    return sample_colorscale(palette.SEQUENTIAL, np.clip(values / largest, 0, 1).tolist())


def _text_on(share: float) -> str:
    """Black or white, whichever reads better on the sequential scale at this place."""
    red, green, blue = unlabel_rgb(sample_colorscale(palette.SEQUENTIAL, [float(np.clip(share, 0, 1))])[0])
    linear = [((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 255 / 12.92 for c in (red, green, blue)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > 0.179 else "#ffffff"  # where both have the same contrast, by WCAG 2


def _cell(figure: go.Figure, x: float, y: float, colour: str, width: float = 1) -> None:
    figure.add_shape(
        type="rect",
        x0=x - width / 2 + 0.02,
        x1=x + width / 2 - 0.02,
        y0=y - 0.47,
        y1=y + 0.47,
        fillcolor=colour,
        line={"width": 0},
        layer="below",
    )


def _print(figure: go.Figure, x: float, y: float, text: str, colour: str) -> None:
    figure.add_annotation(x=x, y=y, text=text, showarrow=False, font={"size": 16, "color": colour})


def strength_curve(
    points: Sequence[tuple[float, float, float]],
    *,
    threshold: float = 0.5,
    marked: float | None = None,
    theme: Theme = "light",
) -> Drawing:
    """What two-level order gains on a synthetic layer whose one block grows stronger.

    Args:
        points: (columnar strength, relative range, error of two-level over natural order).
        threshold: on the relative range; filled marks lie above it.
        marked: the strength chosen on the page.

    Raises:
        RoseError: no points.
    """
    if not len(points):
        raise RoseError("No strength has been measured yet; choose a range of strengths.")
    table = pd.DataFrame(sorted(points), columns=["strength", "relative_range", "error_ratio"])
    table["error_saved"] = 1 - table["error_ratio"]
    columnar = (table["relative_range"] > threshold).to_numpy()
    look = palette.order_style("two_level")
    figure = go.Figure()
    figure.add_scatter(
        x=table["strength"].to_numpy(np.float64),
        y=table["error_saved"].to_numpy(np.float64),
        customdata=table["relative_range"].to_numpy(np.float64),
        mode="lines+markers",
        line={"color": look.colour, "width": 2.5},
        marker={
            "size": 11,
            "symbol": ["circle" if c else "circle-open" for c in columnar],
            "line": {"width": 2, "color": look.colour},
        },
        hovertemplate="strength %{x:.3g}<br>saves %{y:.1%}<br>relative range %{customdata:.3f}<extra></extra>",
    )
    if marked is not None:
        figure.add_vline(x=marked, line={"color": palette.MARK, "width": 2.5})
    # The title is of the strength that the page stands at, so that moving the slider says something new.
    at = table["error_saved"].idxmax() if marked is None else (table["strength"] - marked).abs().idxmin()
    best = table.loc[at]
    verb = "saves" if best["error_saved"] > 0 else "costs"
    amount = words.percent(abs(float(best["error_saved"])))
    finding = f"At strength {words.number(float(best['strength']))}, two-level order {verb} {amount} of the error"
    style.base(
        figure,
        theme,
        finding,
        f"Error saved against natural order on a generated layer; filled: columnar, above {threshold:.2f}",
        x="columnar strength (0: all blocks alike)",
        y="error saved by two-level order",
    )
    low, high = float(table["error_saved"].min()), float(table["error_saved"].max())
    figure.update_xaxes(zeroline=False)
    room = max(high, 0) - min(low, 0) or 0.01
    figure.update_yaxes(tickformat=".0%", range=[min(low, 0) - 0.08 * room, max(high, 0) + 0.12 * room])
    crossing = table["strength"][columnar]
    where = (
        f"the layer counts as columnar from strength {words.number(float(crossing.iloc[0]))} on"
        if len(crossing)
        else "the layer counts as columnar at none of these strengths"
    )
    first = float(table["error_saved"].iloc[0])
    caption = f"At strength {words.number(float(table['strength'].iloc[0]))} it saves {words.percent(first)}; {where}."
    alt = f"Line chart of the error saved by two-level order against columnar strength. {finding}. {caption}"
    return Drawing(figure, caption, alt, table)


def size_bars(table: pd.DataFrame, *, what: str, theme: Theme = "light") -> Drawing:
    """Error by the size of what is removed, before and after compensation.

    Args:
        table: a row per size: size (as shown), removed, units, dropped, compensated.
        what: is removed, in words.
    """
    figure = go.Figure()
    bars = (("dropped", "Removed, nothing compensated", palette.SLATE), ("compensated", "Compensated", palette.GREEN))
    for column, label, colour in bars:
        figure.add_bar(
            x=table["size"],
            y=table[column],
            name=label,
            marker_color=colour,
            text=[words.number(value) for value in table[column]],
            textposition="outside",
            customdata=table[["removed", "units"]],
            hovertemplate=f"%{{customdata[0]}} of %{{customdata[1]}} %{{x}}<br>{label}: %{{y:.4g}}<extra></extra>",
        )
    best, worst = table["compensated"].idxmin(), table["compensated"].idxmax()
    low, high = table.loc[best], table.loc[worst]
    if low["compensated"] > 0:
        times = words.number(high["compensated"] / low["compensated"])
        finding = (
            f"{words.sentence(str(high['size']).lower())} cost {times} times as much as {str(low['size']).lower()}"
        )
    else:
        finding = f"{words.sentence(str(low['size']).lower())} cost nothing"
    style.base(figure, theme, finding, f"Relative error of the outputs when {what}", y=style.ERROR, legend=True)
    figure.update_yaxes(range=[0, 1.15 * float(table["dropped"].max()) or 1])
    listed = "; ".join(
        f"{row.size}: {words.number(row.dropped)} and {words.number(row.compensated)}"
        for row in table.itertuples(index=False)
    )
    caption = f"Error before and after compensation. {listed}."
    return Drawing(figure, caption, f"Bar chart of the error by size. {finding}. {caption}", table)
