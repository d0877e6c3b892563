"""Order lab: what the order of pruning changes in one layer's error."""

from collections.abc import Callable

import streamlit as st

import rose
from app import components, glossary, session, words
from app.lab import inside, your_order
from app.lab.sweeps import Bench

SECTIONS: dict[str, tuple[str, Callable[[Bench], None]]] = {
    "own": ("Your order", your_order.draw),
    "sweep": ("Inside a sweep", inside.draw),
}


def draw() -> None:
    study = components.require_study("Here you try pruning orders on a real layer")
    layer = session.keep_layer(study)
    assert layer is not None  # a study has layers
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="lab-choices"):
        section = components.section(SECTIONS, "lab_section")
        model = words.plain(words.model_name(study.setup.model))
        st.html(f'<span class="choice">{model}</span>', width="content")
        components.choose_layer(study)
        sizes = {size: words.heads(size, heads) for size, heads in study.sizes.items()}
        with components.labelled("Block"):
            size = components.own_or_other(
                "Block size", "lab_block", sizes, study.setup.block_columns, kind=st.selectbox, width=110
            )
        text = f"sparsity {words.share(study.setup.sparsity)}, errors as parts of SparseGPT's"
        st.html(f'<span class="choice">{glossary.explained(text)}</span>', width="content")
    if section != "own" and "own" in st.query_params:
        del st.query_params["own"]
    if not components.inputs_of(study, layer):
        return
    try:
        SECTIONS[section][1](Bench(study, layer, size, session.threshold()))
    except rose.RoseError as problem:
        components.error(problem)


draw()
