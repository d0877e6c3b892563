"""Order lab: what the order of pruning, and the budget that goes with it, do to one layer's error."""

from types import ModuleType

import streamlit as st

import rose
from app import components, session, words
from app.lab import (
    race_of_solvers,
    section_1_compare_orders,
    section_2_own_order,
    section_3_inside_sweep,
    section_4_costliest_block,
    section_5_by_sparsity,
    section_6_order_and_budget,
    section_7_basis,
    section_8_bits,
)

SECTIONS: dict[str, tuple[str, ModuleType]] = {
    "compare": ("Compare orders", section_1_compare_orders),
    "own": ("Your own order", section_2_own_order),
    "sweep": ("Inside a sweep", section_3_inside_sweep),
    "position": ("Where should the costliest block go?", section_4_costliest_block),
    "sparsity": ("By sparsity", section_5_by_sparsity),
    "budget": ("Order and budget", section_6_order_and_budget),
    "basis": ("Make a layer columnar", section_7_basis),
    "bits": ("Zeros or fewer bits", section_8_bits),
}

# Sections whose errors are on calibration tokens, and what is not; the others say on which tokens themselves.
ON_CALIBRATION = {
    "compare": ", but for the columns Held out",
    "own": ", but for the large numbers, which are on held-out tokens",
    "sweep": "",
}
FORMER = ("solvers", "Race of solvers")  # a section that has become one of the page Prune


def to_race() -> None:
    """Leads links to the former section to where its race is run now."""
    names = {"lab_mask_of", "lab_mask_since", "lab_solvers", "lab_solver_order", "lab_work"}
    query = {name.replace("lab_", "race_") if name in names else name: value for name, value in st.query_params.items()}
    del query["lab_section"]
    st.switch_page("views/prune.py", query_params=query | {"prune_view": race_of_solvers.TITLE})


if st.query_params.get("lab_section") in FORMER:
    to_race()
st.title("Order lab: does the pruning order matter?")
study, layer = components.require_layer("Here you try pruning orders on a real layer")
plan = session.plan(study, layer)
columnar = "columnar" if plan.is_columnar else "not columnar: ROSE itself keeps natural order here"
st.caption(
    f"**{words.short_layer(layer)}** · {plan.importance.shape[0]} × {plan.importance.shape[1]} weights in "
    f"{words.count(len(plan.block_width), 'block')} · sparsity {plan.pattern} · relative range "
    f"{plan.relative_range:.3f} (block-loss spread), {columnar}"
)
components.cautions(study.cautions(layer))
section = components.section({name: label for name, (label, _) in SECTIONS.items()}, "lab_section")
if section != "own" and "own" in st.query_params:
    del st.query_params["own"]
if section in ON_CALIBRATION:
    but = "" if study.held_out_statistics(layer) is None else ON_CALIBRATION[section]
    st.caption(f"Errors are on calibration tokens{but}.")
if plan.pattern.is_grouped and section != "sparsity":
    st.caption(
        f"Under {plan.pattern} every group of columns loses the same number of weights, so both budgets are the same."
    )


def body() -> None:
    try:
        left, stage = st.columns((1, 2.7))
        SECTIONS[section][1].draw(study, layer, left, stage)
    except rose.RoseError as problem:
        components.error(problem)


if section == "sweep":
    section_3_inside_sweep.PLAYER.live(body)
else:
    body()
if not session.setup().stream:  # or the page Prune is shut
    race = {"prune_view": race_of_solvers.TITLE}
    label = "Race the solvers behind the methods on this layer"
    st.page_link("views/prune.py", label=label, icon=":material/sprint:", query_params=race)
