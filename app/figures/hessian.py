"""The Hessian of one layer: its diagonal, and its spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import words
from app.figures import palette, shapes, shrinking, style
from app.figures.palette import Style, Theme
from app.figures.style import Drawing
from rose import RoseError


def hessian_diagonal(
    diagonal: Any,
    *,
    added: float = 0.0,
    arrange: Literal["natural", "sorted"] = "natural",
    scale: Literal["linear", "log"] = "linear",
    widths: Sequence[int] = (),
    layer: str = "",
    marked_block: int | None = None,
    theme: Theme = "light",
) -> Drawing:
    """diag(H) by input channel or from largest to smallest; dead columns and the damping level are marked.

    `diagonal`: the sum of x_j² over calibration tokens, (in,); `added`: λ, absolute. The channels of a marked block
    have another colour, wherever they stand.
    """
    values = shrinking.to_numpy(diagonal).astype(np.float64)
    order = np.argsort(-values, kind="stable") if arrange == "sorted" else np.arange(len(values))
    table = pd.DataFrame({"input_channel": order, "hessian_diagonal": values[order], "dead": values[order] == 0})
    place, y, figure = np.arange(len(values)), table["hessian_diagonal"].astype(np.float32), go.Figure()
    floor = 0.0
    what = f"Hessian diagonal{words.of(layer)}, the sum of x² over calibration tokens"
    if scale == "log":
        what += ", logarithmic scale, which has no 0"
        y, floor = y.where(y > 0), _log_floor(values[values > 0], added)
        figure.update_yaxes(style.LOG)
        if values.any():
            figure.update_yaxes(range=[np.log10(floor), np.log10(values.max() * 1.3)])
    hover = "input channel %{customdata}<br>H<sub>jj</sub> %{y:.4g}"
    look, mode = Style(palette.TEAL, "diag(H)"), "lines" if len(values) > 1 else "markers"
    shapes.lines(figure, place, y, look, hover, width=1.5, mode=mode, customdata=order)
    if marked_block is not None:
        start, end = shapes.block_span(widths, marked_block)
        inside = (order >= start) & (order < end)
        look = Style(palette.MARK, f"block {marked_block}")
        shapes.points(figure, place[inside], y[inside], look, hover, size=5, customdata=order[inside])
    dead = table["dead"].to_numpy()
    if dead.any():
        look, hover = Style(palette.ORANGE, "dead, H = 0", symbol="x"), "input channel %{customdata} is dead"
        shapes.points(figure, place[dead], np.full(dead.sum(), floor), look, hover, customdata=order[dead])
    if added > 0:
        shapes.level(figure, added, (-0.5, len(values) - 0.5), f"damping λ = {words.number(added)}", theme)
    figure.update_xaxes(range=[-0.01 * len(values) - 0.5, 1.01 * len(values) - 0.5], zeroline=False)
    finding, caption = _diagonal_finding(values, added)
    x = "input channel" if arrange == "natural" else "input channels, most active first (rank)"
    alt = f"Line chart of the Hessian diagonal{words.of(layer)}"
    frame = {"x": x, "y": "H<sub>jj</sub>", "legend": len(figure.data) > 1}
    return style.finish(figure, theme, finding, what, caption, alt, table, **frame)


def _diagonal_finding(values: np.ndarray, added: float) -> tuple[str, str]:
    """Title and caption: how far the most active channel stands out, what is dead, what lies below the damping."""
    live, mean, top = values[values > 0], float(values.mean()), int(values.argmax())
    below, dead = int((live < added).sum()), len(values) - len(live)
    spread = live.max() / live.min() if len(live) else 1.0
    lie = words.count(below, "of them lies", "of them lie") if below else "none of them lies"
    return (
        f"Input channel {top} is {words.number(values[top] / mean if mean else 0)} times as active as the mean",
        f"{words.sentence(words.count(dead, 'dead column'))} of {len(values)}; the live ones span a factor of "
        f"{words.number(spread)}, and {lie} below the damping level.",
    )


def _log_floor(live: np.ndarray, added: float) -> float:
    """A decade mark below everything shown on a logarithmic axis."""
    smallest = min([v for v in (float(live.min()) if len(live) else 0.0, added) if v > 0], default=1.0)
    return float(10.0 ** np.floor(np.log10(smallest * 0.8)))


def hessian_spectrum(eigenvalues: Any, *, added: float = 0.0, layer: str = "", theme: Theme = "light") -> Drawing:
    """Eigenvalues of the undamped H, descending, on a logarithmic axis, with the damping level: λ, absolute, `added`.

    They come in any order, (in,); rounding may have made some negative.
    """
    values = np.sort(shrinking.to_numpy(eigenvalues).astype(np.float64))[::-1]
    largest = float(values[0])
    if largest <= 0:
        raise RoseError("All eigenvalues are 0, so there is no spectrum to show; check the calibration inputs.")
    positive = values[values > 0]
    floor = max(_log_floor(positive, added), 10.0 ** np.floor(np.log10(largest) - 12))
    shown = np.where(values > floor, values, np.nan)
    below = int((values < added).sum())
    half = int(np.searchsorted(np.cumsum(positive), 0.5 * positive.sum())) + 1
    condition = (largest + added) / max(values[-1] + added, np.finfo(np.float64).tiny)
    rank, figure = np.arange(1, len(values) + 1), go.Figure()
    hover = "eigenvalue %{x:.0f} of H<br>%{y:.4g}"
    shapes.lines(figure, rank, shown, Style(palette.TEAL, "of H"), hover, mode="lines")
    if added > 0:
        look = Style(palette.ORANGE, "of H + λI, which is factorized", "dot")
        damped, hover = np.maximum(values, 0) + added, "eigenvalue %{x:.0f} of H + λI<br>%{y:.4g}"
        shapes.lines(figure, rank, damped, look, hover, mode="lines", width=1.5)
        shapes.level(figure, added, (1, len(values)), f"damping λ = {words.number(added)}", theme)
    figure.update_xaxes(range=[0, len(values) + 1])
    figure.update_yaxes(style.LOG, range=[np.log10(floor), np.log10((largest + added) * 1.5)])
    finding = f"{words.sentence(words.count(half, 'direction carries', 'directions carry'))} half of the input's energy"
    what = f"Eigenvalues of the Hessian{words.of(layer)}, largest first, logarithmic scale, which has no 0"
    caption = (
        f"{words.sentence(words.count(below, 'eigenvalue'))} of {len(values)} "
        f"{'lies' if below == 1 else 'lie'} below the damping λ = {words.number(added)}, "
        f"which brings the condition number to {words.number(condition)}."
    )
    alt = f"Line chart of the Hessian's eigenvalues{words.of(layer)} on a logarithmic axis"
    table = pd.DataFrame({"rank": rank, "eigenvalue": values, "damped": values + added})
    frame = {"x": "eigenvalue (rank)", "y": "eigenvalue", "legend": added > 0}
    return style.finish(figure, theme, finding, what, caption, alt, table, **frame)
