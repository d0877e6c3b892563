"""Sentences in a box, whose quotations stay text, and work in progress: live parts, how far a job is, how to cancel."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import streamlit as st

from app import session, shared, words
from app.jobs import ABANDONED_AFTER, GivenBack, Job, Run, SerialRun
from app.words import duration
from rose.model.estimate import Cost

KEPT = ". Layers measured so far are shown; nothing was changed."
UNASKED = 15.0  # seconds of work that a page begins by itself
PATIENCE = 1.5  # seconds a page waits for a batch before it shows progress instead
SHORT = 200  # characters of cautions that are shown unfolded


def _box(kind: str, usual: str | None, text: object, icon: str | None = None, **options: Any) -> None:
    getattr(st, kind)(words.plain(text), icon=icon or usual, **options)


error = partial(_box, "error", ":material/error:")
warning = partial(_box, "warning", ":material/warning:")
info, success = partial(_box, "info", None), partial(_box, "success", None)


def cautions(sentences: Sequence[str]) -> None:
    """How far the numbers above can be trusted; long cautions are folded behind their number."""
    text = " ".join(sentences)
    if len(text) <= SHORT:
        if text:
            st.caption(f":material/warning: {words.plain(text)}")
        return
    with st.expander(
        f"{words.sentence(words.count(len(sentences), 'caution'))} on these numbers", icon=":material/warning:"
    ):
        st.markdown("\n".join(f"- {words.plain(sentence)}" for sentence in sentences))


def live(draw: Callable[[], None], every: float | None) -> None:
    """A part of the page that is redrawn every few seconds, or, for None, by its own widgets only.

    It has a container to itself. If its redraw follows a redraw of the whole page at once, Streamlit (1.67) drops the
    page's elements of this part. The redraw would then overwrite the element that follows.
    """
    whole = shared.seen()

    def again() -> None:
        if shared.seen() != whole:  # memory was given back: the whole page brings it back
            st.rerun()
        try:
            draw()
        except GivenBack:
            st.rerun()

    with st.container():
        st.fragment(again, run_every=every)()


def while_running(job: Job, draw: Callable[[], None], every: float = 1.0) -> None:
    """Draws a part of the page again and again while a job runs, and the whole page once it has ended."""

    def poll() -> None:
        draw()
        # Last: a fragment that ends before it has drawn anything leaves a gap until the page is redrawn.
        if job.status != "running":
            st.rerun()

    live(poll, every)


def ended(job: Job, rest: str) -> None:
    """Why a job did not finish; `rest` ends the sentence on a cancelled job."""
    if job.status == "failed":
        error(job.message)
    elif job.status == "cancelled":
        unwatched = f"No page had been open for {ABANDONED_AFTER:.0f} s, so this was stopped"
        warning((unwatched if job.abandoned else "Cancelled") + rest, ":material/stop:")


def may_begin(seconds: float, reason: str, verb: str, key: str, signature: object) -> bool:
    """Whether work of this length may begin: long work waits for a button, again for another signature."""
    slot = f"{key}-asked"
    if seconds <= UNASKED or st.session_state.get(slot) == signature:
        return True
    info(reason)
    begin: dict[str, Any] = {"on_click": lambda: st.session_state.update({slot: signature}), "key": f"{key}-begin"}
    st.button(f"{verb}, about {duration(seconds)}", type="primary", icon=":material/play_arrow:", **begin)
    return False


def finished(pieces: Sequence[Callable[[], Any]], key: str, signature: object, noun: str = "sweep") -> bool:
    """Runs the pieces in the background and says whether all are finished; draws progress where not.

    The pieces remember their results elsewhere; they run once for a signature. `noun` is what one piece makes.
    """
    slot = f"{key}-batch"
    former, batch = st.session_state.get(slot, (None, None))
    if batch is not None and former != signature:
        session.leave(batch.job)
        del st.session_state[slot]  # or whoever comes back to the former signature would be told of its end
        batch = None
    if batch is None:
        if not pieces:
            return True
        batch = SerialRun(pieces, noun)
        session.follow(batch, f"swap_vert: {noun.capitalize()}")
        st.session_state[slot] = (signature, batch)
        batch.job.start().wait(PATIENCE)
    if batch.job.status == "running":
        while_running(batch.job, partial(progress, batch, key), 0.5)
        return False
    if batch.job.status == "done":
        del st.session_state[slot]
        return True
    ended(batch.job, f" after {batch.job.message}; finished ones are kept.")
    if st.button("Run the rest", key=f"{key}-again", icon=":material/refresh:"):
        del st.session_state[slot]
        st.rerun()
    return False


def _cancel(run: Run) -> None:
    if run.job.may_stop(session.viewer()):
        run.cancel()
    else:
        st.toast("Others watch this too, so it goes on for them.", icon=":material/group:")


def progress(run: Run, key: str) -> None:
    """A run's progress, a text that gives way to "Cancelling" in every session, and a button to cancel it.

    The button has a callback: a fragment's next poll may interrupt the run that a click has started, and an
    `if st.button` would never see the click.
    """
    job = run.job
    job.watch(session.viewer())
    step, done, rate = job.progress, "", ""
    if step is not None:
        done = f", {step.layers_done} of {step.layers}{run.UNIT}"
        if step.layers_done and step.seconds:
            each = step.seconds / step.layers_done
            rate = f", {1 / each:.2g} a second" if each < 10 else f", {duration(each)} each"
    left = "" if run.remaining is None else f", about {duration(max(1.0, run.remaining))} left"
    text = f"{words.plain(job.message)}{done}. {duration(job.seconds)} so far{left}{rate}"
    st.progress(min(run.fraction, 1.0), text="Cancelling …" if job.is_cancelled else text)
    if job.is_cancelled:  # it stops once the step at work is done
        st.button("Cancelling …", key=f"{key}-stopping", icon=":material/hourglass_top:", disabled=True)
    else:
        st.button(run.CANCEL, key=f"{key}-cancel", icon=":material/stop:", on_click=_cancel, args=(run,))


def lasting(cost: Cost) -> str:
    return duration(max(1.0, cost.seconds))


def follow(
    run: Run,
    key: str,
    rest: str,
    *,
    state: Callable[[], Any] = lambda: None,
    extra: Callable[[], None] = lambda: None,
    every: float = 1.0,
) -> None:
    """Shows progress and draws `extra`, or says why a run did not finish; a changed `state` draws the page again."""
    if run.job.status != "running":
        ended(run.job, rest)
        return
    before = state()

    def poll() -> None:
        progress(run, key)
        extra()
        if state() != before:
            st.rerun()

    while_running(run.job, poll, every)
