"""The shapes that figures are made of: bars, lines, points, cells and maps of layers on a chart."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from app import words
from app.figures import style
from app.figures.palette import INKS, MARK, SEQUENTIAL, Style, Theme
from app.figures.style import FONT_SIZE, Drawing
from rose import RoseError

LABEL_LINE = 20  # pixels from one line of text to the next
LEADER = 22  # pixels from the end of a line to its label
CHARACTER = 7.6  # pixels, of text in FONT_SIZE, on the wide side
SVG_MARKS = 4000  # of one series
MAX_WIRE = 1_800_000  # bytes of one matrix, of 2 MB for the whole figure
MAX_CELLS = 512  # a side: more is slow in the browser, and no screen shows it
End = tuple[float, str, str, str]  # of a line: y, text, colour, dash
CHOSEN = {"color": MARK, "width": 2}  # a line at what is chosen
BARE: dict[str, Any] = {"showgrid": False, "zeroline": False}  # an axis of cells


class Look(TypedDict, total=False):
    """Keyword arguments that figures of one layer share."""

    layer: str  # its name in titles
    theme: Theme


class Marked(Look, total=False):
    marked_block: int | None  # counted from 0


class Chart:
    """A figure in progress: methods add shapes and axes, and `done` adds titles and texts.

    `height` is in pixels, or `plot` that of the plot alone; `headroom` lies between title and plot. `subplots` go to
    plotly's `make_subplots`.
    `hover` is plotly's template; an empty one shows nothing; `properties` go to plotly's trace.
    """

    def __init__(
        self, *, x: str = "", y: str = "", height: int = 420, plot: int = 0, legend: bool = False, headroom: int = 0,
        layer: str = "", theme: Theme = "light", marked_block: int | None = None, **subplots: Any,
    ) -> None:  # fmt: skip
        self.figure = make_subplots(**subplots) if subplots else go.Figure()
        self.x(title_text=x or None)
        self.y(title_text=y or None)
        self.height, self.plot, self.legend, self.headroom = height, plot, legend, headroom
        self.theme, self.ink, self.layer, self.of = theme, INKS[theme], layer, words.of(layer)
        self.margins: dict[str, int] = {}  # in pixels, where they are not the usual ones
        self.ends: tuple[float, Sequence[End], float, float] | None = None
        self.marked_block = marked_block
        self.marked_words = "" if marked_block is None else f" Block {marked_block} is outlined."
        # A line at a threshold or at the dense model's value.
        self.dashed = {"color": self.ink.text, "dash": "dash", "width": 2}

    def done(self, finding: str, subtitle: str, caption: str, alt: str, data: pd.DataFrame) -> Drawing:
        """Frames the figure with a title, the finding, over a subtitle: the quantity, its object and its units.

        `alt` names the kind of picture and its subject, without a full stop; the finding follows it.
        """
        title, lines = style.heading(finding, subtitle, self.ink.muted)
        freed = 10 + round(1.35 * style.TITLE_SIZE * lines)
        # `meta` is for `style.untitled`, and for saving.
        meta = {"finding": finding, "what": subtitle, "title": {"text": title}, "freed": freed}
        margin = {"l": 64, "r": 24, "t": 12 + freed + self.headroom, "b": 56} | self.margins
        look = {"template": style.template(self.theme), "title_text": title, "showlegend": self.legend}
        height = self.plot + margin["t"] + margin["b"] if self.plot else self.height
        self.figure.update_layout(margin=margin, height=height, meta=meta, **look)
        if self.ends:
            _label_ends(self.figure, *self.ends)
        return Drawing(self.figure, caption, f"{alt}. {finding}.", data)

    def label_ends(self, x: float, ends: Sequence[End], top: float, bottom: float = 0.0) -> None:
        """Names of lines at their right ends, at `x`, in place of a legend; the y axis runs from `bottom` to `top`."""
        self.ends = x, ends, top, bottom

    def x(self, *, count: Any = 0, **axis: Any) -> None:
        """Settings of the x axis; with `count`, the largest number on it, ticks are whole numbers."""
        self.figure.update_xaxes(**(({"dtick": whole_step(count)} if count else {}) | axis))

    def y(self, *, count: Any = 0, top: Any = None, **axis: Any) -> None:
        """Settings of the y axis, which ends at a positive `top`."""
        span = {} if top is None else {"range": [0, top or 1]}
        self.figure.update_yaxes(**(({"dtick": whole_step(count)} if count else {}) | span | axis))

    def block_axis(self, blocks: Iterable[int]) -> None:
        """The x axis of bars or lines by decoder block, with the numbers of these blocks."""
        first, last = int(min(blocks)), int(max(blocks))
        self.x(count=last - first + 1, range=[first - 0.6, last + 0.6], tick0=0, zeroline=False)

    def bars(self, x: Any, y: Any, look: Style, hover: str, **properties: Any) -> None:
        """One series of bars in its colour and pattern; `text`, where given, stands above them."""
        marker = {"color": look.colour, "pattern": {"shape": look.pattern, "solidity": 0.35}}
        marker |= properties.pop("marker", {})
        if "text" in properties:
            properties |= {"textposition": "outside", "cliponaxis": False}
        self.figure.add_bar(x=x, y=y, name=look.label, marker=marker, **_hover(hover), **properties)

    def line(
        self, x: Any, y: Any, look: Style, hover: str, *, width: Any = 2.5, size: Any = 8, **properties: Any
    ) -> None:
        """One line with marks, in its colour, dash and symbol; with `mode="lines"` without the marks."""
        line = {"color": look.colour, "dash": look.dash, "width": width} | properties.pop("line", {})
        marker = {"symbol": look.symbol, "size": size} | properties.pop("marker", {})
        options = {"mode": "lines+markers", "name": look.label} | _hover(hover) | properties
        self.figure.add_scatter(x=x, y=y, line=line, marker=marker, **options)

    def level(self, y: float, span: tuple[float, float], name: str, dash: str = "dash") -> None:
        """A broken horizontal line with its name in the legend, because a text beside it would cover data."""
        self.line(list(span), [y, y], Style(self.ink.text, name, dash), "", width=1.5, mode="lines")

    def points(self, x: Any, y: Any, look: Style, hover: str, *, size: Any = 9, **properties: Any) -> None:
        """Marks in their colour and symbol; WebGL draws more than `SVG_MARKS`, and all after these: SVG lies below."""
        marker = {"color": look.colour, "symbol": look.symbol, "size": size} | properties.pop("marker", {})
        is_gl = len(x) > SVG_MARKS or any(trace.type == "scattergl" for trace in self.figure.data)
        add = self.figure.add_scattergl if is_gl else self.figure.add_scatter
        add(x=x, y=y, marker=marker, **({"mode": "markers", "name": look.label} | _hover(hover) | properties))

    def rings(self, x: Any, y: Any, name: str, *, size: float = 20, colour: str = MARK, **properties: Any) -> None:
        """Rings around chosen or special marks or cells."""
        look = Style(colour, name, symbol="circle-open")
        self.points(x, y, look, "", size=size, marker={"line": {"width": 2.5}}, **properties)

    def cells(self, shrunk: Shrunk, unit: str, **properties: Any) -> None:
        """Cells at their channel numbers; zmin is 0 and the scale sequential unless `properties` override them."""
        array = shrunk.array
        place = {"x0": (shrunk.columns - 1) / 2, "dx": shrunk.columns, "y0": (shrunk.rows - 1) / 2, "dy": shrunk.rows}
        hover = f"input channel %{{x:.0f}}<br>output channel %{{y:.0f}}<br>{unit} %{{z:.4g}}<extra></extra>"
        scale = {"colorscale": SEQUENTIAL, "zmin": 0, "colorbar": colourbar(unit), "hovertemplate": hover}
        kind = np.uint8 if array.dtype in (np.bool_, np.uint8) else np.float32
        self.figure.add_heatmap(z=array.astype(kind, copy=False), **place, **(scale | properties))

    def matrix_axes(self, rows: int, columns: int) -> None:
        """First output channel on top, as a matrix is written; nothing beyond the last channel."""
        self.x(**BARE, range=[-0.5, columns - 0.5])
        self.y(**BARE, range=[rows - 0.5, -0.5])

    def layer_map(self, grid: pd.DataFrame, rows: pd.DataFrame, unit: str, *, at: Any = None, **heat: Any) -> None:
        """A map of decoder block × projection. Invisible marks answer the pointer and clicks, because cells do not.

        `grid` comes from `layer_grid`, in units of the colour scale; `rows` has layer, block_index, projection and
        text, the value as the pointer shows it; `at` is row and col of a subplot.
        """
        place = at or {}
        projections, blocks = list(grid.index), np.array(grid.columns, np.int32)
        values = grid.to_numpy(np.float32)
        cells = go.Heatmap(z=values, x=blocks, y=projections, xgap=2, ygap=2, hoverinfo="skip", **heat)
        self.figure.add_trace(cells, **place)
        hidden: dict[str, Any] = {"marker": {"opacity": 0}}
        behind = {"customdata": rows["layer"], "text": rows["text"], "showlegend": False}
        behind |= hidden | {"selected": hidden, "unselected": hidden} | place
        look, hover = Style(MARK, "", symbol="square"), f"%{{customdata}}<br>{unit} %{{text}}"
        self.points(rows["block_index"], rows["projection"], look, hover, size=16, **behind)
        order = {"categoryorder": "array", "categoryarray": projections, "range": [len(projections) - 0.5, -0.5]}
        order |= {"tickvals": projections, "ticktext": [words.short_projection(name) for name in projections]}
        self.x(count=len(blocks), range=[blocks[0] - 0.5, blocks[-1] + 0.5], **BARE, showline=False, ticks="", **place)
        self.y(**order, showgrid=False, showline=False, ticks="", **place)

    def outline_layer(self, grid: pd.DataFrame, rows: pd.DataFrame, layer: str | None) -> None:
        """Outlines the cell of a layer on a map; here `rows` has all layers, also those that share a cell."""
        for row in rows[rows["layer"] == layer].itertuples():
            place = list(grid.index).index(row.projection)
            edge = {"color": self.ink.text, "width": 2.5}
            self.outline(row.block_index - 0.5, row.block_index + 0.5, place - 0.5, place + 0.5, line=edge)

    def signs(self, cells: pd.DataFrame, look: Style, size: float) -> None:
        """Marks on cells of a map, white with a dark edge, so that they stand out from every colour."""
        marker = {"color": "#ffffff", "line": {"width": 1.5, "color": "#1a1c22"}}
        self.points(cells["block_index"], cells["projection"], look, "", size=size, marker=marker, showlegend=False)

    def outline(self, x0: float, x1: float, y0: float, y1: float, **properties: Any) -> None:
        """A rectangle around the chosen cells, in data coordinates."""
        line = {"color": MARK, "width": 3} | properties.pop("line", {})
        self.figure.add_shape(type="rect", x0=x0, x1=x1, y0=y0, y1=y1, line=line, layer="above", **properties)

    def outline_block(self, widths: Sequence[int]) -> None:
        """Outlines the marked block over the whole height of the plot."""
        if self.marked_block is not None:
            start, end = block_span(widths, self.marked_block)
            self.outline(start - 0.5, end - 0.5, 0, 1, yref="paper")

    def note(self, text: str, **where: Any) -> None:
        """A short text inside the plot, legible over lines and bars."""
        options = {"showarrow": False, "bgcolor": self.ink.hover, "opacity": 0.85, "borderpad": 2} | where
        self.figure.add_annotation(text=text, **options)


def _hover(template: str) -> dict[str, str]:
    return {"hovertemplate": f"{template}<extra></extra>"} if template else {"hoverinfo": "skip"}


def colourbar(title: str, **properties: Any) -> dict[str, Any]:
    """A colour bar with a title that reads along it."""
    font = {"size": FONT_SIZE}
    look = {"thickness": 14, "outlinewidth": 0, "tickfont": font, "ticklabeloverflow": "allow"}
    return {"title": {"text": title, "side": "right", "font": font}} | look | properties


def layer_grid(rows: pd.DataFrame, projections: Sequence[str] = (), blocks: Sequence[int] = ()) -> pd.DataFrame:
    """Values of layers as projection × decoder block, without gaps between blocks; NaN for places without a layer.

    `projections` and `blocks` get a place even without a row.
    """
    grid = rows.pivot_table(index="projection", columns="block_index", values="value", sort=False, dropna=False)
    places = [*(int(block) for block in rows["block_index"]), *blocks]
    index = list(dict.fromkeys([*projections, *rows["projection"]]))
    return grid.reindex(index=index, columns=range(min(places), max(places) + 1))


def block_span(widths: Sequence[int], block: int) -> tuple[int, int]:
    """First column of a block, and the first after it."""
    if not 0 <= block < len(widths):
        raise RoseError(f"This layer has blocks 0 to {len(widths) - 1}, so block {block} cannot be marked.")
    start = sum(widths[:block])
    return start, start + widths[block]


def whole_step(count: int) -> int:
    """Distance of ticks on an axis that counts up to `count`: never a fraction, at most ten ticks."""
    return next(step for step in (1, 2, 4, 5, 10, 20, 50, 100, 1000) if count / step <= 10 or step == 1000)


def _label_ends(figure: go.Figure, x: float, ends: Sequence[End], top: float, bottom: float) -> None:
    """Moves the names apart where they would overlap, and makes room for them on the right."""
    plot = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    ordered = sorted(ends, key=lambda end: end[0])
    heights = [LABEL_LINE * (1 + text.count("<br>")) * (top - bottom) / plot for _, text, *_ in ordered]
    middles = [y for y, *_ in ordered]
    for i in range(1, len(middles)):  # upwards
        middles[i] = max(middles[i], middles[i - 1] + (heights[i] + heights[i - 1]) / 2)
    ceiling = top
    for i in reversed(range(len(middles))):  # and down again if the uppermost would leave the plot
        middles[i] = min(middles[i], ceiling - heights[i] / 2)
        ceiling = middles[i] - heights[i] / 2
    # A line leads from the end to a label that had to move.
    leader = {"showarrow": True, "arrowhead": 0, "arrowwidth": 1, "standoff": 6, "ax": LEADER, "ayref": "y"}
    for middle, (y, text, colour, dash) in zip(middles, ordered, strict=True):
        label = f'<span style="color:{colour}">{"┅" if "dot" in dash else "━"}</span> {text}'
        where = {"x": x, "y": y, "ay": middle, "xanchor": "left", "align": "left"}
        # The text has the ink colour, because line colours are too light to read.
        figure.add_annotation(text=label, arrowcolor=colour, **where, **leader)
    longest = max(len(line) for _, text, *_ in ends for line in text.split("<br>"))
    figure.update_layout(margin_r=round(26 + LEADER + CHARACTER * longest))


# Tensors as arrays, and large matrices with fewer cells, which keep every large value


def to_numpy(values: Any) -> np.ndarray:
    """A tensor of any dtype and device, or anything array-like, as a NumPy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()  # NumPy has no bfloat16
        return values.numpy()
    return np.asarray(values)


def ceiling(shown: np.ndarray) -> tuple[float, str]:
    """The end of a magnitude's colour scale, and a note if larger values are shown.

    A few outliers would otherwise leave all other cells in one dark colour.
    """
    finite = shown[np.isfinite(shown)]
    largest = float(finite.max(initial=0.0))
    usual = float(np.quantile(finite, 0.998)) if finite.size else 0.0
    if 0 < usual < 0.67 * largest:
        return usual, f"; colours end at {words.number(usual)}, the largest is {words.number(largest)}"
    return largest or 1.0, ""


class Shrunk(NamedTuple):
    """A matrix small enough to show."""

    array: np.ndarray  # (cells down, cells across); dtype kept
    rows: int  # rows in one cell
    columns: int
    note: str  # rows and columns of a cell in words


def shrink(array: Any, limit: int = MAX_CELLS, how: Literal["max", "sum"] = "max", entries: str = "weights") -> Shrunk:
    """Shrinks to `limit` cells a side by the maximum or the sum of each rectangle; the note calls cells `entries`.

    Never the mean: it would hide a single strong column, which is what people look for here.
    """
    values = to_numpy(array)
    steps = [math.ceil(side / limit) for side in values.shape]
    while True:
        small = values
        for axis, step in enumerate(steps):  # rows first: whole rows are contiguous, so this is the fast direction
            small = _reduce(small, axis, step, how)
        # In a figure's JSON plotly writes every "/" of the base64 as six characters.
        text = base64.b64encode(np.ascontiguousarray(small, np.float32).tobytes())
        if small.dtype.kind != "f" or len(text) + 5 * text.count(b"/") <= MAX_WIRE:
            break
        steps[0] *= 2
    if steps == [1, 1]:
        return Shrunk(small, 1, 1, f"each cell is one {entries.removesuffix('s')}")
    kind = {"max": "the maximum", "sum": "the sum"}[how]
    return Shrunk(small, steps[0], steps[1], f"each cell is {kind} of {steps[0]} × {steps[1]} {entries}")


def _reduce(values: np.ndarray, axis: int, step: int, how: str) -> np.ndarray:
    """Reduces every `step` rows (or columns) to one; the last may have fewer."""
    if axis == 1:
        return _reduce(values.T, 0, step, how).T
    reduce: Any = {"max": np.max, "sum": np.sum}[how]
    groups, rest = divmod(len(values), step)
    # Much faster than ufunc.reduceat on large matrices.
    parts = [reduce(values[: groups * step].reshape(groups, step, -1), axis=1)] if groups else []
    if rest:
        parts.append(reduce(values[groups * step :], axis=0, keepdims=True))
    return np.concatenate(parts)


def frame(shrunk: Shrunk) -> pd.DataFrame:
    """The shrunk matrix as a table; names are first channels of cells, and the first heading describes a cell."""
    rows, columns = shrunk.array.shape
    whole = shrunk.rows == shrunk.columns == 1
    first = "output channel" if whole else f"output channel ({shrunk.note})"
    table = pd.DataFrame(shrunk.array, columns=[str(c) for c in range(0, columns * shrunk.columns, shrunk.columns)])
    table.insert(0, first, np.arange(rows) * shrunk.rows)
    return table
