"""The first pictures of a server that has just started. They are the example's and ship with the app.

Torch, transformers and the model take seconds to load. Meanwhile the pages about layers show the example's pictures
from a file that `python -m tests.benchmarks.example_study first` makes. Nothing here imports torch.
"""

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
# Height of a page's choices above its pictures, in pixels, and the widths of its columns.
SIDE_BY_SIDE = [1.3, 1.0]
PAGES = {"": (164, [5.0, 1.6]), "layers": (136, SIDE_BY_SIDE), "layer": (98, [1.0]), "order_lab": (98, SIDE_BY_SIDE)}
drawn = threading.Event()  # set once a page is sent; then the server imports its modules
PAUSE = 0.3  # seconds before these imports, which would delay the page in the browser
ready = threading.Event()  # set once they are imported


@cache
def pictures() -> dict[str, Any]:
    """The titles by page, and the pictures by theme, page and layer; {} if the file is damaged."""
    try:
        return json.loads(gzip.decompress(FILE.read_bytes()))
    except (OSError, EOFError, ValueError):
        return {}


def draw(page: str, query: dict[str, str]) -> None:
    """Shows a page's title at once, and pictures of the example if the address asks for the example."""
    stored = pictures()
    if page in stored.get("titles", ()):
        st.title(stored["titles"][page])
        layer, theme = query.get("layer", stored["layer"]), "dark" if st.context.theme.type == "dark" else "light"
        drawings = stored[theme].get("layers" if page in ("", "layers") else f"{page} {layer}", [])
        if drawings and set(query) <= {"layer"}:
            st.container(height=PAGES[page][0], border=False)
            place(page, drawings if page else drawings[:1])
    drawn.set()
    ready.wait(PAUSE)


def of_layer(page: str, layer: str, theme: str) -> bool:
    """Shows the stored picture of an example layer while its inputs are read; returns whether the picture exists."""
    drawings = pictures().get(theme, {}).get(f"{page} {layer}", [])
    place(page, drawings)
    return bool(drawings)


def place(page: str, drawings: Sequence[dict[str, Any]]) -> None:
    """Shows pictures where the page will draw its figures; the left column of Order lab holds the order."""
    columns = st.columns(PAGES[page][1])[1 if page == "order_lab" else 0 :]
    for column, drawing in zip(columns, drawings, strict=False):
        with column:
            show(drawing)


def show(picture: dict[str, Any]) -> None:
    """Shows an SVG drawing, which needs no Plotly in the browser."""
    source = base64.b64encode(picture["svg"].encode()).decode()
    st.html(
        f'<div class="figure-title"><b>{picture["finding"]}</b><span>{picture["what"]}</span></div>'
        f'<img class="first" alt="{picture["alt"]}" src="data:image/svg+xml;base64,{source}" style="width: 100%">'
    )
