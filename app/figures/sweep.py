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
from app.figures import marks, palette, shrinking, style
from app.figures.palette import Theme
from app.figures.shrinking import Shrunk
from app.figures.style import Drawing
from rose import Order, SweepTrace

FRAME_CELLS = 1_100_000  # of all frames of an animation together: 8 bits each, 4/3 of that as base64
MAX_FRAMES = 33
FRAME_SIDE = 256
BELOW = 150  # pixels below an animation, for what starts and steers it
STRIP = 22  # pixels that the strip above the matrix takes
REMOVED = {"light": "#ffffff", "dark": "#000000"}  # at neither end of the sequential scale


def sweep_frame(
    trace: SweepTrace,
    order: Order,
    step: int,
    *,
    show: Literal["weights", "change"] = "weights",
    arrange: Literal["visited", "natural"] = "visited",
    added: float = 0.0,
    layer: str = "",
    theme: Theme = "light",
) -> Drawing:
    """The weights after `step` pruned blocks: what is pruned, what is free to compensate, where the sweep stands.

    Args:
        show: |W| as it stands, or how far each weight has moved from its dense value.
        added: λ, absolute, of the sweep, which errors are shown without.
    """
    blocks = len(order.widths)
    position = shrinking.to_numpy(order.permutation) if arrange == "visited" else None
    shrunk, top = _state(trace, step, show, position, shrinking.MAX_CELLS)
    rows, columns = (int(side) for side in trace.weights.shape[1:])
    error = shrinking.to_numpy(trace.error_so_far(added))
    unit = "|W|" if show == "weights" else "|change|"
    beyond = float(shrunk.array.max()) > top
    saturates = f"; colours end at {words.number(top)}" if beyond else ""
    array = np.where(shrunk.array == 0, np.nan, shrunk.array) if show == "weights" else shrunk.array
    figure = go.Figure(marks.heatmap(shrunk._replace(array=array), unit, zmax=top, hoverongaps=False))
    done = sum(order.widths[:step])
    finding = _sweep_finding(error, step, blocks)
    zeros = f"; {'white' if theme == 'light' else 'black'}: pruned" if show == "weights" else ""
    what = f"{unit}{words.of(layer)} after {step} of {blocks} blocks; {shrunk.note}{zeros}{saturates}"
    across = "step (columns as visited)" if arrange == "visited" else "input channel"
    marks.matrix_axes(figure, rows, columns)
    figure.update_layout(plot_bgcolor=REMOVED[theme])
    if arrange == "visited":
        figure.update_layout(_strip(order, step, columns, theme))
    removed = int(trace.removed[:step].sum())
    free = columns - done
    caption = (
        f"{words.whole(removed)} of {words.whole(rows * columns)} weights are pruned so far; {free} of {columns} "
        f"columns are still free to compensate; the error so far is {words.number(float(error[step]))}."
    )
    alt = f"Heatmap of the weights during the sweep, {step} of {blocks} blocks pruned"
    frame = {"x": across, "y": "output channel", "height": 500, "headroom": STRIP if arrange == "visited" else 0}
    return style.finish(figure, theme, finding, what, caption, alt, shrinking.frame(shrunk), **frame)


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


def _sweep_finding(error: np.ndarray, step: int, blocks: int) -> str:
    total = float(error[-1])
    if step == 0:
        return f"Nothing is pruned yet; all {blocks} blocks are free"
    share = float(error[step]) / total if total > 0 else 0.0
    return f"After {step} of {blocks} blocks, {words.percent(share, 0)} of the final error has arisen"


def _strip(order: Order, step: int, columns: int, theme: Theme) -> dict[str, Any]:
    """Layout of a strip above the matrix: what is done, now and free, by name and colour; the present block outlined.

    Always the same shapes with all their properties: from frame to frame plotly merges them by number.
    """
    done = sum(order.widths[:step])
    now = done - (order.widths[step - 1] if step else 0)
    shapes, labels = [], []
    for name, start, end, colour in (
        ("pruned, fixed", 0, now, palette.SLATE),
        ("just pruned", now, done, palette.MARK),
        ("free to compensate", done, columns, palette.GREEN),
    ):
        band = {"type": "rect", "x0": start - 0.5, "x1": end - 0.5, "yref": "paper", "visible": end > start}
        shapes.append(band | {"y0": 1.01, "y1": 1.035, "fillcolor": colour, "line": {"color": colour, "width": 0}})
        if name == "just pruned":
            outline = {"fillcolor": "rgba(0,0,0,0)", "line": {"color": colour, "width": 3}}
            shapes.append(band | {"y0": 0, "y1": 1} | outline)
        font = {"color": palette.INKS[theme].text, "size": style.FONT_SIZE}
        label = {"text": name, "showarrow": False, "yanchor": "bottom", "font": font}
        fits = (end - start) / columns >= 0.18  # where a name would not, the outline speaks for itself
        labels.append(label | {"x": (start + end) / 2 - 0.5, "y": 1.035, "yref": "paper", "visible": fits})
    return {"shapes": shapes, "annotations": labels}


def sweep_animation(
    trace: SweepTrace,
    order: Order,
    *,
    show: Literal["weights", "change"] = "weights",
    added: float = 0.0,
    layer: str = "",
    theme: Theme = "light",
) -> Drawing:
    """All steps of the sweep as frames with a slider and play and pause, for smooth scrubbing in the browser.

    Cells are 8-bit levels, and few enough that the whole stays below 2 MB; at most 33 steps are kept.
    """
    blocks = len(order.widths)
    steps = kept_steps(blocks)
    side = min(FRAME_SIDE, math.isqrt(FRAME_CELLS // len(steps)))
    rows, columns = (int(n) for n in trace.weights.shape[1:])
    position = shrinking.to_numpy(order.permutation)
    frames = []
    for step in steps:
        shrunk, top = _state(trace, step, show, position, side)
        levels = np.ceil(np.clip(shrunk.array / top, 0, 1) * 255).astype(np.uint8)
        layout = _strip(order, step, columns, theme)
        frames.append(go.Frame(name=str(step), data=[go.Heatmap(z=levels)], traces=[0], layout=layout))
    unit = "|W|" if show == "weights" else "|change|"
    ends = ["0", words.number(top / 2), f"≥ {words.number(top)}"]
    bar = marks.colourbar(unit, tickvals=[0, 127.5, 255], ticktext=ends)
    scale = _with_removed(theme) if show == "weights" else palette.SEQUENTIAL
    look = {"zmax": 255, "colorbar": bar, "colorscale": scale, "hoverinfo": "skip", "hovertemplate": None}
    figure = go.Figure(marks.heatmap(shrunk._replace(array=frames[0].data[0].z), unit, **look))
    figure.frames = frames
    error = shrinking.to_numpy(trace.error_so_far(added))
    share = float(error[max(1, blocks // 2)] / error[-1]) if error[-1] > 0 else 0.0
    finding = f"The first half of the blocks brings {words.percent(share, 0)} of the error"
    zeros = f"; {'white' if theme == 'light' else 'black'}: pruned" if show == "weights" else ""
    skipped = "" if len(steps) == blocks + 1 else f"; {len(steps)} of {blocks + 1} steps"
    what = f"{unit}{words.of(layer)} during the sweep; {shrunk.note}{zeros}{skipped}"
    marks.matrix_axes(figure, rows, columns)
    figure.update_layout(frames[0].layout)
    figure.update_layout(player(steps, theme))
    caption = (
        f"{blocks} blocks, {words.whole(int(trace.removed.sum()))} weights pruned, "
        f"squared error at the end {words.number(float(error[-1]))}."
    )
    removed = np.concatenate([[0], np.cumsum(shrinking.to_numpy(trace.removed))])
    table = pd.DataFrame({"step": np.arange(blocks + 1), "removed_weights": removed, "error_so_far": error})
    alt = "Animated heatmap of the weights during the sweep"
    frame = {"x": "step (columns as visited)", "y": "output channel", "height": 600, "headroom": STRIP}
    drawing = style.finish(figure, theme, finding, what, caption, alt, table, **frame)
    figure.update_layout(margin_b=BELOW)
    return drawing


def _with_removed(theme: Theme) -> list[list[Any]]:
    """The sequential scale with level 0 set apart: only cells with no weight left have it."""
    colours = sample_colorscale(palette.SEQUENTIAL, np.linspace(0, 1, 12).tolist())
    edge = 0.5 / 255
    rest = [[edge + (1 - edge) * i / 11, c] for i, c in enumerate(colours)]
    return [[0.0, REMOVED[theme]], [edge, REMOVED[theme]], *rest]


def kept_steps(blocks: int) -> list[int]:
    """Steps of a sweep that an animation shows: all, or evenly spread ones where they are many."""
    return sorted(set(np.linspace(0, blocks, min(blocks + 1, MAX_FRAMES)).round().astype(int).tolist()))


def player(steps: Sequence[int], theme: Theme) -> dict[str, Any]:
    """Layout of an animation whose frames are named by step: play at three speeds, pause, and a slider over steps."""
    ink = palette.INKS[theme]
    font, at_once = {"size": style.FONT_SIZE, "color": ink.text}, {"mode": "immediate", "transition": {"duration": 0}}
    to_step = at_once | {"frame": {"duration": 0, "redraw": True}}
    slider = {
        "active": 0,
        "x": 0.34,
        "len": 0.66,
        "y": 0,
        "yanchor": "top",
        "pad": {"t": 56},
        "currentvalue": {"prefix": "blocks pruned: ", "font": font},
        "bgcolor": ink.blank,
        "bordercolor": ink.muted,
        "tickcolor": ink.muted,
        "font": font | {"color": ink.muted},
        "steps": [{"label": str(step), "method": "animate", "args": [[str(step)], to_step]} for step in steps],
    }
    play = at_once | {"fromcurrent": True}
    commands: dict[str, list[Any]] = {
        label: [None, play | {"frame": {"duration": milliseconds, "redraw": True}}]
        for label, milliseconds in {"▶ slow": 1600, "▶": 800, "▶ fast": 300}.items()
    }
    commands["❚❚"] = [[None], at_once | {"frame": {"duration": 0, "redraw": False}}]
    buttons = {
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
        "font": font,
        "buttons": [{"label": label, "method": "animate", "args": args} for label, args in commands.items()],
    }
    return {"sliders": [slider], "updatemenus": [buttons]}
