"""Tuning: perplexity on held-out windows, step by step, between the start's and the dense model's."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import words
from app.figures import marks, palette, style
from app.figures.palette import Style, Theme
from app.figures.style import Drawing
from rose import RoseError, verdicts


def tuning_curve(curve: pd.DataFrame, steps: int, *, dense: float | None, theme: Theme = "light") -> Drawing:
    """Perplexity on held-out windows after every measurement so far, with a ring at the lowest.

    Args:
        curve: step, seconds, held_out (loss of next tokens, nats a token); see `rose.TuneReport`.
        steps: how many there will be, for which the axis has room; 0 where it is not known.
        dense: that loss of the dense model, once it is known.
    """
    known = curve.dropna(subset=["held_out"])
    if known.empty:
        raise RoseError("No held-out window has been measured yet; tuning begins with the start's.")
    known = known.assign(perplexity=np.exp(known["held_out"]))
    start, last = known.iloc[0]["perplexity"], known.iloc[-1]
    best = known.loc[known["held_out"].idxmin()]
    end = max(steps, int(last["step"]), 1)
    figure = go.Figure()
    hover = "step %{x}, after %{customdata:.0f} s<br>perplexity %{y:.4g}"
    look = Style(palette.TEAL, "held-out windows")
    marks.lines(figure, known["step"], known["perplexity"], look, hover, customdata=known["seconds"])
    marks.rings(figure, [best["step"]], [best["perplexity"]], "kept", size=18)
    marks.level(figure, start, (0, end), "start", theme)
    whole = None if dense is None else float(np.exp(dense))
    if whole is not None:
        marks.level(figure, whole, (0, end), "dense", theme, dash="dot")
    figure.update_xaxes(range=[-0.02 * end, 1.02 * end], dtick=marks.whole_step(end), zeroline=False)
    # From the dense model up: what tuning can win back lies between the two lines.
    low, high = min(known["perplexity"].min(), whole or start), known["perplexity"].max()
    room = 0.1 * (high - low) or 0.1 * high
    figure.update_yaxes(range=[low - room, high + room])
    beside = "" if whole is None else f"; the dense model has {words.number(whole)}"
    value, step = words.number(best["perplexity"]), int(best["step"])
    if step:
        after = f"after {words.whole(step)} of {words.count(end, 'step')}" if end > 1 else "after the one step"
        finding = f"Held-out perplexity is {value} {after}, "
        finding += verdicts.says_change(best["perplexity"], start, "the start", "") + beside
    elif last["step"]:
        so_far = " so far" if last["step"] < end else ""
        finding = f"No step{so_far} is better than the start, {value}, on held-out windows{beside}"
    else:
        finding = f"Held-out perplexity is {value} at the start{beside}"
    caption = (
        f"Start {words.number(start)}, lowest {value} after step {step}, last {words.number(last['perplexity'])} "
        f"after step {int(last['step'])} and {words.duration(last['seconds'])}."
    )
    what = "Held-out windows; the step with the lowest perplexity on them is kept; the axis does not begin at 0"
    frame = {"x": "step of training", "y": "perplexity", "legend": True, "height": 380}
    alt = "Line chart of perplexity on held-out windows by step"
    return style.finish(figure, theme, finding, what, caption, alt, known.reset_index(drop=True), **frame)
