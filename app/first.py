"""The first pictures of a server that has just started. They are the example's and ship with the app.

Torch, transformers and the model take seconds to read. Until then the pages about layers show what they will show of
the example, from a file that `python -m tests.benchmarks.example_study first` makes. Nothing here imports torch.
"""

from __future__ import annotations

import gzip
import json
import threading
from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st

FILE = Path(__file__).with_name("first.json.gz")
PAGES = ("layers", "layer", "order_lab")
drawn = threading.Event()  # once a page has sent what it has, the server reads its modules
ready = threading.Event()  # they are read


@cache
def pictures() -> dict[str, Any]:
    """Title of each page, and its pictures by theme, page and layer; nothing where the file is damaged."""
    try:
        return json.loads(gzip.decompress(FILE.read_bytes()))
    except (OSError, EOFError, ValueError):
        return {}


def draw(page: str, query: dict[str, str]) -> None:
    """Shows a page's pictures of the example, where that is what the address asks for; returns at once otherwise."""
    if page in PAGES and set(query) <= {"layer"}:
        stored = pictures()
        layer = query.get("layer", stored.get("layer", ""))
        theme = "dark" if st.context.theme.type == "dark" else "light"
        drawings = stored.get(theme, {}).get(page if page == "layers" else f"{page} {layer}", [])
        if drawings:
            st.title(stored["titles"][page])
            places = st.columns([1.3, 1]) if len(drawings) == 2 else [st.container()]
            for place, drawing in zip(places, drawings, strict=True):
                with place:
                    show(drawing)
    drawn.set()


def of_layer(page: str, layer: str, theme: str) -> None:
    """The picture of an example layer, while its inputs are read."""
    for drawing in pictures().get(theme, {}).get(f"{page} {layer}", []):
        show(drawing)


def show(picture: dict[str, Any]) -> None:
    st.html(f'<div class="figure-title"><b>{picture["finding"]}</b><span>{picture["what"]}</span></div>')
    st.plotly_chart(picture["figure"], theme=None, alt=picture["alt"], config={"displayModeBar": False})
