"""Whether the numbers can be trusted: one error measured three times, over-fitting, a checkpoint beside its model."""

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import pandas as pd

from app.figures import maps, palette
from app.figures.palette import Style, Theme
from app.figures.shapes import BARE, Chart, Look, layer_grid
from app.figures.style import ERROR, Drawing
from app.words import count, number, percent, sentence, whole, word
from rose.layer.checks import CurvePoint, ErrorMeasures
from rose.model.check.costs import ERROR_OF, HELD_OUT, REFIT_STEPS
from rose.model.check.verdicts import Verdict
from rose.verdicts.trust import VERBS

MEASURES = {
    "quadratic_form": Style(palette.TEAL, "tr(ΔW H ΔWᵀ), from the Hessian"),
    "sweep_sum": Style(palette.BROWN, "Σ e² − λ‖ΔW‖², from the sweep", pattern="/"),
    "direct": Style(palette.INDIGO, "‖(W − Ŵ)Xᵀ‖², on the tokens", pattern="."),
}
ROW = 24  # pixels a projection takes in the map of verdicts
STATUSES = {status: verb for status, (verb, _) in VERBS.items()}  # of a check of our own layers -> verdict
# Colour and mark of each verdict on a checkpoint's layer, and of each status of our own layers.
_LOOKS = {
    Verdict.NUMBERS_BROKEN: (palette.PURPLE, "x"),
    Verdict.OTHER_MODEL: (palette.INDIGO, "diamond"),
    Verdict.PART_BROKEN: (palette.RUST, "pentagon"),
    Verdict.PATTERN_BROKEN: (palette.ORANGE, "cross"),
    Verdict.ZEROS_LOST: (palette.AZURE, "triangle-up"),
    Verdict.TIE_TORN: (palette.BROWN, "hourglass"),
    Verdict.OTHER_SPARSITY: (palette.TAN, "triangle-down"),
    Verdict.BACKWARDS: (palette.BLUE, "triangle-left"),
    Verdict.WORSE_THAN_WANDA: (palette.TEAL, "star"),
    Verdict.MASK_ALONE: (palette.VIOLET, "circle"),
    Verdict.NOT_PRUNED: (palette.SLATE, "square"),
    Verdict.NO_FAULT: (palette.GREEN, "square"),
    STATUSES["fail"]: (palette.PURPLE, "x"),
    STATUSES["look"]: (palette.TAN, "circle"),
    STATUSES["pass"]: (palette.GREEN, "square"),
}
# The worst lead. A verdict without a look stops the program here, not on a map with a blank cell.
LOOKS = {
    name: Style(_LOOKS[name][0], name, symbol=_LOOKS[name][1]) for name in map(str, (*Verdict, *STATUSES.values()))
}
HOVER_LINE = 70  # characters
OF_ITS_MASK = {  # errors of a checkpoint's layer, and of other weights under its mask
    "mask_error": Style(palette.TAN, "mask alone"),
    "error": Style(palette.PURPLE, "checkpoint"),
    "possible_error": Style(palette.GREEN, "mask,<br>refitted"),
}

# Our own layers


def error_measures(measures: Sequence[ErrorMeasures], **shared: Unpack[Look]) -> Drawing:
    """Three independent measurements of each method's error side by side, with how far they are apart."""
    chart = Chart(x="method", y=ERROR, height=460, legend=True, **shared)
    labels = [palette.method_style(m.method).label for m in measures]
    squared = pd.DataFrame(measures).astype({"direct": float})  # NaN where no tokens were at hand
    table = squared[list(MEASURES)].div(squared["dense"].where(squared["dense"] > 0), axis=0)
    highest = table.max(axis=1)
    table.insert(0, "method", squared["method"])
    table["disagreement"] = [m.disagreement for m in measures]
    measured = [name for name in MEASURES if table[name].notna().any()]
    for name in measured:
        chart.bars(labels, table[name], MEASURES[name], f"{MEASURES[name].label}<br>%{{x}}<br>%{{y:.6g}}")
    for label, top, gap in zip(labels, highest, table["disagreement"], strict=True):
        chart.figure.add_annotation(x=label, y=top, text=f"{number(gap)} apart", showarrow=False, yshift=12)
    chart.y(top=highest.max() * 1.15)
    worst, ways = number(table["disagreement"].max()), word(len(measured))
    finding = f"{sentence(ways)} measurements of the error differ by at most {worst}"
    note = f"Relative error{chart.of} by each way to measure it; above the bars: (largest − smallest) / largest"
    caption = "Float32 sums over a layer keep about five digits."
    return chart.done(finding, note, caption, f"Grouped bars of {ways} measures of the error by method", table)


def held_out_curve(points: Sequence[CurvePoint], *, method: str, **shared: Unpack[Look]) -> Drawing:
    """Calibration and held-out error against the number of calibration tokens."""
    table = pd.DataFrame(points).astype({"held_out_error": float}).sort_values("tokens", ignore_index=True)
    look, chart = palette.method_style(method), Chart(x="calibration tokens", y=ERROR, legend=True, **shared)
    held_out = Style(look.colour, "held-out tokens")
    fitted = Style(look.colour, "calibration tokens", "dash", "circle-open")
    for column, series in {"held_out_error": held_out, "calibration_error": fitted}.items():
        if table[column].notna().any():
            hover = f"%{{x:.0f}} tokens<br>{series.label} %{{y:.4g}}"
            chart.line(table["tokens"], table[column], series, hover, size=9)
    ticks = [whole(int(tokens)) for tokens in table["tokens"]]
    chart.x(type="log", tickvals=table["tokens"].tolist(), ticktext=ticks)
    chart.y(top=np.nanmax(table[["calibration_error", "held_out_error"]]) * 1.08)
    raised = int(table["is_damping_raised"].sum())
    caption = f"Damping had to be raised at {count(raised, 'point')}." if raised else ""
    on = f" on {chart.layer}" if chart.layer else ""
    note = f"Relative error of {look.label}{on} by calibration length; log scale"
    alt = f"Line chart of error against calibration tokens, up to {ticks[-1]}"
    held_out_error, fitted_error = table.iloc[-1][["held_out_error", "calibration_error"]]
    finding = f"With {ticks[-1]} tokens"
    if np.isnan(held_out_error):
        finding += f" the error on them is {number(fitted_error)}; nothing was held out"
    elif not fitted_error > 0:
        finding += f" the calibration error is 0 and the held-out error {number(held_out_error)}"
    else:
        finding += f", held-out error is {number(held_out_error / fitted_error)} times the calibration error"
    return chart.done(finding, note, caption, alt, table)


# A checkpoint


def verdict_map(
    table: pd.DataFrame, finding: str, *, marked_layer: str | None = None, theme: Theme = "light"
) -> Drawing:
    """The verdict on each layer; of experts in one cell the worst. What `is_wrong` is marked.

    The table has columns layer, block_index, projection, verdict (of `LOOKS`), reason and is_wrong.
    """
    wrong = set(table.loc[table["is_wrong"].astype(bool), "verdict"])
    present = [_quiet(look, wrong, theme) for name, look in LOOKS.items() if name in set(table["verdict"])]
    rank = {look.label: place for place, look in enumerate(present)}
    why = table["reason"].map(lambda reason: [html.escape(line) for line in textwrap.wrap(reason, HOVER_LINE)])
    text = ["<br>".join([verdict, *lines]) for verdict, lines in zip(table["verdict"], why, strict=True)]
    places = table["projection"].map(maps.map_row)
    rows = table.assign(projection=places, value=table["verdict"].map(rank.__getitem__), text=text)
    worst = rows.sort_values("value", kind="stable").sort_values("is_wrong", ascending=False, kind="stable")
    cells = worst.drop_duplicates(["block_index", "projection"]).sort_index()
    grid = layer_grid(cells.reset_index(drop=True))
    chart = Chart(x="decoder block", height=220 + ROW * max(3, min(24, len(grid))), legend=True, theme=theme)
    # A scale of flat steps, one for each verdict.
    steps = [[edge / len(present), look.colour] for at, look in enumerate(present) for edge in (at, at + 1)]
    scale = {"colorscale": steps, "zmin": -0.5, "zmax": len(present) - 0.5, "showscale": False, "opacity": 0.9}
    chart.layer_map(grid, cells, "", **scale)
    counts = []
    for look in present:
        is_wrong = table.loc[table["verdict"] == look.label, "is_wrong"]
        some = f", {is_wrong.sum()} of them marked" if is_wrong.any() and not is_wrong.all() else ""
        counts.append(f"{look.label} {len(is_wrong)}{some}")
        chart.points([None], [None], look._replace(label=counts[-1]), "", size=13)
        marked = cells[(cells["verdict"] == look.label) & cells["is_wrong"]]
        if len(marked):
            chart.signs(marked, look, 10)
    chart.outline_layer(grid, rows, marked_layer)
    which = ", of experts the worst" if len(rows) > len(cells) else ""
    note = f"Verdict on every layer{which}; a mark where something is wrong, or to be reviewed"
    alt = f"Map of verdicts by decoder block and projection: {'; '.join(counts)}"
    return chart.done(finding, note, "", alt, table[["layer", "verdict", "reason"]])


def _quiet(look: Style, wrong: set[str], theme: Theme) -> Style:
    """The accent where something is wrong; what is as expected is nearly the page, the rest grey."""
    quiet, grey = palette.QUIET[theme]
    usual = quiet if look.label in (str(Verdict.NO_FAULT), STATUSES["pass"]) else grey
    return look._replace(colour=palette.ACCENT[theme][1] if look.label in wrong else usual)


@dataclass(frozen=True)
class MaskExcerpt:
    """A part of a mask that breaks a pattern N:M."""

    removed: np.ndarray  # (rows, columns), True = zero
    first_row: int
    first_column: int
    keep: int
    of: int
    broken: list[tuple[int, int]]  # row and first column of the groups in it that keep more than N


def broken_pattern(excerpt: MaskExcerpt, **shared: Unpack[Look]) -> Drawing:
    """The weights around the first group that breaks a pattern: kept ones dark, zeros light, such groups outlined."""
    chart = Chart(x="input channel", y="output channel", height=440, **shared)
    (rows, columns), size = excerpt.removed.shape, excerpt.of
    x, y = excerpt.first_column + np.arange(columns), excerpt.first_row + np.arange(rows)
    cells = (~excerpt.removed).astype(np.uint8)
    scale = {"zmin": 0, "zmax": 1, "colorscale": [[0, chart.ink.blank], [1, palette.TEAL]], "showscale": False}
    hover = "input channel %{x}<br>output channel %{y}<extra></extra>"
    chart.figure.add_heatmap(z=cells, x=x, y=y, xgap=1, ygap=1, hovertemplate=hover, **scale)
    for row, column in excerpt.broken:
        chart.outline(column - 0.5, column + size - 0.5, row - 0.5, row + 0.5)
    for column in range(size, columns, size):  # between groups
        chart.figure.add_vline(x=x[column] - 0.5, line={"color": chart.ink.grid, "width": 1})
    chart.x(**BARE, range=[x[0] - 0.5, x[-1] + 0.5])
    chart.y(**BARE, range=[y[-1] + 0.5, y[0] - 0.5])
    row, column = excerpt.broken[0]
    start, pattern = column - excerpt.first_column, f"{excerpt.keep}:{size}"
    left = word(int(cells[row - excerpt.first_row, start : start + size].sum()))
    finding = f"Row {row} keeps {left} of columns {column} to {column + size - 1}, where {pattern} allows "
    finding += word(excerpt.keep)
    note = f"Weights{chart.of}: filled cells are kept, others are zero; outlined groups break {pattern}"
    data = pd.DataFrame(cells, columns=[str(column) for column in x])
    data.insert(0, "output channel", y)
    return chart.done(finding, note, "", f"Picture of kept and removed weights{chart.of}", data)


def compensation_bars(row: pd.Series, **shared: Unpack[Look]) -> Drawing:
    """The error of one layer, of its mask without compensation, and of its mask refitted, beside the errors of methods.

    `row` comes from `CheckpointCheck.layers`, checked with tokens.
    """
    chart = Chart(y="relative error", legend=True, **shared)
    looks = {name: look for name, look in OF_ITS_MASK.items() if pd.notna(row.get(name))}
    methods = [str(name) for name in row.index if str(name).startswith(ERROR_OF) and pd.notna(row[name])]
    looks |= {name: palette.method_style(name.removeprefix(ERROR_OF)) for name in methods}
    labels, marker = [look.label for look in looks.values()], {"color": [look.colour for look in looks.values()]}
    data = pd.DataFrame({"what": labels})
    for text, prefix, pattern in (("held-out tokens", HELD_OUT, ""), ("calibration tokens", "", "/")):
        values = [row.get(prefix + name) for name in looks]
        if pd.notna(values).all():
            data[f"on {text}"] = values
            behind = {"text": list(map(number, values)), "marker": {**marker, "pattern": {"shape": pattern}}}
            chart.bars(labels, values, Style(palette.PURPLE, text), f"%{{x}}<br>{text} %{{y:.6g}}", **behind)
    chart.y(top=1.15 * data.iloc[:, 1:].max(axis=None))
    error, alone = number(row["error"]), number(row["mask_error"])
    recovered = row.get("recovered")
    if pd.isna(recovered):
        finding = f"A refit would take less than 2 % off the error of the mask alone, {alone}"
    elif recovered < 0:
        finding = f"The layer is worse than its mask without compensation: error {error} against {alone}"
    else:
        finding = f"Compensation recovered {percent(recovered, 0)} of a refit's gain on calibration tokens"
    note = f"Error against the dense model's output{chart.of}; right: methods at the same sparsity"
    caption = f"The methods and the refit ({REFIT_STEPS} steps) are fitted to calibration tokens."
    return chart.done(finding, note, caption, "Bars of errors of one layer", data)
