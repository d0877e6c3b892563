"""Methods against each other: on single layers, and over several calibration seeds with how far these lie apart."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import words
from app.figures import marks, palette, style
from app.figures.palette import Theme
from app.figures.style import Drawing
from rose import RoseError
from rose.model.measure.comparison import over_seeds

Measure = Literal["perplexity", "mean_held_out_error"]
NAMED = 4  # runs in a title
NUMBERED = 16  # bars up to which each has its number above it
MEASURES: dict[Measure, str] = {"perplexity": "perplexity", "mean_held_out_error": "mean relative error, held-out"}


def over_seeds_bars(
    table: pd.DataFrame, sparsity: str, *, column: Measure = "perplexity", theme: Theme = "light"
) -> Drawing:
    """Mean of every method at one sparsity, lowest first, with the range over seeds; marks are single seeds.

    A method of which a run came to no finite number has no mean, and is named in the caption.
    """
    rows = table[table["sparsity"] == sparsity]
    lost = list(dict.fromkeys(rows["method"][~np.isfinite(rows[column])]))
    rows = rows[~rows["method"].isin(lost)]
    if rows.empty:
        raise RoseError(f"No run at sparsity {sparsity} has a {MEASURES[column]}; choose another.")
    means = over_seeds(rows, [*MEASURES, "seconds"]).sort_values(column, kind="stable").reset_index(drop=True)
    looks = [palette.method_style(method) for method in means["method"]]
    listed, by_method, figure = [], dict(list(rows.groupby("method"))), go.Figure()
    for look, mean in zip(looks, means.to_dict("records"), strict=True):
        seeds, level = by_method[mean["method"]], mean[column]
        listed.append(f"{look.label} {words.number(level)} ± {words.number(mean[f'{column}_spread'])}")
        marks.points(
            figure,
            [look.label],
            [level],
            look,
            f"{look.label}<br>mean %{{y:.4g}}",
            size=22,
            marker={"symbol": "line-ew", "line": {"width": 3, "color": look.colour}},
            error_y=_whiskers(level, seeds[column].min(), seeds[column].max(), thickness=2, width=8),
            mode="markers+text",
            text=[f"  {words.number(level)}"],
            textposition="middle right",
        )
        hover, pale = f"{look.label}, seed %{{customdata}}<br>%{{y:.4g}}", {"opacity": 0.75}
        x = [look.label] * len(seeds)
        marks.points(figure, x, seeds[column], look, hover, marker=pale, customdata=seeds["seed"].tolist())
    finding = f"{looks[0].label} has the lowest mean {MEASURES[column]}, {words.number(means[column].iloc[0])}"
    if len(means) > 1:
        # A lead smaller than the seeds lie apart may be chance.
        first, second = (by_method[means["method"][i]][column] for i in (0, 1))
        apart = "above every seed of it" if second.min() > first.max() else "within the spread over seeds"
        finding += f"; {looks[1].label} lies {apart}"
    what = f"Mean (line), range (whiskers) and single calibration seeds (marks) at sparsity {sparsity}"
    if style.spread(rows[column]) > style.LOG_ABOVE:
        what += "; log scale"
        figure.update_yaxes(type="log")
    figure.update_xaxes(range=[-0.5, len(means) - 0.3])
    seeds = words.count(int(means["seeds"].max()), "seed")
    caption = f"Mean ± half the range over up to {seeds}: {', '.join(listed)}."
    if lost:
        labels = ", ".join(palette.method_style(method).label for method in lost)
        caption += f" Without {labels}: not finite for a seed."
    alt = f"Means and spread of {MEASURES[column]} by method"
    return style.finish(figure, theme, finding, what, caption, alt, means, y=MEASURES[column], height=440)


def time_and_perplexity(
    table: pd.DataFrame, *, dense: float | None = None, time: str = "time of pruning, s", theme: Theme = "light"
) -> Drawing:
    """What each run costs and what it is worth, with the Pareto front: the runs that no other is as good as on both.

    Args:
        table: `method`, `seconds` and `perplexity` of each run; a `run` names a mark better than its method, and
            `lowest` and `highest` perplexity give it a range. With target "layer" in `target` a mark is open.
        time: title of the axis, where `seconds` are in another unit.
    """
    known = np.isfinite(table[["seconds", "perplexity"]].to_numpy(np.float64)).all(axis=1)
    rows = table[known].sort_values(["seconds", "perplexity"], kind="stable").reset_index(drop=True)
    if rows.empty:
        raise RoseError("No run has both a time and a perplexity; prune a model and evaluate it.")
    rows["on_front"] = rows["perplexity"] < rows["perplexity"].cummin().shift(fill_value=np.inf)
    front = rows[rows["on_front"]]
    looks = palette.named_styles(rows)
    figure = go.Figure()
    right = 1.12 * float(rows["seconds"].max())
    marks.lines(
        figure,
        [*front["seconds"], right],
        [*front["perplexity"], front["perplexity"].iloc[-1]],
        palette.Style(palette.INKS[theme].muted, "Pareto front", "dot"),
        "",
        mode="lines",
        width=2,
        line={"shape": "hv"},
    )
    for look, row in zip(looks, rows.to_dict("records"), strict=True):
        reach = _whiskers(row["perplexity"], row["lowest"], row["highest"]) if "lowest" in row else None
        symbol = look.symbol.removesuffix("-open") + "-open" if row.get("target") == "layer" else look.symbol
        marker, hover = {"symbol": symbol, "line": {"width": 2}}, f"{look.label}<br>perplexity %{{y:.4g}}<br>{time}"
        x, y = [row["seconds"]], [row["perplexity"]]
        marks.points(figure, x, y, look, f"{hover} %{{x:.4g}}", size=13, marker=marker, error_y=reach)
    if dense is not None:
        marks.level(figure, dense, (0, right), "dense", theme)
    figure.update_xaxes(range=[0, right])
    what = "Perplexity against time, lower is better in both; dotted: the lowest that any run reaches in that time"
    if style.spread([*rows["perplexity"], dense or np.nan]) > style.LOG_ABOVE:
        what += "; log scale"
        ticks = [digit * 10**power for power in range(-2, 9) for digit in (1, 2, 5)]
        figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    else:
        figure.update_yaxes(rangemode="normal")  # what is compared is how far runs lie apart
    best = [look.label for look, is_on in zip(looks, rows["on_front"], strict=True) if is_on]
    finding = f"{best[-1]} has the lowest perplexity, {words.number(front['perplexity'].iloc[-1])}"
    if len(rows) > 1 and len(best) <= NAMED:
        finding = f"Pareto front: {', '.join(best)}"
    elif len(best) > NAMED:
        finding += f"; {words.out_of(len(best), len(rows), 'run')} lie on the Pareto front"
    listed = "; ".join(
        f"{look.label}: {words.number(perplexity)} at {words.number(seconds)}"
        for look, perplexity, seconds in zip(looks, rows["perplexity"], rows["seconds"], strict=True)
    )
    caption = f"Perplexity at {time}, fastest first: {listed}."
    alt = f"Scatter chart of perplexity against {time}"
    return style.finish(figure, theme, finding, what, caption, alt, rows, x=time, y="perplexity", legend=True)


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
    figure = go.Figure()
    for method, look in looks.items():
        text = {"text": [words.number(v) for v in wide[method]]} if wide.size <= NUMBERED else {}
        hover = f"%{{customdata}}<br>{look.label} %{{y:.4g}}"
        marks.bars(figure, names, wide[method], look, hover, customdata=wide.index, **text)
    mean = wide.mean().sort_values()
    best, base = str(mean.idxmin()), style.BASELINE
    finding = f"{looks[best].label} has the lowest error"
    if best != base and mean.get(base, 0) > 0:
        finding = (
            f"{looks[best].label} has {words.percent(1 - mean[best] / mean[base])} less error than {looks[base].label}"
        )
    if len(wide) == 1:
        figure.update_layout(bargap=0.5)
    held = "held-out" if column == "held_out_error" else "calibration"
    what = f"Relative error on {held} tokens, {names[0] if len(wide) == 1 else f'{len(wide)} layers, mean'}"
    listed = ", ".join(f"{looks[method].label} {words.number(error)}" for method, error in mean.items())
    caption = f"{'Mean error' if len(wide) > 1 else 'Error'}, lowest first: {listed}."
    x = "layer (decoder block · projection)" if len(wide) > 1 else ""
    frame = {"x": x, "y": style.ERROR, "legend": len(looks) > 1}
    alt = "Bar chart of relative error by method"
    return style.finish(figure, theme, finding, what, caption, alt, wide.reset_index(), **frame)


def by_method(records: pd.DataFrame, column: str) -> pd.DataFrame:
    """One of the errors as layer × method, both in the order in which they come; without rows that do not have it."""
    table = records.dropna(subset=[column])
    wide = table.pivot_table(index="layer", columns="method", values=column, sort=False)
    return wide.reindex(index=table["layer"].unique(), columns=table["method"].unique())
