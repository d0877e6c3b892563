"""A text as HTML, its tokens coloured by a number: change in surprise, or surprise itself. Pure, and escaped.

Backgrounds stay so near the page that the page's own ink has a contrast of at least 4.5:1 on each of them.
"""

from collections.abc import Sequence
from html import escape

import numpy as np
from plotly.colors import hex_to_rgb

from app import words
from app.figures.palette import INKS, Theme

# Colours of less surprise, more surprise, and the magnitude of surprise; the page's colour is 0.
ENDS: dict[Theme, dict[str, str]] = {
    "light": {"less": "#b3a9dc", "more": "#f3a64d", "magnitude": "#62bfa9"},
    "dark": {"less": "#51438f", "more": "#85480a", "magnitude": "#17685a"},
}
LEAST = 0.5  # nats at which a scale ends at the least: smaller changes shall look small
BULK = 98.0  # percentile at which it ends, so that one token does not make all others pale


def scale_end(*values: np.ndarray) -> float:
    """The end of the colour scale, in nats; larger values have its colour."""
    sizes = np.concatenate([np.abs(part[np.isfinite(part)]) for part in values]) if values else np.zeros(0)
    return max(LEAST, float(np.percentile(sizes, BULK))) if len(sizes) else LEAST


def background(value: float, end: float, theme: Theme, *, change: bool) -> str:
    """The colour behind a token: the page's own at 0 or for NaN."""
    if not np.isfinite(value):
        return INKS[theme].page
    towards = ENDS[theme]["magnitude" if not change else "more" if value > 0 else "less"]
    share = min(abs(value) / end, 1.0)
    pairs = zip(hex_to_rgb(INKS[theme].page), hex_to_rgb(towards), strict=True)
    mixed = [round((1 - share) * a + share * b) for a, b in pairs]
    return "#" + "".join(f"{part:02x}" for part in mixed)


def coloured_text(
    pieces: Sequence[str], values: np.ndarray, *, end: float, theme: Theme, change: bool = True,
    marked: int | None = None,
) -> str:  # fmt: skip
    """The text, each token on its colour, with the number in its tooltip: nats, (tokens,), NaN if unknown."""
    ink = INKS[theme]
    spans = []
    for number, (piece, value) in enumerate(zip(pieces, values, strict=True)):
        if not piece:
            continue
        tip = f"{'+' if change and value > 0 else ''}{words.number(float(value))} nats"
        if not np.isfinite(value):
            tip = "the first token, which nothing predicts"
        outline = f"outline:2px solid {ink.text};outline-offset:-1px;" if number == marked else ""
        shown = escape(piece).replace("\n", "<span aria-hidden='true'>↵</span>\n")
        spans.append(
            f"<span title='{tip}' style='background:{background(float(value), end, theme, change=change)};"
            f"border-radius:3px;{outline}'>{shown}</span>"
        )
    return (
        f"<div style='color:{ink.text};white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.75;"
        f"font-size:1.05rem'>{''.join(spans)}</div>"
    )


def legend(end: float, theme: Theme, *, change: bool = True) -> str:
    """The scale as a bar with its ends named."""
    stops = [-end, 0.0, end] if change else [0.0, end]
    colours = ", ".join(background(stop, end, theme, change=change) for stop in stops)
    last = words.number(end)
    names = (f"−{last} or less", "0", f"+{last} nats or more") if change else ("0", f"{last} nats or more")
    labels = "".join(f"<span>{name}</span>" for name in names)
    ink = INKS[theme]
    return (
        f"<div style='max-width:26rem;color:{ink.text};font-size:.875rem'>"
        f"<div style='height:.9rem;border:1px solid {ink.muted};background:linear-gradient(to right, {colours})'></div>"
        f"<div style='display:flex;justify-content:space-between'>{labels}</div></div>"
    )
