"""Pruning order as the thing to play with: error as it arises, compensation, and what position and budget do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from app import words
from app.figures import palette, shapes, shrinking, style
from app.figures.losses import losses_in_order
from app.figures.palette import Style, Theme
from app.figures.style import Drawing
from rose import METHODS, LayerResult, RoseError, verdicts
from rose.layer.defaults import THRESHOLD
from rose.layer.order import visited_blocks
from rose.layer.paper import PaperFigures
from rose.layer.sweep import SweepTrace

# Sweeps, by order and budget, that a method makes of every layer; ROSE visits only columnar layers in its order.
NAME_OF_RUN = {
    ("natural", "block"): METHODS["sparsegpt"].label,
    ("two_level", "block"): "ROSE's order",
    ("global", "layer"): METHODS["rose_global"].label,
}

RANDOM = "random"
NUMBERED, NAMED = 24, 8  # pruned blocks up to which each has its number below its bar, and its name too

# Error against pruned blocks


def error_curve(
    curves: Mapping[str, np.ndarray],
    *,
    reference: tuple[str, float] | None = None,
    layer: str = "",
    theme: Theme = "light",
) -> Drawing:
    """Error against pruned blocks for several orders (the paper's Figure 1a), without damping as everywhere.

    Every curve ends at the relative error of its result. Random orders of several seeds are one band from their lowest
    to their highest curve, with their mean as a line.

    Args:
        curves: (blocks + 1,) by order name, or "NAME + layer" for the layer budget, see `relative_curves`.
        reference: name and relative error of what per cent are of; natural order where it is drawn.
    """
    if not curves:
        raise RoseError("There is no sweep to show; choose at least one order.")
    figure, ends = go.Figure(), []
    final: dict[str, float] = {}
    for name, members in runs(curves).items():
        look, many = run_style(name), np.stack([curves[member] for member in members])
        if len(members) > 1:
            look = look._replace(label=_mean_label(look.label, len(members)))
            _band(figure, many, look)
        mean = many.mean(0)
        final[name] = float(mean[-1])
        hover = f"{look.label}<br>%{{x}} blocks pruned<br>error so far %{{y:.4g}}"
        shapes.lines(figure, np.arange(len(mean)), mean, look, hover)
        ends.append((float(mean[-1]), look.label.replace(", mean of ", "<br>mean of "), look.colour, look.dash))
    base = next((name for name in ("natural", "natural + layer") if name in final), None)
    if reference is None and base is not None:
        reference = run_style(base).label, final[base]
    blocks = max(len(curve) for curve in curves.values()) - 1
    finding = _curve_finding(final, next(iter(curves.values())))
    dotted = "; dotted: layer budget" if any(name.endswith(" + layer") for name in final) else ""
    what = f"Error so far after each pruned block{words.of(layer)}; a line ends at the final error{dotted}"
    top = 1.06 * max(float(curve.max()) for curve in curves.values()) or 1.0
    figure.update_yaxes(range=[0, top])
    figure.update_xaxes(range=[-0.02 * blocks, blocks * 1.02], dtick=shapes.whole_step(blocks), zeroline=False)
    listed = []
    for name, value in sorted(final.items(), key=lambda pair: pair[1]):
        label, said = run_style(name).label, words.number(value)
        if reference is not None and label != reference[0]:
            said += f", {verdicts.says_change(value, reference[1], reference[0], '')}"
        listed.append(f"{label}: {said}")
    caption = f"Final error, lowest first: {'; '.join(listed)}."
    caption += _against_random(curves)
    alt = f"Line chart of the error against pruned blocks for {words.count(len(final), 'sweep')}"
    table = pd.DataFrame({name: pd.Series(curve) for name, curve in curves.items()})
    table = table.rename_axis("pruned_blocks").reset_index()
    height = max(420, 200 + shapes.LABEL_LINE * sum(1 + text.count("<br>") for _, text, *_ in ends))
    frame = {"x": "pruned blocks", "y": style.ERROR, "height": height}
    drawing = style.finish(figure, theme, finding, what, caption, alt, table, **frame)
    shapes.end_labels(figure, blocks, ends, top)
    return drawing


def _curve_finding(final: Mapping[str, float], curve: np.ndarray) -> str:
    """Who ends lowest; of one sweep alone, whose curve is given, which block brings most of the error."""
    best = min(final, key=final.__getitem__)
    if len(final) > 1:
        lowest = [run_style(name).label for name in final if verdicts.is_same(final[name], final[best])]
        ends = "ends lowest" if len(lowest) == 1 else "end lowest"
        return f"{words.listing(lowest)} {ends}, at {words.number(final[best])}"
    rises = np.diff(curve)
    share, step = rises.max() / curve[-1] if curve[-1] else 0.0, int(rises.argmax()) + 1
    return f"{run_style(best).label}: step {step} of {len(rises)} brings {words.percent(share, 0)} of the error"


def relative_curves(results: Mapping[str, LayerResult], dense_energy: float) -> dict[str, np.ndarray]:
    """Of each sweep, `so_far` relative to tr(W H Wᵀ); recorded sweeps, `trace="errors"` is enough."""
    if dense_energy <= 0:
        raise RoseError("This layer puts out nothing on these tokens; choose a layer with a signal.")
    return {name: so_far(result) / dense_energy for name, result in results.items()}


def trace_of(result: LayerResult) -> SweepTrace:
    """The recorded sweep; raises RoseError where it was not recorded."""
    if result.trace is None:
        raise RoseError("Errors block by block can only be shown of a sweep that was recorded, with trace=True.")
    return result.trace


def so_far(result: LayerResult) -> np.ndarray:
    """Undamped squared error before the sweep and after each block, (blocks + 1,); the last is the final error."""
    return shrinking.to_numpy(trace_of(result).error_so_far(result.added_damping))


def runs(names: Iterable[str]) -> dict[str, list[str]]:
    """Sweeps by what they are drawn as: random orders that differ in their seed are one."""
    grouped: dict[str, list[str]] = {}
    for name in names:
        order, plus, budget = name.partition(" + ")
        grouped.setdefault(f"{RANDOM}{plus}{budget}" if order.startswith(f"{RANDOM}:") else name, []).append(name)
    return {name if len(members) > 1 else members[0]: members for name, members in grouped.items()}


def _mean_label(label: str, seeds: int) -> str:
    return f"{label}, mean of {words.word(seeds)} seeds"


def _seeds(table: pd.DataFrame, by: list[str]) -> tuple[int, str]:
    """How many random orders stand behind each random entry, and a sentence on how far they lie apart."""
    rows = table[table["order"] == RANDOM]
    if rows.empty:
        return 0, ""
    groups = rows.groupby(by)["relative_error"]
    count = int(groups.size().max())
    if count < 2:
        return count, ""
    apart = float((groups.max() / groups.min() - 1).max())
    return count, f" The {words.count(count, 'seed')} of random order lie up to {words.percent(apart)} apart."


def _band(figure: go.Figure, curves: np.ndarray, look: Style) -> None:
    """From the lowest to the highest of these curves, (seeds, blocks + 1)."""
    there = np.arange(curves.shape[1])
    x, y = np.concatenate([there, there[::-1]]), np.concatenate([curves.max(0), curves.min(0)[::-1]])
    look = look._replace(label=f"{look.label}, lowest to highest")
    fill: dict[str, Any] = {"mode": "lines", "fill": "toself", "fillcolor": look.colour, "opacity": 0.25}
    shapes.lines(figure, x, y, look, "", width=0, **fill)


def _against_random(curves: Mapping[str, np.ndarray]) -> str:
    """How many random orders end below ROSE's; nothing where there is nothing to compare."""
    seeds = [float(curve[-1]) for name, curve in curves.items() if name.startswith(f"{RANDOM}:") and " + " not in name]
    if "two_level" not in curves or len(seeds) < 2:
        return ""
    rose = float(curves["two_level"][-1])
    better = sum(seed < rose for seed in seeds)
    return (
        f" Random orders under the block budget end between {words.number(min(seeds))} and {words.number(max(seeds))}; "
        f"{words.out_of(better, len(seeds), 'seed')} {'ends' if better == 1 else 'end'} below "
        f"{NAME_OF_RUN['two_level', 'block']} ({words.number(rose)})."
    )


def given_up(
    results: Mapping[str, LayerResult], dense_energy: float, *, layer: str = "", theme: Theme = "light"
) -> Drawing:
    """What every block must give up in an order, under both budgets side by side; a panel for each order.

    Args:
        results: by run, as for `error_curve`: each order under the block budget and under the layer budget.
        dense_energy: tr(W H Wᵀ), what losses are relative to.
    """
    orders = [name for name in results if not name.endswith(" + layer")]
    figure = make_subplots(
        rows=1, cols=len(orders), shared_yaxes=True, horizontal_spacing=0.04,
        subplot_titles=[palette.order_style(order).label for order in orders],
    )  # fmt: skip
    looks = {"": Style(palette.SLATE, "block budget"), " + layer": Style(palette.AZURE, "layer budget", pattern="/")}
    rows = []
    for column, order in enumerate(orders, 1):
        for budget, look in looks.items():
            result = results[order + budget]
            trace = trace_of(result)
            lost = shrinking.to_numpy(trace.lost).astype(np.float64) / (dense_energy or 1.0)
            size = np.array(result.order.widths) * result.plan.importance.shape[0]
            share = shrinking.to_numpy(trace.removed) / size
            steps = np.arange(1, len(lost) + 1)
            texts = [words.percent(float(part), 0) for part in share] if len(lost) <= NAMED else [""] * len(lost)
            hover = f"%{{x}}. pruned, {look.label}<br>gives up %{{customdata:.1%}} of its weights<br>loses %{{y:.4g}}"
            at = {"row": 1, "col": column, "showlegend": column == 1}
            shapes.bars(figure, steps, lost, look, hover, text=texts, customdata=share, **at)
            named = {"order": order, "budget": look.label.removesuffix(" budget"), "step": steps}
            rows.append(pd.DataFrame(named | {"share_removed": share, "lost": lost}))
        figure.update_xaxes(title_text="pruned block", dtick=shapes.whole_step(len(lost)), row=1, col=column)
    table = pd.concat(rows, ignore_index=True)
    most = table[table["budget"] == "block"].groupby("order", sort=False)["lost"].max()
    names = [f"{palette.order_style(order).label.partition(',')[0].lower()} order" for order in orders]
    listed = " and ".join(f"{words.number(most[order])} in {name}" for order, name in zip(orders, names, strict=True))
    finding = f"Giving up an equal share costs one block up to {listed}"
    what = (
        f"Loss of each block before compensation{words.of(layer)}, relative to the output's energy, in the order "
        "visited; printed: weights it gives up"
    )
    total = table.groupby(["order", "budget"])["lost"].sum()
    said = [
        f"{words.sentence(name)}: blocks lose {words.number(total[order, 'block'])} in all under the block budget, of "
        f"which {words.number(results[order].relative_error)} remains after compensation; under the layer budget "
        f"{words.number(total[order, 'layer'])} and {words.number(results[order + ' + layer'].relative_error)}."
        for order, name in zip(orders, names, strict=True)
    ]
    figure.update_yaxes(range=[0, 1.12 * float(table["lost"].max()) or 1])
    figure.update_yaxes(title_text="loss before compensation", col=1)
    alt = f"Bars of what each block loses, under both budgets, in {words.count(len(orders), 'order')}"
    frame = {"height": 460, "legend": True, "headroom": 20}
    return style.finish(figure, theme, finding, what, " ".join(said), alt, table, **frame)


def run_name(result: LayerResult) -> str:
    """A sweep by its order, and its budget where that is layer-wide."""
    return result.order.name + (" + layer" if result.budget == "layer" else "")


def sweep_style(result: LayerResult) -> Style:
    """A sweep by its order, in the order's colour, and its budget where that is layer-wide: dotted, with open marks."""
    look = palette.order_style(result.order.name)
    if result.budget != "layer":
        return look
    return look.opened()._replace(label=f"{look.label}, layer budget", dash="dot")


def run_style(name: str) -> Style:
    """A sweep named by its order, with the block budget, or "global + layer": the order's colour, with another dash.

    It has the name of the method that makes this sweep, where one does.
    """
    order, _, budget = name.partition(" + ")
    look = palette.order_style(order)
    label = NAME_OF_RUN.get((order, budget or "block"), f"{look.label}, {budget or 'block'} budget")
    if budget != "layer":
        return look._replace(label=label)
    return look._replace(label=label, dash={"solid": "dot", "dash": "dashdot", "longdash": "longdashdot"}[look.dash])


def damage_split(
    result: LayerResult, inside: Any, *, step: int | None = None, layer: str = "", theme: Theme = "light"
) -> Drawing:
    """What each block's pruning would have cost, split into what remained and what other columns absorbed, and where.

    Args:
        result: traced.
        inside: Σ e² of each block if its own columns alone could compensate, (blocks,).
        step: the block pruned at it, counted from 0, is marked.
    """
    trace = trace_of(result)
    lost, error = (shrinking.to_numpy(part).astype(np.float64) for part in (trace.lost, trace.error))
    alone = np.clip(shrinking.to_numpy(inside), error, np.maximum(lost, error))  # rounding may go beyond
    names = ["mixed" if block is None else f"block {block}" for block in visited_blocks(result.plan, result.order)]
    steps, figure = np.arange(1, len(error) + 1), go.Figure()
    inner = Style(palette.VIOLET, "absorbed inside the block, by columns to the right", pattern=".")
    parts = {
        "remains": (Style(palette.ORANGE, "error that remains"), error),
        "later": (Style(palette.TEAL, "absorbed by later blocks", pattern="/"), alone - error),
        "inside": (inner, lost - alone),
    }
    for look, values in parts.values():
        hover = f"%{{x}}. pruned, %{{customdata}}<br>{look.label} %{{y:.4g}}"
        shapes.bars(figure, steps, values, look, hover, customdata=names)
    if step is not None and 0 <= step < len(error):
        shapes.outline(figure, step + 0.56, step + 1.44, 0, (float(lost.max()) or 1.0) * 1.03)
    total, last = float(lost.sum()) or 1.0, float(lost[-1]) or 1.0
    by_later, by_own = (words.percent(float(parts[part][1].sum()) / total, 0) for part in ("later", "inside"))
    finding = f"Later blocks absorb {by_later} of the error, the block itself {by_own}"
    named = sweep_style(result).label
    what = f"{named}: squared error of each block{words.of(layer)}, damping included, in the order visited"
    figure.update_layout(barmode="stack")
    figure.update_xaxes(dtick=shapes.whole_step(len(error)))
    if len(error) <= NUMBERED:
        texts = [f"{step}<br>{name}" if len(error) <= NAMED else str(step) for step, name in enumerate(names, 1)]
        figure.update_xaxes(tickvals=steps.tolist(), ticktext=texts)
    caption = (
        f"Without compensation this would have cost {words.number(float(lost.sum()))}; "
        f"{words.number(float(error.sum()))} remained. No block comes after the last one: the "
        f"{words.percent(float(lost[-1] - error[-1]) / last, 0)} that is absorbed there goes to the "
        f"{result.order.widths[-1]} columns of the block itself, each helped by those to its right."
    )
    table = pd.DataFrame(
        {
            "step": steps,
            "block": names,
            "removed_weights": shrinking.to_numpy(trace.removed),
            "lost": lost,
            "error": error,
            "compensated_by_later_blocks": alone - error,
            "compensated_inside": lost - alone,
        }
    )
    frame = {"x": "pruned block (visited first to last)", "y": "squared error  Σ e²", "legend": True}
    alt = "Stacked bars of the error by pruned block"
    return style.finish(figure, theme, finding, what, caption, alt, table, **frame)


# What position, sparsity and budget do


def position_curve(
    table: pd.DataFrame, *, block: int, base: str, place: int, layer: str = "", theme: Theme = "light"
) -> Drawing:
    """Final error against the position at which a block is pruned, all others in the order `base` (paper's Figure 1c).

    The table has columns `position` (0 = first) and `relative_error`; `place` is where `base` itself has the block.
    """
    rows = table.sort_values("position")
    x, y = rows["position"].to_numpy(np.int64), rows["relative_error"].to_numpy(np.float64)
    figure = go.Figure()
    hover = "pruned as number %{x}<br>final error %{y:.4g}"
    shapes.lines(figure, x + 1, y, Style(palette.AZURE, "final error"), hover, size=9)
    look = palette.order_style(base)
    its = f"its place in {look.label.lower()} order"
    shapes.rings(figure, [place + 1], y[x == place], its, size=18, colour=look.colour)
    best, worst = int(x[y.argmin()]), int(x[y.argmax()])
    first, last = float(y[0]), float(y[-1])
    finding = f"Pruned last, block {block} leaves {verdicts.says_change(last, first, 'pruned first')}"
    what = f"Final error{words.of(layer)} when block {block} is pruned at each position, one real sweep per mark"
    figure.update_yaxes(range=[0, float(y.max()) * 1.1 or 1])
    figure.update_xaxes(dtick=shapes.whole_step(len(x)))
    caption = (
        f"The error is lowest, {words.number(float(y.min()))}, at position {best + 1} and highest, "
        f"{words.number(float(y.max()))}, at position {worst + 1} of {len(x)}."
    )
    alt, table = f"Line chart of final error against the position of block {block}", rows.reset_index(drop=True)
    frame = {"x": f"position at which block {block} is pruned", "y": style.ERROR, "legend": True}
    return style.finish(figure, theme, finding, what, caption, alt, table, **frame)


def order_bars(table: pd.DataFrame, *, budget: str = "block", layer: str = "", theme: Theme = "light") -> Drawing:
    """Final error by sparsity for several orders of one budget, natural order as a baseline (the paper's order bars).

    The table has columns `order`, `sparsity` and `relative_error`.
    """
    orders = list(dict.fromkeys(table["order"]))
    run = "" if budget == "block" else f" + {budget}"
    labels = {name: run_style(name + run).label for name in orders}
    seeds, spread = _seeds(table, ["sparsity"])
    if seeds > 1:
        labels[RANDOM] = _mean_label(labels[RANDOM], seeds)
    wide = table.pivot_table(index="sparsity", columns="order", values="relative_error", sort=False)
    wide = wide.sort_index()
    groups = [words.percent(float(value), 0) for value in wide.index]
    figure = go.Figure()
    for name, label in labels.items():
        look = palette.order_style(name)._replace(label=label)
        hover = f"{label}<br>sparsity %{{customdata}}<br>final error %{{y:.4g}}"
        shapes.bars(figure, np.arange(len(groups)), wide[name], look, hover, customdata=groups)
    for i, level in enumerate(wide["natural"]):
        figure.add_shape(type="line", x0=i - 0.45, x1=i + 0.45, y0=level, y1=level, line=shapes.dashed(theme))
    figure.update_xaxes(tickvals=list(range(len(groups))), ticktext=groups, showgrid=False)
    natural = labels["natural"]
    mean = wide.div(wide["natural"], axis=0).mean().sort_values()
    best = str(mean.idxmin())
    finding = f"{labels[best]} has the lowest error"
    if best != "natural":
        finding = f"{labels[best]} leaves {verdicts.says_change(mean[best], 1.0, natural)}"
    what = f"Final error by sparsity{words.of(layer)}, {budget} budget; dashed: {natural}"
    ranked = "; ".join(f"{labels[str(name)]}: {value:.3f}" for name, value in mean.items())
    sparsities = words.count(len(groups), "sparsity", "sparsities")
    caption = f"Mean over {sparsities}, relative to {natural}: {ranked}.{spread}"
    frame = {"x": "sparsity (fraction of weights removed)", "y": style.ERROR, "height": 460, "legend": True}
    alt = "Grouped bars of final error by sparsity and order"
    return style.finish(figure, theme, finding, what, caption, alt, wide.reset_index(), **frame)


def order_budget_matrix(table: pd.DataFrame, *, layer: str = "", theme: Theme = "light") -> Drawing:
    """Final error of every order under every budget, relative to SparseGPT: natural order with the block budget."""
    wide = table.pivot_table(index="order", columns="budget", values="relative_error", sort=False)
    if not float(wide.loc["natural", "block"]) > 0:
        raise RoseError("SparseGPT makes no error here, so nothing can be compared with it; choose a sparsity above 0.")
    budgets = [budget for budget in ("block", "layer") if budget in wide]
    ratio = wide[budgets] / wide.loc["natural", "block"]
    change = ratio.to_numpy(np.float64) - 1
    limit = float(np.nanmax(np.abs(change))) or 0.01
    labels = {str(order): palette.order_style(str(order)).label for order in ratio.index}
    seeds, spread = _seeds(table, ["budget"])
    if seeds > 1:
        labels[RANDOM] = _mean_label(labels[RANDOM], seeds)
    printed = ratio.map(lambda value: "–" if np.isnan(value) else f"{value:.3f}").to_numpy(str)
    cells = [
        [
            f'<span style="color:{palette.text_on(0.5 + value / limit / 2, palette.DIVERGING[theme])}">'
            + "<br>".join(filter(None, (text, NAME_OF_RUN.get((order, budget)))))
            + "</span>"
            for budget, text, value in zip(budgets, row, values, strict=True)
        ]
        for order, row, values in zip(labels, printed, np.nan_to_num(change), strict=True)
    ]
    figure = go.Figure(
        go.Heatmap(
            z=change.astype(np.float32),
            x=[f"{b} budget" for b in budgets],
            y=list(labels.values()),
            text=cells,
            texttemplate="%{text}",
            textfont={"size": 16},
            colorscale=palette.DIVERGING[theme],
            zmin=-limit,
            zmax=limit,
            xgap=2,
            ygap=2,
            colorbar=shapes.colourbar("error against SparseGPT", tickformat=style.PERCENT),
            hovertemplate="%{y} order, %{x}<br>%{text} of SparseGPT's error<extra></extra>",
        )
    )
    best = np.unravel_index(np.nanargmin(change), change.shape)
    name, budget = str(ratio.index[best[0]]), str(budgets[best[1]])
    run = NAME_OF_RUN.get((name, budget), f"{palette.order_style(name).label} order with the {budget} budget")
    finding = f"{run} has the least error, {printed[best]} of SparseGPT's"
    what = f"Final error{words.of(layer)} ÷ SparseGPT's (natural order, block budget); below 1: less error"
    ink = palette.INKS[theme]
    bare = {"showgrid": False, "ticks": "", "linecolor": ink.grid}
    figure.update_yaxes(bare, autorange="reversed")
    figure.update_xaxes(bare)
    order_effect = 1 - float(ratio["block"].min())
    budget_effect = 1 - float(ratio.loc["natural"].min())
    caption = (
        f"Order alone (under the block budget) saves at most {words.percent(order_effect)}, budget alone "
        f"(in natural order) {words.percent(budget_effect)}, both together "
        f"{words.percent(-float(np.nanmin(change)))}.{spread}"
    )
    columns = {budget: f"relative_error_{budget}_budget_over_baseline" for budget in budgets}
    table, alt = ratio.reset_index().rename(columns=columns), "Table of relative error by order and budget, coloured"
    frame = {"x": "how many weights each block gives up", "height": 190 + 52 * len(labels)}
    return style.finish(figure, theme, finding, what, caption, alt, table, **frame)


def drawings(paper: PaperFigures) -> list[Drawing]:
    """Figure 1a with the losses of blocks before and after reordering, Figure 1c, where there are positions to choose
    from, and the bars of orders."""
    layer = words.short_layer(paper.layer)
    curves = {order: np.array(curve) for order, curve in paper.curves.items()}
    found = [error_curve(curves, layer=layer)]
    if len(paper.losses) > 1:
        errors = {order: np.diff(curves[order]) for order in ("natural", "two_level")}
        found.append(losses_in_order(np.array(paper.losses), paper.visited, errors, layer=layer))
    if len(paper.positions) > 1:
        table = pd.DataFrame(paper.positions, columns=["position", "relative_error"])
        found.append(position_curve(table, block=paper.block, base="natural", place=paper.place, layer=layer))
    bars = pd.DataFrame(paper.bars, columns=["order", "sparsity", "relative_error"])
    return [*found, order_bars(bars, layer=layer)]


GIVEN = "given"
# How sentences speak of a basis.
SPOKEN = {"random": "a random basis", "gathered": "the gathered basis", "learned": "the learned basis"}


def basis_errors(
    table: pd.DataFrame, labels: Mapping[str, str], chosen: str = GIVEN, *, layer: str = "", theme: Theme = "light"
) -> Drawing:
    """Held-out error of each method in each basis as bars, calibration error as a line in each; the chosen is outlined.

    Without held-out errors bars are of calibration. `labels`: by basis, "given" among them, in the order of the groups.
    The table has a row per basis and method: basis, method, relative_error, held_out_error (NaN where there is none).
    """
    column, tokens = style.judged(table)
    has_held_out = tokens == "held-out"
    methods = list(dict.fromkeys(table["method"]))
    wide, fitted = (
        table.pivot_table(index="basis", columns="method", values=name, sort=False).reindex(list(labels))
        for name in (column, "relative_error")
    )
    figure, width = go.Figure(), 0.8 / len(methods)
    groups = np.arange(len(labels))
    for place, method in enumerate(methods):
        look, x = palette.method_style(method), groups - 0.4 + width * (place + 0.5)
        hover = f"{look.label}, %{{customdata}}<br>{tokens} error %{{y:.4g}}"
        shapes.bars(figure, x, wide[method], look, hover, customdata=list(labels.values()), width=0.9 * width)
    if has_held_out:
        ends = np.concatenate([groups - 0.4 + width * (place + 0.5) for place in range(len(methods))])
        y = np.concatenate([fitted[method] for method in methods])
        ink = palette.INKS[theme].text
        look = palette.Style(ink, "Calibration", symbol="line-ew")
        marker = {"line": {"width": 2.5, "color": ink}}
        shapes.points(figure, ends, y, look, "calibration error %{y:.4g}", size=11, marker=marker)
    at = list(labels).index(chosen)
    shapes.outline(figure, at - 0.47, at + 0.47, 0, 1, yref="paper")
    figure.update_xaxes(tickvals=groups, ticktext=list(labels.values()), showgrid=False)
    lead, seen = methods[0], chosen if chosen != GIVEN else str(wide[methods[0]].idxmin())
    base = wide.loc[GIVEN]
    finding = f"No basis has less {tokens} error than the one as given"
    if seen != GIVEN:
        change = verdicts.says_change(wide.loc[seen, lead], base[lead], "as given")
        finding = f"In {SPOKEN[seen]} {palette.method_style(lead).label} makes {change}"
    line = "; line in a bar: on calibration tokens" if has_held_out else ""
    what = f"{words.sentence(tokens)} error{words.of(layer)} in each basis{line}; the chosen one is outlined"
    shown = seen if seen != GIVEN else next(name for name in labels if name != GIVEN)
    said = "; ".join(
        f"{palette.method_style(one).label} {words.number(wide.loc[shown, one])}, "
        f"{verdicts.says_change(wide.loc[shown, one], base[one], 'as given', '')}"
        for one in methods
    )
    caption = f"{words.sentence(tokens)} error in {SPOKEN[shown]}: {said}."
    alt = f"Grouped bars of {tokens} error by basis and method"
    frame = {"x": "basis of the heads", "y": style.ERROR, "height": 460, "legend": True}
    return style.finish(figure, theme, finding, what, caption, alt, table, **frame)


def sentence(table: pd.DataFrame) -> str:
    """What the bases do to SparseGPT's error, in numbers; table as above."""
    rows = table[table["method"] == "sparsegpt"].set_index("basis")
    column, tokens = style.judged(rows)
    errors = rows[column]
    given, parts = float(errors[GIVEN]), []
    for name in ("gathered", "learned", "random"):
        before, after = words.apart(given, float(errors[name]))
        verb = "stays at" if before == after else "falls" if errors[name] < given else "rises"
        parts.append((SPOKEN[name], verb, before, after))
    (first, verb, before, after), *others = parts
    whose = f"SparseGPT's {tokens} error"
    moved = f"{verb} {before}" if verb == "stays at" else f"{verb} from {before} to {after}"
    rest = "; ".join(
        f"in {where} it {how} {end}" if how == "stays at" else f"in {where} it {how} to {end}"
        for where, how, _, end in others
    )
    return f"In {first} {whose} {moved}; {rest}. The dense model computes the same in all four."


def strength_curve(
    points: Sequence[tuple[float, float, float]], marked: float, *, threshold: float = THRESHOLD, theme: Theme = "light"
) -> Drawing:
    """What two-level order gains on a synthetic layer whose one block grows stronger, above all at strength `marked`.

    The points are (columnar strength, relative range, error of two-level over natural order).
    """
    table = pd.DataFrame(sorted(points), columns=["strength", "relative_range", "error_ratio"])
    table["error_saved"] = 1 - table["error_ratio"]
    columnar = table["relative_range"] > threshold
    look, figure = palette.order_style("two_level"), go.Figure()
    hover = "strength %{x:.3g}<br>saves %{y:.1%}<br>relative range %{customdata:.3f}"
    symbols = np.where(columnar, "circle", "circle-open").tolist()
    marker = {"symbol": symbols, "line": {"width": 2, "color": look.colour}}
    behind = {"customdata": table["relative_range"], "marker": marker}
    shapes.lines(figure, table["strength"], table["error_saved"], look, hover, size=11, **behind)
    figure.add_vline(x=marked, line=shapes.CHOSEN)
    # The title is of the strength that the page stands at, so that moving the slider says something new.
    here = table.loc[(table["strength"] - marked).abs().idxmin()]
    verb, amount = "saves" if here["error_saved"] > 0 else "costs", words.percent(abs(float(here["error_saved"])))
    finding = f"At strength {words.number(float(here['strength']))}, two-level order {verb} {amount} of the error"
    what = f"Error saved against natural order on a generated layer; filled: columnar, above {threshold:.2f}"
    low, high = float(table["error_saved"].min()), float(table["error_saved"].max())
    figure.update_xaxes(zeroline=False)
    room = max(high, 0) - min(low, 0) or 0.01
    figure.update_yaxes(tickformat=style.PERCENT, range=[min(low, 0) - 0.08 * room, max(high, 0) + 0.12 * room])
    crossing = table["strength"][columnar]
    where = (
        f"the layer counts as columnar from strength {words.number(float(crossing.iloc[0]))} on"
        if len(crossing)
        else "the layer counts as columnar at none of these strengths"
    )
    first = float(table["error_saved"].iloc[0])
    caption = f"At strength {words.number(float(table['strength'].iloc[0]))} it saves {words.percent(first)}; {where}."
    alt = "Line chart of the error saved by two-level order against columnar strength"
    axes = {"x": "columnar strength (0: all blocks alike)", "y": "error saved by two-level order"}
    return style.finish(figure, theme, finding, what, caption, alt, table, **axes)
