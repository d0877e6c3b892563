"""Inside one sweep: the weights after every block, as single frames and as an animation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from app import words
from app.figures import palette, shrinking, style
from app.figures.palette import Theme
from app.figures.shrinking import Shrunk
from app.figures.style import Drawing
from rose import Order, RoseError, SweepTrace

FRAME_CELLS = 1_100_000  # of all frames of an animation together: 8 bits each, 4/3 of that as base64
MAX_FRAMES = 33
FRAME_SIDE = 256
REMOVED = {"light": "#ffffff", "dark": "#000000"}  # at neither end of the sequential scale


def sweep_frame(
    trace: SweepTrace,
    order: Order,
    step: int,
    *,
    show: Literal["weights", "change"] = "weights",
    arrange: Literal["visited", "natural"] = "visited",
    layer: str = "",
    theme: Theme = "light",
) -> Drawing:
    """The weights after `step` pruned blocks: what is pruned, what is free to compensate, where the sweep stands.

    Args:
        step: 0 (dense) to the number of blocks.
        show: |W| as it stands, or how far each weight has moved from its dense value.
        arrange: columns in the order visited (the sweep runs left to right), or in natural order.

    Raises:
        RoseError: a step that does not exist.
    """
    blocks = len(order.widths)
    if not 0 <= step <= blocks:
        raise RoseError(f"This sweep has steps 0 to {blocks}, so there is no step {step}.")
    position = shrinking.to_numpy(order.permutation) if arrange == "visited" else None
    shrunk, top = _state(trace, step, show, position, shrinking.MAX_CELLS)
    rows, columns = (int(side) for side in trace.weights.shape[1:])
    unit = "|W|" if show == "weights" else "|change|"
    beyond = float(shrunk.array.max()) > top
    saturates = f"; colours end at {words.number(top)}" if beyond else ""
    array = np.where(shrunk.array == 0, np.nan, shrunk.array) if show == "weights" else shrunk.array
    figure = go.Figure(style.heatmap(Shrunk(array, *shrunk[1:]), unit, zmax=top, hoverongaps=False))
    done = sum(order.widths[:step])
    finding = _sweep_finding(trace, step, blocks)
    zeros = f"; {'white' if theme == 'light' else 'black'}: pruned" if show == "weights" else ""
    what = f"{unit}{words.of(layer)} after {step} of {blocks} blocks; {shrunk.note}{zeros}{saturates}"
    across = "step (columns as visited)" if arrange == "visited" else "input channel"
    style.base(figure, theme, finding, what, x=across, y="output channel", height=500)
    style.matrix_axes(figure, rows, columns)
    figure.update_layout(plot_bgcolor=REMOVED[theme])
    if arrange == "visited":
        for shape in _strip(order, step, columns):
            figure.add_shape(shape)
        for label in _strip_labels(order, step, columns, theme):
            figure.add_annotation(label)
        figure.update_layout(margin_t=figure.layout.margin.t + 22)
    removed = int(trace.removed[:step].sum())
    free = columns - done
    caption = (
        f"{words.whole(removed)} of {words.whole(rows * columns)} weights are pruned so far; {free} of {columns} "
        f"columns are still free to compensate; the error so far is {words.number(float(trace.error[:step].sum()))}."
    )
    alt = f"Heatmap of the weights during the sweep, {step} of {blocks} blocks pruned. {finding}. {caption}"
    return Drawing(figure, caption, alt, shrinking.frame(shrunk))


def _state(trace: SweepTrace, step: int, show: str, position: np.ndarray | None, limit: int) -> tuple[Shrunk, float]:
    """|W| or |change| at a step, shrunk, and one end of the colours for all steps, so that frames compare."""
    first = shrinking.to_numpy(trace.weights[0])
    now = shrinking.to_numpy(trace.weights[step])
    values = np.abs(now) if show == "weights" else np.abs(now - first)
    if position is not None:
        values = values[:, position]
    shrunk = shrinking.shrink(values, limit)
    # From the dense weights for both, so that a change is seen at the scale of what it changes.
    top, _ = shrinking.ceiling(shrinking.shrink(np.abs(first), limit).array)
    return shrunk, top * (1.0 if show == "weights" else 0.5)


def _sweep_finding(trace: SweepTrace, step: int, blocks: int) -> str:
    total = float(trace.error.sum())
    if step == 0:
        return f"Nothing is pruned yet; all {blocks} blocks are free"
    share = float(trace.error[:step].sum()) / total if total > 0 else 0.0
    return f"After {step} of {blocks} blocks, {words.percent(share, 0)} of the final error has arisen"


def _parts(order: Order, step: int, columns: int) -> list[tuple[str, int, int, str]]:
    """Done, now and free as (name, first column, end, colour); a part may be empty."""
    done = sum(order.widths[:step])
    now = done - (order.widths[step - 1] if step else 0)
    return [
        ("pruned, fixed", 0, now, palette.SLATE),
        ("just pruned", now, done, palette.MARK),
        ("free to compensate", done, columns, palette.GREEN),
    ]


def _strip(order: Order, step: int, columns: int) -> list[dict[str, Any]]:
    """A coloured strip above the matrix, and an outline of the present block.

    Always the same shapes with all their properties: from frame to frame plotly merges them by number.
    """
    shapes: list[dict[str, Any]] = []
    for name, start, end, colour in _parts(order, step, columns):
        band = {"type": "rect", "x0": start - 0.5, "x1": end - 0.5, "yref": "paper", "visible": end > start}
        shapes.append(band | {"y0": 1.01, "y1": 1.035, "fillcolor": colour, "line": {"color": colour, "width": 0}})
        if name == "just pruned":
            outline = {"fillcolor": "rgba(0,0,0,0)", "line": {"color": colour, "width": 3}}
            shapes.append(band | {"y0": 0, "y1": 1} | outline)
    return shapes


def _strip_labels(order: Order, step: int, columns: int, theme: Theme) -> list[dict[str, Any]]:
    """Names for the strip; those that would not fit are hidden, and the outline speaks for itself."""
    return [
        {
            "x": (start + end) / 2 - 0.5,
            "y": 1.035,
            "yref": "paper",
            "text": name,
            "showarrow": False,
            "yanchor": "bottom",
            "font": {"color": palette.INKS[theme].text, "size": style.FONT_SIZE},
            "visible": (end - start) / columns >= 0.18,
        }
        for name, start, end, _ in _parts(order, step, columns)
    ]


def sweep_animation(
    trace: SweepTrace,
    order: Order,
    *,
    show: Literal["weights", "change"] = "weights",
    layer: str = "",
    theme: Theme = "light",
) -> Drawing:
    """All steps of the sweep as frames with a slider and play and pause, for smooth scrubbing in the browser.

    Cells are 8-bit levels, and few enough that the whole stays below 2 MB; at most 33 steps are kept.
    """
    blocks = len(order.widths)
    steps = sorted(set(np.linspace(0, blocks, min(blocks + 1, MAX_FRAMES)).round().astype(int).tolist()))
    side = min(FRAME_SIDE, math.isqrt(FRAME_CELLS // len(steps)))
    rows, columns = (int(n) for n in trace.weights.shape[1:])
    position = shrinking.to_numpy(order.permutation)
    frames = []
    for step in steps:
        shrunk, top = _state(trace, step, show, position, side)
        levels = np.ceil(np.clip(shrunk.array / top, 0, 1) * 255).astype(np.uint8)
        frames.append(
            go.Frame(
                name=str(step),
                data=[go.Heatmap(z=levels)],
                traces=[0],
                layout={
                    "shapes": _strip(order, step, columns),
                    "annotations": _strip_labels(order, step, columns, theme),
                },
            )
        )
    unit = "|W|" if show == "weights" else "|change|"
    bar = style.colourbar(
        unit, tickvals=[0, 127.5, 255], ticktext=["0", words.number(top / 2), f"≥ {words.number(top)}"]
    )
    first = Shrunk(frames[0].data[0].z, shrunk.rows, shrunk.columns, shrunk.note)
    scale: Any = palette.SEQUENTIAL
    if show == "weights":
        scale = _with_removed(theme)
    figure = go.Figure(style.heatmap(first, unit, zmax=255, colorbar=bar, colorscale=scale, hoverinfo="skip"))
    figure.update_traces(hovertemplate=None)
    figure.frames = frames
    share = float(trace.error[: max(1, blocks // 2)].sum() / trace.error.sum()) if float(trace.error.sum()) else 0.0
    finding = f"The first half of the blocks brings {words.percent(share, 0)} of the error"
    zeros = f"; {'white' if theme == 'light' else 'black'}: pruned" if show == "weights" else ""
    skipped = "" if len(steps) == blocks + 1 else f"; {len(steps)} of {blocks + 1} steps"
    what = f"{unit}{words.of(layer)} during the sweep; {shrunk.note}{zeros}{skipped}"
    style.base(figure, theme, finding, what, x="step (columns as visited)", y="output channel", height=600)
    style.matrix_axes(figure, rows, columns)
    figure.update_layout(
        shapes=frames[0].layout.shapes,
        annotations=frames[0].layout.annotations,
        margin={"t": figure.layout.margin.t + 22, "b": 150},
        sliders=[_slider(steps, theme)],
        updatemenus=[_buttons(theme)],
    )
    error = np.concatenate([[0.0], np.cumsum(shrinking.to_numpy(trace.error).astype(np.float64))])
    caption = (
        f"{blocks} blocks, {words.whole(int(trace.removed.sum()))} weights pruned, "
        f"final error {words.number(float(error[-1]))}."
    )
    alt = f"Animated heatmap of the weights during the sweep. {finding}. {caption}"
    removed = np.concatenate([[0], np.cumsum(shrinking.to_numpy(trace.removed))])
    table = pd.DataFrame({"step": np.arange(blocks + 1), "removed_weights": removed, "error_so_far": error})
    return Drawing(figure, caption, alt, table)


def _with_removed(theme: Theme) -> list[list[Any]]:
    """The sequential scale with level 0 set apart: only cells with no weight left have it."""
    colours = sample_colorscale(palette.SEQUENTIAL, np.linspace(0, 1, 12).tolist())
    edge = 0.5 / 255
    rest = [[edge + (1 - edge) * i / 11, c] for i, c in enumerate(colours)]
    return [[0.0, REMOVED[theme]], [edge, REMOVED[theme]], *rest]


def _slider(steps: Sequence[int], theme: Theme) -> dict[str, Any]:
    ink = palette.INKS[theme]
    now = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    return {
        "active": 0,
        "x": 0.22,
        "len": 0.78,
        "y": 0,
        "yanchor": "top",
        "pad": {"t": 56},
        "currentvalue": {"prefix": "blocks pruned: ", "font": {"size": style.FONT_SIZE, "color": ink.text}},
        "bgcolor": ink.blank,
        "bordercolor": ink.muted,
        "tickcolor": ink.muted,
        "font": {"color": ink.muted, "size": style.FONT_SIZE},
        "steps": [{"label": str(step), "method": "animate", "args": [[str(step)], now]} for step in steps],
    }


def _buttons(theme: Theme) -> dict[str, Any]:
    ink = palette.INKS[theme]
    play = {"fromcurrent": True, "frame": {"duration": 700, "redraw": True}, "transition": {"duration": 0}}
    stop = {"mode": "immediate", "frame": {"duration": 0, "redraw": False}, "transition": {"duration": 0}}
    return {
        "type": "buttons",
        "direction": "left",
        "showactive": False,
        "x": 0,
        "xanchor": "left",
        "y": 0,
        "yanchor": "top",
        "pad": {"t": 84},
        "bgcolor": ink.hover,
        "bordercolor": ink.muted,
        "font": {"size": style.FONT_SIZE, "color": ink.text},
        "buttons": [
            {"label": "▶", "method": "animate", "args": [None, play]},
            {"label": "❚❚", "method": "animate", "args": [[None], stop]},
        ],
    }
