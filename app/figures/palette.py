"""Colours, dashes and symbols: one for each order, method and projection, everywhere, in light and dark.

Each colour has a contrast of at least 3:1 on white and on the dark page. Any two are at least 15 (CIE76) apart,
also under simulated protanopia and deuteranopia (Machado et al. 2009).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from plotly.colors import hex_to_rgb, sample_colorscale, unlabel_rgb

from app import words
from rose import METHODS
from rose.layer.registry import label_of
from rose.model.defaults import TARGETS

Theme = Literal["light", "dark"]

SEQUENTIAL = "Viridis"  # magnitude
# Change, centred on 0: PuOr, purple below and orange above, with a middle that is quiet on the page.
# Purple is less, of errors and of surprise, and orange is more, on every page.
DIVERGING: dict[Theme, list[list[Any]]] = {
    "light": [[0.0, "#542788"], [0.25, "#998ec3"], [0.5, "#e4e4e8"], [0.75, "#f1a340"], [1.0, "#a3480a"]],
    "dark": [[0.0, "#c3b8f0"], [0.25, "#7a6bb5"], [0.5, "#3d3b48"], [0.75, "#c26a12"], [1.0, "#ffc471"]],
}
# Of maps: nothing is nearly the page, the rest is grey, and only what a title speaks of has the accent.
QUIET: dict[Theme, tuple[str, str]] = {"light": ("#f1eff5", "#7d788c"), "dark": ("#231f2d", "#8a82a0")}
ACCENT: dict[Theme, tuple[str, str]] = {"light": ("#8c3565", "#a3195b"), "dark": ("#c26a96", "#f0468f")}
MARK = "#f0338a"  # the chosen block or layer; a colour that the scales above do not have

PALETTE = BLUE, ORANGE, GREEN, TAN, BROWN, INDIGO, SLATE, AZURE, TEAL, PURPLE, VIOLET, RUST = (
    *("#0973b2", "#d9580b", "#089975", "#b28e50", "#8c523f", "#4040ff"),
    *("#506a79", "#0d86ff", "#2da2b2", "#b2099d", "#9189e5", "#a9431c"),
)

ORDER_COLOURS = {
    "natural": BLUE,
    "two_level": ORANGE,
    "global": GREEN,
    "dealt": VIOLET,
    "columns": TAN,
    "blocks": BROWN,
    "hessian": INDIGO,
    "pivot": TEAL,
    "pivot_weighted": AZURE,
    "greedy": RUST,
    "random": SLATE,
    "custom": PURPLE,
}
# A method that is an order has that order's colour.
METHOD_COLOURS = {
    "sparsegpt": BLUE,
    "rose": ORANGE,
    "rose_global": GREEN,
    "rose_dealt": VIOLET,
    "rose_admm": INDIGO,
    "wanda": TEAL,
    "magnitude": SLATE,
    "measured": AZURE,
    "isc": TAN,
    "dsnot": BROWN,
    "alps": PURPLE,
    "oats": RUST,
}
ORDER_LABELS = {  # where the label is not the name
    "two_level": "Two-level",
    "columns": "Columns only",
    "blocks": "Blocks only",
    "hessian": "Hessian diagonal",
    "inverse": "Inverse Hessian diagonal",
    "pivot_weighted": "Weighted pivot",
    "custom": "Your own",
}
# Shape repeats colour, for print and for readers who cannot tell colours.
_SYMBOLS = (
    *("circle", "square", "diamond", "triangle-up", "triangle-down"),
    *("cross", "x", "star", "hexagon", "pentagon", "hourglass"),
)
# Dash and pattern. Every colour belongs to something built in, so what comes from a plugin differs in these, and has
# open marks.
_LINE, _PLUGIN_LINE = ("solid", ""), ("longdash", ".")
_KIN = {"min_pivot": ("dot", "x"), "inverse": ("dashdot", "x")}  # of built-in orders without a colour of their own


@dataclass(frozen=True)
class Ink:
    """Colours that follow the theme."""

    page: str  # as in .streamlit/config.toml
    text: str
    muted: str  # secondary text
    grid: str
    blank: str  # cells
    hover: str


INKS: dict[Theme, Ink] = {
    "light": Ink("#ffffff", "#1a1c22", "#555b66", "rgba(90,100,115,0.22)", "rgba(110,120,135,0.13)", "#ffffff"),
    "dark": Ink("#14121a", "#f2f3f5", "#b4bac4", "rgba(200,208,220,0.20)", "rgba(190,200,215,0.14)", "#20242c"),
}


class Style(NamedTuple):
    """How one order, method or projection is drawn everywhere, or one series of a figure."""

    colour: str
    label: str
    dash: str = "solid"
    symbol: str = "circle"
    pattern: str = ""

    def opened(self) -> Style:
        """Open marks, as for a plugin."""
        return self._replace(symbol=self.symbol.removesuffix("-open") + "-open")


def order_style(name: str) -> Style:
    """Any order name, `_ascending` and `random:SEED` included; ascending is the same colour, dashed and hatched."""
    base, _, seed = name.partition(":")
    ascending = base.endswith("_ascending")
    base = base.removesuffix("_ascending")
    label = ORDER_LABELS.get(base, words.sentence(base.replace("_", " ")))
    if ascending:
        label += ", ascending"
    if seed:
        label += f", seed {seed}"
    dash, pattern = _LINE if base in ORDER_COLOURS else _KIN.get(base, _PLUGIN_LINE)
    if ascending:
        dash, pattern = "dash", "/"
    return Style(ORDER_COLOURS.get(base) or _fallback(base), label, dash, _symbol(base, ORDER_COLOURS), pattern)


def method_style(name: str) -> Style:
    """Any method name, with its target or without ("sparsegpt:layer"), or an order that a study lists as a method.

    One from a plugin gets a colour from its name, always the same, long dashes and open marks.
    """
    base, _, target = name.rpartition(":")
    if target in TARGETS:
        look = method_style(base)
        look = look._replace(label=f"{look.label}, target {target}")
        return look if target == "dense" else look.opened()._replace(dash="dash", pattern="/")
    if name not in METHODS and name in ORDER_COLOURS:
        return order_style(name)
    dash, pattern = _LINE if name in METHOD_COLOURS else _PLUGIN_LINE
    colour = METHOD_COLOURS.get(name) or _fallback(name)
    return Style(colour, label_of(name), dash, _symbol(name, METHOD_COLOURS), pattern)


def run_styles(runs: Sequence[tuple[str, str, str]]) -> dict[str, Style]:
    """Looks of runs, (name, method, target), by name: a method's colour, marks that differ; target layer is dashed."""
    styles: dict[str, Style] = {}
    seen: dict[tuple[str, str], int] = {}
    for name, method, target in runs:
        number = seen[method, target] = seen.get((method, target), -1) + 1
        look = Style(method_style(method).colour, name, symbol=_SYMBOLS[number % len(_SYMBOLS)])
        styles[name] = look.opened()._replace(dash="dash", pattern="/") if target == "layer" else look
    return styles


def projection_styles(projections: Sequence[str]) -> dict[str, Style]:
    """A colour and a symbol for each kind of layer, by the place it has in the model."""
    colours, symbols = itertools.cycle(PALETTE), itertools.cycle(_SYMBOLS)
    return {name: Style(next(colours), name, symbol=next(symbols)) for name in projections}


def _fallback(name: str) -> str:
    return PALETTE[sum(name.encode()) % len(PALETTE)]  # not hash(): it changes from run to run


def _symbol(name: str, colours: dict[str, str]) -> str:
    if name in colours:
        return _SYMBOLS[list(colours).index(name) % len(_SYMBOLS)]
    return _SYMBOLS[sum(name.encode()) % len(_SYMBOLS)] + "-open"


def magnitude_colours(values: np.ndarray, theme: Theme) -> list[str]:
    """Colours for lines and bars by magnitude: the part of the sequential scale that stands out from the page."""
    low, high = (0.0, 0.82) if theme == "light" else (0.28, 1.0)
    largest = float(np.max(values, initial=0.0))
    shares = np.clip(np.nan_to_num(values) / largest, 0, 1) if largest > 0 else np.zeros(len(values))
    return sample_colorscale(SEQUENTIAL, list(low + (high - low) * shares))


def quiet_scale(theme: Theme) -> list[list[Any]]:
    """Magnitudes on a map, from nothing to the largest."""
    return [[0.0, QUIET[theme][0]], [1.0, QUIET[theme][1]]]


def range_scale(theme: Theme, threshold: float) -> list[list[Any]]:
    """Relative ranges from 0 to 1: grey up to the threshold, the accent above it."""
    threshold = min(max(threshold, 1e-6), 1 - 1e-6)
    return [
        *([0.0, QUIET[theme][0]], [threshold, QUIET[theme][1]]),
        *([threshold, ACCENT[theme][0]], [1.0, ACCENT[theme][1]]),
    ]


def shades(theme: Theme) -> tuple[str, str]:
    """Two greys of neighbouring heads."""
    return blend(*QUIET[theme], 0.4), blend(*QUIET[theme], 0.7)


def faint(theme: Theme) -> str:
    """The accent of every other head."""
    return blend(INKS[theme].page, ACCENT[theme][1], 0.65)


def blend(first: str, second: str, share: float) -> str:
    """The colour at this share of the way from the first to the second."""
    pairs = zip(hex_to_rgb(first), hex_to_rgb(second), strict=True)
    return "#" + "".join(f"{round((1 - share) * a + share * b):02x}" for a, b in pairs)


def text_over(colour: str) -> str:
    """Black or white, whichever reads better on a colour."""
    return text_on(0.0, [[0.0, colour], [1.0, colour]])


def text_on(share: float, scale: Any = SEQUENTIAL) -> str:
    """Black or white, whichever reads better on the scale at this place, 0 to 1."""
    red, green, blue = unlabel_rgb(sample_colorscale(scale, [float(np.clip(share, 0, 1))])[0])
    linear = [((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 255 / 12.92 for c in (red, green, blue)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > 0.179 else "#ffffff"  # where both have the same contrast, by WCAG 2
