"""Can the numbers be trusted: one error measured three times, over-fitting, realised sparsity, damping."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import words
from app.figures import marks, palette, style
from app.figures.palette import Style, Theme
from app.figures.style import Drawing
from rose.layer.checks import CurvePoint, ErrorMeasures, RealisedSparsity
from rose.layer.defaults import METHOD

MEASURES = {
    "quadratic_form": Style(palette.TEAL, "tr(ΔW H ΔWᵀ), from the Hessian"),
    "sweep_sum": Style(palette.BROWN, "Σ e² − λ‖ΔW‖², from the sweep", pattern="/"),
    "direct": Style(palette.INDIGO, "‖(W − Ŵ)Xᵀ‖², on the tokens", pattern="."),
}


def error_measures(measures: Sequence[ErrorMeasures], *, layer: str = "", theme: Theme = "light") -> Drawing:
    """Three independent measurements of each method's error side by side, with how far they are apart."""
    labels = [palette.method_style(m.method).label for m in measures]
    squared = pd.DataFrame(measures).astype({"direct": float})  # NaN where no tokens were at hand
    table = squared[list(MEASURES)].div(squared["dense"].where(squared["dense"] > 0), axis=0)
    table.insert(0, "method", squared["method"])
    table["disagreement"] = [m.disagreement for m in measures]
    figure = go.Figure()
    taken = [name for name in MEASURES if table[name].notna().any()]
    for name in taken:
        hover = f"{MEASURES[name].label}<br>%{{x}}<br>%{{y:.6g}}"
        marks.bars(figure, labels, table[name], MEASURES[name], hover)
    highest = table[list(MEASURES)].max(axis=1)
    for label, top, gap in zip(labels, highest, table["disagreement"], strict=True):
        figure.add_annotation(x=label, y=top, text=f"{words.number(gap)} apart", showarrow=False, yshift=12)
    figure.update_yaxes(range=[0, float(highest.max()) * 1.15 or 1])
    worst, count = float(table["disagreement"].max()), words.word(len(taken))
    finding = f"{words.sentence(count)} measurements of the error differ by at most {words.number(worst)}"
    by_each = "by each way to measure it; above the bars: (largest − smallest) / largest"
    what = f"Relative error{words.of(layer)} {by_each}"
    caption = (
        f"The largest disagreement is {words.number(worst)} of the error, for "
        f"{labels[int(table['disagreement'].argmax())]}; float32 sums over a layer keep about five digits."
    )
    alt = f"Grouped bars of {count} measures of the error by method"
    frame = {"x": "method", "y": style.ERROR, "height": 460, "legend": True}
    return style.finish(figure, theme, finding, what, caption, alt, table, **frame)


def held_out_curve(
    points: Sequence[CurvePoint],
    *,
    method: str = METHOD,
    layer: str = "",
    theme: Theme = "light",
) -> Drawing:
    """Calibration and held-out error against the number of calibration tokens; the caption counts raised dampings."""
    table = pd.DataFrame(points).astype({"held_out_error": float}).sort_values("tokens", ignore_index=True)
    look = palette.method_style(method)
    figure = go.Figure()
    for column, series in {
        "held_out_error": Style(look.colour, "held-out tokens"),
        "calibration_error": Style(look.colour, "calibration tokens", "dash", "circle-open"),
    }.items():
        if table[column].notna().any():
            hover = f"%{{x:.0f}} tokens<br>{series.label} %{{y:.4g}}"
            marks.lines(figure, table["tokens"], table[column], series, hover, size=9)
    ticks = [words.whole(int(tokens)) for tokens in table["tokens"]]
    figure.update_xaxes(type="log", tickvals=table["tokens"].tolist(), ticktext=ticks)
    figure.update_yaxes(range=[0, float(np.nanmax(table[["calibration_error", "held_out_error"]])) * 1.08 or 1])
    finding, caption = _overfitting_words(table)
    raised = int(table["is_damping_raised"].sum())
    if raised:
        caption += f" Damping had to be raised at {words.count(raised, 'point')}."
    what = f"Relative error of {look.label}{f' on {layer}' if layer else ''} by calibration length; log scale"
    alt = f"Line chart of error against calibration tokens, up to {ticks[-1]}"
    frame = {"x": "calibration tokens", "y": style.ERROR, "legend": True}
    return style.finish(figure, theme, finding, what, caption, alt, table, **frame)


def _overfitting_words(table: pd.DataFrame) -> tuple[str, str]:
    first, last = table.iloc[0], table.iloc[-1]
    start, tokens = (words.whole(int(one["tokens"])) for one in (first, last))
    before, after = (words.number(one["held_out_error"]) for one in (first, last))
    fitted = words.number(last["calibration_error"])
    if np.isnan(last["held_out_error"]):
        finding = f"With {tokens} tokens the error on them is {fitted}"
        return finding, "Nothing was held out, so over-fitting cannot be seen."
    if len(table) == 1:
        course = f"is {after} at {tokens} tokens"
    elif before == after:
        course = f"is {after} at {start} tokens as at {tokens}"
    else:
        verb = "rises" if last["held_out_error"] > first["held_out_error"] else "falls"
        course = f"{verb} from {before} at {start} tokens to {after} at {tokens}{_against(table, verb)}"
    caption = f"Held-out error {course}; there the error on the calibration tokens is {fitted}."
    if not last["calibration_error"] > 0:
        return f"With {tokens} tokens the calibration error is 0 and the held-out error {after}", caption
    ratio = words.number(last["held_out_error"] / last["calibration_error"])
    return f"With {tokens} tokens, held-out error is {ratio} times the calibration error", caption


def _against(table: pd.DataFrame, verb: str) -> str:
    """The largest step of the held-out error against its course, where it shows in the digits; "" without one."""
    steps = table["held_out_error"].diff() * (1 if verb == "falls" else -1)
    end = int(steps.argmax())
    before, after = (words.number(table["held_out_error"][at]) for at in (end - 1, end))
    if not steps[end] > 0 or before == after:
        return ""
    way, start, tokens = "up" if verb == "falls" else "down", *(table["tokens"][at] for at in (end - 1, end))
    return (
        f", not throughout: {way} from {before} at {words.whole(int(start))} to {after} at {words.whole(int(tokens))}"
    )


def sparsity_by_method(realised: Sequence[RealisedSparsity], *, layer: str = "", theme: Theme = "light") -> Drawing:
    """Realised beside requested sparsity for each method."""
    table = pd.DataFrame(realised)[["method", "requested", "realised", "unit", "deviation", "allowed"]]
    labels = [palette.method_style(method).label for method in table["method"]]
    figure = go.Figure()
    for look in (Style(palette.SLATE, "requested", pattern="/"), Style(palette.TEAL, "realised")):
        shares = [_share(share) for share in table[look.label]]
        marks.bars(figure, labels, table[look.label], look, f"%{{x}}<br>{look.label} %{{text}}", text=shares)
    figure.update_yaxes(range=[0, 1.12], tickvals=[0, 0.25, 0.5, 0.75, 1])
    kept = sum(one.check.status == "pass" for one in realised)
    if len(realised) == 1:
        finding = f"{labels[0]} {'removed' if kept else 'did not remove'} what was requested"
    else:
        finding = f"{words.sentence(words.out_of(kept, len(realised), 'method'))} removed what was requested"
    what = f"Fraction of the weights{words.of(layer)} removed, as requested and as counted"
    worst = max(realised, key=lambda r: r.deviation)
    units = words.whole(sum(one.units for one in realised))
    caption = f"Each of {units} units has exactly the count asked for."
    if worst.deviation:
        caption = (
            f"The largest deviation in any unit is {words.count(worst.deviation, 'weight')} "
            f"({palette.method_style(worst.method).label}, per {worst.unit}); rounding allows {worst.allowed}."
        )
    caption += _rounded(realised)
    alt = "Grouped bars of requested and realised sparsity by method"
    frame = {"x": "method", "y": "sparsity (fraction removed)", "legend": True}
    return style.finish(figure, theme, finding, what, caption, alt, table, **frame)


def _rounded(realised: Sequence[RealisedSparsity]) -> str:
    """Why a share is not the one asked for although every count is: of the method furthest from it."""
    kept = [one for one in realised if not one.deviation and _share(one.realised) != _share(one.requested)]
    if not kept:
        return ""
    one = max(kept, key=lambda one: abs(one.realised - one.requested))
    count, weights = map(words.whole, one.of_unit)
    label, asked = palette.method_style(one.method).label, _share(one.requested)
    return f" {label}: {count} of {weights} weights a {one.unit} is the whole number nearest to {asked}."


def _share(share: float) -> str:
    return f"{100 * share:.3f}".rstrip("0").rstrip(".") + " %"


def damping_strip(
    records: pd.DataFrame, requested: float, *, marked_layer: str | None = None, theme: Theme = "light"
) -> Drawing:
    """Damping that each layer needed, relative to the mean of diag(H), on a log axis; raised ones have another mark."""
    rows = records.assign(place=pd.factorize(records["layer"])[0]).drop_duplicates(["layer", "damping"])
    rows = rows[["layer", "damping", "place"]].assign(requested=requested, raised=rows["is_damping_raised"])
    values = rows["damping"].to_numpy(np.float64)
    figure = go.Figure()
    looks = (Style(palette.TEAL, "not raised"), Style(palette.ORANGE, "raised: H was singular", symbol="triangle-up"))
    for look, chosen in zip(looks, (rows[~rows["raised"]], rows[rows["raised"]]), strict=True):
        if len(chosen):
            damping = chosen["damping"].where(chosen["damping"] > 0)
            hover = "%{customdata}<br>damping %{y:.3g} of the mean H<sub>jj</sub>"
            size = 9 if look.symbol == "circle" else 12
            marks.points(figure, chosen["place"], damping, look, hover, size=size, customdata=chosen["layer"])
    for place in rows.loc[rows["layer"] == marked_layer, "place"].head(1):
        figure.add_vline(x=place, line=marks.CHOSEN)
    positive = values[values > 0]
    low, high = (positive.min(), positive.max()) if len(positive) else (1e-4, 1.0)
    figure.update_xaxes(dtick=marks.whole_step(len(rows)), zeroline=False)
    figure.update_yaxes(**style.LOG, range=[np.log10(low / 10), np.log10(high * 10)])
    raised = words.out_of(int(rows["raised"].sum()), rows["layer"].nunique(), "layer")
    finding = f"{words.sentence(raised)} needed more damping than requested"
    what = f"Damping λ over the mean H<sub>jj</sub>, requested {words.number(requested)}; log scale, which has no 0"
    most = rows.iloc[int(values.argmax())]
    caption = f"The most damping was {words.number(float(values.max()))}, on {words.short_layer(most['layer'])}."
    if (values == 0).any():
        caption += f" {words.sentence(words.count(int((values == 0).sum()), 'layer'))} without damping cannot be shown."
    frame = {"x": "layer, in model order", "y": "λ / mean H<sub>jj</sub>", "legend": True}
    table = rows.drop(columns="place")
    return style.finish(figure, theme, finding, what, caption, "Scatter chart of damping by layer", table, **frame)
