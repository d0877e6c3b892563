"""Layer: one layer in depth, from its weights to the order in which ROSE would prune them."""

from collections.abc import Callable, Sequence
from math import isnan

import pandas as pd
import streamlit as st

import rose
from app import components, session, words
from app.components import URL, look
from app.figures import losses, maps, methods, palette, weights
from app.figures.style import Drawing
from app.lab.sweeps import times
from app.results import trust
from app.study import tables
from app.study.study import Study
from rose.layer.loss import block_widths
from rose.layer.pattern import parse_sparsity

NO_BLOCK = "none"
ORDERS = {"rose": "ROSE", "two_level": "Two-level", "global": "Global"}
COMPARED = 4  # layers that are compared before the user chooses
# On a narrow screen the picture comes first.
NUMBERS_LAST = "<style>@media (max-width: 640px) { :has(> .st-key-layer-numbers) { order: 1; } }</style>"
Figure = tuple[str, str, str | None, str]  # label, value, what is said of it, and what it means


def draw() -> None:
    st.title("Layer: what makes it columnar, or not?")
    study, layer = components.require_layer("Here you see one layer in depth", key_figures)
    plan = session.plan(study, layer)
    key_figures(study, layer)
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    with left:
        section = components.section({name: label for name, (label, _) in SECTIONS.items()}, "section")
    with right:
        block = choose_block(plan) if section not in ("error", "compare", "trust") else None
    SECTIONS[section][1](study, layer, plan, block)
    if block is not None:
        exact(plan, block)


def key_figures(study: Study, layer: str) -> None:
    """What the numbers of a measured layer tell; its inputs need not be there."""
    row = session.overview(study).set_index("layer").loc[layer]
    blocks = len(block_widths(row["columns"], study.setup.block_size))
    st.caption(
        f"**{words.short_layer(layer)}**, {row['rows']} × {row['columns']} weights (output × input channels) in "
        f"{words.count(blocks, 'block')}, sparsity {parse_sparsity(study.setup.sparsity)}"
    )
    dead = None if pd.isna(row["live_range"]) else f"range {row['live_range']:.3f} without them"
    spread: Figure = (
        "Relative range (block-loss spread)",
        f"{row['relative_range']:.3f}",
        against_threshold(row),
        "(max − min) / max of the blocks' losses per column",
    )
    raised = "raised" if row["is_damping_raised"] else None
    further: list[Figure] = [
        ("Condition number of H", words.number(row["condition"]), None, "Of the damped Hessian"),
        ("Damping used", f"{row['damping']:g}", raised, "Relative to the mean of diag(H)"),
        ("Dead columns", f"{row['dead_columns']:.0f}", dead, "Input channels that were 0 on every token"),
    ]
    # What people read first: the errors on text that nothing was fitted to.
    held_out, calibration = errors(row, "held_out", "Held-out error"), errors(row, "error", "Calibration error")
    first = [spread, *(held_out or calibration)]
    with st.container(horizontal=True, key="layer-numbers"):
        st.html(NUMBERS_LAST)
        show_figures(first)
        with st.popover("More numbers", icon=":material/more_horiz:"):
            show_figures([*(calibration if held_out else ()), *further])
    if row["is_columnar"] and row["gain"] * row["held_out_gain"] < 0:
        st.caption(
            f"The two kinds of tokens disagree: ROSE has {versus(row['held_out_gain'], True)} error than SparseGPT on "
            f"held-out tokens, and {versus(row['gain'], True)} on those that it was fitted to."
        )
    components.cautions(study.cautions(layer))


def against_threshold(row: pd.Series) -> str:
    called, sign = ("columnar", ">") if row["is_columnar"] else ("not columnar", "≤")
    return f"{called} ({row['relative_range']:.3f} {sign} {session.threshold():g})"


def errors(row: pd.Series, kind: str, name: str) -> list[Figure]:
    """Of SparseGPT and of ROSE; none where nothing was held out."""
    natural, ordered = row[f"{kind}_sparsegpt"], row[f"{kind}_rose"]
    if pd.isna(natural):
        return []
    texts = words.apart(natural, ordered)
    meaning = "Relative squared error of the layer's outputs"
    saved = versus(1 - times(ordered, natural), row["is_columnar"])
    return [
        (f"{name}, SparseGPT", texts[0], None, meaning),
        (f"{name}, ROSE", texts[1], saved, f"{meaning}; two-level order if columnar"),
    ]


def show_figures(figures: Sequence[Figure]) -> None:
    for label, value, delta, meaning in figures:
        st.metric(label, value, delta, delta_color="off", delta_arrow="off", help=meaning, width="content")


def versus(saved: float, columnar: bool) -> str:
    if not columnar or isnan(saved) or not saved:  # NaN: 0 of 0
        return "same as SparseGPT"
    return f"{words.percent(abs(saved))} {'less' if saved > 0 else 'more'}"


def choose_block(plan: rose.OrderPlan) -> int | None:
    # The labels go into the URL, so they must not depend on the layer.
    labels = {NO_BLOCK: "No block marked"} | {str(b): f"Block {b}" for b in range(len(plan.block_width))}
    if st.session_state.get("block", NO_BLOCK) not in labels:
        st.session_state.block = NO_BLOCK  # the former layer had more blocks
    chosen = st.selectbox(
        "Block",
        list(labels),
        format_func=labels.__getitem__,
        key="block",
        bind=URL,
        label_visibility="collapsed",
        help="Marked in every figure that has blocks; exact values stand below.",
    )
    return None if chosen in (None, NO_BLOCK) else int(chosen)


def why(study: Study, layer: str, plan: rose.OrderPlan, block: int | None) -> None:
    norm = study.statistics(layer).mean_square.sqrt()
    options = look(layer, marked_block=block, heads=study.heads(layer), massive_errors=massive_errors(study, layer))
    drawing = weights.layer_strips(study.weight(layer), plan, norm, **options)
    components.show(drawing, "layer-strips", fill=(430, "760px"))


def massive_errors(study: Study, layer: str) -> tuple[float, float] | None:
    """SparseGPT's error, and that without massive activations; None in layers that have none."""
    table = study.records()
    row = table[(table["layer"] == layer) & (table["method"] == "sparsegpt")].iloc[0]
    return None if isnan(row["error_without_massive"]) else (row["relative_error"], row["error_without_massive"])


def show_weights(study: Study, layer: str, plan: rose.OrderPlan, block: int | None) -> None:
    shown = components.choose("As", {"map": "Heatmap", "surface": "3-D surface"}, "weights_as")
    draw = weights.weight_map if shown == "map" else weights.weight_surface
    key = "layer-weights" if shown == "map" else "layer-surface"
    drawn = draw(study.weight(layer), widths=plan.block_width, **look(layer, marked_block=block))
    components.show(drawn, key, fill=(480, "760px"))


def inputs(study: Study, layer: str, plan: rose.OrderPlan, block: int | None) -> None:
    added = study.added_damping(layer)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        shown = components.choose("Of the Hessian", {"diagonal": "Diagonal", "spectrum": "Spectrum"}, "hessian")
        if shown == "diagonal":
            scale = components.choose("Scale", {"linear": "Linear", "log": "Logarithmic"}, "scale")
            arrange = components.choose("Channels", {"natural": "Natural", "sorted": "Sorted"}, "arrange")
    if shown == "diagonal":
        options = look(layer, marked_block=block, added=added, arrange=arrange, scale=scale, widths=plan.block_width)
        options["massive_errors"] = massive_errors(study, layer)
        components.show(weights.hessian_diagonal(plan.hessian_diagonal, **options), "layer-diagonal")
        return
    signature = (study.created, layer, "spectrum")
    if components.finished([lambda: study.spectrum(layer)], "layer-spectrum-work", signature, "spectrum"):
        drawn = weights.hessian_spectrum(study.spectrum(layer), added=added, **look(layer))
        components.show(drawn, "layer-spectrum")


LOSS_MAPS: dict[str, tuple[str, Callable[..., Drawing]]] = {
    "columns": ("Column loss", losses.column_loss_map),
    "importance": ("Importance", weights.importance_map),
    "mask": ("Pre-pruning mask", weights.prepruning_mask),
    "potential": ("Potential loss", weights.potential_loss_map),
}


def pre_pruning(study: Study, layer: str, plan: rose.OrderPlan, block: int | None) -> None:
    options = look(layer, marked_block=block)
    components.show(losses.block_loss_bars(plan, **options), "layer-bars", on_select=pick_block)
    shown = components.choose("Map of", {name: label for name, (label, _) in LOSS_MAPS.items()}, "loss_map")
    components.show(LOSS_MAPS[shown][1](plan, **options), f"layer-{shown}")


def pick_block(key: str) -> None:
    points = st.session_state[key].selection.points
    if points:
        st.session_state.block = str(int(points[0]["x"]))


def order(study: Study, layer: str, plan: rose.OrderPlan, block: int | None) -> None:
    last = len(plan.column_loss) - 1
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = components.choose("Order", ORDERS, "picture_order")
        if (st.session_state.get("column") or 0) > last:
            st.session_state.column = None
        column = st.number_input(
            f"Column to follow, 0 to {last}",
            0,
            last,
            None,
            key="column",
            bind=URL,
            placeholder="the costliest",
            width=220,
        )
    followed = int(plan.column_loss.argmax()) if column is None else column
    options = look(layer, marked_block=block, marked_column=followed)
    components.show(losses.order_picture(plan, shown_order(plan, name), **options), "layer-order")
    if name == "rose" and not plan.is_columnar:
        st.caption("Not columnar, so ROSE leaves the columns as they are. Choose two-level to see where they would go.")


def shown_order(plan: rose.OrderPlan, name: str) -> rose.Order:
    return plan.order if name == "rose" else rose.make_order(plan, name)


def error(study: Study, layer: str, plan: rose.OrderPlan, block: int | None) -> None:
    table = session.overview(study)
    table = table[table["layer"] == layer]
    is_held_out = method_errors(table, "layer-errors")
    row = table.iloc[0]
    if not plan.is_columnar:
        name, gain = ("held_out_two_level", "held_out_gain") if is_held_out else ("error_two_level", "gain")
        st.caption(
            f"Not columnar, so ROSE is the same as SparseGPT here. Two-level order would give an error of "
            f"{words.number(row[name])}, {versus(row[gain], True)}."
        )
    error_numbers(tables.error_records(table))


def method_errors(table: pd.DataFrame, key: str) -> bool:
    """Bars of each method's error in these layers, on the tokens that are chosen; whether those are held out."""
    kinds = {"held_out": "Held-out tokens"} if table["held_out_sparsegpt"].notna().any() else {}
    kinds["calibration"] = "Calibration tokens"
    is_held_out = components.choose("Error on", kinds, "error_on") == "held_out"
    column = "held_out_error" if is_held_out else "relative_error"
    drawing = methods.method_errors(tables.error_records(table), column=column, theme=session.theme())
    components.show(drawing, key)
    return is_held_out


def error_numbers(records: pd.DataFrame) -> None:
    number = st.column_config.NumberColumn
    labels = records["method"].map(lambda name: palette.method_style(name).label)
    st.dataframe(
        records.assign(layer=records["layer"].map(words.short_layer), method=labels),
        hide_index=True,
        column_order=["layer", "method", "relative_error", "held_out_error"],
        column_config={
            "layer": "Layer",
            "method": "Method",
            "relative_error": number("Relative error, calibration", format="%.5f"),
            "held_out_error": number("Held-out", format="%.5f"),
        },
        key="layer-error-numbers",
        alt="Relative error of each method",
    )


def compare(study: Study, layer: str, plan: rose.OrderPlan, block: int | None) -> None:
    """Several layers side by side, with the chosen one unless the user removes it."""
    state = st.session_state
    table = session.overview(study)
    known = table.sort_values("relative_range", ascending=False, kind="stable")["layer"].tolist()
    first = [layer, *(name for name in known if name != layer)][:COMPARED]
    if not set(state.get("compare") or known) & set(known):  # those of another model, or of a link
        del state.compare
    former = state.get("compare_for", layer)
    if "compare" not in state:
        state.compare_first = first
    elif state.compare and former != layer:  # the chosen layer takes the place of the one before
        if set(state.compare) == set(state.get("compare_first", ())):
            state.compare = state.compare_first = first
        else:
            state.compare = [layer, *(name for name in state.compare if name not in (layer, former))]
    state.compare_for = layer
    chosen = st.multiselect(
        "Layers",
        table["layer"].tolist(),
        default=first,
        format_func=words.short_layer,
        key="compare",
        bind=URL,
        help="Default: the chosen layer and those with the highest relative range.",
    )
    if not chosen:
        st.info("Choose at least one layer.")
        return
    rows = table[table["layer"].isin(chosen)]
    components.show(maps.range_bars(rows, **components.look_over()), "compare-ranges")
    method_errors(rows, "compare-errors")
    error_numbers(tables.error_records(rows))


SECTIONS: dict[str, tuple[str, Callable[[Study, str, rose.OrderPlan, int | None], None]]] = {
    "why": ("Why", why),
    "weights": ("Weights", show_weights),
    "inputs": ("Inputs", inputs),
    "losses": ("Losses", pre_pruning),
    "order": ("Order", order),
    "error": ("Error", error),
    "compare": ("Compare layers", compare),
    "trust": ("Trust", trust.of_layer),
}


def exact(plan: rose.OrderPlan, block: int) -> None:
    name = st.session_state.get("picture_order") or "rose"
    made = shown_order(plan, name)
    table = tables.column_table(plan, made, block)
    loss, number = float(plan.block_loss[block]), st.column_config.NumberColumn
    first, last = table["column"].iloc[0], table["column"].iloc[-1]
    st.markdown(
        f"**Block {block}**: columns {first} to {last}, block loss {words.number(loss)}, "
        f"{words.number(loss / len(table))} per column"
    )
    st.dataframe(
        table,
        hide_index=True,
        height=280,
        column_config={
            "column": number("Column (before)"),
            "position": number("Position in block"),
            "step": number("Step (after)", help=f"When it is pruned: {palette.order_style(made.name).label}"),
            "column_loss": st.column_config.ProgressColumn(
                "Column loss", min_value=0.0, max_value=float(plan.column_loss.max()) or 1.0, format="%.4g"
            ),
            "rank": number("Rank by loss", help="In the whole layer; 1 loses most"),
            "hessian_diagonal": number("H_jj", format="%.4g"),
        },
        key="block-columns",
        alt=f"Columns of block {block} with loss, rank, Hessian diagonal and place in the order",
    )


draw()
