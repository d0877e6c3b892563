"""What all figures share: their look, titles that state findings, and marks."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app.figures.palette import INKS, MARK, PALETTE, SEQUENTIAL, Theme
from app.figures.shrinking import Shrunk
from rose import RoseError

FONT = "Source Sans, Segoe UI, sans-serif"  # Streamlit's; a name with a digit in it breaks labels in 3-D
FONT_SIZE = 14
TITLE_SIZE = 18
NARROW, WIDE = (58, 78), (88, 122)  # characters in a line of the title, and of the text below it
LABEL_LINE = 20  # pixels from one line of text to the next
LEADER = 22  # pixels from the end of a line to its label
CHARACTER = 7.6  # pixels, of text in FONT_SIZE, on the wide side
LOG_ABOVE = 10.0  # a spread beyond this needs a log axis, or the smallest values could not be told apart
BASELINE = "sparsegpt"  # the method that titles compare others with
ERROR = "relative error (of output energy)"  # ‖ΔW Xᵀ‖² / ‖W Xᵀ‖²


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
            "font": {"family": FONT, "size": FONT_SIZE, "color": ink.text},
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
    text, lines = _title(finding, what, NARROW, ink.muted)
    top = 22 + round(1.35 * TITLE_SIZE * lines)
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
        meta={"finding": finding, "what": what, "muted": ink.muted, "lines": lines},  # for `widen_title`
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


def widen_title(figure: go.Figure) -> None:
    """Gives the title of a figure as wide as the page longer lines, and the plot the height that this frees."""
    said = figure.layout.meta
    text, lines = _title(said["finding"], said["what"], WIDE, said["muted"])
    figure.update_layout(
        title_text=text,
        margin_t=figure.layout.margin.t - round(1.35 * TITLE_SIZE * (said["lines"] - lines)),
        meta=said | {"lines": lines},
    )


def _title(finding: str, what: str, width: tuple[int, int], muted: str) -> tuple[str, int]:
    """The finding in bold, what is drawn below it, and the number of their lines."""
    title, below = _wrap(finding, width[0]), _wrap(what, width[1])
    text = f"<b>{'<br>'.join(title)}</b>"
    if below:
        text += f'<br><span style="font-size:{FONT_SIZE}px;color:{muted}">{"<br>".join(below)}</span>'
    return text, len(title) + len(below)


def _wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters; numbers keep their units and powers of ten."""
    held = re.sub(r"(?<=\d) (?=[\d%×])|(?<=×) (?=\d)", "\u00a0", text)
    return [line.replace("\u00a0", " ") for line in textwrap.wrap(held, width)]


def end_labels(figure: go.Figure, x: float, ends: Sequence[tuple[float, str, str, str]], top: float) -> None:
    """Names of lines at their right ends, moved apart where they would overlap; makes room for them on the right.

    Args:
        figure: with its height and margins set, and a y axis from 0 to `top`.
        x: where all lines end.
        ends: (y, text, colour, dash) of each.
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


def whole_step(count: int) -> int:
    """Distance of ticks on an axis that counts up to `count`: never a fraction, at most 16 ticks."""
    return next(step for step in (1, 2, 4, 5, 10, 20, 50, 100, 1000) if count / step <= 16 or step == 1000)


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
