"""Methods against each other: on single layers, and over several calibration seeds with how far these lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import words
from app.figures import marks, palette, style
from app.figures.palette import Theme
from app.figures.style import Drawing
from rose import RoseError, verdicts
from rose.model.measure.comparison import over_seeds, results_of
from rose.verdicts import Result

Measure = Literal["perplexity", "mean_held_out_error"]
NAMED = 4  # runs in a title
TICKS = [digit * 10**power for power in range(-3, 9) for digit in (1, 2, 5)]
LOG_TICKS = {"type": "log", "tickvals": TICKS, "ticktext": [f"{tick:g}" for tick in TICKS]}
NUMBERED = 16  # bars up to which each has its number above it
MEASURES: dict[Measure, str] = {"perplexity": "perplexity", "mean_held_out_error": "mean relative error, held-out"}


def over_seeds_bars(
    table: pd.DataFrame, sparsity: str, *, column: Measure = "perplexity", theme: Theme = "light"
) -> Drawing:
    """Mean of every method at one sparsity, lowest first, with the range over seeds; marks are single seeds.

    A method of which a run came to no finite number has no mean, and is named in the caption.
    """
    found = sorted(results_of(table, sparsity, column), key=lambda one: one.value)
    results = [replace(one, name=palette.method_style(one.method).label) for one in found]
    if not results:
        raise RoseError(f"No run at sparsity {sparsity} has a {MEASURES[column]}; choose another.")
    looks = [palette.method_style(one.method)._replace(label=one.name) for one in results]
    listed, figure, means = [], go.Figure(), words.apart(*(one.value for one in results))
    for look, one, mean in zip(looks, results, means, strict=True):
        low, high = min(one.draws.values()), max(one.draws.values())
        listed.append(f"{look.label} {mean} ± {words.number((high - low) / 2)}")
        marks.points(
            figure,
            [look.label],
            [one.value],
            look,
            f"{look.label}<br>mean %{{y:.4g}}",
            size=22,
            marker={"symbol": "line-ew", "line": {"width": 3, "color": look.colour}},
            error_y=_whiskers(one.value, low, high, thickness=2, width=8),
            mode="markers+text",
            text=[f"  {mean}"],
            textposition="middle right",
        )
        hover, pale = f"{look.label}, seed %{{customdata}}<br>%{{y:.4g}}", {"opacity": 0.75}
        x, y = [look.label] * len(one.draws), list(one.draws.values())
        marks.points(figure, x, y, look, hover, marker=pale, customdata=list(one.draws))
    (ranking,) = verdicts.rank(results, f"mean {MEASURES[column]}")
    what = f"Mean (line), range (whiskers) and single calibration seeds (marks) at sparsity {sparsity}"
    if style.spread([value for one in results for value in one.draws.values()]) > style.LOG_ABOVE:
        what += "; log scale"
        figure.update_yaxes(type="log")
    figure.update_xaxes(range=[-0.5, len(results) - 0.3])
    seeds = words.count(max(len(one.draws) for one in results), "seed")
    caption = f"Mean ± half the range over up to {seeds}: {', '.join(listed)}. {ranking.caption}".strip()
    rows = table[table["sparsity"] == sparsity]
    lost = list(dict.fromkeys(rows["method"][~np.isfinite(rows[column])]))
    if lost:
        caption += (
            f" Without {', '.join(palette.method_style(method).label for method in lost)}: not finite for a seed."
        )
    alt = f"Means and spread of {MEASURES[column]} by method"
    kept = over_seeds(rows[~rows["method"].isin(lost)], [*MEASURES, "seconds"])
    kept = kept.sort_values(column, kind="stable").reset_index(drop=True)
    return style.finish(figure, theme, ranking.finding, what, caption, alt, kept, y=MEASURES[column], height=440)


def time_and_perplexity(
    results: Sequence[Result],
    *,
    dense: float | None = None,
    time: str = "time of pruning, s",
    same_time: float = verdicts.SAME_TIME,
    theme: Theme = "light",
) -> Drawing:
    """What each run costs and what it is worth, with the Pareto front beyond noise, as `rose.verdicts.front` finds it.

    Runs with target layer are grey and open, so that colours tell methods apart. `time`: title of the axis, where
    `seconds` are in another unit.
    """
    known = [one for one in results if np.isfinite([one.seconds, one.value]).all()]
    if not known:
        raise RoseError("No run has both a time and a perplexity; prune a model and evaluate it.")
    known.sort(key=lambda one: (one.seconds, one.value))
    front, ink, figure = verdicts.front(known, same_time), palette.INKS[theme], go.Figure()
    x, y = np.array([one.seconds for one in known]), np.array([one.value for one in known])
    heights = np.append(y, [] if dense is None else [dense])
    is_log = [style.spread(values) > style.LOG_ABOVE for values in (x, heights)]
    spans = [_span(x, is_log[0]), _span(heights, is_log[1])]
    corners: list[tuple[float, float]] = []
    if len(front.steps) > 1:
        corners = _front(x, y, front.steps, 10 ** spans[0][1] if is_log[0] else spans[0][1])
        look = palette.Style(ink.muted, "Pareto front", "dot")
        along, height = [corner[0] for corner in corners], [corner[1] for corner in corners]
        marks.lines(figure, along, height, look, "", mode="lines", width=2)
    labels = _labels(known)
    for one, label in zip(known, labels, strict=True):
        look = palette.method_style(one.method)._replace(label=label)
        if one.target == "layer":
            look = look.opened()._replace(colour=ink.muted)
        hover = f"{one.name}<br>perplexity %{{y:.4g}}<br>{time} %{{x:.4g}}"
        draws = [*one.draws.values()] or [one.value]
        reach = _whiskers(one.value, min(draws), max(draws)) if len(draws) > 1 else None
        edge = {"line": {"width": 2, "color": look.colour}}
        marks.points(figure, [one.seconds], [one.value], look, hover, size=13, marker=edge, error_y=reach)
    what = "Perplexity against time, lower is better in both"
    what += "; dotted: Pareto front of clear differences" if len(front.steps) > 1 else ""
    what += "; grey, open: target layer" if {one.target for one in known} == {"layer", "dense"} else ""
    for axis, log, span in zip("xy", is_log, spans, strict=True):
        figure.update_layout({f"{axis}axis": {"range": span} | (LOG_TICKS if log else {})})
    if any(is_log):
        what += "; log scale" + ("s" if all(is_log) else " of time" if is_log[0] else " of perplexity")
    if not all(is_log):
        what += "; axes do not begin at 0" if not any(is_log) else "; the other does not begin at 0"
    table = pd.DataFrame(
        {
            "run": [one.name for one in known],
            "method": [one.method for one in known],
            "target": [one.target for one in known],
            "seconds": x,
            "perplexity": y,
            "on_front": front.is_on,
        }
    )
    finding = _trade_off([known[step] for step in front.steps], known)
    values = zip(known, words.apart(*y), strict=True)
    listed = "; ".join(f"{one.name}: {value} at {words.number(one.seconds)}" for one, value in values)
    caption = f"Perplexity at {time}, fastest first: {listed}."
    if len(known) > 1:
        caption += (
            " The front joins only runs that differ beyond noise: in perplexity by a paired interval, in time by a "
            f"factor of {same_time:g}."
        )
    alt = f"Scatter chart of perplexity against {time}"
    drawing = style.finish(figure, theme, finding, what, caption, alt, table, x=time, y="perplexity", height=600)
    if dense is not None:
        figure.add_hline(y=dense, line=marks.dashed(theme, 1.5))
        where = {"x": 1, "xref": "paper", "xanchor": "right", "yanchor": "bottom"}
        marks.note(figure, f"dense, {words.number(dense)}", theme, y=np.log10(dense) if is_log[1] else dense, **where)
    across, up = _exponents(x, y, is_log)
    inks = [ink.muted if one.target == "layer" else ink.text for one in known]
    edges = np.reshape(corners, (-1, 2))
    steps = list(zip(*_exponents(edges[:, 0], edges[:, 1], is_log), strict=True))
    marks.name_points(figure, across, up, labels, spans, inks, steps)
    return drawing


def _trade_off(front: Sequence[Result], known: Sequence[Result]) -> str:
    """The runs on the front, or which is best where only one is."""
    if len(front) > 1:
        names = [one.name.replace(", target ", " with target ") for one in front]
        return f"Pareto front: {words.listing(names, NAMED)}"
    ranked = verdicts.says_ranking(verdicts.rank(known))
    return f"{ranked}; no trade-off with time is clear" if len(known) > 1 else ranked


def _front(x: np.ndarray, y: np.ndarray, steps: Sequence[int], right: float) -> list[tuple[float, float]]:
    """Corners of the front: on at the same perplexity up to the next run on it, from the last to the right end."""
    corners: list[tuple[float, float]] = []
    for step, end in zip(steps, [*x[list(steps[1:])], right], strict=True):
        corners += [(float(x[step]), float(y[step])), (float(end), float(y[step]))]
    return corners


def _exponents(x: np.ndarray, y: np.ndarray, is_log: Sequence[bool]) -> list[np.ndarray]:
    """Values as axes place them: by their exponents on a log axis."""
    return [np.log10(values) if log else values for values, log in zip((x, y), is_log, strict=True)]


def _labels(results: Sequence[Result]) -> list[str]:
    """The methods' names, or those of the runs where a method stands there more than once."""
    keys = [(one.method, one.target) for one in results]
    labels = [palette.method_style(one.method).label for one in results]
    return [label if keys.count(key) == 1 else one.name for one, key, label in zip(results, keys, labels, strict=True)]


def _span(values: np.ndarray, log: bool) -> list[float]:
    """The range of an axis: where the marks are, with room for their names."""
    known = np.log10(values) if log else values
    low, high = float(known.min()), float(known.max())
    room = 0.12 * ((high - low) or abs(high) or 1.0)
    return [low - room, high + room]


def _whiskers(middle: float, lowest: float, highest: float, thickness: float = 1.5, width: float = 6) -> dict[str, Any]:
    reach = {"array": [highest - middle], "arrayminus": [middle - lowest]}
    return {"type": "data", "symmetric": False, "thickness": thickness, "width": width} | reach


def method_errors(records: pd.DataFrame, *, column: str = "relative_error", theme: Theme = "light") -> Drawing:
    """Relative or held-out error of several methods on one or several layers, as bars."""
    wide = by_method(records, column)
    if wide.empty:
        raise RoseError("No error has been measured yet; prune a layer first.")
    looks = {method: palette.method_style(method) for method in wide.columns}
    names = [words.short_layer(layer) for layer in wide.index]
    figure, texts = go.Figure(), [words.apart(*errors) for errors in wide.to_numpy()]
    for place, (method, look) in enumerate(looks.items()):
        text = {"text": [row[place] for row in texts]} if wide.size <= NUMBERED else {}
        hover = f"%{{customdata}}<br>{look.label} %{{y:.4g}}"
        marks.bars(figure, names, wide[method], look, hover, customdata=wide.index, **text)
    mean = wide.mean().sort_values()
    labels = {method: look.label for method, look in looks.items()}
    finding = _error_finding(wide, labels) if len(wide) == 1 else layers_finding(wide, labels)
    if len(wide) == 1:
        figure.update_layout(bargap=0.5)
    held = "held-out" if column == "held_out_error" else "calibration"
    what = f"Relative error on {held} tokens, {names[0] if len(wide) == 1 else f'{len(wide)} layers, mean'}"
    errors = zip(mean.index, words.apart(*mean), strict=True)
    listed = ", ".join(f"{looks[method].label} {error}" for method, error in errors)
    caption = f"{'Mean error' if len(wide) > 1 else 'Error'}, lowest first: {listed}."
    x = "layer (decoder block · projection)" if len(wide) > 1 else ""
    frame = {"x": x, "y": style.ERROR, "legend": len(looks) > 1}
    alt = "Bar chart of relative error by method"
    return style.finish(figure, theme, finding, what, caption, alt, wide.reset_index(), **frame)


def layers_finding(wide: pd.DataFrame, labels: dict[str, str]) -> str:
    """What `rose.verdicts` says of several layers: the method of the lowest mean error against SparseGPT, or where that
    is not there against the next one."""
    mean = wide.mean().sort_values()
    if len(mean) == 1:
        return f"{labels[mean.index[0]]}: mean error {words.number(float(mean.iloc[0]))}"
    base = style.BASELINE if style.BASELINE in mean else mean.index[1]
    other = next(method for method in mean.index if method != base)
    rows = wide[[base, other]].set_axis(["first", "second"], axis=1).dropna()
    return f"Against {labels[base]}: {verdicts.says_layers(rows, (labels[base], labels[other]), 'error')}"


def _error_finding(wide: pd.DataFrame, labels: dict[str, str]) -> str:
    """Of one layer: who has the lowest error, against SparseGPT where that is there, and who is the same by
    construction."""
    mean = wide.mean()
    best, base = str(mean.idxmin()), style.BASELINE
    lowest = [labels[method] for method in labels if np.allclose(wide[method], wide[best], rtol=verdicts.SAME, atol=0)]
    if base not in labels or labels[base] in lowest or not mean[base] > 0:
        if len(lowest) == len(labels) > 1:
            return f"{words.listing(lowest)} have the same error"
        return f"{words.listing(lowest)} {'have' if len(lowest) > 1 else 'has'} the lowest error"
    have = "have" if len(lowest) > 1 else "has"
    return f"{words.listing(lowest)} {have} {verdicts.says_change(mean[best], mean[base], labels[base])}"


def by_method(records: pd.DataFrame, column: str) -> pd.DataFrame:
    """One of the errors as layer × method, both in the order in which they come; without rows that do not have it."""
    table = records.dropna(subset=[column])
    wide = table.pivot_table(index="layer", columns="method", values=column, sort=False)
    return wide.reindex(index=table["layer"].unique(), columns=table["method"].unique())
