"""Methods against each other, in single layers and in whole models: errors, perplexity, accuracy, time, and how a run
goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from app.figures import maps, palette
from app.figures.palette import Style, Theme
from app.figures.shapes import Chart, name_points, whole_step
from app.figures.style import BASELINE, ERROR, LOG, LOG_ABOVE, PERCENT, Drawing, spread
from app.words import apart, count, duration, listing, number, out_of, percent, place_of, sentence, short_layer, whole
from rose import RoseError, verdicts
from rose.model.measure.comparison import over_seeds, results_of
from rose.verdicts import Result

Measure = Literal["perplexity", "mean_held_out_error"]
NAMED = 4  # runs in a title
TICKS = [digit * 10**power for power in range(-3, 9) for digit in (1, 2, 5)]
LOG_TICKS = {"type": "log", "tickvals": TICKS, "ticktext": [f"{tick:g}" for tick in TICKS]}
NUMBERED = 16  # bars up to which each has its number above it
MEASURES: dict[Measure, str] = {"perplexity": "perplexity", "mean_held_out_error": "mean relative error, held-out"}
DUMBBELLS = 20
ERROR_OF = {
    "relative_error": "on calibration",
    "held_out_error": "on held-out",
    "target_error": "against the dense model's output on calibration",
    "held_out_target_error": "against the dense model's output on held-out",
}

# Errors of layers


def by_method(records: pd.DataFrame, column: str) -> pd.DataFrame:
    """One of the errors as layer × method, both in the order in which they come; without rows that do not have it."""
    table = records.dropna(subset=[column])
    wide = table.pivot_table(index="layer", columns="method", values=column, sort=False)
    return wide.reindex(index=table["layer"].unique(), columns=table["method"].unique())


def method_errors(records: pd.DataFrame, *, column: str = "relative_error", theme: Theme = "light") -> Drawing:
    """Relative or held-out error of several methods on one or several layers, as bars."""
    wide = by_method(records, column)
    if wide.empty:
        raise RoseError("No error has been measured yet; prune a layer first.")
    many = len(wide) > 1
    looks = {method: palette.method_style(method) for method in wide.columns}
    x = "layer (decoder block · projection)" if many else ""
    chart = Chart(x=x, y=ERROR, legend=len(looks) > 1, theme=theme)
    names, texts = [short_layer(layer) for layer in wide.index], [apart(*errors) for errors in wide.to_numpy()]
    for place, (method, look) in enumerate(looks.items()):
        text = {"text": [row[place] for row in texts]} if wide.size <= NUMBERED else {}
        hover = f"%{{customdata}}<br>{look.label} %{{y:.4g}}"
        chart.bars(names, wide[method], look, hover, customdata=wide.index, **text)
    mean, labels = wide.mean().sort_values(), {method: look.label for method, look in looks.items()}
    finding = layers_finding(wide, labels) if many else _error_finding(wide, labels)
    if not many:
        chart.figure.update_layout(bargap=0.5)
    tokens = "held-out" if column == "held_out_error" else "calibration"
    what = f"Relative error on {tokens} tokens, {f'{len(wide)} layers, mean' if many else names[0]}"
    errors = ", ".join(f"{labels[method]} {error}" for method, error in zip(mean.index, apart(*mean), strict=True))
    caption = f"{'Mean error' if many else 'Error'}, lowest first: {errors}."
    return chart.done(finding, what, caption, "Bar chart of relative error by method", wide.reset_index())


def layers_finding(wide: pd.DataFrame, labels: dict[str, str]) -> str:
    """What `rose.verdicts` says of several layers: the method of the lowest mean error against SparseGPT, or where that
    is not there against the next one."""
    mean = wide.mean().sort_values()
    if len(mean) == 1:
        return f"{labels[mean.index[0]]}: mean error {number(mean.iloc[0])}"
    base = BASELINE if BASELINE in mean else mean.index[1]
    other = next(method for method in mean.index if method != base)
    rows = wide[[base, other]].set_axis(["first", "second"], axis=1).dropna()
    return f"Against {labels[base]}: {verdicts.says_layers(rows, (labels[base], labels[other]), 'error')}"


def _error_finding(wide: pd.DataFrame, labels: dict[str, str]) -> str:
    """Of one layer: who has the lowest error, against SparseGPT where that is there, and who is the same by
    construction."""
    mean, base = wide.mean(), BASELINE
    best = str(mean.idxmin())
    lowest = [labels[method] for method in labels if np.allclose(wide[method], wide[best], rtol=verdicts.SAME, atol=0)]
    who = f"{listing(lowest)} {'have' if len(lowest) > 1 else 'has'}"
    if base in labels and labels[base] not in lowest and mean[base] > 0:
        return f"{who} {verdicts.says_change(mean[best], mean[base], labels[base])}"
    return f"{who} the same error" if len(lowest) == len(labels) > 1 else f"{who} the lowest error"


def layer_map(
    records: pd.DataFrame, method: str, *,
    column: str = "relative_error", marked_layer: str | None = None, theme: Theme = "light",
) -> Drawing:  # fmt: skip
    """Error of every layer by one method as a map; beside SparseGPT in the same run, the share of its error saved."""
    table = records.dropna(subset=[column])
    rows = table[table["method"] == method].drop_duplicates("layer")
    if rows.empty:
        raise RoseError("No error has been measured yet; prune a model first.")
    name = ("held_out_" if column == "held_out_error" else "error_") + method
    values = rows.set_index("layer")[column]
    base = table[table["method"] == BASELINE].drop_duplicates("layer").set_index("layer")[column]
    if method != BASELINE and len(base):
        name, values = f"saved_{method}", 1 - values / base.where(base > 0)
    made = rows[["layer", "block_index", "projection"]].assign(**{name: values.reindex(rows["layer"]).to_numpy()})
    drawing = maps.model_map(made, name, marked_layer=marked_layer, theme=theme)
    tokens = f" Errors {ERROR_OF[column]} tokens."
    return replace(drawing, caption=drawing.caption + tokens, alt=drawing.alt + tokens)


def layer_differences(records: pd.DataFrame, *, column: str = "relative_error", theme: Theme = "light") -> Drawing:
    """Error by several methods on the 20 layers on which they differ most, as dumbbells."""
    wide = by_method(records, column)
    if wide.empty:
        raise RoseError("No error has been measured yet; prune a model first.")
    looks = {method: palette.method_style(method) for method in wide.columns}
    shown = _most_different(wide)
    chart = Chart(x=ERROR, y="layer", height=max(320, 190 + 26 * len(shown)), legend=True, theme=theme)
    names = [short_layer(layer) for layer in shown.index]
    ends = shown.agg(["min", "max"], axis=1).assign(gap=np.nan).to_numpy(np.float64).ravel()
    bar = Style(chart.ink.muted, "lowest to highest")
    chart.line(ends, np.repeat(names, 3), bar, "", mode="lines", width=2, showlegend=False)
    for method, look in looks.items():
        hover = f"%{{customdata}}<br>{look.label} %{{x:.4g}}"
        chart.points(shown[method], names, look, hover, size=11, customdata=shown.index)
    what = f"Relative error {ERROR_OF[column]} tokens, {count(len(shown), 'layer')} on which methods differ most"
    chart.x(rangemode="tozero")
    chart.y(autorange="reversed")
    if spread(shown) > LOG_ABOVE:
        what += "; log scale, as errors spread over more than a factor of 10"
        chart.x(type="log", exponentformat="power")
    finding = layers_finding(wide, {method: look.label for method, look in looks.items()})
    errors = ", ".join(f"{looks[method].label} {number(error)}" for method, error in wide.mean().sort_values().items())
    caption = f"Mean error of {count(len(wide), 'layer')}, lowest first: {errors}."
    return chart.done(finding, what, caption, "Dumbbell chart of error by layer and method", wide.reset_index())


def _most_different(wide: pd.DataFrame) -> pd.DataFrame:
    """The layers on which methods differ most, relative to the larger error."""
    largest = wide.max(axis=1)
    gap = (largest - wide.min(axis=1)) / largest.where(largest > 0)
    chosen = gap[gap > 0].sort_values(ascending=False, kind="stable").head(DUMBBELLS).index
    if not len(chosen):
        raise RoseError("The methods have the same error on every layer, so there are no differences to show.")
    return wide.loc[list(chosen)]


# Whole models


def over_seeds_bars(
    table: pd.DataFrame, sparsity: str, *, column: Measure = "perplexity", theme: Theme = "light"
) -> Drawing:
    """Mean of every method at one sparsity, lowest first, with the range over seeds; marks are single seeds.

    A method of which a run came to no finite number has no mean, and is named in the caption.
    """
    by_mean = sorted(results_of(table, sparsity, column), key=lambda result: result.value)
    results = [replace(result, name=palette.method_style(result.method).label) for result in by_mean]
    if not results:
        raise RoseError(f"No run at sparsity {sparsity} has a {MEASURES[column]}; choose another.")
    chart = Chart(y=MEASURES[column], height=440, theme=theme)
    means = apart(*(result.value for result in results))
    for result, mean in zip(results, means, strict=True):
        _draw_seeds(chart, result, mean)
    halves = [number((max(result.draws.values()) - min(result.draws.values())) / 2) for result in results]
    (ranking,) = verdicts.rank(results, f"mean {MEASURES[column]}")
    what = f"Mean (line), range (whiskers) and single calibration seeds (marks) at sparsity {sparsity}"
    if spread([value for result in results for value in result.draws.values()]) > LOG_ABOVE:
        what += "; log scale"
        chart.y(type="log")
    chart.x(range=[-0.5, len(results) - 0.3])
    each = ", ".join(f"{one.name} {mean} ± {half}" for one, mean, half in zip(results, means, halves, strict=True))
    seeds = count(max(len(result.draws) for result in results), "seed")
    caption = f"Mean ± half the range over up to {seeds}: {each}. {ranking.caption}".strip()
    rows = table[table["sparsity"] == sparsity]
    lost = list(dict.fromkeys(rows["method"][~np.isfinite(rows[column])]))
    if lost:
        labels = ", ".join(palette.method_style(method).label for method in lost)
        caption += f" Without {labels}: not finite for a seed."
    data = over_seeds(rows[~rows["method"].isin(lost)], [*MEASURES, "seconds"])
    data = data.sort_values(column, kind="stable", ignore_index=True)
    return chart.done(ranking.finding, what, caption, f"Means and spread of {MEASURES[column]} by method", data)


def _draw_seeds(chart: Chart, result: Result, mean: str) -> None:
    """The mean of one method with its number and its range, and a mark for each seed."""
    look, draws = palette.method_style(result.method), list(result.draws.values())
    line = {"symbol": "line-ew", "line": {"width": 3, "color": look.colour}}
    reach = _whiskers(result.value, min(draws), max(draws), thickness=2, width=8)
    named = {"mode": "markers+text", "text": [f"  {mean}"], "textposition": "middle right"}
    hover = f"{look.label}<br>mean %{{y:.4g}}"
    chart.points([look.label], [result.value], look, hover, size=22, marker=line, error_y=reach, **named)
    hover, seeds = f"{look.label}, seed %{{customdata}}<br>%{{y:.4g}}", list(result.draws)
    chart.points([look.label] * len(draws), draws, look, hover, marker={"opacity": 0.75}, customdata=seeds)


def _whiskers(middle: float, lowest: float, highest: float, thickness: float = 1.5, width: float = 6) -> dict[str, Any]:
    reach = {"array": [highest - middle], "arrayminus": [middle - lowest]}
    return {"type": "data", "symmetric": False, "thickness": thickness, "width": width} | reach


def time_and_perplexity(
    results: Sequence[Result], *, dense: float | None = None, time: str = "time of pruning, s",
    same_time: float = verdicts.SAME_TIME, theme: Theme = "light",
) -> Drawing:  # fmt: skip
    """What each run costs and what it is worth, with the Pareto front beyond noise, as `rose.verdicts.front` finds it.

    Runs with target layer are grey and open, so that colours tell methods apart. `time`: title of the axis, where
    `seconds` are in another unit.
    """
    runs = [result for result in results if np.isfinite([result.seconds, result.value]).all()]
    if not runs:
        raise RoseError("No run has both a time and a perplexity; prune a model and evaluate it.")
    runs.sort(key=lambda result: (result.seconds, result.value))
    front, chart = verdicts.front(runs, same_time), Chart(x=time, y="perplexity", height=600, theme=theme)
    x, y = np.array([result.seconds for result in runs]), np.array([result.value for result in runs])
    heights = np.append(y, [] if dense is None else [dense])
    is_log = [spread(values) > LOG_ABOVE for values in (x, heights)]
    spans = [_span(values, log) for values, log in zip((x, heights), is_log, strict=True)]
    corners = _draw_front(chart, x, y, front.steps, 10 ** spans[0][1] if is_log[0] else spans[0][1])
    labels = _draw_runs(chart, runs, time)
    for update, log, span in zip((chart.x, chart.y), is_log, spans, strict=True):
        update(range=span, **(LOG_TICKS if log else {}))
    table = pd.DataFrame([(run.name, run.method, run.target) for run in runs], columns=["run", "method", "target"])
    table = table.assign(seconds=x, perplexity=y, on_front=front.is_on)
    drawing = chart.done(
        _trade_off([runs[step] for step in front.steps], runs), _axes_words(runs, bool(corners), is_log),
        _time_caption(runs, time, same_time), f"Scatter chart of perplexity against {time}", table,
    )  # fmt: skip
    if dense is not None:
        chart.figure.add_hline(y=dense, line=chart.dashed(1.5))
        where = {"x": 1, "xref": "paper", "xanchor": "right", "yanchor": "bottom"}
        chart.note(f"dense, {number(dense)}", y=np.log10(dense) if is_log[1] else dense, **where)
    across, up = _exponents(x, y, is_log)
    inks = [chart.ink.muted if run.target == "layer" else chart.ink.text for run in runs]
    edges = np.reshape(corners, (-1, 2))
    steps = list(zip(*_exponents(edges[:, 0], edges[:, 1], is_log), strict=True))
    name_points(chart.figure, across, up, labels, spans, inks, steps)
    return drawing


def _draw_runs(chart: Chart, runs: Sequence[Result], time: str) -> list[str]:
    """A mark for each run; returns their names: those of methods, or of runs where a method stands there more than
    once."""
    keys, labels = [(run.method, run.target) for run in runs], []
    for run, key in zip(runs, keys, strict=True):
        look = palette.method_style(run.method)
        labels.append(look.label if keys.count(key) == 1 else run.name)
        look = look._replace(label=labels[-1])
        if run.target == "layer":
            look = look.opened()._replace(colour=chart.ink.muted)
        hover = f"{run.name}<br>perplexity %{{y:.4g}}<br>{time} %{{x:.4g}}"
        draws = [*run.draws.values()] or [run.value]
        reach = _whiskers(run.value, min(draws), max(draws)) if len(draws) > 1 else None
        edge = {"line": {"width": 2, "color": look.colour}}
        chart.points([run.seconds], [run.value], look, hover, size=13, marker=edge, error_y=reach)
    return labels


def _axes_words(runs: Sequence[Result], has_front: bool, is_log: Sequence[bool]) -> str:
    what = "Perplexity against time, lower is better in both"
    what += "; dotted: Pareto front of clear differences" if has_front else ""
    what += "; grey, open: target layer" if {run.target for run in runs} == {"layer", "dense"} else ""
    if all(is_log):
        return f"{what}; log scales"
    if not any(is_log):
        return f"{what}; axes do not begin at 0"
    return f"{what}; log scale of {'time' if is_log[0] else 'perplexity'}; the other does not begin at 0"


def _time_caption(runs: Sequence[Result], time: str, same_time: float) -> str:
    values = zip(runs, apart(*(run.value for run in runs)), strict=True)
    caption = f"Perplexity at {time}, fastest first: "
    caption += "; ".join(f"{run.name}: {value} at {number(run.seconds)}" for run, value in values) + "."
    if len(runs) > 1:
        caption += (
            " The front joins only runs that differ beyond noise: in perplexity by a paired interval, in time by "
        )
        caption += f"a factor of {same_time:g}."
    return caption


def _trade_off(front: Sequence[Result], runs: Sequence[Result]) -> str:
    """The runs on the front, or which is best where only one is."""
    if len(front) > 1:
        return f"Pareto front: {listing([run.name.replace(', target ', ' with target ') for run in front], NAMED)}"
    ranked = verdicts.says_ranking(verdicts.rank(runs))
    return f"{ranked}; no trade-off with time is clear" if len(runs) > 1 else ranked


def _draw_front(
    chart: Chart, x: np.ndarray, y: np.ndarray, steps: Sequence[int], right: float
) -> list[tuple[float, float]]:
    """The front of several runs and its corners: on at the same perplexity up to the next run on it, from the last to
    the right end."""
    corners: list[tuple[float, float]] = []
    if len(steps) < 2:
        return corners
    for step, end in zip(steps, [*x[list(steps[1:])], right], strict=True):
        corners += [(float(x[step]), float(y[step])), (float(end), float(y[step]))]
    along, height = zip(*corners, strict=True)
    chart.line(along, height, Style(chart.ink.muted, "Pareto front", "dot"), "", mode="lines", width=2)
    return corners


def _exponents(x: np.ndarray, y: np.ndarray, is_log: Sequence[bool]) -> list[np.ndarray]:
    """Values as axes place them: by their exponents on a log axis."""
    return [np.log10(values) if log else values for values, log in zip((x, y), is_log, strict=True)]


def _span(values: np.ndarray, log: bool) -> list[float]:
    """The range of an axis: where the marks are, with room for their names."""
    places = np.log10(values) if log else values
    low, high = float(places.min()), float(places.max())
    room = 0.12 * ((high - low) or abs(high) or 1.0)
    return [low - room, high + room]


def perplexity_bars(results: Sequence[Result], *, dense: float | None = None, theme: Theme = "light") -> Drawing:
    """Perplexity of each pruned model, with a line for the dense one; the title says what `rose.verdicts` does."""
    runs = [result for result in results if not math.isnan(result.value)]
    if not runs:
        raise RoseError("No perplexity has been measured yet; prune a model and evaluate it.")
    chart, looks = Chart(y="perplexity", theme=theme), [palette.method_style(run.method) for run in runs]
    values, labels = np.array([run.value for run in runs]), [run.name for run in runs]
    drawn = np.append(values[np.isfinite(values)], [] if dense is None else [dense])
    *texts, beside = apart(*values, math.nan if dense is None else dense)
    pattern = {"shape": [look.pattern for look in looks], "solidity": 0.35}
    behind = {"text": texts, "marker": {"color": [look.colour for look in looks], "pattern": pattern}}
    heights, hover = np.where(np.isfinite(values), values, np.nan), "%{x}<br>perplexity %{text}"
    chart.bars(labels, heights, Style(palette.TEAL, "perplexity"), hover, **behind)
    chart.x(tickvals=labels, ticktext=[label.replace(", ", ",<br>") for label in labels])
    what = "Perplexity of each pruned model, lower is better"
    what += "; an infinite one has no bar" if np.isinf(values).any() else ""
    largest = float(drawn.max()) if len(drawn) else 1.0
    chart.y(range=[0, largest * 1.12])
    if spread(drawn) > LOG_ABOVE:
        what += "; log scale"
        low = float(drawn[drawn > 0].min())
        chart.y(**LOG, range=[np.log10(low) - 0.3, np.log10(largest) + 0.15])
    table = pd.DataFrame({"run": labels, "method": [run.method for run in runs], "perplexity": values})
    caption = "Lowest first: " + "; ".join(f"{labels[i]}: {texts[i]}" for i in np.argsort(values, kind="stable"))
    if dense is not None:
        chart.figure.add_hline(y=dense, line=chart.dashed())
        what += f"; dashed: dense, {beside}"
        caption += f"; dense {beside}"
        table["dense_perplexity"] = dense
    rankings = verdicts.rank(runs)
    caption = " ".join(filter(None, [f"{caption}.", *(ranking.caption for ranking in rankings)]))
    return chart.done(verdicts.says_ranking(rankings), what, caption, "Bar chart of perplexity", table)


def accuracy_bars(table: pd.DataFrame, *, theme: Theme = "light") -> Drawing:
    """Zero-shot accuracy of every model on every task, with standard errors; the dense model has the method "dense".
    Means are over the tasks that all models answered."""
    tasks, chart = list(dict.fromkeys(table["task"])), Chart(y="accuracy", legend=True, theme=theme)
    runs = {str(name): rows for name, rows in table.groupby("run", sort=False)}
    shared = verdicts.shared_tasks(list(runs.values()))
    means: dict[str, float] = {}
    errors: dict[str, float] = {}
    for name, rows in runs.items():
        method = rows["method"].iloc[0]
        look = palette.method_style(method)
        look = look if name == method else look._replace(label=name)
        look = Style(chart.ink.muted, look.label) if method == "dense" else look
        values = rows.set_index("task").reindex(tasks)
        answered = values.loc[shared]
        means[name] = float(answered["accuracy"].mean())
        errors[name] = float(np.linalg.norm(answered["accuracy_error"])) / max(1, len(shared))
        whiskers = {"array": values["accuracy_error"], "color": chart.ink.text}
        chart.bars(tasks, values["accuracy"], look, f"{look.label}<br>%{{x}}: %{{y:.1%}}", error_y=whiskers)
    dense = [name for name, rows in runs.items() if (rows["method"] == "dense").any()]
    over = f"mean over {count(len(shared), 'task')}"
    over += " that all models answered" if len(shared) < len(tasks) else ""
    finding = _accuracy_finding(means, errors, dense, over) if shared else "These models answered no task in common"
    asked = table.drop_duplicates("task")["questions"]
    what = f"Share of questions answered correctly, {whole(int(asked.sum()))} in all; lines: standard error"
    top = float((table["accuracy"] + table["accuracy_error"].fillna(0)).max())
    chart.y(range=[0, min(1.0, 1.15 * top)], tickformat=PERCENT)
    ranked = sorted(means.items(), key=lambda pair: -pair[1])
    caption = f"Mean accuracy: {', '.join(f'{name} {percent(mean)}' for name, mean in ranked)}." if shared else ""
    return chart.done(finding, what, caption, "Bar chart of zero-shot accuracy by task", table.reset_index(drop=True))


def _accuracy_finding(means: dict[str, float], errors: dict[str, float], dense: list[str], over: str) -> str:
    """Which pruned model answers best, or between which there is no clear difference; and the dense one."""
    pruned = sorted((name for name in means if name not in dense), key=lambda name: -means[name])
    if not pruned:
        return f"The dense model answers {percent(means[dense[0]])} correctly, {over}"
    best, *others = pruned
    finding = f"{best} answers {percent(means[best])} correctly, {over}"
    apart = {name: verdicts.difference(means[best], errors[best], means[name], errors[name]) for name in others}
    if unclear := [name for name, interval in apart.items() if not interval.is_clear]:
        shares = listing([percent(means[name]) for name in (best, *unclear)])
        finding = f"No clear difference between {listing([best, *unclear])}: {shares} correct, {over}"
    return f"{finding}; the dense model {percent(means[dense[0]])}" if dense else finding


# As a run goes on


def progress_timeline(records: pd.DataFrame, total: int, *, theme: Theme = "light") -> Drawing:
    """Errors of the layers in the order in which a run has pruned them; the axis already has room for all of them.

    The records are those of one run so far, of `total` in the end, and may be empty.
    """
    done, kinds = len(records), records["layer"].map(lambda layer: maps.map_row(place_of(layer)[1]))
    table = records.reset_index(drop=True).assign(number=np.arange(1, done + 1))
    errors, chart = table["relative_error"], Chart(x="layers pruned", y=ERROR, legend=done > 0, theme=theme)
    for projection, look in palette.projection_styles(list(dict.fromkeys(kinds))).items():
        part, hover = table[(kinds == projection).to_numpy()], "%{customdata}<br>relative error %{y:.4g}"
        chart.points(part["number"], part["relative_error"], look, hover, customdata=part["layer"])
    chart.x(range=[0, total + 1], count=total, zeroline=False)
    chart.y(range=[0, float(errors.max()) * 1.08 or 1.0] if done else [0, 1])
    finding = f"{sentence(out_of(done, total, 'layer'))} {'is' if done == 1 else 'are'} pruned"
    what = "Relative error of each layer on the inputs it now gets, in the order pruned"
    caption = "No layer is done yet."
    if done:
        last = records.iloc[-1]
        caption = f"Last: {short_layer(last['layer'])} with an error of {number(last['relative_error'])}; mean so far "
        caption += f"{number(errors.mean())}, {number(records['seconds'].sum())} s spent on pruning itself."
    return chart.done(finding, what, caption, "Scatter chart of relative error by layer in the order pruned", table)


def tuning_curve(curve: pd.DataFrame, steps: int, *, dense: float | None, theme: Theme = "light") -> Drawing:
    """Perplexity on held-out windows after every measurement so far, with a ring at the lowest.

    Args:
        curve: step, seconds, held_out (loss of next tokens, nats a token); see `rose.TuneReport`.
        steps: how many there will be, for which the axis has room; 0 where it is not known.
        dense: that loss of the dense model, once it is known.
    """
    rows = curve.dropna(subset=["held_out"])
    if rows.empty:
        raise RoseError("No held-out window has been measured yet; tuning begins with the start's.")
    rows = rows.assign(perplexity=np.exp(rows["held_out"])).reset_index(drop=True)
    start, last, best = rows["perplexity"].iloc[0], rows.iloc[-1], rows.loc[rows["held_out"].idxmin()]
    end = max(steps, int(last["step"]), 1)
    chart = Chart(x="step of training", y="perplexity", legend=True, height=380, theme=theme)
    hover, look = "step %{x}, after %{customdata:.0f} s<br>perplexity %{y:.4g}", Style(palette.TEAL, "held-out windows")
    chart.line(rows["step"], rows["perplexity"], look, hover, customdata=rows["seconds"])
    chart.rings([best["step"]], [best["perplexity"]], "kept", size=18)
    chart.level(start, (0, end), "start")
    unpruned = None if dense is None else float(np.exp(dense))
    if unpruned is not None:
        chart.level(unpruned, (0, end), "dense", "dot")
    chart.x(range=[-0.02 * end, 1.02 * end], dtick=whole_step(end), zeroline=False)
    # From the dense model up: what tuning can win back lies between the two lines.
    low, high = min(rows["perplexity"].min(), unpruned or start), rows["perplexity"].max()
    room = 0.1 * (high - low) or 0.1 * high
    chart.y(range=[low - room, high + room])
    finding = _tuning_finding(best, last, start, end)
    finding += "" if unpruned is None else f"; the dense model has {number(unpruned)}"
    caption = f"Start {number(start)}, lowest {number(best['perplexity'])} after step {int(best['step'])}, last "
    caption += f"{number(last['perplexity'])} after step {int(last['step'])} and {duration(last['seconds'])}."
    what = "Held-out windows; the step with the lowest perplexity on them is kept; the axis does not begin at 0"
    return chart.done(finding, what, caption, "Line chart of perplexity on held-out windows by step", rows)


def _tuning_finding(best: pd.Series, last: pd.Series, start: float, end: int) -> str:
    """The lowest perplexity so far against that of the start."""
    value, step = number(best["perplexity"]), int(best["step"])
    if step:
        after = f"after {whole(step)} of {count(end, 'step')}" if end > 1 else "after the one step"
        change = verdicts.says_change(best["perplexity"], start, "the start", "")
        return f"Held-out perplexity is {value} {after}, {change}"
    if last["step"]:
        so_far = " so far" if last["step"] < end else ""
        return f"No step{so_far} is better than the start, {value}, on held-out windows"
    return f"Held-out perplexity is {value} at the start"
