"""Buttons that hand out tables, reports and checkpoints, behind one menu a page."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import words
from app.runs.kept_copies import size_of, zipped
from rose import RunReport
from rose.rows import csv_text

MOST_BYTES = 2 * 10**9  # that a browser is offered


def menu(key: str) -> DeltaGenerator:
    """The page's one button for files; the buttons below belong into it."""
    return st.popover("Download", icon=":material/download:", key=key)


def csv_button(label: str, table: pd.DataFrame, name: str, key: str, **widget: Any) -> None:
    """A table to take away."""
    file_button(label, partial(csv_text, table), name, key=key, **widget)


def file_button(label: str, content: Any, name: str, **widget: Any) -> None:
    """A file to take away; `content` may be a function, called on a click; `widget`: of `st.download_button`."""
    st.download_button(
        label, content, name, on_click="ignore", **({"key": name, "icon": ":material/download:"} | widget)
    )


def checkpoint_button(folder: Path, **widget: Any) -> None:
    """A kept checkpoint to take away; it is zipped on a click."""
    stored = size_of(folder)
    label = f"Checkpoint, {words.size(stored)}"
    large_button(label, partial(zipped, folder), f"{folder.name}.zip", stored, **widget)


def large_button(label: str, content: Any, name: str, stored: int, **widget: Any) -> None:
    """As `file_button`; a file above `MOST_BYTES` is not offered, because the server would hold it in memory."""
    if stored <= MOST_BYTES:
        file_button(label, content, name, **widget)
    else:
        st.caption(f"{label}: too large for a browser, so copy it from where it is kept.")


def report_button(runs: Callable[[], Sequence[RunReport]], name: str, key: str, **widget: Any) -> None:
    """Hands out records as one HTML file, named `name`; it is made on a click."""

    def make() -> str:
        from app.results import html_report  # with all figures: no page waits for them

        return html_report.to_html(html_report.report_of(runs()))

    help = "One file to send: findings, interactive figures, settings and versions. It needs no network."
    look = {"mime": "text/html", "help": help} | widget
    file_button("Report, HTML", make, f"{name}.html", key=key, **look)
