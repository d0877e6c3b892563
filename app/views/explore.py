"""Explore: which layers of a model are columnar, when, and why; one of them column by column."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

import rose
from app import components, session, words
from app.components import SHARE, URL, look
from app.figures import explore as figures
from app.figures import losses, maps, methods, palette, weights
from app.figures.explore import Columns
from app.forms.widgets import text_input
from app.results import naming, trust
from app.results.downloads import csv_button, report_button
from app.results.pairs import differences
from app.study import tables
from app.study.setup import Setup
from app.study.study import Study
from rose.layer.pattern import parse_sparsity

OWN = "own"
SIDES = [1.0, 1.13]  # widths of the map and of the chosen layer
AS_IT_IS, AS_ROSE = "As in the model", "As ROSE prunes"
NAMED = 6  # layers of a file that are not the model's, which a sentence lists


def draw() -> None:
    _studies()
    study = session.study()
    if study is None or not study.layer_names:
        components.require_study(
            f"The layers of {words.plain(words.model_name(session.setup().model))} are not measured."
        )
        return
    components.while_measured(study.job, partial(_explore, study))


def _studies() -> None:
    """A button for each study, one that measures another model, and the way to the lessons."""
    offered = session.studies()
    labels = dict(zip(offered, _labels(offered), strict=True))
    with st.container(horizontal=True, vertical_alignment="center", key="studies"):
        st.session_state.study_chosen = session.setup()
        st.pills(
            "Study", offered, format_func=labels.__getitem__, key="study_chosen", required=True,
            label_visibility="collapsed", on_change=lambda: session.choose_setup(st.session_state.study_chosen),
        )  # fmt: skip
        components.measure_button(type="tertiary")
        with st.container(key="learn-link", horizontal_alignment="right"):
            st.page_link("views/learn.py", label="New here? Learn how pruning works")


def _labels(setups: list[Setup]) -> list[str]:
    """The model of each, and what tells it from the first study of the same model."""
    labels: list[str] = []
    for place, setup in enumerate(setups):
        first = next(other for other in setups if other.model == setup.model)
        apart = [] if first == setup else [f"{name} {value}" for name, value in setup.to_texts(first).items()]
        label = ", ".join([words.model_name(setup.model), *apart])
        labels.append(words.unused(words.plain(label), labels[:place]))
    return labels


def _explore(study: Study) -> None:
    layer = session.keep_layer(study)
    if study.overview(session.threshold()).empty or layer is None:
        st.info("The first layers appear here as soon as they are measured.")
        return
    metric, sparsity, size = _choices(study)
    table = study.what_if(session.threshold(), sparsity, size)
    left, right = st.columns(SIDES, gap="medium")
    left = left.container(gap="small")
    right = right.container(gap="small")
    with left:
        _map(study, table, metric, at=(sparsity, size))
    with right:
        _layer(study, layer, table, at=(sparsity, size))
    section = components.section(SECTIONS, "section")
    SECTIONS[section][1](study, layer, table)
    session.publish()


def _choices(study: Study) -> tuple[str, str, int]:
    """What the map shows, and the sparsity and block size that decide which layers are columnar."""
    table, setup = study.overview(session.threshold()), study.setup
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="explore-choices"):
        names = mapped(table)
        with components.labelled("Map"):
            metric = st.selectbox(
                "Map of", names, format_func=lambda name: maps.metric(name).label, key="metric", bind=URL, width=190,
                label_visibility="collapsed",
            ) or names[0]  # fmt: skip
        sparsities = {text: words.share(text) for text in study.sparsities}
        with components.labelled("Sparsity"):
            sparsity = components.own_or_other(
                "Sparsity", "what_sparsity", sparsities, setup.sparsity, width=104, kind=st.selectbox
            )
        sizes = {size: words.heads(size, heads) for size, heads in study.sizes.items()}
        with components.labelled("Block"):
            of_study = setup.block_columns
            size = components.own_or_other(
                "Block size", "what_block", sizes, of_study, kind=st.segmented_control, required=True
            )
        with st.container(
            key="explore-layer", horizontal=True, vertical_alignment="center", horizontal_alignment="right"
        ):
            components.choose_layer(study)
    return metric, sparsity, size


# The map


def mapped(table: pd.DataFrame) -> list[str]:
    """What the map can show: errors are held-out ones where something was held out."""
    held = table["held_out_sparsegpt"].notna().any()
    tokens, errors = ("held_out_", "held_out_") if held else ("", "error_")
    gains = ["forecast_gain", "forecast_global_gain", f"{tokens}gain", f"{tokens}global_gain"]
    names = ["relative_range", *gains, "column_variation", *(errors + name for name in tables.SHOWN_METHODS)]
    return [*(name for name in [*names, "condition"] if name in table and table[name].notna().any()), OWN]


def _map(study: Study, table: pd.DataFrame, metric: str, *, at: tuple[str, int]) -> None:
    table = with_own(study, table) if metric == OWN else table
    metric = metric if metric in table else "relative_range"
    options: dict[str, Any] = components.look_over()
    drawing = maps.model_map(
        table, metric, experts=experts(study), layers=study.layer_names, left_out=study.left_out,
        with_scale=metric != "relative_range", **options,
    )  # fmt: skip
    components.show(drawing, "explore-map", on_select=components.pick_layer, captioned=False)
    if metric == "relative_range":
        choose_threshold()
    of_study = study.setup.sparsity, study.setup.block_columns
    heads = words.heads(of_study[1], study.sizes[of_study[1]])
    measured = f", errors measured at {words.share(of_study[0])} and {heads} a block" if at != of_study else ""
    try:
        scatter = maps.gain_scatter(
            table, metric if metric in maps.FORETELL else "relative_range", measured_at=measured,
            **options,
        )  # fmt: skip
        components.show(scatter, "explore-scatter", on_select=components.pick_layer, captioned=False)
    except rose.RoseError as problem:
        components.info(problem)
    if at != of_study:
        other = study.setup.changed(sparsity=at[0], block_size=at[1])
        label = f"Measure errors at {words.share(at[0])}, {words.heads(at[1], study.sizes[at[1]])}"
        st.button(
            label, icon=":material/play_arrow:", key="measure-what-if", on_click=session.ask_for_model, args=(other,)
        )
    for line in differences(study, table, session.pruning()):
        st.caption(words.plain(line))
    components.left_out(study)
    if study.job.status == "failed" and study.can_go_on:
        go_on: dict[str, Any] = {"on_click": session.start, "kwargs": {"go_on": True}}
        st.button("Measure the other layers", icon=":material/skip_next:", key="measure-others", **go_on)


def choose_threshold() -> None:
    """A slider under the map, on the scale of its colours."""
    scale = palette.range_scale(session.theme(), session.threshold())
    stops = ", ".join(f"{colour} {100 * place:.1f}%" for place, colour in scale)
    with st.container(key="threshold-scale"):
        style = f"<style>.st-key-threshold-scale {{ --scale: linear-gradient(to right, {stops}); }}</style>"
        st.html(f'{style}<span class="choice">threshold</span>')
        st.session_state.threshold_widget = session.threshold()
        st.slider(
            "Columnar above", 0.0, 1.0, step=0.01, key="threshold_widget",
            on_change=lambda: st.session_state.update(chosen_threshold=st.session_state.threshold_widget),
            label_visibility="collapsed",
        )  # fmt: skip


def experts(study: Study) -> str | None:
    """Which projection of the experts has a map of its own; None: all share one, each with its largest value."""
    kinds = maps.expert_kinds(study.layer_names)
    if not kinds:
        return None
    labels = {"": "Largest of all"} | {kind: kind.rpartition(".")[2] for kind in kinds}
    return components.section(labels, "experts", "Experts", default="") or None


def with_own(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """The table with somebody's own numbers by layer, as soon as there is a file that can be read."""
    left, right = st.columns(2)
    upload = left.file_uploader("CSV, or report.json of a tuned model", ["csv", "json"], key=f"{OWN}-file")
    help = "A CSV file has the columns layer and value."
    path = text_input("or its path on this machine", f"{OWN}_path", "~/scores.csv", help, right)
    if not upload and not path:
        return table
    try:
        numbers, unknown = tables.read_numbers(upload.getvalue() if upload else path, study.layer_names)
    except rose.RoseError as problem:
        components.error(problem)
        return table
    if unknown:
        components.warning(f"Left out, as this model has no such layer: {words.listing(unknown, NAMED)[:400]}.")
    return table.assign(own=table["layer"].map(numbers))


# The chosen layer


def _layer(study: Study, layer: str, table: pd.DataFrame, *, at: tuple[str, int]) -> None:
    rows, profile = table.set_index("layer"), study.profile(layer)
    row = rows.loc[layer] if layer in rows.index else None
    if row is None or profile is None:
        components.inputs_of(study, layer)
        return
    size, of_study = at[1], (study.setup.sparsity, study.setup.block_columns)
    group = parse_sparsity(study.setup.sparsity).of or 1
    order, columns_as = profile.order(size, group), st.session_state.get("columns_as")
    is_known = at[0] == of_study[0] and (size in profile.sizes)
    shown = Columns(profile, size, study.head_width_of(layer), session.threshold(), float(row["relative_range"]))
    losses_of = "" if is_known else f"at {words.share(of_study[0])} with blocks of {profile.sizes[0]}, as measured"
    moved = shown._replace(order=order if columns_as == AS_ROSE else None)
    components.show(figures.strips(moved, losses_of=losses_of, **look(layer)), "layer-strips", beside=_columns_as)
    reordered = order if shown.is_columnar else None
    components.show(figures.joined_blocks(shown, reordered, **look(layer)), "layer-blocks")
    measured = study.overview(session.threshold()).set_index("layer").loc[layer]
    gains = [measured["held_out_gain"], *(measured[name] for name in measured.index if name.startswith("gain_draw_"))]
    draws = [float(gain) for gain in gains if not pd.isna(gain)]
    components.show(figures.errors_twice(measured, draws=draws, **look(layer)), "layer-errors-twice")
    components.cautions(study.cautions(layer))


def _columns_as() -> None:
    components.section([AS_IT_IS, AS_ROSE], "columns_as", "Columns")


# Sections


LOSS_MAPS: dict[str, str] = {
    "importance": "Importance",
    "potential": "Potential loss",
    "mask": "Pre-pruning mask",
    "columns": "Column loss by block",
    "weights": "Weights",
    "diagonal": "Hessian diagonal",
    "spectrum": "Hessian spectrum",
}


def by_weight(study: Study, layer: str, table: pd.DataFrame) -> None:
    """A heatmap of the layer, and its Hessian."""
    label: Any = LOSS_MAPS.__getitem__
    left, right = st.columns([1, 3])
    kind = left.selectbox("Show", list(LOSS_MAPS), format_func=label, key="loss_map", bind=URL)
    if not components.inputs_of(study, layer):
        return
    plan = study.plan(layer, session.threshold())
    blocks = ["none", *map(str, range(len(plan.block_width)))]
    if st.session_state.get("block") not in (None, *blocks):
        del st.session_state.block
    name = right.selectbox("Block outlined", blocks, key="block", bind=URL, width=170)
    drawing = _loss_map(study, layer, plan, kind, None if name == "none" else int(name))
    if drawing is not None:
        components.show(drawing, f"layer-{kind}")


def _loss_map(study: Study, layer: str, plan: rose.OrderPlan, kind: str, block: int | None) -> Any:
    options = look(layer, marked_block=block)
    if kind == "columns":
        return losses.column_loss_map(plan, **options)
    if kind == "weights":
        return weights.weight_map(study.weight(layer), widths=plan.block_width, **options)
    if kind == "diagonal":
        added, scale = (
            study.added_damping(layer),
            components.choose("Scale", {"log": "Log", "linear": "Linear"}, "scale"),
        )
        return weights.hessian_diagonal(
            plan.hessian_diagonal, added=added, widths=plan.block_width, scale=scale, **options
        )
    if kind == "spectrum":
        signature = (study.subject, layer, "spectrum")
        if not components.finished([lambda: study.spectrum(layer)], "layer-spectrum-work", signature, "spectrum"):
            return None
        return weights.hessian_spectrum(study.spectrum(layer), added=study.added_damping(layer), **look(layer))
    maps_of_weights = {
        "importance": weights.importance_map,
        "potential": weights.potential_loss_map,
        "mask": weights.prepruning_mask,
    }
    return maps_of_weights[kind](plan, **options)


def where(study: Study, layer: str, table: pd.DataFrame) -> None:
    """What an order saves in every layer, beside a number that foretells it."""
    predictors = [name for name in maps.FORETELL[1:] if name in table and table[name].notna().any()]
    if not predictors:
        st.info("No forecast was measured here.")
        return
    label: Any = lambda name: maps.metric(name).label  # noqa: E731
    predictor = st.selectbox("Foretold by", predictors, format_func=label, key="predictor", bind=URL, width=320)
    which = "global_" if "global" in predictor else ""
    tokens = "held_out_" if table["held_out_sparsegpt"].notna().any() else ""
    left, right = st.columns(2, gap="medium")
    options: dict[str, Any] = components.look_over()
    with left:
        drawing = maps.model_map(table, f"{tokens}{which}gain", layers=study.layer_names, **options)
        components.show(drawing, "where-map", on_select=components.pick_layer)
    with right:
        components.show(
            maps.gain_scatter(table, predictor, **options), "where-scatter", on_select=components.pick_layer
        )


def errors(study: Study, layer: str, table: pd.DataFrame) -> None:
    """The layer's errors by each method, and three independent measurements of one."""
    row = study.overview(session.threshold()).query("layer == @layer")
    records = tables.error_records(row)
    column = "held_out_error" if row["held_out_sparsegpt"].notna().any() else "relative_error"
    left, right = st.columns([1, 1.3], gap="medium")
    with left:
        components.show(methods.method_errors(records, column=column, theme=session.theme()), "layer-errors")
        records = records.assign(method=records["method"].map(lambda name: palette.method_style(name).label))
        shown = {"held_out_error": ("Held-out error", "%.5f"), "relative_error": ("Calibration error", "%.5f")}
        components.frame(
            records, {"method": "Method", **shown}, "layer-errors-numbers", "Relative error of each method"
        )
    with right:
        st.markdown("**Three independent measurements of one error**")
        if components.inputs_of(study, layer):
            trust.of_layer(study, layer)


def data(study: Study, layer: str, table: pd.DataFrame) -> None:
    """All numbers of all layers, and the checks of all layers."""
    exact(study, table)
    st.markdown("**Can these numbers be trusted?**")
    cautions = study.cautions()
    st.markdown("\n".join(f"- {words.plain(caution)}" for caution in cautions))
    trust.all_layers(study)


def exact(study: Study, table: pd.DataFrame) -> None:
    errors = [f"{kind}_{method}" for kind in ("held_out", "error") for method in tables.SHOWN_METHODS]
    shares = [name for name, metric in maps.METRICS.items() if metric.kind == "change"]
    label: Any = lambda name: maps.metric(name).label  # noqa: E731
    shown: dict[str, Any] = {
        "block_index": st.column_config.NumberColumn("Decoder block", pinned=True),
        "projection": st.column_config.TextColumn("Projection", pinned=True),
        "relative_range": (label("relative_range"), "%.3f"),
        "range_low": ("from", "%.3f"),
        "range_high": ("to", "%.3f"),
        "is_columnar": st.column_config.CheckboxColumn("Columnar"),
        "is_undecided": st.column_config.CheckboxColumn("Undecided"),
        "heads_per_block": ("Heads a block", "%.2g"),
        "between_heads": ("Variance between heads", "%.2f"),
        "column_variation": (label("column_variation"), "%.2f"),
        **{name: (label(name), SHARE) for name in shares},
        **{name: (label(name), "%.4f") for name in errors},
        "condition": ("Condition number of H", "scientific"),
        **{name: words.sentence(name.replace("_", " ")) for name in ("rows", "columns", "dead_columns")},
        "live_range": ("Range without dead columns", "%.3f"),
        "damping": ("Damping used", "%g"),
        "cautions": "Cautions",
    }
    shown = {name: look for name, look in shown.items() if name in table and table[name].notna().any()}
    alt = "All layers measured so far with relative range, errors and condition number of H"
    components.frame(components.in_percent(table, shares), shown, "layers-table", alt, table["layer"].tolist())
    with st.container(horizontal=True, vertical_alignment="center"):
        csv_button("CSV", table, "layers.csv", "layers-csv")
        report_button(
            lambda: naming.runs_of_study(study, session.threshold(), session.layer()), "layers", "layers-report"
        )
        if not study.setup.stream:  # this layer alone, with the study's target: its errors are then the study's
            chosen = {"prune_layers": session.layer() or "", **study.setup.to_texts()}
            label, icon = "Prune this layer in the whole model", ":material/content_cut:"
            st.page_link("views/prune.py", label=label, icon=icon, query_params=chosen)
        st.caption("ROSE is two-level order where a layer is columnar, else SparseGPT.", width="content")


Section = Callable[[Study, str, pd.DataFrame], None]
SECTIONS: dict[str, tuple[str, Section]] = {
    "losses": ("Losses, weight by weight", by_weight),
    "where": ("Where order matters", where),
    "errors": ("Errors of the methods", errors),
    "data": ("Data", data),
}

draw()
