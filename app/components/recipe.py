"""A recipe on screen."""

import streamlit as st

from rose.recipe import Recipe


def recipe(steps: Recipe, name: str) -> None:
    """A recipe as text and as a file, with the command that runs it."""
    st.code(str(steps), language="yaml")
    st.download_button("Download", str(steps), f"{name}.yaml", icon=":material/download:", key=f"recipe-of-{name}")
    st.caption(
        f"`rose run {name}.yaml output=FOLDER` does this again; in Python, "
        f'`rose.Recipe.read("{name}.yaml", "output=FOLDER").run()`. On the same machine the weights are the same to '
        "the bit."
    )
