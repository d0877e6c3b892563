"""Check: old links lead to where the checks of one's own layers are now."""

import streamlit as st

from app import components

LAYER_PAGE, LAYERS_PAGE = "views/layer.py", "views/layers.py"
MOVED = {  # what `check` in a link named -> the page that shows it now, and its address there
    "This layer": (LAYER_PAGE, {"section": "Trust"}),
    **{
        name: (LAYER_PAGE, {"section": "Trust", "trust": name})
        for name in ("Three measures", "Over-fitting", "Sparsity")
    },
    "All layers": (LAYERS_PAGE, {"layers_view": "Trust"}),
}


def draw() -> None:
    """Old links lead to the sections that have moved."""
    old = st.query_params.get("check")
    if old in MOVED:
        page, where = MOVED[old]
        kept = {name: st.query_params.get_all(name) for name in st.query_params if name != "check"}
        st.switch_page(page, query_params={**kept, **where})
    st.title("Check a checkpoint: can its numbers be trusted?")
    components.require_study("Checks of every layer's error, sparsity and inputs appear here.")
    st.page_link(LAYER_PAGE, label="Checks of one layer", query_params={"section": "Trust"})
    st.page_link(LAYERS_PAGE, label="Checks of all layers", query_params={"layers_view": "Trust"})


draw()
