"""Methods against each other: on single layers, and over several calibration seeds with how far these lie apart."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import words
from app.figures import palette, style
from app.figures.palette import Theme
from app.figures.style import Drawing
from app.runs.results import over_seeds
from rose import RoseError

Measure = Literal["perplexity", "mean_held_out_error"]
NAMED = 4  # runs in a title
MEASURES: dict[Measure, str] = {"perplexity": "perplexity", "mean_held_out_error": "mean relative error, held-out"}


def over_seeds_bars(
    table: pd.DataFrame, sparsity: str, *, column: Measure = "perplexity", theme: Theme = "light"
) -> Drawing:
    """Mean of every method at one sparsity, lowest first, with the range over seeds; marks are single seeds.

    Args:
        table: as from `read_results`.
        sparsity: as written in the file.

    Raises:
        RoseError: no row with this sparsity and number.
    """
    rows = table[(table["sparsity"] == sparsity) & np.isfinite(table[column])]
    if rows.empty:
        raise RoseError(f"No run at sparsity {sparsity} has a {MEASURES[column]}; choose another.")
    means = over_seeds(rows).sort_values(column, kind="stable").reset_index(drop=True)
    looks = [palette.method_style(method) for method in means["method"]]
    log = float(rows[column].max() / rows[column].min()) > style.LOG_ABOVE
    figure = go.Figure()
    for look, (_, mean) in zip(looks, means.iterrows(), strict=True):
        values = rows.loc[rows["method"] == mean["method"], column].to_numpy(np.float64)
        seeds = rows.loc[rows["method"] == mean["method"], "seed"].tolist()
        figure.add_scatter(
            x=[look.label],
            y=[mean[column]],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [values.max() - mean[column]],
                "arrayminus": [mean[column] - values.min()],
                "thickness": 2,
                "width": 8,
            },
            mode="markers+text",
            text=[f"  {words.number(mean[column])}"],
            textposition="middle right",
            marker={"color": look.colour, "symbol": "line-ew", "size": 22, "line": {"width": 3, "color": look.colour}},
            hovertemplate=f"{look.label}<br>mean %{{y:.4g}}<extra></extra>",
        )
        figure.add_scatter(
            x=[look.label] * len(values),
            y=values,
            customdata=seeds,
            mode="markers",
            marker={"color": look.colour, "symbol": look.symbol, "size": 9, "opacity": 0.75},
            hovertemplate=f"{look.label}, seed %{{customdata}}<br>%{{y:.4g}}<extra></extra>",
        )
    best = means.iloc[0]
    finding = f"{looks[0].label} has the lowest mean {MEASURES[column]}, {words.number(best[column])}"
    if len(means) > 1:
        # A lead smaller than the seeds lie apart may be chance.
        first, second = (rows.loc[rows["method"] == means["method"][i], column] for i in (0, 1))
        apart = "above every seed of it" if second.min() > first.max() else "within the spread over seeds"
        finding += f"; {looks[1].label} lies {apart}"
    style.base(
        figure,
        theme,
        finding,
        f"Mean (line), range (whiskers) and single calibration seeds (marks) at sparsity {sparsity}"
        + ("; log scale" if log else ""),
        x="",
        y=MEASURES[column],
        height=440,
    )
    figure.update_yaxes(**({"type": "log"} if log else {"rangemode": "tozero"}))
    figure.update_xaxes(range=[-0.5, len(means) - 0.3])
    listed = ", ".join(
        f"{look.label} {words.number(row[column])} ± {words.number(row[f'{column}_spread'])}"
        for look, (_, row) in zip(looks, means.iterrows(), strict=True)
    )
    caption = f"Mean ± half the range over up to {words.count(int(means['seeds'].max()), 'seed')}: {listed}."
    alt = f"Means and spread of {MEASURES[column]} by method. {finding}. {caption}"
    return Drawing(figure, caption, alt, means)


def time_and_perplexity(
    table: pd.DataFrame, *, dense: float | None = None, time: str = "time of pruning, s", theme: Theme = "light"
) -> Drawing:
    """What each run costs and what it is worth, with the Pareto front: the runs that no other is as good as on both.

    Args:
        table: `method`, `seconds` and `perplexity` of each run; a `run` names a mark better than its method, and
            `lowest` and `highest` perplexity give it a range. With target "layer" in `target` a mark is open.
        dense: perplexity before pruning.
        time: title of the axis, where `seconds` are in another unit.

    Raises:
        RoseError: no run with both numbers.
    """
    known = np.isfinite(table[["seconds", "perplexity"]].to_numpy(np.float64)).all(axis=1)
    rows = table[known].sort_values(["seconds", "perplexity"], kind="stable").reset_index(drop=True)
    if rows.empty:
        raise RoseError("No run has both a time and a perplexity; prune a model and evaluate it.")
    rows["on_front"] = rows["perplexity"] < rows["perplexity"].cummin().shift(fill_value=np.inf)
    front = rows[rows["on_front"]]
    names = rows["run" if "run" in rows.columns else "method"].astype(str)
    looks = [
        palette.method_style(method)._replace(label=name if name != method else palette.method_style(method).label)
        for name, method in zip(names, rows["method"], strict=True)
    ]
    figure = go.Figure()
    right = 1.12 * float(rows["seconds"].max())
    figure.add_scatter(
        x=[*front["seconds"], right],
        y=[*front["perplexity"], front["perplexity"].iloc[-1]],
        mode="lines",
        line={"shape": "hv", "dash": "dot", "width": 2, "color": palette.INKS[theme].muted},
        name="Pareto front",
        hoverinfo="skip",
    )
    for look, (_, row) in zip(looks, rows.iterrows(), strict=True):
        figure.add_scatter(
            x=[row["seconds"]],
            y=[row["perplexity"]],
            error_y=_reach(row),
            mode="markers",
            name=look.label,
            marker={"color": look.colour, "symbol": _mark(look, row), "size": 13, "line": {"width": 2}},
            hovertemplate=f"{look.label}<br>perplexity %{{y:.4g}}<br>{time} %{{x:.4g}}<extra></extra>",
        )
    if dense is not None:
        style.level(figure, dense, (0, right), "dense", theme)
    best = [look.label for look, is_on in zip(looks, rows["on_front"], strict=True) if is_on]
    lowest = f"{best[-1]} has the lowest perplexity, {words.number(front['perplexity'].iloc[-1])}"
    if len(rows) == 1:
        finding = lowest
    elif len(best) <= NAMED:
        finding = f"Pareto front: {', '.join(best)}"
    else:
        finding = f"{lowest}; {words.out_of(len(best), len(rows), 'run')} lie on the Pareto front"
    levels = [*rows["perplexity"], *([] if dense is None else [dense])]
    log = max(levels) / min(levels) > style.LOG_ABOVE
    what = "Perplexity against time, lower is better in both; dotted: for its time, no run is lower"
    style.base(figure, theme, finding, what + ("; log scale" if log else ""), x=time, y="perplexity", legend=True)
    figure.update_xaxes(range=[0, right])
    if log:
        ticks = [digit * 10**power for power in range(-2, 9) for digit in (1, 2, 5)]
        figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    caption = f"Perplexity at {time}, fastest first: " + "; ".join(
        f"{look.label}: {words.number(row['perplexity'])} at {words.number(row['seconds'])}"
        for look, (_, row) in zip(looks, rows.iterrows(), strict=True)
    )
    alt = f"Scatter chart of perplexity against {time}. {finding}. {caption}."
    return Drawing(figure, f"{caption}.", alt, rows)


def _mark(look: palette.Style, row: pd.Series) -> str:
    return look.symbol.removesuffix("-open") + "-open" if row.get("target") == "layer" else look.symbol


def _reach(row: pd.Series) -> dict[str, object] | None:
    """Whiskers from the lowest to the highest value, where these are known."""
    if "lowest" not in row:
        return None
    up, down = row["highest"] - row["perplexity"], row["perplexity"] - row["lowest"]
    return {"type": "data", "symmetric": False, "array": [up], "arrayminus": [down], "thickness": 1.5, "width": 6}


def method_errors(records: pd.DataFrame, *, column: str = "relative_error", theme: Theme = "light") -> Drawing:
    """Relative error of several methods on one or several layers, as bars.

    Args:
        records: columns as in `rose.LayerRecord`.
        column: "relative_error" or "held_out_error".

    Raises:
        RoseError: no row with this error.
    """
    table = records.dropna(subset=[column])
    if table.empty:
        raise RoseError("No error has been measured yet; prune a layer first.")
    methods = list(dict.fromkeys(table["method"]))
    layers = list(dict.fromkeys(table["layer"]))
    wide = table.pivot_table(index="layer", columns="method", values=column, sort=False).loc[layers, methods]
    figure = go.Figure()
    for method in methods:
        look = palette.method_style(method)
        values = wide[method].to_numpy(np.float64)
        figure.add_bar(
            x=[words.short_layer(layer) for layer in layers],
            y=values,
            customdata=layers,
            name=look.label,
            marker={"color": look.colour},
            text=[words.number(v) for v in values] if len(layers) * len(methods) <= 16 else None,
            textposition="outside",
            cliponaxis=False,
            hovertemplate=f"%{{customdata}}<br>{look.label} %{{y:.4g}}<extra></extra>",
        )
    best = str(wide.mean().idxmin())
    mean = wide.mean()
    base = style.BASELINE
    if base in methods and best != base and mean[base] > 0:
        saved = words.percent(1 - mean[best] / mean[base])
        finding = f"{palette.method_style(best).label} has {saved} less error than {palette.method_style(base).label}"
    else:
        finding = f"{palette.method_style(best).label} has the lowest error"
    held = "held-out" if column == "held_out_error" else "calibration"
    where = words.short_layer(layers[0]) if len(layers) == 1 else f"{len(layers)} layers, mean"
    style.base(
        figure,
        theme,
        finding,
        f"Relative error on {held} tokens, {where}",
        x="layer (decoder block · projection)" if len(layers) > 1 else "",
        y=style.ERROR,
        legend=len(methods) > 1,
    )
    figure.update_yaxes(rangemode="tozero")
    if len(layers) == 1:
        figure.update_layout(bargap=0.5)
    listed = ", ".join(f"{palette.method_style(m).label} {words.number(mean[m])}" for m in mean.sort_values().index)
    caption = f"{'Mean error' if len(layers) > 1 else 'Error'}, lowest first: {listed}."
    alt = f"Bar chart of relative error by method. {finding}. {caption}"
    return Drawing(figure, caption, alt, wide.reset_index())
