"""What a layer or a model loses, against the bits that it takes: zeros, fewer bits, or both."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import words
from app.figures import palette, shapes, style
from app.figures.palette import Style, Theme
from app.figures.style import Drawing
from rose import verdicts

LOOKS = {
    "0": palette.Style(palette.SLATE, "No zeros", symbol="circle"),
    "0.5": palette.Style(palette.BLUE, "50 % zeros", symbol="square"),
    "2:4": palette.Style(palette.ORANGE, "2:4", symbol="diamond"),
    "0.7": palette.Style(palette.GREEN, "70 % zeros", symbol="triangle-up"),
}

DASHES = ("solid", "dash", "dot")  # of the usual method and of others
UNROUNDED = "16 bits"


def bits_and_zeros(table: pd.DataFrame, *, layer: str = "", theme: Theme = "light") -> Drawing:
    """A line for each sparsity through its numbers of bits, error on a log scale.

    The table has a row per way: sparsity (of `LOOKS`), bits (0 where weights are not rounded), bits_a_weight,
    relative_error, held_out_error (NaN where there is none).
    """
    column, tokens = style.judged(table)
    figure = _lines(table.assign(by=""), column, f"{tokens} error")
    values = table[column].clip(lower=np.finfo(np.float32).tiny)
    span = [np.log10(values.min()) - 0.2, np.log10(values.max()) + 0.2]
    figure.update_yaxes(type="log", range=span, dtick=1, exponentformat="none")  # decades, as numbers
    figure.update_xaxes(range=[0, float(table["bits_a_weight"].max()) * 1.05])
    what = f"{words.sentence(tokens)} error{words.of(layer)} on a log scale; along a line 3 to 16 bits"
    both, alone = (_row(table, "0.5", 4), _row(table, "0", 3))
    change = verdicts.says_change(both[column], alone[column], "all of them at 3 bits")
    finding = f"Half the weights at 4 bits make {change}"
    others = (_row(table, "0.5", 0), _row(table, "0", 4))
    values = [_at_bits(row, column) for row in (both, alone, *others)]
    caption = (
        f"Compared are half the weights at 4 bits, {values[0]}, and all of them at 3 bits, {values[1]}. "
        f"Beside them: half the weights unrounded, {values[2]}; all of them at 4 bits, {values[3]}."
    )
    alt = "Line chart of error against bits a weight, a line for each sparsity"
    frame = {"x": "bits a weight", "y": style.ERROR, "height": 460, "legend": True}
    return style.finish(figure, theme, finding, what, caption, alt, table, **frame)


def perplexity_and_bits(table: pd.DataFrame, *, model: str, theme: Theme = "light") -> Drawing:
    """The same of whole models by `perplexity`; the dense model is a row of 16 bits a weight. `by` is "" or names
    another method than that of most rows, which then has lines of its own."""
    figure, usual = _lines(table, "perplexity", "perplexity"), table[table["by"] == ""]
    for trace in figure.data:  # few points, far apart: each says its bits; those of others stand above or below them
        if trace.line.dash == DASHES[0]:
            places = ["top right" if named == UNROUNDED else "bottom left" for named in trace.customdata]
            trace.update(mode="lines+markers+text", text=trace.customdata, textposition=places)
    reach = 0.95 * float(table["perplexity"].min()), 1.08 * float(table["perplexity"].max())
    figure.update_yaxes(range=reach)
    sizes = np.log10([0.85 * float(table["bits_a_weight"].min()), 1.25 * float(table["bits_a_weight"].max())])
    figure.update_xaxes(type="log", range=sizes, tickvals=[2, 3, 4, 6, 8, 12, 16], exponentformat="none")
    both, alone = _row(usual, "0.5", 4), _row(usual, "0", 3)
    more = verdicts.says_change(both["perplexity"], alone["perplexity"], "all of them at 3 bits", "perplexity")
    finding = f"Half the weights at 4 bits make {more}"
    what = f"Perplexity of {model} by bits a weight on a log scale; marks name the bits of weights that are kept; the "
    what += "axis of perplexity does not begin at 0"
    caption = f"Half the weights at 4 bits take {both['bits_a_weight']:.2f} bits a weight, as all of them at 3 bits do."
    alt = "Line chart of perplexity against bits a weight, a line for each sparsity"
    frame = {"x": "bits a weight", "y": "perplexity", "height": 460, "legend": True}
    return style.finish(figure, theme, finding, what, caption, alt, table, **frame)


def _lines(table: pd.DataFrame, column: str, noun: str) -> go.Figure:
    """A line for each sparsity and method, `column` against bits a weight."""
    figure, dashes = go.Figure(), dict(zip(table["by"].unique(), DASHES, strict=False))
    for (sparsity, by), rows in table.groupby(["sparsity", "by"], sort=False):
        rows, look = rows.sort_values("bits_a_weight"), LOOKS[sparsity]
        look = look._replace(label=", ".join(filter(None, (look.label, by))), dash=dashes[by])
        named = [UNROUNDED if bits == 0 else f"{bits} bits" for bits in rows["bits"]]
        hover = f"{look.label}, %{{customdata}}<br>%{{x:.2f}} bits a weight<br>{noun} %{{y:.4g}}"
        shapes.lines(figure, rows["bits_a_weight"], rows[column], look, hover, customdata=named, size=10)
    return figure


def _at_bits(row: pd.Series, column: str) -> str:
    return f"{words.number(row[column])} at {row['bits_a_weight']:.2f} bits a weight"


def _row(table: pd.DataFrame, sparsity: str, bits: int) -> pd.Series:
    return table[(table["sparsity"] == sparsity) & (table["bits"] == bits)].iloc[0]


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
            colorbar=shapes.colourbar("relative error without the head"),
            hovertemplate="decoder block %{x}<br>head %{y}<br>%{z:.4g}<extra></extra>",
        )
    )
    figure.update_yaxes(shapes.BARE, dtick=shapes.whole_step(len(grid)), autorange="reversed")
    figure.update_xaxes(shapes.BARE, dtick=shapes.whole_step(len(grid.columns)))
    if marked_block is not None and marked_block in grid.columns:
        shapes.outline(figure, marked_block - 0.5, marked_block + 0.5, -0.5, len(grid) - 0.5)
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
    shapes.lines(figure, step, together, look, hover, mode="lines")
    look, hover = Style(palette.BLUE, "each alone"), "channel %{customdata}<br>alone %{y:.3g}"
    shapes.points(figure, step, each, look, hover, size=3, customdata=table["channel"])
    figure.update_yaxes(type="log", exponentformat="power")
    figure.add_vline(x=cut, line=shapes.CHOSEN)
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
            shapes.bars(figure, rows["recovery"].map(RECOVERY_LABELS), rows["relative_error"], look, hover)
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
    shapes.lines(figure, 100 * table["removed"], table["error"], look, hover, size=6, customdata=table["speedup"])
    edge = {"line": {"width": 2, "color": palette.INKS[theme].page}}
    shapes.points(
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


def size_bars(table: pd.DataFrame, *, what: str, theme: Theme = "light") -> Drawing:
    """Error by the size of what is removed, before and after compensation.

    The table has a row per size: size (as shown), removed, units, dropped, compensated.
    """
    figure = go.Figure()
    dropped, compensated = Style(palette.SLATE, "Removed, nothing compensated"), Style(palette.GREEN, "Compensated")
    for column, look in {"dropped": dropped, "compensated": compensated}.items():
        hover = f"%{{customdata[0]}} of %{{customdata[1]}} %{{x}}<br>{look.label}: %{{y:.4g}}"
        behind = {"text": table[column].map(words.number), "customdata": table[["removed", "units"]]}
        shapes.bars(figure, table["size"], table[column], look, hover, **behind)
    best, worst = table["compensated"].idxmin(), table["compensated"].idxmax()
    low, high = table.loc[best], table.loc[worst]
    least, most = (str(row["size"]).lower() for row in (low, high))
    finding = f"{words.sentence(least)} cost nothing"
    if low["compensated"] > 0:
        times = words.number(high["compensated"] / low["compensated"])
        finding = f"{words.sentence(most)} cost {times} times as much as {least}"
    figure.update_yaxes(range=[0, 1.15 * float(table["dropped"].max()) or 1])
    listed = "; ".join(
        f"{row.size}: {words.number(row.dropped)} and {words.number(row.compensated)}"
        for row in table.itertuples(index=False)
    )
    caption, alt = f"Error before and after compensation. {listed}.", "Bar chart of the error by size"
    what = f"Relative error of the outputs when {what}"
    return style.finish(figure, theme, finding, what, caption, alt, table, y=style.ERROR, legend=True)
