"""What figures are drawn of: bars, lines, points, maps of layers and matrices, outlines and labels."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app.figures.palette import INKS, MARK, Style, Theme
from app.figures.style import FONT_SIZE
from rose import RoseError

LABEL_LINE = 20  # pixels from one line of text to the next
LEADER = 22  # pixels from the end of a line to its label
CHARACTER = 7.6  # pixels, of text in FONT_SIZE, on the wide side
SVG_MARKS = 4000  # of one series
PLOT_WIDTH = 700  # pixels of a plot, on the narrow side: on wider ones names are only further apart
LINE_ROOM = 2  # pixels from the middle of a line to a name beside it
MARK_SIZE = 8  # pixels from the middle of a mark to its edge
NAME_DISTANCES = (12, 26, 42, 60)  # pixels from the middle of a mark to its name
NAME_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
CHOSEN = {"color": MARK, "width": 2}  # a line at what is chosen
BARE = {"showgrid": False, "zeroline": False}  # an axis of cells


def bars(figure: go.Figure, x: Any, y: Any, look: Style, hover: str, **more: Any) -> None:
    """One series of bars in its colour and pattern; `text`, where given, stands above them.

    Here and below: `hover` is plotly's template, nothing is shown where it is empty; `more` goes to plotly's trace.
    """
    marker = {"color": look.colour, "pattern": {"shape": look.pattern, "solidity": 0.35}} | more.pop("marker", {})
    if "text" in more:
        more |= {"textposition": "outside", "cliponaxis": False}
    figure.add_bar(x=x, y=y, name=look.label, marker=marker, **_hover(hover), **more)


def lines(
    figure: go.Figure, x: Any, y: Any, look: Style, hover: str, *, width: float = 2.5, size: float = 8, **more: Any
) -> None:
    """One line with marks, in its colour, dash and symbol; with `mode="lines"` without the marks."""
    line = {"color": look.colour, "dash": look.dash, "width": width} | more.pop("line", {})
    marker = {"symbol": look.symbol, "size": size} | more.pop("marker", {})
    options = {"mode": "lines+markers", "name": look.label} | _hover(hover) | more
    figure.add_scatter(x=x, y=y, line=line, marker=marker, **options)


def points(figure: go.Figure, x: Any, y: Any, look: Style, hover: str, *, size: float = 9, **more: Any) -> None:
    """Marks in their colour and symbol; very many are drawn by WebGL, as a page of so many SVG elements crawls.

    So is what comes after them, which would else lie below.
    """
    marker = {"color": look.colour, "symbol": look.symbol, "size": size} | more.pop("marker", {})
    is_gl = len(x) > SVG_MARKS or any(trace.type == "scattergl" for trace in figure.data)
    add = figure.add_scattergl if is_gl else figure.add_scatter
    add(x=x, y=y, marker=marker, **({"mode": "markers", "name": look.label} | _hover(hover) | more))


def rings(figure: go.Figure, x: Any, y: Any, name: str, *, size: float = 20, colour: str = MARK, **more: Any) -> None:
    """Rings around marks or cells that are chosen, or special."""
    look, marker = Style(colour, name, symbol="circle-open"), {"line": {"width": 2.5}}
    points(figure, x, y, look, "", size=size, marker=marker, **more)


def block_axis(figure: go.Figure, blocks: Iterable[int]) -> None:
    """The x axis of bars or lines by decoder block, with the numbers of these blocks."""
    first, last = int(min(blocks)), int(max(blocks))
    figure.update_xaxes(range=[first - 0.6, last + 0.6], dtick=whole_step(last - first + 1), tick0=0, zeroline=False)


def _hover(template: str) -> dict[str, str]:
    return {"hovertemplate": f"{template}<extra></extra>"} if template else {"hoverinfo": "skip"}


def layer_grid(rows: pd.DataFrame, projections: Sequence[str] = (), blocks: Sequence[int] = ()) -> pd.DataFrame:
    """Values of layers as projection × decoder block, without a gap between blocks; those of no layer are NaN.

    `projections` and `blocks` have a place too, whether or not there is a row yet.
    """
    grid = rows.pivot_table(index="projection", columns="block_index", values="value", sort=False, dropna=False)
    places = [*(int(block) for block in rows["block_index"]), *blocks]
    index = list(dict.fromkeys([*projections, *rows["projection"]]))
    return grid.reindex(index=index, columns=range(min(places), max(places) + 1))


def layer_map(
    figure: go.Figure,
    grid: pd.DataFrame,
    rows: pd.DataFrame,
    unit: str,
    *,
    at: dict[str, int] | None = None,
    **heat: Any,
) -> None:
    """A map of decoder block × projection whose invisible marks answer the pointer and clicks, which cells do not.

    Args:
        grid: as of `layer_grid`, in units of the colour scale.
        rows: layer, block_index, projection and `text`, the value as the pointer shows it.
        at: row and col of a subplot.
    """
    place = at or {}
    projections, blocks = list(grid.index), np.array(grid.columns, np.int32)
    cells = go.Heatmap(z=grid.to_numpy(np.float32), x=blocks, y=projections, xgap=1, ygap=1, hoverinfo="skip", **heat)
    figure.add_trace(cells, **place)
    hidden = {"opacity": 0}
    hidden_always: dict[str, Any] = {"marker": hidden, "selected": {"marker": hidden}, "unselected": {"marker": hidden}}
    behind = {"customdata": rows["layer"], "text": rows["text"], "showlegend": False}
    look, hover = Style(MARK, "", symbol="square"), f"%{{customdata}}<br>{unit} %{{text}}"
    points(figure, rows["block_index"], rows["projection"], look, hover, size=16, **hidden_always, **behind, **place)
    order = {"categoryorder": "array", "categoryarray": projections, "range": [len(projections) - 0.5, -0.5]}
    figure.update_xaxes(range=[blocks[0] - 0.5, blocks[-1] + 0.5], dtick=whole_step(len(blocks)), **BARE, **place)
    figure.update_yaxes(**order, showgrid=False, ticks="", **place)


def outline_layer(figure: go.Figure, grid: pd.DataFrame, rows: pd.DataFrame, layer: str | None) -> None:
    """Outlines the cell of a layer on a map; `grid` and `rows` as of `layer_map`, with all layers that share cells."""
    for row in rows[rows["layer"] == layer].itertuples():
        place = list(grid.index).index(row.projection)
        outline(figure, row.block_index - 0.5, row.block_index + 0.5, place - 0.5, place + 0.5)


def signs(figure: go.Figure, cells: pd.DataFrame, look: Style, size: float) -> None:
    """Marks on cells of a map, white with a dark edge, so that they stand out from every colour."""
    marker = {"color": "#ffffff", "line": {"width": 1.5, "color": "#1a1c22"}}
    points(figure, cells["block_index"], cells["projection"], look, "", size=size, marker=marker, showlegend=False)


def colourbar(title: str, **more: Any) -> dict[str, Any]:
    """A colour bar with a title that reads along it."""
    font = {"size": FONT_SIZE}
    look = {"thickness": 14, "outlinewidth": 0, "tickfont": font, "ticklabeloverflow": "allow"}
    return {"title": {"text": title, "side": "right", "font": font}} | look | more


def matrix_axes(figure: go.Figure, rows: int, columns: int) -> None:
    """First output channel on top, as a matrix is written; nothing beyond the last channel."""
    figure.update_xaxes(BARE, range=[-0.5, columns - 0.5])
    figure.update_yaxes(BARE, range=[rows - 0.5, -0.5])


def outline(figure: go.Figure, x0: float, x1: float, y0: float, y1: float, **more: Any) -> None:
    """A rectangle around what is chosen, in data coordinates."""
    line = {"color": MARK, "width": 3} | more.pop("line", {})
    figure.add_shape(type="rect", x0=x0, x1=x1, y0=y0, y1=y1, line=line, layer="above", **more)


def outline_block(figure: go.Figure, widths: Sequence[int], marked: int | None) -> None:
    """Outlines block `marked`, counted from 0 on the left, over the whole height of the plot."""
    if marked is None:
        return
    start, end = block_span(widths, marked)
    outline(figure, start - 0.5, end - 0.5, 0, 1, yref="paper")


def block_span(widths: Sequence[int], block: int) -> tuple[int, int]:
    """First column of a block, and the first after it."""
    if not 0 <= block < len(widths):
        raise RoseError(f"This layer has blocks 0 to {len(widths) - 1}, so block {block} cannot be marked.")
    start = sum(widths[:block])
    return start, start + widths[block]


def whole_step(count: int) -> int:
    """Distance of ticks on an axis that counts up to `count`: never a fraction, at most 16 ticks."""
    return next(step for step in (1, 2, 4, 5, 10, 20, 50, 100, 1000) if count / step <= 16 or step == 1000)


def note(figure: go.Figure, text: str, theme: Theme, **where: Any) -> None:
    """A short text inside the plot, legible over lines and bars."""
    options = {"showarrow": False, "bgcolor": INKS[theme].hover, "opacity": 0.85, "borderpad": 2} | where
    figure.add_annotation(text=text, **options)


def dashed(theme: Theme, width: float = 2) -> dict[str, Any]:
    """A line at a threshold or at the dense model's value."""
    return {"color": INKS[theme].text, "dash": "dash", "width": width}


def level(
    figure: go.Figure, y: float, span: tuple[float, float], name: str, theme: Theme, *, dash: str = "dash"
) -> None:
    """A broken horizontal line that the legend names, where a text beside it would cover data."""
    look = Style(INKS[theme].text, name, dash)
    lines(figure, list(span), [y, y], look, "", width=1.5, mode="lines")


def end_labels(figure: go.Figure, x: float, ends: Sequence[tuple[float, str, str, str]], top: float) -> None:
    """Names of lines at their right ends, moved apart where they would overlap; makes room for them on the right.

    The figure has its height and margins, and a y axis from 0 to `top`. `ends`: (y, text, colour, dash) of each line.
    """
    plot = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    ordered = sorted(ends, key=lambda end: end[0])
    heights = [LABEL_LINE * (1 + text.count("<br>")) * top / plot for _, text, *_ in ordered]
    middles = [y for y, *_ in ordered]
    for i in range(1, len(middles)):  # upwards
        middles[i] = max(middles[i], middles[i - 1] + (heights[i] + heights[i - 1]) / 2)
    ceiling = top
    for i in reversed(range(len(middles))):  # and down again where the uppermost would leave the plot
        middles[i] = min(middles[i], ceiling - heights[i] / 2)
        ceiling = middles[i] - heights[i] / 2
    for middle, (y, text, colour, dash) in zip(middles, ordered, strict=True):
        figure.add_annotation(
            x=x,
            y=y,
            # The text itself is in ink: colours are too light to read.
            text=f'<span style="color:{colour}">{"┅" if "dot" in dash else "━"}</span> {text}',
            # A line leads from the end to a label that had to move.
            showarrow=True,
            arrowhead=0,
            arrowwidth=1,
            arrowcolor=colour,
            standoff=6,
            ax=LEADER,
            ayref="y",
            ay=middle,
            xanchor="left",
            align="left",
        )
    longest = max(len(line) for _, text, *_ in ends for line in text.split("<br>"))
    figure.update_layout(margin_r=round(26 + LEADER + CHARACTER * longest))


def name_points(
    figure: go.Figure,
    x: np.ndarray,
    y: np.ndarray,
    names: Sequence[str],
    spans: Sequence[Sequence[float]],
    inks: Sequence[str],
    steps: Sequence[tuple[float, float]] = (),
) -> None:
    """Names of marks beside them, each where it covers no mark, no other name and no step; further away with a line.

    The figure has its height and margins; x, y, the `spans` of both axes and the corners of a stepped line, `steps`,
    are in axis units, exponents on a log axis. `inks`: colour of each name.
    """
    margin = figure.layout.margin
    size = (PLOT_WIDTH, figure.layout.height - margin.t - margin.b)
    at = _pixels((x, y), spans, size)
    taken = [_around(one, one, MARK_SIZE) for one in zip(*at, strict=True)]
    corners = list(zip(*_pixels(np.reshape(steps, (-1, 2)).T, spans, size), strict=True))
    taken += [_around(one, other, LINE_ROOM) for one, other in itertools.pairwise(corners)]
    for place in np.argsort(-at[1], kind="stable"):
        left, bottom = float(at[0][place]), float(at[1][place])
        width = CHARACTER * len(names[place])
        boxes = []
        for far, (right, up) in itertools.product(NAME_DISTANCES, NAME_SIDES):
            corner = left + right * far - (width if right < 0 else width / 2 if right == 0 else 0)
            middle = bottom + up * far
            boxes.append((corner, middle - LABEL_LINE / 2, corner + width, middle + LABEL_LINE / 2))
        mine = taken[place]
        covers = [_covered(box, [one for one in taken if one is not mine], size) for box in boxes]
        best = int(np.argmin(covers))
        taken.append(boxes[best])
        far, (right, up) = list(itertools.product(NAME_DISTANCES, NAME_SIDES))[best]
        figure.add_annotation(
            x=x[place],
            y=y[place],
            text=names[place],
            font={"color": inks[place]},
            arrowcolor=inks[place],
            showarrow=True,
            arrowhead=0,
            arrowwidth=1 if far > NAME_DISTANCES[0] else 0.1,
            standoff=MARK_SIZE,
            ax=right * far,
            ay=-up * far,
            xanchor="right" if right < 0 else "center" if right == 0 else "left",
        )


def _pixels(
    values: Sequence[np.ndarray] | np.ndarray, spans: Sequence[Sequence[float]], size: tuple[float, float]
) -> list[np.ndarray]:
    """Places along both axes in pixels from the lower left corner of a plot of this size."""
    return [
        (np.asarray(one) - span[0]) / (span[1] - span[0]) * side
        for one, span, side in zip(values, spans, size, strict=True)
    ]


def _around(one: tuple[float, float], other: tuple[float, float], room: float) -> tuple[float, ...]:
    """The box, (left, bottom, right, top), that holds two points and so much around them."""
    (left, right), (bottom, top) = (sorted(pair) for pair in zip(one, other, strict=True))
    return left - room, bottom - room, right + room, top + room


def _covered(box: tuple[float, ...], others: Sequence[tuple[float, ...]], size: tuple[float, float]) -> float:
    """How much of a box, (left, bottom, right, top), lies over others or outside of a plot of this size."""
    area, inside = (box[2] - box[0]) * (box[3] - box[1]), _common(box, (0, 0, *size))
    return sum(_common(box, other) for other in others) + area - inside


def _common(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    up = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, across) * max(0.0, up)
