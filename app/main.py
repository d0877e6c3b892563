"""Entry point of the app: navigation and what all pages share around them. Run by `make app`."""

import sys
from pathlib import Path

import streamlit as st

# Streamlit puts this folder on the path, not the one above it.
sys.path.insert(0, str(Path(__file__).parents[1]))

PRODUCT = '<div class="product"><b>ROSE Explorer</b><span>See, check, prune and tune language models</span></div>'
PAGE = Path(__file__).with_name("page.css")


def draw() -> None:
    page = st.navigation(
        {
            "": [st.Page("views/start.py", title="Start", icon=":material/play_circle:", default=True)],
            "Understand": [
                st.Page("views/learn.py", title="Learn", icon=":material/school:"),
                st.Page("views/layers.py", title="Layers", icon=":material/grid_on:"),
                st.Page("views/layer.py", title="Layer", icon=":material/layers:"),
                st.Page("views/order_lab.py", title="Order lab", icon=":material/swap_vert:"),
            ],
            "Prune": [
                st.Page("views/prune.py", title="Prune", icon=":material/content_cut:"),
                st.Page("views/smaller.py", title="Make it smaller", icon=":material/compare_arrows:"),
                st.Page("views/structures.py", title="Heads and channels", icon=":material/compress:"),
            ],
            "Judge": [
                st.Page("views/runs.py", title="Compare runs", icon=":material/compare:"),
                st.Page("views/damage.py", title="Layer sensitivity", icon=":material/healing:"),
                st.Page("views/text.py", title="Your text", icon=":material/chrome_reader_mode:"),
                st.Page("views/check.py", title="Check a checkpoint", icon=":material/fact_check:"),
            ],
            "More": [st.Page("views/diffusion.py", title="Diffusion", icon=":material/image:")],
        },
        expanded=True,
    )
    from app import first

    meanwhile = None
    if not first.ready.is_set():  # the example's pictures show until all is read
        meanwhile = st.empty()
        with meanwhile.container():
            first.draw(page.url_path, st.query_params.to_dict())
    from app import components, session, sidebar
    from app.jobs import GivenBack

    first.ready.set()
    session.begin()
    components.follow_theme()
    ink, primary = {"light": ("#1E1B24", "#A3195B"), "dark": ("#F0EDF5", "#CC3A82")}[session.theme()]  # of config.toml
    claim = "none" if page.url_path else "inline"  # what the product is for stands on the start page
    colours = f":root {{ --selected-text: {ink}; --primary: {primary}; }}"
    st.html(f"<style>{colours} .product span {{ display: {claim}; }}</style>")
    sidebar.draw(page.url_path)
    session.publish()  # a page that has nothing to show yet stops the script: after `st.stop` nothing gets into the URL
    if st.session_state.link_problem:
        components.warning(st.session_state.link_problem, ":material/link_off:")
    if meanwhile is not None:
        meanwhile.empty()
    try:
        page.run()
    except GivenBack:
        st.rerun()
    session.publish()
    # Nothing would enable the page's buttons again once a run has ended that was drawn as at work.
    if any(run.job.status != "running" for run in st.session_state.pop("seen_at_work", [])):
        st.rerun()


st.set_page_config(page_title="ROSE Explorer", page_icon=Path(__file__).with_name("icon.svg"), layout="wide")
st.html(PAGE)
st.html(
    f"{PRODUCT}<script>{PAGE.with_suffix('.js').read_text(encoding='utf-8')}</script>", unsafe_allow_javascript=True
)
draw()
