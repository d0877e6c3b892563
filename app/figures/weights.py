"""One layer weight by weight: |W|, importance, pre-pruning; the Hessian; a tensor of a file."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd
import torch

from app.figures import palette
from app.figures.palette import Style
from app.figures.shapes import Chart, Look, Marked, Shrunk, block_span, ceiling, frame, shrink, to_numpy
from app.figures.style import LOG, PERCENT, Drawing
from app.words import carries, count, number, percent, sentence, whole, without_massive
from rose import OrderPlan, RoseError
from rose.layer.error import massive_channels

HOVER_DIAGONAL = "input channel %{customdata}<br>H<sub>jj</sub> %{y:.4g}"

# A cell for each weight


def _matrix(shared: Marked, widths: Sequence[int] = ()) -> Chart:
    """A chart of channels with the marked block outlined."""
    chart = Chart(x="input channel", y="output channel", height=460, **shared)
    chart.outline_block(widths)
    return chart


def _cells(
    chart: Chart, shrunk: Shrunk, shape: Sequence[int], unit: str, texts: tuple[str, str, str, str], **properties: Any
) -> Drawing:
    """A heatmap of one value per weight. `texts`: title, subtitle, caption, and the subject for `alt`."""
    finding, subtitle, caption, alt = texts
    zmax, saturates = ceiling(shrunk.array)
    chart.cells(shrunk, unit, **({"zmax": zmax} | properties))
    chart.matrix_axes(*shape)
    subtitle = f"{subtitle}; {shrunk.note}" + ("" if "zmax" in properties else saturates)
    alt = f"Heatmap of {alt}{chart.of}, input channels across, output channels down"
    return chart.done(finding, subtitle, caption + chart.marked_words, alt, frame(shrunk))


def tensor_map(cells: np.ndarray, block: tuple[int, int], *, name: str, **shared: Unpack[Marked]) -> Drawing:
    """|w| of a tensor of a file as cells, each the maximum of `block` rows × columns."""
    note = "each cell is one weight" if block == (1, 1) else f"each cell is the maximum of {block[0]} × {block[1]}"
    finding = f"The largest weight of {name} is {number(float(np.nanmax(cells, initial=0.0)))}"
    texts = finding, "Absolute weights", "", "the absolute weights"
    shape = cells.shape[0] * block[0], cells.shape[1] * block[1]
    return _cells(_matrix(shared), Shrunk(cells, *block, note), shape, "|w|", texts)


def weight_map(weight: Any, *, widths: Sequence[int] = (), **shared: Unpack[Marked]) -> Drawing:
    """|W| as a heatmap; W is (out, in). To mark a block, `widths` of all blocks are needed."""
    magnitude, chart = np.abs(to_numpy(weight)), _matrix(shared, widths)
    shrunk, (rows, columns) = shrink(magnitude), magnitude.shape
    finding, strongest = _strongest_column(magnitude)
    subtitle = f"|W|{chart.of}, {rows} × {columns}"
    caption = f"The median |W| is {number(_median(magnitude))}; "
    texts = finding, subtitle, f"{caption}{strongest}.", "the absolute weights"
    return _cells(chart, shrunk, magnitude.shape, "|W|", texts)


def _strongest_column(magnitude: np.ndarray) -> tuple[str, str]:
    """The finding and the sentence about the input channel with the largest sum of |W|."""
    sums = magnitude.sum(0, dtype=np.float64)
    best, median = int(sums.argmax()), float(np.median(sums))
    if not sums[best]:
        return "All weights are 0", "no input channel has a weight"
    times = f"{number(sums[best] / median if median > 0 else float('inf'), 2)} times the median channel's"
    strongest = f"input channel {best} holds {percent(sums[best] / sums.sum(), 2)} of all |W|"
    return f"Input channel {best} has the largest sum of |W|, {times}", strongest


def _median(values: np.ndarray) -> float:  # of a sample: 45 million values take a second
    return float(np.median(values.reshape(-1)[:: max(1, values.size // 1_000_000)]))


def importance_map(plan: OrderPlan, **shared: Unpack[Marked]) -> Drawing:
    """S = |W|·sqrt(mean x²) as a heatmap."""
    values, chart = to_numpy(plan.importance), _matrix(shared, plan.block_width)
    columns = values.sum(0, dtype=np.float64)
    keep = max(1, round(0.01 * len(columns)))
    share = np.sort(columns)[::-1][:keep].sum() / (columns.sum() or 1.0)
    finding = f"{sentence(count(keep, 'column'))} of {len(columns)} {'holds' if keep == 1 else 'hold'} "
    finding += f"{percent(share)} of the importance"
    caption = f"S is at most {number(values.max())}, its median {number(_median(values))}; the most important input "
    caption += f"channel is {columns.argmax()}."
    texts = finding, f"Importance S = |W|·√(mean x²){chart.of}", caption, "the importance"
    return _cells(chart, shrink(values), values.shape, "S", texts)


def potential_loss_map(plan: OrderPlan, **shared: Unpack[Marked]) -> Drawing:
    """L as a heatmap: the importance of the weights that pre-pruning would remove."""
    chart, values = _matrix(shared, plan.block_width), to_numpy(plan.potential_loss)
    per_column = to_numpy(plan.loss_per_column)
    worst, total = int(per_column.argmax()), float(values.sum(dtype=np.float64))
    share = percent(total / (float(plan.importance.double().sum()) or 1.0))
    finding = f"Block {worst} would lose most, {number(per_column[worst])} per column"
    subtitle = f"Potential loss L{chart.of} at sparsity {plan.pattern}: S where pre-pruning removes, else 0"
    caption = f"Pre-pruning would remove {share} of all importance; the largest weight to go has S = "
    caption += f"{number(values.max())}."
    texts = finding if total else "No block would lose anything", subtitle, caption, "the potential loss"
    return _cells(chart, shrink(values), values.shape, "L", texts)


def prepruning_mask(plan: OrderPlan, **shared: Unpack[Marked]) -> Drawing:
    """How many weights of each cell pre-pruning would remove; weights without importance count, though L is 0 there."""
    loss, score, chart = to_numpy(plan.potential_loss), to_numpy(plan.importance), _matrix(shared, plan.block_width)
    mask = (loss > 0) | ((score == 0) & (plan.pattern.ratio > 0))
    shrunk, per_column, removed = shrink(mask, how="sum"), mask.mean(0), int(mask.sum())
    cell = shrunk.rows * shrunk.columns
    shrunk = shrunk._replace(array=shrunk.array.astype(np.uint8 if cell < 256 else np.float32))
    finding = f"Input channel {per_column.argmin()} would lose {percent(per_column.min())} of its weights, channel "
    finding += f"{per_column.argmax()} {percent(per_column.max())}"
    subtitle = f"Pre-pruning mask{chart.of} at sparsity {plan.pattern}, weights removed"
    caption = f"{whole(removed)} of {whole(mask.size)} weights ({percent(removed / mask.size)}) would go."
    texts = finding if removed else "No weight would go", subtitle, caption, "the pre-pruning mask"
    greys = "Greys" if chart.theme == "light" else "Greys_r"
    return _cells(chart, shrunk, mask.shape, "removed", texts, zmax=cell, colorscale=greys)


# Hessian


def hessian_diagonal(
    diagonal: Any, *, added: float = 0.0, arrange: Literal["natural", "sorted"] = "natural",
    scale: Literal["linear", "log"] = "linear", widths: Sequence[int] = (),
    massive_errors: tuple[float, float] | None = None, **shared: Unpack[Marked],
) -> Drawing:  # fmt: skip
    """diag(H) by input channel or from largest to smallest, with dead columns, massive activations and the damping.

    `diagonal`: the sum of x_j² over calibration tokens, (in,); `added`: λ, absolute; `massive_errors` as above.
    """
    values = to_numpy(diagonal).astype(np.float64)
    order = np.argsort(-values, kind="stable") if arrange == "sorted" else np.arange(len(values))
    table = pd.DataFrame({"input_channel": order, "hessian_diagonal": values[order], "dead": values[order] == 0})
    y = table["hessian_diagonal"].astype(np.float32)
    x = "input channel" if arrange == "natural" else "input channels, most active first (rank)"
    chart, floor = Chart(x=x, y="H<sub>jj</sub>", **shared), 0.0
    subtitle = f"Hessian diagonal{chart.of}, the sum of x² over calibration tokens"
    if scale == "log":
        subtitle += ", logarithmic scale, which has no 0"
        y, floor = y.where(y > 0), _log_floor(values[values > 0], added)
        chart.y(**LOG)
        if values.any():
            chart.y(range=[np.log10(floor), np.log10(values.max() * 2)])
    drawn = {"width": 1.5, "mode": "lines" if len(values) > 1 else "markers", "customdata": order}
    chart.line(np.arange(len(values)), y, Style(palette.TEAL, "diag(H)"), HOVER_DIAGONAL, **drawn)
    massive = massive_channels(torch.from_numpy(values))
    _mark_channels(chart, table, y, floor, widths, massive)
    if added > 0:
        chart.level(added, (-0.5, len(values) - 0.5), f"damping λ = {number(added)}")
    chart.x(range=[-0.01 * len(values) - 0.5, 1.01 * len(values) - 0.5], zeroline=False)
    chart.legend = len(chart.figure.data) > 1
    live, mean, top = values[values > 0], float(values.mean()), int(values.argmax())
    finding = f"Input channel {top} is {number(values[top] / mean if mean else 0)} times as active as the mean"
    below, factor = int((live < added).sum()), number(float(f"{live.max() / live.min() if len(live) else 1.0:.2g}"))
    lie = count(below, "of them lies", "of them lie") if below else "none of them lies"
    caption = f"{sentence(count(len(values) - len(live), 'dead column'))} of {len(values)}; the live ones span a "
    caption += f"factor of {factor}, and {lie} below the damping level."
    if massive:
        finding = carries(values, massive)
        caption += f" λ is {number(added / np.median(values))} times the median of diag(H)."
        caption += without_massive(massive_errors)
    return chart.done(finding, subtitle, caption, f"Line chart of the Hessian diagonal{chart.of}", table)


def _mark_channels(
    chart: Chart, table: pd.DataFrame, y: pd.Series, floor: float, widths: Sequence[int], massive: Sequence[int]
) -> None:
    """Marks the chosen block, dead columns, which stand at `floor`, and massive activations."""
    order, place = table["input_channel"].to_numpy(), np.arange(len(table))
    if chart.marked_block is not None:
        start, end = block_span(widths, chart.marked_block)
        inside, look = (order >= start) & (order < end), Style(palette.MARK, f"block {chart.marked_block}")
        chart.points(place[inside], y[inside], look, HOVER_DIAGONAL, size=5, customdata=order[inside])
    if (dead := table["dead"].to_numpy()).any():
        look, hover = Style(palette.ORANGE, "dead, H = 0", symbol="x"), "input channel %{customdata} is dead"
        chart.points(place[dead], np.full(dead.sum(), floor), look, hover, customdata=order[dead])
    if massive:
        look, inside = Style(palette.MARK, "massive activations", symbol="diamond"), np.isin(order, massive)
        chart.points(place[inside], y[inside], look, "input channel %{customdata}", customdata=order[inside])


def _log_floor(live: np.ndarray, added: float) -> float:
    """A decade mark below everything shown on a logarithmic axis."""
    smallest = min([v for v in (float(live.min()) if len(live) else 0.0, added) if v > 0], default=1.0)
    return float(10.0 ** np.floor(np.log10(smallest * 0.8)))


def hessian_spectrum(eigenvalues: Any, *, added: float = 0.0, **shared: Unpack[Look]) -> Drawing:
    """Eigenvalues of the undamped H, (in,), descending, on a logarithmic axis, with the damping level `added`, λ."""
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
    chart.y(**LOG | {"dtick": 2}, range=[np.log10(floor), np.log10((largest + added) * 1.5)])
    below, half = int((values < added).sum()), int(np.searchsorted(positive.cumsum(), 0.5 * positive.sum())) + 1
    condition = (largest + added) / max(values[-1] + added, np.finfo(np.float64).tiny)
    finding = f"{sentence(count(half, 'direction carries', 'directions carry'))} half of the input's energy"
    subtitle = f"Eigenvalues of the Hessian{chart.of}, largest first, logarithmic scale, which has no 0"
    caption = f"{sentence(count(below, 'eigenvalue'))} of {len(values)} {'lies' if below == 1 else 'lie'} below the "
    caption += f"damping λ = {number(added)}, which brings the condition number to {number(condition)}."
    alt = f"Line chart of the Hessian's eigenvalues{chart.of} on a logarithmic axis"
    table = pd.DataFrame({"rank": rank, "eigenvalue": values, "damped": values + added})
    return chart.done(finding, subtitle, caption, alt, table)


# A tensor of a file: values, and norms of rows and columns


def histogram(counts: Any, edges: Any, **shared: Unpack[Look]) -> Drawing:
    counts, edges = np.asarray(to_numpy(counts), np.float64), np.asarray(to_numpy(edges), np.float64)
    middles, share = (edges[1:] + edges[:-1]) / 2, counts / max(1.0, counts.sum())
    chart = Chart(x="weight", y="share of weights", height=360, **shared)
    chart.y(**PERCENT)
    chart.bars(middles, 100 * share, Style(palette.TEAL, "share"), "around %{x:.4g}<br>share %{y:.3f}\u2009%")
    chart.figure.update_layout(bargap=0)
    table = pd.DataFrame({"from": edges[:-1], "to": edges[1:], "count": counts})
    inside = share[np.abs(middles) < 0.1 * np.abs(edges).max()].sum()
    finding = f"{percent(float(inside), 0)} of |w| are below a tenth of the largest"
    return chart.done(finding, "Finite weights by value", "", "Histogram of the weights", table)


def norms(norms_by_side: Mapping[str, Any], **shared: Unpack[Look]) -> Drawing:
    """Norms of rows and columns, and singular values if there are any, each sorted, relative to their median."""
    chart = Chart(x="rank, % of all", y="norm / median", height=360, legend=True, **shared)
    looks = {
        "row": Style(palette.BLUE, "rows"),
        "column": Style(palette.ORANGE, "columns", "dash"),
        "singular value": Style(palette.TEAL, "singular values", "dot"),
    }
    tables, largest = [], {}
    for side, values in norms_by_side.items():
        values = np.sort(np.asarray(to_numpy(values), np.float64))[::-1]
        relative = values / (np.median(values) or 1.0)
        largest[side] = float(relative[0])
        rank = 100 * np.arange(len(values)) / max(1, len(values) - 1)
        chart.line(rank, relative, looks[side], f"{side} at %{{x:.1f}} %<br>%{{y:.3g}} times the median", mode="lines")
        tables.append(pd.DataFrame({"side": side, "norm": values}))
    finding = f"Rows reach {number(largest['row'], 2)} median norms, columns {number(largest['column'], 2)}"
    note = "Norms, sorted, divided by their median"
    return chart.done(finding, note, "", "Lines of sorted norms of rows and columns", pd.concat(tables))
