"""Order lab: can you do better? What the order of pruning and its budget do to one layer's error."""

from collections.abc import Callable

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

import rose
from app import components, session
from app.lab import basis, race_of_solvers, sections, your_order
from app.study.study import Study

SECTIONS: dict[str, tuple[str, Callable[[Study, str, DeltaGenerator], None]]] = {
    "own": ("Your order", your_order.draw),
    "prices": ("Prices", sections.prices),
    "sweep": ("Inside a sweep", sections.inside_sweep),
    "budget": ("Mask and sequence", sections.mask_and_sequence),
    "basis": ("Basis", basis.draw),
}


def draw() -> None:
    st.title("Order lab: can you do better than ROSE?")
    study, layer, _ = sections.require_layer("Here you try pruning orders on a real layer")
    row = st.container(horizontal=True, vertical_alignment="center")
    with row:
        section = components.section(SECTIONS, "lab_section")
    if section != "own" and "own" in st.query_params:
        del st.query_params["own"]
    try:
        SECTIONS[section][1](study, layer, row)
    except rose.RoseError as problem:
        components.error(problem)
    if not session.setup().stream:  # or the page Prune is shut
        race = {"prune_view": race_of_solvers.TITLE}
        label = "Race the solvers behind the methods on this layer"
        st.page_link("views/prune.py", label=label, icon=":material/sprint:", query_params=race)


draw()
