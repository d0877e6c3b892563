"""Layer: one layer in depth, in five pictures from its weights to the errors that an order leaves."""

from collections.abc import Callable
from math import isnan
from typing import Any

import pandas as pd
import streamlit as st

import rose
from app import components, first, session, words
from app.components import URL, look
from app.figures import losses, maps, methods, orders, palette, weights
from app.figures.style import Drawing
from app.forms import prune_choices
from app.lab.sweeps import times
from app.results import trust
from app.study import tables
from app.study.study import Study
from rose.layer.loss import block_widths
from rose.layer.pattern import parse_sparsity

NO_BLOCK = "none"
ORDERS = {"rose": "ROSE", "two_level": "Two-level", "global": "Global", "pivot": "Pivot"}
COMPARED = 4  # layers that are compared before the user chooses
Section = Callable[[Study, str, rose.OrderPlan, int | None], None]


def draw() -> None:
    st.title("Layer: what makes it columnar, or not?")
    study, layer = components.require_layer("Here you see one layer in depth", meanwhile)
    plan = session.plan(study, layer)
    key_figures(study, layer)
    with st.container(horizontal=True, vertical_alignment="center"):
        section = components.section({name: label for name, (label, _) in SECTIONS.items()}, "section")
        block = choose_block(plan)
    SECTIONS[section][1](study, layer, plan, block)
    expander = st.expander("More: weights, spectrum, blocks, other layers, checks", key="layer_more", bind=URL)
    if expander.open:
        with expander:
            name = components.section({name: label for name, (label, _) in MORE.items()}, "more", "More")
            MORE[name][1](study, layer, plan, block)
    if not study.setup.stream:  # or the page Prune is shut
        label, icon = "Prune this layer in the whole model, as the study does", ":material/content_cut:"
        st.page_link("views/prune.py", label=label, icon=icon, query_params=as_studied(study, layer))


def as_studied(study: Study, layer: str) -> dict[str, Any]:
    """The choices of the page Prune that prune this layer alone as the study has: its errors are then the study's."""
    methods = [rose.METHODS[name].label for name in ("sparsegpt", "rose")]
    chosen = {"prune_layers": layer, "prune_methods": methods, "prune_targets": [prune_choices.TARGETS["layer"]]}
    return {**study.setup.to_texts(), **chosen, "layer": layer}


def meanwhile(study: Study, layer: str) -> None:
    """While the inputs of a layer are read: its numbers, and its picture where the example has it."""
    key_figures(study, layer)
    if study.is_example:
        first.of_layer("layer", layer, session.theme())


def key_figures(study: Study, layer: str) -> None:
    """The numbers of a measured layer, held-out errors first; its inputs are not needed."""
    row = session.overview(study).set_index("layer").loc[layer]
    blocks = words.count(len(block_widths(row["columns"], study.setup.block_size)), "block")
    called, sign = ("columnar", ">") if row["is_columnar"] else ("not columnar", "≤")
    st.markdown(
        f"**{words.plain(words.short_layer(layer))}**, {row['rows']} × {row['columns']} weights in {blocks}, sparsity "
        f"{parse_sparsity(study.setup.sparsity)}: **{called}**, relative range {row['relative_range']:.3f} {sign} "
        f"{session.threshold():g}. {errors(row, 'held_out', 'Held-out') or errors(row, 'error', 'Calibration')}"
    )
    components.cautions(study.cautions(layer))


def errors(row: pd.Series, kind: str, tokens: str) -> str:
    """Of SparseGPT and of ROSE; nothing where nothing was held out."""
    natural, ordered = row[f"{kind}_sparsegpt"], row[f"{kind}_rose"]
    if pd.isna(natural):
        return ""
    first, second = words.apart(natural, ordered)
    saved = 1 - times(ordered, natural)  # NaN: 0 of 0
    change = f"{words.percent(abs(saved))} {'less' if saved > 0 else 'more'}"
    if not row["is_columnar"] or isnan(saved) or not saved:
        change = "the same" if row["is_columnar"] else "the same by construction"
    return f"{tokens} error: SparseGPT **{first}**, ROSE **{second}**, {change}."


def choose_block(plan: rose.OrderPlan) -> int | None:
    # The labels go into the URL, so they must not depend on the layer.
    labels = {NO_BLOCK: "No block marked"} | {str(b): f"Block {b}" for b in range(len(plan.block_width))}
    if st.session_state.get("block", NO_BLOCK) not in labels:
        st.session_state.block = NO_BLOCK  # the former layer had more blocks
    chosen = st.selectbox(
        "Block", list(labels), format_func=labels.__getitem__, key="block", bind=URL, label_visibility="collapsed",
        width=170, help="Marked in every figure that has blocks.",
    )  # fmt: skip
    return None if chosen in (None, NO_BLOCK) else int(chosen)


# The five pictures


def why(study: Study, layer: str, plan: rose.OrderPlan, block: int | None) -> None:
    norm = study.statistics(layer).mean_square.sqrt()
    options = look(layer, marked_block=block, heads=study.heads(layer), massive_errors=massive_errors(study, layer))
    drawing = weights.layer_strips(study.weight(layer), plan, norm, **options)
    components.show(drawing, "layer-strips", fill=(370, "760px"))


def massive_errors(study: Study, layer: str) -> tuple[float, float] | None:
    """SparseGPT's error, and that without massive activations; None in layers that have none."""
    table = study.records()
    row = table[(table["layer"] == layer) & (table["method"] == "sparsegpt")].iloc[0]
    return None if isnan(row["error_without_massive"]) else (row["relative_error"], row["error_without_massive"])


def diagonal(study: Study, layer: str, plan: rose.OrderPlan, block: int | None) -> None:
    with st.container(horizontal=True):
        arrange = components.choose("Channels", {"natural": "Natural", "sorted": "Sorted"}, "arrange")
        scale = components.choose("Scale", {"linear": "Linear", "log": "Logarithmic"}, "scale")
    options = look(layer, marked_block=block, added=study.added_damping(layer), widths=plan.block_width)
    options |= {"arrange": arrange, "scale": scale, "massive_errors": massive_errors(study, layer)}
    components.show(weights.hessian_diagonal(plan.hessian_diagonal, **options), "layer-diagonal")


LOSS_MAPS: dict[str, tuple[str, Callable[..., Drawing]]] = {
    "columns": ("Column loss", losses.column_loss_map),
    "importance": ("Importance", weights.importance_map),
    "potential": ("Potential loss", weights.potential_loss_map),
    "mask": ("Pre-pruning mask", weights.prepruning_mask),
}


def loss_maps(study: Study, layer: str, plan: rose.OrderPlan, block: int | None) -> None:
    shown = components.section({name: label for name, (label, _) in LOSS_MAPS.items()}, "loss_map", "Map of")
    components.show(LOSS_MAPS[shown][1](plan, **look(layer, marked_block=block)), f"layer-{shown}")


def order(study: Study, layer: str, plan: rose.OrderPlan, block: int | None) -> None:
    name = components.section(ORDERS, "picture_order", "Order")
    chosen = plan.order if name == "rose" else rose.make_order(plan, name)
    if name == "rose":
        st.caption(
            "ROSE makes the two-level order (columns within blocks, then blocks, by loss) where a layer is columnar. "
            + ("This layer is." if plan.is_columnar else "This layer is not, so ROSE keeps natural order.")
        )
    options = look(layer, marked_block=block)
    components.show(
        losses.order_picture(plan, chosen, marked_column=int(plan.column_loss.argmax()), **options), "layer-order"
    )
    shown = {other: study.prices(layer, other) for other in dict.fromkeys(("natural", chosen.name))}
    components.show(orders.price_lines(shown, widths=plan.block_width, **options), "layer-prices")


def error(study: Study, layer: str, plan: rose.OrderPlan, block: int | None) -> None:
    method_errors(session.overview(study).query("layer == @layer"), "layer-errors")


def method_errors(table: pd.DataFrame, key: str) -> None:
    """Errors of each method in these layers, held out where there are any, and both in a table."""
    records = tables.error_records(table)
    column = "held_out_error" if table["held_out_sparsegpt"].notna().any() else "relative_error"
    components.show(methods.method_errors(records, column=column, theme=session.theme()), key)
    number = st.column_config.NumberColumn
    labels = records["method"].map(lambda name: palette.method_style(name).label)
    st.dataframe(
        records.assign(layer=records["layer"].map(words.short_layer), method=labels),
        hide_index=True,
        column_order=["layer", "method", "held_out_error", "relative_error"],
        column_config={
            "layer": "Layer",
            "method": "Method",
            "held_out_error": number("Held-out error", format="%.5f"),
            "relative_error": number("Calibration error", format="%.5f"),
        },
        key=f"{key}-numbers",
        alt="Relative error of each method",
    )


# More


def show_weights(study: Study, layer: str, plan: rose.OrderPlan, block: int | None) -> None:
    shown = components.section({"map": "Heatmap", "surface": "3-D surface"}, "weights_as", "Weights as")
    draw = weights.weight_map if shown == "map" else weights.weight_surface
    drawn = draw(study.weight(layer), widths=plan.block_width, **look(layer, marked_block=block))
    components.show(drawn, f"layer-weights-{shown}")


def spectrum(study: Study, layer: str, plan: rose.OrderPlan, block: int | None) -> None:
    signature = (study.created, layer, "spectrum")
    if components.finished([lambda: study.spectrum(layer)], "layer-spectrum-work", signature, "spectrum"):
        added = study.added_damping(layer)
        components.show(weights.hessian_spectrum(study.spectrum(layer), added=added, **look(layer)), "layer-spectrum")


def blocks(study: Study, layer: str, plan: rose.OrderPlan, block: int | None) -> None:
    components.show(losses.block_loss_bars(plan, **look(layer, marked_block=block)), "layer-bars", on_select=pick_block)
    if block is None:
        return
    table, number = tables.column_table(plan, plan.order, block), st.column_config.NumberColumn
    st.dataframe(
        table,
        hide_index=True,
        height=280,
        column_config={
            "column": number("Column"),
            "position": number("Position in block"),
            "step": number("Step in ROSE's sweep"),
            "column_loss": number("Column loss", format="%.4g"),
            "rank": number("Rank by loss", help="In the whole layer; 1 loses most"),
            "hessian_diagonal": number("H_jj", format="%.4g"),
        },
        key="block-columns",
        alt=f"Columns of block {block} with loss, rank, Hessian diagonal and place in the order",
    )


def pick_block(key: str) -> None:
    points = st.session_state[key].selection.points
    if points:
        st.session_state.block = str(int(points[0]["x"]))


def compare(study: Study, layer: str, plan: rose.OrderPlan, block: int | None) -> None:
    """Layers side by side: the chosen layer and the highest relative ranges, or the chosen layers."""
    table = session.overview(study)
    ranked = table.sort_values("relative_range", ascending=False, kind="stable")["layer"].tolist()
    chosen = st.multiselect(
        "Beside this layer",
        [name for name in table["layer"] if name != layer],
        default=[name for name in ranked if name != layer][: COMPARED - 1],
        format_func=words.short_layer,
        key=f"compare-{study.created}-{layer}",
    )
    rows = table[table["layer"].isin([layer, *chosen])]
    components.show(maps.range_bars(rows, **components.look_over()), "compare-ranges")
    method_errors(rows, "compare-errors")


def numbers(study: Study, layer: str, plan: rose.OrderPlan, block: int | None) -> None:
    row = session.overview(study).set_index("layer").loc[layer]
    natural, ordered = (words.number(row[f"error_{name}"]) for name in ("sparsegpt", "rose"))
    shown = {
        "Calibration error": f"SparseGPT {natural}, ROSE {ordered}",
        "Held-out error of two-level order": words.number(row["held_out_two_level"]),
        "Condition number of the damped H": words.number(row["condition"]),
        "Damping, relative to the mean of diag(H)": f"{row['damping']:g}{', raised' * bool(row['is_damping_raised'])}",
        "Dead columns": f"{row['dead_columns']:.0f}",
        "Relative range without dead columns": words.number(row["live_range"]),
    }
    components.table([{"Number": name, "Value": text} for name, text in shown.items()], "Further numbers of this layer")


SECTIONS: dict[str, tuple[str, Section]] = {
    "why": ("Why", why),
    "diagonal": ("Hessian diagonal", diagonal),
    "losses": ("Losses", loss_maps),
    "order": ("Order and prices", order),
    "error": ("Error", error),
}
MORE: dict[str, tuple[str, Section]] = {
    "numbers": ("Numbers", numbers),
    "weights": ("Weights", show_weights),
    "spectrum": ("Spectrum", spectrum),
    "blocks": ("Blocks", blocks),
    "compare": ("Compare layers", compare),
    "trust": ("Trust", trust.of_layer),
}

draw()
