"""Sentences in a box. Whatever they quote, a link, a file or an exception, stays text: see `words.plain`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from app import words

SHORT = 200  # characters of cautions that are shown unfolded


def error(text: object, icon: str = ":material/error:") -> None:
    st.error(words.plain(text), icon=icon)


def warning(text: object, icon: str = ":material/warning:") -> None:
    st.warning(words.plain(text), icon=icon)


def info(text: object, icon: str | None = None, **options: Any) -> None:
    st.info(words.plain(text), icon=icon, **options)


def success(text: object, icon: str | None = None) -> None:
    st.success(words.plain(text), icon=icon)


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
