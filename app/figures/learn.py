"""Teaching figures: small matrices with every number printed, and when order starts to matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from app import words
from app.figures import marks, palette, shrinking, style
from app.figures.palette import Style, Theme
from app.figures.style import Drawing
from rose.layer.defaults import THRESHOLD


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
        marks.outline(figure, end - size - 0.5, end - 0.5, -0.5, rows - 0.5, line=line)
    what = f"Importance S, {rows} outputs × {width} inputs in {words.count(len(widths), 'block')}"
    what += "; grey and struck: to be removed" if count else ""
    bare = marks.BARE | {"showline": False, "ticks": "", "fixedrange": True}
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


def strength_curve(
    points: Sequence[tuple[float, float, float]], marked: float, *, threshold: float = THRESHOLD, theme: Theme = "light"
) -> Drawing:
    """What two-level order gains on a synthetic layer whose one block grows stronger, above all at strength `marked`.

    The points are (columnar strength, relative range, error of two-level over natural order).
    """
    table = pd.DataFrame(sorted(points), columns=["strength", "relative_range", "error_ratio"])
    table["error_saved"] = 1 - table["error_ratio"]
    columnar = table["relative_range"] > threshold
    look, figure = palette.order_style("two_level"), go.Figure()
    hover = "strength %{x:.3g}<br>saves %{y:.1%}<br>relative range %{customdata:.3f}"
    symbols = np.where(columnar, "circle", "circle-open").tolist()
    marker = {"symbol": symbols, "line": {"width": 2, "color": look.colour}}
    behind = {"customdata": table["relative_range"], "marker": marker}
    marks.lines(figure, table["strength"], table["error_saved"], look, hover, size=11, **behind)
    figure.add_vline(x=marked, line=marks.CHOSEN)
    # The title is of the strength that the page stands at, so that moving the slider says something new.
    here = table.loc[(table["strength"] - marked).abs().idxmin()]
    verb, amount = "saves" if here["error_saved"] > 0 else "costs", words.percent(abs(float(here["error_saved"])))
    finding = f"At strength {words.number(float(here['strength']))}, two-level order {verb} {amount} of the error"
    what = f"Error saved against natural order on a generated layer; filled: columnar, above {threshold:.2f}"
    low, high = float(table["error_saved"].min()), float(table["error_saved"].max())
    figure.update_xaxes(zeroline=False)
    room = max(high, 0) - min(low, 0) or 0.01
    figure.update_yaxes(tickformat=style.PERCENT, range=[min(low, 0) - 0.08 * room, max(high, 0) + 0.12 * room])
    crossing = table["strength"][columnar]
    where = (
        f"the layer counts as columnar from strength {words.number(float(crossing.iloc[0]))} on"
        if len(crossing)
        else "the layer counts as columnar at none of these strengths"
    )
    first = float(table["error_saved"].iloc[0])
    caption = f"At strength {words.number(float(table['strength'].iloc[0]))} it saves {words.percent(first)}; {where}."
    alt = "Line chart of the error saved by two-level order against columnar strength"
    axes = {"x": "columnar strength (0: all blocks alike)", "y": "error saved by two-level order"}
    return style.finish(figure, theme, finding, what, caption, alt, table, **axes)


def size_bars(table: pd.DataFrame, *, what: str, theme: Theme = "light") -> Drawing:
    """Error by the size of what is removed, before and after compensation.

    The table has a row per size: size (as shown), removed, units, dropped, compensated.
    """
    figure = go.Figure()
    dropped, compensated = Style(palette.SLATE, "Removed, nothing compensated"), Style(palette.GREEN, "Compensated")
    for column, look in {"dropped": dropped, "compensated": compensated}.items():
        hover = f"%{{customdata[0]}} of %{{customdata[1]}} %{{x}}<br>{look.label}: %{{y:.4g}}"
        behind = {"text": table[column].map(words.number), "customdata": table[["removed", "units"]]}
        marks.bars(figure, table["size"], table[column], look, hover, **behind)
    best, worst = table["compensated"].idxmin(), table["compensated"].idxmax()
    low, high = table.loc[best], table.loc[worst]
    least, most = (str(row["size"]).lower() for row in (low, high))
    finding = f"{words.sentence(least)} cost nothing"
    if low["compensated"] > 0:
        times = words.number(high["compensated"] / low["compensated"])
        finding = f"{words.sentence(most)} cost {times} times as much as {least}"
    figure.update_yaxes(range=[0, 1.15 * float(table["dropped"].max()) or 1])
    listed = "; ".join(
        f"{row.size}: {words.number(row.dropped)} and {words.number(row.compensated)}"
        for row in table.itertuples(index=False)
    )
    caption, alt = f"Error before and after compensation. {listed}.", "Bar chart of the error by size"
    what = f"Relative error of the outputs when {what}"
    return style.finish(figure, theme, finding, what, caption, alt, table, y=style.ERROR, legend=True)
