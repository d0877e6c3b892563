"""Sentences in a box. Whatever they quote, a link, a file or an exception, stays text: see `words.plain`."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import words


def error(text: object, icon: str = ":material/error:") -> None:
    st.error(words.plain(text), icon=icon)


def warning(text: object, icon: str = ":material/warning:") -> None:
    st.warning(words.plain(text), icon=icon)


def info(text: object, icon: str | None = None, **more: Any) -> None:
    st.info(words.plain(text), icon=icon, **more)
