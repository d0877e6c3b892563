"""The whole model at a glance: decoder block × projection maps, and which layers are columnar."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from app import words
from app.figures import palette, shapes, style
from app.figures.palette import Theme
from app.figures.style import Drawing
from rose import RoseError, verdicts
from rose.layer.defaults import THRESHOLD

LISTED_BLOCKS = 6  # decoder blocks that a title names one by one
DEAD_NAMED = 4  # layers with dead columns that a caption names


@dataclass(frozen=True)
class Metric:
    """How a number per layer is named, coloured and printed."""

    label: str
    unit: str
    # "magnitude" (centred on 0 if some are below), "change" (always so), "log", or "root" (of magnitudes; below 0 as 0)
    kind: str = "magnitude"
    who: str = ""  # of a change: what SparseGPT is compared with

    def text(self, value: float) -> str:
        return words.percent(value) if self.kind == "change" else words.number(value)


METRICS = {
    "relative_range": Metric("Relative range", "relative range"),
    "column_variation": Metric("Variation of column losses", "std / mean"),
    "condition": Metric("Condition number of H", "condition number", "log"),
    "gain": Metric("Error saved by two-level order", "error saved", "change", "Two-level order"),
    "held_out_gain": Metric(
        "Held-out error saved by two-level order", "held-out error saved", "change", "Two-level order"
    ),
    "own": Metric("Your number", "your number"),
    "change": Metric("Change by tuning", "‖ΔW‖ / ‖W‖"),
    # of a table of damages, which people read as sensitivity
    "damage": Metric("Sensitivity", "nats per token", "root"),
    "relative_error": Metric("Calibration error", "relative error"),
    "held_out_error": Metric("Held-out error", "relative error"),
    "output_error": Metric("Output error", "‖ΔW x‖²", "log"),
    "drift": Metric("Drift after the decoder block", "‖Δh‖² / ‖h‖²", "log"),
}
ERRORS = {"error_": "Relative error", "held_out_": "Held-out error"}


def metric(name: str) -> Metric:
    """The known metrics, and `error_METHOD`, `held_out_METHOD` and `saved_METHOD` for any method."""
    if name in METRICS:
        return METRICS[name]
    if name.startswith("saved_"):
        who = palette.method_style(name.removeprefix("saved_")).label
        return Metric(f"Gain of {who} over SparseGPT", "error saved", "change", who)
    prefix = "held_out_" if name.startswith("held_out_") else "error_"
    return Metric(f"{ERRORS[prefix]} of {palette.method_style(name.removeprefix(prefix)).label}", "relative error")


def per_layer(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """One row per layer with the metric in column `value`."""
    if name not in table.columns:
        label = metric(name).label
        raise RoseError(f"There is no {label[0].lower()}{label[1:]} in these results; measure the model first.")
    rows = table[["layer", "block_index", "projection"]]
    return rows.assign(value=table[name].astype(float)).reset_index(drop=True)


def model_map(
    table: pd.DataFrame,
    name: str = "relative_range",
    *,
    threshold: float = THRESHOLD,
    layers: Sequence[str] = (),
    left_out: Collection[str] = (),
    experts: str | None = None,
    marked_layer: str | None = None,
    block: str = "decoder block",
    theme: Theme = "light",
) -> Drawing:
    """Any number per layer as a map of decoder block × projection; layers without a number yet stay blank.

    Experts share one row for each of their projections, with the value that is largest; `experts`, one of
    `expert_kinds`, shows one such row in full, decoder block × expert.

    Args:
        table: may hold the layers done so far only.
        layers: names of all layers to come, so that the map keeps its size while results arrive.
        left_out: those of them that stay dense, or could not be measured.
        block: what a block of the model is called.
    """
    known = metric(name)
    if experts is not None:
        table = table[[_is_of(projection, experts) for projection in table["projection"]]]
        layers = [layer for layer in layers if _is_of(words.place_of(layer)[1], experts)]
    every = per_layer(table, name)
    row_of = every["projection"].map(lambda projection: map_row(projection, experts))
    placed = every.assign(projection=row_of, text=every["value"].map(known.text))  # each in its row of the map
    cells = _largest(placed)
    grid = _grid(cells, [(words.place_of(layer)[0], map_row(words.place_of(layer)[1], experts)) for layer in layers])
    figure = go.Figure()
    shapes.layer_map(
        figure, _scaled(grid, known.kind), cells, known.unit, **_colours(known, cells["value"], name, theme)
    )
    which = every_layer(placed, cells)
    if experts is not None:
        which = f"every expert's {experts.rpartition('.')[2]}"
    what = f"{known.label} of {which}"
    if name == "relative_range" and every["value"].notna().any():
        what += f"; ringed: columnar, above {threshold:g}"
        ringed = placed[placed["value"] > threshold].drop_duplicates(["block_index", "projection"])
        if len(ringed):
            size = 11 if grid.shape[1] <= 20 else 8
            shapes.rings(figure, ringed["block_index"], ringed["projection"], "columnar", size=size, showlegend=False)
    dead = _dead(figure, table.assign(projection=row_of.tolist()))
    if dead:
        what += "; ×: dead columns"
    shapes.outline_layer(figure, grid, placed, marked_layer)
    expected = max(len(every), len(set(layers) - set(left_out)))
    waiting, no_value = expected - len(every), int(every["value"].isna().sum())
    without = len(set(layers) & set(left_out))
    blanks = [f"not yet ({waiting} of {expected})"] if waiting else []
    blanks += [f"no value ({no_value})"] if no_value else []
    blanks += [f"left out ({without})"] if without else []
    if blanks:
        what += f"; blank: {', '.join(blanks)}"
    finding = _map_finding(every, name, known, threshold, block)
    caption = _map_caption(every, known, waiting) + dead + (_foretold(table) if name == "column_variation" else "")
    alt = f"Map of {known.label.lower()} by {block} and {'projection' if experts is None else 'expert'}"
    height = 180 + round(34 * max(3, len(grid)) * min(1, 24 / len(grid)))
    table = every.rename(columns={"value": name})
    return style.finish(figure, theme, finding, what, caption, alt, table, x=block, height=height)


def expert_kinds(layers: Sequence[str]) -> list[str]:
    """The projections of experts among these layers, such as "mlp.experts.*.gate_proj"; none in a dense model."""
    found = [words.expert_of(words.place_of(layer)[1]) for layer in layers]
    return list(dict.fromkeys(one[0] for one in found if one is not None))


def _is_of(projection: str, experts: str) -> bool:
    found = words.expert_of(projection)
    return found is not None and found[0] == experts


def map_row(projection: str, experts: str | None = None) -> str:
    """The row of the map that a projection is in."""
    found = words.expert_of(projection)
    if found is None:
        return projection
    return found[0] if experts is None else f"expert {found[1]}"


def folded(rows: pd.DataFrame) -> pd.DataFrame:
    """Layers with a `value` each in its row of the map, in which experts share a cell: that of the largest value."""
    return _largest(rows.assign(projection=rows["projection"].map(map_row)))


def every_layer(rows: pd.DataFrame, cells: pd.DataFrame) -> str:
    """What these cells are of."""
    return "every layer, of experts the largest" if len(rows) > len(cells) else "every layer"


def _largest(placed: pd.DataFrame) -> pd.DataFrame:
    """Of the layers in each cell of the map that with the largest value."""
    # Of a change the largest either way: a mean would hide both.
    order = placed["value"].abs().fillna(-1).sort_values(ascending=False, kind="stable").index
    return placed.loc[order].drop_duplicates(["block_index", "projection"]).sort_index().reset_index(drop=True)


def _scaled(grid: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Values as the colour scale takes them."""
    if kind == "log":
        return np.log10(grid.where(grid > 0))
    return np.sqrt(grid.clip(lower=0)) if kind == "root" else grid


def _dead(figure: go.Figure, table: pd.DataFrame) -> str:
    """A cross on every layer with dead columns, and a sentence on what its relative range is without them."""
    rows = table[table["dead_columns"] > 0] if "dead_columns" in table else table.head(0)
    if rows.empty:
        return ""
    cross = palette.Style(palette.MARK, "dead columns", symbol="x")
    shapes.signs(figure, rows.drop_duplicates(["block_index", "projection"]), cross, 7)
    says = f" {words.sentence(words.count(len(rows), 'layer'))} {'has' if len(rows) == 1 else 'have'} dead columns"
    known = rows.dropna(subset=["live_range"]) if "live_range" in rows else rows.head(0)
    if known.empty:
        return f"{says}."
    first = known.sort_values("relative_range", ascending=False, kind="stable").head(DEAD_NAMED)
    listed = ", ".join(
        f"{words.number(row.live_range)} instead of {words.number(row.relative_range)} ({words.short_layer(row.layer)})"
        for row in first.itertuples()
    )
    return f"{says}; without them the relative range is {listed}{' …' if len(known) > len(first) else ''}."


def _grid(rows: pd.DataFrame, places: Sequence[tuple[int | None, str]]) -> pd.DataFrame:
    """Projection × decoder block, in the model's own order; `places`: blocks and rows of all layers to come."""
    seen = list(dict.fromkeys(rows["projection"]))
    known = [(block, projection) for block, projection in places if block is not None]
    if not known and not seen:
        raise RoseError("No layer has been measured yet; measure layers on the start page.")
    # A block may be named by more than a number, and then the rest of the name is longer.
    projections = [next((p for p in seen if f".{name}".endswith("." + p)), name) for _, name in known]
    return shapes.layer_grid(rows, projections, [block for block, _ in known])


def _colours(known: Metric, values: pd.Series, name: str, theme: Theme) -> dict[str, Any]:
    """Scale, limits and colour bar of a map."""
    present = values[np.isfinite(values)]
    largest = float(present.abs().max()) if present.any() else 1.0
    is_change = known.kind == "change"
    if is_change or (known.kind == "magnitude" and (present < 0).any()):
        scale = {
            "colorscale": palette.DIVERGING[theme],
            "reversescale": is_change,
        }  # less error is purple on every page
        bar = shapes.colourbar(known.unit, **({"tickformat": style.PERCENT} if is_change else {}))
        return scale | {"zmin": -largest, "zmax": largest, "colorbar": bar}
    low, high, bar = 0.0, 1.0 if name == "relative_range" else largest, shapes.colourbar(known.unit)
    if known.kind == "log":
        positive = present[present > 0]
        low, high = (np.log10(positive.min()), np.log10(positive.max())) if len(positive) else (0.0, 1.0)
        decades = np.arange(np.ceil(low), np.floor(high) + 1)
        ticks = decades if len(decades) > 1 else np.array([low, high])  # or the bar would have no number
        texts = [words.number(10.0**tick) for tick in ticks]
        bar = shapes.colourbar(f"{known.unit} (log)", tickvals=ticks.tolist(), ticktext=texts)
        high = max(high, low + 1e-6)
    elif known.kind == "root":
        texts = [f"{float(f'{tick:.1g}'):g}" for tick in np.linspace(0, 1, 5) ** 2 * largest]
        places = np.sqrt([float(text) for text in texts]).tolist()  # at rounded values, or the texts would be wrong
        bar = shapes.colourbar(f"{known.unit} (root scale)", tickvals=places, ticktext=texts)
        high = math.sqrt(largest)
    return {"colorscale": palette.SEQUENTIAL, "zmin": low, "zmax": high, "colorbar": bar}


def _map_finding(rows: pd.DataFrame, name: str, known: Metric, threshold: float, block: str) -> str:
    measured = rows.dropna(subset=["value"])
    if measured.empty:
        return f"{known.label}: {'no layer measured yet' if rows.empty else 'no layer has one'}"
    if known.kind == "change":
        better, worse = int((measured["value"] > 0).sum()), int((measured["value"] < 0).sum())
        which = "less held-out error" if name.startswith("held_out") else "less error"
        who, of_layers = words.sentence(known.who), words.count(len(measured), "layer")
        if not better and not worse:
            return f"{who} has SparseGPT's error on {words.out_of(len(measured), len(measured), 'layer')}"
        return f"{who} has {which} than SparseGPT on {style.some(better)} of {of_layers}, more on {style.some(worse)}"
    top = measured.loc[measured["value"].idxmax()]
    finding = f"{known.label} is highest in {words.short_layer(top['layer'])}, {known.text(top['value'])}"
    if not measured["value"].any():
        finding = f"{known.label} is 0 in {words.out_of(len(measured), len(measured), 'layer')}"
    if name != "relative_range":
        return finding
    return f"{finding}; {where_layers(measured[measured['value'] > threshold], 'columnar', block)}"


def where_layers(rows: pd.DataFrame, what: str, block: str = "decoder block") -> str:
    """ "columnar layers lie in decoder blocks 4, 5 and 18", or "… 4 to 25" where they are many."""
    if rows.empty:
        return f"no layer is {what}"
    places = sorted(int(index) for index in rows["block_index"].unique())
    lie = f"the {what} layer lies" if len(rows) == 1 else f"{what} layers lie"
    if len(places) > LISTED_BLOCKS:
        return f"{lie} in {len(places)} {block}s from {places[0]} to {places[-1]}"
    return f"{lie} in {block}{'s' if len(places) > 1 else ''} {words.listing(list(map(str, places)), LISTED_BLOCKS)}"


def range_of(label: str, values: pd.Series, text: Callable[[float], str] = words.number) -> str:
    """A sentence with the lowest, the highest and the median value; the index names layers or decoder blocks."""
    if len(values) == 1:
        return f"{label} is {text(values.iloc[0])} in {words.short_layer(str(values.index[0]))}."
    ends = [
        (text(values.iloc[at]), words.short_layer(str(values.index[at]))) for at in (values.argmin(), values.argmax())
    ]
    (low, lowest), (high, highest) = ends
    return f"{label} runs from {low} ({lowest}) to {high} ({highest}), median {text(float(values.median()))}."


def _map_caption(rows: pd.DataFrame, known: Metric, waiting: int) -> str:
    measured = rows.dropna(subset=["value"])
    if measured.empty:
        return f"No layer has this number{' yet' if rows.empty else ''}."
    text = range_of(known.label, measured.set_index("layer")["value"], known.text)
    return text + (f" {words.sentence(words.count(waiting, 'layer'))} still to come." if waiting else "")


def _foretold(table: pd.DataFrame) -> str:
    """How well this variation foretells what two-level order gains here, beside the relative range."""
    column = next((name for name in ("held_out_gain", "gain") if name in table and table[name].notna().any()), None)
    if column is None or "relative_range" not in table:
        return ""
    found = verdicts.rank_correlation(table["column_variation"], table[column])
    usual = verdicts.rank_correlation(table["relative_range"], table[column])
    saved = "held-out error" if column == "held_out_gain" else "error"
    said = f" {verdicts.says_correlation('This variation', f'how much {saved} two-level order saves', found)}"
    return said + (f"; for relative range it is {usual}." if found and usual else ".")


def gain_scatter(
    table: pd.DataFrame,
    *,
    threshold: float = THRESHOLD,
    marked_layer: str | None = None,
    projections: Sequence[str] = (),
    theme: Theme = "light",
) -> Drawing:
    """Relative range of every layer against what two-level order gains there, held-out where that was measured.

    `projections` are all of the model, so that each looks the same whatever the table was filtered by. All experts look
    alike: hundreds of colours would tell nothing.
    """
    held = "held_out_gain" in table and table["held_out_gain"].notna().any()
    column = "held_out_gain" if held else "gain"
    rows = table.dropna(subset=["relative_range", column])
    if rows.empty:
        raise RoseError(
            "No layer here has both a relative range and a gain; measure more layers, or use fewer filters."
        )
    kinds = rows["projection"].map(map_row)
    every = map(map_row, [*projections, *table["projection"]])
    looks, figure = palette.projection_styles(list(dict.fromkeys(every))), go.Figure()
    for projection, part in rows.groupby(kinds, sort=False):
        x, y, look = part["relative_range"], part[column], looks[str(projection)]
        hover, pale = "%{customdata}<br>relative range %{x:.3f}<br>error saved %{y:.1%}", {"opacity": 0.85}
        shapes.points(figure, x, y, look, hover, size=10, marker=pale, customdata=part["layer"])
    marked = rows[rows["layer"] == marked_layer]
    dead = rows[rows["dead_columns"] > 0] if "dead_columns" in rows else rows.head(0)
    ink = palette.INKS[theme]
    for some, name, size, colour in ((dead, "dead columns", 18, ink.text), (marked, "chosen layer", 22, palette.MARK)):
        if len(some):
            shapes.rings(figure, some["relative_range"], some[column], name, size=size, colour=colour)
    figure.add_vline(x=threshold, line=shapes.dashed(theme))
    figure.add_hline(y=0, line={"color": ink.text, "width": 1.5})
    where = {"x": threshold, "y": 1, "yref": "paper", "yanchor": "bottom"}  # above the plot: inside it covers marks
    shapes.note(figure, f"columnar above {threshold:g}", theme, **where)
    figure.update_xaxes(range=[-0.02, 1.04], zeroline=False)
    figure.update_yaxes(tickformat=style.PERCENT, zeroline=False, rangemode="normal")  # marks at 0 are whole
    better = rows[rows[column] > 0]
    columnar = rows[rows["relative_range"] > threshold]
    both = int((better["relative_range"] > threshold).sum())
    saved = "held-out error" if held else "error"
    finding = f"Two-level order lowers the {saved} of {words.out_of(len(better), len(rows), 'layer')}"
    if len(better) and len(columnar) and len(rows) > 1:
        finding += f", {words.out_of(both, len(columnar), 'columnar layer')} among them"
    what = f"{words.sentence(saved)} saved against SparseGPT by two-level order, columnar or not; one mark a layer"
    caption = _gain_caption(rows, columnar, column)
    alt = f"Scatter chart of {saved} saved by two-level order against relative range"
    table = rows[["layer", "block_index", "projection", "relative_range", column]].reset_index(drop=True)
    frame = {"x": "relative range", "y": f"{saved} saved", "height": 500, "legend": True, "headroom": 18}
    return style.finish(figure, theme, finding, what, caption, alt, table, **frame)


def _gain_caption(rows: pd.DataFrame, columnar: pd.DataFrame, column: str) -> str:
    """What columnar and other layers gain on average, the two extremes, and the rank correlation."""
    others = rows.drop(columnar.index)
    means = []
    for part, noun in ((columnar, "columnar layer"), (others, "other" if len(columnar) else "layer")):
        if found := verdicts.mean_ratio(pd.Series(1.0, part.index), 1 - part[column]):
            moved = verdicts.says_change(found.value, 1.0, "SparseGPT's", "")
            means.append(f"{moved} in {words.count(len(part), noun)}")
    best, worst = rows.loc[rows[column].idxmax()], rows.loc[rows[column].idxmin()]
    text = f"On average its error is {' and '.join(means)}. " if means else ""
    text += (
        f"It saves most in {words.short_layer(best['layer'])} ({words.percent(float(best[column]))}), least in "
        f"{words.short_layer(worst['layer'])} ({words.percent(float(worst[column]))})."
    )
    ranked = verdicts.rank_correlation(rows["relative_range"], rows[column])
    return text if ranked is None else f"{text} {verdicts.says_correlation('Relative range', 'this gain', ranked)}."


def range_bars(
    table: pd.DataFrame, *, threshold: float = THRESHOLD, marked_layer: str | None = None, theme: Theme = "light"
) -> Drawing:
    """Relative range of a few layers as bars, highest first."""
    rows = per_layer(table, "relative_range").dropna(subset=["value"])
    rows = rows.sort_values("value", ascending=False, kind="stable")
    if rows.empty:
        raise RoseError("No layer has been measured yet; measure layers on the start page.")
    colours = np.where(rows["value"] > threshold, palette.TEAL, palette.SLATE)
    colours[rows["layer"] == marked_layer] = palette.MARK
    names, texts = rows["layer"].map(words.short_layer), rows["value"].map(words.number)
    labels, hover = names + "   <b>" + texts + "</b>", "%{customdata}<br>relative range %{x:.4g}"
    more = {"marker": {"color": colours}, "customdata": rows["layer"], "orientation": "h"}
    figure = go.Figure()
    shapes.bars(figure, rows["value"], labels, palette.Style(palette.TEAL, "relative range"), hover, **more)
    figure.add_vline(x=threshold, line=shapes.dashed(theme))
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(range=[0, 1])
    finding = f"{names.iloc[0]} has the highest relative range, {texts.iloc[0]}"
    what = f"Relative range of {words.count(len(rows), 'layer')}; dashed: threshold {threshold:g}"
    caption = (
        f"From {texts.iloc[0]} ({names.iloc[0]}) to {texts.iloc[-1]} ({names.iloc[-1]}), median "
        f"{words.number(float(rows['value'].median()))}."
    )
    table, alt = rows.rename(columns={"value": "relative_range"}), "Bar chart of the relative range of layers"
    frame = {"x": "relative range", "y": "layer", "height": 170 + 28 * len(rows)}
    return style.finish(figure, theme, finding, what, caption, alt, table, **frame)


ROW = 34  # pixels a projection takes
BULK = 98.0  # percentile at which a scale of shares ends where a few layers would make all others pale


def run_maps(rows: pd.DataFrame, names: tuple[str, str], measure: str, *, theme: Theme = "light") -> Drawing:
    """The same number of every layer in two runs, one map above the other, on one scale.

    The rows have layer, block_index, projection, first, second; `measure` is the number in words that follow "the".
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.16, subplot_titles=names)
    maps = [folded(rows.assign(value=rows[which])) for which in ("first", "second")]
    top = _on_one_scale(figure, maps, measure, theme)
    figure.update_xaxes(title_text="decoder block", row=2, col=1)
    finding = _where_highest(rows, names, measure)
    what = f"{words.sentence(measure)} of {every_layer(rows, maps[0])} in both runs, on one scale from 0 to {top}"
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
    maps = [folded(one) for one in rows]
    tall = [max(3, one["projection"].nunique()) for one in maps]
    figure = make_subplots(rows=2, cols=1, row_heights=tall, vertical_spacing=0.2, subplot_titles=names)
    top = _on_one_scale(figure, maps, measure, theme)
    worst = [one.loc[one["value"].idxmax()] for one in rows]
    places = [
        f"in {words.short_layer(at['layer'])} of {name}, {words.number(at['value'])}"
        for at, name in zip(worst, names, strict=True)
    ]
    finding = f"The highest {measure} is {places[0]}, and {places[1]}"
    which = every_layer(pd.concat(rows), pd.concat(maps))
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
    cells, figure = folded(apart.assign(value=shown)), go.Figure()
    if len(cells) < len(rows):
        what += "; of experts the largest"
    grid = shapes.layer_grid(cells).clip(-limit, limit)
    shapes.layer_map(figure, grid, cells, unit, **scale, colorbar=shapes.colourbar(unit, **ticks))
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
        shapes.layer_map(figure, shapes.layer_grid(rows), shown, measure, at=at, coloraxis="coloraxis")
    scale = {"colorscale": palette.SEQUENTIAL, "cmin": 0, "cmax": top, "colorbar": shapes.colourbar(measure)}
    figure.update_layout(coloraxis=scale)
    figure.update_annotations(font={"size": style.FONT_SIZE + 1, "color": palette.INKS[theme].text})
    return words.number(top)


def _named(rows: pd.DataFrame, names: tuple[str, str]) -> pd.DataFrame:
    return rows[["layer", "block_index", "projection", "first", "second"]].rename(
        columns={"first": names[0], "second": names[1]}
    )
