"""One sweep or two side by side, after any number of blocks: weights and error."""

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import pandas as pd
from plotly.colors import hex_to_rgb, sample_colorscale

from app.figures import palette
from app.figures.orders import run_name, so_far, sweep_style, trace_of
from app.figures.palette import Style
from app.figures.shapes import BARE, Chart, Look, ceiling, shrink, to_numpy
from app.figures.style import FONT_SIZE, Drawing
from app.words import count, number, percent, sentence
from rose import LayerResult, verdicts
from rose.layer.order import visited_blocks

CELLS = 256  # a side, of a matrix
TALL = 540  # pixels
REMOVED = {"light": "#ffffff", "dark": "#000000"}  # not a colour of the sequential scale
DIMMED, TINTED = 0.6, 0.4  # opacity over what is pruned, and over what was just pruned

# Sweeps


def sweep_state(results: Sequence[LayerResult], step: int, dense_energy: float, **shared: Unpack[Look]) -> Drawing:
    """Recorded sweeps after `step` blocks: matrices above, error so far below, relative to `dense_energy`."""
    blocks, sweeps = len(results[0].order.widths), len(results)
    curves = [so_far(result) / (dense_energy or 1.0) for result in results]
    looks = [sweep_style(result) for result in results]
    # A title names the line below as well; in ink, as colours are too light to read.
    titles = [f'<span style="color:{k.colour}">{"┅" if k.dash == "dot" else "━"}</span> {k.label}' for k in looks]
    spots = [[{}] * sweeps, [{"colspan": sweeps}, *[None] * (sweeps - 1)]]
    grid: dict[str, Any] = {"rows": 2, "cols": sweeps, "specs": spots, "row_heights": [0.64, 0.36]}
    grid |= {"vertical_spacing": 0.12, "horizontal_spacing": 0.05, "subplot_titles": titles}
    chart = Chart(height=TALL, headroom=20, **grid, **shared)
    chart.figure.update_annotations(font_size=FONT_SIZE + 1, yshift=2)
    (top, note), *_ = [_matrix(chart, column, result, step) for column, result in enumerate(results, 1)]
    for curve, look in zip(curves, looks, strict=True):
        to_come = {"mode": "lines", "opacity": 0.35, "row": 2, "col": 1}
        chart.line(np.arange(blocks + 1), curve, look._replace(dash="dot"), "", width=1.5, **to_come)
    for curve, look in zip(curves, looks, strict=True):
        hover = f"{look.label}<br>%{{x}} blocks pruned<br>error so far %{{y:.4g}}"
        chart.line(np.arange(step + 1), curve[: step + 1], look, hover, width=3, size=9, row=2, col=1)
    now, final = [float(curve[step]) for curve in curves], [float(curve[-1]) for curve in curves]
    below = {"row": 2, "col": 1}
    chart.x(title_text="pruned blocks", range=[-0.1, blocks + 0.1], count=blocks, zeroline=False, **below)
    chart.y(top=max(final) * 1.08, title_text="calibration error", **below)
    subtitle = f"|W|{chart.of} from 0 to {number(top)}, columns as visited; dimmed: pruned; pink: just pruned; "
    subtitle += "bright: free"
    caption = f"{sentence(note)}." if "maximum" in note else ""
    columns = dict(zip(map(run_name, results), curves, strict=True))
    table = pd.DataFrame({"pruned_blocks": np.arange(blocks + 1)} | columns)
    finding = _finding(looks, now, final, step, blocks)
    if sweeps == 1 and step == blocks and final[0] > 0:
        adds = np.diff(curves[0])
        share, place = percent(adds.max() / final[0], 0), int(adds.argmax())
        block = visited_blocks(results[0].plan, results[0].order)[place]
        name = f"The block pruned as number {place + 1} of {blocks}"
        name = name if block is None else f"Block {block}, pruned as number {place + 1} of {blocks},"
        finding = f"{name} adds most: {share} of the error"
    alt = f"Heatmaps of the weights during {count(sweeps, 'sweep')}, with the error as it grows"
    return chart.done(finding, subtitle, caption, alt, table)


def _matrix(chart: Chart, column: int, result: LayerResult, step: int) -> tuple[float, str]:
    """Adds one heatmap with a veil on pruned columns; returns the end of its colours, and its cells in words."""
    trace, order, at = trace_of(result), result.order, {"row": 1, "col": column}
    first, now = (to_numpy(trace.weights[k]) for k in (0, step))
    values = np.abs(now)
    done, place = np.zeros(values.shape[1], np.uint8), to_numpy(order.permutation)
    end = sum(order.widths[:step])
    done[place[:end]] = 1
    if step:
        done[place[end - order.widths[step - 1] : end]] = 2
    values, done = values[:, place], done[place]
    shrunk = shrink(values, CELLS)
    top = ceiling(shrink(np.abs(first), CELLS).array)[0]
    levels = np.ceil(np.clip(shrunk.array / top, 0, 1) * 255).astype(np.uint8)
    shrunk, least = shrunk._replace(array=levels), 0.5 / 255
    look: dict[str, Any] = {"zmax": 255, "showscale": False, "hoverinfo": "skip", "hovertemplate": None}
    # Values below `least` of the scale have a colour of their own, so that only pruned cells have it.
    colours, removed = sample_colorscale(palette.SEQUENTIAL, np.linspace(0, 1, 12).tolist()), REMOVED[chart.theme]
    rest = [[least + (1 - least) * i / 11, c] for i, c in enumerate(colours)]
    look["colorscale"] = [[0.0, removed], [least, removed], *rest]
    chart.cells(shrunk, "|W|", **look, **at)
    rows, columns = values.shape
    # Cells are maxima, which rarely show a zero: what is done must be seen by its shade.
    shades = [(0.5, _clear(chart.ink.hover, DIMMED)), (1, _clear(palette.MARK, TINTED))]
    veil = {"colorscale": [(0, "rgba(0,0,0,0)"), *shades], "zmin": 0, "zmax": 2, "showscale": False}
    over = {"x0": 0, "dx": 1, "y0": (rows - 1) / 2, "dy": rows, "hoverinfo": "skip"}
    chart.figure.add_heatmap(z=done[None], **over, **veil, **at)
    hidden = BARE | {"showticklabels": False, "ticks": ""}
    chart.x(range=[-0.5, columns - 0.5], **hidden, **at)
    chart.y(range=[rows - 0.5, -0.5], **hidden, **at)
    return top, shrunk.note


def _clear(colour: str, opacity: float) -> str:
    return f"rgba({','.join(map(str, hex_to_rgb(colour)))},{opacity})"


def _finding(looks: list[Style], now: list[float], final: list[float], step: int, blocks: int) -> str:
    if step == 0:
        return f"Nothing is pruned yet: {count(blocks, 'block')} to go"
    if len(now) == 1:
        share = now[0] / final[0] if final[0] > 0 else 0.0
        return f"After {step} of {blocks} blocks, {percent(share, 0)} of the final error has arisen"
    first, second = (look.label for look in looks)
    yet = " so far" if step < blocks else ""
    return f"After {step} of {blocks} blocks, {second} has {verdicts.says_change(now[1], now[0], first)}{yet}"
