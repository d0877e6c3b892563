"""Layers: the whole model at a glance, and which of its layers are columnar."""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

import rose
from app import components, session, words
from app.figures import maps as figures
from app.figures import palette
from app.forms.widgets import file_input
from app.results import naming, trust
from app.results.downloads import csv_button, file_button, report_button
from app.study import tables
from app.study.own_numbers import read_numbers
from app.study.study import Study
from rose.layer.defaults import THRESHOLD
from rose.rows import json_rows

# What the map can show: column of the overview table -> words on the button, and what it means.
METRICS = {
    "relative_range": (
        "Relative range",
        "How unevenly loss is spread over a layer's blocks: (max − min) / max of block loss per column.",
    ),
    "column_variation": (
        "Variation of column losses",
        "Standard deviation of column losses / their mean. Known before any sweep, it predicts where two-level order "
        "saves error, better between kinds of layers than within one kind. The caption below the map says how well it "
        "does here.",
    ),
    "condition": ("Condition number of H", "Largest over smallest eigenvalue of the damped Hessian."),
    "held_out_gain": (
        "Held-out error saved by two-level order",
        "Share of SparseGPT's held-out error that two-level order saves; negative: it adds error.",
    ),
    "gain": (
        "Error saved by two-level order",
        "Share of SparseGPT's error that two-level order saves, columnar or not; negative: it adds error.",
    ),
    "error": ("Error", ""),
    "held_out": ("Held-out error", ""),
    "own": (
        "Your numbers",
        "A number for each layer, from a CSV file with the columns layer and value; of a tuned model's report.json, "
        "how far tuning moved it, ‖ΔW‖/‖W‖.",
    ),
}
OWN = "own"
ERRORS = ("error", "held_out")
MAPS, TRUST = "Maps", "Trust"
VIEWS = {name: name for name in (MAPS, TRUST)}
NAMED = 6  # layers that a sentence lists


def draw() -> None:
    st.title("Layers: which of them are columnar?")
    study = components.require_study("Here you see every layer of a model at a glance")
    if components.section(VIEWS, "layers_view", "What is shown") == TRUST:
        components.begin_restored(study)
        components.while_measured(study.job, lambda: trust.all_layers(study))
        return
    metric = choose()
    own = own_numbers(study) if metric == OWN else None

    def arriving() -> None:
        table = session.overview(study)
        if table.empty:
            st.info("The first layers are being measured and appear here as they finish.")
            return
        if own is not None:
            table = table.assign(own=table["layer"].map(own))
        results(study, table, metric)

    components.while_measured(study.job, arriving)


def choose() -> str:
    """What the map shows, a column of the overview table; and the threshold that all pages share."""
    left, right = st.columns([2, 1])
    with left:
        chosen = components.section({name: label for name, (label, _) in METRICS.items()}, "metric", "Map of")
        if chosen in ERRORS:
            labels = {name: palette.method_style(name).label for name in tables.SHOWN_METHODS}
            chosen += "_" + components.section(labels, "metric_method", "Error of", default="rose")
        else:
            st.caption(METRICS[chosen][1])
    st.session_state.threshold_widget = session.threshold()
    right.slider(
        "Columnar above a relative range of",
        0.0,
        1.0,
        step=0.01,
        key="threshold_widget",
        on_change=lambda: st.session_state.update(chosen_threshold=st.session_state.threshold_widget),
        help="ROSE reorders only columnar layers. All pages share this threshold.",
    )
    return chosen


def own_numbers(study: Study) -> pd.Series | None:
    """Somebody's own numbers by layer; None until there is a file that can be read."""
    label = "CSV, or report.json of a tuned model"
    source = file_input(label, "own", ["csv", "json"], "~/scores.csv", "A CSV file has the columns layer and value.")
    if not source:
        return None
    try:
        known, unknown = read_numbers(source if isinstance(source, str) else source.getvalue(), study.layer_names)
    except rose.RoseError as problem:
        components.error(problem)
        return None
    if unknown:
        names = ", ".join(unknown[:NAMED]) + (" …" if len(unknown) > NAMED else "")
        components.warning(f"Left out, as this model has no such layer: {names[:400]}.")
    return known


def results(study: Study, table: pd.DataFrame, metric: str) -> None:
    flips(table)
    look = components.look_over()
    if metric in table and table[metric].notna().any():
        kinds = {"": "Largest of all"} | {
            kind: kind.rpartition(".")[2] for kind in figures.expert_kinds(study.layer_names)
        }
        experts = components.section(kinds, "experts", "Experts", default="") or None if len(kinds) > 1 else None
        names: dict[str, Any] = {"layers": study.layer_names, "left_out": study.left_out}
        drawing = figures.model_map(table, metric, experts=experts, **names, **look)
        components.show(drawing, "layers-map", on_select=components.pick_layer)
    else:
        components.info(nothing_in(metric, has_held_out=bool(study.setup.held_out)))
    components.cautions(study.cautions())
    chosen = filtered(table)
    try:
        scatter = figures.gain_scatter(chosen, projections=table["projection"].tolist(), **look)
        components.show(scatter, "layers-scatter", on_select=components.pick_layer)
    except rose.RoseError as problem:
        components.info(problem)
    pick_by_name(study)
    exact(study, chosen)


def nothing_in(metric: str, *, has_held_out: bool) -> str:
    if metric.startswith("held_out") and not has_held_out:
        return "There are no held-out samples in this set-up; ask for some on the start page."
    if metric in ("gain", "held_out_gain"):
        return "SparseGPT makes no error in any layer at this sparsity, so there is none for an order to save."
    if metric == OWN:
        return "Give a file above, and its numbers are drawn here."
    return "No layer measured so far has a value here."


def flips(table: pd.DataFrame) -> None:
    """How many layers are columnar, and which the default threshold would judge otherwise."""
    threshold, usual = session.threshold(), THRESHOLD
    columnar = table[table["is_columnar"]]
    which, verb = words.out_of(len(columnar), len(table), "layer"), "is" if len(columnar) < 2 else "are"
    text = f"**{words.sentence(which)} {verb} columnar** above {threshold:g}"
    text += f": {listed(columnar['layer'])}." if len(columnar) else "."
    if threshold != usual:
        before = table["relative_range"] > usual
        changed = table[before != table["is_columnar"]]
        way = "more" if threshold < usual else "fewer"
        many = words.count(len(changed), f"layer {way}", f"layers {way}")
        text += f" That is {many} than at the default {usual:g}"
        text += f": {listed(changed['layer'])}." if len(changed) else "."
    st.markdown(text)


def listed(layers: Sequence[str]) -> str:
    names = [words.short_layer(layer) for layer in layers]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def filtered(table: pd.DataFrame) -> pd.DataFrame:
    rows = table["projection"].map(figures.map_row)
    kinds = list(dict.fromkeys(rows))
    last = int(table["block_index"].max())
    with st.expander("Filter the layers below", icon=":material/filter_alt:"):
        one, two, three = st.columns(3)
        projections = one.multiselect("Projection", kinds, key="filter_projection", placeholder="all")
        low, high = two.slider("Decoder blocks", 0, max(last, 1), (0, max(last, 1)), key="filter_blocks")
        ranges = three.slider("Relative range", 0.0, 1.0, (0.0, 1.0), 0.01, key="filter_range")
        with one:
            sign = st.segmented_control("Error saved by two-level order", ["above 0", "not above 0"], key="filter_gain")
        with two:
            dead = st.segmented_control("Dead columns", ["some", "none"], key="filter_dead")
    gain = table["held_out_gain"].fillna(table["gain"])
    keep = table["block_index"].between(low, high) & table["relative_range"].between(*ranges)
    if projections:
        keep &= rows.isin(projections)
    if sign:
        keep &= (gain > 0) == (sign == "above 0")
    if dead:
        keep &= (table["dead_columns"] > 0) == (dead == "some")
    chosen = table[keep].reset_index(drop=True)
    if len(chosen) < len(table):
        st.caption(f"{len(chosen)} of {len(table)} layers pass the filter.")
    return chosen


def pick_by_name(study: Study) -> None:
    left, right = st.columns([2, 1], vertical_alignment="bottom")
    st.session_state.layers_pick = session.layer()
    left.selectbox(
        "Chosen layer",
        study.layer_names,
        key="layers_pick",
        format_func=words.short_layer,
        on_change=lambda: components.select_layer(st.session_state.layers_pick),
        help="Click a mark above, a row below, or choose here; all pages follow.",
    )
    with right:
        st.page_link("views/layer.py", label="See this layer in depth", icon=":material/layers:")


def exact(study: Study, table: pd.DataFrame) -> None:
    errors = [f"{kind}_{method}" for kind in ERRORS for method in tables.SHOWN_METHODS]
    errors = [name for name in errors if table[name].notna().any()]
    largest, kinds = float(table[errors].max().max()) or 1.0, {"error": "error", "held_out": "held-out"}
    number = st.column_config.NumberColumn

    def bar(label: str, top: float = 1.0, form: str = "%.3f") -> Any:
        return st.column_config.ProgressColumn(label, min_value=0.0, max_value=top, format=form)

    st.dataframe(
        table,
        hide_index=True,
        height=min(420, 38 + 35 * len(table)),
        column_order=[
            "block_index", "projection", *([OWN] if OWN in table else []), "relative_range", "is_columnar",
            "column_variation", "held_out_gain", "gain", *errors, "condition", "rows", "columns", "dead_columns",
            "live_range", "damping", "cautions",
        ],
        column_config={
            "block_index": number("Decoder block", pinned=True),
            "projection": st.column_config.TextColumn("Projection", pinned=True),
            OWN: number("Your number"),
            "relative_range": bar("Relative range", form="%.2f"),
            "is_columnar": st.column_config.CheckboxColumn("Columnar"),
            "column_variation": number("Variation of column losses", format="%.2f"),
            "held_out_gain": number("Held-out error saved by two-level order", format="percent"),
            "gain": number("Error saved by two-level order", format="percent"),
            "condition": number("Condition number of H", format="scientific"),
            "rows": "Rows",
            "columns": "Columns",
            "dead_columns": "Dead columns",
            "live_range": number(
                "Range without dead columns", format="%.2f", help="Empty for layers without dead columns"
            ),
            "damping": number("Damping used", format="%g"),
            "cautions": "Cautions",
            **{
                name: bar(f"{palette.method_style(method).label}, {kinds[kind]}", largest, "%.4f")
                for kind in ERRORS
                for method in tables.SHOWN_METHODS
                if (name := f"{kind}_{method}") in errors
            },
        },
        key="layers-table",
        on_select=lambda: components.pick_row("layers-table", table["layer"].tolist()),
        selection_mode="single-row",
        alt="All layers measured so far with relative range, errors and condition number of H",
    )  # fmt: skip
    left, middle, right, last = st.columns([3, 1, 1, 1], vertical_alignment="center")
    left.caption("Click a heading to sort. ROSE is two-level order where columnar, else SparseGPT.")
    with middle:
        csv_button("CSV", table, "layers.csv", "layers-csv", width="stretch")
    with right:
        look = {"key": "layers-json", "icon": ":material/download:", "width": "stretch"}
        file_button("JSON", lambda: json.dumps(json_rows(table), indent=1), "layers.json", **look)
    with last:
        report_button(
            lambda: naming.runs_of_study(study, session.threshold(), session.layer()),
            "layers",
            "layers-report",
            width="stretch",
        )


draw()
