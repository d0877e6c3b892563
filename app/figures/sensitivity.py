"""What the model loses by each layer or decoder block alone, beside the error that was made there.

Tables are those of `rose.model.measure.damage_report`: one row per unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import words
from app.figures import maps, palette, shapes, style
from app.figures.palette import Theme
from app.figures.style import Drawing
from rose import RoseError, verdicts
from rose.model.measure.damage_report import outliers, rank_correlation

BLOCK = "decoder block"  # in place of a projection, where the unit is one
# What could tell damage in advance: column -> in words, and its axis.
PREDICTORS = {
    "held_out_error": ("held-out error", "held-out relative error"),
    "relative_error": ("calibration error", "relative error on calibration tokens"),
    "output_error": ("output error", "output error ‖ΔW x‖², per token"),
    "drift": ("drift", "drift of the stream after the decoder block, ‖Δh‖² / ‖h‖²"),
}
SUMMED = {  # what one number of a decoder block is made of
    "held_out_error": ", mean over its layers",
    "relative_error": ", mean over its layers",
    "output_error": ", sum over its layers",
}
NAMED = 5  # outliers that are named in the plot
FEWEST = 5  # units of which a rank correlation says anything
FEW = 40  # units up to which error bars can be told apart


def as_layers(table: pd.DataFrame) -> pd.DataFrame:
    """The table with columns `layer` and `projection` as maps expect them; a decoder block has one row of its own."""
    return table.assign(layer=table["unit"], projection=table["projection"].replace("", BLOCK))


def damage_bars(
    table: pd.DataFrame,
    value: str = "damage",
    *,
    units: Sequence[str] = (),
    marked: str | None = None,
    theme: Theme = "light",
) -> Drawing:
    """As `damage_map`, of whole decoder blocks, one bar each; whiskers are one standard error over windows."""
    if table.empty:
        raise RoseError("No decoder block has been measured yet.")
    rows = table.sort_values("block_index").reset_index(drop=True)
    name, axis = ("sensitivity", "nats per token") if value == "damage" else PREDICTORS[value]
    caption = maps.range_of(words.sentence(name), rows.set_index("unit")[value])
    columns, whiskers = ["unit", "block_index", value], {}
    if value == "damage":
        if rows["standard_error"].notna().any():  # of one window there is none
            caption += " Whiskers: one standard error over windows."
        columns.append("standard_error")
        reach = {"array": rows["standard_error"], "thickness": 1, "width": 3, "color": palette.INKS[theme].muted}
        whiskers = {"error_y": reach}
    outline = {"line": {"color": palette.MARK, "width": np.where(rows["unit"] == marked, 3, 0)}}
    look, hover = palette.Style(palette.TEAL, name), f"decoder block %{{x}}<br>{name} %{{y:.4g}}"
    figure = go.Figure()
    x, y = rows["block_index"], rows[value]
    # Of its own accord a bar reaches over blocks that were not measured.
    shapes.bars(figure, x, y, look, hover, width=0.8, customdata=rows["unit"], marker=outline, **whiskers)
    places = [int(index) for index in rows["block_index"]] + [words.place_of(unit)[0] or 0 for unit in units]
    shapes.block_axis(figure, places)
    top = rows.loc[rows[value].idxmax()]
    finding = f"{words.sentence(name)} is highest in {words.short_layer(top['unit'])}, {words.number(top[value])}"
    what = f"{words.sentence(name)} of every decoder block{SUMMED.get(value, '')}"
    frame = {"x": "decoder block", "y": axis, "height": 360}
    alt = f"Bar chart of {name} by decoder block"
    return style.finish(figure, theme, finding, what, caption, alt, rows[columns], **frame)


def damage_map(
    table: pd.DataFrame,
    value: str = "damage",
    *,
    units: Sequence[str] = (),
    marked: str | None = None,
    theme: Theme = "light",
) -> Drawing:
    """Damage of layers, or one of `PREDICTORS`, by decoder block and projection; marks answer clicks with the unit.

    The table has the units measured so far, `units` those to come too, so that the picture keeps its size.
    """
    drawing = maps.model_map(as_layers(table), value, layers=list(units), marked_layer=marked, theme=theme)
    drawing.figure.update_layout(height=max(300, drawing.figure.layout.height))
    return drawing


def damage_scatter(
    table: pd.DataFrame,
    predictor: str = "held_out_error",
    *,
    marked: str | None = None,
    restore: bool = False,
    theme: Theme = "light",
) -> Drawing:
    """A predictor against damage, one mark a unit; the title states their rank correlation, outliers are named.

    Both axes are logarithmic, because both spread over decades. Units without damage have no place there; the caption
    counts them. With `restore` units were given their dense weights back in a pruned model. Marks answer clicks.
    """
    name, axis = PREDICTORS[predictor]
    rows = as_layers(table)
    shown = rows[(rows["damage"] > 0) & (rows[predictor] > 0)]
    _check_enough(len(shown), name, restore)
    figure = go.Figure()
    looks = palette.projection_styles(list(dict.fromkeys(rows["projection"].map(maps.map_row))))
    for projection, part in shown.groupby(shown["projection"].map(maps.map_row), sort=False):
        spread, cost = part["standard_error"].fillna(0.0), part["damage"]
        down = np.minimum(spread, 0.9 * cost)  # a logarithmic axis has no 0
        hover = f"%{{customdata[0]}}<br>{name} %{{x:.4g}}<br>sensitivity %{{y:.4g}} ± %{{customdata[1]}} nats"
        shapes.points(
            figure,
            part[predictor],
            cost,
            looks[str(projection)],
            hover,
            size=10,
            marker={"opacity": 0.85},
            error_y={"array": spread, "arrayminus": down, "visible": len(shown) <= FEW, "thickness": 1, "width": 3},
            customdata=np.column_stack([part["unit"], spread.map(words.number)]),
        )
    found = outliers(rows, predictor, NAMED) if rows[predictor].nunique() > 1 else rows.head(0)
    placed = found[(found["damage"] > 0) & (found[predictor] > 0)].fillna({"standard_error": 0.0})
    for row in placed.to_dict("records"):  # named above its mark, clear of the error bar's end where there is room
        x, y = math.log10(row[predictor]), math.log10(row["damage"] + max(0.0, row["standard_error"]))  # by exponent
        figure.add_annotation(x=x, y=y, text=words.short_layer(row["unit"]), showarrow=False, yshift=14)
    chosen = shown[shown["unit"] == marked]
    if len(chosen):
        shapes.rings(figure, chosen[predictor], chosen["damage"], "chosen")
    rho = rank_correlation(rows, predictor)
    unit = "decoder blocks" if BLOCK in set(rows["projection"]) else "layers"
    finding = verdicts.says_correlation(words.sentence(name), f"which {unit} the loss depends on", rho)
    if len(found):
        finding += f"; small error, high sensitivity: {words.short_layer(found['unit'].iloc[0])}"
    meant = "restoring it alone gives back" if restore else "the model loses by it alone"
    what = (
        f"{words.sentence(name)} against sensitivity, one mark a {unit.removesuffix('s')}, both axes logarithmic; "
        f"sensitivity: nats per token that {meant}"
    )
    figure.update_xaxes(_log_axis(shown[predictor]))
    figure.update_yaxes(_log_axis(shown["damage"]))
    caption = _caption(rows, shown, unit, found, restore=restore)
    table = rows[["unit", "block_index", "projection", predictor, "damage", "standard_error"]].reset_index(drop=True)
    alt = f"Scatter chart of {name} against sensitivity"
    legend = len(figure.data) > 1
    frame = {"x": axis, "y": "sensitivity, nats per token", "height": 520, "legend": legend}
    return style.finish(figure, theme, finding, what, caption, alt, table, **frame)


def _check_enough(shown: int, name: str, restore: bool) -> None:
    """Raises RoseError where so few units can be shown that comparing `name` with damage says nothing."""
    if not shown:
        done = "given the model anything back" if restore else "cost the model anything"
        more = "Measure more units." if restore else "Measure more units, or choose a higher sparsity."
        raise RoseError(f"No unit measured so far has {done}. {more}")
    if shown < FEWEST:
        does = "give the model something back" if restore else "cost the model something"
        known = f"{words.word(shown)} measured so far {'does' if shown == 1 else 'do'}"
        needs = f"{words.word(FEWEST)} units that each {does}"
        raise RoseError(f"Comparing {name} with sensitivity takes {needs}; {known}. Measure more.")


def _log_axis(values: pd.Series) -> dict[str, object]:
    """With ticks at 1, 2 and 5 where it spans few decades, and evenly where hardly one of these would be on it."""
    if (spread := style.spread(values)) < 5:
        return {"type": "log", **_even_ticks(float(values.min()), float(values.max()))}
    return style.LOG | ({"dtick": "D2"} if spread < 30 else {})


def _even_ticks(low: float, high: float) -> dict[str, list[Any]]:
    """From just below one value to just above another, at multiples of 1, 2 or 5 times a power of ten."""
    reach = max(high - low, 0.05 * high)
    power = 10.0 ** math.floor(math.log10(reach / 5))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= reach / 5)
    places = np.arange(math.floor(low / step), math.ceil(high / step) + 1)
    ticks = [float(f"{place * step:.6g}") for place in places if place > 0]
    return {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _caption(rows: pd.DataFrame, shown: pd.DataFrame, unit: str, found: pd.DataFrame, *, restore: bool) -> str:
    top = rows.loc[rows["damage"].idxmax()]
    text = (
        f"Of {len(rows)} {unit}, {words.short_layer(top['unit'])} {'gives back' if restore else 'costs'} most: "
        f"{words.number(float(top['damage']))}"
    )
    known = not math.isnan(top["standard_error"])  # of one window alone there is none
    text += f" ± {words.number(float(top['standard_error']))}" if known else ""
    text += f" nats per token{' (standard error over windows)' if known else ''}."
    if len(found):
        listed = ", ".join(
            f"{words.short_layer(row.unit)} ({words.number(float(row.damage))})" for row in found.itertuples()
        )
        text += f" Small error, high sensitivity: {listed}."
    free = int((rows["damage"] <= 0).sum())
    for hidden, why in (
        (free, f"not {'lowering' if restore else 'raising'} the loss"),
        (len(rows) - len(shown) - free, "without the other value"),
    ):
        if hidden:
            text += f" Not shown: {words.word(hidden)} {why}."
    return text
