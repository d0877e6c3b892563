"""Heads and channels: what each costs, where a cut falls, what recovery brings, what a smaller model is worth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import words
from app.figures import palette, style
from app.figures.palette import Theme
from app.figures.style import Drawing

RECOVERY_LABELS = {"none": "none", "bias": "mean as bias", "linear": "linear (SlimLLM)", "exact": "least squares"}


def head_map(table: pd.DataFrame, *, marked_block: int | None = None, theme: Theme = "light") -> Drawing:
    """Cost of every query head as a map of head × decoder block.

    Args:
        table: block_index, head, group, cost (relative error once the head alone is gone, after least squares).
    """
    grid = table.pivot(index="head", columns="block_index", values="cost")
    figure = go.Figure(
        go.Heatmap(
            z=grid.to_numpy(np.float32),
            x=list(grid.columns),
            y=list(grid.index),
            colorscale=palette.SEQUENTIAL,
            zmin=0,
            zmax=float(table["cost"].max()) or 1.0,
            colorbar=style.colourbar("relative error without the head"),
            hovertemplate="decoder block %{x}<br>head %{y}<br>%{z:.4g}<extra></extra>",
        )
    )
    least = table.loc[table["cost"].idxmin()]
    most = table.loc[table["cost"].idxmax()]
    finding = f"Head {int(least['head'])} of decoder block {int(least['block_index'])} costs least"
    style.base(
        figure,
        theme,
        finding,
        "Relative error of the attention's output without one head, after the others compensate",
        x="decoder block",
        y="query head",
        height=150 + max(220, 24 * len(grid)),
    )
    figure.update_yaxes(dtick=style.whole_step(len(grid)), autorange="reversed", showgrid=False, zeroline=False)
    figure.update_xaxes(dtick=style.whole_step(len(grid.columns)), showgrid=False, zeroline=False)
    if marked_block is not None and marked_block in grid.columns:
        style.outline(figure, marked_block - 0.5, marked_block + 0.5, -0.5, len(grid) - 0.5)
    caption = (
        f"Least {words.number(least['cost'])}, most {words.number(most['cost'])} (head {int(most['head'])} of decoder "
        f"block {int(most['block_index'])}), median {words.number(float(table['cost'].median()))}."
    )
    return Drawing(figure, caption, f"Map of head costs. {caption}", table)


def channel_curve(table: pd.DataFrame, cut: int, *, block: int, theme: Theme = "light") -> Drawing:
    """Channels of one MLP in the order of removal, each with its own cost and the error of all removed so far.

    Args:
        table: channel, alone, together.
        cut: how many go.
    """
    step = np.arange(1, len(table) + 1)
    figure = go.Figure()
    figure.add_scatter(
        x=step,
        y=table["together"].clip(lower=1e-12),
        mode="lines",
        name="all so far, together",
        line={"color": palette.ORANGE, "width": 2.5},
    )
    figure.add_scatter(
        x=step,
        y=table["alone"].clip(lower=1e-12),
        mode="markers",
        name="each alone",
        marker={"color": palette.BLUE, "size": 3},
        customdata=table["channel"],
        hovertemplate="channel %{customdata}<br>alone %{y:.3g}<extra></extra>",
    )
    error = float(table["together"].iloc[cut - 1]) if cut else 0.0
    finding = f"Without {words.count(cut, 'channel')} of {words.whole(len(table))} the error is {words.percent(error)}"
    style.base(
        figure,
        theme,
        finding,
        f"MLP of decoder block {block}: relative error after least squares, in the order of exact cost; log scale",
        x="channels taken out",
        y="relative error",
        height=440,
        legend=True,
    )
    figure.update_yaxes(type="log", exponentformat="power")
    figure.add_vline(x=cut, line={"color": palette.MARK, "width": 2})
    alone = float(table["alone"].iloc[:cut].sum())
    caption = f"At the line the error is {words.number(error)}."
    if not cut:
        caption = "Move the line to take channels out."
    elif cut > 1:
        caption += f" The same channels' costs one by one add up to {words.number(alone)}"
        together = ", because channels that are removed together cannot compensate for one another"
        caption += f"{together if words.number(alone) != words.number(error) and alone < error else ''}."
    return Drawing(figure, caption, f"Channel costs with the cut. {caption}", table)


def recovery_bars(table: pd.DataFrame, *, what: str, theme: Theme = "light") -> Drawing:
    """Error after each recovery, on calibration and on held-out tokens.

    Args:
        table: recovery, tokens, relative_error.
        what: the part, in words.
    """
    figure, held = go.Figure(), table["tokens"].iloc[-1]
    for tokens, colour in (("calibration", palette.BLUE), ("held-out", palette.ORANGE)):
        rows = table[table["tokens"] == tokens]
        if len(rows):
            figure.add_bar(
                x=[RECOVERY_LABELS[name] for name in rows["recovery"]],
                y=rows["relative_error"],
                name=f"{tokens} tokens",
                marker={"color": colour},
            )
    shown = table[table["tokens"] == held].set_index("recovery")["relative_error"]
    gain = 1 - shown["exact"] / shown["none"] if shown["none"] else 0.0
    share = words.percent(abs(gain), 0)
    verb = "takes away" if gain >= 0 else "adds"
    style.base(
        figure,
        theme,
        f"Least squares {verb} {share} of the error",
        f"{what}: relative error by recovery of the columns that stay; the title is of {held} tokens",
        x="recovery",
        y=style.ERROR,
        height=400,
        legend=True,
    )
    texts = ", ".join(f"{RECOVERY_LABELS[name]} {words.number(value)}" for name, value in shown.items())
    caption = f"On {held} tokens: {texts}."
    return Drawing(figure, caption, f"Bars of recoveries. {caption}", table)


def trade_off(table: pd.DataFrame, ratio: float, *, theme: Theme = "light") -> Drawing:
    """Predicted error against what is taken out, with the chosen cut and its ideal speed-up.

    Args:
        table: ratio, removed, error, speedup, channels, heads.
        ratio: the chosen one; the nearest row is marked.
    """
    row = table.iloc[(table["ratio"] - ratio).abs().argmin()]
    figure = go.Figure()
    figure.add_scatter(
        x=100 * table["removed"],
        y=table["error"],
        mode="lines+markers",
        line={"color": palette.GREEN, "width": 2.5},
        customdata=table["speedup"],
        hovertemplate="%{x:.1f} % taken out<br>mean error %{y:.4f}<br>ideal speed-up %{customdata:.2f}<extra></extra>",
    )
    figure.add_scatter(
        x=[100 * row["removed"]],
        y=[row["error"]],
        mode="markers",
        marker={"color": palette.MARK, "size": 14, "line": {"width": 2, "color": palette.INKS[theme].page}},
        hoverinfo="skip",
    )
    style.base(
        figure,
        theme,
        f"{words.percent(row['removed'])} removed: at best {row['speedup']:.2f} times as fast, mean error "
        f"{words.percent(row['error'])}",
        "Mean relative error of all parts, predicted on the dense model's inputs, by the share of their parameters",
        x="parameters of heads and channels taken out, %",
        y="mean relative error",
        height=420,
    )
    figure.update_yaxes(rangemode="tozero")
    heads = "" if pd.isna(row["heads"]) else f"{int(row['heads'])} query heads and "
    caption = (
        f"At the mark each decoder block keeps {heads}{words.whole(int(row['channels']))} channels. Speed-up: ratio of "
        "the multiplications in the decoder blocks' linear layers; what a machine reaches is less."
    )
    return Drawing(figure, caption, f"Predicted error against parameters. {caption}", table)
