"""What all figures share: colours, scales, titles, numbers in words, and shrinking to what a screen can show.

Colours were chosen for a contrast of at least 3:1 on white and on the dark page, and a distance of at least 15
(CIE76) between any two, to normal eyes and under simulated protanopia and deuteranopia (Machado et al. 2009).
"""

from __future__ import annotations

import base64
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from rose import METHODS, RoseError

Theme = Literal["light", "dark"]
How = Literal["max", "sum"]

MAX_WIRE = 1_800_000  # bytes of one matrix, of 2 MB for the whole figure
MAX_CELLS = 512  # a side: more is slow in the browser, and no screen shows it
SEQUENTIAL = "Viridis"  # magnitude
# Change, centred on 0: PuOr, purple below and orange above, with a middle that is quiet on the page.
DIVERGING_LIGHT = [[0.0, "#542788"], [0.25, "#998ec3"], [0.5, "#e4e4e8"], [0.75, "#f1a340"], [1.0, "#a3480a"]]
DIVERGING_DARK = [[0.0, "#c3b8f0"], [0.25, "#7a6bb5"], [0.5, "#3d3b48"], [0.75, "#c26a12"], [1.0, "#ffc471"]]
FONT = "Source Sans, Segoe UI, sans-serif"  # Streamlit's; a name with a digit in it breaks labels in 3-D
FONT_SIZE = 14
TITLE_SIZE = 18
LOG_ABOVE = 10.0  # a spread beyond this needs a log axis, or the smallest values could not be told apart
BASELINE = "sparsegpt"  # the method that titles compare others with
ERROR = "relative error (of output energy)"  # ‖ΔW Xᵀ‖² / ‖W Xᵀ‖²
MARK = "#f0338a"  # the chosen block or layer; on neither end of the scales above

BLUE, ORANGE, GREEN, TAN, BROWN, INDIGO, SLATE, AZURE, TEAL, PURPLE, VIOLET = (
    "#0973b2",
    "#d9580b",
    "#089975",
    "#b28e50",
    "#8c523f",
    "#4040ff",
    "#506a79",
    "#0d86ff",
    "#2da2b2",
    "#b2099d",
    "#9189e5",
)
PALETTE = (BLUE, ORANGE, GREEN, TAN, BROWN, INDIGO, SLATE, AZURE, TEAL, PURPLE, VIOLET)

ORDER_COLOURS = {
    "natural": BLUE,
    "two_level": ORANGE,
    "global": GREEN,
    "dealt": VIOLET,
    "columns": TAN,
    "blocks": BROWN,
    "hessian": INDIGO,
    "random": SLATE,
    "custom": AZURE,
}
# A method that is an order has that order's colour.
METHOD_COLOURS = {
    "sparsegpt": BLUE,
    "rose": ORANGE,
    "rose_global": GREEN,
    "rose_dealt": VIOLET,
    "wanda": TEAL,
    "magnitude": SLATE,
    "measured": AZURE,
    "sensitivity": TAN,
    "dsnot": BROWN,
    "alps": INDIGO,
    "oats": PURPLE,
}
ORDER_LABELS = {
    "natural": "Natural",
    "two_level": "Two-level",
    "global": "Global",
    "dealt": "Dealt",
    "columns": "Columns only",
    "blocks": "Blocks only",
    "hessian": "Hessian diagonal",
    "random": "Random",
    "custom": "Your own",
}
_OURS = {"rose_global", "rose_dealt", "measured"}
# Shape says the same as colour, for those who cannot tell colours and for print.
_SYMBOLS = (
    "circle",
    "square",
    "diamond",
    "triangle-up",
    "triangle-down",
    "cross",
    "x",
    "star",
    "hexagon",
    "pentagon",
    "hourglass",
)
# Dash and pattern. Every colour belongs to something built in, so what comes from a plugin differs in these, and has
# open marks.
_LINE, _PLUGIN_LINE = ("solid", ""), ("longdash", ".")


@dataclass(frozen=True)
class Drawing:
    """A figure with all that a page needs around it.

    Attributes:
        figure: ready to show; its JSON stays below 2 MB.
        caption: one sentence with numbers computed from what is shown.
        alt: the same for those who cannot see the figure.
        data: the numbers behind the figure, for download; where they are shrunk, the first heading says so.
    """

    figure: go.Figure
    caption: str
    alt: str
    data: pd.DataFrame


@dataclass(frozen=True)
class Ink:
    """Colours that follow the theme: page, text, secondary text, grid lines, blank cells, hover box."""

    page: str  # as in .streamlit/config.toml
    text: str
    muted: str
    grid: str
    blank: str
    hover: str


INKS: dict[Theme, Ink] = {
    "light": Ink("#ffffff", "#1a1c22", "#555b66", "rgba(90,100,115,0.22)", "rgba(110,120,135,0.13)", "#ffffff"),
    "dark": Ink("#14121a", "#f2f3f5", "#b4bac4", "rgba(200,208,220,0.20)", "rgba(190,200,215,0.14)", "#20242c"),
}


class Style(NamedTuple):
    """How one order, method or projection is drawn everywhere."""

    colour: str
    label: str
    dash: str
    symbol: str
    pattern: str


def order_style(name: str) -> Style:
    """Any order name, `_ascending` and `random:SEED` included; ascending is the same colour, dashed and hatched."""
    base, _, seed = name.partition(":")
    ascending = base.endswith("_ascending")
    base = base.removesuffix("_ascending")
    label = ORDER_LABELS.get(base, sentence(base.replace("_", " ")))
    if ascending:
        label += ", ascending"
    if seed:
        label += f", seed {seed}"
    dash, pattern = _LINE if base in ORDER_COLOURS else _PLUGIN_LINE
    if ascending:
        dash, pattern = "dash", "/"
    return Style(ORDER_COLOURS.get(base) or _fallback(base), label, dash, _symbol(base, ORDER_COLOURS), pattern)


def method_style(name: str) -> Style:
    """Any method name; one from a plugin gets a colour from its name, always the same, long dashes and open marks.

    A study measures two-level order beside the methods, in layers of every kind, and lists it as one.
    """
    if name not in METHODS and name in ORDER_COLOURS:
        return order_style(name)
    label = METHODS[name].label if name in METHODS else name.replace("_", " ")
    if name in _OURS:
        label += " (ours)"
    dash, pattern = _LINE if name in METHOD_COLOURS else _PLUGIN_LINE
    return Style(METHOD_COLOURS.get(name) or _fallback(name), label, dash, _symbol(name, METHOD_COLOURS), pattern)


def projection_styles(projections: Sequence[str]) -> dict[str, Style]:
    """A colour and a symbol for each kind of layer, by the place it has in the model."""
    return {
        name: Style(PALETTE[i % len(PALETTE)], name, "solid", _SYMBOLS[i % len(_SYMBOLS)], "")
        for i, name in enumerate(projections)
    }


def _fallback(name: str) -> str:
    # Not hash(): it changes from run to run.
    return PALETTE[sum(name.encode()) % len(PALETTE)]


def _symbol(name: str, known: dict[str, str]) -> str:
    if name in known:
        return _SYMBOLS[list(known).index(name) % len(_SYMBOLS)]
    return _SYMBOLS[sum(name.encode()) % len(_SYMBOLS)] + "-open"


def magnitude_colours(values: np.ndarray, theme: Theme) -> list[str]:
    """Colours for lines and bars by magnitude: the part of the sequential scale that stands out from the page."""
    low, high = (0.0, 0.82) if theme == "light" else (0.28, 1.0)
    largest = float(np.max(values, initial=0.0))
    shares = np.clip(np.nan_to_num(values) / largest, 0, 1) if largest > 0 else np.zeros(len(values))
    return sample_colorscale(SEQUENTIAL, list(low + (high - low) * shares))


def diverging(theme: Theme) -> list[list[Any]]:
    """The diverging scale; its light middle gives way to a dark one on a dark page, so that "no change" is quiet."""
    if theme == "light":
        return DIVERGING_LIGHT
    return DIVERGING_DARK


# Numbers and words


def number(value: float) -> str:
    """Three significant digits, with a power of ten only where zeros would be hard to count."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    exponent = int(f"{value:.2e}".partition("e")[2])  # of the rounded value: 99.96 is 100
    if exponent < -4 or exponent >= 6:
        mantissa = value / 10.0**exponent
        return f"{mantissa:.2f} × 10{_superscript(exponent)}".replace("-", "−")
    if exponent >= 3:
        return whole(round(value)).replace("-", "−")
    return f"{value:.{max(0, 2 - exponent)}f}".replace("-", "−")


def _superscript(value: int) -> str:
    return str(value).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def percent(share: float, digits: int = 1) -> str:
    """0.123 -> "12.3 %"."""
    return "–" if math.isnan(share) else f"{100 * share:.{digits}f} %".replace("-", "−")


_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def whole(value: int) -> str:
    """12345 -> "12 345"."""
    return f"{value:,}".replace(",", " ")


def word(value: int) -> str:
    """ "no", "four", "210"."""
    return _WORDS[value] if 0 <= value < len(_WORDS) else whole(value)


def count(value: int, noun: str, plural: str | None = None) -> str:
    """ "no layers", "one layer", "four layers", "210 layers"."""
    return f"{word(value)} {noun if value == 1 else plural or noun + 's'}"


def sentence(text: str) -> str:
    """With a capital first letter, the rest as it is."""
    return text[:1].upper() + text[1:]


def of(name: str) -> str:
    """ " of 18 · self_attn.o_proj", or nothing where there is no name."""
    return f" of {name}" if name else ""


def place_of(layer: str) -> tuple[int | None, str]:
    """Decoder block, where the name has one, and projection: "model.layers.18.mlp.up_proj" -> (18, "mlp.up_proj")."""
    parts = layer.split(".")
    index = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    return (None, layer) if index is None else (int(parts[index]), ".".join(parts[index + 1 :]))


def short_layer(layer: str) -> str:
    """ "model.layers.18.self_attn.o_proj" -> "18 · self_attn.o_proj"; a name without a number stays as it is.

    All of the projection's name: GPT-2 has an attn.c_proj and an mlp.c_proj in every decoder block.
    """
    block, projection = place_of(layer)
    return layer if block is None else f"{block} · {projection}"


# Arrays


def to_numpy(values: Any) -> np.ndarray:
    """A tensor of any dtype and device, or anything array-like, as a NumPy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()  # NumPy has no bfloat16
        return values.numpy()
    return np.asarray(values)


def ceiling(shown: np.ndarray) -> tuple[float, str]:
    """Where the colours of a magnitude end, and a note where that is below the largest value shown.

    A few outliers would otherwise leave all other cells in one dark colour.
    """
    finite = shown[np.isfinite(shown)]
    largest = float(finite.max(initial=0.0))
    usual = float(np.quantile(finite, 0.998)) if finite.size else 0.0
    if 0 < usual < 0.67 * largest:
        return usual, f"; colours end at {number(usual)}, the largest is {number(largest)}"
    return largest or 1.0, ""


class Shrunk(NamedTuple):
    """A matrix small enough to show.

    Attributes:
        array: (cells down, cells across); dtype kept.
        rows, columns: how many entries one cell stands for.
        note: the same in words.
    """

    array: np.ndarray
    rows: int
    columns: int
    note: str


def shrink(array: Any, limit: int = MAX_CELLS, how: How = "max", what: str = "weights") -> Shrunk:
    """At most `limit` cells a side, by the maximum or the sum of each rectangle.

    Never the mean: it would hide a single strong column, which is what people look for here.

    Args:
        array: (rows, columns).
        what: what the entries are, for the note.

    Raises:
        RoseError: not a matrix, or an empty one.
    """
    values = to_numpy(array)
    if values.ndim != 2 or values.size == 0:
        raise RoseError(f"Only a non-empty matrix can be drawn, but the shape is {values.shape}.")
    steps = [math.ceil(side / limit) for side in values.shape]
    single = what.removesuffix("s")
    while True:
        small = values
        for axis, step in enumerate(steps):  # rows first: whole rows are contiguous, so this is the fast direction
            small = _reduce(small, axis, step, how)
        if small.dtype.kind != "f" or _wire_size(small) <= MAX_WIRE:
            break
        steps[0] *= 2
    if steps == [1, 1]:
        return Shrunk(small, 1, 1, f"each cell is one {single}")
    kind = {"max": "the maximum", "sum": "the sum"}[how]
    return Shrunk(small, steps[0], steps[1], f"each cell is {kind} of {steps[0]} × {steps[1]} {what}")


def _reduce(values: np.ndarray, axis: int, step: int, how: How) -> np.ndarray:
    """Every `step` rows (or columns) to one; the last may stand for fewer."""
    if axis == 1:
        return _reduce(values.T, 0, step, how).T
    reduce: Any = {"max": np.max, "sum": np.sum}[how]
    groups, rest = divmod(len(values), step)
    # Much faster than ufunc.reduceat on large matrices.
    parts = [reduce(values[: groups * step].reshape(groups, step, -1), axis=1)] if groups else []
    if rest:
        parts.append(reduce(values[groups * step :], axis=0, keepdims=True))
    return np.concatenate(parts)


def _wire_size(values: np.ndarray) -> int:
    """Bytes of an array of float32 in a figure's JSON, in which plotly spells every "/" of the base64 with six."""
    text = base64.b64encode(np.ascontiguousarray(values, np.float32).tobytes())
    return len(text) + 5 * text.count(b"/")


def frame(shrunk: Shrunk) -> pd.DataFrame:
    """The shrunk matrix as a table: first channels of each cell as names, and in the first heading what a cell is."""
    rows, columns = shrunk.array.shape
    whole = shrunk.rows == shrunk.columns == 1
    first = "output channel" if whole else f"output channel ({shrunk.note})"
    table = pd.DataFrame(shrunk.array, columns=[str(c) for c in range(0, columns * shrunk.columns, shrunk.columns)])
    table.insert(0, first, np.arange(rows) * shrunk.rows)
    return table


# Figures


@cache
def template(theme: Theme) -> go.layout.Template:
    """Our own light and dark look; on the colour of the page, so that a figure taken elsewhere can be read there."""
    ink = INKS[theme]
    axis = {
        "gridcolor": ink.grid,
        "linecolor": ink.muted,
        "zerolinecolor": ink.muted,
        "zerolinewidth": 1,
        "showline": True,
        "ticks": "outside",
        "tickcolor": ink.muted,
        "title": {"font": {"size": FONT_SIZE + 1}, "standoff": 8},
        "tickfont": {"size": FONT_SIZE},
        "automargin": True,
    }
    solid = "#d5d8de" if theme == "light" else "#43464f"  # WebGL ignores transparency of grid lines
    scene = {"gridcolor": solid, "linecolor": ink.muted, "zerolinecolor": solid, "showbackground": False}
    return go.layout.Template(
        layout={
            "font": {
                "family": FONT,
                "size": FONT_SIZE,
                "color": ink.text,
            },
            "paper_bgcolor": ink.page,
            "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": axis,
            "yaxis": axis,
            "scene": {"xaxis": scene, "yaxis": scene, "zaxis": scene},
            "hoverlabel": {
                "bgcolor": ink.hover,
                "bordercolor": ink.muted,
                "font": {"size": FONT_SIZE, "color": ink.text},
                "namelength": -1,
            },
            "legend": {"font": {"size": FONT_SIZE}, "bgcolor": "rgba(0,0,0,0)"},
            "colorway": list(PALETTE),
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": ink.muted, "activecolor": ink.text},
            "bargap": 0.25,
        }
    )


def base(
    figure: go.Figure,
    theme: Theme,
    finding: str,
    what: str,
    *,
    x: str = "",
    y: str = "",
    height: int = 420,
    legend: bool = False,
) -> go.Figure:
    """Gives a figure its theme, a title that states the finding, and axis titles.

    Args:
        figure: changed and returned.
        finding: the title, a statement.
        what: the line below it: what is drawn, of what, in which units.
        x, y: axis titles with units.
        height: pixels.
        legend: whether to show one, below the plot.

    Raises:
        RoseError: an unknown theme.
    """
    if theme not in INKS:
        raise RoseError(f"The theme must be light or dark, not {theme!r}.")
    ink = INKS[theme]
    title, below = _wrap(finding, 58), _wrap(what, 78)
    text = f"<b>{'<br>'.join(title)}</b>"
    if below:
        text += f'<br><span style="font-size:{FONT_SIZE}px;color:{ink.muted}">{"<br>".join(below)}</span>'
    top = 22 + round(1.35 * TITLE_SIZE * len(title) + 1.35 * TITLE_SIZE * len(below))
    figure.update_layout(
        template=template(theme),
        title={
            "text": text,
            "x": 0,
            "xanchor": "left",
            "xref": "container",
            "y": 1 - TITLE_SIZE / height,  # plotly's "top" is the first line's middle
            "yanchor": "top",
            "yref": "container",
            "pad": {"l": 8},
            "font": {"size": TITLE_SIZE},
        },
        margin={"l": 64, "r": 24, "t": top, "b": 56},
        height=height,
        showlegend=legend,
    )
    if legend:
        figure.update_layout(
            legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 0, "yanchor": "bottom", "yref": "container"}
        )
    if x:
        figure.update_xaxes(title_text=x)
    if y:
        figure.update_yaxes(title_text=y)
    return figure


def _wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters; numbers keep their units and powers of ten."""
    held = re.sub(r"(?<=\d) (?=[\d%×])|(?<=×) (?=\d)", "\u00a0", text)
    return [line.replace("\u00a0", " ") for line in textwrap.wrap(held, width)]


def colourbar(title: str, **more: Any) -> dict[str, Any]:
    """A colour bar with a title that reads along it."""
    text = {"text": title, "side": "right", "font": {"size": FONT_SIZE}}
    return {
        "title": text,
        "thickness": 14,
        "outlinewidth": 0,
        "tickfont": {"size": FONT_SIZE},
        "ticklabeloverflow": "allow",
    } | more


def heatmap(shrunk: Shrunk, unit: str, **more: Any) -> go.Heatmap:
    """Cells at the channel numbers they stand for; zmin 0 and the sequential scale unless told otherwise."""
    array = shrunk.array
    array = array.astype(np.uint8 if array.dtype in (np.bool_, np.uint8) else np.float32, copy=False)
    options = {
        "colorscale": SEQUENTIAL,
        "zmin": 0,
        "colorbar": colourbar(unit),
        "hovertemplate": f"input channel %{{x:.0f}}<br>output channel %{{y:.0f}}<br>{unit} %{{z:.4g}}<extra></extra>",
    }
    return go.Heatmap(
        z=array,
        x0=(shrunk.columns - 1) / 2,
        dx=shrunk.columns,
        y0=(shrunk.rows - 1) / 2,
        dy=shrunk.rows,
        **(options | more),
    )


def matrix_axes(figure: go.Figure, rows: int, columns: int) -> None:
    """First output channel on top, as a matrix is written; nothing beyond the last channel."""
    figure.update_xaxes(range=[-0.5, columns - 0.5], showgrid=False, zeroline=False)
    figure.update_yaxes(range=[rows - 0.5, -0.5], showgrid=False, zeroline=False)


def outline(figure: go.Figure, x0: float, x1: float, y0: float, y1: float, **more: Any) -> None:
    """A rectangle around what is chosen, in data coordinates."""
    line = {"color": MARK, "width": 3} | more.pop("line", {})
    figure.add_shape(type="rect", x0=x0, x1=x1, y0=y0, y1=y1, line=line, layer="above", **more)


def outline_block(figure: go.Figure, widths: Sequence[int], marked: int | None) -> None:
    """Outlines block `marked`, counted from 0 on the left, over the whole height of the plot.

    Raises:
        RoseError: there is no such block.
    """
    if marked is None:
        return
    start, end = block_span(widths, marked)
    outline(figure, start - 0.5, end - 0.5, 0, 1, yref="paper")


def block_span(widths: Sequence[int], block: int) -> tuple[int, int]:
    """First column of a block, and the first after it.

    Raises:
        RoseError: there is no such block.
    """
    if not 0 <= block < len(widths):
        raise RoseError(f"This layer has blocks 0 to {len(widths) - 1}, so block {block} cannot be marked.")
    start = sum(widths[:block])
    return start, start + widths[block]


def note(figure: go.Figure, text: str, theme: Theme, **where: Any) -> None:
    """A short text inside the plot, legible over lines and bars."""
    options = {"showarrow": False, "bgcolor": INKS[theme].hover, "opacity": 0.85, "borderpad": 2} | where
    figure.add_annotation(text=text, **options)


def level(figure: go.Figure, y: float, span: tuple[float, float], name: str, theme: Theme) -> None:
    """A dashed horizontal line that the legend names, where a text beside it would cover data."""
    figure.add_scatter(
        x=list(span),
        y=[y, y],
        mode="lines",
        name=name,
        line={"color": INKS[theme].text, "dash": "dash", "width": 1.5},
        hoverinfo="skip",
    )


def mark_words(marked: int | None) -> str:
    """For captions and alt texts."""
    return "" if marked is None else f" Block {marked} is outlined."
