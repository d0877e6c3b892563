"""A checkpoint beside its dense model: verdicts on every layer as a map, and single layers that stand out."""

from __future__ import annotations

import html
import textwrap
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import words
from app.figures import maps, marks, palette, style
from app.figures.palette import Style, Theme
from app.figures.style import Drawing
from rose.model.check import verdicts
from rose.model.check.costs import ERROR_OF, REFIT_STEPS

STATUSES = {"fail": "fails", "look": "needs review", "pass": "passes"}  # of a check of our own layers -> verdict
# Of a checkpoint's layers, then of our own; in each the worst first.
LOOKS = {
    look.label: look
    for look in (
        Style(palette.PURPLE, verdicts.NUMBERS_BROKEN, symbol="x"),
        Style(palette.INDIGO, verdicts.OTHER_MODEL, symbol="diamond"),
        Style(palette.ORANGE, verdicts.PATTERN_BROKEN, symbol="cross"),
        Style(palette.AZURE, verdicts.ZEROS_LOST, symbol="triangle-up"),
        Style(palette.BROWN, verdicts.TIE_TORN, symbol="hourglass"),
        Style(palette.TAN, verdicts.OTHER_SPARSITY, symbol="triangle-down"),
        Style(palette.BLUE, verdicts.BACKWARDS, symbol="triangle-left"),
        Style(palette.RUST, verdicts.WORSE_THAN_WANDA, symbol="star"),
        Style(palette.VIOLET, verdicts.MASK_ALONE, symbol="circle"),
        Style(palette.SLATE, verdicts.NOT_PRUNED, symbol="square"),
        Style(palette.TEAL, verdicts.NO_FAULT, symbol="square"),
        Style(palette.PURPLE, STATUSES["fail"], symbol="x"),
        Style(palette.TAN, STATUSES["look"], symbol="circle"),
        Style(palette.TEAL, STATUSES["pass"], symbol="square"),
    )
}
HOVER_LINE = 70  # characters


def verdict_map(
    table: pd.DataFrame, finding: str, *, marked_layer: str | None = None, theme: Theme = "light"
) -> Drawing:
    """The verdict on each layer, decoder block × projection; of experts in one cell the worst.

    The table has columns layer, block_index, projection, verdict (of `LOOKS`), reason and is_wrong, which is marked.
    """
    present = [look for name, look in LOOKS.items() if name in set(table["verdict"])]
    rank = {look.label: place for place, look in enumerate(present)}
    texts = table["verdict"] + table["reason"].map(_hover)
    rows = table[["layer", "block_index", "projection", "verdict", "is_wrong"]].assign(
        projection=table["projection"].map(maps.map_row), value=table["verdict"].map(rank), text=texts
    )
    worst = rows.sort_values("value", kind="stable").sort_values("is_wrong", ascending=False, kind="stable")
    cells = worst.drop_duplicates(["block_index", "projection"]).sort_index()
    grid, last = marks.layer_grid(cells.reset_index(drop=True)), len(present) - 1
    steps = [
        [edge / len(present), look.colour] for at, look in enumerate(present) for edge in (at, at + 1)
    ]  # a scale of flat steps, one for each verdict
    figure = go.Figure()
    marks.layer_map(figure, grid, cells, "", colorscale=steps, zmin=-0.5, zmax=last + 0.5, showscale=False, opacity=0.9)
    counts = []
    for look in present:
        every = table[table["verdict"] == look.label]
        wrong = int(every["is_wrong"].sum())
        counts.append(f"{look.label} {len(every)}" + (f", {wrong} of them marked" if 0 < wrong < len(every) else ""))
        marks.points(figure, [None], [None], look._replace(label=counts[-1]), "", size=13)
        at = cells[(cells["verdict"] == look.label) & cells["is_wrong"]]
        if len(at):
            marks.signs(figure, at, look, 10)
    marks.outline_layer(figure, grid, rows, marked_layer)
    which = ", of experts the worst" if len(rows) > len(cells) else ""
    what = f"Verdict on every layer{which}; a mark where something is wrong, or to be reviewed"
    alt = "Map of verdicts by decoder block and projection"
    frame = {"x": "decoder block", "height": 220 + 34 * max(3, min(24, len(grid))), "legend": True}
    data = table[["layer", "verdict", "reason"]]
    return style.finish(figure, theme, finding, what, f"Layers by verdict: {'; '.join(counts)}.", alt, data, **frame)


def _hover(reason: str) -> str:
    lines = [html.escape(line) for line in textwrap.wrap(reason, HOVER_LINE)]
    return "".join(f"<br>{line}" for line in lines)


@dataclass(frozen=True)
class MaskExcerpt:
    """A part of a mask that breaks a pattern N:M."""

    removed: np.ndarray  # (rows, columns), True = zero
    first_row: int
    first_column: int
    keep: int
    of: int
    broken: list[tuple[int, int]]  # row and first column of the groups in it that keep more than N
    count: int  # of such groups in the whole layer
    groups: int  # that the layer has


def broken_pattern(excerpt: MaskExcerpt, *, layer: str = "", theme: Theme = "light") -> Drawing:
    """The weights around the first group that breaks a pattern: kept ones dark, zeros light, such groups outlined."""
    rows, columns = excerpt.removed.shape
    x, y = excerpt.first_column + np.arange(columns), excerpt.first_row + np.arange(rows)
    kept = (~excerpt.removed).astype(np.uint8)
    figure = go.Figure()
    hover = "input channel %{x}<br>output channel %{y}<extra></extra>"
    tones = [[0, palette.INKS[theme].blank], [1, palette.TEAL]]
    figure.add_heatmap(
        z=kept, x=x, y=y, zmin=0, zmax=1, colorscale=tones, showscale=False, xgap=1, ygap=1, hovertemplate=hover
    )
    for row, column in excerpt.broken:
        marks.outline(figure, column - 0.5, column + excerpt.of - 0.5, row - 0.5, row + 0.5)
    for column in range(excerpt.of, columns, excerpt.of):  # between groups
        at = excerpt.first_column + column - 0.5
        figure.add_vline(x=at, line={"color": palette.INKS[theme].grid, "width": 1})
    figure.update_xaxes(marks.BARE, range=[x[0] - 0.5, x[-1] + 0.5])
    figure.update_yaxes(marks.BARE, range=[y[-1] + 0.5, y[0] - 0.5])
    row, column = excerpt.broken[0]
    start = column - excerpt.first_column
    left = int(kept[row - excerpt.first_row, start : start + excerpt.of].sum())
    pattern = f"{excerpt.keep}:{excerpt.of}"
    finding = (
        f"Row {row} keeps {words.word(left)} of columns {column} to {column + excerpt.of - 1}, where {pattern} allows "
        f"{words.word(excerpt.keep)}"
    )
    what = f"Weights{words.of(layer)}: filled cells are kept, others are zero; outlined groups break {pattern}"
    caption = f"{words.whole(excerpt.count)} of {words.whole(excerpt.groups)} groups of the layer break {pattern}."
    data = pd.DataFrame(kept, columns=[str(column) for column in x])
    data.insert(0, "output channel", y)
    axes = {"x": "input channel", "y": "output channel", "height": 440}
    alt = f"Picture of kept and removed weights{words.of(layer)}"
    return style.finish(figure, theme, finding, what, caption, alt, data, **axes)


OF_ITS_MASK = {  # errors of a checkpoint's layer, and of other weights under its mask
    "mask_error": Style(palette.TAN, "mask alone"),
    "error": Style(palette.PURPLE, "checkpoint"),
    "possible_error": Style(palette.GREEN, "mask,<br>refitted"),
}


def compensation_bars(row: pd.Series, *, layer: str = "", theme: Theme = "light") -> Drawing:
    """The error of one layer, of its mask without compensation, and of its mask refitted, beside what methods reach.

    `row` is one of `CheckpointCheck.layers`, checked with tokens.
    """
    looks = {name: look for name, look in OF_ITS_MASK.items() if pd.notna(row.get(name))}
    methods = [str(name) for name in row.index if str(name).startswith(ERROR_OF) and pd.notna(row[name])]
    looks |= {name: palette.method_style(name.removeprefix(ERROR_OF)) for name in methods}
    values = [float(row[name]) for name in looks]
    figure = go.Figure()
    labels = [look.label for look in looks.values()]
    colours = {"color": [look.colour for look in looks.values()]}
    series = Style(palette.PURPLE, "relative error")
    texts = [words.number(value) for value in values]
    marks.bars(figure, labels, values, series, "%{x}<br>%{y:.6g}", text=texts, marker=colours)
    figure.update_yaxes(range=[0, 1.15 * max(values) or 1])
    error, alone = float(row["error"]), float(row["mask_error"])
    recovered = row.get("recovered")
    if pd.isna(recovered):
        finding = f"A refit would take less than 2 % off the error of the mask alone, {words.number(alone)}"
    elif recovered < 0:
        finding = "The layer is worse than its mask without compensation: "
        finding += f"error {words.number(error)} against {words.number(alone)}"
    elif recovered > 1:
        finding = "Compensation recovered all that a refit of this mask would"
    else:
        finding = f"Compensation recovered {words.percent(float(recovered), 0)} of what a refit would"
    what = f"Error against the dense model's output{words.of(layer)}; right: methods at the same sparsity"
    caption = f"On calibration tokens. The refit of the kept weights takes {REFIT_STEPS} steps of conjugate gradients."
    data = pd.DataFrame({"what": labels, "relative_error": values})
    axes = {"x": "", "y": "relative error", "height": 420}
    return style.finish(figure, theme, finding, what, caption, "Bars of errors of one layer", data, **axes)
