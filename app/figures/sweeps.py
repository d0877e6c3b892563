"""Sweeps as they go, one alone or two of one layer side by side: the weights as they stand, the error as it grows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb, sample_colorscale
from plotly.subplots import make_subplots

from app import words
from app.figures import palette, shapes, shrinking, style
from app.figures.orders import run_name, so_far, sweep_style, trace_of
from app.figures.palette import Style, Theme
from app.figures.style import Drawing
from rose import LayerResult, verdicts

Show = Literal["weights", "change"]
Arrange = Literal["visited", "natural"]

CELLS = 384  # a side, of all matrices together
FILM_CELLS = 1_100_000  # of all frames of a film together: 8 bits each, 4/3 of that as base64
MAX_FRAMES = 33
BELOW = 150  # pixels below a film, for what starts and steers it
TALL = 660  # pixels, of a film
REMOVED = {"light": "#ffffff", "dark": "#000000"}  # at neither end of the sequential scale
TINY = 1e-9  # of the scale of values: only 0 itself lies below
DIMMED, TINTED = 0.6, 0.4  # opacity over what is pruned, and over what was just pruned


def sweep_frame(
    results: Sequence[LayerResult],
    step: int,
    dense_energy: float,
    *,
    show: Show = "weights",
    arrange: Arrange = "visited",
    show_end: bool = True,
    height: int = 540,
    layer: str = "",
    theme: Theme = "light",
) -> Drawing:
    """One or two traced sweeps after `step` blocks: the matrices above, error so far below.

    Args:
        dense_energy: tr(W H Wᵀ), what errors are relative to.
        show: |W| as it stands, or how far each weight has moved from its dense value.
        show_end: whether the curves to come are shown; without, nobody can tell how it will end.
        height: pixels; a page may give it more room.
    """
    view = _View(show, arrange, CELLS // len(results), False, theme)
    return _draw(results, step, dense_energy, view, show_end=show_end, height=height, layer=layer)


def sweep_film(
    results: Sequence[LayerResult],
    dense_energy: float,
    *,
    show: Show = "weights",
    layer: str = "",
    theme: Theme = "light",
) -> Drawing:
    """All steps as frames with play at three speeds, pause and a slider: to show, to record, and to take along.

    Cells are 8-bit levels, and few enough that the whole stays below 2 MB; at most 33 steps are kept.
    """
    blocks = len(results[0].order.widths)
    steps = sorted(set(np.linspace(0, blocks, min(blocks + 1, MAX_FRAMES)).round().astype(int).tolist()))
    cells = min(256, math.isqrt(FILM_CELLS // (len(results) * len(steps))))
    view = _View(show, "visited", cells, True, theme)
    drawn = [_draw(results, step, dense_energy, view, show_end=False, height=TALL, layer=layer) for step in steps]
    figure, last = drawn[0].figure, drawn[-1]
    traces = list(range(len(figure.data)))
    figure.frames = [
        go.Frame(
            name=str(step),
            data=one.data,
            traces=traces,
            layout={part: one.layout[part] for part in ("annotations", "title")},
        )
        for step, one in zip(steps, (drawing.figure for drawing in drawn), strict=True)
    ]
    # The title of every frame must fit: the longest decides.
    figure.update_layout(margin={"t": max(one.figure.layout.margin.t for one in drawn), "b": BELOW})
    figure.update_layout(_player(steps, theme))
    finding = last.figure.layout.meta["finding"]
    skipped = "" if len(steps) == blocks + 1 else f" {len(steps)} of {blocks + 1} steps are kept."
    alt = f"Film of {words.count(len(results), 'sweep')}, {words.count(blocks, 'block')}. {finding}. {last.caption}"
    return Drawing(figure, last.caption + skipped, alt + skipped, last.data)


class _View(NamedTuple):
    """How a matrix is drawn: `cells` a side, as 8-bit `levels` or with the values for the pointer."""

    show: Show
    arrange: Arrange
    cells: int
    levels: bool
    theme: Theme

    @property
    def unit(self) -> str:
        return "|W|" if self.show == "weights" else "|change|"


def _draw(
    results: Sequence[LayerResult],
    step: int,
    dense_energy: float,
    view: _View,
    *,
    show_end: bool,
    height: int,
    layer: str,
) -> Drawing:
    """As `sweep_frame`."""
    blocks, count = len(results[0].order.widths), len(results)
    curves = [so_far(result) / (dense_energy or 1.0) for result in results]
    looks = [sweep_style(result) for result in results]
    figure = make_subplots(
        rows=2,
        cols=count,
        specs=[[{}] * count, [{"colspan": count}, *[None] * (count - 1)]],
        row_heights=[0.64, 0.36],
        vertical_spacing=0.12,
        horizontal_spacing=0.05,
        subplot_titles=[_named(look) for look in looks],
    )
    figure.update_annotations(font_size=style.FONT_SIZE + 1, yshift=2)
    (top, note), *_ = [_matrix(figure, column, result, step, view) for column, result in enumerate(results, 1)]
    for curve, look in zip(curves, looks, strict=True):
        _line(figure, curve, step, look, show_end=show_end)
    now, final = [float(curve[step]) for curve in curves], [float(curve[-1]) for curve in curves]
    at = {
        "title_text": "pruned blocks",
        "range": [-0.1, blocks + 0.1],
        "dtick": shapes.whole_step(blocks),
        "zeroline": False,
    }
    figure.update_xaxes(at, row=2, col=1)
    figure.update_yaxes(range=[0, max(final) * 1.08 or 1], title_text="error so far", row=2, col=1)
    finding = _finding(looks, now, final, step, blocks)
    columns = "as visited" if view.arrange == "visited" else "in natural order"
    what = (
        f"{view.unit}{words.of(layer)} from 0 to {words.number(top)}, columns {columns}; dimmed: pruned; pink: just "
        "pruned; bright: free"
    )
    listed = "; ".join(f"{look.label} {words.number(value)}" for look, value in zip(looks, now, strict=True))
    caption = f"Error so far: {listed}." + (f" {words.sentence(note)}." if "maximum" in note else "")
    if count == 1:
        trace, width = trace_of(results[0]), len(results[0].order.permutation)
        caption += (
            f" {words.whole(int(trace.removed[:step].sum()))} of {words.whole(results[0].weight.numel())} weights are "
            f"pruned so far; {width - sum(results[0].order.widths[:step])} of {width} columns are still free to "
            "compensate."
        )
    names = [run_name(result) for result in results]
    table = pd.DataFrame({"pruned_blocks": np.arange(blocks + 1)} | dict(zip(names, curves, strict=True)))
    kind = "Heatmap" if count == 1 else "Two heatmaps"
    alt = f"{kind} of the weights during {'a sweep' if count == 1 else 'sweeps'}, with the error as it grows"
    return style.finish(figure, view.theme, finding, what, caption, alt, table, height=height, headroom=20)


def _named(look: Style) -> str:
    """The title of a matrix, which names the line below as well; in ink, as colours are too light to read."""
    return f'<span style="color:{look.colour}">{"┅" if look.dash == "dot" else "━"}</span> {look.label}'


def _matrix(figure: go.Figure, column: int, result: LayerResult, step: int, view: _View) -> tuple[float, str]:
    """Adds one heatmap, and a veil on the columns that are pruned; where its colours end, and what its cells are."""
    trace, order, at = trace_of(result), result.order, {"row": 1, "col": column}
    first, now = (shrinking.to_numpy(trace.weights[k]) for k in (0, step))
    values = np.abs(now if view.show == "weights" else now - first)
    done, place = np.zeros(values.shape[1], np.uint8), shrinking.to_numpy(order.permutation)
    end = sum(order.widths[:step])
    done[place[:end]] = 1
    if step:
        done[place[end - order.widths[step - 1] : end]] = 2
    if view.arrange == "visited":
        values, done = values[:, place], done[place]
    shrunk = shrinking.shrink(values, view.cells)
    # From the dense weights for both, so that a change is seen at the scale of what it changes.
    top, _ = shrinking.ceiling(shrinking.shrink(np.abs(first), view.cells).array)
    top *= 1.0 if view.show == "weights" else 0.5
    channel = "step" if view.arrange == "visited" else "input channel"
    hover = f"{channel} %{{x:.0f}}<br>output channel %{{y:.0f}}<br>{view.unit} %{{z:.4g}}<extra></extra>"
    look: dict[str, Any] = {"zmax": top, "showscale": False, "hovertemplate": hover}
    array, least = shrunk.array, TINY
    if view.levels:
        array, least = np.ceil(np.clip(array / top, 0, 1) * 255).astype(np.uint8), 0.5 / 255
        look |= {"zmax": 255, "hoverinfo": "skip", "hovertemplate": None}
    if view.show == "weights":
        look["colorscale"] = _with_removed(least, view.theme)
    figure.add_trace(shapes.heatmap(shrunk._replace(array=array), view.unit, **look), **at)
    rows, columns = values.shape
    # Cells are maxima, which rarely show a zero: what is done must be seen by its shade.
    veil = [
        (0, "rgba(0,0,0,0)"),
        (0.5, _clear(palette.INKS[view.theme].hover, DIMMED)),
        (1, _clear(palette.MARK, TINTED)),
    ]
    over = {"colorscale": veil, "zmin": 0, "zmax": 2, "showscale": False, "hoverinfo": "skip"}
    figure.add_heatmap(z=done[None], x0=0, dx=1, y0=(rows - 1) / 2, dy=rows, **over, **at)
    hidden = shapes.BARE | {"showticklabels": False, "ticks": ""}
    figure.update_xaxes(hidden, range=[-0.5, columns - 0.5], **at)
    figure.update_yaxes(hidden, range=[rows - 0.5, -0.5], **at)
    return top, shrunk.note


def _clear(colour: str, opacity: float) -> str:
    return f"rgba({','.join(map(str, hex_to_rgb(colour)))},{opacity})"


def _with_removed(least: float, theme: Theme) -> list[list[Any]]:
    """The sequential scale with 0 set apart, as all below `least` of its length: only pruned cells have it."""
    colours = sample_colorscale(palette.SEQUENTIAL, np.linspace(0, 1, 12).tolist())
    rest = [[least + (1 - least) * i / 11, c] for i, c in enumerate(colours)]
    return [[0.0, REMOVED[theme]], [least, REMOVED[theme]], *rest]


def _line(figure: go.Figure, curve: np.ndarray, step: int, look: Style, *, show_end: bool) -> None:
    """The curve to come, faint, where it is shown, and what has arisen so far, strong."""
    at = {"row": 2, "col": 1}
    x, future = np.arange(len(curve)), look._replace(dash="dot")
    shapes.lines(figure, x, curve, future, "", mode="lines", width=1.5, opacity=0.6, visible=show_end, **at)
    hover = f"{look.label}<br>%{{x}} blocks pruned<br>error so far %{{y:.4g}}"
    shapes.lines(figure, x[: step + 1], curve[: step + 1], look, hover, width=3, size=9, **at)


def _finding(looks: list[Style], now: list[float], final: list[float], step: int, blocks: int) -> str:
    if step == 0:
        return f"Nothing is pruned yet: {words.count(blocks, 'block')} to go"
    if len(now) == 1:
        share = now[0] / final[0] if final[0] > 0 else 0.0
        return f"After {step} of {blocks} blocks, {words.percent(share, 0)} of the final error has arisen"
    first, second = (look.label for look in looks)
    yet = " so far" if step < blocks else ""
    return f"After {step} of {blocks} blocks, {second} has {verdicts.says_change(now[1], now[0], first)}{yet}"


def _player(steps: Sequence[int], theme: Theme) -> dict[str, Any]:
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


# The method whose colour each solver has.
LOOKS = {"sweep": "sparsegpt", "refit": "rose_dealt", "stages": "rose_global", "admm": "rose_admm"}


def solver_race(
    ways: Mapping[str, tuple[str, pd.DataFrame]],
    work: float,
    *,
    held_out: bool,
    layer: str = "",
    theme: Theme = "light",
) -> Drawing:
    """Error that each solver would leave if it stopped, against the work done; strong up to `work`, faint beyond.

    Work is in products W·H. `ways`: solver -> (label, a row per state: step, work, is_complete, and both errors).
    """
    column = "held_out_error" if held_out else "relative_error"
    figure, ends = go.Figure(), []
    last = max(float(table["work"].iloc[-1]) for _, table in ways.values())
    for name, (label, table) in ways.items():
        look = palette.method_style(LOOKS[name])
        _race_line(figure, table, column, label, look, is_past=False)
        _race_line(figure, table[table["work"] <= work + 1e-9], column, label, look, is_past=True)
        ends.append((float(table[column].iloc[-1]), label, look.colour, look.dash))
    top = 1.08 * max(float(table[column].max()) for _, table in ways.values()) or 1.0
    figure.add_vline(x=work, line=shapes.CHOSEN)
    figure.update_xaxes(range=[0, last * 1.02], zeroline=False)
    figure.update_yaxes(range=[0, top])
    tokens = "Held-out" if held_out else "Calibration"
    what = f"{tokens} error{words.of(layer)} if the solver stopped there; open marks: weights still to be removed"
    best = {label: float(table.loc[table["is_complete"], column].min()) for label, table in ways.values()}
    listed = ", ".join(f"{label} {words.number(value)}" for label, value in best.items())
    caption = f"Lowest error at the full sparsity: {listed}."
    rows = pd.concat([table.assign(solver=label) for label, table in ways.values()], ignore_index=True)
    finding = _race_finding(ways, work, column)
    alt = f"Line chart of the error of {words.count(len(ways), 'solver')} against work"
    frame = {"x": "work done (products W·H)", "y": style.ERROR, "height": 460}
    drawing = style.finish(figure, theme, finding, what, caption, alt, rows, **frame)
    shapes.end_labels(figure, last * 1.02, ends, top)
    return drawing


def _race_line(
    figure: go.Figure, table: pd.DataFrame, column: str, label: str, look: palette.Style, *, is_past: bool
) -> None:
    look = look._replace(label=label, dash="solid" if is_past else "dot")
    symbols = [look.symbol if complete else look.opened().symbol for complete in table["is_complete"]]
    hover = f"{label}, %{{customdata}}<br>%{{x:.1f}} products<br>error %{{y:.4g}}"
    options = {"width": 2.5, "size": 8, "opacity": 1} if is_past else {"width": 1.5, "size": 5, "opacity": 0.35}
    x, y, steps = table["work"], table[column], table["step"]
    shapes.lines(figure, x, y, look, hover, marker={"symbol": symbols}, customdata=steps, **options)


def _race_finding(ways: Mapping[str, tuple[str, pd.DataFrame]], work: float, column: str) -> str:
    """Who is ahead among those that could stop now; against the sweep where that is there."""
    now: dict[str, float] = {}
    for label, table in ways.values():
        reached = table[(table["work"] <= work + 1e-9) & table["is_complete"]]
        if len(reached):
            now[label] = float(reached[column].iloc[-1])
    after = f"After {work:g} products"
    if not now:
        return f"{after} no solver has a result yet"
    first, *others = sorted(now, key=now.__getitem__)
    if not others:
        return f"{after} only {_lower(first)} has a result"
    base = ways["sweep"][0] if "sweep" in ways and ways["sweep"][0] in now else others[0]
    who = first if first != base else others[0]
    ends = {label: float(table["work"].iloc[-1]) for label, table in ways.values()}
    if ends[base] <= ends[who] < work - 1e-9:  # nothing has changed since
        after = f"By its end, after {ends[who]:.3g} products,"
    return f"{after} {_lower(who)} has {verdicts.says_change(now[who], now[base], _lower(base))}"


def _lower(label: str) -> str:
    return label if label.isupper() else label[:1].lower() + label[1:]


def mask_changes(
    mask: np.ndarray,
    before: np.ndarray,
    *,
    solver: str,
    step: str,
    since: str,
    layer: str = "",
    theme: Theme = "light",
) -> Drawing:
    """Where the mask differs from an earlier one: share of each cell's weights that were removed or put back.

    Masks are (out, in) bool, True = removed. `solver` and `step` made the new one, `since` is the other in words.
    """
    removed, restored = mask & ~before, before & ~mask
    rows, columns = mask.shape
    small = shrinking.shrink((removed | restored).astype(np.float32), 192, "sum")
    sizes = shrinking.shrink(np.ones_like(mask, dtype=np.float32), 192, "sum").array
    shown = shrinking.Shrunk(small.array / sizes, *small[1:])
    share = float((removed | restored).mean())
    changed = f"{words.percent(share)} of the mask changed" if share else "the mask has not changed"
    finding = f"{solver}, {step}: {changed} since {since}"
    figure = go.Figure(shapes.heatmap(shown, "share changed", zmax=float(shown.array.max()) or 1.0))
    shapes.matrix_axes(figure, rows, columns)
    size = f"a cell is {small.rows} × {small.columns} weights"
    what = f"Share of each cell's weights removed or put back{words.of(layer)}; {size}"
    across, gone, back = (removed | restored).sum(0), words.whole(int(removed.sum())), words.whole(int(restored.sum()))
    most = int(across.argmax())
    caption = f"{gone} weights removed and {back} put back since {since}."
    if share:
        caption += f" Column {most} changed most: {words.whole(int(across[most]))} of its {words.whole(rows)} weights."
    table = pd.DataFrame({"column": np.arange(columns), "removed": removed.sum(0), "put_back": restored.sum(0)})
    axes = {"x": "input channel", "y": "output channel"}
    return style.finish(figure, theme, finding, what, caption, "Heatmap of mask changes", table, **axes)
