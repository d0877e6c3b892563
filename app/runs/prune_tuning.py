"""The Prune page: tuning of a kept copy, from its cost to what it changed."""

import streamlit as st

from app import components, session, shared, words
from app.figures import overview
from app.figures.tuning import tuning_curve
from app.runs import tuning
from app.runs.pruning import PruningRun
from app.runs.tuning import MINUTES, TuneRequest, TuningRun
from app.runs.widgets import follow, linked, start_button
from rose import RoseError

MOST_MINUTES = 24 * 60.0


def draw(run: PruningRun) -> None:
    """Nothing where no copy can be tuned: none is kept, or more are still pruned."""
    copies = tuning.offered(run)
    if run.job.status == "running" or not (copies or run.tuning):
        return
    with st.container(border=True, key="prune-tune"):
        st.subheader("Tune what is left", anchor=False)
        st.markdown(
            "Pruning compensates inside a layer. Tuning trains the kept weights of all layers together, towards the "
            "next-token distributions of the dense model; every zero stays."
        )
        if copies:
            _offer(run, list(copies))
        if run.tuning is not None:
            _follow(run.tuning)


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
    running, icon = run.is_tuning, ":material/model_training:"
    label = f"Tune for {minutes:g} {'minute' if minutes == 1 else 'minutes'}"
    place = start_button(label, "tune-start", _start, run, request, problem=problem, running=running, icon=icon)
    if not problem:
        text = f"{words.plain(words.text_name(run.setup.text))}, {tuning.length_of(run.setup)} tokens each"
        place.caption(
            f"{cost}: {words.plain(asked)}, trained on up to {tuning.SAMPLES} windows of {text}, none of which "
            "perplexity is measured on. Further windows decide which step is kept."
        )


def _start(run: PruningRun, request: TuneRequest) -> None:
    session.start_tuning(run, request)


def _follow(run: TuningRun) -> None:
    rest = f" before the first measurement after a step; {words.plain(run.source.label)} stays as it was."
    follow(run, "tune", rest, more=lambda: _curve(run))
    if run.found is None:
        return
    st.markdown(f"**{words.plain(run.source.label)}.** {words.plain(tuning.says(run))}")
    if run.job.abandoned:
        st.caption("No page had been open, so tuning was stopped; the best so far is kept.")
    _curve(run)
    if run.copy is None:
        return
    if run.copy.checkpoint is None:
        st.caption("There was too little room to keep its checkpoint.")
    with st.expander("How far each layer moved", key="tune-moved", on_change="rerun") as shown:
        if shown.open:
            drawing = overview.model_map(
                tuning.moved(run), "change", marked_layer=session.layer(), theme=session.theme()
            )
            components.show(drawing, "tune-moved-figure", wide=True)


def _curve(run: TuningRun) -> None:
    if len(run.curve):
        drawing = tuning_curve(run.curve, run.steps, dense=run.dense, theme=session.theme())
        components.show(drawing, "tune-curve", wide=True)
