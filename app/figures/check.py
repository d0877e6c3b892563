"""Can the numbers be trusted: one error measured three times, over-fitting, realised sparsity, damping."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import words
from app.figures import palette, style
from app.figures.palette import Theme
from app.figures.style import Drawing
from rose import RoseError
from rose.layer.checks import CurvePoint, ErrorMeasures, RealisedSparsity

MEASURES = {
    "quadratic_form": ("tr(ΔW H ΔWᵀ), from the Hessian", palette.TEAL, ""),
    "sweep_sum": ("Σ e² − λ‖ΔW‖², from the sweep", palette.BROWN, "/"),
    "direct": ("‖(W − Ŵ)Xᵀ‖², on the tokens", palette.INDIGO, "."),
}


def error_measures(measures: Sequence[ErrorMeasures], *, layer: str = "", theme: Theme = "light") -> Drawing:
    """Three independent measurements of each method's error side by side, with how far they are apart.

    Raises:
        RoseError: nothing measured.
    """
    if not measures:
        raise RoseError("Nothing has been measured yet; choose at least one method.")
    labels = [palette.method_style(m.method).label for m in measures]
    rows = [
        {"method": m.method}
        | {name: _over(getattr(m, name), m.dense) for name in MEASURES}
        | {"disagreement": m.disagreement}
        for m in measures
    ]
    table = pd.DataFrame(rows)
    figure = go.Figure()
    for name, (label, colour, pattern) in MEASURES.items():
        values = table[name].to_numpy(np.float64)
        if not np.isnan(values).all():
            figure.add_bar(
                x=labels,
                y=values,
                name=label,
                marker={"color": colour, "pattern": {"shape": pattern, "solidity": 0.35}},
                hovertemplate="%{x}<br>%{y:.6g}<extra>" + label + "</extra>",
            )
    highest = table[list(MEASURES)].max(axis=1)
    for label, top, gap in zip(labels, highest, table["disagreement"], strict=True):
        figure.add_annotation(x=label, y=top, text=f"{words.number(gap)} apart", showarrow=False, yshift=12)
    worst = float(table["disagreement"].max())
    taken = sum(1 for name in MEASURES if table[name].notna().any())
    finding = f"{words.sentence(words.word(taken))} measurements of the error differ by at most {words.number(worst)}"
    of = words.of(layer)
    style.base(
        figure,
        theme,
        finding,
        f"Relative error{of} by each way to measure it; above the bars: (largest − smallest) / largest",
        x="method",
        y=style.ERROR,
        height=460,
        legend=True,
    )
    figure.update_yaxes(range=[0, float(highest.max()) * 1.15 or 1])
    where = labels[int(table["disagreement"].argmax())]
    caption = (
        f"The largest disagreement is {words.number(worst)} of the error, for {where}; float32 sums over a layer "
        "keep about five digits."
    )
    alt = f"Grouped bars of {words.word(taken)} measures of the error by method. {finding}. {caption}"
    return Drawing(figure, caption, alt, table)


def _over(value: float | None, dense: float) -> float:
    return float("nan") if value is None or dense <= 0 else value / dense


def held_out_curve(
    points: Sequence[CurvePoint],
    *,
    method: str = "rose",
    layer: str = "",
    requested: float = 0.01,
    theme: Theme = "light",
) -> Drawing:
    """Calibration and held-out error against the number of calibration tokens.

    Args:
        requested: damping that was asked for; more had to be added where H was singular.

    Raises:
        RoseError: no points.
    """
    if not points:
        raise RoseError("No length of calibration has been measured yet; run the checks of this layer.")
    table = pd.DataFrame(
        {
            "tokens": [p.tokens for p in points],
            "calibration_error": [p.calibration_error for p in points],
            "held_out_error": [np.nan if p.held_out_error is None else p.held_out_error for p in points],
            "damping": [p.damping for p in points],
        }
    ).sort_values("tokens", ignore_index=True)
    look = palette.method_style(method)
    figure = go.Figure()
    for column, label, dash, symbol in (
        ("held_out_error", "held-out tokens", "solid", "circle"),
        ("calibration_error", "calibration tokens", "dash", "circle-open"),
    ):
        if table[column].notna().any():
            figure.add_scatter(
                x=table["tokens"].to_numpy(np.float64),
                y=table[column].to_numpy(np.float64),
                mode="lines+markers",
                name=label,
                line={"color": look.colour, "dash": dash, "width": 2.5},
                marker={"symbol": symbol, "size": 9},
                hovertemplate=f"%{{x:.0f}} tokens<br>{label} %{{y:.4g}}<extra></extra>",
            )
    finding, caption = _overfitting_words(table)
    of = f" on {layer}" if layer else ""
    style.base(
        figure,
        theme,
        finding,
        f"Relative error of {look.label}{of} by calibration length; log scale",
        x="calibration tokens",
        y=style.ERROR,
        legend=True,
    )
    ticks = [words.whole(int(tokens)) for tokens in table["tokens"]]
    figure.update_xaxes(type="log", tickvals=table["tokens"].tolist(), ticktext=ticks)
    figure.update_yaxes(range=[0, float(np.nanmax(table[["calibration_error", "held_out_error"]])) * 1.08 or 1])
    raised = int((table["damping"] > requested).sum())
    if raised:
        caption += f" Damping had to be raised at {words.count(raised, 'point')}."
    alt = f"Line chart of error against calibration tokens, up to {ticks[-1]}. {finding}. {caption}"
    return Drawing(figure, caption, alt, table)


def _overfitting_words(table: pd.DataFrame) -> tuple[str, str]:
    first, last = table.iloc[0], table.iloc[-1]
    tokens = words.whole(int(last["tokens"]))
    if np.isnan(last["held_out_error"]):
        return (
            f"With {tokens} tokens the error on them is {words.number(last['calibration_error'])}",
            "Nothing was held out, so over-fitting cannot be seen.",
        )
    course = f"is {words.number(last['held_out_error'])} at {tokens} tokens"
    if len(table) > 1:
        verb = "rises" if last["held_out_error"] > first["held_out_error"] else "falls"
        before, after = (words.number(one["held_out_error"]) for one in (first, last))
        start = f"{before} at {words.whole(int(first['tokens']))} tokens"
        course = f"{verb} from {start} to {after} at {tokens}"
        if before == after:
            course = f"is {after} at {words.whole(int(first['tokens']))} tokens as at {tokens}"
    caption = (
        f"Held-out error {course}; there the error on the calibration tokens is "
        f"{words.number(last['calibration_error'])}."
    )
    if not last["calibration_error"] > 0:
        there = words.number(last["held_out_error"])
        return f"With {tokens} tokens the calibration error is 0 and the held-out error {there}", caption
    ratio = last["held_out_error"] / last["calibration_error"]
    return f"With {tokens} tokens, held-out error is {words.number(ratio)} times the calibration error", caption


def sparsity_by_method(realised: Sequence[RealisedSparsity], *, layer: str = "", theme: Theme = "light") -> Drawing:
    """Realised beside requested sparsity for each method.

    Raises:
        RoseError: nothing measured.
    """
    if not realised:
        raise RoseError("Nothing has been measured yet; choose at least one method.")
    labels = [palette.method_style(r.method).label for r in realised]
    figure = go.Figure()
    for name, values, pattern in (
        ("requested", [r.requested for r in realised], "/"),
        ("realised", [r.realised for r in realised], ""),
    ):
        figure.add_bar(
            x=labels,
            y=values,
            name=name,
            text=[f"{100 * v:.3f}".rstrip("0").rstrip(".") + " %" for v in values],
            textposition="outside",
            cliponaxis=False,
            marker={
                "color": palette.SLATE if pattern else palette.TEAL,
                "pattern": {"shape": pattern, "solidity": 0.35},
            },
            hovertemplate=f"%{{x}}<br>{name} %{{text}}<extra></extra>",
        )
    kept = [r for r in realised if r.check.status == "pass"]
    if len(realised) == 1:
        finding = f"{labels[0]} {'removed' if kept else 'did not remove'} what was requested"
    elif len(kept) == len(realised):
        finding = f"All {words.word(len(kept))} methods removed what was requested"
    else:
        who = words.sentence(words.word(len(kept))) if kept else "None"
        finding = f"{who} of {len(realised)} methods removed what was requested"
    of = words.of(layer)
    style.base(
        figure,
        theme,
        finding,
        f"Fraction of the weights{of} removed, as requested and as counted",
        x="method",
        y="sparsity (fraction removed)",
        legend=True,
    )
    figure.update_yaxes(range=[0, 1.12], tickvals=[0, 0.25, 0.5, 0.75, 1])
    worst = max(realised, key=lambda r: r.deviation)
    caption = f"Every unit has exactly the requested count; rounding would allow {worst.allowed} off."
    if worst.deviation:
        caption = (
            f"The largest deviation in any unit is {words.count(worst.deviation, 'weight')} "
            f"({palette.method_style(worst.method).label}, per {worst.unit}); rounding allows {worst.allowed}."
        )
    alt = f"Grouped bars of requested and realised sparsity by method. {finding}. {caption}"
    table = pd.DataFrame(
        {
            "method": [r.method for r in realised],
            "requested": [r.requested for r in realised],
            "realised": [r.realised for r in realised],
            "unit": [r.unit for r in realised],
            "deviation": [r.deviation for r in realised],
            "allowed": [r.allowed for r in realised],
        }
    )
    return Drawing(figure, caption, alt, table)


def sparsity_strip(records: pd.DataFrame, requested: float, *, theme: Theme = "light") -> Drawing:
    """How far each layer's realised sparsity is from the requested one, in weights.

    Args:
        records: columns as in `rose.LayerRecord`.
        requested: fraction.
    """
    _some(records)
    sizes = records["rows"].to_numpy(np.int64) * records["columns"].to_numpy(np.int64)
    off = np.round(records["sparsity"].to_numpy(np.float64) * sizes) - requested * sizes
    table = records[["layer", "method", "sparsity"]].assign(requested=requested, weights=sizes, weights_off=off)
    figure = go.Figure()
    _marks_by_method(figure, records, off, "%{y:+.1f} weights from the request")
    worst = float(np.abs(off).max())
    share = worst / float(sizes[np.abs(off).argmax()])
    finding = f"No layer is more than {words.number(worst)} weights from the requested sparsity"
    style.base(
        figure,
        theme,
        finding,
        f"Weights removed beyond {words.percent(requested)} of each layer; 0 is exact, blocks round to whole weights",
        x="layer, in model order",
        y="weights too many or (−) too few",
        legend=records["method"].nunique() > 1,
    )
    limit = max(1.0, worst * 1.2)
    figure.update_yaxes(range=[-limit, limit])
    figure.update_xaxes(dtick=style.whole_step(records["layer"].nunique()), zeroline=False)
    caption = (
        f"{len(table)} results; the largest difference is {words.number(worst)} of "
        f"{words.whole(int(sizes[np.abs(off).argmax()]))} weights, or {words.number(100 * share)} %."
    )
    alt = f"Scatter chart of the difference between realised and requested sparsity by layer. {finding}. {caption}"
    return Drawing(figure, caption, alt, table)


def damping_strip(
    records: pd.DataFrame, requested: float, *, marked_layer: str | None = None, theme: Theme = "light"
) -> Drawing:
    """Damping that each layer needed, relative to the mean of diag(H), on a log axis; raised ones have another mark."""
    _some(records)
    rows = records.drop_duplicates(["layer", "damping"])
    layers = list(dict.fromkeys(records["layer"]))
    place = np.array([layers.index(layer) for layer in rows["layer"]], np.int32)
    values = rows["damping"].to_numpy(np.float64)
    raised = values > requested * 1.0001
    figure = go.Figure()
    for name, chosen, colour, symbol in (
        ("as requested", ~raised, palette.TEAL, "circle"),
        ("raised: H was singular", raised, palette.ORANGE, "triangle-up"),
    ):
        if chosen.any():
            figure.add_scatter(
                x=place[chosen],
                y=np.where(values[chosen] > 0, values[chosen], np.nan),
                customdata=rows["layer"][chosen].tolist(),
                mode="markers",
                name=name,
                marker={"color": colour, "symbol": symbol, "size": 9 if symbol == "circle" else 12},
                hovertemplate="%{customdata}<br>damping %{y:.3g} of the mean H<sub>jj</sub><extra></extra>",
            )
    if marked_layer in layers:
        figure.add_vline(x=layers.index(marked_layer), line={"color": palette.MARK, "width": 2})
    count = int(raised.sum())
    who = words.sentence(words.word(count)) if count else "None"
    finding = f"{who} of {len(layers)} layers needed more damping than requested"
    style.base(
        figure,
        theme,
        finding,
        f"Damping λ over the mean H<sub>jj</sub>, requested {words.number(requested)}; log scale, which has no 0",
        x="layer, in model order",
        y="λ / mean H<sub>jj</sub>",
        legend=True,
    )
    figure.update_xaxes(dtick=style.whole_step(len(rows)), zeroline=False)
    positive = values[values > 0]
    low, high = (positive.min(), positive.max()) if len(positive) else (1e-4, 1.0)
    figure.update_yaxes(type="log", dtick=1, exponentformat="power", range=[np.log10(low / 10), np.log10(high * 10)])
    most = rows.iloc[int(values.argmax())]
    caption = f"The most damping was {words.number(float(values.max()))}, on {words.short_layer(most['layer'])}."
    if (values == 0).any():
        caption += f" {words.sentence(words.count(int((values == 0).sum()), 'layer'))} without damping cannot be shown."
    alt = f"Scatter chart of damping by layer. {finding}. {caption}"
    return Drawing(figure, caption, alt, rows[["layer", "damping"]].assign(requested=requested, raised=raised))


def _marks_by_method(figure: go.Figure, records: pd.DataFrame, y: np.ndarray, hover: str) -> None:
    """One mark per row, layers in the order of the table."""
    layers = {layer: i for i, layer in enumerate(dict.fromkeys(records["layer"]))}
    place = records["layer"].map(layers).to_numpy(np.int32)
    for method in dict.fromkeys(records["method"]):
        look = palette.method_style(method)
        chosen = (records["method"] == method).to_numpy()
        figure.add_scatter(
            x=place[chosen],
            y=y[chosen],
            customdata=records["layer"][chosen].tolist(),
            mode="markers",
            name=look.label,
            marker={"color": look.colour, "symbol": look.symbol, "size": 8},
            hovertemplate=f"%{{customdata}}<br>{look.label} {hover}<extra></extra>",
        )


def _some(records: pd.DataFrame) -> None:
    if records.empty:
        raise RoseError("No layer has been measured yet; measure layers on the start page.")
