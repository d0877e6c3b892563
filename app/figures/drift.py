"""Drift of pruned models along their decoder blocks, and pictures of a pruned diffusion model.

Along decoder blocks all numbers are on held-out tokens, relative to the dense model's hidden states; see
`storage.BlockDrift`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import pandas as pd

from app.figures import palette
from app.figures.palette import Style, Theme
from app.figures.shapes import BARE, CHOSEN, Chart, Look
from app.figures.style import PERCENT, Drawing
from app.words import count, percent

DRIFT = "drift ‖h<sub>p</sub> − h<sub>d</sub>‖² / ‖h<sub>d</sub>‖²"
HEIGHT = 410
GAP = 2  # pixels between pictures
WEIGHTINGS = {  # one style for each step weighting, everywhere
    "log_decrease": Style(palette.ORANGE, "Log decrease", "solid"),
    "uniform": Style(palette.BLUE, "Uniform", "dash"),
    "log_increase": Style(palette.GREEN, "Log increase", "dot"),
    "linear": Style(palette.VIOLET, "Linear", "dashdot"),
}

# Along decoder blocks


def _curves(chart: Chart, table: pd.DataFrame, column: str, form: str, unit: str = "") -> None:
    """One line a run over decoder blocks."""
    runs = table.drop_duplicates("run")
    looks = palette.run_styles(list(zip(runs["run"], runs["method"], runs["target"], strict=True)))
    for name, rows in table.groupby("run", sort=False):
        hover = f"{name}<br>decoder block %{{x}}: %{{y:{form}}}{unit}"
        chart.line(rows["block_index"], rows[column], looks[str(name)], hover, width=2.2)
    chart.block_axis(table["block_index"])


def drift_curves(table: pd.DataFrame, *, finding: str, theme: Theme = "light") -> Drawing:
    """Drift after every decoder block, a line a run: run, method, sparsity, target, block_index, drift."""
    chart = Chart(x="decoder block", y=DRIFT, height=HEIGHT, legend=True, theme=theme)
    _curves(chart, table, "drift", ".4g")
    note = (
        "Squared distance of hidden states, pruned (p) from dense (d), after every decoder block; mean over held-out "
    )
    note += "tokens"
    alt = "Line chart of drift by decoder block, one line a run"
    return chart.done(finding, note, "", alt, table.reset_index(drop=True))


def drift_shares(table: pd.DataFrame, *, theme: Theme = "light") -> Drawing:
    """Drift of one run by decoder block: drift passed on to the block, and drift that arises in it."""
    blocks, chart = table["block_index"], Chart(x="decoder block", y=DRIFT, height=HEIGHT, legend=True, theme=theme)
    passed, arisen = Style(palette.SLATE, "passed on"), Style(palette.ORANGE, "arisen in the block", pattern="/")
    for column, look in {"passed_on": passed, "arisen": arisen}.items():
        chart.bars(blocks, table[column], look, f"decoder block %{{x}}<br>{look.label} %{{y:.4g}}")
    after, hover = Style(chart.ink.text, "drift after the block"), "decoder block %{x}<br>drift %{y:.4g}"
    chart.line(blocks, table["drift"], after, hover, width=2, size=7)
    chart.figure.update_layout(barmode="stack", bargap=0.15)
    chart.block_axis(blocks)
    source, total = table.loc[table["arisen"].idxmax()], table["arisen"].sum()
    finding = "No drift arises in any decoder block"
    if total > 0:
        share = percent(source["arisen"] / total, 0)
        finding = f"Decoder block {source['block_index']} adds most: {share} of all that arises"
    note = f"{table['run'].iloc[0]}: a stack above the line: the two partly cancel; below it: they reinforce each other"
    caption = "Passed on: drift that a block hands on with its dense weights. Arisen: what pruning its layers changes."
    alt = "Stacked bars of drift passed on and arisen, and a line of drift, by decoder block"
    return chart.done(finding, note, caption, alt, table.reset_index(drop=True))


# Pictures


def pictures(
    rows: Mapping[str, np.ndarray], names: Sequence[str], step: int, *,
    time: float | None = None, drift: float | None = None, theme: Theme = "light",
) -> Drawing:  # fmt: skip
    """A row of grey pictures for each model, all from the same noise, after `step` denoising steps.

    `rows`: label -> (n, height, width) between −1 and 1. `time`: t that comes next; None after the last step.
    `drift`: of the last row from the first, ‖x − x dense‖ / ‖x dense‖; None with one row.
    """
    chart = Chart(height=120 + 84 * len(rows), theme=theme)
    # All pictures are one sheet with gaps.
    framed = [np.pad(row, ((0, 0), (0, GAP), (0, GAP)), constant_values=np.nan) for row in rows.values()]
    sheet = np.vstack([np.hstack(list(row)) for row in framed])[:-GAP, :-GAP].astype(np.float32)
    pictures_a_row, height, width = next(iter(rows.values())).shape
    centres = [place * (width + GAP) + (width - 1) / 2 for place in range(len(names))]
    middles = [line * (height + GAP) + (height - 1) / 2 for line in range(len(rows))]
    grey = {"colorscale": "gray", "zmin": -1, "zmax": 1, "showscale": False, "hoverinfo": "skip"}
    chart.figure.add_heatmap(z=sheet.clip(-1, 1), **grey)
    bare = BARE | {"showline": False, "ticks": ""}
    # Upwards to its picture: names that lean the other way would leave the figure on the right, and be left out.
    leaning = {"autotickangles": [0, -45], "ticklabeloverflow": "allow"}
    chart.x(**bare, **leaning, tickvals=centres, ticktext=list(names))
    square = {"autorange": "reversed", "scaleanchor": "x", "constrain": "domain", "constraintoward": "top"}
    chart.y(**bare, **square, tickvals=middles, ticktext=list(rows))
    when = "finished" if time is None else f"after {count(step, 'step')}, t = {time:g}"
    if drift is None:
        finding = "The dense model's pictures" if time is None else f"The dense model {when}"
    elif drift == 0:
        finding = "Both models start from the same noise"
    else:
        finding = f"{list(rows)[-1]}: {percent(drift)} away from the dense model's pictures"
    source = "all models from the same noise" if len(rows) > 1 else "from noise"
    away = "" if drift is None else "Away: ‖x − x dense‖ / ‖x dense‖, mean over pictures."
    each = [(label, *pair) for label, row in rows.items() for pair in zip(names, row, strict=True)]
    table = pd.DataFrame(
        [(label, name, float(picture.mean()), float(np.linalg.norm(picture))) for label, name, picture in each],
        columns=["model", "picture", "mean", "norm"],
    )
    return chart.done(finding, f"{pictures_a_row} garments, {source}; {when}", away, "Pictures side by side", table)


def drift_curve(
    drift: Sequence[float], times: Sequence[float], *, method: str, marked: int | None = None, theme: Theme = "light"
) -> Drawing:
    """How far the pruned model's x_t has moved from the dense model's after each step, with a line at `marked` steps.

    `drift`: (steps + 1,), 0 at the start; `times`: t before each step, (steps,).
    """
    steps, values, look = np.arange(len(drift)), np.asarray(drift, np.float64), palette.method_style(method)
    chart = Chart(x=f"denoising steps done, of {len(times)}", y="drift", theme=theme)
    chart.line(steps, values, Style(look.colour, look.label), "after %{x} steps<br>drift %{y:.3f}", size=6)
    chart.x(count=len(times))
    if marked is not None:
        chart.figure.add_vline(x=marked, line=CHOSEN)
    most = int(values.argmax())
    finding = f"{look.label}'s pictures end {percent(values[-1])} away"
    if most < len(times):
        finding += f"; the drift was largest, {percent(values[most])}, after {count(most, 'step')}"
    if not values[-1]:
        finding = f"{look.label} draws the dense model's pictures"
    note = "‖x − x dense‖ / ‖x dense‖ of the same noise, mean over pictures"
    table = pd.DataFrame({"steps_done": steps, "t": [*times, np.nan], "drift": values})
    return chart.done(finding, note, "", "A line of drift against denoising steps", table)


def step_weighting(
    weights: Mapping[str, Sequence[float]], diagonals: np.ndarray, chosen: str, **shared: Unpack[Look]
) -> Drawing:
    """Step weights, and the Hessian diagonal that each leads to in one layer, `chosen` against uniform in the title.

    `weights`: name -> α of each step, noisiest first, with uniform ones; `diagonals`: each step's diag(H), (steps, in).
    """
    sums = {name: np.asarray(alpha, np.float64) @ diagonals.astype(np.float64) for name, alpha in weights.items()}
    # A factor common to all channels changes nothing in pruning, so it is taken out.
    shares = {name: total / total.mean() for name, total in sums.items()}
    uniform = np.where(shares["uniform"] > 0, shares["uniform"], np.nan)
    changes = {name: share / uniform - 1 for name, share in shares.items()}
    order = np.argsort(-shares["uniform"], kind="stable")
    grid: dict[str, Any] = {"rows": 1, "cols": 2, "column_widths": [0.4, 0.6], "horizontal_spacing": 0.2}
    chart = Chart(height=430, legend=True, **grid, **shared)
    left, right = dict[str, Any](row=1, col=1), dict[str, Any](row=1, col=2)
    for name, alpha in weights.items():
        look, change = WEIGHTINGS[name], 100 * changes[name][order]
        hover = f"{look.label}<br>step %{{x}}<br>α %{{y:.3f}}"
        chart.line(np.arange(len(alpha)), np.asarray(alpha), look, hover, mode="lines", **left)
        hover = f"{look.label}<br>channel rank %{{x}}<br>change of diag(H) / mean %{{y:+.2f}}\u2009%"
        chart.line(np.arange(len(change)), change, look, hover, mode="lines", showlegend=False, **right)
    chart.x(title_text="step, noisiest first", dtick=5, **left)
    chart.x(title_text="input channel, by rank", **right)
    chart.y(title_text="α", **left)
    chart.y(title_text="change", **PERCENT, **right)
    finding = f"{WEIGHTINGS[chosen].label} moves diag(H) by at most {percent(np.nanmax(np.abs(changes[chosen])))}"
    note = f"Left: weight α of each step. Right: change of diag(H) / mean{chart.of}, the largest first"
    if chosen == "uniform":
        finding = "Uniform weights: every step counts the same"
    table = pd.DataFrame({"channel": np.arange(len(order))} | {f"diagonal_{name}": sums[name] for name in weights})
    return chart.done(finding, note, "", "Lines of step weights and of the Hessian diagonal", table)
