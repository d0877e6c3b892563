"""Figures with their computed captions and downloads, small tables, and recipes."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from app import glossary, session, words
from app.components.choices import pick_row, select_layer
from app.figures import style
from app.figures.style import Drawing
from app.runs.pruning import label_of
from rose.recipe import Recipe
from rose.rows import csv_text, json_rows
from rose.spec import Spec

REDRAW = Path(__file__).with_name("theme.js").read_text(encoding="utf-8")
_redraw = st.components.v2.component("redraw_in_another_theme", js=REDRAW, isolate_styles=False)
SHARE = "%.1f\u202f%%"  # of a column of a table, in per cent
MODEBAR = {"displaylogo": False, "modeBarButtons": [["toImage"]]}
SVG = {"displaylogo": False, "toImageButtonOptions": {"format": "svg"}}  # of the figure as an HTML file


def look(layer: str, **extra: Any) -> dict[str, Any]:
    """Arguments that all figures of one layer share: what it is called, and the theme."""
    return {"layer": words.short_layer(layer), "theme": session.theme(), **extra}


def look_over() -> dict[str, Any]:
    """Arguments that figures of all layers share: the threshold and the chosen layer, which they mark; the theme."""
    return {"threshold": session.threshold(), "marked_layer": session.layer(), "theme": session.theme()}


def show(
    drawing: Drawing,
    key: str,
    *,
    on_select: Callable[[str], None] | None = None,
    height: Any = "content",
    fill: tuple[int, str] | None = None,
    captioned: bool = True,
    beside: Callable[[], None] | None = None,
) -> None:
    """A figure with its computed caption and its downloads; `captioned=False` leaves the caption to the menu, and
    `beside` draws a choice beside the title.

    Clicks on marks call `on_select` with the key. `fill` lets it grow: pixels above and below it, and its limit.
    """
    figure = style.untitled(drawing.figure)
    layout = figure.layout
    if fill is not None:
        rest, most = fill
        tall = f"height: clamp({layout.height}px, 100vh - {rest}px, max({layout.height}px, {most})); flex: none;"
        st.html(f"<style>@media (min-width: 1000px) {{ .st-key-{key} {{ {tall} }} }}</style>")
        height = "stretch"
    finding, subtitle = (
        glossary.explained(words.held(re.sub("<.*?>", "", layout.meta[part]))) for part in ("finding", "what")
    )
    below = f"<span>{subtitle}</span>" if subtitle else ""
    # A figure's own title cannot break its lines.
    with st.container(horizontal=True, vertical_alignment="top", key=f"{key}-figure-head"):
        title = f"<b>{finding}</b>{'' if beside else below}"
        st.html(f'<div class="figure-title">{title}</div>', width="stretch")
        if beside is not None:
            beside()
        menu = st.popover(
            "", icon=":material/download:", type="tertiary", width="content", help="Download the figure or its data",
            key=f"{key}-downloads", on_change="rerun",
        )  # fmt: skip
    if beside is not None and below:
        st.html(f'<div class="figure-title below">{below}</div>')
    st.plotly_chart(
        figure,
        key=key,
        height=height,
        theme=None,  # the figures carry their own light and dark templates
        on_select=partial(on_select, key) if on_select else "ignore",
        selection_mode="points",
        alt=drawing.alt,
        config=MODEBAR | {"toImageButtonOptions": {"format": "png", "filename": key, "scale": 2}},
    )
    if drawing.caption and captioned:
        st.caption(words.plain(drawing.caption))
    if menu.open:  # large tables are only written when the menu opens
        with menu:
            if not captioned:
                st.caption(words.plain(drawing.caption))
            downloads(drawing, key)


def downloads(drawing: Drawing, key: str) -> None:
    """The figure and its data as files, which work without a network; the figure's own button saves a PNG."""
    table, page = drawing.data, drawing.figure.to_html(include_plotlyjs=True, config=SVG)
    files = {
        "Table, CSV": ("csv", csv_text(table)),
        "Table, JSON": ("json", json.dumps(json_rows(table), indent=1)),
        "Figure, HTML": ("html", page),
    }
    for label, (kind, content) in files.items():
        st.download_button(label, content, f"{key}.{kind}", on_click="ignore", key=f"{key}-{kind}")


def frame(
    table: pd.DataFrame,
    columns: Mapping[str, Any],
    key: str,
    alt: str,
    rows: Sequence[Any] | None = None,
    choose: Callable[[Any], None] = select_layer,
) -> None:
    """A table of numbers that shows `columns`, by name: a label, a label with a number's format, or a column of
    Streamlit. A chosen row chooses its entry of `rows`."""
    number = st.column_config.NumberColumn
    pick: dict[str, Any] = {}
    if rows is not None:
        pick = {"selection_mode": "single-row", "on_select": lambda: pick_row(key, rows, choose)}
    st.dataframe(
        table,
        hide_index=True,
        column_order=[name for name in columns if name in table],
        column_config={
            name: number(look[0], format=look[1]) if isinstance(look, tuple) else look for name, look in columns.items()
        },
        key=key,
        alt=alt,
        **pick,
    )


def in_percent(table: pd.DataFrame, shares: Sequence[str]) -> pd.DataFrame:
    """A table for `st.dataframe`, whose columns of shares have the format `SHARE`."""
    return table.assign(**{name: 100 * table[name].astype(float) for name in shares if name in table})


def table(rows: Sequence[Mapping[str, str]], alt: str, marked: str = "", key: str = "") -> None:
    """A small table of texts, a row each; only the column `marked` is Markdown.

    `key` makes each row a card on a phone: its first cell, then the others with the names of their columns. A table
    whose first column has no name compares things, and their names stay above their columns.
    """
    first, *headers = rows[0] if rows else [""]
    plain = [
        {words.plain(name): cell if name == marked else words.plain(cell) for name, cell in row.items()} for row in rows
    ]
    place = f"rows-{'cards' if first else 'beside'}-{key}"
    with st.container(key=place if key else None):
        if key and first:
            cell = f".st-key-{place} td:nth-child"
            names = [f'{cell}({number})::before {{ content: "{name} "; }}' for number, name in enumerate(headers, 2)]
            st.html(f"<style>@media (max-width: 640px) {{ {' '.join(names)} }}</style>")
        st.table(pd.DataFrame(plain), hide_index=True, border="horizontal", alt=alt)


def continued(name: str, summary: Mapping[str, Any]) -> None:
    """The text that a model has written after the prompt, under its name, which is Markdown."""
    st.markdown(name)
    st.code(summary.get("continuation") or "(nothing: the text ended)", language=None, wrap_lines=True)


def follow_theme() -> None:
    """Asks for another run where the page is shown in another theme: figures have their colours from the server."""
    _redraw(key="theme", data={"drawn": session.theme()}, on_changed_change=lambda: None)


def recipe(key: str, steps: Sequence[Spec]) -> None:
    """The recipe that the page would run, as text and as a file. A choice of copies names each by its method."""
    with st.popover("Recipe", icon=":material/description:", key=f"{key}-recipe"):
        step, *further = steps
        if further:
            step = st.selectbox("Copy", steps, format_func=label_of, key=f"{key}-recipe-of")
        text, place = str(Recipe(step)), getattr(step, "output", None)
        name = f"{place.name if place else step.run}.yaml"
        st.code(text, language="yaml")
        st.download_button("Download", text, name, icon=":material/download:", key=f"{key}-recipe-file")
        again, python = (" output=FOLDER", 'output="FOLDER"') if place else ("", "")
        st.caption(f'`rose run {name}{again}` does this again; in Python, `rose.Recipe.read("{name}").run({python})`.')
