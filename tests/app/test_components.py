"""Pieces that several pages draw."""

from __future__ import annotations

from pathlib import Path

from streamlit.testing.v1 import AppTest

import app


def test_a_live_part_shares_its_container_with_nothing() -> None:
    """Streamlit puts a fragment where its page has it by number; a neighbour could be overwritten by its redraw."""

    def page() -> None:
        import streamlit as st

        from app import components

        st.text("before")
        components.live(lambda: st.text("live"), None)
        st.text("after")

    drawn = AppTest.from_function(page).run()
    assert not drawn.exception
    before, container, after = drawn.main.children.values()
    assert (before.value, after.value) == ("before", "after")
    assert [text.value for text in container.text] == ["live"]
    (fragment,) = container.children.values()
    assert [text.value for text in fragment.text] == ["live"]


def test_every_fragment_is_a_live_part() -> None:
    folder = Path(app.__file__).parent
    using = [path.name for path in folder.rglob("*.py") if "st.fragment" in path.read_text()]
    assert using == ["components.py"]
