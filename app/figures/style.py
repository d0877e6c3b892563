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
