"""Methods against each other: on single layers, and over several calibration seeds with how far these lie apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import words
from app.figures import maps, palette, shapes, style
from app.figures.palette import Style, Theme
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
        shapes.points(
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
        shapes.points(figure, x, y, look, hover, marker=pale, customdata=list(one.draws))
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
        shapes.lines(figure, along, height, look, "", mode="lines", width=2)
    labels = _labels(known)
    for one, label in zip(known, labels, strict=True):
        look = palette.method_style(one.method)._replace(label=label)
        if one.target == "layer":
            look = look.opened()._replace(colour=ink.muted)
        hover = f"{one.name}<br>perplexity %{{y:.4g}}<br>{time} %{{x:.4g}}"
        draws = [*one.draws.values()] or [one.value]
        reach = _whiskers(one.value, min(draws), max(draws)) if len(draws) > 1 else None
        edge = {"line": {"width": 2, "color": look.colour}}
        shapes.points(figure, [one.seconds], [one.value], look, hover, size=13, marker=edge, error_y=reach)
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
        figure.add_hline(y=dense, line=shapes.dashed(theme, 1.5))
        where = {"x": 1, "xref": "paper", "xanchor": "right", "yanchor": "bottom"}
        shapes.note(figure, f"dense, {words.number(dense)}", theme, y=np.log10(dense) if is_log[1] else dense, **where)
    across, up = _exponents(x, y, is_log)
    inks = [ink.muted if one.target == "layer" else ink.text for one in known]
    edges = np.reshape(corners, (-1, 2))
    steps = list(zip(*_exponents(edges[:, 0], edges[:, 1], is_log), strict=True))
    shapes.name_points(figure, across, up, labels, spans, inks, steps)
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
        shapes.bars(figure, names, wide[method], look, hover, customdata=wide.index, **text)
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


DUMBBELLS = 20
ERROR_OF = {
    "relative_error": "on calibration",
    "held_out_error": "on held-out",
    "target_error": "against the dense model's output on calibration",
    "held_out_target_error": "against the dense model's output on held-out",
}


def layer_map(
    records: pd.DataFrame,
    method: str,
    *,
    column: str = "relative_error",
    marked_layer: str | None = None,
    theme: Theme = "light",
) -> Drawing:
    """Error of every layer by one method as a map; beside SparseGPT in the same run, the share of its error saved."""
    table = records.dropna(subset=[column])
    rows = table[table["method"] == method].drop_duplicates("layer")
    if rows.empty:
        raise RoseError("No error has been measured yet; prune a model first.")
    name = ("held_out_" if column == "held_out_error" else "error_") + method
    values = rows.set_index("layer")[column]
    base = table[table["method"] == style.BASELINE].drop_duplicates("layer").set_index("layer")[column]
    if method != style.BASELINE and len(base):
        name, values = f"saved_{method}", 1 - values / base.where(base > 0)
    made = rows[["layer", "block_index", "projection"]].assign(**{name: values.reindex(rows["layer"]).to_numpy()})
    drawing = maps.model_map(made, name, marked_layer=marked_layer, theme=theme)
    said = f" Errors {ERROR_OF[column]} tokens."
    return replace(drawing, caption=drawing.caption + said, alt=drawing.alt + said)


def layer_differences(records: pd.DataFrame, *, column: str = "relative_error", theme: Theme = "light") -> Drawing:
    """Error by several methods on the 20 layers on which they differ most, as dumbbells."""
    wide = by_method(records, column)
    if wide.empty:
        raise RoseError("No error has been measured yet; prune a model first.")
    looks = {method: palette.method_style(method) for method in wide.columns}
    finding = layers_finding(wide, {method: look.label for method, look in looks.items()})
    mean = wide.mean().sort_values()
    listed = ", ".join(f"{looks[method].label} {words.number(float(error))}" for method, error in mean.items())
    caption = f"Mean error of {words.count(len(wide), 'layer')}, lowest first: {listed}."
    shown, figure = _most_different(wide), go.Figure()
    names = [words.short_layer(layer) for layer in shown.index]
    low, high = shown.min(axis=1).to_numpy(np.float64), shown.max(axis=1).to_numpy(np.float64)
    ends = np.stack([low, high, np.full(len(low), np.nan)], axis=1).ravel()
    bar = Style(palette.INKS[theme].muted, "lowest to highest")
    shapes.lines(figure, ends, np.repeat(names, 3), bar, "", mode="lines", width=2, showlegend=False)
    for method, look in looks.items():
        hover = f"%{{customdata}}<br>{look.label} %{{x:.4g}}"
        shapes.points(figure, shown[method], names, look, hover, size=11, customdata=shown.index)
    what = f"Relative error {ERROR_OF[column]} tokens, {words.count(len(shown), 'layer')} on which methods differ most"
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(autorange="reversed")
    if style.spread(shown) > style.LOG_ABOVE:
        what += "; log scale, as errors spread over more than a factor of 10"
        figure.update_xaxes(type="log", exponentformat="power")
    frame = {"x": style.ERROR, "y": "layer", "height": max(320, 190 + 26 * len(shown)), "legend": True}
    alt = "Dumbbell chart of error by layer and method"
    return style.finish(figure, theme, finding, what, caption, alt, wide.reset_index(), **frame)


def _most_different(wide: pd.DataFrame) -> pd.DataFrame:
    """The layers on which methods differ most, relative to the larger error."""
    largest = wide.max(axis=1)
    gap = (largest - wide.min(axis=1)) / largest.where(largest > 0)
    chosen = gap[gap > 0].sort_values(ascending=False, kind="stable").head(DUMBBELLS).index
    if not len(chosen):
        raise RoseError("The methods have the same error on every layer, so there are no differences to show.")
    return wide.loc[list(chosen)]


def perplexity_bars(results: Sequence[Result], *, dense: float | None = None, theme: Theme = "light") -> Drawing:
    """Perplexity of each pruned model, with a line for the dense one; the title says what `rose.verdicts` does."""
    known = [one for one in results if not math.isnan(one.value)]
    if not known:
        raise RoseError("No perplexity has been measured yet; prune a model and evaluate it.")
    looks = [palette.method_style(one.method)._replace(label=one.name) for one in known]
    values = np.array([one.value for one in known])
    drawn = np.append(values[np.isfinite(values)], [] if dense is None else [dense])
    labels = [look.label for look in looks]
    *texts, beside = words.apart(*values, math.nan if dense is None else dense)
    figure = go.Figure()
    pattern = {"shape": [look.pattern for look in looks], "solidity": 0.35}
    marker = {"color": [look.colour for look in looks], "pattern": pattern}
    heights, hover = np.where(np.isfinite(values), values, np.nan), "%{x}<br>perplexity %{text}"
    shapes.bars(figure, labels, heights, Style(palette.TEAL, "perplexity"), hover, text=texts, marker=marker)
    figure.update_xaxes(tickvals=labels, ticktext=[label.replace(", ", ",<br>") for label in labels])
    if dense is not None:
        figure.add_hline(y=dense, line=shapes.dashed(theme))
    rankings = verdicts.rank(known)
    finding = verdicts.says_ranking(rankings)
    what, largest = "Perplexity of each pruned model, lower is better", float(drawn.max()) if len(drawn) else 1.0
    if np.isinf(values).any():
        what += "; an infinite one has no bar"
    figure.update_yaxes(range=[0, largest * 1.12])
    if style.spread(drawn) > style.LOG_ABOVE:
        what += "; log scale"
        low = float(drawn[drawn > 0].min())
        figure.update_yaxes(style.LOG, range=[np.log10(low) - 0.3, np.log10(largest) + 0.15])
    table = pd.DataFrame({"run": labels, "method": [one.method for one in known], "perplexity": values})
    caption = "Lowest first: " + "; ".join(f"{labels[i]}: {texts[i]}" for i in np.argsort(values, kind="stable"))
    if dense is not None:
        what += f"; dashed: dense, {beside}"
        caption += f"; dense {beside}"
        table["dense_perplexity"] = dense
    caption = " ".join(filter(None, [f"{caption}.", *(one.caption for one in rankings)]))
    return style.finish(figure, theme, finding, what, caption, "Bar chart of perplexity", table, y="perplexity")


def accuracy_bars(table: pd.DataFrame, *, theme: Theme = "light") -> Drawing:
    """Zero-shot accuracy of every model on every task, with standard errors; the dense model has the method "dense".
    Means are over the tasks that all models answered."""
    tasks = list(dict.fromkeys(table["task"]))
    shared = verdicts.shared_tasks([rows for _, rows in table.groupby("run", sort=False)])
    figure = go.Figure()
    means: dict[str, float] = {}
    errors: dict[str, float] = {}
    for name, rows in table.groupby("run", sort=False):
        method = rows["method"].iloc[0]
        look = palette.method_style(method)
        if name != method:
            look = look._replace(label=str(name))
        if method == "dense":
            look = Style(palette.INKS[theme].muted, look.label)
        values = rows.set_index("task").reindex(tasks)
        judged = values.loc[shared]
        means[str(name)] = float(judged["accuracy"].mean())
        errors[str(name)] = float(np.linalg.norm(judged["accuracy_error"])) / max(1, len(shared))
        whiskers = {"array": values["accuracy_error"], "color": palette.INKS[theme].text}
        shapes.bars(figure, tasks, values["accuracy"], look, f"{look.label}<br>%{{x}}: %{{y:.1%}}", error_y=whiskers)
    dense = [str(name) for name in table.loc[table["method"] == "dense", "run"].unique()]
    pruned = sorted((name for name in means if name not in dense), key=lambda name: -means[name])
    over = f"mean over {words.count(len(shared), 'task')}"
    over += " that all models answered" if len(shared) < len(tasks) else ""
    if not shared:
        finding = "These models answered no task in common"
    elif not pruned:
        finding = f"The dense model answers {words.percent(means[dense[0]])} correctly, {over}"
    else:
        best = pruned[0]
        finding = f"{best} answers {words.percent(means[best])} correctly, {over}"
        apart = {name: verdicts.difference(means[best], errors[best], means[name], errors[name]) for name in pruned[1:]}
        if unclear := [name for name, found in apart.items() if not found.is_clear]:
            shares = words.listing([words.percent(means[name]) for name in (best, *unclear)])
            finding = f"No clear difference between {words.listing([best, *unclear])}: {shares} correct, {over}"
        if dense:
            finding += f"; the dense model {words.percent(means[dense[0]])}"
    asked = table.drop_duplicates("task")["questions"]
    what = f"Share of questions answered correctly, {words.whole(int(asked.sum()))} in all; lines: standard error"
    top = float((table["accuracy"] + table["accuracy_error"].fillna(0)).max())
    figure.update_yaxes(range=[0, min(1.0, 1.15 * top)], tickformat=style.PERCENT)
    ranked = sorted(means.items(), key=lambda pair: -pair[1])
    said = ", ".join(f"{name} {words.percent(mean)}" for name, mean in ranked)
    caption = f"Mean accuracy: {said}." if shared else ""
    table, alt = table.reset_index(drop=True), "Bar chart of zero-shot accuracy by task"
    return style.finish(figure, theme, finding, what, caption, alt, table, y="accuracy", legend=True)


def progress_timeline(records: pd.DataFrame, total: int, *, theme: Theme = "light") -> Drawing:
    """Errors of the layers in the order in which a run has pruned them; the axis already has room for all of them.

    The records are those of one run so far, of `total` in the end, and may be empty.
    """
    kinds = records["layer"].map(lambda layer: maps.map_row(words.place_of(layer)[1]))
    table = records.reset_index(drop=True).assign(number=np.arange(1, len(records) + 1))
    errors, figure = table["relative_error"], go.Figure()
    for projection, look in palette.projection_styles(list(dict.fromkeys(kinds))).items():
        some, hover = table[(kinds == projection).to_numpy()], "%{customdata}<br>relative error %{y:.4g}"
        shapes.points(figure, some["number"], some["relative_error"], look, hover, customdata=some["layer"])
    done = len(records)
    figure.update_xaxes(range=[0, total + 1], dtick=shapes.whole_step(total), zeroline=False)
    figure.update_yaxes(range=[0, float(errors.max()) * 1.08 or 1.0] if done else [0, 1])
    finding = f"{words.sentence(words.out_of(done, total, 'layer'))} {'is' if done == 1 else 'are'} pruned"
    what = "Relative error of each layer on the inputs it now gets, in the order pruned"
    caption = "No layer is done yet."
    if done:
        last = records.iloc[-1]
        caption = (
            f"Last: {words.short_layer(last['layer'])} with an error of {words.number(float(last['relative_error']))}; "
            f"mean so far {words.number(float(errors.mean()))}, "
            f"{words.number(float(records['seconds'].sum()))} s spent on pruning itself."
        )
    frame = {"x": "layers pruned", "y": style.ERROR, "legend": done > 0}
    alt = "Scatter chart of relative error by layer in the order pruned"
    return style.finish(figure, theme, finding, what, caption, alt, table, **frame)


def tuning_curve(curve: pd.DataFrame, steps: int, *, dense: float | None, theme: Theme = "light") -> Drawing:
    """Perplexity on held-out windows after every measurement so far, with a ring at the lowest.

    Args:
        curve: step, seconds, held_out (loss of next tokens, nats a token); see `rose.TuneReport`.
        steps: how many there will be, for which the axis has room; 0 where it is not known.
        dense: that loss of the dense model, once it is known.
    """
    known = curve.dropna(subset=["held_out"])
    if known.empty:
        raise RoseError("No held-out window has been measured yet; tuning begins with the start's.")
    known = known.assign(perplexity=np.exp(known["held_out"]))
    start, last = known.iloc[0]["perplexity"], known.iloc[-1]
    best = known.loc[known["held_out"].idxmin()]
    end = max(steps, int(last["step"]), 1)
    figure = go.Figure()
    hover = "step %{x}, after %{customdata:.0f} s<br>perplexity %{y:.4g}"
    look = Style(palette.TEAL, "held-out windows")
    shapes.lines(figure, known["step"], known["perplexity"], look, hover, customdata=known["seconds"])
    shapes.rings(figure, [best["step"]], [best["perplexity"]], "kept", size=18)
    shapes.level(figure, start, (0, end), "start", theme)
    whole = None if dense is None else float(np.exp(dense))
    if whole is not None:
        shapes.level(figure, whole, (0, end), "dense", theme, dash="dot")
    figure.update_xaxes(range=[-0.02 * end, 1.02 * end], dtick=shapes.whole_step(end), zeroline=False)
    # From the dense model up: what tuning can win back lies between the two lines.
    low, high = min(known["perplexity"].min(), whole or start), known["perplexity"].max()
    room = 0.1 * (high - low) or 0.1 * high
    figure.update_yaxes(range=[low - room, high + room])
    beside = "" if whole is None else f"; the dense model has {words.number(whole)}"
    value, step = words.number(best["perplexity"]), int(best["step"])
    if step:
        after = f"after {words.whole(step)} of {words.count(end, 'step')}" if end > 1 else "after the one step"
        finding = f"Held-out perplexity is {value} {after}, "
        finding += verdicts.says_change(best["perplexity"], start, "the start", "") + beside
    elif last["step"]:
        so_far = " so far" if last["step"] < end else ""
        finding = f"No step{so_far} is better than the start, {value}, on held-out windows{beside}"
    else:
        finding = f"Held-out perplexity is {value} at the start{beside}"
    caption = (
        f"Start {words.number(start)}, lowest {value} after step {step}, last {words.number(last['perplexity'])} "
        f"after step {int(last['step'])} and {words.duration(last['seconds'])}."
    )
    what = "Held-out windows; the step with the lowest perplexity on them is kept; the axis does not begin at 0"
    frame = {"x": "step of training", "y": "perplexity", "legend": True, "height": 380}
    alt = "Line chart of perplexity on held-out windows by step"
    return style.finish(figure, theme, finding, what, caption, alt, known.reset_index(drop=True), **frame)
