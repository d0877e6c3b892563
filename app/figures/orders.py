"""Pruning orders, budgets and bases: error as it arises, compensation, prices of columns, and forecasts."""

from collections.abc import Mapping, Sequence
from typing import Unpack

import numpy as np
import pandas as pd

from app.figures import palette
from app.figures.palette import Style
from app.figures.shapes import Chart, Look, Marked, block_span, to_numpy
from app.figures.style import CHOSEN, ERROR, Drawing, judged
from app.words import count, number, out_of, percent, sentence, short_layer
from rose import METHODS, LayerResult, RoseError, verdicts
from rose.layer.columnar import PaperFigures
from rose.layer.order import Prices
from rose.layer.trace import SweepTrace

# Sweeps, by order and budget, that a method makes of every layer. ROSE is not among them: it is two-level order where a
# layer is columnar, else SparseGPT.
NAME_OF_RUN = {
    ("natural", "block"): METHODS["sparsegpt"].label,
    ("global", "layer"): METHODS["rose_global"].label,
}
SHARES = {"block": "equal shares", "layer": "one threshold", "own": "own shares"}  # by budget
RANDOM = "random"
SMOOTHED = 14  # parts of the columns whose mean a line of prices shows
HELPLESS = "mean if nobody helps"
NUMBERED, NAMED = 24, 8  # pruned blocks up to which each has its number below its bar, and its name too
GIVEN = "given"  # of bases

# Error against pruned blocks


def error_curve(
    curves: Mapping[str, np.ndarray], *, tokens: str = "calibration", names: Mapping[str, str] | None = None,
    **shared: Unpack[Look],
) -> Drawing:  # fmt: skip
    """Error against pruned blocks for a few sweeps (the paper's Figure 1a), without damping as everywhere.

    `curves`: relative errors, (blocks + 1,), by order name, or "NAME + layer" for the layer budget. `names`: labels of
    sweeps, where they are not order and budget.
    """
    if not curves:
        raise RoseError("No order is chosen; choose at least one.")
    chart, ends, final = Chart(x="pruned blocks", y=ERROR, **shared), [], {}
    for name, curve in curves.items():
        look = run_style(name)
        look = look._replace(label=(names or {}).get(name, look.label))
        hover = f"{look.label}<br>%{{x}} blocks pruned<br>error so far %{{y:.4g}}"
        chart.line(np.arange(len(curve)), curve, look, hover)
        final[name] = float(curve[-1])
        ends.append((final[name], look.label.replace(", ", "<br>"), look.colour, look.dash))
    blocks, top = max(map(len, curves.values())) - 1, 1.06 * max(curve.max() for curve in curves.values()) or 1.0
    chart.x(count=blocks, range=[-0.02 * blocks, blocks * 1.02], zeroline=False)
    chart.y(top=top)
    subtitle = f"{sentence(tokens)} error after each pruned block{chart.of}"
    alt = f"Line chart of the error against pruned blocks for {count(len(final), 'sweep')}"
    chart.label_ends(blocks, ends, top)
    # The choice of this sweep uses no error.
    who = next((name for name in ("custom", "two_level") if name in final), name)
    finding, base = f"{run_style(who).label} ends at {number(final[who])}", final.get("natural")
    if base is not None and who != "natural":
        finding = f"{run_style(who).label}: {verdicts.says_change(final[who], base, 'SparseGPT')}"
        if final[who] > 2 * base > 0:
            finding = f"{run_style(who).label}: {number(final[who] / base, 2)} times SparseGPT's error"
    table = pd.DataFrame({name: pd.Series(curve) for name, curve in curves.items()}).rename_axis("pruned_blocks")
    return chart.done(finding, subtitle, "", alt, table.reset_index())


def trace_of(result: LayerResult) -> SweepTrace:
    """The recorded sweep; raises RoseError where it was not recorded."""
    if result.trace is None:
        raise RoseError("Errors block by block can only be shown of a sweep that was recorded, with trace=True.")
    return result.trace


def so_far(result: LayerResult) -> np.ndarray:
    """Undamped squared error before the sweep and after each block, (blocks + 1,); the last is the final error."""
    return to_numpy(trace_of(result).error_so_far(result.added_damping))


def _random_seeds(labels: dict[str, str], table: pd.DataFrame, by: str, column: str = "relative_error") -> str:
    """Says where random order is a mean of several seeds, and how far these lie apart at most."""
    groups = table[table["order"] == RANDOM].groupby(by)[column]
    seeds = int(groups.size().max()) if len(groups) else 0
    if seeds < 2:
        return ""
    labels[RANDOM] += ", mean"
    far = percent((groups.max() / groups.min() - 1).max(), 0)
    return f" Random order: mean of {count(seeds, 'seed')}, up to {far} apart."


def run_name(result: LayerResult) -> str:
    """A sweep by its order, and its budget unless that is an equal share of every block."""
    return result.order.name + ("" if result.budget == "block" else f" + {result.budget}")


def sweep_style(result: LayerResult) -> Style:
    """A sweep in its order's colour; a layer-wide budget is dotted, with open marks."""
    look = palette.order_style(result.order.name)
    if result.budget != "layer":
        return look
    return look.opened()._replace(label=f"{look.label}, {SHARES[result.budget]}", dash="dot")


def run_style(name: str) -> Style:
    """A sweep by name, "global" or "global + layer", under the name of the method that makes this sweep, if any."""
    order, _, budget = name.partition(" + ")
    look = palette.order_style(order)
    label = NAME_OF_RUN.get((order, budget or "block"), f"{look.label}, {SHARES[budget or 'block']}")
    label = "Yours" if order == "custom" else label
    dashes = {"solid": "dot", "dash": "dashdot", "longdash": "longdashdot"}
    return look._replace(label=label, dash=dashes.get(look.dash, "dot") if budget == "layer" else look.dash)


# Prices of columns over a sweep, and forecasts


def price_lines(
    prices: Mapping[str, Prices], *, widths: Sequence[int] = (), labels: Mapping[str, str] | None = None,
    **shared: Unpack[Marked],
) -> Drawing:  # fmt: skip
    """log d over the steps of a sweep, a line an order, with the level that all of them have and that without help.

    `prices` are of one layer, by order; the columns of a marked block, of these `widths`, are dots on each line.
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
        window = pd.Series(logs).rolling(max(1, columns // SMOOTHED), center=True, min_periods=1)
        smooth = window.mean().to_numpy()
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
    finding = f"Every order has the same mean log price, {level:.1f}: one column saves, another pays"
    subtitle = f"Price d of each column{chart.of} as visited, running mean"
    subtitle += f"; dots: columns of block {chart.marked_block}" if chart.marked_block is not None and widths else ""
    caption = (
        "Removing a weight w costs w² d, where d is the part of the input that the columns still free cannot explain. "
        "∏ d = det(H + λI), so all areas are equal."
    )
    chart.label_ends(columns, ends, high + 0.3, low - 0.1)
    return chart.done(finding, subtitle, caption, f"Lines of the log price over the sweep{chart.of}", table)


def forecast_scatter(table: pd.DataFrame, *, tokens: str = "held-out", **shared: Unpack[Marked]) -> Drawing:
    """The error that was foretold before any sweep against the measured one: order, budget, forecast, measured."""
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
    order, budget, _, error = table.loc[table["forecast"].idxmin(), ["order", "budget", "forecast", "measured"]]
    base = table.set_index(["order", "budget"])["measured"]["natural", "block"]
    lower = int((table["measured"] < error).sum())
    ranked = verdicts.rank_correlation(table["forecast"], table["measured"])
    caption = (
        "A forecast takes one factorization an order and a sweep of few rows; open marks: one threshold. "
        f"{sentence(out_of(lower, len(table), 'sweep'))} {'has' if lower < 2 else 'have'} less {tokens} error than the "
        "forecast's choice."
    )
    if ranked is not None:
        caption += f" Rank correlation of forecast and error: {ranked}."
    subtitle = f"Error{chart.of} by order and budget: forecast, and measured on {tokens} tokens"
    finding = f"The forecast chooses {palette.order_style(order).label.lower()} order, {SHARES[budget]}: "
    finding += verdicts.says_change(error, base, "SparseGPT", f"{tokens} error")
    return chart.done(finding, subtitle, caption, "Scatter chart of measured against forecast errors", table)


# Effect of position, sparsity and budget


def position_curve(table: pd.DataFrame, *, block: int, base: str, place: int, **shared: Unpack[Look]) -> Drawing:
    """Final error against the position at which a block is pruned, all others in the order `base` (paper's Figure 1c).

    The table has columns `position` (0 = first) and `relative_error`; `place` is where `base` itself has the block.
    """
    rows = table.sort_values("position", ignore_index=True)
    x, y = rows["position"].to_numpy(np.int64), rows["relative_error"].to_numpy(np.float64)
    chart = Chart(x=f"position at which block {block} is pruned", y=ERROR, legend=True, **shared)
    hover, look = "pruned as number %{x}<br>final error %{y:.4g}", palette.order_style(base)
    chart.line(x + 1, y, Style(palette.AZURE, "final error"), hover, size=9)
    chart.rings([place + 1], y[x == place], f"its place in {look.label.lower()} order", size=18, colour=look.colour)
    chart.x(count=len(x))
    chart.y(top=y.max() * 1.1)
    finding = f"Pruned last, block {block} leaves {verdicts.says_change(y[-1], y[0], 'pruned first')}"
    subtitle = f"Final error{chart.of} when block {block} is pruned at each position, one real sweep per mark"
    caption = f"The error is lowest, {number(y.min())}, at position {x[y.argmin()] + 1} and highest, "
    caption += f"{number(y.max())}, at position {x[y.argmax()] + 1} of {len(x)}."
    alt = f"Line chart of final error against the position of block {block}"
    return chart.done(finding, subtitle, caption, alt, rows)


def order_bars(table: pd.DataFrame, **shared: Unpack[Look]) -> Drawing:
    """Final error by sparsity (the paper's bars), natural order as a baseline and two-level order in the title.

    The table has columns order, sparsity and relative_error.
    """
    chart = Chart(x="sparsity (fraction of weights removed)", y=ERROR, height=460, legend=True, **shared)
    labels = {name: run_style(name).label for name in dict.fromkeys(table["order"])}
    spread = _random_seeds(labels, table, "sparsity")
    wide = table.pivot_table(index="sparsity", columns="order", values="relative_error", sort=False).sort_index()
    groups = [percent(value, 0) for value in wide.index]
    for name, label in labels.items():
        hover = f"{label}<br>sparsity %{{customdata}}<br>final error %{{y:.4g}}"
        look = palette.order_style(name)._replace(label=label)
        chart.bars(np.arange(len(groups)), wide[name], look, hover, customdata=groups)
    for i, level in enumerate(wide["natural"]):
        chart.figure.add_shape(type="line", x0=i - 0.45, x1=i + 0.45, y0=level, y1=level, line=chart.dashed)
    chart.x(tickvals=list(range(len(groups))), ticktext=groups, showgrid=False)
    mean = wide.div(wide["natural"], axis=0).mean().sort_values()
    natural = labels["natural"]
    finding = f"Two-level order leaves {verdicts.says_change(mean['two_level'], 1.0, natural)}"
    subtitle = f"Final error by sparsity{chart.of}, {SHARES['block']}; dashed: {natural}"
    ranked = "; ".join(f"{labels[str(name)]}: {value:.3f}" for name, value in mean.items())
    caption = f"Mean over {count(len(groups), 'sparsity', 'sparsities')}, relative to {natural}: {ranked}.{spread}"
    alt = "Grouped bars of final error by sparsity and order"
    return chart.done(finding, subtitle, caption, alt, wide.reset_index())


def mask_and_sequence(table: pd.DataFrame, **shared: Unpack[Look]) -> Drawing:
    """What an order changes: the mask's part of each sweep's error and the sequence's, as stacked bars.

    The table has columns order, budget, relative_error, mask_error and held_out_error, a row a sweep, among them
    natural order with the block budget. Parts are of SparseGPT's calibration error, rings of its held-out error.
    """
    table = table.groupby(["order", "budget"], sort=False, as_index=False).mean(numeric_only=True)
    base = table.set_index(["order", "budget"]).loc[("natural", "block")]
    if not base["relative_error"] > 0:
        raise RoseError("SparseGPT makes no error here, so nothing can be compared with it; choose a sparsity above 0.")
    mask, whole = (table[name] / base["relative_error"] for name in ("mask_error", "relative_error"))
    rest, held_out = (whole - mask).clip(lower=0), table["held_out_error"] / base["held_out_error"]
    pairs = zip(table["order"], table["budget"], strict=True)
    looks = [run_style(order if budget == "block" else f"{order} + {budget}") for order, budget in pairs]
    names, colours = [look.label for look in looks], [look.colour for look in looks]
    labels = [name.replace(", ", "<br>") for name in names]
    chart = Chart(x="part of SparseGPT's error", height=110 + 46 * len(looks), legend=True, **shared)
    for part, says, values, opacity in (
        ("mask", "the least error with these zeros", mask, 1.0),
        ("sequence", "what could not be repaired", rest, 0.4),
    ):
        how = {"orientation": "h", "customdata": names, "width": 0.62}
        hover = f"%{{customdata}}<br>{part} %{{x:.3f}} of SparseGPT's error"
        look = Style(chart.ink.text, f"{part}: {says}")
        chart.bars(values, labels, look, hover, marker={"color": colours, "opacity": opacity}, **how)
    if held_out.notna().any():
        ring, edge = Style(chart.ink.text, "on held-out tokens", symbol="circle-open"), {"line": {"width": 2.5}}
        chart.points(held_out, labels, ring, "held out %{x:.3f} of SparseGPT's", size=12, marker=edge)
    chart.figure.update_layout(barmode="stack", legend={"traceorder": "normal"})
    chart.x(range=[0, 1.05 * np.nanmax([1.0, *whole, *held_out])])
    chart.y(autorange="reversed", showgrid=False)
    chart.figure.add_vline(x=1, line=chart.dashed)
    repairable = 1 - base["mask_error"] / base["relative_error"]
    finding = f"Of SparseGPT's error the sequence costs {percent(repairable, 0)}, the mask the rest"
    subtitle = f"Error{chart.of} on calibration tokens, split by an exact refit of each mask"
    best = int(table["relative_error"].idxmin())
    caption = (
        f"{names[best]} leaves least, {number(whole[best])} of SparseGPT's error; its mask costs {number(mask[best])}. "
        "Held out there are no parts, because a refit fits the calibration tokens."
    )
    numbers = table.assign(mask_part=mask, sequence_part=whole - mask, held_out_part=held_out)
    return chart.done(finding, subtitle, caption, "Stacked bars of mask and sequence by order", numbers)


def paper_drawings(paper: PaperFigures) -> list[Drawing]:
    """The ROSE paper's figures of one layer, from numbers that an analysis keeps: Figure 1a, Figure 1c where there are
    positions to choose from, and the bars of orders."""
    layer = short_layer(paper.layer)
    curves = {order: np.array(curve) for order, curve in paper.curves.items()}
    drawings = [error_curve(curves, layer=layer)]
    if len(paper.positions) > 1:
        table = pd.DataFrame(paper.positions, columns=["position", "relative_error"])
        drawings.append(position_curve(table, block=paper.block, base="natural", place=paper.place, layer=layer))
    bars = pd.DataFrame(paper.bars, columns=["order", "sparsity", "relative_error"])
    return [*drawings, order_bars(bars, layer=layer)]


# Bases of an output projection


def basis_errors(
    table: pd.DataFrame, labels: Mapping[str, str], chosen: str = GIVEN, **shared: Unpack[Look]
) -> Drawing:
    """Held-out error of each method in each basis as bars, calibration error as a line in each; the chosen is outlined.

    Without held-out errors, NaN, bars are of calibration. `labels`: by basis, in the order of the groups.
    """
    column, tokens = judged(table)
    wide, fitted = (
        table.pivot_table(index="basis", columns="method", values=name, sort=False).reindex(list(labels))
        for name in (column, "relative_error")
    )
    chart = Chart(x="basis of the heads", y=ERROR, height=460, legend=True, **shared)
    methods = {str(method): palette.method_style(str(method)) for method in dict.fromkeys(table["method"])}
    names, groups, width = list(labels.values()), np.arange(len(labels)), 0.8 / len(methods)
    middles = {method: groups - 0.4 + width * (place + 0.5) for place, method in enumerate(methods)}
    for method, look in methods.items():
        hover = f"{look.label}, %{{customdata}}<br>{tokens} error %{{y:.4g}}"
        chart.bars(middles[method], wide[method], look, hover, customdata=names, width=0.9 * width)
    subtitle = f"{sentence(tokens)} error{chart.of}"
    if tokens == "held-out":
        subtitle += "; lines: calibration"
        x, y = (np.concatenate([part[method] for method in methods]) for part in (middles, fitted))
        look, edge = Style(chart.ink.text, "Calibration", symbol="line-ew"), {"width": 2.5, "color": chart.ink.text}
        chart.points(x, y, look, "calibration error %{y:.4g}", size=11, marker={"line": edge})
    at = list(labels).index(chosen)
    chart.outline(at - 0.47, at + 0.47, 0, 1, yref="paper")
    chart.x(tickvals=groups, ticktext=names, showgrid=False)
    lead, base = next(iter(methods)), wide.loc[GIVEN]
    seen, how = (chosen, "") if chosen != GIVEN else (str(fitted[lead].idxmin()), f", {CHOSEN}")
    finding = f"No basis has less calibration error of {methods[lead].label} than the one as given"
    if seen != GIVEN:
        change = verdicts.says_change(wide.loc[seen, lead], base[lead], "as given", f"{tokens} error")
        finding = f"{methods[lead].label}, {labels[seen].lower()}{how}: {change}"
    alt = f"Grouped bars of {tokens} error by basis and method"
    return chart.done(finding, f"{subtitle}; outlined: the chosen basis", "", alt, table)
