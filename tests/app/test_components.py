"""Widgets that several pages share."""

import json
import math
import threading
from collections.abc import Callable
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from streamlit.testing.v1 import AppTest

from app.components import figure
from app.figures.style import Drawing


def test_live_part_has_its_own_container():
    """Streamlit puts a fragment where its page has it by number; a neighbour could be overwritten by its redraw."""

    def page() -> None:
        import streamlit as st

        from app import components

        st.text("before")
        components.live(lambda: st.text("live"), None)
        st.text("after")

    before, container, after = AppTest.from_function(page).run().main.children.values()
    (fragment,) = container.children.values()
    assert [before.value, *(text.value for text in fragment.text), after.value] == ["before", "live", "after"]


def test_replaced_work_is_restarted():
    """A runs, B is looked at and is done at once, then A again: A is begun anew."""

    def page() -> None:
        import streamlit as st

        from app import components

        name, pieces = st.session_state["work"]
        st.text("done" if components.finished(pieces, "slot", name) else "at work")

    go_on = threading.Event()
    app = AppTest.from_function(page)

    def shown(name: str, *pieces: Callable[[], object]) -> list[str]:
        app.session_state["work"] = (name, pieces)
        app.run()
        return [element.value for element in (*app.text, *app.warning)]

    assert shown("A", lambda: go_on.wait(240), list) == ["at work"]
    _, batch = app.session_state["slot-batch"]
    assert shown("B") == ["done"]
    go_on.set()
    batch.job.wait(240)
    assert batch.job.status == "cancelled"
    assert shown("A", list) == ["done"]


def test_json_download_keeps_small_numbers(monkeypatch):
    taken: dict[str, Any] = {}
    monkeypatch.setattr(figure.st, "download_button", lambda label, content, *_, **__: taken.update({label: content}))
    figure.downloads(Drawing(go.Figure(), "", "", pd.DataFrame({"error": [1.25e-12, math.nan]})), "some")
    assert json.loads(taken["Table, JSON"]) == [{"error": 1.25e-12}, {"error": None}]
