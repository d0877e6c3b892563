"""Work in progress: live parts of a page, how far a job is, and how to cancel it."""

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from app import session, shared, words
from app.components.said import error, info, warning
from app.jobs import ABANDONED_AFTER, Job, Run, SerialRun
from app.words import duration
from rose.model.estimate.duration import Cost

KEPT = ". Layers measured so far are shown; nothing was changed."
UNASKED = 15.0  # seconds of work that a page begins by itself
PATIENCE = 1.5  # seconds a page waits for a batch before it shows progress instead


def live(draw: Callable[[], None], every: float | None) -> None:
    """A part of the page that is redrawn every few seconds, or, for None, by its own widgets only.

    It has a container to itself. When its redraw follows a redraw of the whole page at once, Streamlit (1.67) drops
    what the page has sent for it: the elements that follow would move up by one place, and the redraw would then
    overwrite the first of them.

    What it draws from may have been given back since: then the whole page is drawn anew, which brings it back.
    """
    whole = shared.seen()

    def again() -> None:
        if shared.seen() != whole:
            st.rerun()
        draw()

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


def job_status(job: Job, key: str, rest: str = KEPT, doing: str = "") -> None:
    """Progress with rate and time left, and a cancel button; to be drawn by a live part.

    `rest` is for `ended`; `doing` says what it does where that is not measuring.
    """
    if job.status == "running":
        job.watch(session.viewer())
        progress = job.progress
        if progress is None:
            how_far(job, 0.0, f"{words.plain(job.message)} …, {duration(job.seconds)} so far", key)
        else:
            since = job.since_progress  # a large block takes long; the clock must not stand still meanwhile
            left = "" if progress.remaining is None else f", about {duration(max(1, progress.remaining - since))} left"
            where = f"decoder block {progress.block_index} (0 to {progress.blocks - 1})"
            where = f"{doing}, {where}" if doing else where.capitalize()
            rate = ""
            if progress.layers_done and progress.seconds:
                rate = f", {progress.layers_done / progress.seconds:.1f} layers a second"
            text = f"{where}, {duration(job.seconds)} so far{left}{rate}"
            how_far(job, progress.fraction, text, key)
    else:
        ended(job, rest)


def ended(job: Job, rest: str) -> None:
    """Why a job did not finish: it failed, or was cancelled, by somebody or because nobody watched it; `rest` ends the
    sentence on that."""
    if job.status == "failed":
        error(job.message)
    elif job.status == "cancelled":
        unwatched = f"No page had been open for {ABANDONED_AFTER:.0f} s, so this was stopped"
        warning((unwatched if job.abandoned else "Cancelled") + rest, ":material/stop:")


def may_begin(seconds: float, reason: str, verb: str, key: str, signature: object) -> bool:
    """Whether work of this length may begin: long work waits for a button.

    `verb` begins the button's label; another signature needs another press.
    """
    slot = f"{key}-asked"
    if seconds <= UNASKED or st.session_state.get(slot) == signature:
        return True
    info(reason)
    st.button(
        f"{verb}, about {duration(seconds)}",
        type="primary",
        icon=":material/play_arrow:",
        key=f"{key}-begin",
        on_click=lambda: st.session_state.update({slot: signature}),
    )
    return False


def finished(pieces: Sequence[Callable[[], Any]], key: str, signature: object, noun: str = "sweep") -> bool:
    """Runs the pieces in the background and says whether all are finished; draws progress where not.

    What the pieces return must be remembered elsewhere: nothing is run again for the same signature only because
    the page is drawn again. `noun` is what one piece makes.
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
        batch = SerialRun(pieces)
        started = batch  # for the sidebar, which outlives this run of the page
        session.follow(started.job, lambda: f":material/swap_vert: {_done(started, noun)}")
        st.session_state[slot] = (signature, batch)
        batch.job.start().wait(PATIENCE)
    if batch.job.status == "done":
        del st.session_state[slot]
        return True
    _progress(batch, key, slot, noun)
    return False


def _done(batch: SerialRun, noun: str) -> str:
    return f"{batch.done} of {batch.total} {noun if batch.total == 1 else noun + 's'} done"


def _progress(batch: SerialRun, key: str, slot: str, noun: str) -> None:
    running = batch.job.status == "running"

    def poll() -> None:
        job = batch.job
        if job.status == "running":
            job.watch(session.viewer())
            left = "" if batch.remaining is None else f", about {duration(batch.remaining)} left"
            how_far(job, batch.done / batch.total, f"{_done(batch, noun)}{left}", key)
            return
        if running:
            st.rerun()
        ended(job, f" after {_done(batch, noun)}; finished ones are kept.")
        if st.button("Run the rest", key=f"{key}-again", icon=":material/refresh:"):
            del st.session_state[slot]
            st.rerun()

    live(poll, 0.5 if running else None)


def how_far(
    job: Job, fraction: float, text: str, key: str, label: str = "Cancel", cancel: Callable[[], None] | None = None
) -> None:
    """A running job's progress, a text that gives way to "Cancelling" in every session, and a button to cancel it.

    By a callback, which runs before anything else does: a fragment's next poll may interrupt the run that a click has
    started, and an `if st.button` further down would never see the click.
    """
    st.progress(min(fraction, 1.0), text="Cancelling …" if job.is_cancelled else text)
    if job.is_cancelled:  # it stops once the step at work is done
        st.button("Cancelling …", key=f"{key}-stopping", icon=":material/hourglass_top:", disabled=True)
    else:
        st.button(label, key=f"{key}-cancel", icon=":material/stop:", on_click=_cancel, args=(job, cancel or job.stop))


def _cancel(job: Job, stop: Callable[[], None]) -> None:
    if job.may_stop(session.viewer()):
        stop()
    else:
        st.toast("Others watch this too, so it goes on for them.", icon=":material/group:")


def lasting(cost: Cost) -> str:
    return duration(max(1.0, cost.seconds))


def progress(run: Run, key: str) -> None:
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
    how_far(job, run.fraction, text, key, run.CANCEL, run.cancel)


def follow(
    run: Run,
    key: str,
    rest: str,
    *,
    state: Callable[[], Any] = lambda: None,
    extra: Callable[[], None] = lambda: None,
    every: float = 1.0,
) -> None:
    """Shows progress and what `more` draws, or why a run did not finish, in a sentence that `rest` ends.

    Draws the page again when it has ended, or when what `found` gives has changed.
    """
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
