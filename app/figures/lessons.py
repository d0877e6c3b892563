"""The figures of the lessons: small layers with all numbers printed, and the effect of an order in other layers.

Columns and blocks are counted from 1 on screen, from 0 in arguments.
"""

from __future__ import annotations

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
ORDERS = {
    "natural": "Natural (SparseGPT)",
    "two_level": "Two-level (ROSE)",
    "random": "Random",
    "global": "Global, packed",
    "pivot": "Pivot",
    "custom": "Yours",
}
BUDGETS = {
    "block": Style(palette.BLUE, "equal shares"),
    "layer": Style(palette.GREEN, "one threshold", pattern="/"),
}


def look_of(order: str) -> Style:
    return palette.order_style(order)._replace(label=ORDERS[order])


def signed(value: float, decimals: int = 2) -> str:
    """A number with a minus sign, not a hyphen."""
    return f"{value:.{decimals}f}".replace("-", "−")


# Lesson 1


def removal(
    overlaps: Sequence[float], weights: Mapping[str, Sequence[float]], costs: Mapping[str, float], column: int,
    *, theme: Theme,
) -> Drawing:  # fmt: skip
    """Three inputs as circles that overlap, the weights before and after a removal, and its cost.

    `overlaps`: H₁₂ and H₂₃; `weights`: "before" and "after", (3,) each; `costs`: by the way the other weights move.
    """
    titles = ["the three inputs and their overlaps", "weights", "error"]
    grid: dict[str, Any] = {"rows": 2, "cols": 2, "specs": [[{"colspan": 2}, None], [{}, {}]]}
    grid |= {"row_heights": [0.56, 0.44], "vertical_spacing": 0.13, "horizontal_spacing": 0.12}
    chart = Chart(height=HEIGHT, headroom=24, theme=theme, subplot_titles=titles, **grid)
    _circles(chart, overlaps, column)
    names = [f"w<sub>{j + 1}</sub>" for j in range(3)]
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
    finding = f"The others make good {percent(1 - left, 0)} of what weight {column + 1} did"
    subtitle = f"Grey: before, or without help; orange: after weight {column + 1} is removed"
    table = pd.DataFrame({"weight": names} | dict(weights))
    return chart.done(finding, subtitle, "Computed from H⁻¹; nothing is damped.", "Circles and two bar charts", table)


def _circles(chart: Chart, overlaps: Sequence[float], column: int) -> None:
    """Circles of area 1 whose common areas are the overlaps, with the entries of H in them."""
    radius, at = 1 / math.sqrt(math.pi), {"row": 1, "col": 1}
    clear = at | {"bgcolor": CLEAR}

    def excess(distance: float, overlap: float) -> float:
        """The common area of two circles whose centres are this far apart, minus `overlap`."""
        wedge = 2 * radius**2 * math.acos(distance / 2 / radius)
        return wedge - distance * math.sqrt(max(0.0, radius**2 - distance**2 / 4)) - overlap

    centres = np.cumsum([0.0, *(brentq(excess, 0.0, 2 * radius, args=(overlap,)) for overlap in overlaps)])
    for j, centre in enumerate(centres):
        colour, dash, fill = palette.BLUE, "solid", "rgba(9,115,178,0.18)"
        if j == column:
            colour, dash, fill = MARK, "dash", "rgba(240,51,138,0.12)"
        box = {"x0": centre - radius, "x1": centre + radius, "y0": -radius, "y1": radius, "fillcolor": fill}
        chart.figure.add_shape(type="circle", **box, line={"color": colour, "width": 3, "dash": dash}, **at)
        chart.note(f"<b>{j + 1}</b>", x=centre + (-0.4, 0.0, 0.4)[j], y=0.1 * (j == 1), **clear)
    middle, end = centres[-1] / 2, centres[-1] + radius
    places = {"12": (-radius - 0.04, 0.0, "right"), "23": (end + 0.04, 0.12, "left"), "13": (end + 0.04, -0.12, "left")}
    for (pair, (x, y, anchor)), overlap in zip(places.items(), (*overlaps, 0.0), strict=True):
        chart.note(f"H<sub>{pair}</sub> = {overlap:.1f}", x=x, y=y, xanchor=anchor, **clear)
    chart.x(range=[middle - 1.95, middle + 1.95], visible=False, **at)
    chart.y(range=[-0.6, 0.6], visible=False, scaleanchor="x", scaleratio=1, **at)


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
            text = f"{value:.{2 if name.startswith('price') else 1}f}"
            _print(chart, x, y, f"<b>{text}</b>" if span > 1 else text, palette.text_on(share))
    for block in range(width // size):
        line = {"color": MARK, "width": 4} if block == marked else {"color": chart.ink.text, "width": 2}
        chart.outline(block * size - 0.5, (block + 1) * size - 0.5, -0.5, rows - 0.5, line=line)
    bare = BARE | {"showline": False, "ticks": "", "fixedrange": True, "automargin": False}
    headings = [str(j + 1) for j in columns or range(width)]
    chart.x(**bare, side="top", range=[-0.6, width - 0.4], tickvals=list(range(width)), ticktext=headings)
    places = [*range(rows), *(rows + 0.3 + at for at in range(len(below)))]
    names = [*(f"output {row + 1}" for row in range(rows)), *below]
    chart.y(**bare, tickvals=places, ticktext=names, range=[rows - 0.4 + (0.3 + 2 if below else 0), -0.6])
    chart.margins = {"l": 104, "b": 12}
    table = pd.DataFrame(matrix, columns=[f"column {heading}" for heading in headings])
    table.insert(0, "output", np.arange(rows) + 1)
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
    results: Mapping[str, LayerResult], energy: float, block: int, *, answered: bool, theme: Theme
) -> Drawing:
    """The cost of every block without compensation, and once answered the error that remains, if `block` moves.

    `results`: traced sweeps, by the block's label; `energy`: the denominator of errors.
    """
    grid: dict[str, Any] = {"rows": 1, "cols": 2, "shared_yaxes": True, "horizontal_spacing": 0.04}
    grid["subplot_titles"] = list(results)
    chart = Chart(height=HEIGHT, headroom=24, legend=answered, theme=theme, **grid)
    chart.figure.update_annotations(font_size=FONT_SIZE + 1)
    saved, frames = [], []
    alone, stays = Style("rgba(128,135,150,0.45)", "if nobody helped"), Style(palette.ORANGE, "what stays")
    for col, (name, result) in enumerate(results.items(), 1):
        assert result.trace is not None
        blocks = [int(columns[0]) // 3 for columns in result.order.permutation.split(3)]
        lost, error = (to_numpy(part) / energy for part in (result.trace.lost, result.trace.error))
        shares = 1 - error / lost
        saved.append(float(shares[blocks.index(block)]))
        x, at = [f"block<br>{number + 1}" for number in blocks], {"row": 1, "col": col}
        chart.bars(x, lost, alone, "", showlegend=col == 1, width=0.7, **at)
        if answered:
            chart.bars(x, error, stays, "", showlegend=col == 1, width=0.7, **at)
            for place, top, share in zip(x, lost, shares, strict=True):
                chart.note(percent(share, 0), x=place, y=top, yanchor="bottom", bgcolor=CLEAR, **at)
        frames.append(pd.DataFrame({"turn": name, "block": np.array(blocks) + 1, "alone": lost, "stays": error}))
    table = pd.concat(frames, ignore_index=True)
    chart.figure.update_layout(barmode="overlay")
    chart.y(range=[0, 1.25 * float(table["alone"].max())])
    chart.y(title_text="error, of the layer's output", row=1, col=1)
    first, last = saved
    finding = f"Block {block + 1} would lose most, wherever it stands"
    if answered:
        finding = f"Of block {block + 1}'s loss {percent(first, 0)} is made good first, {percent(last, 0)} last"
    subtitle = "Blocks from left to right as they are pruned" + ("; above each: what is made good" if answered else "")
    return chart.done(finding, subtitle, "", "Two bar charts side by side", table)


# Lesson 4


def price_lines(lines: Mapping[str, tuple[Sequence[int], Sequence[float]]], *, theme: Theme) -> Drawing:
    """log d over the steps of several orders. `lines`: order -> its columns and prices, as visited."""
    chart, frames = Chart(x="step", y="log d", height=HEIGHT, legend=True, theme=theme), []
    for name, (columns, price) in lines.items():
        steps, logs = np.arange(1, len(price) + 1), np.log(price)
        hover = f"{ORDERS[name]}<br>step %{{x}}: column %{{customdata}}<br>log d %{{y:.3f}}"
        chart.line(steps, logs, look_of(name), hover, size=10, customdata=np.array(columns) + 1)
        frames.append(pd.DataFrame({"order": name, "step": steps, "column": np.array(columns) + 1, "price": price}))
    table = pd.concat(frames, ignore_index=True)
    logs = np.log(table["price"])
    chart.level(float(logs.mean()), (0.7, 9.3), f"mean of every line: {number(logs.mean())}".replace("-", "−"))
    chart.x(dtick=1, range=[0.7, 9.3], zeroline=False)
    chart.y(range=[float(logs.min()) - 0.1, float(logs.max()) + 0.1], rangemode="normal", zeroline=False)
    subtitle = "Logarithm of the price at each step; the area under every line is the same"
    return chart.done("Every line has the same mean", subtitle, "", "Line chart of log prices over steps", table)


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
    ending = ", and ROSE" if yours < rule else ", but not ROSE" if beaten else " and not ROSE"
    finding = f"Your order beats {some(beaten)} of {len(random)} random orders{ending}"
    table = pd.DataFrame([*(("random", error) for error in random), *places], columns=["order", "error"])
    return chart.done(finding, "Each dot is a random order", "", "Errors of orders on one axis", table)


# Lesson 8


def bars(
    table: pd.DataFrame, finding: str, subtitle: str, caption: str = "", *, axis: str = "", size: int | None = None,
    equal: float | None = None, theme: Theme,
) -> Drawing:  # fmt: skip
    """Bars with their numbers: name, group, value. Horizontal without an `axis`. Groups are budgets or orders; weights
    of blocks are counted up to `size`, with a level for `equal` shares."""
    groups = table.groupby("group", sort=False)
    across = not axis
    chart = Chart(y=axis, height=HEIGHT, legend=not across, theme=theme)
    for group, rows in groups:
        look = BUDGETS.get(str(group)) or (look_of(str(group)) if group in ORDERS else Style(palette.BLUE, str(group)))
        places = (rows["value"], rows["name"]) if across else (rows["name"], rows["value"])
        text = rows["value"].map(signed if size is None else str)
        chart.bars(*places, look, "", text=text, **({"orientation": "h"} if across else {}))
    if across:
        chart.x(range=[0, 1.12 * float(table["value"].max())])
        chart.y(autorange="reversed", showgrid=False)
    else:
        chart.y(top=1.15 * float(table["value"].max()), **({} if size is None else {"count": size}))
    if equal is not None:
        chart.level(equal, (-0.5, 2.5), f"equal shares: {equal} each")
    return chart.done(finding, subtitle, caption, f"Bar chart: {subtitle}", table)


# Lessons 9 and 11


def columnar_map(layers: pd.DataFrame, *, theme: Theme) -> Drawing:
    """Every layer of a model as a cell, the columnar ones filled: block_index, projection, is_columnar."""
    chart = Chart(x="decoder block", height=HEIGHT, theme=theme)
    grid = layers.pivot_table(index="projection", columns="block_index", values="is_columnar", sort=False)
    look = {"colorscale": [[0, chart.ink.blank], [1, palette.ORANGE]], "zmin": 0, "zmax": 1, "xgap": 2, "ygap": 2}
    cells = {"z": grid.to_numpy(np.float32), "x": grid.columns, "y": grid.index.str.rpartition(".").get_level_values(2)}
    chart.figure.add_heatmap(**cells, **look, showscale=False, hoverinfo="skip")
    chart.x(**BARE, dtick=5)
    chart.y(**BARE, autorange="reversed", ticks="")
    finding = f"{word(int(layers['is_columnar'].sum())).capitalize()} of {len(layers)} layers are columnar"
    subtitle = "Layers of SmolLM2-135M at 70 % zeros; orange: columnar"
    return chart.done(finding, subtitle, "The finished study that the app opens with.", "Map of layers", layers)


def ratio_lines(ratios: Mapping[str, Interval], subtitle: str, finding: str, caption: str, *, theme: Theme) -> Drawing:
    """Ratios with their 95 % intervals, one above the other; 1 is marked."""
    chart = Chart(x="times SparseGPT's perplexity (logarithmic)", height=HEIGHT, theme=theme)
    columns = ["method", "ratio", "low", "high"]
    table = pd.DataFrame([(name, r.value, r.low, r.high) for name, r in ratios.items()], columns=columns)
    ends = {"array": table["high"] - table["ratio"], "arrayminus": table["ratio"] - table["low"]}
    bars = {"type": "data", "symmetric": False, "thickness": 2.5, "width": 8} | ends
    text = [f"<b>{ratio:.2f}</b>" for ratio in table["ratio"]]
    marks = {"error_x": bars, "mode": "markers+text", "textposition": "top center", "text": text}
    look = Style(palette.ORANGE, "", symbol="square")
    chart.points(table["ratio"], table["method"], look, "%{y}<br>%{x:.3f}", size=11, showlegend=False, **marks)
    chart.figure.add_vline(x=1, line=chart.dashed)
    chart.x(type="log", tickvals=[0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2], zeroline=False)
    chart.y(autorange="reversed", range=[len(table) - 0.5, -0.6], showgrid=False)
    return chart.done(finding, subtitle, caption, "Ratios with intervals", table)


# Lesson 10


def basis_panels(
    importance: Sequence[float], relative_range: float, errors: pd.DataFrame, chosen: str, names: Mapping[str, str],
    *, theme: Theme,
) -> Drawing:  # fmt: skip
    """Importance of every column in one basis; once answered, also errors in all bases: basis, method, error."""
    answered = not errors.empty
    titles = ["importance of the columns", "held-out error"][: 1 + answered]
    grid: dict[str, Any] = {"rows": 1 + answered, "cols": 1, "subplot_titles": titles}
    grid |= {"vertical_spacing": 0.2} if answered else {}
    chart = Chart(height=HEIGHT, headroom=24, legend=answered, theme=theme, **grid)
    place = np.arange(1, len(importance) + 1)
    behind = {"marker": {"color": palette.magnitude_colours(np.array(importance), theme)}, "showlegend": False}
    chart.bars(place, importance, Style(palette.BLUE, "importance"), "column %{x}", **behind, row=1, col=1)
    for method, rows in errors.groupby("method", sort=False):
        marker = {"line": {"color": MARK, "width": [3 if basis == chosen else 0 for basis in rows["basis"]]}}
        behind = {"text": [number(error, 2) for error in rows["error"]], "marker": marker, "row": 2, "col": 1}
        chart.bars(list(rows["basis"].map(names)), rows["error"], palette.method_style(str(method)), "", **behind)
    kind = "columnar" if relative_range > THRESHOLD else "not columnar"
    finding = f"Basis {names[chosen].lower()}: relative range {number(relative_range)}, {kind}"
    subtitle = f"A generated attention layer with {len(importance)} columns in six heads"
    if answered:
        chart.y(row=2, col=1, range=[0, 1.2 * float(errors["error"].max())])
    table = errors if answered else pd.DataFrame({"column": place, "importance": importance})
    return chart.done(finding, subtitle, "", "Bar charts of importance and errors", table)
