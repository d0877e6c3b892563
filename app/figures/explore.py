"""The chosen layer: its columns as four strips, its blocks before and after, and its error twice."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Unpack

import numpy as np
import pandas as pd

from app.figures import palette
from app.figures.palette import ACCENT, QUIET, Style, Theme
from app.figures.shapes import Chart, Look, to_numpy
from app.figures.style import Drawing
from app.words import because, listing, number, percent
from rose.layer.columnar import Outlier, outlier
from rose.layer.error import massive_channels
from rose.layer.loss import loss_per_column
from rose.layer.order import Order, blocks_of
from rose.layer.profile import Profile

STRIPS = {  # name in the data -> label and what it is, on screen
    "weight_norm": ("weights", "norm"),
    "input_norm": ("inputs", "√Hessian diag."),
    "importance": ("importance", "|w| · input"),
    "column_loss": ("column loss", "if pruned now"),
}
BARS = 576  # of a strip; more columns share a bar, which shows their maximum
LEFT, RIGHT = 108, 46  # pixels beside the strips, and beside the blocks below them
STRIP, GAP = 52, 14  # pixels
NAMED_BLOCKS, NAMED_HEADS = 12, 16  # numbers of more would touch
ROW, RIBBON = 22, 40  # pixels of blocks before and after, and between them
PLAIN: dict[str, Any] = {"showgrid": False, "showline": False, "ticks": "", "automargin": False}  # an axis
ROWS = [palette.method_style(name) for name in ("rose", "sparsegpt")]  # of figures with two, from below
NAMES = [f'<span style="color:{look.colour}"><b>{look.label}</b></span>' for look in ROWS]


class Columns(NamedTuple):
    """A layer's columns as they are shown."""

    profile: Profile
    size: int  # of a block, in columns
    head_width: int | None  # None where the columns belong to no heads
    threshold: float
    relative_range: float
    order: Order | None = None  # as they are visited; None: as in the model

    @property
    def is_columnar(self) -> bool:
        return self.relative_range > self.threshold

    @property
    def outlier(self) -> Outlier | None:
        return outlier(self.profile, self.size, self.head_width)

    @property
    def widths(self) -> tuple[int, ...]:
        return self.profile.widths(self.size)

    @property
    def visited(self) -> list[int]:
        """Blocks from left to right."""
        widths = self.widths
        if self.order is None:
            return list(range(len(widths)))
        return [int(blocks_of(widths, part[:1])[0]) for part in self.order.permutation.split(list(self.order.widths))]


def strips(columns: Columns, *, losses_of: str = "", **shared: Unpack[Look]) -> Drawing:
    """Norm of weights and inputs, importance and loss of every column; blocks and heads are marked.

    `losses_of`: settings that the losses were measured with, where they are not the ones asked for.
    """
    profile, widths, standing_out = columns.profile, columns.widths, columns.outlier
    place = np.arange(len(profile.weight_norm)) if columns.order is None else to_numpy(columns.order.permutation)
    table = pd.DataFrame({"column": place, "block": blocks_of(widths, place)})
    if columns.head_width:
        table["head"] = place // columns.head_width
    values: list[Any] = [profile.weight_norm, profile.input_norm, profile.importance, profile.column_loss(columns.size)]
    table = table.assign(**{name: to_numpy(value)[place] for name, value in zip(STRIPS, values, strict=True)})
    chart = Chart(plot=len(STRIPS) * (STRIP + GAP) - GAP, headroom=14, **shared)
    chart.margins = {"l": LEFT, "r": RIGHT, "b": 26}
    _bars(chart, table, has_heads=columns.head_width is not None)
    _edges(chart, columns, len(table), standing_out)
    _labels(chart, columns, len(table), standing_out)
    name = shared.get("layer", "The layer")
    verdict = f"is columnar: {columns.relative_range:.2f}"
    if not columns.is_columnar:
        verdict = f"is not columnar: {columns.relative_range:.2f}"
    subtitle = because(columns.is_columnar, len(set(widths)) > 1, len(widths), standing_out)
    caption = f"Losses are those {losses_of}." if losses_of else ""
    if massive := massive_channels(profile.input_norm.square()):
        channels = listing([str(channel) for channel in massive])
        caption += f" Massive activations in input channel{'s' * (len(massive) > 1)} {channels}."
    caption += " A bar is the largest of its columns." * (len(table) > BARS)
    alt = f"Weight norm, input norm, importance and loss of every column{chart.of}"
    return chart.done(f"{name} {verdict}", subtitle, caption.strip(), alt, table)


def _bars(chart: Chart, table: pd.DataFrame, *, has_heads: bool) -> None:
    """A strip for each number, one below the other; heads have two shades."""
    light, dark = palette.shades(chart.theme)
    step = -(-len(table) // BARS)
    shown = table.groupby(np.arange(len(table)) // step).max()
    odd = shown["head"].to_numpy() % 2 == 1 if has_heads else np.ones(len(shown), bool)
    total = len(STRIPS) * (STRIP + GAP) - GAP
    for row, (name, (label, _)) in enumerate(STRIPS.items(), 1):
        is_loss = name == "column_loss"
        first, second = (ACCENT[chart.theme][1], palette.faint(chart.theme)) if is_loss else (dark, light)
        # Numbers, as each of a thousand names of colours would be checked.
        colours = {"color": odd.astype(np.uint8), "colorscale": [[0, second], [1, first]], "cmin": 0, "cmax": 1}
        behind = np.stack([shown["column"], shown["block"]], axis=1)
        axes = {"yaxis": f"y{row}", "width": step, "customdata": behind, "showlegend": False}
        hover = f"column %{{customdata[0]}}, block %{{customdata[1]}}<br>{label} %{{y:.3g}}"
        x, y = np.arange(len(shown)) * step + (step - 1) / 2, shown[name].astype(np.float32)
        chart.bars(x, y, Style(dark, label), hover, marker=colours | {"line": {"width": 0}}, **axes)
        top = max(float(shown[name].max()), float(np.finfo(np.float32).tiny))
        high = 1 - (row - 1) * (STRIP + GAP) / total
        axis: dict[str, Any] = {
            "domain": [max(0.0, high - STRIP / total), high],
            "anchor": "x",
            "range": [0, top],
            "side": "right",
        }
        axis |= {"tickvals": [0, top], "ticktext": ["0", number(top, 2)], "showgrid": False, "showline": False}
        chart.figure.update_layout({f"yaxis{row}": axis | {"ticks": "", "automargin": False, "title": None}})
    chart.figure.update_layout(bargap=0, hovermode="closest")
    chart.x(range=[-0.5, len(table) - 0.5], anchor=f"y{len(STRIPS)}", showticklabels=False, ticks="", showgrid=False)


def _spans(columns: Columns) -> list[tuple[int, float, float]]:
    """Each block with its first column and the one after its last, as shown."""
    widths = [columns.widths[block] for block in columns.visited]
    ends = list(accumulate(widths))
    return [(b, end - width - 0.5, end - 0.5) for b, width, end in zip(columns.visited, widths, ends, strict=True)]


def _edges(chart: Chart, columns: Columns, count: int, block: Outlier | None) -> None:
    line = {"type": "line", "yref": "paper", "y0": 0, "y1": 1.0, "line": {"color": chart.ink.grid, "width": 1.5}}
    spans = _spans(columns)
    shapes = [line | {"x0": x, "x1": x} for _, _, x in spans[:-1]]
    if block is not None:
        colour = ACCENT[chart.theme][1] if columns.is_columnar else chart.ink.muted
        _, x0, x1 = next(span for span in spans if span[0] == block.block)
        shade = {"type": "rect", "yref": "paper", "y0": 0, "y1": 1.0, "fillcolor": colour, "opacity": 0.1}
        shapes.append(shade | {"line": {"width": 0}, "x0": x0, "x1": x1, "layer": "below"})
    chart.figure.update_layout(shapes=shapes)


def _labels(chart: Chart, columns: Columns, count: int, block: Outlier | None) -> None:
    """Names of strips on the left, of blocks above, of heads below."""
    ink, plain = chart.ink, {"showarrow": False, "yref": "paper"}
    total, notes = len(STRIPS) * (STRIP + GAP) - GAP, []
    for row, (label, unit) in enumerate(STRIPS.values()):
        middle = 1 - (row * (STRIP + GAP) + STRIP / 2) / total
        text = f'{label}<br><span style="color:{ink.muted}">{unit}</span>'
        notes.append(
            plain
            | {"xref": "paper", "x": 0, "xanchor": "right", "xshift": -8, "y": middle, "text": text, "align": "right"}
        )
    spans = _spans(columns)
    every, above = -(-len(spans) // NAMED_BLOCKS), {"y": 1, "yanchor": "bottom"}
    for place, (name, x0, x1) in enumerate(spans):
        is_out = block is not None and name == block.block
        if place % every == 0 or is_out:
            colour = ACCENT[chart.theme][1] if is_out and columns.is_columnar else ink.muted
            text = f"block {name}" if len(spans) <= 6 and x1 - x0 > count / 12 else str(name)
            notes.append(plain | above | {"x": (x0 + x1) / 2, "text": text, "font": {"color": colour}})
    below: dict[str, Any] = {"y": 0, "yanchor": "top", "font": {"color": ink.muted}}
    if columns.order is not None:
        ends = ((0.0, "left", "pruned first"), (1.0, "right", "last"))
        notes += [plain | below | {"xref": "paper", "x": x, "xanchor": side, "text": text} for x, side, text in ends]
    elif columns.head_width:
        heads = count // columns.head_width
        step = -(-heads // NAMED_HEADS)
        for head in range(0, heads, step):
            text = f"head {head}" if head == 0 else str(head)
            notes.append(plain | below | {"x": columns.head_width * (head + 0.5) - 0.5, "text": text})
    else:
        notes.append(plain | below | {"xref": "paper", "x": 0.5, "text": f"{count} input channels"})
    chart.figure.update_layout(annotations=notes)


def joined_blocks(columns: Columns, reordered: Order | None, **shared: Unpack[Look]) -> Drawing:
    """Blocks as SparseGPT prunes them, from left to right, and as ROSE does, joined; darker: more loss per column."""
    natural, moved = columns._replace(order=None), columns._replace(order=reordered)
    losses = columns.profile.column_loss(columns.size)
    per_column = to_numpy(loss_per_column(losses, columns.widths)).astype(np.float64)
    chart = Chart(plot=2 * ROW + RIBBON, **shared)
    chart.margins = {"l": LEFT, "r": RIGHT, "b": 2}
    places: dict[int, list[tuple[float, float]]] = {}
    colours = _block_colours(columns, per_column, chart.theme)
    for y, shown in ((1.0, natural), (0.0, moved)):
        spans = _spans(shown)
        for block, x0, x1 in spans:
            places.setdefault(block, []).append((x0, x1))
            box = {"x0": x0 + 0.5, "x1": x1 - 0.5, "y0": y - 0.18, "y1": y + 0.18, "line": {"width": 0}}
            chart.figure.add_shape(type="rect", fillcolor=colours[block], **box)
            if x1 - x0 > len(losses) / 24:
                name = f"block {block}" if x1 - x0 > len(losses) / 9 else str(block)
                font = {"color": palette.text_over(colours[block])}
                chart.figure.add_annotation(text=name, x=(x0 + x1) / 2, y=y, showarrow=False, font=font)
        hover = "block %{customdata[0]}<br>loss per column %{customdata[1]:.3g}"
        blocks = [block for block, *_ in spans]
        behind = {"customdata": np.stack([blocks, per_column[blocks]], axis=1), "showlegend": False}
        middles = [(x0 + x1) / 2 for _, x0, x1 in spans]
        chart.points(middles, [y] * len(spans), Style("rgba(0,0,0,0)", ""), hover, size=16, **behind)
    for block, ((a, b), (c, d)) in places.items():
        path = f"M {a},0.82 C {a},0.4 {c},0.6 {c},0.18 L {d},0.18 C {d},0.6 {b},0.4 {b},0.82 Z"
        ribbon = {"fillcolor": colours[block], "opacity": 0.28, "line": {"width": 0}, "layer": "below"}
        chart.figure.add_shape(type="path", path=path, **ribbon)
    chart.x(visible=False, range=[-0.5, len(losses) - 0.5])
    chart.y(range=[-0.2, 1.2], tickvals=[0, 1], ticktext=NAMES, **PLAIN)
    finding = "ROSE prunes costly blocks first, while many columns can still compensate"
    if not columns.is_columnar:
        finding = "ROSE keeps the order of a layer that is not columnar"
    table = pd.DataFrame({"block": range(len(per_column)), "loss_per_column": per_column})
    table["step"] = np.argsort(moved.visited)
    return chart.done(finding, "", "", f"Blocks of columns{chart.of} before and after reordering", table)


def _block_colours(columns: Columns, per_column: np.ndarray, theme: Theme) -> list[str]:
    shares, standing_out = per_column / (per_column.max() or 1.0), columns.outlier
    colours = [palette.blend(*QUIET[theme], 0.35 + 0.65 * share) for share in shares]
    if columns.is_columnar and standing_out is not None:
        colours[standing_out.block] = ACCENT[theme][1]
    return colours


def errors_twice(row: pd.Series, *, draws: Sequence[float] = (), **shared: Unpack[Look]) -> Drawing:
    """The layer's error by SparseGPT and by ROSE, held out where anything was; `row` is of `Study.overview`.

    `draws`: shares of SparseGPT's error that ROSE saves in all draws of text, the row's first.
    """
    is_held = not pd.isna(row["held_out_sparsegpt"])
    kind = "held_out" if is_held else "error"
    table = pd.DataFrame({"method": ["sparsegpt", "rose"]})
    table["error"] = [float(row[f"{kind}_{name}"]) for name in table["method"]]
    chart = Chart(plot=52, **shared)
    chart.margins = {"l": LEFT, "r": RIGHT, "b": 2}
    first, second = table["error"]
    texts = [number(first), f"{number(second)}, {_saving(first, second)}"]
    where = {"orientation": "h", "width": 0.72, "textposition": "inside", "insidetextanchor": "end"}
    for place, look in enumerate(reversed(ROWS)):
        font = {"color": palette.text_over(look.colour)}
        chart.figure.add_bar(
            x=[table["error"][place]], y=[1 - place], text=[texts[place]], marker={"color": look.colour},
            textfont=font, hoverinfo="skip", **where,
        )  # fmt: skip
    chart.y(tickvals=[0, 1], ticktext=NAMES, range=[-0.5, 1.5], **PLAIN)
    chart.x(visible=False, range=[0, max(first, second) or 1])
    tokens = "text it was not measured on" if is_held else "calibration text"
    subtitle, alt = _spread(draws) if row["is_columnar"] else "", "Bars of the error by method"
    return chart.done(f"Error of the layer's output on {tokens}", subtitle, "", alt, table)


def _saving(first: float, second: float) -> str:
    saved = 1 - second / first if first > 0 else 0.0
    if abs(saved) < 0.0005:
        return "the same"
    return f"{'−' if saved > 0 else '+'}{percent(abs(saved), 0)}"


def _spread(draws: Sequence[float]) -> str:
    if len(draws) < 2:
        return "One draw of text; another may give another saving"
    low, high = (percent(end, 0) for end in (min(draws), max(draws)))
    return f"ROSE saves {low} to {high} in {len(draws)} draws of text" if low != high else f"ROSE saves {low}"
