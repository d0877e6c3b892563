"""What pruning does to a diffusion model's pictures: side by side, drift by step, and what step weights lead to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from app import words
from app.figures import palette, style
from app.figures.palette import Theme
from app.figures.style import Drawing
from rose import RoseError

GAP = 2  # pixels between pictures
# One colour for each step weighting, everywhere.
WEIGHT_COLOURS = {
    "log_decrease": palette.ORANGE,
    "uniform": palette.BLUE,
    "log_increase": palette.GREEN,
    "linear": palette.VIOLET,
}
WEIGHT_DASHES = {"log_decrease": "solid", "uniform": "dash", "log_increase": "dot", "linear": "dashdot"}


def weighting(name: str) -> str:
    """A step weighting as people read it."""
    return words.sentence(name.replace("_", " "))


def pictures(
    rows: Mapping[str, np.ndarray],
    names: Sequence[str],
    step: int,
    *,
    time: float | None = None,
    drift: float | None = None,
    theme: Theme = "light",
) -> Drawing:
    """A row of grey pictures for each model, all from the same noise.

    Args:
        rows: label -> (n, height, width) between −1 and 1.
        names: of the pictures.
        step: denoising steps done.
        time: t that comes next; None after the last step.
        drift: of the last row from the first, ‖x − x dense‖ / ‖x dense‖; None with one row.

    Raises:
        RoseError: no picture, or rows of different sizes.
    """
    shapes = {row.shape for row in rows.values()}
    if len(shapes) != 1 or 0 in next(iter(shapes)):
        raise RoseError("Every model must have drawn the same number of pictures of one size.")
    count, height, width = next(iter(shapes))
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
    style.base(
        figure,
        theme,
        finding,
        f"{count} garments, {'both models from the same noise' if len(rows) > 1 else 'from noise'}; {when}",
        height=120 + 84 * len(rows),
    )
    figure.update_xaxes(
        tickvals=centres, ticktext=list(names), showgrid=False, zeroline=False, showline=False, ticks=""
    )
    figure.update_yaxes(
        tickvals=lines,
        ticktext=list(rows),
        autorange="reversed",
        scaleanchor="x",
        constrain="domain",
        constraintoward="top",
        showgrid=False,
        zeroline=False,
        showline=False,
        ticks="",
    )
    apart = "" if drift is None else f" They differ by {words.percent(drift)} of the dense pictures' norm."
    models = " and ".join("the dense model" if label == "Dense" else label for label in rows)
    caption = f"{count} pictures by {models}, {when}.{apart}"
    data = pd.DataFrame(
        [
            {"model": label, "picture": name, "mean": float(picture.mean()), "norm": float(np.linalg.norm(picture))}
            for label, row in rows.items()
            for name, picture in zip(names, row, strict=True)
        ]
    )
    return Drawing(figure, caption, f"Pictures side by side. {caption}", data)


def drift_curve(
    drift: Sequence[float], times: Sequence[float], *, method: str, marked: int | None = None, theme: Theme = "light"
) -> Drawing:
    """How far the pruned model's x_t has moved from the dense model's, after each step.

    Args:
        drift: (steps + 1,); 0 at the start.
        times: t before each step, (steps,).
        method: that pruned, for colour and name.
        marked: steps done, where a line stands.

    Raises:
        RoseError: lengths that do not fit.
    """
    if len(drift) != len(times) + 1:
        raise RoseError("The drift has one value before each step and one for the pictures.")
    steps, values = np.arange(len(drift)), np.asarray(drift, np.float64)
    look = palette.method_style(method)
    figure = go.Figure(
        go.Scatter(
            x=steps,
            y=values,
            mode="lines+markers",
            line={"color": look.colour, "width": 2.5},
            name=look.label,
            hovertemplate="after %{x} steps<br>drift %{y:.3f}<extra></extra>",
        )
    )
    half, most = len(times) // 2, int(values.argmax())
    finding = f"{look.label}'s pictures end {words.percent(values[-1])} away"
    if most < len(times):
        finding += f"; the drift was largest, {words.percent(values[most])}, after {words.count(most, 'step')}"
    if not values[-1]:
        finding = f"{look.label} draws the dense model's pictures"
    style.base(
        figure,
        theme,
        finding,
        "‖x − x dense‖ / ‖x dense‖ of the same noise, mean over pictures",
        x=f"denoising steps done, of {len(times)}",
        y="drift",
    )
    figure.update_yaxes(rangemode="tozero")
    figure.update_xaxes(dtick=style.whole_step(len(times)))
    if marked is not None:
        figure.add_vline(x=marked, line={"color": palette.MARK, "width": 2})
    caption = f"Drift {values[half]:.3f} after {words.count(half, 'step')}, {values[-1]:.3f} of the finished pictures."
    data = pd.DataFrame({"steps_done": steps, "t": [*times, np.nan], "drift": values})
    return Drawing(figure, caption, f"A line of drift against denoising steps. {caption}", data)


def step_weighting(
    weights: Mapping[str, Sequence[float]],
    diagonals: np.ndarray,
    chosen: str,
    *,
    layer: str = "",
    theme: Theme = "light",
) -> Drawing:
    """Step weights, and the Hessian diagonal that each leads to in one layer.

    Args:
        weights: name -> α of each step, noisiest first.
        diagonals: each step's part of diag(H), (steps, in).
        chosen: whose diagonal the title compares with the uniform one.

    Raises:
        RoseError: weights for another number of steps, or no uniform ones to compare with.
    """
    if "uniform" not in weights or any(len(alpha) != len(diagonals) for alpha in weights.values()):
        raise RoseError("Step weights are drawn beside uniform ones, each with one weight for each step.")
    sums = {name: np.asarray(alpha, np.float64) @ diagonals.astype(np.float64) for name, alpha in weights.items()}
    # A factor common to all channels changes nothing in pruning, so it is taken out.
    shares = {name: total / total.mean() for name, total in sums.items()}
    order = np.argsort(-shares["uniform"], kind="stable")
    figure = make_subplots(rows=1, cols=2, column_widths=[0.4, 0.6], horizontal_spacing=0.12)
    for name, alpha in weights.items():
        line = {"color": WEIGHT_COLOURS[name], "dash": WEIGHT_DASHES[name], "width": 2.5}
        figure.add_scatter(
            x=np.arange(len(alpha)), y=np.asarray(alpha), mode="lines", line=line, name=weighting(name), row=1, col=1,
            hovertemplate="step %{x}<br>α %{y:.3f}",
        )  # fmt: skip
        figure.add_scatter(
            x=np.arange(len(order)), y=shares[name][order], mode="lines", line=line, name=weighting(name),
            showlegend=False, row=1, col=2, hovertemplate="channel rank %{x}<br>diag(H) / mean %{y:.3f}",
        )  # fmt: skip
    live = shares["uniform"] > 0
    change = np.abs(shares[chosen][live] / shares["uniform"][live] - 1)
    most, typical = float(change.max()), float(np.median(change))
    finding = f"{weighting(chosen)} moves diag(H) by at most {words.percent(most)}"
    if chosen == "uniform":
        finding = "Uniform weights: every step counts the same"
    style.base(
        figure,
        theme,
        finding,
        f"Left: weight α of each step. Right: diag(H) / mean, channels sorted by the uniform one{words.of(layer)}",
        height=430,
        legend=True,
    )
    figure.update_xaxes(
        title_text="step, noisiest first", dtick=style.whole_step(len(weights["uniform"])), row=1, col=1
    )
    figure.update_xaxes(title_text="input channel, by rank", row=1, col=2)
    figure.update_yaxes(title_text="α", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="diag(H) / mean", rangemode="tozero", row=1, col=2)
    caption = (
        f"{weighting(chosen)} against uniform: {words.percent(typical)} in the median channel, {words.percent(most)} "
        f"at most, of {len(order)} channels."
    )
    if chosen == "uniform":
        caption = f"Diagonals of {len(order)} channels, with uniform and with other weights."
    data = pd.DataFrame({"channel": np.arange(len(order))} | {f"diagonal_{name}": sums[name] for name in weights})
    return Drawing(figure, caption, f"Lines of step weights and of the Hessian diagonal. {caption}", data)
