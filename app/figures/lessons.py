"""The figures of the lessons: small layers with all numbers printed, and the effect of an order in other layers.

Weights, columns, blocks and outputs are counted from 0, as on all pages; steps of a sweep from 1.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from plotly.colors import sample_colorscale
from scipy.optimize import brentq

from app.figures import palette
from app.figures.palette import MARK, Style, Theme
from app.figures.shapes import BARE, Chart, to_numpy
from app.figures.style import FONT_SIZE, Drawing, some
from app.words import number, percent, word
from rose import LayerResult
from rose.layer.pattern import THRESHOLD
from rose.verdicts import Interval

HEIGHT = 440  # pixels of a stage, without caption
CLEAR = "rgba(0,0,0,0)"
ORDERS = {"natural": "Natural (SparseGPT)", "two_level": "Two-level (ROSE)"}  # others have their usual names
BUDGETS = {"block": Style(palette.BLUE, "equal shares"), "layer": Style(palette.GREEN, "one threshold", pattern="/")}


def look_of(order: str) -> Style:
    look = palette.order_style(order)
    return look._replace(label=ORDERS.get(order, look.label))


def signed(value: float, decimals: int = 2) -> str:
    """A number with a minus sign, not a hyphen."""
    return f"{value:.{decimals}f}".replace("-", "−")


# Lesson 1


def removal(
    hessian: Sequence[Sequence[float]], weights: Mapping[str, Sequence[float]], costs: Mapping[str, float],
    column: int, *, theme: Theme,
) -> Drawing:  # fmt: skip
    """Three inputs as pairs of circles that overlap, the weights before and after a removal, and its cost.

    `hessian`: (3, 3); `weights`: "before" and "after", (3,) each; `costs`: by the way the other weights move.
    """
    titles = ["pairs of inputs; the common area is their overlap", "weights", "error"]
    grid: dict[str, Any] = {"rows": 2, "cols": 2, "specs": [[{"colspan": 2}, None], [{}, {}]]}
    grid |= {"row_heights": [0.44, 0.56], "column_widths": [0.6, 0.4], "vertical_spacing": 0.13}
    chart = Chart(height=HEIGHT, headroom=24, theme=theme, subplot_titles=titles, **grid)
    _pairs(chart, hessian, column)
    names = [f"w<sub>{j}</sub>" for j in range(3)]
    looks = {"before": Style(chart.ink.muted, "before"), "after": Style(palette.ORANGE, "after")}
    for name, values in weights.items():
        chart.bars(names, values, looks[name], "", text=list(map(signed, values)), row=2, col=1)
    helpers, colours = [name.replace(" ", "<br>") for name in costs], {"color": [chart.ink.muted, palette.ORANGE]}
    behind = {"text": list(map(signed, costs.values())), "marker": colours, "row": 2, "col": 2}
    chart.bars(helpers, list(costs.values()), Style(palette.ORANGE, "cost"), "", **behind)
    lowest, highest = min(map(min, weights.values())), max(map(max, weights.values()))
    chart.y(row=2, col=1, range=[min(0.0, lowest) * 1.2, max(2.2, highest * 1.15)])
    chart.y(row=2, col=2, range=[0, 1.2])
    left = costs["others help"] / costs["nobody helps"]
    finding = f"The others compensate for {percent(1 - left, 0)} of weight {column}'s loss"
    subtitle = f"Grey: before, or without help; orange: after weight {column} is removed"
    table = pd.DataFrame({"weight": names} | dict(weights))
    return chart.done(finding, subtitle, "Computed from H⁻¹; nothing is damped.", "Circles and two bar charts", table)


def _pairs(chart: Chart, hessian: Sequence[Sequence[float]], column: int) -> None:
    """Circles of area 1, two by two, whose common area is the overlap; below them their entry of H."""
    radius, at = 1 / math.sqrt(math.pi), {"row": 1, "col": 1}

    def excess(distance: float, overlap: float) -> float:
        """The common area of two circles whose centres are this far apart, minus `overlap`."""
        wedge = 2 * radius**2 * math.acos(distance / 2 / radius)
        return wedge - distance * math.sqrt(max(0.0, radius**2 - distance**2 / 4)) - overlap

    for middle, pair in zip((0.0, 2.4, 4.8), ((0, 1), (1, 2), (0, 2)), strict=True):
        overlap = hessian[pair[0]][pair[1]]
        apart = brentq(excess, 0.0, 2 * radius, args=(overlap,)) / 2
        for j, side in zip(pair, (-1, 1), strict=True):
            colour, dash, fill = palette.BLUE, "solid", "rgba(9,115,178,0.18)"
            if j == column:
                colour, dash, fill = MARK, "dash", "rgba(240,51,138,0.12)"
            centre = middle + side * apart
            box = {"x0": centre - radius, "x1": centre + radius, "y0": -radius, "y1": radius, "fillcolor": fill}
            chart.figure.add_shape(type="circle", **box, line={"color": colour, "width": 3, "dash": dash}, **at)
            chart.note(f"<b>{j}</b>", x=centre + 0.35 * side, y=0, bgcolor=CLEAR, **at)
        entry = f"H<sub>{pair[0]}{pair[1]}</sub> = {overlap:.1f}"
        chart.note(entry, x=middle, y=-radius, yanchor="top", bgcolor=CLEAR, **at)
    # The domain gives way to the scale: a range that gave way would stay when the window grows.
    chart.x(range=[-1.15, 5.95], visible=False, constrain="domain", **at)
    chart.y(range=[-1.1, 0.65], visible=False, scaleanchor="x", constrain="domain", **at)


# Lessons 2, 5 and 6: a layer with all its numbers


def number_matrix(
    values: Any, finding: str, subtitle: str, *, removed: Any = None, columns: Sequence[int] = (),
    below: Mapping[str, Sequence[float]] | None = None, marked: int | None = None, theme: Theme,
) -> Drawing:  # fmt: skip
    """A small matrix with all numbers printed, its blocks outlined, and rows of numbers below.

    `values`: (out, in), in the order in which columns stand; so are all others. `removed`: True for grey, struck cells.
    `columns`: their numbers. `below`: a number a column or block. `marked`: the block with a thick edge, by position.
    """
    matrix = to_numpy(values).astype(np.float64)
    rows, width = matrix.shape
    removed_cells = np.zeros(matrix.shape, bool) if removed is None else to_numpy(removed).astype(bool)
    below, size = below or {}, 3
    chart = Chart(height=HEIGHT, headroom=34, theme=theme)
    _cells(chart, matrix, removed_cells)
    for at, (name, numbers) in enumerate(below.items()):  # each under its column or block
        span, largest = width // len(numbers), max(numbers) or 1.0
        for place, value in enumerate(numbers):
            x, y, share = place * span + (span - 1) / 2, rows + 0.3 + at, value / largest
            _box(chart, x, y, span, sample_colorscale(palette.SEQUENTIAL, [share])[0])
            text = f"{value:.{1 if name == 'column loss' else 2}f}"
            _print(chart, x, y, f"<b>{text}</b>" if span > 1 else text, palette.text_on(share))
    for block in range(width // size):
        line = {"color": MARK, "width": 4} if block == marked else {"color": chart.ink.text, "width": 2}
        chart.outline(block * size - 0.5, (block + 1) * size - 0.5, -0.5, rows - 0.5, line=line)
    bare = BARE | {"showline": False, "ticks": "", "fixedrange": True, "automargin": False}
    headings = [str(j) for j in columns or range(width)]
    chart.x(**bare, side="top", range=[-0.6, width - 0.4], tickvals=list(range(width)), ticktext=headings)
    places = [*range(rows), *(rows + 0.3 + at for at in range(len(below)))]
    names = [*(f"output {row}" for row in range(rows)), *below]
    chart.y(**bare, tickvals=places, ticktext=names, range=[rows - 0.4 + (0.3 + 2 if below else 0), -0.6])
    chart.margins = {"l": 88, "b": 12}
    table = pd.DataFrame(matrix, columns=[f"column {heading}" for heading in headings])
    table.insert(0, "output", np.arange(rows))
    return chart.done(finding, subtitle, "", "Matrix with all numbers printed", table)


def _cells(chart: Chart, matrix: np.ndarray, removed: np.ndarray) -> None:
    """A coloured cell with its number for each entry; grey and struck where it is removed."""
    sizes, largest = np.abs(matrix), float(np.abs(matrix).max()) or 1.0
    place = {"x": np.arange(matrix.shape[1]), "y": np.arange(len(matrix)), "xgap": 2, "ygap": 2, "hoverinfo": "skip"}
    scale = {"colorscale": palette.SEQUENTIAL, "zmin": 0, "zmax": largest, "showscale": False}
    chart.figure.add_heatmap(z=np.where(removed, np.nan, sizes).astype(np.float32), **place, **scale)
    for (row, column), value in np.ndenumerate(matrix):
        text, ink = signed(value, 1), palette.text_on(abs(value) / largest)
        if removed[row, column]:
            _box(chart, column, row, 1, chart.ink.blank)
            text, ink = f"<s>{text}</s>", chart.ink.muted
        _print(chart, column, row, text, ink)


def _box(chart: Chart, x: float, y: float, width: float, colour: str) -> None:
    corners = {"x0": x - width / 2 + 0.02, "x1": x + width / 2 - 0.02, "y0": y - 0.47, "y1": y + 0.47}
    chart.figure.add_shape(type="rect", **corners, fillcolor=colour, line={"width": 0}, layer="below")


def _print(chart: Chart, x: float, y: float, text: str, colour: str) -> None:
    chart.figure.add_annotation(x=x, y=y, text=text, showarrow=False, font={"size": 16, "color": colour})


# Lesson 3


def early_late(
    results: Mapping[str, LayerResult], energy: float, shares: Sequence[float], *, answered: bool, theme: Theme
) -> Drawing:
    """The cost of every block without compensation, and once answered the error that remains, if block 2 moves.

    `results`: traced sweeps, by its turn; `energy`: the denominator of errors; the compensated `shares` of its loss.
    """
    grid: dict[str, Any] = {"rows": 1, "cols": 2, "shared_yaxes": True, "horizontal_spacing": 0.04}
    grid["subplot_titles"] = list(results)
    chart = Chart(height=HEIGHT, headroom=24, legend=True, theme=theme, **grid)
    chart.figure.update_annotations(font_size=FONT_SIZE + 1)
    frames = []
    alone, stays = Style("rgba(128,135,150,0.45)", "if nobody helped"), Style(palette.ORANGE, "what stays")
    for col, (name, result) in enumerate(results.items(), 1):
        assert result.trace is not None
        blocks = [int(columns[0]) // 3 for columns in result.order.permutation.split(3)]
        lost, error = (to_numpy(part) / energy for part in (result.trace.lost, result.trace.error))
        x, at = [f"block<br>{number}" for number in blocks], {"row": 1, "col": col}
        chart.bars(x, lost, alone, "", showlegend=col == 1, width=0.7, **at)
        if answered:
            chart.bars(x, error, stays, "", showlegend=col == 1, width=0.7, **at)
            for place, top, left in zip(x, lost, error, strict=True):
                chart.note(percent(1 - left / top, 0), x=place, y=top, yanchor="bottom", bgcolor=CLEAR, **at)
        frames.append(pd.DataFrame({"turn": name, "block": blocks, "alone": lost, "stays": error}))
    table = pd.concat(frames, ignore_index=True)
    chart.figure.update_layout(barmode="overlay")
    chart.y(range=[0, 1.25 * float(table["alone"].max())])
    chart.y(title_text="relative error", row=1, col=1)
    finding = "Block 2 would lose most, wherever it stands"
    if answered:
        finding = f"Block 2 is compensated by {percent(shares[0], 0)} first, by {percent(shares[1], 0)} last"
    subtitle = "Blocks as they are pruned; error of the layer's output" + ("; share compensated" if answered else "")
    return chart.done(finding, subtitle, "", "Two bar charts side by side", table)


# Lesson 4


def price_lines(lines: Mapping[str, tuple[Sequence[int], Sequence[float]]], step: int, *, theme: Theme) -> Drawing:
    """log d over the steps of several orders. `lines`: order -> its columns and prices, as visited.

    `step`: the order "custom" has swapped this column and the one before; 0 without that order.
    """
    chart, frames = Chart(x="step", y="log d", height=HEIGHT, legend=True, theme=theme), []
    for name, (columns, price) in lines.items():
        steps, logs = np.arange(1, len(price) + 1), np.log(price)
        hover = f"{look_of(name).label}<br>step %{{x}}: column %{{customdata}}<br>log d %{{y:.3f}}"
        chart.line(steps, logs, look_of(name), hover, size=10, customdata=columns)
        frames.append(pd.DataFrame({"order": name, "step": steps, "column": columns, "price": price}))
    table = pd.concat(frames, ignore_index=True)
    logs = np.log(table["price"])
    chart.level(float(logs.mean()), (0.7, 9.3), f"mean of every line: {number(logs.mean())}".replace("-", "−"))
    chart.x(dtick=1, range=[0.7, 9.3], zeroline=False)
    chart.y(range=[float(logs.min()) - 0.1, float(logs.max()) + 0.1], rangemode="normal", zeroline=False)
    subtitle = "Log price at each step; the nine values of every line have one sum"
    finding = "Every line has the same mean"
    if step:
        factor = lines["custom"][1][step] / lines["natural"][1][step - 1]
        finding = f"Price of column {step - 1} × {factor:.2f}, of column {step} ÷ {factor:.2f}"
    return chart.done(finding, subtitle, "", "Line chart of log prices over steps", table)


# Lesson 7


def error_strip(random: Sequence[float], marked: Mapping[str, float], *, theme: Theme) -> Drawing:
    """Errors of random orders as a cloud of points on one axis, and errors of named orders as labelled marks."""
    chart = Chart(x="error of the layer", height=300, theme=theme)
    heights = np.random.default_rng(0).uniform(0.04, 0.3, len(random))
    cloud = Style(chart.ink.muted, "random")
    chart.points(list(random), heights, cloud, "random order<br>error %{x:.4f}", size=7, opacity=0.55)
    places = sorted(marked.items(), key=lambda pair: pair[1])
    top = 1.1 * max(*random, *marked.values())
    for at, (name, error) in enumerate(places):
        look, y = look_of(name), 0.46 + 0.17 * (at % 3)
        chart.points([error], [y], look, f"{look.label}<br>error %{{x:.4f}}", size=14)
        side = {"xanchor": "right", "xshift": -10} if error > top / 2 else {"xanchor": "left", "xshift": 10}
        chart.note(f"{look.label} <b>{number(error)}</b>", x=error, y=y, **side)
        chart.figure.add_shape(type="line", x0=error, x1=error, y0=0, y1=y, line={"color": look.colour, "width": 2})
    chart.x(range=[0, top])
    chart.y(range=[0, 1], visible=False)
    yours, rule = marked["custom"], marked["two_level"]
    beaten = sum(error > yours for error in random)
    ending = ", and ROSE" if yours < rule else "; it equals ROSE" if yours == rule else ", but not ROSE"
    finding = f"Your order beats {some(beaten)} of {len(random)} random orders{ending}"
    if not beaten and yours > rule:
        finding = "Your order beats neither ROSE nor a random order"
    table = pd.DataFrame([*(("random", error) for error in random), *places], columns=["order", "error"])
    return chart.done(finding, "Each dot is a random order", "", "Errors of orders on one axis", table)


# Lesson 8


def bars(
    table: pd.DataFrame, finding: str, subtitle: str, caption: str = "", *, axis: str = "", equal: float | None = None,
    theme: Theme,
) -> Drawing:  # fmt: skip
    """Bars with their numbers: name, group, value, and for a block its columns. Horizontal without an `axis`, else
    grouped by budget or order. A broken line marks `equal` shares."""
    across, blocks = not axis, "columns" in table
    chart = Chart(y=axis, height=HEIGHT, legend=not across, theme=theme)
    for group, rows in table.groupby("group", sort=False):
        look = Style(palette.BLUE, "") if across else BUDGETS.get(str(group)) or look_of(str(group))
        places = (rows["value"], rows["name"]) if across else (rows["name"], rows["value"])
        text = "<b>" + rows["value"].map(str) + "</b><br>" + rows["columns"] if blocks else rows["value"].map(signed)
        chart.bars(*places, look, "", text=text, **({"orientation": "h"} if across else {}))
    if across:
        chart.x(range=[0, 1.12 * float(table["value"].max())])
        chart.y(autorange="reversed", showgrid=False)
    else:
        chart.x(tickangle=0)
        chart.y(top=1.25 * float(table["value"].max()))
    if equal is not None:  # a shape, as names and numbers do not share an axis
        chart.figure.add_hline(y=equal, line=chart.dashed, name=f"equal shares: {equal} each", showlegend=True)
    return chart.done(finding, subtitle, caption, f"Bar chart: {subtitle}", table)


# Lessons 9 and 11


def columnar_map(layers: pd.DataFrame, conditions: str, *, theme: Theme) -> Drawing:
    """Every layer of a model as a cell, the columnar ones filled: block_index, projection, is_columnar."""
    chart = Chart(x="decoder block", height=HEIGHT, theme=theme)
    grid = layers.pivot_table(index="projection", columns="block_index", values="is_columnar", sort=False)
    look = {"colorscale": [[0, chart.ink.blank], [1, palette.ORANGE]], "zmin": 0, "zmax": 1, "xgap": 2, "ygap": 2}
    cells = {"z": grid.to_numpy(np.float32), "x": grid.columns, "y": grid.index.str.rpartition(".").get_level_values(2)}
    chart.figure.add_heatmap(**cells, **look, showscale=False, hoverinfo="skip")
    chart.x(**BARE, dtick=5)
    chart.y(**BARE, autorange="reversed", ticks="")
    finding = f"{word(int(layers['is_columnar'].sum())).capitalize()} of {len(layers)} layers are columnar"
    subtitle = "SmolLM2-135M; orange: columnar; o_proj: attention output"
    caption = f"The study that the app opens with: {conditions}; inputs of the dense model."
    return chart.done(finding, subtitle, caption, "Map of layers", layers)


def ratio_lines(ratios: Mapping[str, Interval], subtitle: str, finding: str, caption: str, *, theme: Theme) -> Drawing:
    """Ratios with their 95 % intervals, one above the other; 1 is marked."""
    chart = Chart(x="times SparseGPT's perplexity (logarithmic)", height=HEIGHT, theme=theme)
    columns = ["method", "ratio", "low", "high"]
    table = pd.DataFrame([(name, r.value, r.low, r.high) for name, r in ratios.items()], columns=columns)
    ends = {"array": table["high"] - table["ratio"], "arrayminus": table["ratio"] - table["low"]}
    bars = {"type": "data", "symmetric": False, "thickness": 2.5, "width": 8} | ends
    text = [f"<b>{ratio:.2f}</b>" for ratio in table["ratio"]]
    marks = {"error_x": bars, "mode": "markers+text", "textposition": "top right", "text": text}
    look = Style(palette.ORANGE, "", symbol="square")
    chart.points(table["ratio"], table["method"], look, "%{y}<br>%{x:.3f}", size=11, showlegend=False, **marks)
    chart.figure.add_vline(x=1, line=chart.dashed)
    span = np.log10([0.97 * table["low"].min(), 1.07 * max(1.0, table["high"].max())])  # room for a number
    chart.x(type="log", tickvals=[0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2], zeroline=False, range=span)
    chart.y(autorange="reversed", range=[len(table) - 0.5, -0.6], showgrid=False)
    return chart.done(finding, subtitle, caption, "Ratios with intervals", table)


# Lesson 10


def importance_bars(
    importance: Sequence[float], relative_range: float, top: float, head: int, basis: str, *, theme: Theme
) -> Drawing:
    """Importance of every column in a basis, with lines between heads of `head` columns; the axis ends at `top`."""
    chart = Chart(x="column of W<sub>o</sub>; lines part heads", y="importance", height=HEIGHT, theme=theme)
    place = np.arange(len(importance))
    chart.bars(place, importance, Style(palette.BLUE, "importance"), "column %{x}")
    for edge in range(head, len(importance), head):
        chart.figure.add_vline(x=edge - 0.5, line={"color": chart.ink.muted, "width": 1})
    chart.y(top=top)
    kind = "columnar" if relative_range > THRESHOLD else "not columnar"
    finding = f"Basis {basis.lower()}: relative range {number(relative_range)}, {kind}"
    subtitle = f"A generated attention layer with {len(importance)} columns in {len(importance) // head} heads"
    table = pd.DataFrame({"column": place, "importance": importance})
    return chart.done(finding, subtitle, "", "Bar chart of importance", table)
