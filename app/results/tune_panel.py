"""Tuning of a kept copy, from its cost to what it changed: below the results of Prune, and of a smaller copy."""

import streamlit as st
from torch import nn

from app import components, session, shared, words
from app.components.work import follow
from app.figures import maps
from app.figures.methods import tuning_curve
from app.forms.widgets import linked, start_button
from app.runs import tuning
from app.runs.pruning import PruningRun
from app.runs.slimming import Slimming
from app.runs.tuning import MINUTES, SlimTuning, TuneRequest, Tuning, TuningRun
from rose import RoseError
from rose.model.load.tokens import tuning_draw

MOST_MINUTES = 24 * 60.0
ICON = ":material/model_training:"


def draw(run: PruningRun) -> None:
    """Nothing where no copy can be tuned: none is kept, or more are still pruned."""
    copies, rounded = tuning.offered(run), tuning.rounded(run)
    if run.job.status == "running" or not (copies or rounded or run.tuning):
        return
    with st.container(border=True, key="prune-tune"):
        st.subheader("Tune what is left", anchor=False)
        st.markdown(
            "Pruning compensates inside a layer. Tuning trains the kept weights of all layers together, towards the "
            "next-token distributions of the dense model; every zero stays."
        )
        if rounded:
            st.caption(
                f"Not offered: {words.plain(words.listing(rounded))}. Tuning would move rounded weights off their "
                "grid; tune a copy without bits, and round that one then: `rose prune --sparsity 0 --bits 4` keeps "
                "its zeros."
            )
        if copies:
            _offer(run, list(copies))
        if isinstance(run.tuning, TuningRun):
            _follow_pruned(run.tuning)


def draw_slim(run: Slimming, model: nn.Module) -> None:
    """Below the results of a smaller copy of this model."""
    with st.container(border=True, key="slim-tune"):
        st.subheader("Tune what is left", anchor=False)
        st.markdown(
            "Tuning trains what is left, all layers together, towards the next-token distributions of the dense model; "
            "the smaller model keeps its size."
        )
        minutes = st.number_input(
            "Minutes", 0.1, MOST_MINUTES, MINUTES, 1.0, format="%g", width=200, **linked("slim_tune_minutes")
        )
        memory = tuning.tuned_memory(run.setup, model)
        place = start_button(
            _label(minutes),
            "slim-tune-start",
            session.start_slim_tuning,
            run,
            minutes,
            running=run.is_tuning,
            icon=ICON,
        )
        place.caption(f"Up to {words.size(memory)} besides two models. {_trained_on(run, 'It is trained')}")
        if isinstance(run.tuning, SlimTuning) and _follow(run.tuning, "slim-tune"):
            st.markdown(f"**{words.plain(run.tuning.label)}.** {words.plain(tuning.says_slim(run.tuning))}")
            _curve(run.tuning)


def _label(minutes: float) -> str:
    return f"Tune for {minutes:g} {'minute' if minutes == 1 else 'minutes'}"


def _trained_on(run: PruningRun | Slimming, what: str) -> str:
    draw = tuning_draw(run.setup.length)
    text = f"{words.plain(words.text_name(run.setup.text))}, {draw.length} tokens each"
    return (
        f"{what} on up to {draw.samples} windows of {text}, none of which perplexity is measured on. Further windows "
        "decide which step is kept; the curve is on those, so not comparable with perplexity above."
    )


def _offer(run: PruningRun, copies: list[str]) -> None:
    left, right = st.columns([1, 3], vertical_alignment="bottom")
    minutes = left.number_input("Minutes", 0.1, MOST_MINUTES, MINUTES, 1.0, format="%g", **linked("tune_minutes"))
    if st.session_state.get("tune_copy") not in (None, *copies):
        del st.session_state["tune_copy"]
    asked = copies[0]
    if len(copies) > 1:
        asked = right.selectbox("Copy", copies, format_func=words.plain, **linked("tune_copy"))
    request, problem, cost = TuneRequest(asked, minutes), "", ""
    try:
        seconds, memory = request.estimate(run, shared.skeleton(run.setup.model))
        cost = f"About {words.duration(seconds)} with evaluation, and {words.size(memory)} besides two models"
    except RoseError as wrong:
        problem = str(wrong)
    place = start_button(
        _label(minutes),
        "tune-start",
        session.start_tuning,
        run,
        request,
        problem=problem,
        running=run.is_tuning,
        icon=ICON,
    )
    if not problem:
        place.caption(_trained_on(run, f"{cost}: {words.plain(asked)}, trained"))


def _follow(run: Tuning, key: str) -> bool:
    """Shows progress with the curve; whether it has ended and found something."""
    rest = f" before the first measurement after a step; {words.plain(run.label)} stays as it was."
    follow(run, key, rest, more=lambda: _curve(run))
    return run.found is not None


def _follow_pruned(run: TuningRun) -> None:
    if not _follow(run, "tune"):
        return
    st.markdown(f"**{words.plain(run.source.name)}.** {words.plain(tuning.says(run))}")
    if run.job.abandoned:
        st.caption("No page had been open, so tuning was stopped; the best so far is kept.")
    _curve(run)
    if run.copy is None:
        return
    if run.run.kept(run.copy) is None:
        st.caption("There was too little room to keep its checkpoint.")
    with st.expander("How far each layer moved", key="tune-moved", on_change="rerun") as shown:
        if shown.open:
            drawing = maps.model_map(tuning.moved(run), "change", marked_layer=session.layer(), theme=session.theme())
            components.show(drawing, "tune-moved-figure", wide=True)


def _curve(run: Tuning) -> None:
    if len(run.curve):
        drawing = tuning_curve(run.curve, run.steps, dense=run.dense, theme=session.theme())
        components.show(drawing, "tune-curve", wide=True)
