"""Two runs side by side: maps of decoder block × projection on one scale, and one map minus the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from app import words
from app.figures import marks, overview, palette, style
from app.figures.palette import Theme
from app.figures.style import Drawing
from rose import verdicts

ROW = 34  # pixels a projection takes
BULK = 98.0  # percentile at which a scale of shares ends where a few layers would make all others pale


def run_maps(rows: pd.DataFrame, names: tuple[str, str], measure: str, *, theme: Theme = "light") -> Drawing:
    """The same number of every layer in two runs, one map above the other, on one scale.

    The rows have layer, block_index, projection, first, second; `measure` is the number in words that follow "the".
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.16, subplot_titles=names)
    maps = [overview.folded(rows.assign(value=rows[which])) for which in ("first", "second")]
    top = _on_one_scale(figure, maps, measure, theme)
    figure.update_xaxes(title_text="decoder block", row=2, col=1)
    finding = _where_highest(rows, names, measure)
    what = (
        f"{words.sentence(measure)} of {overview.every_layer(rows, maps[0])} in both runs, on one scale from 0 to {top}"
    )
    means = [words.number(float(rows[which].mean())) for which in ("first", "second")]
    caption = f"Mean over {words.count(len(rows), 'layer')}: {names[0]} {means[0]}, {names[1]} {means[1]}."
    alt = f"Two maps of {measure} by decoder block and projection"
    frame = {"height": 230 + 2 * ROW * max(3, maps[0]["projection"].nunique()), "headroom": 22}
    return style.finish(figure, theme, finding, what, caption, alt, _named(rows, names), **frame)


def maps_apart(
    rows: tuple[pd.DataFrame, pd.DataFrame],
    names: tuple[str, str],
    measure: str,
    *,
    why: str = "",
    theme: Theme = "light",
) -> Drawing:
    """The same number of every layer of two runs that are not compared: two maps with axes of their own, on one scale.

    The rows of each have layer, block_index, projection, value. `why`: a sentence, unless it is that they are of
    different models.
    """
    maps = [overview.folded(one) for one in rows]
    tall = [max(3, one["projection"].nunique()) for one in maps]
    figure = make_subplots(rows=2, cols=1, row_heights=tall, vertical_spacing=0.2, subplot_titles=names)
    top = _on_one_scale(figure, maps, measure, theme)
    worst = [one.loc[one["value"].idxmax()] for one in rows]
    places = [
        f"in {words.short_layer(at['layer'])} of {name}, {words.number(at['value'])}"
        for at, name in zip(worst, names, strict=True)
    ]
    finding = f"The highest {measure} is {places[0]}, and {places[1]}"
    which = overview.every_layer(pd.concat(rows), pd.concat(maps))
    what = f"{words.sentence(measure)} of {which} of two {'runs' if why else 'models'}, on one scale from 0 to {top}"
    means = [f"{words.number(float(one['value'].mean()))} over {words.count(len(one), 'layer')}" for one in rows]
    why = why or (
        "Two models, so no layer of one corresponds to one of the other: compare where in each model the "
        f"{measure} is high, and how high."
    )
    caption = f"{why} Mean: {names[0]} {means[0]}; {names[1]} {means[1]}."
    alt = f"Two maps of {measure} by decoder block and projection, one above the other"
    table = pd.concat([one.assign(run=name) for one, name in zip(rows, names, strict=True)], ignore_index=True)
    table, frame = table.rename(columns={"value": measure}), {"height": 270 + ROW * sum(tall), "headroom": 22}
    return style.finish(figure, theme, finding, what, caption, alt, table, x="decoder block", **frame)


def run_difference(
    rows: pd.DataFrame, names: tuple[str, str], measure: str, *, as_share: bool = False, theme: Theme = "light"
) -> Drawing:
    """The second run's map minus the first's, or the change as a share of the first's, on a scale centred on 0.

    Shares have the colours of the ratio's logarithm: a third and three times are equally far from no change, and
    nothing is below −100 %.
    """
    gap = rows["second"] - rows["first"]
    base = rows["first"].where(rows["first"] > 0)
    shown, limit = gap, float(gap.abs().max()) or 1.0
    ticks: dict[str, Any] = {}
    what = f"{words.sentence(measure)} of {names[1]} minus that of {names[0]}"
    if as_share:
        shown, limit, beyond = _log_ratios(rows["second"] / base)
        gap, ticks = gap / base, _share_ticks(limit)
        what += ", as a share of it, coloured by the ratio's logarithm"
    what += "; purple: lower, orange: higher"
    if as_share and (blank := int(base.isna().sum())):
        what += f"; blank: {words.count(blank, 'layer')} in which {names[0]} has 0"
    if as_share and beyond:
        low, high = (words.number(100 * math.expm1(end)) for end in (-limit, limit))
        what += f"; the scale ends at {low} % and +{high} %, {words.count(beyond, 'layer')} beyond"
    unit = "change" if as_share else "difference"
    scale: dict[str, Any] = {"colorscale": palette.DIVERGING[theme], "zmin": -limit, "zmax": limit}
    text: Callable[[float], str] = words.percent if as_share else words.number
    apart = rows.assign(value=gap, text=[_signed(change, text(change)) for change in gap])
    cells, figure = overview.folded(apart.assign(value=shown)), go.Figure()
    if len(cells) < len(rows):
        what += "; of experts the largest"
    grid = marks.layer_grid(cells).clip(-limit, limit)
    marks.layer_map(figure, grid, cells, unit, **scale, colorbar=marks.colourbar(unit, **ticks))
    finding = verdicts.says_layers(rows, names, measure)
    caption = _difference_caption(apart, names)
    alt = f"Map of the difference in {measure} by decoder block and projection"
    table = _named(rows, names).assign(difference=rows["second"] - rows["first"])
    frame = {"x": "decoder block", "height": 180 + ROW * max(3, cells["projection"].nunique())}
    return style.finish(figure, theme, finding, what, caption, alt, table, **frame)


def _log_ratios(ratios: pd.Series) -> tuple[pd.Series, float, int]:
    """Logarithms of ratios, the limit of their scale, and how many layers lie beyond it."""
    with np.errstate(divide="ignore"):
        logs = np.log(ratios)
    sizes = logs.abs()[np.isfinite(logs)].to_numpy(np.float64)
    limit = float(sizes.max(initial=0.0))
    # An order statistic: between the largest and the next one, the largest of few layers would still set the scale.
    if len(sizes) and limit > 3 * (common := float(np.percentile(sizes, BULK, method="lower"))) > 0:
        limit = common
    limit = limit or 1.0
    return logs, limit, int((logs.abs() > limit).sum())


def _share_ticks(limit: float) -> dict[str, Any]:
    """Ticks in per cent on a scale of logarithms: at 0 and, on both sides, about half-way and near the end."""
    rises = [digit * 10.0**power for power in range(-5, 5) for digit in (1, 2, 5)]
    falls = [-rise for rise in rises if rise < 0.6] + [1 / times - 1 for times in (5, 10, 20, 50, 100, 1000)]
    shares = [0.0]
    for side in (rises, falls):
        for part in (0.5, 1.0):
            inside = [share for share in side if abs(math.log1p(share)) <= part * limit]
            shares += inside[-1:]
    shares = sorted(set(shares))
    texts = [_signed(share, f"{100 * share:,.6g} %".replace(",", " ").replace("-", "−")) for share in shares]
    return {"tickvals": [math.log1p(share) for share in shares], "ticktext": texts}


def _signed(change: float, text: str) -> str:
    return f"{'+' if change > 0 else ''}{text}"


def _difference_caption(rows: pd.DataFrame, names: tuple[str, str]) -> str:
    less, more = verdicts.sides(rows)
    same = len(rows) - less - more
    parts = [
        f"{way} in {words.word(some)}" for way, some in (("lower", less), ("higher", more), ("equal", same)) if some
    ]
    caption = f"Of {words.count(len(rows), 'layer')} {names[1]} is {', '.join(parts)}"
    known = rows.dropna(subset=["value"])
    if (less or more) and len(known):
        low, high = known.loc[known["value"].idxmin()], known.loc[known["value"].idxmax()]
        caption += (
            f"; from {low['text']} ({words.short_layer(low['layer'])}) to {high['text']} "
            f"({words.short_layer(high['layer'])}). Averages over layers are geometric means of ratios"
        )
    return caption + "."


def _where_highest(rows: pd.DataFrame, names: tuple[str, str], measure: str) -> str:
    one, two = (rows.loc[rows[which].idxmax()] for which in ("first", "second"))
    if one["layer"] == two["layer"]:
        return (
            f"Both runs have the highest {measure} in {words.short_layer(one['layer'])}: {words.number(one['first'])} "
            f"and {words.number(two['second'])}"
        )
    return (
        f"The highest {measure} is in {words.short_layer(one['layer'])} of {names[0]}, {words.number(one['first'])}, "
        f"and in {words.short_layer(two['layer'])} of {names[1]}, {words.number(two['second'])}"
    )


def _on_one_scale(figure: go.Figure, maps: Sequence[pd.DataFrame], measure: str, theme: Theme) -> str:
    """Draws the maps one above the other in subplots with their names; returns where the scale of colours ends."""
    top = max(float(rows["value"].max()) for rows in maps) or 1.0
    for number, rows in enumerate(maps, 1):
        shown, at = rows.assign(text=rows["value"].map(words.number)), {"row": number, "col": 1}
        marks.layer_map(figure, marks.layer_grid(rows), shown, measure, at=at, coloraxis="coloraxis")
    scale = {"colorscale": palette.SEQUENTIAL, "cmin": 0, "cmax": top, "colorbar": marks.colourbar(measure)}
    figure.update_layout(coloraxis=scale)
    figure.update_annotations(font={"size": style.FONT_SIZE + 1, "color": palette.INKS[theme].text})
    return words.number(top)


def _named(rows: pd.DataFrame, names: tuple[str, str]) -> pd.DataFrame:
    return rows[["layer", "block_index", "projection", "first", "second"]].rename(
        columns={"first": names[0], "second": names[1]}
    )
