"""What the pages about runs draw alike: progress, how a run ended, a table to take away."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from app import components, session
from app.jobs import Run


def wait(
    run: Run,
    key: str,
    *,
    found: Callable[[], Any] = lambda: None,
    more: Callable[[], None] = lambda: None,
    every: float = 1.0,
) -> None:
    """Progress and a cancel button; the page is drawn again when the run has ended or has found something.

    Args:
        key: unique on the page.
        found: what changes then.
        more: draws what else is to be seen meanwhile.
        every: seconds between two looks.
    """
    before = found()

    def poll() -> None:
        run.job.watch(session.viewer())
        left = "" if run.remaining is None else f", about {components.duration(max(1.0, run.remaining))} left"
        st.progress(run.fraction, text=f"{run.job.message}. {components.duration(run.job.seconds)} so far{left}")
        more()
        components.cancel_button(run.job, key)
        # Last: a fragment that ends before it has drawn anything leaves a gap until the page is redrawn.
        if run.job.status != "running" or found() != before:
            st.rerun()

    components.live(poll, every)


def ended(run: Run, rest: str) -> None:
    """Why a run did not finish; `rest` ends the sentence that it was cancelled."""
    if run.job.status == "failed":
        st.error(run.job.message, icon=":material/error:")
    elif run.job.status == "cancelled":
        components.stopped(run.job, rest)


def csv_button(label: str, table: pd.DataFrame, name: str, key: str, **more: Any) -> None:
    """A table to take away; `more` is of `st.download_button`."""
    file_button(label, partial(table.to_csv, index=False), name, key=key, icon=":material/download:", **more)


def file_button(label: str, content: Any, name: str, **more: Any) -> None:
    """A file to take away; `content` may be a function, called for those who ask; `more` is of `st.download_button`."""
    st.download_button(label, content, name, on_click="ignore", **({"key": name} | more))
