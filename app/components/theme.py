"""Draws the page anew when the viewer's theme changes: figures have their colours from the server."""

import streamlit as st

from app import session

# Streamlit (1.67) repaints what is its own and calls this once more, but runs no script.
REDRAW = """export default ({data, parentElement, setTriggerValue}) => {
  const shown = getComputedStyle(parentElement).colorScheme;
  const asked = parentElement.dataset.asked;
  parentElement.dataset.asked = shown;  // asked for once, whatever comes of it
  if (shown !== data.drawn && shown !== asked) setTriggerValue("changed", shown);
}"""
_redraw = st.components.v2.component("redraw_in_another_theme", js=REDRAW, isolate_styles=False)


def follow_theme() -> None:
    """Asks for another run where the page is shown in another theme than this run draws in."""
    _redraw(key="theme", data={"drawn": session.theme()}, on_changed_change=lambda: None)
