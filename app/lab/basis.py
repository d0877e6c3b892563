"""The order lab's section that makes a layer more or less columnar: heads are rotated, the model's output stays."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st
from torch import Tensor

import rose
from app import components, session, words
from app.figures import losses, weights
from app.figures.orders import basis_errors
from app.study.study import Study, error_on
from rose.interrupt import stop_point
from rose.layer.basis import STEPS, HeadLayout, find_rotations, rotate_columns, rotate_statistics
from rose.layer.pattern import METHOD, THRESHOLD, parse_sparsity
from rose.model.estimate import SWEEP_EFFICIENCY, matmul_rate, sweeps_of
from rose.model.walk.heads import value_heads

BASES = {"random": "Random", "given": "As given", "gathered": "Gathered", "learned": "Learned"}
METHODS = ("sparsegpt", "rose", "rose_global", METHOD)
LEARNING = 1.5e-7  # seconds of a step of the learned basis for each weight, on one thread; measured
HEADS = ("heads that can be rotated",)  # as the study remembers them
PICTURES = {"importance": "Importance", "weights": "|W|", "loss": "Loss"}


def draw(study: Study, layer: str, _row: object) -> None:
    if not _knows_heads(study):
        return
    layouts, why_none = rotatable(study)
    if why_none:
        components.info(why_none)
        return
    if layer not in layouts:
        _offer_nearest(study, layer, layouts)
        return
    layout = layouts[layer]
    left, stage = st.columns((1, 2.7))
    with left.container(key="lab-basis-controls"):
        look: dict[str, Any] = {"format_func": BASES.__getitem__, "key": "lab_basis", "bind": components.URL}
        basis = st.select_slider("Basis of the heads", list(BASES), "given", **look)
        shown = components.choose("Picture", PICTURES, "lab_basis_picture")
        seed = st.number_input("Seed of the random basis", 0, 9999, 0, key="lab_basis_seed", bind=components.URL)
        shared = ""
        if layout.groups > 1:
            shared = f" Heads with the same values turn alike: {words.count(layout.groups, 'rotation')}."
        st.markdown(
            f"Each of the {words.count(len(layout.group), 'head')} is rotated between values and output projection, "
            f"$W_v' = R^⊤W_v$ and $W_o' = W_oR$: the columns of $W_o$ change, the model's output does not.{shared}"
        )
        st.caption(
            "Gathered: eigenvectors of the inputs' covariance plus the weights' own. Learned: a few steps from there "
            "towards less potential loss."
        )
    every = {name: f"random:{seed}" if name == "random" else name for name in BASES}
    with stage:
        _draw_bases(study, layer, every, basis, shown)


def _draw_bases(study: Study, layer: str, bases: dict[str, str], basis: str, shown: str) -> None:
    """Errors of all bases, and a picture of the layer in the chosen basis, once all are measured."""
    threshold, look = session.threshold(), components.look(layer)
    pairs = [(basis, method) for basis in bases.values() for method in METHODS]
    if not _measured(study, layer, pairs, threshold):
        return
    rows = [
        (basis.partition(":")[0], method, *measure(study, layer, basis, method, threshold)) for basis, method in pairs
    ]
    errors = pd.DataFrame(rows, columns=["basis", "method", "relative_error", "held_out_error"])
    components.show(basis_errors(errors, BASES, basis, **look), "lab-bases")
    pictures = {name: _picture(study, layer, name_and_seed, threshold) for name, name_and_seed in bases.items()}
    weight, plan = pictures[basis]
    where = look | {"layer": f"{look['layer']}, {BASES[basis].lower()}"}
    drawn = {
        "importance": partial(weights.importance_map, plan),
        "weights": partial(weights.weight_map, weight, widths=plan.block_width),
        "loss": partial(weights.potential_loss_map, plan),
    }
    components.show(drawn[shown](**where), f"lab-basis-{shown}")
    components.show(losses.block_loss_bars(plan, **where), "lab-basis-blocks")
    ranges = [f"{BASES[name].lower()} {plan.relative_range:.3f}" for name, (_, plan) in pictures.items()]
    st.caption(f"Relative range: {', '.join(ranges)}. The best basis need not be the most columnar one.")


def _knows_heads(study: Study) -> bool:
    """Whether the heads that can be rotated are listed; if not, looks for them once the model is free."""
    if study.knows(HEADS) or (study.kept and study.kept.heads):
        return True
    if study.job.status == "running":
        st.info("Once this run has ended, a few tokens run through the model to find which heads can be rotated.")
        components.wait_for(study, lambda: False)
        return False
    return components.finished([partial(rotatable, study)], "lab-heads", study.subject, "search for heads")


def _offer_nearest(study: Study, layer: str, layouts: Iterable[str]) -> None:
    """Says that nothing can be rotated here, and offers the measured layer of the nearest decoder block."""
    block = words.place_of(layer)[0] or 0
    measured = [name for name in layouts if study.has(name)]
    other = min(measured, key=lambda name: abs((words.place_of(name)[0] or 0) - block), default=None)
    components.info(
        f"The heads of {words.short_layer(layer)} cannot be rotated: it is not a suitable output projection."
        + ("" if other else " No suitable layer has been measured; measure one on the start page.")
    )
    if other:
        label = f"Show {words.plain(words.short_layer(other))}"
        press: dict[str, Any] = {"key": "lab-basis-nearest", "on_click": session.choose_layer, "args": (other,)}
        st.button(label, icon=":material/arrow_forward:", **press)


def _measured(study: Study, layer: str, pairs: list[tuple[str, str]], threshold: float) -> bool:
    """Prunes by each (basis, method) in the background; what takes long waits for a press of the button."""
    subject, weight = (study.subject, layer), study.weight(layer)
    left = [pair for pair in pairs if not study.knows(_key(*pair, threshold), ("bases", layer))]
    sweeps = sweeps_of([method for _, method in left]) * weight.numel() * weight.shape[1]
    learns = any(basis == "learned" for basis, _ in left) and not study.knows("learned", ("bases", layer))
    seconds = sweeps / SWEEP_EFFICIENCY / matmul_rate() + learns * STEPS * LEARNING * weight.numel()
    notice = f"This prunes the layer {words.count(len(left), 'time')}: by {len(METHODS)} methods in every basis."
    if not components.may_begin(seconds, notice, "Measure it", "lab-bases", subject):
        return False
    pieces = [partial(measure, study, layer, basis, method, threshold) for basis, method in left]
    return components.finished(pieces, "lab-bases", (*subject, *pairs, threshold), "pruning")


def rotatable(study: Study) -> tuple[dict[str, HeadLayout], str]:
    """Output projections whose heads can be rotated, or why none can. The first call may run a few tokens."""
    return study.remember(HEADS, lambda: _look_for_heads(study))


def _look_for_heads(study: Study) -> tuple[dict[str, HeadLayout], str]:
    if study.kept and study.kept.heads:
        return study.kept.heads, ""
    assert study.loaded is not None
    while not study.loaded.lock.acquire(timeout=0.2):
        stop_point()
    try:
        return {heads.output.name: heads.layout for heads in value_heads(study.loaded.network)}, ""
    except rose.RoseError as problem:
        return {}, str(problem)
    finally:
        study.loaded.lock.release()


def _in_basis(study: Study, layer: str, basis: str) -> tuple[Tensor, rose.InputStatistics, rose.InputStatistics | None]:
    """An output projection, (out, in), its inputs, and its held-out inputs, if any, in a basis, or "random:SEED"."""
    weight, statistics, held_out = study.weight(layer), study.statistics(layer), study.held_out_statistics(layer)
    if basis == "given":
        return weight, statistics, held_out
    layout = rotatable(study)[0][layer]
    options: dict[str, Any] = {"pattern": parse_sparsity(study.setup.sparsity), "block_size": study.setup.block_size}
    find = partial(find_rotations, weight, statistics.hessian, layout, basis, **options)
    rotations = study.remember(basis, find, ("bases", layer))
    turned = [stream and rotate_statistics(stream, layout, rotations) for stream in (statistics, held_out)]
    assert turned[0] is not None
    return rotate_columns(weight, layout, rotations).to(weight.dtype), turned[0], turned[1]


def _picture(study: Study, layer: str, basis: str, threshold: float) -> tuple[Tensor, rose.OrderPlan]:
    """W, (out, in), and its plan in this basis; remembered."""

    def compute() -> tuple[Tensor, rose.OrderPlan]:
        weight, statistics, _ = _in_basis(study, layer, basis)
        setup = study.setup
        return weight, rose.plan_order(weight, statistics, sparsity=setup.sparsity, block_size=setup.block_columns)

    weight, plan = study.remember(("basis", layer, basis), compute)
    return weight, replace(plan, threshold=threshold)


def measure(study: Study, layer: str, basis: str, method: str, threshold: float = THRESHOLD) -> tuple[float, float]:
    """Relative errors of a method in this basis on calibration and held-out inputs, NaN without any; remembered."""

    def compute() -> tuple[float, float]:
        weight, statistics, held_out = _in_basis(study, layer, basis)
        options = study.layer_options() | {"method": method, "threshold": threshold}
        result = rose.prune_layer(weight, statistics, **options)
        return result.relative_error, error_on(held_out, weight, result.weight)

    return study.remember(_key(basis, method, threshold), compute, ("bases", layer))


def _key(basis: str, method: str, threshold: float) -> tuple[Any, ...]:
    return basis, method, threshold if method == "rose" else None
