"""Heads and channels: what each costs, where a cut falls, what recovery brings, what a smaller model is worth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import words
from app.figures import marks, palette, style
from app.figures.palette import Style, Theme
from app.figures.style import Drawing

RECOVERY_LABELS = {"none": "none", "bias": "mean as bias", "linear": "linear (SlimLLM)", "exact": "least squares"}
UNITS = {"heads": "query heads", "channels": "channels"}


def head_map(table: pd.DataFrame, *, marked_block: int | None = None, theme: Theme = "light") -> Drawing:
    """Relative error once a query head alone is gone, after least squares, as a map of head × decoder block."""
    grid = table.pivot(index="head", columns="block_index", values="cost")
    # Blocks that were not measured have an empty place: a heatmap would stretch its neighbours over it.
    grid = grid.reindex(columns=range(grid.columns.min(), grid.columns.max() + 1))
    figure = go.Figure(
        go.Heatmap(
            z=grid.to_numpy(np.float32),
            x=grid.columns,
            y=grid.index,
            colorscale=palette.SEQUENTIAL,
            zmin=0,
            zmax=float(table["cost"].max()) or 1.0,
            colorbar=marks.colourbar("relative error without the head"),
            hovertemplate="decoder block %{x}<br>head %{y}<br>%{z:.4g}<extra></extra>",
        )
    )
    figure.update_yaxes(marks.BARE, dtick=marks.whole_step(len(grid)), autorange="reversed")
    figure.update_xaxes(marks.BARE, dtick=marks.whole_step(len(grid.columns)))
    if marked_block is not None and marked_block in grid.columns:
        marks.outline(figure, marked_block - 0.5, marked_block + 0.5, -0.5, len(grid) - 0.5)
    least, most = table.loc[table["cost"].idxmin()], table.loc[table["cost"].idxmax()]
    finding = f"Head {int(least['head'])} of decoder block {int(least['block_index'])} costs least"
    what = "Relative error of the attention's output without one head, after the others compensate"
    caption = (
        f"Least {words.number(least['cost'])}, most {words.number(most['cost'])} (head {int(most['head'])} of decoder "
        f"block {int(most['block_index'])}), median {words.number(float(table['cost'].median()))}."
    )
    frame = {"x": "decoder block", "y": "query head", "height": 150 + max(220, 24 * len(grid))}
    return style.finish(figure, theme, finding, what, caption, "Map of head costs", table, **frame)


def channel_curve(table: pd.DataFrame, cut: int, *, block: int, theme: Theme = "light") -> Drawing:
    """Channels of one MLP in the order of removal, each with its own cost and the error of all removed so far."""
    step, figure = np.arange(1, len(table) + 1), go.Figure()
    together, each = (table[column].clip(lower=1e-12) for column in ("together", "alone"))  # a log axis has no 0
    look, hover = Style(palette.ORANGE, "all so far, together"), "without %{x} channels<br>together %{y:.3g}"
    marks.lines(figure, step, together, look, hover, mode="lines")
    look, hover = Style(palette.BLUE, "each alone"), "channel %{customdata}<br>alone %{y:.3g}"
    marks.points(figure, step, each, look, hover, size=3, customdata=table["channel"])
    figure.update_yaxes(type="log", exponentformat="power")
    figure.add_vline(x=cut, line=marks.CHOSEN)
    error = float(table["together"].iloc[cut - 1]) if cut else 0.0
    finding = f"Without {words.count(cut, 'channel')} of {words.whole(len(table))} the error is {words.percent(error)}"
    what = f"MLP of decoder block {block}: relative error after least squares, in the order of exact cost; log scale"
    alone = float(table["alone"].iloc[:cut].sum())
    caption = f"At the line the error is {words.number(error)}."
    if not cut:
        caption = "Move the line to take channels out."
    elif cut > 1:
        differs = words.number(alone) != words.number(error) and alone < error
        why = ", because channels that are removed together cannot compensate for one another" if differs else ""
        caption += f" The same channels' costs one by one add up to {words.number(alone)}{why}."
    frame = {"x": "channels taken out", "y": "relative error", "height": 440, "legend": True}
    return style.finish(figure, theme, finding, what, caption, "Channel costs with the cut", table, **frame)


def recovery_bars(table: pd.DataFrame, *, what: str, theme: Theme = "light") -> Drawing:
    """Error after each recovery, on calibration and on held-out tokens; `what` is the part that was recovered."""
    figure, held = go.Figure(), table["tokens"].iloc[-1]
    for tokens, colour in (("calibration", palette.BLUE), ("held-out", palette.ORANGE)):
        rows = table[table["tokens"] == tokens]
        if len(rows):
            look, hover = Style(colour, f"{tokens} tokens"), f"%{{x}}<br>error on {tokens} tokens %{{y:.4g}}"
            marks.bars(figure, rows["recovery"].map(RECOVERY_LABELS), rows["relative_error"], look, hover)
    shown = table[table["tokens"] == held].set_index("recovery")["relative_error"]
    gain = 1 - shown["exact"] / shown["none"] if shown["none"] else 0.0
    share = words.percent(abs(gain), 0)
    verb = "takes away" if gain >= 0 else "adds"
    finding = f"Least squares {verb} {share} of the error"
    what = f"{what}: relative error by recovery of the columns that stay; the title is of {held} tokens"
    texts = ", ".join(f"{RECOVERY_LABELS[name]} {words.number(value)}" for name, value in shown.items())
    caption = f"On {held} tokens: {texts}."
    frame = {"x": "recovery", "y": style.ERROR, "height": 400, "legend": True}
    return style.finish(figure, theme, finding, what, caption, "Bars of recoveries", table, **frame)


def trade_off(table: pd.DataFrame, ratio: float, *, theme: Theme = "light") -> Drawing:
    """Predicted error against what is taken out, with the cut nearest to the chosen ratio and its ideal speed-up."""
    row = table.iloc[(table["ratio"] - ratio).abs().argmin()]
    figure = go.Figure()
    hover = "%{x:.1f} % taken out<br>mean error %{y:.4f}<br>ideal speed-up %{customdata:.2f}"
    look = Style(palette.GREEN, "predicted")
    marks.lines(figure, 100 * table["removed"], table["error"], look, hover, size=6, customdata=table["speedup"])
    edge = {"line": {"width": 2, "color": palette.INKS[theme].page}}
    marks.points(
        figure, [100 * row["removed"]], [row["error"]], Style(palette.MARK, "chosen"), "", size=14, marker=edge
    )
    removed, error = words.percent(row["removed"]), words.percent(row["error"])
    finding = f"{removed} removed: at best {row['speedup']:.2f} times as fast, mean error {error}"
    what = "Mean relative error of all parts, predicted on the dense model's inputs, by the share of their parameters"
    kept = [f"{words.whole(int(row[unit]))} {name}" for unit, name in UNITS.items() if not pd.isna(row[unit])]
    caption = (
        f"At the mark each decoder block keeps {' and '.join(kept)}. Speed-up: ratio of the "
        "multiplications in the decoder blocks' linear layers; what a machine reaches is less."
    )
    alt, axes = "Predicted error against parameters", {"x": "parameters of heads and channels taken out, %"}
    return style.finish(figure, theme, finding, what, caption, alt, table, y="mean relative error", **axes)
