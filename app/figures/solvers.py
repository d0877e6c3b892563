"""Solvers of one layer's problem in a race: error against work done, and what became of the mask on the way."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import words
from app.figures import marks, palette, shrinking, style
from app.figures.palette import Theme
from app.figures.style import Drawing
from rose import verdicts

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
        _line(figure, table, column, label, look, is_past=False)
        _line(figure, table[table["work"] <= work + 1e-9], column, label, look, is_past=True)
        ends.append((float(table[column].iloc[-1]), label, look.colour, look.dash))
    top = 1.08 * max(float(table[column].max()) for _, table in ways.values()) or 1.0
    figure.add_vline(x=work, line=marks.CHOSEN)
    figure.update_xaxes(range=[0, last * 1.02], zeroline=False)
    figure.update_yaxes(range=[0, top])
    tokens = "Held-out" if held_out else "Calibration"
    what = f"{tokens} error{words.of(layer)} if the solver stopped there; open marks: weights still to be removed"
    best = {label: float(table.loc[table["is_complete"], column].min()) for label, table in ways.values()}
    listed = ", ".join(f"{label} {words.number(value)}" for label, value in best.items())
    caption = f"Lowest error at the full sparsity: {listed}."
    rows = pd.concat([table.assign(solver=label) for label, table in ways.values()], ignore_index=True)
    finding = _finding(ways, work, column)
    alt = f"Line chart of the error of {words.count(len(ways), 'solver')} against work"
    frame = {"x": "work done (products W·H)", "y": style.ERROR, "height": 460}
    drawing = style.finish(figure, theme, finding, what, caption, alt, rows, **frame)
    marks.end_labels(figure, last * 1.02, ends, top)
    return drawing


def _line(
    figure: go.Figure, table: pd.DataFrame, column: str, label: str, look: palette.Style, *, is_past: bool
) -> None:
    look = look._replace(label=label, dash="solid" if is_past else "dot")
    symbols = [look.symbol if complete else look.opened().symbol for complete in table["is_complete"]]
    hover = f"{label}, %{{customdata}}<br>%{{x:.1f}} products<br>error %{{y:.4g}}"
    options = {"width": 2.5, "size": 8, "opacity": 1} if is_past else {"width": 1.5, "size": 5, "opacity": 0.35}
    x, y, steps = table["work"], table[column], table["step"]
    marks.lines(figure, x, y, look, hover, marker={"symbol": symbols}, customdata=steps, **options)


def _finding(ways: Mapping[str, tuple[str, pd.DataFrame]], work: float, column: str) -> str:
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
    changed = f"{words.fine_percent(share)} of the mask changed" if share else "the mask has not changed"
    finding = f"{solver}, {step}: {changed} since {since}"
    figure = go.Figure(marks.heatmap(shown, "share changed", zmax=float(shown.array.max()) or 1.0))
    marks.matrix_axes(figure, rows, columns)
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
