"""The cost of each part of a model alone: layers and decoder blocks beside their error, heads, and channels of MLPs.

Tables of damage come from `rose.model.measure.damage`: one row per unit.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from app.figures import maps, palette
from app.figures.palette import Style, Theme
from app.figures.shapes import BARE, CHOSEN, Chart, colourbar, whole_step
from app.figures.style import LOG, Drawing, spread
from app.words import count, number, percent, place_of, sentence, short_layer, whole, word
from rose import RoseError, verdicts
from rose.model.measure.damage import rank_correlation

BLOCK = "decoder block"  # in place of a projection, where the unit is one
# Predictors of damage: column -> words, axis, and what the number of a decoder block is made of.
PREDICTORS = {
    "held_out_error": ("held-out error", "held-out relative error", ", mean over its layers"),
    "relative_error": ("calibration error", "relative error on calibration tokens", ", mean over its layers"),
    "output_error": ("output error", "output error ‖ΔW x‖², per token", ", sum over its layers"),
    "drift": ("drift", "drift of the stream after the decoder block, ‖Δh‖² / ‖h‖²", ""),
}
FEWEST = 5  # units of which a rank correlation says anything
FEW = 40  # units up to which error bars can be told apart


def as_layers(table: pd.DataFrame) -> pd.DataFrame:
    """The table with columns `layer` and `projection` as maps expect them; a decoder block has one row of its own."""
    return table.assign(layer=table["unit"], projection=table["projection"].replace("", BLOCK))


def damage_map(
    table: pd.DataFrame, value: str = "damage", *,
    units: Sequence[str] = (), marked: str | None = None, theme: Theme = "light",
) -> Drawing:  # fmt: skip
    """Damage of layers, or a predictor, by decoder block and projection, with an empty place for `units` to come."""
    drawing = maps.model_map(as_layers(table), value, layers=list(units), marked_layer=marked, theme=theme)
    # This map is half as wide as others: all numbers would stand upright.
    step = whole_step(2 * len(drawing.figure.data[0].x))
    drawing.figure.update_layout(height=max(300, drawing.figure.layout.height), xaxis_dtick=step)
    return drawing


def damage_bars(
    table: pd.DataFrame, value: str = "damage", *,
    units: Sequence[str] = (), marked: str | None = None, theme: Theme = "light",
) -> Drawing:  # fmt: skip
    """As `damage_map`, of whole decoder blocks, one bar each; whiskers are one standard error over windows."""
    if table.empty:
        raise RoseError("No decoder block has been measured yet.")
    rows = table.sort_values("block_index", ignore_index=True)
    name, axis, made_of = ("sensitivity", "nats per token", "") if value == "damage" else PREDICTORS[value]
    chart = Chart(x="decoder block", y=axis, height=360, theme=theme)
    caption, columns = "", ["unit", "block_index", value]
    outline = {"line": {"color": palette.MARK, "width": np.where(rows["unit"] == marked, 3, 0)}}
    # Of its own accord a bar reaches over blocks that were not measured.
    options: dict[str, Any] = {"width": 0.8, "customdata": rows["unit"], "marker": outline}
    if value == "damage":
        columns.append("standard_error")
        options["error_y"] = {"array": rows["standard_error"], "thickness": 1, "width": 3, "color": chart.ink.muted}
        if rows["standard_error"].notna().any():  # a single window has no standard error
            caption = "Whiskers: one standard error over windows."
    hover = f"decoder block %{{x}}<br>{name} %{{y:.4g}}"
    chart.bars(rows["block_index"], rows[value], Style(palette.TEAL, name), hover, **options)
    chart.block_axis([*rows["block_index"], *(place_of(unit)[0] or 0 for unit in units)])
    top = rows.loc[rows[value].idxmax()]
    finding = f"{sentence(name)} is highest in {short_layer(top['unit'])}, {number(top[value])}"
    note = f"{sentence(name)} of every decoder block{made_of}"
    return chart.done(finding, note, caption, f"Bar chart of {name} by decoder block", rows[columns])


def damage_scatter(
    table: pd.DataFrame, predictor: str = "held_out_error", *,
    marked: str | None = None, restore: bool = False, theme: Theme = "light",
) -> Drawing:  # fmt: skip
    """A predictor against damage, one mark a unit; the title states their rank correlation.

    With `restore` units were given their dense weights back in a pruned model.
    """
    name, axis, _ = PREDICTORS[predictor]
    rows = as_layers(table)
    shown = rows[(rows["damage"] > 0) & (rows[predictor] > 0)]
    if shown.empty:
        done = "given the model anything back" if restore else "cost the model anything"
        options = "Measure more units." if restore else "Measure more units, or choose a higher sparsity."
        raise RoseError(f"No unit measured so far has {done}. {options}")
    if len(shown) < FEWEST:
        needs = f"{word(FEWEST)} units that each {'give' if restore else 'cost'} the model something"
        needs += " back" if restore else ""
        status = f"{word(len(shown))} measured so far {'does' if len(shown) == 1 else 'do'}"
        raise RoseError(f"Comparing {name} with sensitivity takes {needs}; {status}. Measure more.")
    parts_of_blocks = shown["projection"].str.partition(".")[0]  # "self_attn", "mlp": few enough to tell apart
    frame: dict[str, Any] = {"height": 460, "legend": parts_of_blocks.nunique() > 1}
    chart = Chart(x=axis, y="sensitivity, nats per token", theme=theme, **frame)
    _draw_units(chart, shown, predictor, parts_of_blocks)
    chosen = shown[shown["unit"] == marked]
    if len(chosen):
        chart.legend = True
        chart.rings(chosen[predictor], chosen["damage"], "chosen")
    unit = "decoder blocks" if BLOCK in set(rows["projection"]) else "layers"
    rho = rank_correlation(rows, predictor)
    finding, _, ranks = verdicts.says_correlation(sentence(name), f"which {unit} matter", rho).partition(": rank ")
    note = f"{f'Rank {ranks}; ' if ranks else ''}a mark a {unit.removesuffix('s')}"
    note += ", restored alone" if restore else ""
    for place, column in ((chart.x, predictor), (chart.y, "damage")):  # ticks at 1, 2 and 5 over few decades
        place(**LOG | ({"dtick": "D2"} if spread(shown[column]) < 30 else {}))
    free = int((rows["damage"] <= 0).sum())
    hidden = {f"without a {'fall' if restore else 'rise'} in the loss": free}
    hidden["without the other value"] = len(rows) - len(shown) - free
    parts = [f"{count(units, 'unit')} {why}" for why, units in hidden.items() if units]
    caption = f"Not shown: {', '.join(parts)}." if parts else ""
    data = rows[["unit", "block_index", "projection", predictor, "damage", "standard_error"]].reset_index(drop=True)
    return chart.done(finding, note, caption, f"Scatter chart of {name} against sensitivity", data)


def _draw_units(chart: Chart, shown: pd.DataFrame, predictor: str, kinds: pd.Series) -> None:
    """A mark for each unit, with its standard error where units are few; a look for each of `kinds`."""
    name, looks = PREDICTORS[predictor][0], palette.projection_styles(list(dict.fromkeys(kinds)))
    hover = f"%{{customdata[0]}}<br>{name} %{{x:.4g}}<br>sensitivity %{{y:.4g}} ± %{{customdata[1]}} nats"
    for kind, part in shown.groupby(kinds, sort=False):
        error, cost = part["standard_error"].fillna(0.0), part["damage"]
        down = np.minimum(error, 0.9 * cost)  # a logarithmic axis has no 0
        reach = {"array": error, "arrayminus": down, "visible": len(shown) <= FEW, "thickness": 1, "width": 3}
        behind = {"customdata": np.column_stack([part["unit"], error.map(number)]), "marker": {"opacity": 0.85}}
        chart.points(part[predictor], cost, looks[str(kind)], hover, size=10, error_y=reach, **behind)


# Heads and channels


def head_map(table: pd.DataFrame, *, marked_block: int | None = None, theme: Theme = "light") -> Drawing:
    """Relative error once a query head alone is gone, after least squares, as a map of head × decoder block."""
    grid = table.pivot(index="head", columns="block_index", values="cost")
    # Blocks that were not measured have an empty place: a heatmap would stretch its neighbours over it.
    grid = grid.reindex(columns=range(grid.columns.min(), grid.columns.max() + 1))
    chart = Chart(x="decoder block", y="query head", height=150 + max(220, 24 * len(grid)), theme=theme)
    scale = {"colorscale": palette.SEQUENTIAL, "zmin": 0, "zmax": float(table["cost"].max()) or 1.0}
    scale |= {"colorbar": colourbar("relative error without the head")}
    hover = "decoder block %{x}<br>head %{y}<br>%{z:.4g}<extra></extra>"
    cells = {"z": grid.to_numpy(np.float32), "x": grid.columns, "y": grid.index}
    chart.figure.add_heatmap(**cells, **scale, hovertemplate=hover)
    chart.y(**BARE, count=len(grid), autorange="reversed")
    chart.x(**BARE, count=len(grid.columns))
    if marked_block is not None and marked_block in grid.columns:
        chart.outline(marked_block - 0.5, marked_block + 0.5, -0.5, len(grid) - 0.5)
    most = table.loc[table["cost"].idxmax()]
    where = f"head {int(most['head'])} of decoder block {int(most['block_index'])} costs {percent(most['cost'], 0)}"
    finding = f"Half of the heads cost below {percent(table['cost'].median())}; {where}"
    note = "Relative error of the attention's output without one head, after the others compensate"
    return chart.done(finding, note, "", "Map of head costs", table)


def channel_curve(table: pd.DataFrame, cut: int, *, block: int, theme: Theme = "light") -> Drawing:
    """Channels of one MLP in the order of removal, each with its own cost and the error of all removed so far."""
    chart = Chart(x="channels taken out", y="relative error", height=440, legend=True, theme=theme)
    step = np.arange(1, len(table) + 1)
    together, each = (table[column].clip(lower=1e-12) for column in ("together", "alone"))  # a log axis has no 0
    look, hover = Style(palette.ORANGE, "all so far, together"), "without %{x} channels<br>together %{y:.3g}"
    chart.line(step, together, look, hover, mode="lines")
    look, hover = Style(palette.BLUE, "each alone"), "channel %{customdata}<br>alone %{y:.3g}"
    chart.points(step, each, look, hover, size=3, customdata=table["channel"])
    chart.y(type="log", exponentformat="power")
    chart.x(range=[0, len(table)])
    chart.figure.add_vline(x=cut, line=CHOSEN)
    error, alone = float(table["together"].iloc[cut - 1]) if cut else 0.0, float(table["alone"].iloc[:cut].sum())
    finding = f"Without {count(cut, 'channel')} of {whole(len(table))} the error is {percent(error, 2)}"
    note = f"MLP of decoder block {block}: relative error after least squares, in the order of exact cost; log scale"
    caption = ""
    if cut > 1 and alone < error:
        caption = f"Alone they cost {percent(alone, 2)} in sum; together they cannot compensate for one another."
    return chart.done(finding, note, caption, "Channel costs with the cut", table)
