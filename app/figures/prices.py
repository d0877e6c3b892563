"""The price of every column over a sweep, and forecasts for orders and budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Unpack

import numpy as np
import pandas as pd

from app.figures import palette
from app.figures.orders import SHARES
from app.figures.palette import Style
from app.figures.shapes import Chart, Marked, block_span, end_labels
from app.figures.shrinking import to_numpy
from app.figures.style import Drawing
from rose import Prices, RoseError, verdicts

SMOOTHED = 14  # parts of the columns whose mean a line shows
HELPLESS = "nobody helps"


def price_lines(
    prices: Mapping[str, Prices], *, widths: Sequence[int] = (), labels: Mapping[str, str] | None = None,
    **shared: Unpack[Marked],
) -> Drawing:  # fmt: skip
    """log d over the steps of a sweep, a line an order, with the level that all of them have and that without help.

    Args:
        prices: by order, all of one layer.
        widths: of the layer's blocks in natural order; the columns of a marked one are dots on each line.
        labels: for orders shown under another name.
    """
    if not prices:
        raise RoseError("No order is chosen; choose at least one.")
    first = next(iter(prices.values()))
    columns, level, alone = len(first.price), first.level, float(first.alone.log().mean())
    chart = Chart(x="step of the sweep", y="log price  ln d", height=460, **shared)
    steps, ends, table = np.arange(1, columns + 1), [], pd.DataFrame({"step": np.arange(1, columns + 1)})
    for name, of_order in prices.items():
        look = palette.order_style(name)
        label = (labels or {}).get(name, look.label)
        logs = np.log(to_numpy(of_order.price))
        smooth = _running_mean(logs, max(1, columns // SMOOTHED))
        chart.line(steps, smooth, look, f"{label}<br>step %{{x}}<br>ln d %{{y:.3g}}", mode="lines")
        table[name] = logs
        ends.append((float(smooth[-1]), label, look.colour, look.dash))
        if chart.marked_block is not None and widths:
            start, end = block_span(widths, chart.marked_block)
            at = np.sort(to_numpy(of_order.order.inverse)[start:end])
            chart.points(at + 1, smooth[at], Style(palette.MARK, f"block {chart.marked_block}"), "", size=5)
    chart.level(level, (1, columns), "level", "dash")
    chart.level(alone, (1, columns), HELPLESS, "dot")
    ends += [(level, "mean of each", chart.ink.text, "dash"), (alone, HELPLESS, chart.ink.text, "dot")]
    low, high = (pick(float(pick(line.y)) for line in chart.figure.data) for pick in (min, max))
    chart.x(range=[0, columns + 1], zeroline=False)
    chart.y(range=[low - 0.1, high + 0.3], zeroline=False)
    finding = f"Every order has the same mean log price, {level:.2f}: it deals out, it does not save"
    subtitle = f"Price d of each column{chart.of} as visited, running mean"
    subtitle += f"; dots: columns of block {chart.marked_block}" if chart.marked_block is not None and widths else ""
    caption = (
        "Removing a weight w costs w² d; d is what the columns still free cannot explain of the input. "
        "∏ d = det(H + λI), so all areas are equal."
    )
    drawing = chart.done(finding, subtitle, caption, f"Lines of the log price over the sweep{chart.of}", table)
    end_labels(chart.figure, columns, ends, high + 0.3, low - 0.1)
    return drawing


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """The mean of up to `width` values around each: fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    start, end = np.maximum(0, at - width // 2), np.minimum(len(values), at + (width + 1) // 2)
    return (sums[end] - sums[start]) / (end - start)


def forecast_scatter(table: pd.DataFrame, *, tokens: str = "held-out", **shared: Unpack[Marked]) -> Drawing:
    """The error that was foretold before any sweep against the measured one, a mark an order and budget.

    The table has columns order, budget, forecast and measured, errors relative to the output's energy.
    """
    chart = Chart(x="forecast error", y=f"{tokens} error", height=460, legend=True, **shared)
    for (order, budget), rows in table.groupby(["order", "budget"], sort=False):
        look = palette.order_style(str(order))
        look = look.opened() if budget == "layer" else look
        hover = f"{look.label} order, {SHARES[str(budget)]}<br>forecast %{{x:.4g}}<br>{tokens} %{{y:.4g}}"
        shown = {"size": 11, "showlegend": budget == "block"}
        chart.points(rows["forecast"], rows["measured"], look, hover, **shown)
    top = 1.06 * float(table[["forecast", "measured"]].max().max())
    chart.line([0, top], [0, top], Style(chart.ink.muted, "forecast = measured", "dash"), "", mode="lines", width=1)
    chart.x(range=[0, top])
    chart.y(top=top)
    best, foreseen = (table.loc[table[name].idxmin()] for name in ("measured", "forecast"))
    predicted, name = (
        f"{palette.order_style(row['order']).label.lower()} order, {SHARES[row['budget']]}" for row in (foreseen, best)
    )
    hit = "as measured" if predicted == name else f"measured best {name}"
    ranked = verdicts.rank_correlation(table["forecast"], table["measured"])
    caption = "A forecast takes one factorization an order and 64 rows of W; open marks: one threshold."
    if ranked is not None:
        caption += f" Rank correlation {ranked}."
    subtitle = f"Error{chart.of} by order and budget: forecast, and measured on {tokens} tokens"
    finding = f"Forecast best is {predicted}, {hit}"
    return chart.done(finding, subtitle, caption, "Scatter chart of measured against forecast errors", table)
