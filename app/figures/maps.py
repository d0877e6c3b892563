"""The whole model at a glance: maps of decoder block × projection, of one run or two, and where order matters."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from app.figures import palette
from app.figures.palette import Style, Theme
from app.figures.shapes import Chart, colourbar, layer_grid
from app.figures.style import FONT_SIZE, PERCENT, Drawing, some
from app.words import count, expert_of, listing, number, out_of, percent, place_of, sentence, short_layer, word
from rose import RoseError, verdicts
from rose.layer.pattern import THRESHOLD

LISTED_BLOCKS = 6  # decoder blocks that a sentence lists
CELL = 25  # pixels that a projection takes
LEFT, RIGHT = 92, 12  # pixels beside the map and beside the scatter below, which share their axis
ROW = 34  # pixels a projection takes in maps of two runs
BULK = 98.0  # percentile at which a scale of shares ends where a few layers would make all others pale


@dataclass(frozen=True)
class Metric:
    """Name, colours, format and explanation of a number per layer."""

    label: str
    unit: str
    # "magnitude" (centred on 0 if some are below), "change" (always so), "log", or "root" (of magnitudes; below 0 as 0)
    kind: str = "magnitude"
    who: str = ""  # of a change: what SparseGPT is compared with
    meaning: str = ""  # how it is measured

    def text(self, value: float) -> str:
        return percent(value) if self.kind == "change" else number(value)


TWO_LEVEL, GLOBAL = "ROSE's order", "ROSE global"
SAVED = "share of SparseGPT's {} error that {} saves"
METRICS = {
    "relative_range": Metric(
        "Relative range",
        "relative range",
        meaning="columnar: some blocks of columns lose far more than others; relative range = "
        "(max − min) / max of block loss per column",
    ),
    "column_variation": Metric(
        "Variation of column losses", "std / mean", meaning="standard deviation of the column losses over their mean"
    ),
    "condition": Metric(
        "Condition number of H", "condition number", "log", meaning="largest over smallest eigenvalue of the damped H"
    ),
    **{
        f"{tokens}{name}gain": Metric(
            f"{kind} error saved by {who}", "error saved", "change", who, SAVED.format(kind.lower(), who)
        )
        for name, who in (("", TWO_LEVEL), ("global_", GLOBAL))
        for tokens, kind in (("held_out_", "Held-out"), ("", "Calibration"))
    },
    **{
        f"forecast_{name}gain": Metric(
            f"Forecast gain of {who}",
            "forecast gain",
            "change",
            who,
            f"from one factorization an order, before any sweep: share of the held-out error that {who} should save",
        )
        for name, who in (("", TWO_LEVEL), ("global_", GLOBAL))
    },
    "own": Metric("Your numbers", "your number", meaning="as read from your file"),
    "change": Metric("Change by tuning", "‖ΔW‖ / ‖W‖"),
    # of a table of damages, which people read as sensitivity
    "damage": Metric("Sensitivity", "nats per token", "root"),
    "relative_error": Metric("Calibration error", "relative error"),
    "held_out_error": Metric("Held-out error", "relative error"),
    "output_error": Metric("Output error", "‖ΔW x‖²", "log"),
    "drift": Metric("Drift after the decoder block", "‖Δh‖² / ‖h‖²", "log"),
}
ERRORS = {"held_out_": "Held-out error", "error_": "Calibration error"}
SIGNS = {"dead_columns": ("×", "x", "dead columns"), "massive": ("◆", "diamond", "massive inputs")}  # of a column


def metric(name: str) -> Metric:
    """The known metrics, and `error_METHOD`, `held_out_METHOD` and `saved_METHOD` for any method."""
    if name in METRICS:
        return METRICS[name]
    if name.startswith("saved_"):
        who = palette.method_style(name.removeprefix("saved_")).label
        return Metric(f"Gain of {who} over SparseGPT", "error saved", "change", who)
    prefix = "held_out_" if name.startswith("held_out_") else "error_"
    who = palette.method_style(name.removeprefix(prefix)).label
    return Metric(f"{ERRORS[prefix]} of {who}", "relative error", meaning="‖ΔW Xᵀ‖² / ‖W Xᵀ‖² of the layer's outputs")


def per_layer(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """One row per layer with the metric in column `value`."""
    if name not in table.columns:
        label = metric(name).label
        raise RoseError(f"There is no {label[0].lower()}{label[1:]} in these results; measure the model first.")
    rows = table[["layer", "block_index", "projection"]]
    return rows.assign(value=table[name].astype(float)).reset_index(drop=True)


def model_map(
    table: pd.DataFrame, name: str = "relative_range", *, threshold: float = THRESHOLD,
    layers: Sequence[str] = (), left_out: Collection[str] = (), experts: str | None = None,
    marked_layer: str | None = None, block: str = "decoder block", conditions: str = "", with_scale: bool = True,
    theme: Theme = "light",
) -> Drawing:  # fmt: skip
    """Any number per layer as a map of decoder block × projection; layers without a number yet stay blank.

    Experts share one row for each of their projections, with the value that is largest. `experts`, from
    `expert_kinds`, shows one such row in full, decoder block × expert.

    `layers`: names of all layers to come, so that the map keeps its size while results arrive; `left_out`: those that
    stay dense or could not be measured; `block`: the word for a block of the model; `conditions`: for the caption;
    `with_scale`: whether the map has its scale of colours.
    """
    measure, kind = metric(name), "expert" if experts else "projection"
    if experts is not None:
        table = table[table["projection"].map(expert_kind) == experts]
        layers = [layer for layer in layers if expert_kind(place_of(layer)[1]) == experts]
    every = per_layer(table, name)
    row_of = every["projection"].map(lambda projection: map_row(projection, experts))
    placed = every.assign(projection=row_of, text=every["value"].map(measure.text))  # each in its row of the map
    cells = _largest(placed)
    grid = _grid(cells, [(index, map_row(projection, experts)) for index, projection in map(place_of, layers)])
    chart = Chart(x=block, plot=round(CELL * max(3, len(grid)) * min(1, 24 / len(grid))), theme=theme)
    chart.margins = {"l": LEFT, "r": 96 if with_scale else RIGHT, "b": 44}
    colours = _colours(measure, cells["value"], name, theme, threshold)
    short = [label.removeprefix("self_attn.").removeprefix("mlp.") for label in grid.index]
    names = {"ticktext": short, "tickvals": list(grid.index)} if len(set(short)) == len(short) else {}
    chart.layer_map(_scaled(grid, measure.kind), cells, measure.unit, **colours, showscale=with_scale)
    chart.y(**names, automargin="left")
    which = f"every expert's {experts.rpartition('.')[2]}" if experts else every_layer(placed, cells)
    subtitle = f"{measure.label} of {which}"
    if name == "relative_range" and every["value"].notna().any():
        subtitle = "Their blocks would lose very different amounts"
        if len(unsure := placed[undecided(table, threshold).to_numpy()].drop_duplicates(["block_index", "projection"])):
            ring = (unsure["block_index"], unsure["projection"])
            chart.rings(*ring, "undecided", size=10, colour=palette.INKS[theme].text, showlegend=False)
            subtitle += "; ○ undecided"
    for column, (sign, symbol, meaning) in SIGNS.items():
        if column in table and len(marked := placed[(table[column].notna() & table[column].astype(bool)).to_numpy()]):
            look = Style(palette.MARK, meaning, symbol=symbol)
            chart.signs(marked.drop_duplicates(["block_index", "projection"]), look, 7)
            subtitle += f"; {sign} {meaning}"
    chart.outline_layer(grid, placed, marked_layer)
    waiting, without = max(0, len(set(layers) - set(left_out)) - len(every)), len(set(layers) & set(left_out))
    blanks = [f"not yet ({waiting} of {waiting + len(every)})"] if waiting else []
    blanks += [f"no value ({missing})"] if (missing := int(every["value"].isna().sum())) else []
    blanks += [f"left out ({without})"] if without else []
    subtitle += f"; blank: {', '.join(blanks)}" if blanks else ""
    alt = f"Map of {measure.label.lower()} by {block} and {kind}"
    caption = " ".join(f"{sentence(text)}." for text in (measure.meaning, conditions) if text)
    finding = _map_finding(every, measure, threshold, int(undecided(table, threshold).sum()))
    return chart.done(finding, subtitle, caption, alt, every.rename(columns={"value": name}))


def undecided(table: pd.DataFrame, threshold: float) -> pd.Series:
    """Whether the interval of each layer's relative range holds the threshold; False where it has none."""
    if "range_low" not in table:
        return pd.Series(False, index=table.index)
    return table["range_low"].astype(float).le(threshold) & table["range_high"].astype(float).ge(threshold)


def expert_kinds(layers: Sequence[str]) -> list[str]:
    """The projections of experts among these layers, such as "mlp.experts.*.gate_proj"; none in a dense model."""
    return list(dict.fromkeys(filter(None, (expert_kind(place_of(layer)[1]) for layer in layers))))


def expert_kind(projection: str) -> str | None:
    """ "mlp.experts.*.gate_proj" of one expert's; None of no expert's."""
    place = expert_of(projection)
    return None if place is None else place[0]


def map_row(projection: str, experts: str | None = None) -> str:
    """The row of the map that a projection is in."""
    place = expert_of(projection)
    if place is None:
        return projection
    return place[0] if experts is None else f"expert {place[1]}"


def folded(rows: pd.DataFrame) -> pd.DataFrame:
    """Layers with a `value`, by row of the map; experts share a cell, which shows their largest value."""
    return _largest(rows.assign(projection=rows["projection"].map(map_row)))


def every_layer(rows: pd.DataFrame, cells: pd.DataFrame) -> str:
    """The layers that these cells show, in words."""
    return "every layer, of experts the largest" if len(rows) > len(cells) else "every layer"


def _largest(placed: pd.DataFrame) -> pd.DataFrame:
    """The layer with the largest value in each cell of the map."""
    # Of a change the largest either way: a mean would hide both.
    order = placed["value"].abs().fillna(-1).sort_values(ascending=False, kind="stable").index
    return placed.loc[order].drop_duplicates(["block_index", "projection"]).sort_index().reset_index(drop=True)


def _scaled(grid: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Values as the colour scale takes them, changes in per cent."""
    if kind == "log":
        return np.log10(grid.where(grid > 0))
    return {"change": 100 * grid, "root": np.sqrt(grid.clip(lower=0))}.get(kind, grid)


def _grid(rows: pd.DataFrame, places: Sequence[tuple[int | None, str]]) -> pd.DataFrame:
    """Projection × decoder block, in the model's own order; `places`: blocks and rows of all layers to come."""
    seen = list(dict.fromkeys(rows["projection"]))
    in_blocks = [(block, projection) for block, projection in places if block is not None]
    if not in_blocks and not seen:
        raise RoseError("No layer has been measured yet; measure layers on Explore.")
    # A block may be named by more than a number, and then the rest of the name is longer.
    projections = [next((p for p in seen if f".{name}".endswith("." + p)), name) for _, name in in_blocks]
    return layer_grid(rows, projections, [block for block, _ in in_blocks])


def _colours(measure: Metric, values: pd.Series, name: str, theme: Theme, threshold: float) -> dict[str, Any]:
    """Scale, limits and colour bar of a map."""
    present = values[np.isfinite(values)]
    largest = float(present.abs().max()) if present.any() else 1.0
    is_change = measure.kind == "change"
    if is_change:
        largest *= 100  # as `_scaled`
    if is_change or (measure.kind == "magnitude" and (present < 0).any()):
        # Less error is purple on every page.
        scale = {"colorscale": palette.DIVERGING[theme], "reversescale": is_change, "zmin": -largest, "zmax": largest}
        return scale | {"colorbar": colourbar(measure.unit, **(PERCENT if is_change else {}))}
    low, high, bar = 0.0, 1.0 if name == "relative_range" else largest, colourbar(measure.unit)
    if measure.kind == "log":
        positive = present[present > 0]
        low, high = (np.log10(positive.min()), np.log10(positive.max())) if len(positive) else (0.0, 1.0)
        decades = np.arange(np.ceil(low), np.floor(high) + 1)
        ticks = decades if len(decades) > 1 else np.array([low, high])  # or the bar would have no number
        texts = [number(10.0**tick) for tick in ticks]
        bar = colourbar(f"{measure.unit} (log)", tickvals=ticks.tolist(), ticktext=texts)
        high = max(high, low + 1e-6)
    elif measure.kind == "root":
        texts = [f"{float(f'{tick:.1g}'):g}" for tick in np.linspace(0, 1, 5) ** 2 * largest]
        places = np.sqrt([float(text) for text in texts]).tolist()  # at rounded values, or the texts would be wrong
        bar, high = colourbar(f"{measure.unit} (root scale)", tickvals=places, ticktext=texts), math.sqrt(largest)
    steps = palette.range_scale(theme, threshold) if name == "relative_range" else palette.quiet_scale(theme)
    return {"colorscale": steps, "zmin": low, "zmax": high, "colorbar": bar}


def _map_finding(rows: pd.DataFrame, measure: Metric, threshold: float, unsure: int) -> str:
    measured = rows.dropna(subset=["value"])
    if measured.empty:
        return f"{measure.label}: {'no layer measured yet' if rows.empty else 'no layer has one'}"
    layers = len(measured)
    if measure.kind == "change":
        better, worse = int((measured["value"] > 0).sum()), int((measured["value"] < 0).sum())
        if not better and not worse:
            return f"{sentence(measure.who)} has SparseGPT's error on {out_of(layers, layers, 'layer')}"
        if "forecast" in measure.unit:
            return f"{sentence(measure.who)} should gain on {out_of(better, layers, 'layer')}"
        loses = f", loses on {some(worse)}" if better < layers else ""
        return f"{sentence(measure.who)} gains on {out_of(better, layers, 'layer')}{loses}"
    top = measured.loc[measured["value"].idxmax()]
    if not measured["value"].any():
        return f"{measure.label} is 0 in {out_of(layers, layers, 'layer')}"
    if measure is METRICS["relative_range"]:
        columnar = int((measured["value"] > threshold).sum())
        rest = f", {word(unsure)} undecided" if unsure else ""
        return f"{sentence(out_of(columnar, layers, 'layer'))} {'is' if columnar < 2 else 'are'} columnar{rest}"
    verb = "are" if measure.label.endswith("numbers") else "is"
    return f"{measure.label} {verb} highest in {short_layer(top['layer'])}: {number(top['value'], 2)}"


def where_layers(rows: pd.DataFrame, kind: str) -> str:
    """ "columnar layers lie in decoder blocks 4, 5 and 18", or "… 4 to 25" of many; the name of a single layer."""
    if rows.empty:
        return f"no layer is {kind}"
    if len(rows) == 1:
        return f"the {kind} layer is {short_layer(rows['layer'].iloc[0])}"
    places = sorted(int(index) for index in rows["block_index"].unique())
    if len(places) > LISTED_BLOCKS:
        return f"{kind} layers lie in {len(places)} decoder blocks from {places[0]} to {places[-1]}"
    blocks = listing(list(map(str, places)), LISTED_BLOCKS)
    return f"{kind} layers lie in decoder block{'s' if len(places) > 1 else ''} {blocks}"


# Does order matter there?

FORETELL = ("relative_range", "column_variation", "forecast_gain", "forecast_global_gain")  # known before any sweep


def gain_scatter(
    table: pd.DataFrame, x: str = "relative_range", *, threshold: float = THRESHOLD, marked_layer: str | None = None,
    measured_at: str = "", theme: Theme = "light",
) -> Drawing:  # fmt: skip
    """A measure of each layer before a sweep, from `FORETELL`, against the error that an order saves there.

    Held-out where that was measured; of ROSE global where its forecast is drawn, else of two-level order, also in
    further draws of text, the columns `gain_draw_…`. `measured_at`: settings of the errors, where the ranges have
    others.
    """
    predictor, which = metric(x), "global_" if "global" in x else ""
    held = f"held_out_{which}gain" in table and table[f"held_out_{which}gain"].notna().any()
    column = f"held_out_{which}gain" if held else f"{which}gain"
    rows = table.dropna(subset=[x, column])
    if rows.empty:
        raise RoseError("No layer here has both numbers; measure more layers.")
    saved, along = metric(column), 100 if predictor.kind == "change" else 1
    chart = Chart(x=predictor.unit, y="error saved", plot=160, theme=theme)
    chart.margins = {"l": LEFT, "r": RIGHT, "b": 44}
    ink, accent = chart.ink, palette.ACCENT[theme][1]
    hover = f"%{{customdata[0]}}<br>{predictor.unit} %{{customdata[1]}}<br>{saved.unit} %{{y:.1f}}\u2009%"
    columnar = rows["relative_range"] > threshold
    for part, look, size in (
        (rows[~columnar], Style(ink.muted, "not columnar"), 7),
        (rows[columnar], Style(accent, "columnar"), 10),
    ):
        if part.empty:
            continue
        shown = np.stack([part["layer"], part[x].map(predictor.text)], axis=1)
        behind = {"marker": {"opacity": 0.55 if size < 10 else 1.0}, "customdata": shown}
        chart.points(along * part[x], 100 * part[column], look, hover, size=size, **behind)
    for chosen in rows[rows["layer"] == marked_layer].itertuples():
        place = along * getattr(chosen, x), 100 * getattr(chosen, column)
        chart.rings([place[0]], [place[1]], "chosen", size=15, colour=ink.text)
        _beside(chart, chosen.layer, place, predictor, rows[x].max())
    if x == "relative_range":
        chart.figure.add_vrect(threshold, 1.0, fillcolor=accent, opacity=0.09, line_width=0, layer="below")
        chart.figure.add_vline(x=threshold, line={"color": accent, "dash": "dash", "width": 1.5})
        chart.x(range=[0, 1], dtick=0.25)
    chart.figure.add_hline(y=0, line={"color": ink.muted, "width": 1.5})
    chart.x(zeroline=False, showgrid=False, **(PERCENT if along == 100 else {}))
    chart.y(**PERCENT, zeroline=False, rangemode="normal", automargin=False)  # marks at 0 are whole
    draws = sum(name.startswith("gain_draw_") for name in table) if column == "held_out_gain" else 0
    tokens = "held-out" if held else "calibration"
    subtitle = f"Of SparseGPT's {tokens} error{measured_at}"
    subtitle += f"; in brackets: {word(1 + draws)} draws of text" if draws else "; one draw of text"
    ranked = verdicts.rank_correlation(rows[x], rows[column])
    caption = "" if ranked is None else f"Rank correlation of {predictor.unit} and error saved: {ranked}."
    alt = f"Scatter chart of the error saved by {saved.who} against {predictor.label.lower()}"
    columns = list(dict.fromkeys(["layer", "block_index", "projection", "relative_range", x, column]))
    finding = _gain_finding(rows, columnar, column, saved.who, is_range=x == "relative_range")
    return chart.done(finding, subtitle, caption, alt, rows[columns].reset_index(drop=True))


def _beside(chart: Chart, layer: str, place: tuple[float, float], predictor: Metric, largest: float) -> None:
    """The name of the chosen mark, on the side that has room."""
    middle = 0.6 if predictor is METRICS["relative_range"] else largest / 2
    side = {"xanchor": "left", "xshift": 10} if place[0] < middle else {"xanchor": "right", "xshift": -10}
    chart.note(short_layer(layer).replace("self_attn.", "").replace("mlp.", ""), x=place[0], y=place[1], **side)


def _gain_finding(rows: pd.DataFrame, columnar: pd.Series, column: str, who: str, *, is_range: bool) -> str:
    """The mean that an order saves in columnar layers with its spread over draws of text, and in the others."""
    if not (is_range and columnar.any()):
        return f"{sentence(who)} gains on {out_of(len(rows[rows[column] > 0]), len(rows), 'layer')}"
    draws = [column, *(name for name in rows if name.startswith("gain_draw_") and column == "held_out_gain")]
    means = [float(rows.loc[columnar, name].mean()) for name in draws]
    finding = f"{sentence(who)} saves {percent(means[0], 0)}"
    low, high = f"{100 * min(means):.0f}", percent(max(means), 0)
    if len(means) > 1:
        finding += f" ({low} to {high})"
    rest = rows.loc[~columnar, column]
    return finding + " there" + (f", {percent(rest.mean(), 0)} elsewhere" if len(rest) else "")


# Two runs side by side


def run_maps(
    rows: pd.DataFrame, names: tuple[str, str], measure: str, *, why: str = "", theme: Theme = "light"
) -> Drawing:
    """The same number of every layer in two runs, one map above the other, on one scale.

    The rows have layer, block_index, projection, first, second; `measure` is the number in words that follow "the".
    `why`: a sentence if the runs are not compared: then a row has the number of one run, and each map has its own axes.
    """
    parts = [rows.assign(value=rows[which]).dropna(subset=["value"]) for which in ("first", "second")]
    maps = [folded(part) for part in parts]
    tall = [max(3, cells["projection"].nunique()) for cells in maps]
    top = max(float(cells["value"].max()) for cells in maps) or 1.0
    grid: dict[str, Any] = {"rows": 2, "cols": 1, "subplot_titles": names, "row_heights": tall}
    grid |= {"shared_xaxes": not why, "vertical_spacing": 0.2 if why else 0.16}
    chart = Chart(height=(270 if why else 230) + ROW * sum(tall), headroom=22, theme=theme, **grid)
    for place, cells in enumerate(maps, 1):
        shown, at = cells.assign(text=cells["value"].map(number)), {"row": place, "col": 1}
        chart.layer_map(layer_grid(cells), shown, measure, at=at, coloraxis="coloraxis")
    chart.x(title_text="decoder block", **({} if why else {"row": 2, "col": 1}))
    scale = {"colorscale": palette.SEQUENTIAL, "cmin": 0, "cmax": top, "colorbar": colourbar(measure)}
    chart.figure.update_layout(coloraxis=scale)
    chart.figure.update_annotations(font={"size": FONT_SIZE + 1, "color": chart.ink.text})
    highest = [part.loc[part["value"].idxmax()] for part in parts]
    where, values = [short_layer(row["layer"]) for row in highest], [number(row["value"]) for row in highest]
    finding = f"Both runs have the highest {measure} in {where[0]}: {values[0]} and {values[1]}"
    if why or highest[0]["layer"] != highest[1]["layer"]:
        ends = [f"in {layer} of {name}, {value}" for layer, name, value in zip(where, names, values, strict=True)]
        finding = f"The highest {measure} is {ends[0]}, and {ends[1]}"
    which = f"{every_layer(pd.concat(parts), pd.concat(maps))} {'of two' if why else 'in both'} runs"
    subtitle = f"{sentence(measure)} of {which}, on one scale from 0 to {number(top)}"
    means = [f"{name} {number(part['value'].mean())}" for name, part in zip(names, parts, strict=True)]
    caption = f"Mean over {count(len(rows), 'layer')}: {', '.join(means)}."
    if why:
        means = [f"{mean} over {count(len(part), 'layer')}" for mean, part in zip(means, parts, strict=True)]
        caption = f"{why} Mean: {'; '.join(means)}."
    alt = f"Two maps of {measure} by decoder block and projection{', one above the other' if why else ''}"
    table = rows[["layer", "block_index", "projection", "first", "second"]]
    return chart.done(finding, subtitle, caption, alt, table.rename(columns={"first": names[0], "second": names[1]}))


def run_difference(rows: pd.DataFrame, names: tuple[str, str], measure: str, *, theme: Theme = "light") -> Drawing:
    """The change from the first run to the second, as a share of the first's number, on a scale centred on 0.

    Shares have the colours of the ratio's logarithm: a third and three times are equally far from no change, and
    nothing is below −100 %.
    """
    base = rows["first"].where(rows["first"] > 0)
    change = (rows["second"] - rows["first"]) / base
    shown, limit, beyond = _log_ratios(rows["second"] / base)
    subtitle = f"Change of {measure} against {names[0]}, log scale; purple: lower, orange: higher"
    if blank := int(base.isna().sum()):
        subtitle += f"; blank: {count(blank, 'layer')} in which {names[0]} has 0"
    if beyond:
        low, high = (number(100 * math.expm1(end)) for end in (-limit, limit))
        subtitle += f"; the scale ends at {low} % and +{high} %, {count(beyond, 'layer')} beyond"
    apart = rows.assign(value=change, text=["+" * (share > 0) + percent(share) for share in change])
    cells = folded(apart.assign(value=shown))
    subtitle += "; of experts the largest" if len(cells) < len(rows) else ""
    height = 180 + ROW * max(3, cells["projection"].nunique())
    chart = Chart(x="decoder block", height=height, theme=theme)
    steps, bar = palette.DIVERGING[theme], colourbar("change", **_share_ticks(limit))
    scale: dict[str, Any] = {"colorscale": steps, "zmin": -limit, "zmax": limit}
    if not (shown > 0).any():  # half a scale of colours that no cell has says nothing
        scale |= {"colorscale": [[2 * place, colour] for place, colour in steps if place <= 0.5], "zmax": 0.0}
    chart.layer_map(layer_grid(cells).clip(-limit, limit), cells, "change", colorbar=bar, **scale)
    caption = "Average: geometric mean of ratios."
    alt = f"Map of the difference in {measure} by decoder block and projection"
    table = rows[["layer", "block_index", "projection", "first", "second"]]
    table = table.assign(difference=rows["second"] - rows["first"])
    table = table.rename(columns={"first": names[0], "second": names[1]})
    return chart.done(verdicts.says_layers(rows, names, measure), subtitle, caption, alt, table)


def _log_ratios(ratios: pd.Series) -> tuple[pd.Series, float, int]:
    """Logarithms of ratios, the limit of their scale, and how many layers lie beyond it."""
    with np.errstate(divide="ignore"):
        logs = np.log(ratios)
    sizes = logs.abs()[np.isfinite(logs)].to_numpy(np.float64)
    limit = float(sizes.max(initial=0.0))
    # An order statistic: interpolated, the largest of few layers would still set the scale.
    if len(sizes) and limit > 3 * (common := float(np.percentile(sizes, BULK, method="lower"))) > 0:
        limit = common
    limit = limit or 1.0
    return logs, limit, int((logs.abs() > limit).sum())


def _share_ticks(limit: float) -> dict[str, Any]:
    """Ticks in per cent on a scale of logarithms: at 0 and, on both sides, about half-way and near the end."""
    rises = [digit * 10.0**power for power in range(-5, 5) for digit in (1, 2, 5)]
    falls = [-rise for rise in rises if rise < 0.6] + [1 / times - 1 for times in (5, 10, 20, 50, 100, 1000)]
    shares = {0.0}
    for side in (rises, falls):
        for part in (0.5, 1.0):
            shares |= set([share for share in side if abs(math.log1p(share)) <= part * limit][-1:])
    texts = {s: "+" * (s > 0) + f"{100 * s:,.6g} %".replace(",", " ").replace("-", "−") for s in sorted(shares)}
    return {"tickvals": [math.log1p(share) for share in texts], "ticktext": list(texts.values())}
