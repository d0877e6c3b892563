"""Drift of pruned models along their decoder blocks: how far, where it arises, and how much of it is repaired.

All numbers are on held-out tokens, relative to the dense model's hidden states; see `dense_states.BlockDrift`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from app import words
from app.figures import palette, shapes, style
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
    shapes.block_axis(figure, table["block_index"])
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
        shapes.bars(figure, blocks, table[column], look, f"decoder block %{{x}}<br>{look.label} %{{y:.4g}}")
    after, hover = Style(palette.INKS[theme].text, "drift after the block"), "decoder block %{x}<br>drift %{y:.4g}"
    shapes.lines(figure, blocks, table["drift"], after, hover, width=2, size=7)
    source = table.loc[table["arisen"].idxmax()]
    total = float(table["arisen"].sum())
    share = float(source["arisen"]) / total if total > 0 else 0.0
    finding = f"Decoder block {int(source['block_index'])} adds most: {words.percent(share, 0)} of all that arises"
    if not total > 0:
        finding = "No drift arises in any decoder block"
    what = f"{table['run'].iloc[0]}: a stack above the line: the two partly cancel; below it: they reinforce each other"
    figure.update_layout(barmode="stack", bargap=0.15)
    shapes.block_axis(figure, blocks)
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
    shapes.block_axis(figure, table["block_index"])
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
    shapes.lines(figure, rows["block_index"], values, look, hover, width=2.2)


def _steepest(table: pd.DataFrame) -> tuple[float, pd.Series]:
    """The largest rise of drift from one block to the next, and its row."""
    rise = table.groupby("run", sort=False)["drift"].diff().fillna(table["drift"])
    return float(rise.max()), table.loc[rise.idxmax()]


GAP = 2  # pixels between pictures
WEIGHTINGS = {  # one style for each step weighting, everywhere
    "log_decrease": Style(palette.ORANGE, "Log decrease", "solid"),
    "uniform": Style(palette.BLUE, "Uniform", "dash"),
    "log_increase": Style(palette.GREEN, "Log increase", "dot"),
    "linear": Style(palette.VIOLET, "Linear", "dashdot"),
}


def weighting(name: str) -> str:
    """A step weighting as people read it."""
    return WEIGHTINGS[name].label


def pictures(
    rows: Mapping[str, np.ndarray],
    names: Sequence[str],
    step: int,
    *,
    time: float | None = None,
    drift: float | None = None,
    theme: Theme = "light",
) -> Drawing:
    """A row of grey pictures for each model, all from the same noise, after so many denoising steps.

    Args:
        rows: label -> (n, height, width) between −1 and 1.
        time: t that comes next; None after the last step.
        drift: of the last row from the first, ‖x − x dense‖ / ‖x dense‖; None with one row.
    """
    count, height, width = next(iter(rows.values())).shape
    sheet = np.full((len(rows) * (height + GAP) - GAP, count * (width + GAP) - GAP), np.nan, np.float32)
    for line, row in enumerate(rows.values()):
        for place, picture in enumerate(row):
            y, x = line * (height + GAP), place * (width + GAP)
            sheet[y : y + height, x : x + width] = picture
    figure = go.Figure(
        go.Heatmap(z=sheet.clip(-1, 1), colorscale="gray", zmin=-1, zmax=1, showscale=False, hoverinfo="skip")
    )
    centres = [place * (width + GAP) + (width - 1) / 2 for place in range(count)]
    lines = [line * (height + GAP) + (height - 1) / 2 for line in range(len(rows))]
    when = "finished" if time is None else f"after {words.count(step, 'step')}, t = {time:g}"
    if drift is None:
        finding = "The dense model's pictures" if time is None else f"The dense model {when}"
    elif drift == 0:
        finding = "Both models start from the same noise"
    else:
        finding = f"{list(rows)[-1]}: {words.percent(drift)} away from the dense model's pictures"
    what = f"{count} garments, {'both models from the same noise' if len(rows) > 1 else 'from noise'}; {when}"
    bare = shapes.BARE | {"showline": False, "ticks": ""}
    square = {"autorange": "reversed", "scaleanchor": "x", "constrain": "domain", "constraintoward": "top"}
    # Upwards to its picture: names that lean the other way would leave the figure on the right, and be left out.
    leaning: dict[str, Any] = {"autotickangles": [0, -45], "ticklabeloverflow": "allow"}
    figure.update_xaxes(bare | leaning, tickvals=centres, ticktext=list(names))
    figure.update_yaxes(bare | square, tickvals=lines, ticktext=list(rows))
    apart = "" if drift is None else f" They differ by {words.percent(drift)} of the dense pictures' norm."
    models = " and ".join("the dense model" if label == "Dense" else label for label in rows)
    caption = f"{count} pictures by {models}, {when}.{apart}"
    each = [(label, *pair) for label, row in rows.items() for pair in zip(names, row, strict=True)]
    table = pd.DataFrame(
        [(label, name, float(picture.mean()), float(np.linalg.norm(picture))) for label, name, picture in each],
        columns=["model", "picture", "mean", "norm"],
    )
    height = 120 + 84 * len(rows)
    return style.finish(figure, theme, finding, what, caption, "Pictures side by side", table, height=height)


def drift_curve(
    drift: Sequence[float], times: Sequence[float], *, method: str, marked: int | None = None, theme: Theme = "light"
) -> Drawing:
    """How far the pruned model's x_t has moved from the dense model's, after each step.

    Args:
        drift: (steps + 1,); 0 at the start.
        times: t before each step, (steps,).
        marked: steps done, where a line stands.
    """
    steps, values = np.arange(len(drift)), np.asarray(drift, np.float64)
    look = palette.method_style(method)
    figure = go.Figure()
    shapes.lines(figure, steps, values, Style(look.colour, look.label), "after %{x} steps<br>drift %{y:.3f}", size=6)
    half, most = len(times) // 2, int(values.argmax())
    finding = f"{look.label}'s pictures end {words.percent(values[-1])} away"
    if most < len(times):
        finding += f"; the drift was largest, {words.percent(values[most])}, after {words.count(most, 'step')}"
    if not values[-1]:
        finding = f"{look.label} draws the dense model's pictures"
    what = "‖x − x dense‖ / ‖x dense‖ of the same noise, mean over pictures"
    figure.update_xaxes(dtick=shapes.whole_step(len(times)))
    if marked is not None:
        figure.add_vline(x=marked, line=shapes.CHOSEN)
    caption = f"Drift {values[half]:.3f} after {words.count(half, 'step')}, {values[-1]:.3f} of the finished pictures."
    table = pd.DataFrame({"steps_done": steps, "t": [*times, np.nan], "drift": values})
    alt, axes = "A line of drift against denoising steps", {"x": f"denoising steps done, of {len(times)}", "y": "drift"}
    return style.finish(figure, theme, finding, what, caption, alt, table, **axes)


def step_weighting(
    weights: Mapping[str, Sequence[float]],
    diagonals: np.ndarray,
    chosen: str,
    *,
    layer: str = "",
    theme: Theme = "light",
) -> Drawing:
    """Step weights, and the Hessian diagonal that each leads to in one layer, `chosen` against uniform in the title.

    Args:
        weights: name -> α of each step, noisiest first; with uniform ones.
        diagonals: each step's part of diag(H), (steps, in).
    """
    sums = {name: np.asarray(alpha, np.float64) @ diagonals.astype(np.float64) for name, alpha in weights.items()}
    # A factor common to all channels changes nothing in pruning, so it is taken out.
    shares = {name: total / total.mean() for name, total in sums.items()}
    order = np.argsort(-shares["uniform"], kind="stable")
    figure = make_subplots(rows=1, cols=2, column_widths=[0.4, 0.6], horizontal_spacing=0.12)
    left: dict[str, Any] = {"mode": "lines", "row": 1, "col": 1}
    right = left | {"col": 2, "showlegend": False}
    for name, alpha in weights.items():
        look, share = WEIGHTINGS[name], shares[name][order]
        hover = f"{look.label}<br>step %{{x}}<br>α %{{y:.3f}}"
        shapes.lines(figure, np.arange(len(alpha)), np.asarray(alpha), look, hover, **left)
        hover = f"{look.label}<br>channel rank %{{x}}<br>diag(H) / mean %{{y:.3f}}"
        shapes.lines(figure, np.arange(len(share)), share, look, hover, **right)
    ranks = {"title_text": "input channel, by rank"}
    steps = {"title_text": "step, noisiest first", "dtick": shapes.whole_step(len(weights["uniform"]))}
    for column, x, y in ((1, steps, "α"), (2, ranks, "diag(H) / mean")):
        figure.update_xaxes(x, row=1, col=column)
        figure.update_yaxes(title_text=y, row=1, col=column)
    live = shares["uniform"] > 0
    change = np.abs(shares[chosen][live] / shares["uniform"][live] - 1)
    most, typical = float(change.max()), float(np.median(change))
    what = f"Left: weight α of each step. Right: diag(H) / mean, channels sorted by the uniform one{words.of(layer)}"
    finding = f"{weighting(chosen)} moves diag(H) by at most {words.percent(most)}"
    caption = (
        f"{weighting(chosen)} against uniform: {words.percent(typical)} in the median channel, {words.percent(most)} "
        f"at most, of {len(order)} channels."
    )
    if chosen == "uniform":
        finding = "Uniform weights: every step counts the same"
        caption = f"Diagonals of {len(order)} channels, with uniform and with other weights."
    table = pd.DataFrame({"channel": np.arange(len(order))} | {f"diagonal_{name}": sums[name] for name in weights})
    alt = "Lines of step weights and of the Hessian diagonal"
    return style.finish(figure, theme, finding, what, caption, alt, table, height=430, legend=True)
