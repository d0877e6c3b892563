"""The first pictures of a server that has just started. They are the example's and ship with the app.

Torch, transformers and the model take seconds to read. Until then the pages about layers show what they will show of
the example, from a file that `python -m tests.benchmarks.example_study first` makes. Nothing here imports torch.
"""

from __future__ import annotations

import base64
import gzip
import json
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st

FILE = Path(__file__).with_name("first.json.gz")
# By page: pixels that its choices will take, above the pictures, and the widths of its columns.
SIDE_BY_SIDE = [1.3, 1.0]
PAGES = {"": (164, [5.0, 1.6]), "layers": (136, SIDE_BY_SIDE), "layer": (98, [1.0]), "order_lab": (98, SIDE_BY_SIDE)}
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
    """Shows a page's title at once, and its pictures of the example where that is what the address asks for."""
    stored = pictures()
    if page in stored.get("titles", ()):
        st.title(stored["titles"][page])
        layer, theme = query.get("layer", stored["layer"]), "dark" if st.context.theme.type == "dark" else "light"
        drawings = stored[theme].get("layers" if page in ("", "layers") else f"{page} {layer}", [])
        if drawings and set(query) <= {"layer"}:
            st.container(height=PAGES[page][0], border=False)
            place(page, drawings if page else drawings[:1])
    drawn.set()


def of_layer(page: str, layer: str, theme: str) -> bool:
    """Shows the picture of an example layer, while its inputs are read; says whether there is one."""
    drawings = pictures().get(theme, {}).get(f"{page} {layer}", [])
    place(page, drawings)
    return bool(drawings)


def place(page: str, drawings: Sequence[dict[str, Any]]) -> None:
    """Shows pictures where the page will have them; the left column of Order lab is for an order."""
    columns = st.columns(PAGES[page][1])[1 if page == "order_lab" else 0 :]
    for column, drawing in zip(columns, drawings, strict=False):
        with column:
            show(drawing)


def show(picture: dict[str, Any]) -> None:
    """A drawing, not a figure: the browser has it before it has read Plotly."""
    source = base64.b64encode(picture["svg"].encode()).decode()
    st.html(
        f'<div class="figure-title"><b>{picture["finding"]}</b><span>{picture["what"]}</span></div>'
        f'<img class="first" alt="{picture["alt"]}" src="data:image/svg+xml;base64,{source}" style="width: 100%">'
    )
