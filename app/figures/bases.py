"""Errors of one output projection in several bases: what pruning it costs, as columns come and go."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import words
from app.figures import marks, palette, style
from app.figures.palette import Theme
from app.figures.style import Drawing
from rose import verdicts

GIVEN = "given"
# How sentences speak of a basis.
SPOKEN = {"random": "a random basis", "gathered": "the gathered basis", "learned": "the learned basis"}


def basis_errors(
    table: pd.DataFrame, labels: Mapping[str, str], chosen: str = GIVEN, *, layer: str = "", theme: Theme = "light"
) -> Drawing:
    """Held-out error of each method in each basis as bars, calibration error as a line in each; the chosen is outlined.

    Without held-out errors bars are of calibration. `labels`: by basis, "given" among them, in the order of the groups.
    The table has a row per basis and method: basis, method, relative_error, held_out_error (NaN where there is none).
    """
    column, tokens = style.judged(table)
    has_held_out = tokens == "held-out"
    methods = list(dict.fromkeys(table["method"]))
    wide, fitted = (
        table.pivot_table(index="basis", columns="method", values=name, sort=False).reindex(list(labels))
        for name in (column, "relative_error")
    )
    figure, width = go.Figure(), 0.8 / len(methods)
    groups = np.arange(len(labels))
    for place, method in enumerate(methods):
        look, x = palette.method_style(method), groups - 0.4 + width * (place + 0.5)
        hover = f"{look.label}, %{{customdata}}<br>{tokens} error %{{y:.4g}}"
        marks.bars(figure, x, wide[method], look, hover, customdata=list(labels.values()), width=0.9 * width)
    if has_held_out:
        ends = np.concatenate([groups - 0.4 + width * (place + 0.5) for place in range(len(methods))])
        y = np.concatenate([fitted[method] for method in methods])
        ink = palette.INKS[theme].text
        look = palette.Style(ink, "Calibration", symbol="line-ew")
        marker = {"line": {"width": 2.5, "color": ink}}
        marks.points(figure, ends, y, look, "calibration error %{y:.4g}", size=11, marker=marker)
    at = list(labels).index(chosen)
    marks.outline(figure, at - 0.47, at + 0.47, 0, 1, yref="paper")
    figure.update_xaxes(tickvals=groups, ticktext=list(labels.values()), showgrid=False)
    lead, seen = methods[0], chosen if chosen != GIVEN else str(wide[methods[0]].idxmin())
    base = wide.loc[GIVEN]
    finding = f"No basis has less {tokens} error than the one as given"
    if seen != GIVEN:
        change = verdicts.says_change(wide.loc[seen, lead], base[lead], "as given")
        finding = f"In {SPOKEN[seen]} {palette.method_style(lead).label} makes {change}"
    line = "; line in a bar: on calibration tokens" if has_held_out else ""
    what = f"{words.sentence(tokens)} error{words.of(layer)} in each basis{line}; the chosen one is outlined"
    shown = seen if seen != GIVEN else next(name for name in labels if name != GIVEN)
    said = "; ".join(
        f"{palette.method_style(one).label} {words.number(wide.loc[shown, one])}, "
        f"{verdicts.says_change(wide.loc[shown, one], base[one], 'as given', '')}"
        for one in methods
    )
    caption = f"{words.sentence(tokens)} error in {SPOKEN[shown]}: {said}."
    alt = f"Grouped bars of {tokens} error by basis and method"
    frame = {"x": "basis of the heads", "y": style.ERROR, "height": 460, "legend": True}
    return style.finish(figure, theme, finding, what, caption, alt, table, **frame)


def sentence(table: pd.DataFrame) -> str:
    """What the bases do to SparseGPT's error, in numbers; table as above."""
    rows = table[table["method"] == "sparsegpt"].set_index("basis")
    column, tokens = style.judged(rows)
    errors = rows[column]
    given, parts = float(errors[GIVEN]), []
    for name in ("gathered", "learned", "random"):
        before, after = words.apart(given, float(errors[name]))
        verb = "stays at" if before == after else "falls" if errors[name] < given else "rises"
        parts.append((SPOKEN[name], verb, before, after))
    (first, verb, before, after), *others = parts
    whose = f"SparseGPT's {tokens} error"
    moved = f"{verb} {before}" if verb == "stays at" else f"{verb} from {before} to {after}"
    rest = "; ".join(
        f"in {where} it {how} {end}" if how == "stays at" else f"in {where} it {how} to {end}"
        for where, how, _, end in others
    )
    return f"In {first} {whose} {moved}; {rest}. The dense model computes the same in all four."
