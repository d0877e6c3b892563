"""Two runs side by side: maps of decoder block × projection on one scale, and one map minus the other."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from app import words
from app.figures import palette, style
from app.figures.palette import Theme
from app.figures.style import Drawing
from app.runs.pairs import mean_change, sides
from rose import RoseError

ROW, CELL = 34, 16  # pixels a projection takes; of the marks that answer the pointer
BULK = 98.0  # percentile at which a scale of shares ends where a few layers would make all others pale


def run_maps(rows: pd.DataFrame, names: tuple[str, str], measure: str, *, theme: Theme = "light") -> Drawing:
    """The same number of every layer in two runs, one map above the other, on one scale.

    Args:
        rows: layer, block_index, projection, first, second.
        names: of the two runs.
        measure: the number in words, as it follows "the".

    Raises:
        RoseError: no layer.
    """
    _require(rows, measure)
    top = float(rows[["first", "second"]].to_numpy(np.float64).max()) or 1.0
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.16, subplot_titles=names)
    projections: list[str] = []
    for number, which in enumerate(("first", "second"), 1):
        shown = rows[["layer", "block_index", "projection"]].assign(value=rows[which])
        projections = _map(figure, shown, measure, words.number, number, coloraxis="coloraxis")
    worst = {which: rows.loc[rows[which].idxmax()] for which in ("first", "second")}
    finding = _where_highest(worst, names, measure)
    what = f"{words.sentence(measure)} of every layer in both runs, on one scale from 0 to {words.number(top)}"
    height = 230 + 2 * ROW * max(3, len(projections))
    style.base(figure, theme, finding, what, height=height)
    bar = style.colourbar(measure)
    figure.update_layout(coloraxis={"colorscale": palette.SEQUENTIAL, "cmin": 0, "cmax": top, "colorbar": bar})
    figure.update_annotations(font={"size": style.FONT_SIZE + 1, "color": palette.INKS[theme].text})
    figure.update_layout(margin_t=figure.layout.margin.t + 22)
    figure.update_xaxes(title_text="decoder block", row=2, col=1)
    means = [float(rows[which].mean()) for which in ("first", "second")]
    caption = (
        f"Mean over {words.count(len(rows), 'layer')}: {names[0]} {words.number(means[0])}, {names[1]} "
        f"{words.number(means[1])}."
    )
    alt = f"Two maps of {measure} by decoder block and projection. {finding}. {caption}"
    return Drawing(figure, caption, alt, _named(rows, names))


def maps_apart(
    rows: tuple[pd.DataFrame, pd.DataFrame], names: tuple[str, str], measure: str, *, theme: Theme = "light"
) -> Drawing:
    """The same number of every layer of two different models: two maps with axes of their own, on one scale.

    Args:
        rows: of each, layer, block_index, projection, value.
        names: of the two runs, with their models.
        measure: the number in words, as it follows "the".

    Raises:
        RoseError: no layer.
    """
    for one in rows:
        _require(one, measure)
    top = max(float(one["value"].max()) for one in rows) or 1.0
    tall = [max(3, one["projection"].nunique()) for one in rows]
    figure = make_subplots(rows=2, cols=1, row_heights=tall, vertical_spacing=0.2, subplot_titles=names)
    for number, one in enumerate(rows, 1):
        _map(figure, one, measure, words.number, number, coloraxis="coloraxis")
        figure.update_xaxes(title_text="decoder block", row=number, col=1)
    worst = [one.loc[one["value"].idxmax()] for one in rows]
    places = [
        f"in {words.short_layer(at['layer'])} of {name}, {words.number(at['value'])}"
        for at, name in zip(worst, names, strict=True)
    ]
    finding = f"The highest {measure} is {places[0]}, and {places[1]}"
    what = f"{words.sentence(measure)} of every layer of two models, on one scale from 0 to {words.number(top)}"
    style.base(figure, theme, finding, what, height=270 + ROW * sum(tall))
    bar = style.colourbar(measure)
    figure.update_layout(coloraxis={"colorscale": palette.SEQUENTIAL, "cmin": 0, "cmax": top, "colorbar": bar})
    figure.update_annotations(font={"size": style.FONT_SIZE + 1, "color": palette.INKS[theme].text})
    figure.update_layout(margin_t=figure.layout.margin.t + 22)
    means = [f"{words.number(float(one['value'].mean()))} over {words.count(len(one), 'layer')}" for one in rows]
    caption = (
        "Two models, so no layer of one corresponds to one of the other: what compares is where in each model the "
        f"{measure} is high, and how high. Mean: {names[0]} {means[0]}; {names[1]} {means[1]}."
    )
    alt = f"Two maps of {measure} by decoder block and projection, of two models. {finding}. {caption}"
    table = pd.concat([one.assign(run=name) for one, name in zip(rows, names, strict=True)], ignore_index=True)
    return Drawing(figure, caption, alt, table.rename(columns={"value": measure}))


def run_difference(
    rows: pd.DataFrame, names: tuple[str, str], measure: str, *, as_share: bool = False, theme: Theme = "light"
) -> Drawing:
    """The second run's map minus the first's, on a scale centred on 0.

    Args:
        rows, names, measure: as for `run_maps`.
        as_share: shows the change as a share of the first run's number.

    Raises:
        RoseError: no layer.
    """
    _require(rows, measure)
    gap = rows["second"] - rows["first"]
    if as_share:
        gap = gap / rows["first"].where(rows["first"] > 0)
    shown = rows[["layer", "block_index", "projection"]].assign(value=gap)
    sizes = gap.abs().dropna().to_numpy(np.float64)
    largest = float(sizes.max(initial=0.0))
    limit = largest
    if as_share and len(sizes) and largest > 3 * (common := float(np.percentile(sizes, BULK))) > 0:
        limit = common
    figure = go.Figure()
    text = _signed_share if as_share else _signed
    bar = style.colourbar("change" if as_share else "difference", tickformat=".0%" if as_share else None)
    scale = {"colorscale": palette.diverging(theme), "zmin": -(limit or 1.0), "zmax": limit or 1.0, "colorbar": bar}
    projections = _map(figure, shown, "change" if as_share else "difference", text, None, **scale)
    finding = difference_finding(rows, names, measure)
    what = (
        f"{words.sentence(measure)} of {names[1]} minus that of {names[0]}{', as a share of it' if as_share else ''}; "
        "purple: lower, orange: higher"
    )
    if limit < largest:
        what += f"; the scale ends at {words.percent(limit, 0)}, a few layers lie beyond"
    style.base(figure, theme, finding, what, x="decoder block", height=180 + ROW * max(3, len(projections)))
    caption = _difference_caption(rows.assign(value=gap), names, text)
    alt = f"Map of the difference in {measure} by decoder block and projection. {finding}. {caption}"
    return Drawing(figure, caption, alt, _named(rows, names).assign(difference=rows["second"] - rows["first"]))


def difference_finding(rows: pd.DataFrame, names: tuple[str, str], measure: str) -> str:
    """ "ROSE at 0.7 has the lower held-out error in 180 of 210 layers; on average it is 14 % lower"."""
    less, more = sides(rows)
    total = words.count(len(rows), "layer")
    if not less and not more:
        return f"Both runs have the same {measure} in {words.out_of(len(rows), len(rows), 'layer')}"
    way, some = ("lower", less) if less >= more else ("higher", more)
    finding = f"{names[1]} has the {way} {measure} in {words.word(some)} of {total}"
    change = mean_change(rows["first"].to_numpy(np.float64), rows["second"].to_numpy(np.float64))
    if math.isnan(change):
        return finding
    if abs(change) < 5e-4:
        return f"{finding}; on average the two are equal"
    on_average = "lower" if change < 0 else "higher"
    return f"{finding}; {'' if on_average == way else 'yet '}on average it is {_share(abs(change))} {on_average}"


def _difference_caption(rows: pd.DataFrame, names: tuple[str, str], text: object) -> str:
    less, more = sides(rows)
    same = len(rows) - less - more
    parts = [
        f"{way} in {words.word(some)}" for way, some in (("lower", less), ("higher", more), ("equal", same)) if some
    ]
    caption = f"Of {words.count(len(rows), 'layer')} {names[1]} is {', '.join(parts)}"
    known = rows.dropna(subset=["value"])
    if less or more:
        low, high = known.loc[known["value"].idxmin()], known.loc[known["value"].idxmax()]
        assert callable(text)
        caption += (
            f"; from {text(low['value'])} ({words.short_layer(low['layer'])}) to {text(high['value'])} "
            f"({words.short_layer(high['layer'])}). Averages over layers are geometric means of ratios"
        )
    return caption + "."


def _where_highest(worst: dict[str, pd.Series], names: tuple[str, str], measure: str) -> str:
    one, two = worst["first"], worst["second"]
    if one["layer"] == two["layer"]:
        return (
            f"Both runs have the highest {measure} in {words.short_layer(one['layer'])}: {words.number(one['first'])} "
            f"and {words.number(two['second'])}"
        )
    return (
        f"The highest {measure} is in {words.short_layer(one['layer'])} of {names[0]}, {words.number(one['first'])}, "
        f"and in {words.short_layer(two['layer'])} of {names[1]}, {words.number(two['second'])}"
    )


def _map(
    figure: go.Figure, rows: pd.DataFrame, unit: str, text: object, at: int | None, **colours: object
) -> list[str]:
    """Adds one map, in a row of subplots or alone; returns its projections."""
    assert callable(text)
    projections = list(dict.fromkeys(rows["projection"]))
    blocks = range(int(rows["block_index"].min()), int(rows["block_index"].max()) + 1)
    grid = rows.pivot_table(index="projection", columns="block_index", values="value", sort=False, dropna=False)
    grid = grid.reindex(index=projections, columns=blocks)
    place = {} if at is None else {"row": at, "col": 1}
    figure.add_heatmap(
        z=grid.to_numpy(np.float32),
        x=np.array(blocks, np.int32),
        y=projections,
        xgap=1,
        ygap=1,
        hoverinfo="skip",
        **colours,
        **place,
    )
    figure.add_scatter(  # cells do not answer the pointer well where they are small: marks in them do
        x=rows["block_index"].to_numpy(np.int32),
        y=rows["projection"].tolist(),
        customdata=rows["layer"].tolist(),
        text=[text(value) for value in rows["value"]],
        mode="markers",
        marker={"size": CELL, "symbol": "square", "opacity": 0},
        hovertemplate=f"%{{customdata}}<br>{unit} %{{text}}<extra></extra>",
        showlegend=False,
        **place,
    )
    figure.update_xaxes(
        range=[blocks[0] - 0.5, blocks[-1] + 0.5],
        showgrid=False,
        zeroline=False,
        dtick=style.whole_step(len(blocks)),
        **place,
    )
    figure.update_yaxes(
        categoryorder="array",
        categoryarray=projections,
        range=[len(projections) - 0.5, -0.5],
        showgrid=False,
        ticks="",
        **place,
    )
    return projections


def _named(rows: pd.DataFrame, names: tuple[str, str]) -> pd.DataFrame:
    return rows[["layer", "block_index", "projection", "first", "second"]].rename(
        columns={"first": names[0], "second": names[1]}
    )


def _require(rows: pd.DataFrame, measure: str) -> None:
    if rows.empty:
        raise RoseError(f"There is no layer of which both runs know the {measure}; choose another number.")


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + words.number(value)


def _signed_share(value: float) -> str:
    return ("+" if value > 0 else "") + words.percent(value)


def _share(value: float) -> str:
    return words.percent(value, 0 if value >= 0.095 else 1)
