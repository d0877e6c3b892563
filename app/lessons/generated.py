"""The steps on layers generated for them: how strong a block must be, from layer to layer, three sizes, and bases."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import streamlit as st

from app import components, session, words
from app.components import URL
from app.figures import drift, losses, orders, savings, weights
from app.lab.bases import BASES
from app.lessons import basis, chain, sizes, subjects, texts
from app.lessons.stage import reveal_button, show, sides, tell
from app.lessons.subjects import LayerDesign


def strength_step() -> None:
    left, stage = sides()
    with left:
        text = st.container()
        design = _choose_design()
    here, points = subjects.generated(design), subjects.strengths(design, subjects.STRENGTHS)
    with text:
        tell(texts.strength_lesson(design, points, here))
    with stage:
        views = {"gain": "Gain by strength", "weights": "Weights", "loss": "Block loss"}
        view = components.section(views, "lesson_view", "Picture")
        look = components.look(here.name, marked_block=design.strong_block)
        if view == "gain":
            drawing = orders.strength_curve(
                points, design.strength, threshold=here.plan.threshold, theme=session.theme()
            )
        elif view == "weights":
            weight, _ = subjects.generate(design)
            drawing = weights.weight_map(weight, widths=here.plan.block_width, **look)
        else:
            drawing = losses.block_loss_bars(here.plan, **look)
        drawing.figure.update_layout(height=404)
        show(drawing, "strength")


def _choose_design() -> LayerDesign:
    strength = st.slider("Strength of one block", 0.0, 4.0, 2.0, 0.25, key="lesson_strength", bind=URL)
    first, second = st.columns(2)
    blocks = first.slider("Blocks", 3, 8, 6, key="lesson_blocks", bind=URL)
    place = second.slider(
        "Which block", 0, 7, 5, key="lesson_place", bind=URL, help="The last block if there are fewer"
    )
    with st.popover("Rows and seed", icon=":material/tune:"):
        rows = st.slider("Rows", 16, 96, 64, 16, key="lesson_rows", bind=URL)
        seed = st.number_input("Seed", 0, 9999, 2, key="lesson_seed", bind=URL)  # with 0 chance alone makes some gain
    return LayerDesign(rows, blocks, strength, place, seed)


def _choose_chain() -> chain.ChainDesign:
    first, second = st.columns(2)
    sparsity = first.slider("Sparsity", 0.3, 0.9, 0.7, 0.1, key="lesson_chain_sparsity", bind=URL)
    tokens = second.select_slider("Tokens", (64, 128, 256, 512, 2048, 8192), 2048, key="lesson_chain_tokens", bind=URL)
    return chain.ChainDesign(sparsity=sparsity, tokens=tokens)


def depth_step() -> None:
    finding = "Compensation between layers takes the drift from {} to {}"
    _chain_step("depth", chain.drifts, texts.depth_lesson, finding)


def tuning_step() -> None:
    finding = "Training the kept weights takes the drift from {} to {}"
    _chain_step("tuning", chain.drifts_tuned, texts.tuning_lesson, finding)


def _chain_step(
    key: str,
    drifts: Callable[[chain.ChainDesign], pd.DataFrame],
    lesson: Callable[[chain.ChainDesign, pd.DataFrame], texts.Lesson],
    finding: str,
) -> None:
    """A lesson on generated layers one behind the other; `finding` takes the last two of the drifts at their end."""
    left, stage = sides()
    with left:
        text = st.container()
        design = _choose_chain()
    table = drifts(design)
    with text:
        tell(lesson(design, table))
    with stage:
        said = finding.format(*map(words.number, chain.ends(table)[-2:]))
        show(drift.drift_curves(table, place="layer", finding=said, theme=session.theme()), key)


def sizes_step() -> None:
    left, stage = sides()
    with left:
        text = st.container()
        heads = st.select_slider(
            "Share removed",
            range(1, sizes.HEADS),
            2,
            key="lesson_share",
            bind=URL,
            format_func=lambda count: f"{count} of {sizes.HEADS}",
        )
    table = sizes.errors(heads)
    with text:
        tell(texts.sizes_lesson(table))
    with stage:
        shown = table.assign(size=table["size"].map(sizes.SIZES))
        what = f"{heads} of {sizes.HEADS} parts of the layer go"
        show(savings.size_bars(shown, what=what, theme=session.theme()), "sizes")


def basis_step() -> None:
    """Predict, then reveal."""
    layer, state = basis.turned(), st.session_state
    left, stage = sides()
    told = guesses = state.get("lesson_turned")

    def reveal(guesses: tuple[str, str] | None) -> None:
        state.lesson_turned = guesses

    with left:
        tell(texts.basis_lesson(layer, told))
        if told is None:
            changes, bets = texts.CHANGES, texts.BETS
            model = st.pills(
                "In the learned basis, does the model compute something else?",
                list(changes),
                format_func=changes.__getitem__,
                key="lesson_model",
            )
            error = st.pills(
                "There, SparseGPT will make …", list(bets), format_func=bets.__getitem__, key="lesson_error"
            )
            guesses = None if None in (model, error) else (model, error)
        reveal_button(told is not None, guesses, reveal)
    with stage if told is None else left:  # what is to be read is longer once it is told
        chosen = st.select_slider(
            "Basis of the heads", list(BASES), "given", format_func=BASES.__getitem__, key="lesson_basis", bind=URL
        )
    with stage:
        if told is None:
            look = components.look(f"the generated layer, {BASES[chosen].lower()}")
            drawing = weights.importance_map(layer[chosen].plan, **look)
            drawing.figure.update_layout(height=372)
            show(drawing, "basis")
        else:
            drawing = orders.basis_errors(basis.errors(), BASES, chosen, **components.look("the generated layer"))
            drawing.figure.update_yaxes(title_text="relative error")  # the stage is low
            drawing.figure.update_layout(height=420)
            show(drawing, "basis-errors")
