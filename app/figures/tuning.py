"""Tuning: the loss on held-out windows, step by step, beside that of the start."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from app import words
from app.figures import marks, palette, style
from app.figures.palette import Style, Theme
from app.figures.style import Drawing
from rose import RoseError, verdicts

LOSSES = {"kl": "KL divergence from the dense model", "ce": "Cross-entropy"}


def tuning_curve(curve: pd.DataFrame, steps: int, *, loss: str = "kl", theme: Theme = "light") -> Drawing:
    """Loss on held-out windows after every measurement so far, with a line at the start's, and a ring at the lowest.

    Args:
        curve: step, seconds, loss (of the windows trained on, NaN at the start), held_out; see `rose.TuneReport`.
        steps: how many there will be, for which the axis has room; 0 where it is not known.
    """
    known = curve.dropna(subset=["held_out"])
    if known.empty:
        raise RoseError("No held-out window has been measured yet; tuning begins with the start's.")
    start, last = float(known["held_out"].iloc[0]), int(curve["step"].iloc[-1])
    best = known.loc[known["held_out"].idxmin()]
    end = max(steps, last, 1)
    figure = go.Figure()
    hover = "step %{x}, after %{customdata:.0f} s<br>%{y:.4g} nats a token"
    trained = curve.dropna(subset=["loss"])
    look = Style(palette.INKS[theme].muted, "windows trained on", "dot", "circle-open")
    marks.lines(figure, trained["step"], trained["loss"], look, hover, width=1.5, customdata=trained["seconds"])
    look = Style(palette.TEAL, "held-out windows")
    marks.lines(figure, known["step"], known["held_out"], look, hover, customdata=known["seconds"])
    marks.rings(figure, [best["step"]], [best["held_out"]], "kept", size=18)
    marks.level(figure, start, (0, end), "start", theme)
    figure.update_xaxes(range=[-0.02 * end, 1.02 * end], dtick=marks.whole_step(end), zeroline=False)
    top = max(start, float(known["held_out"].max()), float(trained["loss"].max()) if len(trained) else 0.0)
    figure.update_yaxes(range=[0, 1.08 * top or 1.0])
    value = words.number(float(best["held_out"]))
    after = f"after {words.whole(int(best['step']))} of {words.count(end, 'step')}" if end > 1 else "after the one step"
    finding = f"Held-out loss is {value} at the start"
    if best["step"]:
        finding = (
            f"Held-out loss is {value} {after}, {verdicts.says_change(float(best['held_out']), start, 'the start', '')}"
        )
    elif last:
        finding = f"No step so far is better than the start, {value}, on held-out windows"
    what = f"{LOSSES[loss]} in nats a token{'; the dense model itself has 0' if loss == 'kl' else ''}"
    caption = (
        f"Start {words.number(start)}, lowest {value} after step {int(best['step'])}, last "
        f"{words.number(float(known['held_out'].iloc[-1]))} after step {int(known['step'].iloc[-1])} "
        f"and {words.duration(float(known['seconds'].iloc[-1]))}."
    )
    frame = {"x": "step of training", "y": "nats a token", "legend": True, "height": 380}
    alt = "Line chart of the loss on held-out windows by step"
    return style.finish(figure, theme, finding, what, caption, alt, curve.reset_index(drop=True), **frame)
