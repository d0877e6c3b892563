"""The look of all figures, light and dark, and the words around a figure."""

import re
import textwrap
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import words
from app.figures.palette import INKS, PALETTE, Theme

FONT = "Source Sans, Segoe UI, sans-serif"  # Streamlit's
FONT_SIZE, TITLE_SIZE = 14, 18
LINES = (58, 78)  # characters in a line of the title, and of the text below it, where it is part of the figure
LOG_ABOVE = 10.0  # a spread beyond this needs a log axis, or the smallest values could not be told apart
BASELINE = "sparsegpt"  # the method that titles compare others with
ERROR = "relative error (of output energy)"  # ‖ΔW Xᵀ‖² / ‖W Xᵀ‖²
# Plotly reads some HTML in every text, links included. These are the tags that figures use; no name brings others.
FOREIGN = re.compile(r'<(?!/?(?:b|br|extra|i|s|sub|sup)>|/span>|span style="[\w #%(),.:;-]*">)')
# For axes and colour bars in per cent: plotly's format has no space before the sign.
PERCENT = {"ticksuffix": "\u2009%"}
LOG = {"type": "log", "exponentformat": "power", "dtick": 1}  # an axis with a tick at every power of ten


@dataclass(frozen=True)
class Drawing:
    """A figure with all that a page needs around it. HTML tags in names are shown as text."""

    figure: go.Figure  # its JSON stays below 2 MB
    caption: str  # what the picture cannot say: how it was measured, or why; may be empty
    alt: str  # kind and finding, for readers who cannot see the figure
    data: pd.DataFrame  # behind the figure, for download; where it is shrunk, the first heading says so

    def __post_init__(self) -> None:
        for part in (*self.figure.data, self.figure.layout):
            for name, value in part.to_plotly_json().items():
                if name not in ("meta", "template") and (shown := _without_foreign_tags(value)) is not value:
                    part[name] = shown


def _without_foreign_tags(value: Any) -> Any:
    """A part of a figure, with tags that figures do not use shown as text; the very same part where it has none."""
    if isinstance(value, str):
        held = words.held(value) if " %" in value else value
        return FOREIGN.sub("&lt;", held) if "<" in held else held
    if isinstance(value, dict):
        shown = {name: _without_foreign_tags(part) for name, part in value.items()}
        return shown if any(shown[name] is not part for name, part in value.items()) else value
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype.kind in "OU"):
        parts = list(value)
        texts = [_without_foreign_tags(part) for part in parts]
        return texts if any(text is not part for text, part in zip(texts, parts, strict=True)) else value
    return value


@cache
def template(theme: Theme) -> go.layout.Template:
    """Our own light and dark look; on the colour of the page, so that a figure taken elsewhere can be read there."""
    ink, clear, font = INKS[theme], "rgba(0,0,0,0)", {"size": FONT_SIZE}
    lines = {"gridcolor": ink.grid, "linecolor": ink.muted, "zerolinecolor": ink.muted, "tickcolor": ink.muted}
    axis = lines | {"zerolinewidth": 1, "showline": True, "ticks": "outside", "tickfont": font, "automargin": True}
    axis["title"] = {"font": {"size": FONT_SIZE + 1}, "standoff": 8}
    hover = {"bgcolor": ink.hover, "bordercolor": ink.muted, "font": font | {"color": ink.text}, "namelength": -1}
    below = {"orientation": "h", "x": 0, "xanchor": "left", "y": 0, "yanchor": "bottom", "yref": "container"}
    # With the space above in pixels: a page may give the figure another height. Plotly's "top" is the first line's
    # middle.
    title = {"x": 0, "xanchor": "left", "xref": "container", "y": 1, "yanchor": "top", "yref": "container"}
    return go.layout.Template(
        layout={
            "font": font | {"family": FONT, "color": ink.text},
            "title": title | {"font": {"size": TITLE_SIZE}, "pad": {"l": 8, "t": TITLE_SIZE}},
            "paper_bgcolor": ink.page,
            "plot_bgcolor": clear,
            "xaxis": axis,
            "yaxis": axis | {"rangemode": "tozero", "exponentformat": "power"},
            "hoverlabel": hover,
            "legend": below | {"font": font, "bgcolor": clear},
            "colorway": list(PALETTE),
            "modebar": {"bgcolor": clear, "color": ink.muted, "activecolor": ink.text},
            "bargap": 0.25,
        }
    )


def heading(finding: str, subtitle: str, muted: str) -> tuple[str, int]:
    """The finding in bold with the subtitle below it, and the number of their lines."""
    title, below = (
        _wrapped(_without_foreign_tags(text), room) for text, room in zip((finding, subtitle), LINES, strict=True)
    )
    text = f"<b>{'<br>'.join(title)}</b>"
    if below:
        text += f'<br><span style="font-size:{FONT_SIZE}px;color:{muted}">{"<br>".join(below)}</span>'
    return text, len(title) + len(below)


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters; numbers keep their units and powers of ten."""
    held = re.sub(r"(?<=\d) (?=[\d%×])|(?<=×) (?=\d)", "\u00a0", text)
    return [line.replace("\u00a0", " ") for line in textwrap.wrap(held, width)]


# What is best of several is chosen on calibration inputs and reported on held-out ones: the least of several held-out
# errors is lower than the error of the same sweep on further tokens.
CHOOSING, CHOSEN = "relative_error", "chosen by calibration error"


def judged(table: pd.DataFrame) -> tuple[str, str]:
    """The column of the error that leads, and the tokens it is on: held-out ones where every row has such an error."""
    if table["held_out_error"].notna().all():
        return "held_out_error", "held-out"
    return "relative_error", "calibration"


def some(count: int) -> str:
    """A count before "of them": "none", "one", "13"."""
    return words.word(count) if count else "none"


def spread(values: Any) -> float:
    """Largest over smallest of the positive and finite values; beyond `LOG_ABOVE` an axis should be logarithmic."""
    values = np.asarray(values, np.float64)
    positive = values[np.isfinite(values) & (values > 0)]
    return float(positive.max() / positive.min()) if positive.size else 1.0


def untitled(figure: go.Figure) -> go.Figure:
    """A copy without the title, for pages that set it as text, which wraps with the page; the plot keeps its size."""
    copy, freed = go.Figure(figure), figure.layout.meta["freed"]
    copy.update_layout(title=None, margin_t=figure.layout.margin.t - freed, height=figure.layout.height - freed)
    return copy
