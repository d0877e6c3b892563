"""The first pictures of a server that has just started. They are the example's and ship with the app.

Torch, transformers and the model take seconds to read. Until then the pages about layers show what they will show of
the example, from a file that `python -m app.first` makes. Nothing here imports torch before it makes that file.
"""

from __future__ import annotations

import gzip
import html
import json
import re
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
            for place, drawing in zip(
                st.columns([1.3, 1]) if len(drawings) == 2 else [st.container()], drawings, strict=True
            ):
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


def make() -> None:
    """Draws what the pages open on for the example, and keeps these pictures."""
    from app.figures import maps, palette, weights
    from app.lab import your_order
    from app.study import example
    from app.words import short_layer

    study = example.restored()
    table, saved = study.overview(0.5), study.kept
    assert saved is not None
    layers = sorted(saved.calibration, key=table.set_index("layer")["relative_range"].__getitem__, reverse=True)
    titles = {"layers": "layers.py", "layer": "layer.py", "order_lab": "order_lab.py"}
    content: dict[str, Any] = {"layer": layers[0], "titles": {name: _title(file) for name, file in titles.items()}}
    for theme in palette.INKS:
        look: dict[str, Any] = {"theme": theme, "marked_layer": layers[0]}
        content[theme] = {
            "layers": [maps.model_map(table, layers=study.layer_names, **look), maps.gain_scatter(table, **look)]
        }
        for layer in layers:
            plan, norm = study.plan(layer), study.statistics(layer).mean_square.sqrt()
            options: dict[str, Any] = {"layer": short_layer(layer), "theme": theme}
            strips = weights.layer_strips(study.weight(layer), plan, norm, heads=study.heads(layer), **options)
            content[theme] |= {
                f"layer {layer}": [strips],
                f"order_lab {layer}": [your_order.opening(study, layer, theme)],
            }
        content[theme] = {page: [_packed(drawing) for drawing in drawings] for page, drawings in content[theme].items()}
    FILE.write_bytes(gzip.compress(json.dumps(content).encode(), 9, mtime=0))
    print(f"{FILE}: {FILE.stat().st_size / 1e3:.0f} kB")


def _title(file: str) -> str:
    """As the page itself says it."""
    title = re.search(r'st\.title\("(.*)"\)', (Path(__file__).parent / "views" / file).read_text(encoding="utf-8"))
    assert title is not None
    return title[1]


def _packed(drawing: Any) -> dict[str, Any]:
    from app.figures.style import untitled

    meta = drawing.figure.layout.meta
    texts = {part: html.escape(re.sub("<.*?>", "", meta[part])) for part in ("finding", "what")}
    return texts | {"alt": drawing.alt, "figure": json.loads(untitled(drawing.figure).to_json())}


if __name__ == "__main__":
    make()
