"""Methods against each other, in single layers and in whole models: errors, perplexity, accuracy, and tuning."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from app.figures import maps, palette
from app.figures.palette import Style, Theme
from app.figures.shapes import BARE, Chart, whole_step
from app.figures.style import BASELINE, CHOOSING, ERROR, LOG_ABOVE, PERCENT, Drawing, spread
from app.words import apart, count, duration, listing, number, percent, share, short_layer, times, whole
from rose import RoseError, verdicts
from rose.model.measure.comparison import over_seeds, results_at
from rose.verdicts import Result

NUMBERED = 16  # bars up to which each has its number above it
ERROR_OF = {
    "relative_error": "on calibration",
    "held_out_error": "on held-out",
    "target_error": "against the dense model's output on calibration",
    "held_out_target_error": "against the dense model's output on held-out",
}

# Errors of layers


def method_errors(records: pd.DataFrame, *, column: str = "relative_error", theme: Theme = "light") -> Drawing:
    """Relative or held-out error of several methods on one or several layers, as bars.

    The title compares SparseGPT with the method of the least calibration error.
    """
    table = records.dropna(subset=[column])
    wide = table.pivot_table(index="layer", columns="method", values=column, sort=False)
    wide = wide.reindex(index=table["layer"].unique(), columns=table["method"].unique())  # as they come
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
    labels = {method: look.label for method, look in looks.items()}
    fitted = table.groupby("method", sort=False)[CHOOSING].mean().sort_values(kind="stable")
    mean, base = wide.mean()[fitted.index], BASELINE
    best = str(mean.index[0])
    if many and len(mean) == 1:
        finding = f"{labels[best]}: mean error {number(mean.iloc[0])}"
    elif many:  # against SparseGPT, or without SparseGPT against the next method
        base = base if base in mean else mean.index[1]
        other = next(method for method in mean.index if method != base)
        rows = wide[[base, other]].set_axis(["first", "second"], axis=1).dropna()
        finding = f"Against {labels[base]}: {verdicts.says_layers(rows, (labels[base], labels[other]), 'error')}"
    else:
        chart.figure.update_layout(bargap=0.5)
        same = [m for m in labels if np.allclose(wide[m], wide[best], rtol=verdicts.SAME, atol=0)]
        finding = f"{listing([labels[m] for m in same])} {'have' if len(same) > 1 else 'has'} "
        if base in labels and base not in same and mean[base] > 0:
            finding += verdicts.says_change(mean[best], mean[base], labels[base])
        else:
            finding += "the same error" if len(same) == len(labels) > 1 else "the lowest calibration error"
    tokens = "held-out" if column == "held_out_error" else "calibration"
    note = f"Relative error on {tokens} tokens, {f'{len(wide)} layers' if many else names[0]}"
    caption = "The title's method has the lowest calibration error." if len(mean) > 1 else ""
    return chart.done(finding, note, caption, "Bar chart of relative error by method", wide.reset_index())


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
    columns = ["layer", "block_index", "projection", "massive"]
    layers = rows.filter(columns).assign(**{name: values.reindex(rows["layer"]).to_numpy()})
    drawing = maps.model_map(layers, name, marked_layer=marked_layer, theme=theme)
    tokens = f" Errors {ERROR_OF[column]} tokens."
    return replace(drawing, caption=drawing.caption + tokens, alt=drawing.alt + tokens)


# Whole models


def over_seeds_bars(table: pd.DataFrame, sparsity: str, *, theme: Theme = "light") -> Drawing:
    """Mean perplexity of every method at one sparsity, lowest first, with the range over seeds; marks are seeds."""
    by_mean = sorted(results_at(table, sparsity, "perplexity"), key=lambda result: result.value)
    results = [replace(result, name=palette.method_style(result.method).label) for result in by_mean]
    if not results:
        raise RoseError(f"No run at sparsity {sparsity} has a perplexity; choose another.")
    chart = Chart(y="perplexity", height=440, theme=theme)
    for result, mean in zip(results, apart(*(result.value for result in results)), strict=True):
        _draw_seeds(chart, result, mean)
    (ranking,) = verdicts.rank(results, "mean perplexity")
    note = f"Mean (line), range (whiskers) and single calibration seeds (marks) at sparsity {sparsity}"
    if spread([value for result in results for value in result.draws.values()]) > LOG_ABOVE:
        note += "; log scale"
        chart.y(type="log")
    chart.x(range=[-0.5, len(results) - 0.3])
    rows = table[table["sparsity"] == sparsity]
    lost = list(dict.fromkeys(rows["method"][~np.isfinite(rows["perplexity"])]))
    caption = ranking.caption
    if lost:
        labels = ", ".join(palette.method_style(method).label for method in lost)
        caption = f"{caption} Without {labels}: not finite for a seed.".strip()
    data = over_seeds(rows[~rows["method"].isin(lost)], ["perplexity", "mean_held_out_error", "seconds"])
    data = data.sort_values("perplexity", kind="stable", ignore_index=True)
    return chart.done(ranking.finding, note, caption, "Means and spread of perplexity by method", data)


def _draw_seeds(chart: Chart, result: Result, mean: str) -> None:
    """The mean of one method with its number and its range, and a mark for each seed."""
    look, draws = palette.method_style(result.method), list(result.draws.values())
    line = {"symbol": "line-ew", "line": {"width": 3, "color": look.colour}}
    reach: dict[str, Any] = {"type": "data", "symmetric": False, "thickness": 2, "width": 8}
    reach |= {"array": [max(draws) - result.value], "arrayminus": [result.value - min(draws)]}
    text = {"mode": "markers+text", "text": [f"  {mean}"], "textposition": "middle right"}
    hover = f"{look.label}<br>mean %{{y:.4g}}"
    chart.points([look.label], [result.value], look, hover, size=22, marker=line, error_y=reach, **text)
    hover, seeds = f"{look.label}, seed %{{customdata}}<br>%{{y:.4g}}", list(result.draws)
    chart.points([look.label] * len(draws), draws, look, hover, marker={"opacity": 0.75}, customdata=seeds)


def perplexity_bars(
    results: Sequence[Result], *, dense: float | None = None, elsewhere: Mapping[str, float] | None = None,
    theme: Theme = "light",
) -> Drawing:  # fmt: skip
    """Perplexity of each pruned model by sparsity, with a line for the dense one; beside it how many times the dense
    model's it is `elsewhere`, on another text, by name of the run, and the time. The title says what `rose.verdicts`
    does. A bar far beyond all others is cut off, with its number.
    """
    runs = [result for result in results if not math.isnan(result.value)]
    if not runs:
        raise RoseError("No perplexity has been measured yet; prune a model and evaluate it.")
    rows = _placed(runs)
    ratios = pd.Series(elsewhere or {}, dtype=float)
    table = rows.assign(other=[ratios.get(name, math.nan) for name in rows["run"]])
    limit = _limit([*table["perplexity"], *([] if dense is None else [dense])])
    chart = Chart(plot=26 * (len(rows) + rows["amount"].nunique()) + 12, headroom=18, theme=theme)
    chart.margins = {"l": 120, "r": 150, "b": 30}
    looks = [palette.method_style(run.method) for run in runs]
    *texts, dense_text = apart(*rows["perplexity"], math.nan if dense is None else dense)
    shown = np.minimum(rows["perplexity"], 1.15 * limit)
    texts = [f"{text} →" if value > limit else text for text, value in zip(texts, rows["perplexity"], strict=True)]
    pattern = {"shape": [look.pattern for look in looks], "solidity": 0.35}
    options: dict[str, Any] = {"marker": {"color": [look.colour for look in looks], "pattern": pattern}, "width": 0.8}
    options |= {"orientation": "h", "text": texts, "customdata": rows["run"]}
    chart.bars(shown, rows["y"], Style(palette.TEAL, "perplexity"), "%{customdata}<br>perplexity %{text}", **options)
    _beside_bars(chart, table, looks)
    bare: dict[str, Any] = BARE | {"showticklabels": False, "ticks": "", "showline": False, "automargin": False}
    chart.y(range=[rows["y"].max() + 0.7, -1.2], **bare)
    chart.x(range=[0, 1.3 * limit], **bare)
    note = "Perplexity, lower is better"
    if dense is not None:
        chart.figure.add_vline(x=dense, line=chart.dashed)
        below = {"y": 0, "yref": "paper", "yanchor": "top", "showarrow": False}
        chart.figure.add_annotation(x=dense, text=f"<b>dense {dense_text}</b>", **below)
        table["dense_perplexity"] = dense
    note += "; on other text as a multiple of the dense model's" if len(ratios) else ""
    finding = verdicts.says_ranking(verdicts.rank(runs))
    return chart.done(finding, note, "", "Bar chart of perplexity", table.drop(columns="y"))


def _placed(runs: Sequence[Result]) -> pd.DataFrame:
    """A row a run with its place from above: a heading for each amount, and below it its runs."""
    amounts, rows = list(dict.fromkeys(run.amount for run in runs)), list[dict[str, Any]]()
    for run in runs:
        among = [other.name for other in runs if other.amount == run.amount]
        before = sum(run_before.amount in amounts[: amounts.index(run.amount)] for run_before in runs)
        y = before + among.index(run.name) + amounts.index(run.amount) * (1 if len(amounts) > 1 else 0)
        rows.append({"run": run.name, "method": run.method, "amount": run.amount, "perplexity": run.value})
        rows[-1] |= {"seconds": run.seconds, "y": y}
    return pd.DataFrame(rows)


def _limit(values: Sequence[float]) -> float:
    """The largest value that does not dwarf those below it."""
    finite = sorted(value for value in values if math.isfinite(value)) or [1.0]
    while len(finite) > 1 and finite[-1] > LOG_ABOVE * finite[-2]:
        finite.pop()
    return finite[-1] or 1.0


def _beside_bars(chart: Chart, table: pd.DataFrame, looks: Sequence[Style]) -> None:
    """Names on the left in their colours, headings, and two columns of numbers on the right."""
    plain: dict[str, Any] = {"showarrow": False, "xref": "paper"}
    right = {"x": 1, "xanchor": "right"} | plain
    columns = [("other text", "other", 70, times), ("took", "seconds", 140, duration)]
    columns = [column for column in columns if table[column[1]].notna().any()]
    for heading, _, shift, _ in columns:
        text = f'<span style="color:{chart.ink.muted}">{heading}</span>'
        chart.figure.add_annotation(text=text, y=1, yref="paper", yanchor="bottom", xshift=shift, **right)
    for row, look in zip(table.to_dict("records"), looks, strict=True):
        name = row["run"].replace(f" at {row['amount']}", "")
        text = f'<span style="color:{look.colour}"><b>{name}</b></span>'
        chart.figure.add_annotation(text=text, x=0, xanchor="right", xshift=-8, y=row["y"], **plain)
        for _, column, shift, says in columns:
            if not math.isnan(row[column]):
                chart.figure.add_annotation(text=says(row[column]), y=row["y"], xshift=shift, **right)
    for amount, rows in table.groupby("amount", sort=False):
        if amount:
            heading = f"<b>{_heading(str(amount))}</b>"
            chart.figure.add_annotation(
                text=heading, x=0, xanchor="right", xshift=-8, y=rows["y"].min() - 0.95, **plain
            )


def _heading(amount: str) -> str:
    """ "0.7, 4 bits" as "70 % zero, 4 bits"."""
    sparsity, *rest = amount.split(", ")
    is_ratio = sparsity.replace(".", "", 1).isdecimal()
    return ", ".join([f"{share(sparsity)} zero" if is_ratio else sparsity, *rest])


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
        whiskers = {"array": 100 * values["accuracy_error"], "color": chart.ink.text}
        hover = f"{look.label}<br>%{{x}}: %{{y:.1f}}\u2009%"
        chart.bars(tasks, 100 * values["accuracy"], look, hover, error_y=whiskers)
    dense = [name for name, rows in runs.items() if (rows["method"] == "dense").any()]
    over = f"mean over {count(len(shared), 'task')}"
    over += " that all models answered" if len(shared) < len(tasks) else ""
    finding = _accuracy_finding(means, errors, dense, over) if shared else "These models answered no task in common"
    questions = table.drop_duplicates("task")["questions"]
    note = f"Share of questions answered correctly, {whole(int(questions.sum()))} in all; lines: standard error"
    top = float((table["accuracy"] + table["accuracy_error"].fillna(0)).max())
    chart.y(range=[0, 100 * min(1.0, 1.15 * top)], **PERCENT)
    return chart.done(finding, note, "", "Bar chart of zero-shot accuracy by task", table.reset_index(drop=True))


def _accuracy_finding(means: dict[str, float], errors: dict[str, float], dense: list[str], over: str) -> str:
    """The best pruned model, or models without a clear difference; and the dense model."""
    pruned = sorted((name for name in means if name not in dense), key=lambda name: -means[name])
    if not pruned:
        return f"The dense model answers {percent(means[dense[0]])} correctly, {over}"
    best, *rest = pruned
    finding = f"{best} answers {percent(means[best])} correctly, {over}"
    intervals = {name: verdicts.difference(means[best], errors[best], means[name], errors[name]) for name in rest}
    if unclear := [name for name, interval in intervals.items() if not interval.is_clear]:
        shares = listing([percent(means[name]) for name in (best, *unclear)])
        finding = f"No clear difference between {listing([best, *unclear])}: {shares} correct, {over}"
    return f"{finding}; the dense model {percent(means[dense[0]])}" if dense else finding


def tuning_curve(curve: pd.DataFrame, steps: int, *, dense: float | None, theme: Theme = "light") -> Drawing:
    """Perplexity on held-out windows after every measurement so far, with a ring at the lowest.

    `curve` has step, seconds, held_out, from `rose.TuneReport`; `steps` are to come, 0 if unknown; `dense` is a loss.
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
    value, step = number(best["perplexity"]), int(best["step"])
    finding = f"Held-out perplexity is {value} at the start"
    if step:
        after = f"after {whole(step)} of {count(end, 'step')}" if end > 1 else "after the one step"
        change = verdicts.says_change(best["perplexity"], start, "the start", "")
        finding = f"Held-out perplexity is {value} {after}, {change}"
    elif last["step"]:
        so_far = " so far" if last["step"] < end else ""
        finding = f"No step{so_far} is better than the start, {value}, on held-out windows"
    finding += "" if unpruned is None else f"; the dense model has {number(unpruned)}"
    caption = f"The step with the lowest perplexity is kept; {duration(last['seconds'])} so far. "
    caption += "That perplexity is a minimum, so the copy is evaluated on other windows."
    note = "Perplexity on held-out windows; the axis does not begin at 0"
    return chart.done(finding, note, caption, "Line chart of perplexity on held-out windows by step", rows)
