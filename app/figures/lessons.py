"""The figures of the lessons: small layers with all numbers printed, and the effect of an order in other layers.

Weights, columns, blocks and outputs are counted from 0, as on all pages; steps of a sweep from 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from plotly.colors import sample_colorscale

from app.figures import palette
from app.figures.palette import MARK, Style, Theme
from app.figures.shapes import BARE, Chart, to_numpy
from app.figures.style import FONT_SIZE, Drawing, some
from app.words import number, percent, word
from rose.layer.pattern import THRESHOLD
from rose.verdicts import Interval

HEIGHT = 440  # pixels of a stage, without caption
CLEAR = "rgba(0,0,0,0)"
TUNED = ", tuned"  # ends the name of a method whose copy was tuned
ORDERS = {"natural": "Natural (SparseGPT)", "two_level": "Two-level (ROSE)"}  # others have their usual names


def look_of(order: str) -> Style:
    look = palette.order_style(order)
    return look._replace(label=ORDERS.get(order, look.label))


def signed(value: float, decimals: int = 2) -> str:
    """A number with a minus sign, not a hyphen."""
    return f"{value:.{decimals}f}".replace("-", "−")


# Lesson 1


def removal(
    explained: Mapping[str, float], weights: Mapping[str, Sequence[float]], costs: Mapping[str, float],
    column: int, *, theme: Theme,
) -> Drawing:  # fmt: skip
    """How much of an input the others explain, the weights before and after a removal, and its cost.

    `explained`: shares by each other input and by both; `weights`: "before" and "after", (3,) each; `costs`: by the way
    the other weights move.
    """
    titles = [f"part of input {column} that other inputs explain", "weights", "error"]
    grid: dict[str, Any] = {"rows": 2, "cols": 2, "specs": [[{"colspan": 2}, None], [{}, {}]]}
    grid |= {"row_heights": [0.38, 0.62], "column_widths": [0.6, 0.4], "vertical_spacing": 0.2}
    chart = Chart(height=HEIGHT, headroom=24, theme=theme, subplot_titles=titles, **grid)
    accent, grey = palette.ACCENT[theme][1], chart.ink.muted
    shares = list(explained.values())
    text = [percent(share, 0) for share in shares]
    chart.bars(shares, list(explained), Style(grey, ""), "", orientation="h", text=text, row=1, col=1)
    chart.x(row=1, col=1, range=[0, 1.08], tickvals=[0, 0.5, 1], ticktext=["0", "half", "all"])
    chart.y(row=1, col=1, autorange="reversed", showgrid=False)
    names = [f"w<sub>{j}</sub>" for j in range(3)]
    for name, values in weights.items():
        look = Style(grey if name == "before" else accent, name)
        chart.bars(names, values, look, "", text=list(map(signed, values)), row=2, col=1)
    helpers, colours = [name.replace(" ", "<br>") for name in costs], {"color": [grey, accent]}
    behind = {"text": list(map(signed, costs.values())), "marker": colours, "row": 2, "col": 2}
    chart.bars(helpers, list(costs.values()), Style(accent, "cost"), "", **behind)
    lowest, highest = min(map(min, weights.values())), max(map(max, weights.values()))
    chart.y(row=2, col=1, range=[min(0.0, lowest) * 1.2, max(2.2, highest * 1.15)])
    chart.y(row=2, col=2, range=[0, 1.2])
    left = costs["others help"] / costs["nobody helps"]
    finding = f"The others compensate for {percent(1 - left, 0)} of weight {column}'s loss"
    subtitle = f"Grey: before, or without help; red: after weight {column} is removed"
    table = pd.DataFrame({"weight": names} | dict(weights))
    return chart.done(finding, subtitle, "", "Three bar charts", table)


# Lessons 0, 2 and 6: a layer with all its numbers


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


def early_late(errors: Sequence[Mapping[str, float]], *, answered: bool, theme: Theme) -> Drawing:
    """What the removal of four weights of each block costs: if nobody helps, and once answered as the block goes last
    or first. `errors`: relative, by block and turn."""
    chart, accent = Chart(y="relative error", height=HEIGHT, legend=True, theme=theme), palette.ACCENT[theme][1]
    looks = {
        "nobody helps": Style(chart.ink.muted, "if nobody helps"),
        "last": Style(palette.faint(theme), "the block goes last"),
        "first": Style(accent, "the block goes first"),
    }
    names = [f"block {block}" for block in range(len(errors))]
    for turn, look in looks.items():
        if answered or turn == "nobody helps":
            values = [error[turn] for error in errors]
            text = [percent(1 - e[turn] / e["nobody helps"], 0) if turn != "nobody helps" else "" for e in errors]
            chart.bars(names, values, look, "", text=text)
    table = pd.DataFrame(errors).assign(block=range(len(errors)))
    chart.y(range=[0, 1.15 * float(table["nobody helps"].max())])
    finding, last = "Block 2 would lose most", errors[-1]
    if answered:
        first, late = (percent(1 - last[turn] / last["nobody helps"], 0) for turn in ("first", "last"))
        finding = f"Block 2 is compensated by {first} if it goes first, by {late} if last"
    subtitle = "Error of removing the same four weights of a block" + ("; part compensated" if answered else "")
    return chart.done(finding, subtitle, "", "Grouped bars of errors by block and turn", table)


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


# Lesson 5


def heads(
    losses: Mapping[str, tuple[np.ndarray, int]], head_width: int, ranges: np.ndarray, marked: int, layer: str,
    *, theme: Theme,
) -> Drawing:  # fmt: skip
    """Column losses of one layer in blocks of two sizes, and below them which layers are columnar at every size.

    `losses`: name of a size -> losses, (in,), and columns of a block. `ranges`: relative range and its interval, (block
    sizes, layers, 3); `marked`: the layer in it.
    """
    sizes, accent = len(losses), palette.ACCENT[theme][1]
    titles = [*(f"<b>Blocks of {name}</b>: {_says_range(*pair)}" for name, pair in losses.items())]
    titles.append("<b>All output projections</b>: columnar, by heads a block")
    grid: dict[str, Any] = {"rows": sizes + 1, "cols": 1, "subplot_titles": titles, "vertical_spacing": 0.13}
    chart = Chart(height=HEIGHT, headroom=18, theme=theme, row_heights=[0.3] * sizes + [0.4], **grid)
    for annotation in chart.figure.layout.annotations:
        annotation.update(x=0, xanchor="left", font={"size": FONT_SIZE})
    columns = len(next(iter(losses.values()))[0])
    light, dark = palette.shades(theme)
    shade = {"color": (np.arange(columns) // head_width % 2).astype(np.uint8), "line": {"width": 0}}
    shade |= {"colorscale": [[0, light], [1, dark]], "cmin": 0, "cmax": 1}
    top = max(float(values.max()) for values, _ in losses.values())
    for row, (values, size) in enumerate(losses.values(), 1):
        place = {"row": row, "col": 1}
        bars = {"marker": shade, "width": 1, "showlegend": False}
        chart.bars(np.arange(columns), values.astype(np.float32), Style(dark, ""), "", **bars, **place)
        for start in range(0, columns, size):
            end, mean = min(start + size, columns), float(values[start : start + size].mean())
            line = {"type": "line", "x0": start - 0.5, "x1": end - 0.5, "line": {"color": accent, "width": 4}}
            chart.figure.add_shape(**line, y0=mean, y1=mean, **place)
        middles = np.arange(head_width / 2, columns, head_width)
        names = [f"head {head}" if head == 0 else str(head) for head in range(len(middles))]
        chart.x(tickvals=middles, ticktext=names, ticks="", range=[-0.5, columns - 0.5], showgrid=False, **place)
        chart.y(range=[0, 1.02 * top], nticks=4, **place)
    _columnar_cells(chart, ranges, marked, row=sizes + 1)
    chart.figure.update_layout(bargap=0)
    counts = [int((each[:, 0] > THRESHOLD).sum()) for each in ranges]
    finding = f"With one head a block {counts[1]} of {ranges.shape[1]} are columnar, with four {counts[3]}"
    table = pd.DataFrame({"column": range(columns)} | {name: values for name, (values, _) in losses.items()})
    subtitle = f"Column loss of {layer}; red: mean of a block, or columnar; pale red: undecided"
    return chart.done(finding, subtitle, "", "Two bar charts of column loss and a map", table)


def _says_range(values: np.ndarray, size: int) -> str:
    means = [float(values[start : start + size].mean()) for start in range(0, len(values), size)]
    spread = 1 - min(means) / max(means)
    return f"relative range {spread:.2f}, {'columnar' if spread > THRESHOLD else 'not columnar'}"


def _columnar_cells(chart: Chart, ranges: np.ndarray, marked: int, row: int) -> None:
    """A row of cells for each block size: red where columnar, pale red where undecided."""
    accent, place = palette.ACCENT[chart.theme][1], {"row": row, "col": 1}
    value, low, high = np.moveaxis(ranges, 2, 0)
    undecided = (low <= THRESHOLD) & (high > THRESHOLD)
    state = np.where(undecided, 1, np.where(value > THRESHOLD, 2, 0))
    scale = [[0, palette.QUIET[chart.theme][0]], [0.5, palette.faint(chart.theme)], [1, accent]]
    cells = {"z": state.astype(np.float32), "zmin": 0, "zmax": 2, "colorscale": scale, "xgap": 2, "ygap": 2}
    chart.figure.add_heatmap(**cells, showscale=False, hoverinfo="skip", **place)
    counts = [int((each > THRESHOLD).sum()) for each in value]
    for size, count in enumerate(counts):
        text = {"text": f"{count} of {len(value[0])}", "xanchor": "left", "showarrow": False}
        chart.figure.add_annotation(x=len(value[0]) - 0.3, y=size, font={"color": chart.ink.muted}, **text, **place)
    chart.figure.add_shape(
        type="rect", x0=marked - 0.5, x1=marked + 0.5, y0=-0.5, y1=len(counts) - 0.5, **place,
        line={"color": chart.ink.text, "width": 2},
    )  # fmt: skip
    bare = BARE | {"showline": False, "ticks": ""}
    names = ["½", "1", "2", "4"]
    chart.y(**bare, autorange="reversed", tickvals=list(range(len(names))), ticktext=names, **place)
    chart.x(**bare, range=[-0.5, len(value[0]) + 2.5], dtick=10, title_text="decoder block", **place)


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


def two_parts(layers: Mapping[str, pd.DataFrame], finding: str, *, answered: bool, theme: Theme) -> Drawing:
    """Errors of sweeps in a small layer and in real ones, side by side; once answered in their two parts.

    The tables have a row a sweep: order, budget, error and mask (parts of SparseGPT's error), held_out or NaN.
    """
    grid: dict[str, Any] = {"rows": 1, "cols": len(layers), "shared_yaxes": True, "horizontal_spacing": 0.06}
    chart = Chart(height=HEIGHT, headroom=24, theme=theme, subplot_titles=list(layers), **grid)
    for col, table in enumerate(layers.values(), 1):
        looks = [sweep_style(*pair) for pair in zip(table["order"], table["budget"], strict=True)]
        names, colours = [look.label for look in looks], [look.colour for look in looks]
        place, how = {"row": 1, "col": col}, {"orientation": "h", "width": 0.66}
        whole, mask = table["error"], table["mask"]
        parts = [(mask, 1.0), ((whole - mask).clip(lower=0), 0.4)] if answered else [(whole, 1.0)]
        for values, opacity in parts:
            look = {"color": colours if answered else chart.ink.muted, "opacity": opacity}
            chart.bars(values, names, Style(chart.ink.text, ""), "", marker=look, **how, **place)
        for name, value in zip(names, whole, strict=True):
            chart.note(f"{value:.2f}", x=value, y=name, xanchor="left", xshift=4, bgcolor=CLEAR, **place)
        chart.x(range=[0, 1.2], tickvals=[0, 0.5, 1], **place)
        chart.y(autorange="reversed", showgrid=False, **place)
    chart.figure.update_layout(barmode="stack")
    subtitle = "Error, SparseGPT = 1" + ("; dark: the mask's part, pale: the sequence's" if answered else "")
    table = pd.concat(layers, names=["layer"]).reset_index("layer")
    return chart.done(finding, subtitle, "", "Stacked bars of errors by order", table)


def sweep_style(order: str, budget: str) -> Style:
    """The look of a sweep, and its name with what it does."""
    look = palette.order_style(order)
    label = {"natural": "SparseGPT", "two_level": "ROSE", "global": "ROSE global"}.get(order, look.label)
    if budget == "layer" and order != "global":
        label = f"{look.label},<br>one threshold"
    return look._replace(label=label)


def bars(values: Mapping[str, float], finding: str, subtitle: str, caption: str = "", *, theme: Theme) -> Drawing:
    """Horizontal bars with their numbers, in the colours of orders and methods, by name."""
    chart, looks = Chart(height=HEIGHT, theme=theme), [named_style(name) for name in values]
    names, numbers = [look.label for look in looks], list(values.values())
    where = {"orientation": "h", "marker": {"color": [look.colour for look in looks]}, "width": 0.66}
    chart.bars(numbers, names, Style(chart.ink.text, ""), "", text=list(map(number, numbers)), **where)
    chart.x(range=[0, 1.15 * max(numbers)])
    chart.y(autorange="reversed", showgrid=False)
    table = pd.DataFrame({"name": names, "value": numbers})
    return chart.done(finding, subtitle, caption, f"Bar chart: {subtitle}", table)


def named_style(name: str) -> Style:
    """The look of a sweep named "order/budget", or of a method."""
    order, _, budget = name.partition("/")
    return sweep_style(order.partition(":")[0], budget) if budget else palette.method_style(name)


# Lesson 9


def columnar_map(layers: pd.DataFrame, conditions: str, *, theme: Theme) -> Drawing:
    """Every layer of a model as a cell, the columnar ones filled: block_index, projection, is_columnar."""
    chart = Chart(x="decoder block", height=HEIGHT, theme=theme)
    grid = layers.pivot_table(index="projection", columns="block_index", values="is_columnar", sort=False)
    scale = [[0, palette.QUIET[theme][0]], [1, palette.ACCENT[theme][1]]]
    look = {"colorscale": scale, "zmin": 0, "zmax": 1, "xgap": 2, "ygap": 2}
    cells = {"z": grid.to_numpy(np.float32), "x": grid.columns, "y": grid.index.str.rpartition(".").get_level_values(2)}
    chart.figure.add_heatmap(**cells, **look, showscale=False, hoverinfo="skip")
    chart.x(**BARE, dtick=5)
    chart.y(**BARE, autorange="reversed", ticks="")
    finding = f"{word(int(layers['is_columnar'].sum())).capitalize()} of {len(layers)} layers are columnar"
    subtitle = "SmolLM2-135M; red: columnar; o_proj: attention output"
    caption = f"The study that the app opens with: {conditions}; inputs of the dense model."
    return chart.done(finding, subtitle, caption, "Map of layers", layers)


def ratio_lines(ratios: Mapping[str, Interval], subtitle: str, finding: str, caption: str, *, theme: Theme) -> Drawing:
    """Ratios with their 95 % intervals by method, "rose, tuned" where it was tuned; 1 is marked."""
    chart = Chart(x="times SparseGPT's perplexity (logarithmic)", height=HEIGHT, theme=theme)
    columns = ["method", "ratio", "low", "high"]
    pairs = [(palette.method_style(name.removesuffix(TUNED)), name, ratio) for name, ratio in ratios.items()]
    rows = [(look.label + TUNED * name.endswith(TUNED), r.value, r.low, r.high) for look, name, r in pairs]
    table = pd.DataFrame(rows, columns=columns)
    ends = {"array": table["high"] - table["ratio"], "arrayminus": table["ratio"] - table["low"]}
    bars = {"type": "data", "symmetric": False, "thickness": 2.5, "width": 8} | ends
    text = [f"<b>{ratio:.2f}</b>" for ratio in table["ratio"]]
    marks = {"error_x": bars, "mode": "markers+text", "textposition": "top right", "text": text}
    marks["marker"] = {"color": [look.colour for look, *_ in pairs], "symbol": "square"}
    hover = "%{y}<br>%{x:.3f}"
    chart.points(table["ratio"], table["method"], Style(chart.ink.text, ""), hover, size=11, showlegend=False, **marks)
    chart.figure.add_vline(x=1, line=chart.dashed)
    span = np.log10([0.97 * table["low"].min(), 1.07 * max(1.0, table["high"].max())])  # room for a number
    chart.x(type="log", tickvals=[0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2], zeroline=False, range=span)
    chart.y(autorange="reversed", range=[len(table) - 0.5, -0.6], showgrid=False)
    return chart.done(finding, subtitle, caption, "Ratios with intervals", table)
