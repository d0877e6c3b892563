"""The Hessian of one layer: its diagonal, and its spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd
import torch

from app.figures import palette
from app.figures.palette import Style
from app.figures.shapes import Chart, Look, Marked, block_span
from app.figures.shrinking import to_numpy
from app.figures.style import LOG, Drawing
from app.words import carries, count, number, sentence, without_massive
from rose import RoseError
from rose.layer.massive import massive_channels


def hessian_diagonal(
    diagonal: Any, *, added: float = 0.0, arrange: Literal["natural", "sorted"] = "natural",
    scale: Literal["linear", "log"] = "linear", widths: Sequence[int] = (),
    massive_errors: tuple[float, float] | None = None, **shared: Unpack[Marked],
) -> Drawing:  # fmt: skip
    """diag(H) by input channel or from largest to smallest; dead columns, massive activations and the damping level are
    marked.

    `diagonal`: the sum of x_j² over calibration tokens, (in,); `added`: λ, absolute. The channels of a marked block
    have another colour, wherever they stand. `massive_errors`: the layer's error, and that without massive activations.
    """
    values = to_numpy(diagonal).astype(np.float64)
    order = np.argsort(-values, kind="stable") if arrange == "sorted" else np.arange(len(values))
    table = pd.DataFrame({"input_channel": order, "hessian_diagonal": values[order], "dead": values[order] == 0})
    place, y, dead = np.arange(len(values)), table["hessian_diagonal"].astype(np.float32), table["dead"].to_numpy()
    x = "input channel" if arrange == "natural" else "input channels, most active first (rank)"
    chart, floor = Chart(x=x, y="H<sub>jj</sub>", **shared), 0.0
    what = f"Hessian diagonal{chart.of}, the sum of x² over calibration tokens"
    if scale == "log":
        what += ", logarithmic scale, which has no 0"
        y, floor = y.where(y > 0), _log_floor(values[values > 0], added)
        chart.y(**LOG)
        if values.any():
            chart.y(range=[np.log10(floor), np.log10(values.max() * 1.3)])
    hover = "input channel %{customdata}<br>H<sub>jj</sub> %{y:.4g}"
    mode = "lines" if len(values) > 1 else "markers"
    chart.line(place, y, Style(palette.TEAL, "diag(H)"), hover, width=1.5, mode=mode, customdata=order)
    if chart.marked_block is not None:
        start, end = block_span(widths, chart.marked_block)
        inside, look = (order >= start) & (order < end), Style(palette.MARK, f"block {chart.marked_block}")
        chart.points(place[inside], y[inside], look, hover, size=5, customdata=order[inside])
    if dead.any():
        look, hover = Style(palette.ORANGE, "dead, H = 0", symbol="x"), "input channel %{customdata} is dead"
        chart.points(place[dead], np.full(dead.sum(), floor), look, hover, customdata=order[dead])
    massive = massive_channels(torch.from_numpy(values))
    if massive:
        look, inside = Style(palette.MARK, "massive activations", symbol="diamond"), np.isin(order, massive)
        chart.points(place[inside], y[inside], look, "input channel %{customdata}", customdata=order[inside])
    if added > 0:
        chart.level(added, (-0.5, len(values) - 0.5), f"damping λ = {number(added)}")
    chart.x(range=[-0.01 * len(values) - 0.5, 1.01 * len(values) - 0.5], zeroline=False)
    chart.frame["legend"] = len(chart.figure.data) > 1
    finding, caption = _diagonal_words(values, added)
    if massive:
        finding = carries(values, massive)
        caption += f" λ is {number(added / np.median(values))} times the median of diag(H)."
        caption += without_massive(massive_errors)
    return chart.done(finding, what, caption, f"Line chart of the Hessian diagonal{chart.of}", table)


def _diagonal_words(values: np.ndarray, added: float) -> tuple[str, str]:
    """Title and caption: how far the most active channel stands out, what is dead, what lies below the damping."""
    live, mean, top = values[values > 0], float(values.mean()), int(values.argmax())
    below, dead = int((live < added).sum()), len(values) - len(live)
    spread = live.max() / live.min() if len(live) else 1.0
    lie = count(below, "of them lies", "of them lie") if below else "none of them lies"
    return (
        f"Input channel {top} is {number(values[top] / mean if mean else 0)} times as active as the mean",
        f"{sentence(count(dead, 'dead column'))} of {len(values)}; the live ones span a factor of {number(spread)}, "
        f"and {lie} below the damping level.",
    )


def _log_floor(live: np.ndarray, added: float) -> float:
    """A decade mark below everything shown on a logarithmic axis."""
    smallest = min([v for v in (float(live.min()) if len(live) else 0.0, added) if v > 0], default=1.0)
    return float(10.0 ** np.floor(np.log10(smallest * 0.8)))


def hessian_spectrum(eigenvalues: Any, *, added: float = 0.0, **shared: Unpack[Look]) -> Drawing:
    """Eigenvalues of the undamped H, descending, on a logarithmic axis, with the damping level: λ, absolute, `added`.

    They come in any order, (in,); rounding may have made some negative.
    """
    values = np.sort(to_numpy(eigenvalues).astype(np.float64))[::-1]
    largest, positive = float(values[0]), values[values > 0]
    if largest <= 0:
        raise RoseError("All eigenvalues are 0, so there is no spectrum to show; check the calibration inputs.")
    chart = Chart(x="eigenvalue (rank)", y="eigenvalue", legend=added > 0, **shared)
    floor = max(_log_floor(positive, added), 10.0 ** np.floor(np.log10(largest) - 12))
    rank, shown = np.arange(1, len(values) + 1), np.where(values > floor, values, np.nan)
    chart.line(rank, shown, Style(palette.TEAL, "of H"), "eigenvalue %{x:.0f} of H<br>%{y:.4g}", mode="lines")
    if added > 0:
        look = Style(palette.ORANGE, "of H + λI, which is factorized", "dot")
        damped, hover = np.maximum(values, 0) + added, "eigenvalue %{x:.0f} of H + λI<br>%{y:.4g}"
        chart.line(rank, damped, look, hover, mode="lines", width=1.5)
        chart.level(added, (1, len(values)), f"damping λ = {number(added)}")
    chart.x(range=[0, len(values) + 1])
    chart.y(**LOG, range=[np.log10(floor), np.log10((largest + added) * 1.5)])
    below, half = int((values < added).sum()), int(np.searchsorted(positive.cumsum(), 0.5 * positive.sum())) + 1
    condition = (largest + added) / max(values[-1] + added, np.finfo(np.float64).tiny)
    finding = f"{sentence(count(half, 'direction carries', 'directions carry'))} half of the input's energy"
    what = f"Eigenvalues of the Hessian{chart.of}, largest first, logarithmic scale, which has no 0"
    caption = f"{sentence(count(below, 'eigenvalue'))} of {len(values)} {'lies' if below == 1 else 'lie'} below the "
    caption += f"damping λ = {number(added)}, which brings the condition number to {number(condition)}."
    alt = f"Line chart of the Hessian's eigenvalues{chart.of} on a logarithmic axis"
    table = pd.DataFrame({"rank": rank, "eigenvalue": values, "damped": values + added})
    return chart.done(finding, what, caption, alt, table)
