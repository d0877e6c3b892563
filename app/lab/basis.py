"""The order lab's section that makes a layer columnar, or less so: heads rotated, the model unchanged."""

from __future__ import annotations

from functools import partial

import streamlit as st

import rose
from app import components, session, words
from app.figures import losses, palette, weights
from app.figures import orders as figures
from app.lab.bases import (
    BASES,
    METHODS,
    at_risk,
    knows_heads,
    measure,
    missing,
    picture,
    rotatable,
    seconds,
    table,
)
from app.study.study import Study

# The slider stays in sight beside pictures that are taller than a screen.
WIDE = "@media (min-width: 641px)"
STAYS = f"<style>{WIDE} {{ :has(> .st-key-lab-basis-controls) {{ position: sticky; top: 4rem; }} }}</style>"
PICTURES = {"importance": "Importance S", "weights": "|W|", "loss": "Potential loss L"}


def draw(study: Study, layer: str) -> None:
    if not _knows_heads(study):
        return
    rotatable_layers = rotatable(study)
    if layer not in rotatable_layers.layouts:
        _offer_nearest(study, layer)
        return
    layout = rotatable_layers.layouts[layer]
    left, stage = st.columns((1, 2.7))
    with left.container(key="lab-basis-controls"):
        st.html(STAYS)
        basis = st.select_slider(
            "Basis of the heads",
            list(BASES),
            "given",
            format_func=BASES.__getitem__,
            key="lab_basis",
            bind=components.URL,
        )
        shown = components.choose("Picture", PICTURES, "lab_basis_picture")
        seed = st.number_input("Seed of the random basis", 0, 9999, 0, key="lab_basis_seed", bind=components.URL)
        groups = words.count(layout.groups, "rotation")
        shared = f"; heads that share their values share one, so there are {groups}" if layout.groups > 1 else ""
        st.markdown(
            f"Each of the {words.count(len(layout.group), 'head')} is rotated between values and output projection: "
            f"$W_v' = R^⊤W_v$, $W_o' = W_oR${shared}. The two rotations cancel, so the model's output stays the "
            "same up to rounding. The columns of $W_o$ change."
        )
        st.caption(
            "Gathered: eigenvectors of the inputs' covariance plus the weights' own, at equal scale. Learned: a few "
            f"steps from there towards less potential loss. {palette.method_style(METHODS[-1]).label} is the "
            "recommended method."
        )
    every = [f"random:{seed}" if name == "random" else name for name in BASES]
    with stage:
        if not _measured(study, layer, every):
            return
        results, look = table(study, layer, every, session.threshold()), components.look(layer)
        st.markdown(f"**{figures.sentence_of_bases(results)}**")
        components.show(figures.basis_errors(results, BASES, basis, **look), "lab-bases")
        pictures = {
            name: picture(study, layer, basis_name, session.threshold())
            for name, basis_name in zip(BASES, every, strict=True)
        }
        weight, plan = pictures[basis]
        where = look | {"layer": f"{look['layer']}, {BASES[basis].lower()}"}
        drawn = {
            "importance": partial(weights.importance_map, plan),
            "weights": partial(weights.weight_map, weight, widths=plan.block_width),
            "loss": partial(weights.potential_loss_map, plan),
        }
        components.show(drawn[shown](**where), f"lab-basis-{shown}")
        components.show(losses.block_loss_bars(plan, **where), "lab-basis-blocks")
        _ranges({name: drawing for name, (_, drawing) in pictures.items()})


def _knows_heads(study: Study) -> bool:
    """Whether the heads that can be rotated are listed; if not, looks for them once the model is free."""
    if knows_heads(study):
        return True
    if study.job.status == "running":
        st.info("Once this run has ended, a few tokens run through the model to find which heads can be rotated.")
        components.wait_for(study, lambda: False)
        return False
    return components.finished([partial(rotatable, study)], "lab-heads", study.created, "search for heads")


def _offer_nearest(study: Study, layer: str) -> None:
    """Says that nothing can be rotated here, and where it can."""
    rotatable_layers = rotatable(study)
    if rotatable_layers.why_none:
        components.info(rotatable_layers.why_none)
        return
    other = rotatable_layers.nearest(study, layer)
    components.info(
        f"The heads of {words.short_layer(layer)} cannot be rotated: it is not a suitable output projection."
        + ("" if other else " No suitable layer has been measured; measure one on the start page.")
    )
    if other:
        st.button(
            f"Show {words.plain(words.short_layer(other))}",
            icon=":material/arrow_forward:",
            key="lab-basis-nearest",
            on_click=session.choose_layer,
            args=(other,),
        )


def _measured(study: Study, layer: str, bases: list[str]) -> bool:
    """Prunes in every basis in the background; what takes long waits for a press of the button."""
    left, subject = missing(study, layer, bases, session.threshold()), (study.created, layer)
    needed = seconds(study, layer, left)
    notice = f"This prunes the layer {words.count(len(left), 'time')}: by {len(METHODS)} methods in every basis."
    if not components.may_begin(needed, notice, "Measure it", "lab-bases", subject):
        return False
    pieces = [partial(measure, study, layer, basis, method, session.threshold()) for basis, method in left]
    return components.finished(pieces, "lab-bases", (*subject, *bases, session.threshold()), "pruning")


def _ranges(plans: dict[str, rose.OrderPlan]) -> None:
    """Relative range of each basis, and what pre-pruning would remove there."""
    rows = [
        {
            "Basis": BASES[name],
            "Relative range": f"{plan.relative_range:.3f}",
            "Columnar": "yes" if plan.is_columnar else "no",
            "Error before compensation": words.number(at_risk(plan)),
        }
        for name, plan in plans.items()
    ]
    components.table(rows, "Relative range of each basis, and the error before compensation")
    st.caption(
        "Error before compensation: the share of Σ S² that pre-pruning would remove. Learning makes that small "
        "wherever the weights are, so the best basis need not be the most columnar one."
    )
