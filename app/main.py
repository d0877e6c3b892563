"""Entry point of the app: navigation and theme. Run by `make app`."""

import sys
from collections.abc import Callable
from pathlib import Path

import streamlit as st

# Streamlit puts this folder on the path, not the one above it.
sys.path.insert(0, str(Path(__file__).parents[1]))

HERE = Path(__file__).parent
PAGES = [
    st.Page("views/explore.py", title="Explore", default=True),
    st.Page("views/learn.py", title="Learn"),
    st.Page("views/order_lab.py", title="Order lab"),
    st.Page("views/prune.py", title="Prune"),
    st.Page("views/smaller.py", title="Make it smaller"),
    st.Page("views/check.py", title="Check"),
    st.Page("views/glossary.py", title="Glossary"),
]
MOVED = {  # pages of earlier versions: where their links lead, and to which section
    "layers": ("explore", {}),
    "layer": ("explore", {}),
    "diffusion": ("explore", {}),
    "runs": ("prune", {"prune_section": "Compare runs"}),
    "damage": ("prune", {"prune_section": "Layer sensitivity"}),
    "text": ("prune", {"prune_section": "Your text"}),
    "structures": ("smaller", {"smaller_section": "Heads and channels"}),
}


def moved(path: str) -> st.Page:
    view, section = MOVED[path]

    def page() -> None:
        st.switch_page(f"views/{view}.py", query_params={**st.query_params.to_dict(), **section})

    page.__name__ = path
    return st.Page(page, url_path=path, title=path, visibility="hidden")


def draw(run: Callable[[], None]) -> None:
    from app import components, session
    from app.components import header
    from app.forms import recipes, study_form
    from app.jobs import GivenBack

    session.begin()
    components.follow_theme()
    ink, primary = {"light": ("#1E1B24", "#A3195B"), "dark": ("#F0EDF5", "#CC3A82")}[session.theme()]  # of config.toml
    st.html(f"<style>:root {{ --selected-text: {ink}; --primary: {primary}; }}</style>")
    header.draw()
    session.publish()  # a page that has nothing to show yet stops the script: after `st.stop` nothing gets into the URL
    if st.session_state.get("choosing"):
        study_form.dialog()
    recipes.take_dropped()
    try:
        run()
    except GivenBack:
        st.rerun()
    session.publish()
    # Nothing would enable the page's buttons again once a run has ended that was drawn as at work.
    if any(run.job.status != "running" for run in st.session_state.pop("seen_at_work", [])):
        st.rerun()


st.set_page_config(page_title="ROSE Explorer", page_icon=HERE / "icon.svg", layout="wide")
st.logo(HERE / "logo.svg", size="large")
st.html(HERE / "page.css")
st.html(f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script>", unsafe_allow_javascript=True)
page = st.navigation([*PAGES, *map(moved, MOVED)], position="top")
draw(page.run)
