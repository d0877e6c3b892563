"""Layer: one layer in depth, in five pictures from its weights to the errors that an order leaves."""

from collections.abc import Callable
from math import isnan
from typing import Any

import streamlit as st

import rose
from app import components, session, words
from app.components import URL, look
from app.figures import losses, methods, orders, palette, weights
from app.figures.style import Drawing
from app.forms import prune_choices
from app.lab import sections
from app.results import trust
from app.study import tables
from app.study.study import Study

NO_BLOCK = "none"
ORDERS = {"rose": "ROSE", "two_level": "Two-level", "global": "Global", "pivot": "Pivot"}
DIAGONALS = {
    "natural linear": "Natural", "natural log": "Natural, log", "sorted linear": "Sorted", "sorted log": "Sorted, log",
}  # fmt: skip
Section = Callable[[Study, str, rose.OrderPlan, int | None], None]


def draw() -> None:
    st.title("Layer: what makes it columnar, or not?")
    study, layer, plan = sections.require_layer("Here you see one layer in depth", "layer", error)
    with st.container(horizontal=True, vertical_alignment="center"):
        section = components.section(SECTIONS, "section")
        block = choose_block(plan)
        if section in CHOICES:
            _choose(*CHOICES[section])
    SECTIONS[section][1](study, layer, plan, block)
    expander = st.expander("More: numbers, weights, spectrum, blocks, checks", key="layer_more", bind=URL)
    if expander.open:
        with expander:
            name = components.section(MORE, "more", "More")
            MORE[name][1](study, layer, plan, block)
    if not study.setup.stream:  # or the page Prune is shut
        label, icon = "Prune this layer in the whole model, as the study does", ":material/content_cut:"
        # This layer alone, with the study's target: its errors are then the study's.
        methods = [rose.METHODS[name].label for name in ("sparsegpt", "rose")]
        chosen: dict[str, Any] = {"prune_methods": methods, "prune_targets": [prune_choices.TARGETS["layer"]]}
        chosen |= {**study.setup.to_texts(), "prune_layers": layer, "layer": layer}
        st.page_link("views/prune.py", label=label, icon=icon, query_params=chosen)


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


def _choose(label: str, options: dict[str, str], key: str) -> None:
    """A choice of the picture's content, in the row of the sections."""
    look: dict[str, Any] = {"label_visibility": "collapsed", "width": 170, "help": label}
    st.selectbox(label, list(options), format_func=options.__getitem__, key=key, bind=URL, **look)


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
    arrange, scale = str(st.session_state.arrange).split()
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
    shown = st.session_state.loss_map
    components.show(LOSS_MAPS[shown][1](plan, **look(layer, marked_block=block)), f"layer-{shown}")


def order(study: Study, layer: str, plan: rose.OrderPlan, block: int | None) -> None:
    name = st.session_state.picture_order
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


def error(study: Study, layer: str, *_: object) -> None:
    """Errors of each method, held out where there are any, and both in a table."""
    table = study.overview(session.threshold()).query("layer == @layer")
    records = tables.error_records(table)
    column = "held_out_error" if table["held_out_sparsegpt"].notna().any() else "relative_error"
    components.show(methods.method_errors(records, column=column, theme=session.theme()), "layer-errors")
    records = records.assign(method=records["method"].map(lambda name: palette.method_style(name).label))
    errors = {"held_out_error": ("Held-out error", "%.5f"), "relative_error": ("Calibration error", "%.5f")}
    components.frame(records, {"method": "Method", **errors}, "layer-errors-numbers", "Relative error of each method")


# More


def show_weights(study: Study, layer: str, plan: rose.OrderPlan, block: int | None) -> None:
    options = look(layer, marked_block=block)
    components.show(weights.weight_map(study.weight(layer), widths=plan.block_width, **options), "layer-weights")


def spectrum(study: Study, layer: str, plan: rose.OrderPlan, block: int | None) -> None:
    signature = (study.subject, layer, "spectrum")
    if components.finished([lambda: study.spectrum(layer)], "layer-spectrum-work", signature, "spectrum"):
        added = study.added_damping(layer)
        components.show(weights.hessian_spectrum(study.spectrum(layer), added=added, **look(layer)), "layer-spectrum")


def blocks(study: Study, layer: str, plan: rose.OrderPlan, block: int | None) -> None:
    def pick(key: str) -> None:
        points = st.session_state[key].selection.points
        if points:
            st.session_state.block = str(int(points[0]["x"]))

    components.show(losses.block_loss_bars(plan, **look(layer, marked_block=block)), "layer-bars", on_select=pick)
    if block is None:
        return
    shown = {
        "column": "Column",
        "position": "Position in block",
        "step": "Step in ROSE's sweep",
        "column_loss": ("Column loss", "%.4g"),
        "rank": "Rank by loss in the layer, 1: most",
        "hessian_diagonal": ("H_jj", "%.4g"),
    }
    alt = f"Columns of block {block} with loss, rank, Hessian diagonal and place in the order"
    components.frame(tables.column_table(plan, plan.order, block), shown, "block-columns", alt)


def numbers(study: Study, layer: str, plan: rose.OrderPlan, block: int | None) -> None:
    row = study.overview(session.threshold()).set_index("layer").loc[layer]
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
CHOICES: dict[str, tuple[str, dict[str, str], str]] = {  # by section: label, options and key
    "diagonal": ("Channels and scale", DIAGONALS, "arrange"),
    "losses": ("Map of", {name: text for name, (text, _) in LOSS_MAPS.items()}, "loss_map"),
    "order": ("Order", ORDERS, "picture_order"),
}
MORE: dict[str, tuple[str, Section]] = {
    "numbers": ("Numbers", numbers),
    "weights": ("Weights", show_weights),
    "spectrum": ("Spectrum", spectrum),
    "blocks": ("Blocks", blocks),
    "trust": ("Trust", trust.of_layer),
}

draw()
