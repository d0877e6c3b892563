"""Whole-model runs: errors of the layers by method, perplexity, and how a run goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import words
from app.figures import marks, overview, palette, style
from app.figures.comparison import by_method, layers_finding
from app.figures.palette import Style, Theme
from app.figures.style import Drawing
from rose import RoseError, verdicts
from rose.verdicts import Result

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
    drawing = overview.model_map(made, name, marked_layer=marked_layer, theme=theme)
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
    marks.lines(figure, ends, np.repeat(names, 3), bar, "", mode="lines", width=2, showlegend=False)
    for method, look in looks.items():
        hover = f"%{{customdata}}<br>{look.label} %{{x:.4g}}"
        marks.points(figure, shown[method], names, look, hover, size=11, customdata=shown.index)
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
    marks.bars(figure, labels, heights, Style(palette.TEAL, "perplexity"), hover, text=texts, marker=marker)
    figure.update_xaxes(tickvals=labels, ticktext=[label.replace(", ", ",<br>") for label in labels])
    if dense is not None:
        figure.add_hline(y=dense, line=marks.dashed(theme))
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
        marks.bars(figure, tasks, values["accuracy"], look, f"{look.label}<br>%{{x}}: %{{y:.1%}}", error_y=whiskers)
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
    kinds = records["layer"].map(lambda layer: overview.map_row(words.place_of(layer)[1]))
    table = records.reset_index(drop=True).assign(number=np.arange(1, len(records) + 1))
    errors, figure = table["relative_error"], go.Figure()
    for projection, look in palette.projection_styles(list(dict.fromkeys(kinds))).items():
        some, hover = table[(kinds == projection).to_numpy()], "%{customdata}<br>relative error %{y:.4g}"
        marks.points(figure, some["number"], some["relative_error"], look, hover, customdata=some["layer"])
    done = len(records)
    figure.update_xaxes(range=[0, total + 1], dtick=marks.whole_step(total), zeroline=False)
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
