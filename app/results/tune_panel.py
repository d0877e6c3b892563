"""Tuning of a kept copy: cost, progress and effect, below the results of Prune and of a smaller copy."""

from collections.abc import Callable

import streamlit as st
from torch import nn

from app import components, session, words
from app.components.work import follow
from app.figures import maps
from app.figures.methods import tuning_curve
from app.forms.widgets import linked, start_button
from app.runs.copies import MINUTES, CopyRun, Tuning, tuned_memory
from app.runs.pruning import PruningRun
from rose import RoseError
from rose.model.load.tokens import tuning_draw

MOST_MINUTES = 24 * 60.0
MEANING = {
    True: "Pruning compensates inside a layer. Tuning trains the kept weights of all layers together, towards the "
    "next-token distributions of the dense model; every zero stays.",
    False: "Tuning trains what is left, all layers together, towards the next-token distributions of the dense model; "
    "the smaller model keeps its size.",
}  # of tuning, by whether the copy is pruned


def draw(run: CopyRun, model: Callable[[], nn.Module]) -> None:
    """Draws nothing where no copy can be tuned; `model` gives the dense model, or its skeleton."""
    copies, rounded = list(run.tunable), [copy.name for copy in run.untuned if copy.bits is not None]
    if run.job.status == "running" or not (copies or rounded or run.tuning):
        return
    prefix = "" if isinstance(run, PruningRun) else "slim_"
    with st.container(border=True, key="slim-tune" if prefix else "prune-tune"):
        st.subheader("Tune what is left", anchor=False)
        st.markdown(MEANING[not prefix])
        if rounded:
            st.caption(
                f"Not offered: {words.plain(words.listing(rounded))}. Tuning would move rounded weights off their "
                "grid; tune a copy without bits, and round that one then: `rose prune --sparsity 0 --bits 4` keeps "
                "its zeros."
            )
        if copies:
            _offer(run, copies, model, prefix)
        if run.tuning is not None:
            _follow(run.tuning, prefix)


def _offer(run: CopyRun, copies: list[str], model: Callable[[], nn.Module], prefix: str) -> None:
    left, right = st.columns([1, 3], vertical_alignment="bottom")
    minutes = left.number_input(
        "Minutes", 0.1, MOST_MINUTES, MINUTES, 1.0, format="%g", **linked(f"{prefix}tune_minutes")
    )
    if st.session_state.get("tune_copy") not in (None, *copies):
        del st.session_state["tune_copy"]
    name = copies[0]
    if len(copies) > 1:
        name = right.selectbox("Copy", copies, format_func=words.plain, **linked("tune_copy"))
    problem, cost = "", ""
    try:
        cost = f"{words.size(tuned_memory(run.setup, model()))} besides two models"
        if isinstance(run, PruningRun):
            seconds = 60 * minutes + run.request.evaluation_seconds(model())
            cost = f"About {words.duration(seconds)} with evaluation, and {cost}: {words.plain(name)}, trained"
        else:
            cost = f"Up to {cost}. It is trained"
    except RoseError as refused:
        problem = str(refused)
    place = start_button(
        f"Tune for {minutes:g} {'minute' if minutes == 1 else 'minutes'}",
        f"{prefix}tune-start".replace("_", "-"),
        session.start_tuning,
        run,
        name,
        minutes,
        problem=problem,
        running=run.is_tuning,
        icon=":material/model_training:",
    )
    if not problem and not run.is_tuning:  # which tells its own time
        windows = tuning_draw(run.setup.length)
        text = f"{words.plain(words.text_name(run.setup.text))}, {windows.length} tokens each"
        place.caption(
            f"{cost} on up to {windows.samples} windows of {text}, none of which perplexity is measured on. Further "
            "windows decide which step is kept; the curve is on those, so not comparable with perplexity above."
        )


def _follow(tuning: Tuning, prefix: str) -> None:
    """Progress with the curve, then the effect of tuning."""

    def curve() -> None:
        if len(tuning.curve):
            drawing = tuning_curve(tuning.curve, tuning.steps, dense=tuning.dense, theme=session.theme())
            components.show(drawing, "tune-curve")

    rest = f" before the first measurement after a step; {words.plain(tuning.source.name)} stays as it was."
    follow(tuning, "slim-tune" if prefix else "tune", rest, extra=curve)
    if tuning.report is None:
        return
    st.markdown(f"**{words.plain(tuning.source.name)}.** {words.plain(tuning.says())}")
    if tuning.job.abandoned:
        st.caption("No page had been open, so tuning was stopped; the best so far is kept.")
    curve()
    if tuning.copy is None:
        return
    if tuning.run.kept(tuning.copy) is None:
        st.caption("There was too little room to keep its checkpoint.")
    if prefix:  # layers of a smaller copy are parts
        return
    with st.expander("How far each layer moved", key="tune-moved", on_change="rerun") as shown:
        if shown.open:
            layer, theme = session.layer(), session.theme()
            drawing = maps.model_map(tuning.copy.by_layer, "change", marked_layer=layer, theme=theme)
            components.show(drawing, "tune-moved-figure")
