"""Two sweeps of one layer side by side, for teaching: the weights as they stand, and the error as it grows."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from app import words
from app.figures import marks, palette, shrinking, style
from app.figures.order_lab import so_far
from app.figures.palette import Theme
from app.figures.style import Drawing
from app.figures.sweep import BELOW, FRAME_CELLS, kept_steps, player
from rose import LayerResult

CELLS = 128  # a side, for each of the two matrices


def sweep_race(
    results: tuple[LayerResult, LayerResult],
    step: int,
    dense_energy: float,
    *,
    layer: str = "",
    height: int = 540,
    cells: int = CELLS,
    show_end: bool = True,
    theme: Theme = "light",
) -> Drawing:
    """Two traced sweeps after `step` blocks: |W| in the order visited above, error so far below.

    Args:
        dense_energy: tr(W H Wᵀ), what errors are relative to.
        cells: a side, of each matrix.
        show_end: whether the curves to come are shown; without, nobody can tell who will win.
    """
    blocks = len(results[0].order.widths)
    curves = [so_far(result) / (dense_energy or 1.0) for result in results]
    looks = [palette.order_style(result.order.name) for result in results]
    figure = make_subplots(
        rows=2,
        cols=2,
        specs=[[{}, {}], [{"colspan": 2}, None]],
        row_heights=[0.5, 0.5],
        vertical_spacing=0.14,
        horizontal_spacing=0.06,
        subplot_titles=[look.label for look in looks],
    )
    figure.update_annotations(font_size=style.FONT_SIZE + 1, yshift=2)
    for column, result in enumerate(results, 1):
        _matrix(figure, column, result, step, cells, theme)
    highest = max(range(2), key=lambda i: curves[i][-1 if show_end else step])
    for i, (curve, look) in enumerate(zip(curves, looks, strict=True)):
        _line(figure, curve, step, look, above=i == highest, show_end=show_end)
    now, final = [float(curve[step]) for curve in curves], [float(curve[-1]) for curve in curves]
    finding = _finding(looks, now, step, blocks)
    what = f"|W|{words.of(layer)}, columns as visited; dimmed: pruned, bright: free to compensate"
    count = {"title_text": "pruned blocks", "range": [-0.1, blocks + 0.1], "dtick": marks.whole_step(blocks)}
    figure.update_xaxes(count, row=2, col=1)
    figure.update_yaxes(range=[0, max(final) * 1.08 or 1], title_text="error so far", row=2, col=1)
    caption = f"Error so far: {looks[0].label} {words.number(now[0])}, {looks[1].label} {words.number(now[1])}."
    by_order = {result.order.name: curve for result, curve in zip(results, curves, strict=True)}
    table = pd.DataFrame({"pruned_blocks": np.arange(blocks + 1)} | by_order)
    alt = "Two heatmaps of the weights during sweeps in different orders, and their error curves"
    return style.finish(figure, theme, finding, what, caption, alt, table, height=height, headroom=20)


def _matrix(figure: go.Figure, column: int, result: LayerResult, step: int, cells: int, theme: Theme) -> None:
    """Adds one heatmap with the front of its sweep."""
    trace, order = result.trace, result.order
    assert trace is not None  # `so_far` has refused it
    position = shrinking.to_numpy(order.permutation)
    magnitude = np.abs(shrinking.to_numpy(trace.weights[step]))[:, position]
    shrunk = shrinking.shrink(magnitude, cells)
    top, _ = shrinking.ceiling(shrinking.shrink(np.abs(shrinking.to_numpy(trace.weights[0])), cells).array)
    shown = shrunk._replace(array=np.where(shrunk.array == 0, np.nan, shrunk.array))
    at = {"row": 1, "col": column}
    figure.add_trace(marks.heatmap(shown, "|W|", zmax=top, showscale=False, hoverongaps=False), **at)
    rows, columns = magnitude.shape
    hidden = marks.BARE | {"showticklabels": False, "ticks": ""}
    figure.update_xaxes(hidden, range=[-0.5, columns - 0.5], **at)
    figure.update_yaxes(hidden, range=[rows - 0.5, -0.5], **at)
    end = sum(order.widths[:step])
    start = end - order.widths[step - 1] if step else 0
    rect = {"type": "rect", "x1": end - 0.5, "y0": -0.5, "y1": rows - 0.5}
    # Cells are maxima, which rarely show a zero: what is done must be seen by its shade.
    figure.add_shape(rect, x0=-0.5, fillcolor=palette.INKS[theme].hover, opacity=0.55, line={"width": 0}, **at)
    figure.add_shape(rect, x0=start - 0.5, line={"color": palette.MARK, "width": 3}, visible=step > 0, **at)


def _line(figure: go.Figure, curve: np.ndarray, step: int, look: palette.Style, *, above: bool, show_end: bool) -> None:
    """The curve to come, faint, where it is shown, and what has arisen so far, strong."""
    at = {"row": 2, "col": 1}
    x, future = np.arange(len(curve)), look._replace(dash="dot")
    marks.lines(figure, x, curve, future, "", mode="lines", width=1.5, opacity=0.6, visible=show_end, **at)
    hover, past = f"{look.label}<br>%{{x}} blocks pruned<br>error so far %{{y:.4g}}", look._replace(dash="solid")
    marks.lines(figure, x[: step + 1], curve[: step + 1], past, hover, width=3, size=9, **at)
    end = len(curve) - 1 if show_end else step
    label = {"text": look.label, "showarrow": False, "font": {"color": look.colour}, "visible": show_end or step > 0}
    side = {"xanchor": "right", "yanchor": "bottom" if above else "top"}
    figure.add_annotation(label | side, x=end, y=float(curve[end]), **at)


def _finding(looks: list[palette.Style], now: list[float], step: int, blocks: int) -> str:
    if step == 0:
        return f"Nothing is pruned yet: {words.count(blocks, 'block')} to go"
    if now[0] == now[1]:
        return f"After {step} of {blocks} blocks both orders have the same error"
    less = int(now[1] < now[0])
    share = 1 - now[less] / now[1 - less]
    return f"After {step} of {blocks} blocks, {looks[less].label} has {words.percent(share)} less error"


def race_animation(
    results: tuple[LayerResult, LayerResult], dense_energy: float, *, layer: str = "", theme: Theme = "light"
) -> Drawing:
    """The whole race as frames with play at three speeds, pause and a slider: to show, to record, and to take along."""
    blocks = len(results[0].order.widths)
    steps = kept_steps(blocks)
    cells = min(CELLS, math.isqrt(FRAME_CELLS // (2 * 4 * len(steps))))  # two matrices, 4 bytes a cell
    drawn = [
        sweep_race(results, step, dense_energy, layer=layer, height=660, cells=cells, show_end=False, theme=theme)
        for step in steps
    ]
    figure, last = drawn[0].figure, drawn[-1]
    traces, changing = list(range(len(figure.data))), ("shapes", "annotations", "title")
    figure.frames = [
        go.Frame(name=str(step), data=one.data, traces=traces, layout={part: one.layout[part] for part in changing})
        for step, one in zip(steps, (drawing.figure for drawing in drawn), strict=True)
    ]
    # The title of every frame must fit: the longest decides.
    figure.update_layout(margin={"t": max(one.figure.layout.margin.t for one in drawn), "b": BELOW})
    figure.update_layout(player(steps, theme))
    finding = last.figure.layout.meta["finding"]
    alt = f"Animation of two sweeps in different orders, {words.count(blocks, 'block')}. {finding}. {last.caption}"
    return Drawing(figure, last.caption, alt, last.data)
