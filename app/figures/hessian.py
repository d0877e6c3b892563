"""The Hessian of one layer: its diagonal, and its spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import words
from app.figures import palette, shrinking, style
from app.figures.palette import Theme
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
    """diag(H) by input channel, dead columns and the damping level marked.

    Args:
        diagonal: diag(H), (in,), the sum of x_j² over calibration tokens.
        added: λ, the absolute damping (`LayerResult.added_damping`).
        arrange: by channel number, or from largest to smallest.
        marked_block: its channels are drawn in another colour, wherever they stand.
    """
    values = shrinking.to_numpy(diagonal).astype(np.float64)
    order = np.argsort(-values, kind="stable") if arrange == "sorted" else np.arange(len(values))
    place = np.arange(len(values))
    dead = values == 0
    live = values[~dead]
    floor = _log_floor(live, added) if scale == "log" else 0.0
    shown = values[order]
    y = np.where(shown > 0, shown, np.nan) if scale == "log" else shown
    hover = "input channel %{customdata}<br>H<sub>jj</sub> %{y:.4g}<extra></extra>"
    figure = go.Figure()
    figure.add_scatter(
        x=place.astype(np.float32),
        y=y.astype(np.float32),
        customdata=order.astype(np.int32),
        mode="lines" if len(values) > 1 else "markers",
        line={"color": palette.TEAL, "width": 1.5},
        name="diag(H)",
        hovertemplate=hover,
    )
    if marked_block is not None:
        start, end = style.block_span(widths, marked_block)
        inside = (order >= start) & (order < end)
        figure.add_scatter(
            x=place[inside].astype(np.float32),
            y=y[inside].astype(np.float32),
            customdata=order[inside].astype(np.int32),
            mode="markers",
            marker={"color": palette.MARK, "size": 5},
            name=f"block {marked_block}",
            hovertemplate=hover,
        )
    if dead.any():
        at = dead[order]
        figure.add_scatter(
            x=place[at].astype(np.float32),
            y=np.full(int(at.sum()), floor, np.float32),
            customdata=order[at].astype(np.int32),
            mode="markers",
            marker={"symbol": "x", "size": 9, "color": palette.ORANGE},
            name="dead, H = 0",
            hovertemplate="input channel %{customdata} is dead<extra></extra>",
        )
    if added > 0:
        style.level(figure, added, (-0.5, len(values) - 0.5), f"damping λ = {words.number(added)}", theme)
    finding, caption = _diagonal_finding(values, added)
    log_words = ", logarithmic scale, which has no 0" if scale == "log" else ""
    style.base(
        figure,
        theme,
        finding,
        f"Hessian diagonal{words.of(layer)}, the sum of x² over calibration tokens{log_words}",
        x="input channel" if arrange == "natural" else "input channels, most active first (rank)",
        y="H<sub>jj</sub>",
        legend=len(figure.data) > 1,
    )
    figure.update_xaxes(range=[-0.01 * len(values) - 0.5, 1.01 * len(values) - 0.5], zeroline=False)
    if scale == "log":
        figure.update_yaxes(type="log", exponentformat="power", dtick=1)
        figure.update_yaxes(range=[np.log10(floor), np.log10(values.max() * 1.3)] if len(live) else None)
    else:
        figure.update_yaxes(rangemode="tozero")
    alt = f"Line chart of the Hessian diagonal{words.of(layer)}. {finding}. {caption}"
    table = pd.DataFrame({"input_channel": order, "hessian_diagonal": shown, "dead": dead[order]})
    return Drawing(figure, caption, alt, table)


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
    """Eigenvalues of H, descending, on a logarithmic axis, with the damping level.

    Args:
        eigenvalues: of the undamped H, (in,), any order; rounding may have made some negative.
        added: λ, absolute.
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
    figure = go.Figure()
    figure.add_scatter(
        x=np.arange(1, len(values) + 1, dtype=np.float32),
        y=shown.astype(np.float32),
        mode="lines",
        line={"color": palette.TEAL, "width": 2.5},
        name="of H",
        hovertemplate="eigenvalue %{x:.0f}<br>%{y:.4g}<extra>H</extra>",
    )
    if added > 0:
        figure.add_scatter(
            x=np.arange(1, len(values) + 1, dtype=np.float32),
            y=(np.maximum(values, 0) + added).astype(np.float32),
            mode="lines",
            line={"color": palette.ORANGE, "width": 1.5, "dash": "dot"},
            name="of H + λI, which is factorized",
            hovertemplate="eigenvalue %{x:.0f}<br>%{y:.4g}<extra>H + λI</extra>",
        )
        style.level(figure, added, (1, len(values)), f"damping λ = {words.number(added)}", theme)
    finding = f"{words.sentence(words.count(half, 'direction carries', 'directions carry'))} half of the input's energy"
    style.base(
        figure,
        theme,
        finding,
        f"Eigenvalues of the Hessian{words.of(layer)}, largest first, logarithmic scale, which has no 0",
        x="eigenvalue (rank)",
        y="eigenvalue",
        legend=added > 0,
    )
    figure.update_xaxes(range=[0, len(values) + 1])
    figure.update_yaxes(
        type="log", exponentformat="power", dtick=1, range=[np.log10(floor), np.log10((largest + added) * 1.5)]
    )
    caption = (
        f"{words.sentence(words.count(below, 'eigenvalue'))} of {len(values)} "
        f"{'lies' if below == 1 else 'lie'} below the damping λ = {words.number(added)}, "
        f"which brings the condition number to {words.number(condition)}."
    )
    alt = f"Line chart of the Hessian's eigenvalues{words.of(layer)} on a logarithmic axis. {finding}. {caption}"
    table = pd.DataFrame({"rank": np.arange(1, len(values) + 1), "eigenvalue": values, "damped": values + added})
    return Drawing(figure, caption, alt, table)
