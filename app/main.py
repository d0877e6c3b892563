"""Entry point of the app: navigation and what all pages share around them. Run by `make app`."""

import sys
from pathlib import Path

import streamlit as st

# Streamlit puts this folder on the path, not the one above it.
sys.path.insert(0, str(Path(__file__).parents[1]))

from app import session, sidebar

st.set_page_config(page_title="ROSE Explorer", page_icon=":material/local_florist:", layout="wide")
st.html("<style>.stMainBlockContainer { padding: 3.5rem 3rem 4rem; }</style>")  # figures need the room
session.begin()
page = st.navigation(
    [
        st.Page("views/start.py", title="Start", icon=":material/play_circle:", default=True),
        st.Page("views/layers.py", title="Layers", icon=":material/grid_on:"),
        st.Page("views/layer.py", title="Layer", icon=":material/layers:"),
        st.Page("views/order_lab.py", title="Order lab", icon=":material/swap_vert:"),
        st.Page("views/learn.py", title="Learn", icon=":material/school:"),
        st.Page("views/check.py", title="Check", icon=":material/fact_check:"),
        st.Page("views/prune.py", title="Prune", icon=":material/content_cut:"),
        st.Page("views/depth.py", title="Depth", icon=":material/waterfall_chart:"),
    ]
)
sidebar.draw()
session.publish()  # a page that has nothing to show yet stops the script: after `st.stop` nothing gets into the URL
page.run()
session.publish()
