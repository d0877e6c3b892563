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
