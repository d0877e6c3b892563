"""The steps on layers generated for them: how strong a block must be, from layer to layer, and three sizes."""

from __future__ import annotations

import streamlit as st

from app import components, session, words
from app.components import URL
from app.figures import depth, learn, losses, weight_maps
from app.lessons import chain, sizes, subjects, texts
from app.lessons.stage import show, sides, tell
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
            drawing = learn.strength_curve(
                points, design.strength, threshold=here.plan.threshold, theme=session.theme()
            )
        elif view == "weights":
            weight, _ = subjects.generate(design)
            drawing = weight_maps.weight_map(weight, widths=here.plan.block_width, **look)
        else:
            drawing = losses.block_loss_bars(here.plan, **look)
        drawing.figure.update_layout(height=372)
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
        seed = st.number_input("Seed", 0, 9999, 0, key="lesson_seed", bind=URL)
    return LayerDesign(rows, blocks, strength, place, seed)


def depth_step() -> None:
    left, stage = sides()
    with left:
        text = st.container()
        first, second = st.columns(2)
    sparsity = first.slider("Sparsity", 0.3, 0.9, 0.7, 0.1, key="lesson_chain_sparsity", bind=URL)
    tokens = second.select_slider("Tokens", (64, 128, 256, 512, 2048, 8192), 2048, key="lesson_chain_tokens", bind=URL)
    design = chain.ChainDesign(sparsity=sparsity, tokens=tokens)
    table = chain.drifts(design)
    with text:
        tell(texts.depth_lesson(design, table))
    with stage:
        _, inside, between = map(words.number, chain.ends(table))
        finding = f"Compensation between layers takes the drift from {inside} to {between}"
        show(depth.drift_curves(table, place="layer", finding=finding, theme=session.theme()), "depth")


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
        show(learn.size_bars(shown, what=what, theme=session.theme()), "sizes")
