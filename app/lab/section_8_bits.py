"""The order lab's section that spends one budget of bits on zeros, on fewer bits, or on both."""

from __future__ import annotations

from functools import partial

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import components, words
from app.figures import savings as figures
from app.lab.bits import group_of, measure, missing, seconds, table
from app.study.study import Study


def draw(study: Study, layer: str, left: DeltaGenerator, stage: DeltaGenerator) -> None:
    group = group_of(study.weight(layer).shape[1])
    with left:
        st.markdown(
            "The same bits can hold fewer weights, or weights of fewer bits. Removing and rounding both leave an "
            "error; the kept weights compensate for both together, in part."
        )
        shared = "A row shares a scale" if group == "row" else f"{group} columns of a row share a scale"
        st.caption(
            f"{shared} of 16 bits. One bit per weight says whether it is 0, and only the others have a code; "
            "where a code for every weight takes less, this bit is left out. Unrounded weights have 16 bits. A layer's "
            "error is not the model's loss: docs/shipping.md has perplexities."
        )
    with stage:
        asked, pieces = (study.created, layer), [partial(measure, study, layer, *one) for one in missing(study, layer)]
        says = f"This prunes and rounds the layer in {words.count(len(pieces), 'way')}."
        if not components.may_begin(seconds(study, layer), says, "Measure it", "lab-bits", asked):
            return
        if not components.finished(pieces, "lab-bits", asked, "way"):
            return
        components.show(figures.bits_and_zeros(table(study, layer), **components.look(layer)), "lab-bits")
