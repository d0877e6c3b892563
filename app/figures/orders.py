"""Pruning orders, budgets and bases: error as it arises, compensation, prices of columns, and forecasts."""

from collections.abc import Mapping
from typing import Any, Unpack

import numpy as np
import pandas as pd

from app.figures import palette
from app.figures.palette import Style
from app.figures.shapes import BARE, Chart, Look, to_numpy
from app.figures.style import ERROR, Drawing
from app.words import count, number, percent, sentence, short_layer
from rose import METHODS, LayerResult, RoseError, verdicts
from rose.layer.columnar import PaperFigures
from rose.layer.trace import SweepTrace

# Sweeps, by order and budget, that a method makes of every layer. ROSE is not among them: it is two-level order where a
# layer is columnar, else SparseGPT.
NAME_OF_RUN = {
    ("natural", "block"): METHODS["sparsegpt"].label,
    ("global", "layer"): METHODS["rose_global"].label,
}
SHARES = {"block": "equal shares", "layer": "one threshold", "own": "own shares"}  # by budget
RANDOM = "random"
# An axis whose numbers stand in the plot.
BLANK: dict[str, Any] = {"showline": False, "showticklabels": False, "ticks": "", "automargin": False} | BARE

# Error against pruned blocks


def error_curve(
    curves: Mapping[str, np.ndarray], *, tokens: str = "calibration", names: Mapping[str, str] | None = None,
    height: int = 420, finding: str = "", **shared: Unpack[Look],
) -> Drawing:  # fmt: skip
    """Error against pruned blocks for a few sweeps (the paper's Figure 1a), without damping as everywhere.

    `curves`: relative errors, (blocks + 1,), by order name, or "NAME + layer" for the layer budget. `names`: labels of
    sweeps, where they are not order and budget. `finding`: a title that is not about how the sweeps end.
    """
    if not curves:
        raise RoseError("No order is chosen; choose at least one.")
    chart, ends, final = Chart(x="pruned blocks", y="" if finding else ERROR, height=height, **shared), [], {}
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
    table = pd.DataFrame({name: pd.Series(curve) for name, curve in curves.items()}).rename_axis("pruned_blocks")
    return chart.done(finding or _how_it_ends(final), subtitle, "", alt, table.reset_index())


def _how_it_ends(final: Mapping[str, float]) -> str:
    """Two-level order against SparseGPT, or the last sweep: the choice of this sweep uses no error."""
    who, base = "two_level" if "two_level" in final else [*final][-1], final.get("natural")
    if base is None or who == "natural":
        return f"{run_style(who).label} ends at {number(final[who])}"
    if final[who] > 2 * base > 0:
        return f"{run_style(who).label}: {number(final[who] / base, 2)} times SparseGPT's error"
    return f"{run_style(who).label}: {verdicts.says_change(final[who], base, 'SparseGPT')}"


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

    The table has columns order, label, says (order and budget in words), relative_error, mask_error and held_out_error,
    a row a sweep, SparseGPT's first; rows of one order are seeds, whose mean is drawn. Parts are of SparseGPT's
    calibration error, rings and numbers beside them of its held-out error.
    """
    seeds = int(table["order"].value_counts().max())
    keys = ["order", "label", "says"]
    table = table.groupby(keys, sort=False, as_index=False).mean(numeric_only=True)
    base = table.iloc[0]
    if not base["relative_error"] > 0:
        raise RoseError("SparseGPT makes no error here, so nothing can be compared with it; choose a sparsity above 0.")
    mask, whole = (table[name] / base["relative_error"] for name in ("mask_error", "relative_error"))
    rest, held_out = (whole - mask).clip(lower=0), table["held_out_error"] / base["held_out_error"]
    table = table.assign(mask_part=mask, sequence_part=rest, held_out_part=held_out)
    chart = Chart(plot=70 * len(table), **shared)
    chart.margins = {"l": 186, "b": 12, "r": 56}
    _stacked(chart, table)
    last, error = ("held out", held_out) if held_out.notna().any() else ("calibration", whole)
    if last == "held out":
        edge = {"line": {"width": 2.5, "color": chart.ink.text}, "color": chart.ink.page}
        ring = Style(chart.ink.text, "held out")
        chart.points(held_out, table["label"], ring, "held out %{x:.3f} of SparseGPT's", size=11, marker=edge)
    for label, value, bar in zip(table["label"], error, whole, strict=True):
        at = max(value, bar) if abs(value - bar) < 0.09 else value
        place = {"x": at, "y": label, "xanchor": "left", "xshift": 10, "showarrow": False}
        chart.figure.add_annotation(text=f"<b>{value:.2f}</b>", **place)
    chart.figure.update_layout(barmode="stack", bargap=0.5)
    chart.x(
        range=[0, 1.03 * np.nanmax([1.0, *whole, *held_out])],
        showgrid=False,
        showline=False,
        showticklabels=False,
        ticks="",
    )
    bare: dict[str, Any] = {
        "showgrid": False,
        "showline": False,
        "ticks": "",
        "showticklabels": False,
        "automargin": False,
    }
    chart.y(range=[len(table) - 0.5, -0.5], zeroline=False, **bare)
    chart.figure.add_vline(x=1, line=chart.dashed | {"width": 1})
    subtitle = "■ mask: the least error with these zeros, □ sequence: what could not be repaired"
    subtitle += ", ○ on held-out text" if last == "held out" else ""
    alt = "Stacked bars of the parts of the error by order"
    caption = _saved(table) + (f" Random is the mean of {count(seeds, 'seed')}." if seeds > 1 else "")
    return chart.done("What an order changes: which zeros, and what is repaired", subtitle, caption, alt, table)


def _stacked(chart: Chart, table: pd.DataFrame) -> None:
    """Two parts a bar in the colour of its order, the mask's with its number; on the left the names."""
    colours = [palette.order_style(order).colour for order in table["order"]]
    for part, opacity in (("mask", 1.0), ("sequence", 0.4)):
        values = table[f"{part}_part"]
        text = [f"{value:.2f}" if part == "mask" and value > 0.15 else "" for value in values]
        font = {"color": [palette.text_over(colour) for colour in colours]}
        chart.figure.add_bar(
            x=values, y=table["label"], orientation="h", name=part, text=text, textposition="inside", textfont=font,
            insidetextanchor="end", marker={"color": colours, "opacity": opacity},
            hovertemplate=f"%{{y}}<br>{part} %{{x:.3f}} of SparseGPT's error<extra></extra>",
        )  # fmt: skip
    for label, says, colour in zip(table["label"], table["says"], colours, strict=True):
        small = f'<span style="color:{chart.ink.muted};font-size:12px">{says}</span>'
        heading = f'<span style="color:{colour}"><b>{label}</b></span><br>{small}'
        place = {"x": 0, "y": label, "xanchor": "right", "xshift": -10, "showarrow": False, "align": "right"}
        chart.figure.add_annotation(text=heading, **place)


def _saved(table: pd.DataFrame) -> str:
    """What each order saves in the two parts, against SparseGPT."""
    parts = table[["mask_part", "sequence_part"]]
    saved = (parts.iloc[0] - parts.iloc[1:]).round(2) + 0.0  # no negative zero
    saved_in = [f"{table['label'][row]} {mask:.2f} and {sequence:.2f}" for row, mask, sequence in saved.itertuples()]
    return f"Saved in the mask and in the sequence: {', '.join(saved_in)}.".replace("-", "−")


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
