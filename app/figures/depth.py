"""Drift of pruned models along their decoder blocks: how far, where it arises, and how much of it is repaired.

All numbers are on held-out tokens, relative to the dense model's hidden states; see `dense_states.BlockDrift`.
"""

from __future__ import annotations

from typing import Literal

import pandas as pd
import plotly.graph_objects as go

from app import words
from app.figures import marks, palette, style
from app.figures.palette import Style, Theme
from app.figures.style import Drawing

DRIFT = "drift ‖h<sub>p</sub> − h<sub>d</sub>‖² / ‖h<sub>d</sub>‖²"
HEIGHT = 410


def drift_curves(
    table: pd.DataFrame,
    *,
    scale: Literal["linear", "log"] = "linear",
    place: str = "decoder block",
    finding: str,
    theme: Theme = "light",
) -> Drawing:
    """Drift after every decoder block, or whatever `place` is, one line a run; a logarithmic one shows where it starts.

    The table has columns run, method, sparsity, target, block_index, drift. `finding`: the title, see
    `app.runs.depth.drift_finding`.
    """
    looks = _looks(table)
    figure = go.Figure()
    for name, rows in table.groupby("run", sort=False):
        drift = rows["drift"].where(rows["drift"] > 0) if scale == "log" else rows["drift"]
        _line(figure, rows, drift, looks[str(name)], place)
    ends = table.groupby("run", sort=False)["drift"].last()
    ranked = ends.sort_values(kind="stable")
    rise, steepest = _steepest(table)
    caption = (
        f"After the last {place}: {'; '.join(f'{name}: {words.number(float(v))}' for name, v in ranked.items())}. "
        f"Steepest rise: {steepest['run']}, {place} {int(steepest['block_index'])}, by {words.number(rise)}."
    )
    what = (
        f"Squared distance of hidden states, pruned (p) from dense (d), after every {place}, relative to the dense; "
        "mean over held-out tokens"
    )
    marks.block_axis(figure, table["block_index"])
    if scale == "log":
        figure.update_yaxes(style.LOG)
    frame = {"x": place, "y": DRIFT, "height": HEIGHT, "legend": True}
    alt = f"Line chart of drift by {place}, one line a run"
    return style.finish(figure, theme, finding, what, caption, alt, table.reset_index(drop=True), **frame)


def drift_shares(table: pd.DataFrame, *, theme: Theme = "light") -> Drawing:
    """Drift of one run by decoder block: what is passed on to each block, and what arises in it."""
    blocks, figure = table["block_index"], go.Figure()
    passed, arisen = Style(palette.SLATE, "passed on"), Style(palette.ORANGE, "arisen in the block", pattern="/")
    for column, look in {"passed_on": passed, "arisen": arisen}.items():
        marks.bars(figure, blocks, table[column], look, f"decoder block %{{x}}<br>{look.label} %{{y:.4g}}")
    after, hover = Style(palette.INKS[theme].text, "drift after the block"), "decoder block %{x}<br>drift %{y:.4g}"
    marks.lines(figure, blocks, table["drift"], after, hover, width=2, size=7)
    source = table.loc[table["arisen"].idxmax()]
    total = float(table["arisen"].sum())
    share = float(source["arisen"]) / total if total > 0 else 0.0
    finding = f"Decoder block {int(source['block_index'])} adds most: {words.percent(share, 0)} of all that arises"
    if not total > 0:
        finding = "No drift arises in any decoder block"
    what = f"{table['run'].iloc[0]}: a stack above the line: the two partly cancel; below it: they reinforce each other"
    figure.update_layout(barmode="stack", bargap=0.15)
    marks.block_axis(figure, blocks)
    last = table.iloc[-1]
    fixed = table["drift"] < table["passed_on"] + table["arisen"]
    caption = (
        f"In the last decoder block, {int(last['block_index'])}, {words.number(float(last['passed_on']))} is passed on "
        f"and {words.number(float(last['arisen']))} arises; {words.number(float(last['drift']))} is left. "
        f"The two partly cancel in {words.out_of(int(fixed.sum()), len(table), 'block')}."
    )
    frame = {"x": "decoder block", "y": DRIFT, "height": HEIGHT, "legend": True}
    alt = "Stacked bars of drift passed on and arisen, and a line of drift, by decoder block"
    return style.finish(figure, theme, finding, what, caption, alt, table.reset_index(drop=True), **frame)


def cancelled_shares(table: pd.DataFrame, *, problem: str = "", theme: Theme = "light") -> Drawing:
    """How much of the drift that was passed on each decoder block's pruned layers cancel, one line a run.

    `problem`: why the runs are not ranked, see `app.runs.depth.drift_problem`.
    """
    share = table["cancelled"] / table["passed_on"].where(table["passed_on"] > 0)
    table = table.assign(cancelled_share=share)  # of the first pruned block, which has received nothing, none
    looks = _looks(table)
    figure = go.Figure()
    for name, rows in table.groupby("run", sort=False):
        _line(figure, rows, rows["cancelled_share"], looks[str(name)], "decoder block", ".1%")
    received = table[table["passed_on"] > 0]
    means = received.groupby("run", sort=False)["cancelled_share"].mean()
    what = (
        "Passed on + arisen − drift, as a share of passed on: above 0 a block's pruned layers cancel, below 0 they add"
    )
    marks.block_axis(figure, table["block_index"])
    figure.update_yaxes(tickformat=style.PERCENT)
    shares = [f"{mean} %" for mean in words.apart(*(100 * means))] if len(means) else []
    listed = "; ".join(f"{name} {share}" for name, share in zip(means.index, shares, strict=True))
    falls = int((received["drift"] < received["passed_on"]).sum())
    caption = f"Mean over decoder blocks: {listed}." if shares else "No decoder block has received any drift."
    if falls:
        caption += f" In {words.out_of(falls, len(received), 'block')} less is left than was passed on."
    frame = {"x": "decoder block", "y": "share cancelled", "height": HEIGHT, "legend": True}
    alt = "Line chart of the share of passed-on drift that is cancelled, by decoder block"
    finding = f"Not ranked: {problem}" if problem else _cancelled_finding(means, shares)
    return style.finish(figure, theme, finding, what, caption, alt, table.reset_index(drop=True), **frame)


def _cancelled_finding(means: pd.Series, shares: list[str]) -> str:
    if means.empty:
        return "No decoder block has received drift that it could cancel"
    if means.max() == 0:
        return "No run cancels drift: on average, pruned layers neither cancel what they receive nor add to it"
    if means.max() < 0:
        return "No run cancels drift: on average, pruned layers add to what they receive"
    best = int(means.argmax())
    most, end = (" the most", "; chance is not ruled out") if len(means) > 1 else ("", "")
    return f"{means.index[best]} cancels{most}: {shares[best]} of the drift passed on{end}"


def _looks(table: pd.DataFrame) -> dict[str, palette.Style]:
    runs = table.drop_duplicates("run")
    return palette.run_styles(list(zip(runs["run"], runs["method"], runs["target"], strict=True)))


def _line(figure: go.Figure, rows: pd.DataFrame, values: pd.Series, look: Style, place: str, form: str = ".4g") -> None:
    hover = f"{look.label}<br>{place} %{{x}}: %{{y:{form}}}"
    marks.lines(figure, rows["block_index"], values, look, hover, width=2.2)


def _steepest(table: pd.DataFrame) -> tuple[float, pd.Series]:
    """The largest rise of drift from one block to the next, and its row."""
    rise = table.groupby("run", sort=False)["drift"].diff().fillna(table["drift"])
    return float(rise.max()), table.loc[rise.idxmax()]
