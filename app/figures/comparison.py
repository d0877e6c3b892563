"""Methods against each other over several calibration seeds: means, and how far the seeds lie apart."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app.figures import style
from app.figures.style import Drawing, Theme
from app.results import over_seeds
from rose import RoseError

Measure = Literal["perplexity", "mean_held_out_error"]
MEASURES: dict[Measure, str] = {"perplexity": "perplexity", "mean_held_out_error": "mean relative error, held-out"}
LOG_ABOVE = 10.0


def over_seeds_bars(
    table: pd.DataFrame,
    sparsity: str,
    *,
    column: Measure = "perplexity",
    theme: Theme = "light",
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
    looks = [style.method_style(method) for method in means["method"]]
    log = float(rows[column].max() / rows[column].min()) > LOG_ABOVE
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
            text=[f"  {style.number(mean[column])}"],
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
    finding = f"{looks[0].label} has the lowest mean {MEASURES[column]}, {style.number(best[column])}"
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
        f"{look.label} {style.number(row[column])} ± {style.number(row[f'{column}_spread'])}"
        for look, (_, row) in zip(looks, means.iterrows(), strict=True)
    )
    caption = f"Mean ± half the range over up to {style.count(int(means['seeds'].max()), 'seed')}: {listed}."
    alt = f"Means and spread of {MEASURES[column]} by method. {finding}. {caption}"
    return Drawing(figure, caption, alt, means)
