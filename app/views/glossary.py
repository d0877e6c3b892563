"""Glossary: the words of the pages, from `app/glossary.md`."""

import re

import streamlit as st

from app import glossary


def draw() -> None:
    # Links lead to documents beside the app, which a browser does not have.
    text = re.sub(r"\[(.+?)\]\((?!http).+?\)", r"\1", glossary.FILE.read_text(encoding="utf-8"))
    title, _, entries = text.partition("\n\n")
    st.title(title.removeprefix("# "))
    for column, part in zip(st.columns(2, gap="large"), _halves(entries), strict=True):
        column.markdown(part)


def _halves(text: str) -> tuple[str, str]:
    entries = text.split("\n\n")
    middle = -(-len(entries) // 2)
    return "\n\n".join(entries[:middle]), "\n\n".join(entries[middle:])


draw()
