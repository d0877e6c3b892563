"""One sweep or two side by side, block by block: weights and error. Solvers of one layer in a race: error against
work, and changes of the mask.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb, sample_colorscale

from app.figures import palette
from app.figures.orders import run_name, so_far, sweep_style, trace_of
from app.figures.palette import Style, Theme
from app.figures.shapes import BARE, CHOSEN, Chart, Look, Shrunk, ceiling, shrink, to_numpy
from app.figures.style import CHOOSING, FONT_SIZE, Drawing
from app.words import count, number, percent, sentence, whole
from rose import LayerResult, verdicts
from rose.layer.order import visited_blocks

FILM_CELLS = 1_100_000  # of all frames of a film together; a byte each, 4/3 bytes in base64
MAX_FRAMES = 33
BELOW = 150  # pixels below a film, for its buttons and slider
TALL = 560  # pixels, of a film
REMOVED = {"light": "#ffffff", "dark": "#000000"}  # not a colour of the sequential scale
DIMMED, TINTED = 0.6, 0.4  # opacity over what is pruned, and over what was just pruned
LOOKS = {"sweep": "sparsegpt", "refit": "rose_dealt", "stages": "rose_global", "admm": "rose_admm"}  # of solvers

# Sweeps


def sweep_film(results: Sequence[LayerResult], dense_energy: float, **shared: Unpack[Look]) -> Drawing:
    """All steps as frames with play at three speeds, pause and a slider; at most 33, of 8-bit cells: below 2 MB."""
    blocks = len(results[0].order.widths)
    steps = sorted(set(np.linspace(0, blocks, min(blocks + 1, MAX_FRAMES)).round().astype(int).tolist()))
    cells = min(256, math.isqrt(FILM_CELLS // (len(results) * len(steps))))
    drawn = {step: _draw(results, step, dense_energy, cells, shared) for step in steps}
    figure, last = drawn[0].figure, drawn[blocks]
    traces = list(range(len(figure.data)))
    frames = []
    for step, drawing in drawn.items():
        layout = {"annotations": drawing.figure.layout.annotations}
        frames.append(go.Frame(name=str(step), data=drawing.figure.data, traces=traces, layout=layout))
    figure.frames = frames
    # The title of every frame must fit: the longest decides.
    top = max(drawing.figure.layout.margin.t for drawing in drawn.values())
    figure.update_layout(margin={"t": top, "b": BELOW}, **_player(steps, shared.get("theme", "light")))
    figure.update_layout(title=last.figure.layout.title, meta=last.figure.layout.meta)
    caption = last.caption + ("" if len(steps) == blocks + 1 else f" {len(steps)} of {blocks + 1} steps are kept.")
    alt = f"Film of {count(len(results), 'sweep')}, {count(blocks, 'block')}. {figure.layout.meta['finding']}."
    return Drawing(figure, caption, alt, last.data)


def _draw(results: Sequence[LayerResult], step: int, energy: float, cells: int, shared: Look) -> Drawing:
    """The sweeps after `step` blocks: matrices above, error so far below. `cells`: a side."""
    blocks, sweeps = len(results[0].order.widths), len(results)
    curves = [so_far(result) / (energy or 1.0) for result in results]
    looks = [sweep_style(result) for result in results]
    # A title names the line below as well; in ink, as colours are too light to read.
    titles = [f'<span style="color:{k.colour}">{"┅" if k.dash == "dot" else "━"}</span> {k.label}' for k in looks]
    spots = [[{}] * sweeps, [{"colspan": sweeps}, *[None] * (sweeps - 1)]]
    grid: dict[str, Any] = {"rows": 2, "cols": sweeps, "specs": spots, "row_heights": [0.64, 0.36]}
    grid |= {"vertical_spacing": 0.12, "horizontal_spacing": 0.05, "subplot_titles": titles}
    chart = Chart(height=TALL, headroom=20, **grid, **shared)
    chart.figure.update_annotations(font_size=FONT_SIZE + 1, yshift=2)
    (top, note), *_ = [_matrix(chart, column, result, step, cells) for column, result in enumerate(results, 1)]
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
    if sweeps == 1 and step == blocks and final[0] > 0:  # the title of a film, too
        adds = np.diff(curves[0])
        share, place = percent(adds.max() / final[0], 0), int(adds.argmax())
        block = visited_blocks(results[0].plan, results[0].order)[place]
        name = f"The block pruned as number {place + 1} of {blocks}"
        name = name if block is None else f"Block {block}, pruned as number {place + 1} of {blocks},"
        finding = f"{name} adds most: {share} of the error"
    alt = f"Heatmaps of the weights during {count(sweeps, 'sweep')}, with the error as it grows"
    return chart.done(finding, subtitle, caption, alt, table)


def _matrix(chart: Chart, column: int, result: LayerResult, step: int, cells: int) -> tuple[float, str]:
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
    shrunk = shrink(values, cells)
    top = ceiling(shrink(np.abs(first), cells).array)[0]
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


def _player(steps: Sequence[int], theme: Theme) -> dict[str, Any]:
    """Layout of an animation with a frame per step: play at three speeds, pause, and a slider over steps."""
    ink = palette.INKS[theme]
    font, at_once = {"size": FONT_SIZE, "color": ink.text}, {"mode": "immediate", "transition": {"duration": 0}}
    to_step = at_once | {"frame": {"duration": 0, "redraw": True}}
    below = {"y": 0, "yanchor": "top", "bordercolor": ink.muted}
    slider = below | {"active": 0, "x": 0.5, "len": 0.5, "pad": {"t": 56}, "font": font | {"color": ink.muted}}
    slider |= {"bgcolor": ink.blank, "tickcolor": ink.muted}
    slider["currentvalue"] = {"prefix": "blocks pruned: ", "font": font}
    slider["steps"] = [{"label": str(step), "method": "animate", "args": [[str(step)], to_step]} for step in steps]
    commands: dict[str, list[Any]] = {}
    for label, milliseconds in {"½ ▶": 1600, "▶": 800, "▶▶": 300}.items():
        speed = {"fromcurrent": True, "frame": {"duration": milliseconds, "redraw": True}}
        commands[label] = [None, at_once | speed]
    commands["❚❚"] = [[None], at_once | {"frame": {"duration": 0, "redraw": False}}]
    buttons = below | {"type": "buttons", "direction": "left", "showactive": False, "x": 0, "xanchor": "left"}
    buttons |= {"pad": {"t": 84}, "bgcolor": ink.hover, "font": font}
    buttons["buttons"] = [{"label": label, "method": "animate", "args": args} for label, args in commands.items()]
    return {"sliders": [slider], "updatemenus": [buttons]}


# Solvers


def solver_race(
    ways: Mapping[str, tuple[str, pd.DataFrame]], work: float, *, held_out: bool, **shared: Unpack[Look]
) -> Drawing:
    """Error that each solver would leave if it stopped, against the work done; faint beyond `work`.

    Work is in products W·H. `ways`: solver -> (label, a row per state: step, work, is_complete, and both errors).
    """
    chart, ends = Chart(x="work done (products W·H)", y="relative error", height=390, **shared), []
    column, tokens = ("held_out_error", "Held-out") if held_out else ("relative_error", "Calibration")
    for name, (label, table) in ways.items():
        look = palette.method_style(LOOKS[name])._replace(label=label)
        _state_line(chart, table, column, look._replace(dash="dot"), width=1.5, size=5, opacity=0.35)
        _state_line(chart, table[table["work"] <= work + 1e-9], column, look._replace(dash="solid"), opacity=1)
        ends.append((float(table[column].iloc[-1]), label, look.colour, look.dash))
    last = 1.02 * max(float(table["work"].iloc[-1]) for _, table in ways.values())
    top = 1.08 * max(float(table[column].max()) for _, table in ways.values()) or 1.0
    chart.figure.add_vline(x=work, line=CHOSEN)
    chart.x(range=[0, last], zeroline=False)
    chart.y(top=top)
    subtitle = f"{tokens} error{chart.of} at each step; open marks: too few zeros yet"
    rows = pd.concat([table.assign(solver=label) for label, table in ways.values()], ignore_index=True)
    alt = f"Line chart of the error of {count(len(ways), 'solver')} against work"
    chart.label_ends(last, ends, top)
    caption = "The title's solver has the lowest calibration error." if len(ways) > 1 else ""
    return chart.done(_race_finding(ways, work, column), subtitle, caption, alt, rows)


def _state_line(chart: Chart, table: pd.DataFrame, column: str, look: Style, **properties: Any) -> None:
    """States of a solver on the way, with open marks where weights are still to be removed."""
    symbols = [look.symbol if complete else look.opened().symbol for complete in table["is_complete"]]
    hover = f"{look.label}, %{{customdata}}<br>%{{x:.1f}} products<br>error %{{y:.4g}}"
    marker = {"symbol": symbols}
    chart.line(table["work"], table[column], look, hover, marker=marker, customdata=table["step"], **properties)


def _race_finding(ways: Mapping[str, tuple[str, pd.DataFrame]], work: float, column: str) -> str:
    """The solver with the least calibration error of a complete result, compared with the sweep where that has one."""
    now: dict[str, float] = {}
    fitted: dict[str, float] = {}
    for label, table in ways.values():
        reached = table[(table["work"] <= work + 1e-9) & table["is_complete"]]
        if len(reached):
            now[label], fitted[label] = (float(reached[name].iloc[-1]) for name in (column, CHOOSING))
    if not now:
        return f"After {work:g} products no solver has a result yet"
    first, *rest = sorted(fitted, key=fitted.__getitem__)
    if not rest:
        return f"After {work:g} products only {_lower(first)} has a result"
    base = ways["sweep"][0] if "sweep" in ways and ways["sweep"][0] in now else rest[0]
    who = first if first != base else rest[0]
    ends = (float(table["work"].iloc[-1]) for label, table in ways.values() if label in (base, who))
    work = min(work, max(ends))  # nothing has changed since
    return f"After {work:.3g} products {_lower(who)} has {verdicts.says_change(now[who], now[base], _lower(base))}"


def _lower(label: str) -> str:
    """The name of a solver in a sentence, without its order."""
    name = label.partition(",")[0]
    return name if name.isupper() else name[:1].lower() + name[1:]


def mask_changes(
    mask: np.ndarray, before: np.ndarray, *, solver: str, step: str, since: str, **shared: Unpack[Look]
) -> Drawing:
    """Where the mask, (out, in), True = removed, differs from an earlier one, `since` in words."""
    chart = Chart(x="input channel", y="output channel", **shared)
    removed, restored, changed = mask & ~before, before & ~mask, mask ^ before
    small, sizes = (shrink(part.astype(np.float32), 192, "sum") for part in (changed, np.ones_like(mask)))
    shown = Shrunk(small.array / sizes.array, *small[1:])
    chart.cells(shown, "share changed", zmax=float(shown.array.max()) or 1.0)
    chart.matrix_axes(*mask.shape)
    subtitle = f"Share of each cell's weights removed or put back{chart.of}; "
    subtitle += f"a cell is {small.rows} × {small.columns} weights"
    across, share = changed.sum(0), float(changed.mean())
    caption = f"{whole(int(removed.sum()))} weights removed and {whole(int(restored.sum()))} put back since {since}."
    moved = "the mask has not changed"
    if share:
        most, moved = int(across.argmax()), f"{percent(share)} of the mask changed"
        caption += f" Column {most} changed most: {whole(int(across[most]))} of its {whole(len(mask))} weights."
    finding = f"{solver}, {step}: {moved} since {since}"
    columns = {"column": np.arange(mask.shape[1]), "removed": removed.sum(0), "put_back": restored.sum(0)}
    return chart.done(finding, subtitle, caption, "Heatmap of mask changes", pd.DataFrame(columns))
