"""A checkpoint beside its dense model: what to think of every layer, as a map."""

from __future__ import annotations

import html
import textwrap

import pandas as pd
import plotly.graph_objects as go

from app.figures import marks, overview, palette, style
from app.figures.palette import Style, Theme
from app.figures.style import Drawing
from rose.model.check import verdicts

STATUSES = {"fail": "fails", "look": "needs review", "pass": "passes"}  # of a check of our own layers -> verdict
# Of a checkpoint's layers, then of our own; in each the worst first. Those without a symbol are quiet.
LOOKS = {
    look.label: look
    for look in (
        Style(palette.PURPLE, verdicts.NUMBERS_BROKEN, symbol="x"),
        Style(palette.INDIGO, verdicts.OTHER_MODEL, symbol="diamond"),
        Style(palette.ORANGE, verdicts.PATTERN_BROKEN, symbol="cross"),
        Style(palette.AZURE, verdicts.ZEROS_LOST, symbol="triangle-up"),
        Style(palette.BROWN, verdicts.TIE_TORN, symbol="hourglass"),
        Style(palette.TAN, verdicts.OTHER_SPARSITY, symbol="triangle-down"),
        Style(palette.RUST, verdicts.WORSE_THAN_WANDA, symbol="star"),
        Style(palette.VIOLET, verdicts.MASK_ALONE, symbol="circle"),
        Style(palette.SLATE, verdicts.NOT_PRUNED, symbol=""),
        Style(palette.TEAL, verdicts.AS_EXPECTED, symbol=""),
        Style(palette.PURPLE, STATUSES["fail"], symbol="x"),
        Style(palette.TAN, STATUSES["look"], symbol="circle"),
        Style(palette.TEAL, STATUSES["pass"], symbol=""),
    )
}
HOVER_LINE = 70  # characters


def verdict_map(
    table: pd.DataFrame, finding: str, *, marked_layer: str | None = None, theme: Theme = "light"
) -> Drawing:
    """What is to be thought of each layer, decoder block × projection; of experts in one cell the worst.

    The table has columns layer, block_index, projection, verdict (of `LOOKS`) and reason.
    """
    present = [look for name, look in LOOKS.items() if name in set(table["verdict"])]
    rank = {look.label: place for place, look in enumerate(present)}
    said = table["verdict"] + table["reason"].map(_hover)
    rows = table[["layer", "block_index", "projection", "verdict"]].assign(
        projection=table["projection"].map(overview.map_row), value=table["verdict"].map(rank), text=said
    )
    cells = rows.sort_values("value", kind="stable").drop_duplicates(["block_index", "projection"]).sort_index()
    grid, last = marks.layer_grid(cells.reset_index(drop=True)), len(present) - 1
    steps = [
        [edge / len(present), look.colour] for at, look in enumerate(present) for edge in (at, at + 1)
    ]  # a scale of flat steps, one for each verdict
    figure = go.Figure()
    marks.layer_map(figure, grid, cells, "", colorscale=steps, zmin=-0.5, zmax=last + 0.5, showscale=False, opacity=0.9)
    counts = table["verdict"].value_counts()
    for look in present:
        named = look._replace(label=f"{look.label} ({counts[look.label]})", symbol=look.symbol or "square")
        marks.points(figure, [None], [None], named, "", size=13)
        at = cells[cells["verdict"] == look.label]
        if look.symbol and len(at):
            edge = {"line": {"width": 1.5, "color": "#1a1c22"}}
            white = Style("#ffffff", look.label, symbol=look.symbol)
            marks.points(figure, at["block_index"], at["projection"], white, "", size=10, marker=edge, showlegend=False)
    for row in rows[rows["layer"] == marked_layer].itertuples():
        place = list(grid.index).index(row.projection)
        marks.outline(figure, row.block_index - 0.5, row.block_index + 0.5, place - 0.5, place + 0.5)
    which = ", of experts the worst" if len(rows) > len(cells) else ""
    what = f"Verdict on every layer{which}; a mark where it is not as expected"
    listed = ", ".join(f"{look.label} {counts[look.label]}" for look in present)
    alt = "Map of verdicts by decoder block and projection"
    frame = {"x": "decoder block", "height": 220 + 34 * max(3, min(24, len(grid))), "legend": True}
    data = table[["layer", "verdict", "reason"]]
    return style.finish(figure, theme, finding, what, f"Layers by verdict: {listed}.", alt, data, **frame)


def _hover(reason: str) -> str:
    lines = [html.escape(line) for line in textwrap.wrap(reason, HOVER_LINE)]
    return "".join(f"<br>{line}" for line in lines)
