"""Layers: which layers are columnar, and does order matter there? A map beside a scatter, and all numbers on demand."""

from typing import Any

import pandas as pd
import streamlit as st

import rose
from app import components, session, words
from app.components import SHARE, URL
from app.figures import maps, palette
from app.forms.widgets import text_input
from app.results import naming, trust
from app.results.downloads import csv_button, report_button
from app.results.pairs import differences
from app.study import tables
from app.study.study import Study
from rose.layer.checks import OVERFIT
from rose.layer.pattern import THRESHOLD

OWN = "own"
FILL = (390, "660px")  # pixels above and below the figures, and their limit
NAMED = 6  # decoder blocks that a sentence lists, of one projection


def draw() -> None:
    st.title("Layers: which are columnar, and does order matter there?")
    study = components.require_study("Here you see every layer of a model at a glance")

    def arriving() -> None:
        table = study.overview(session.threshold())
        if table.empty:
            trust.all_layers(study)  # which says what is waited for
            return
        results(study, table)

    components.while_measured(study.job, arriving)


def results(study: Study, table: pd.DataFrame) -> None:
    st.markdown(columnar(table))
    for line in differences(study, table, session.pruning()):
        st.caption(words.plain(line))
    chooses, slides = st.columns([1.3, 1])
    with chooses:
        names = mapped(table)
        label: Any = lambda name: maps.metric(name).label  # noqa: E731
        metric = st.selectbox("Map of", names, format_func=label, key="metric", bind=URL) or names[0]
    with slides:
        choose_threshold()
    table = with_own(study, table) if metric == OWN else table
    metric = metric if metric in table else "relative_range"
    left, right = st.columns([1.3, 1])
    look = components.look_over()
    with left:
        drawing = maps.model_map(
            table, metric, experts=experts(study), layers=study.layer_names, left_out=study.left_out,
            conditions=study.setup.conditions, **look,
        )  # fmt: skip
        components.show(drawing, "layers-map", on_select=components.pick_layer, fill=FILL)
    with right:
        try:
            scatter = maps.gain_scatter(table, metric if metric in maps.FORETELL else "relative_range", **look)
            components.show(scatter, "layers-scatter", on_select=components.pick_layer, fill=FILL)
        except rose.RoseError as problem:
            components.info(problem)
    if session.layer():
        name = words.plain(words.short_layer(session.layer() or ""))
        st.page_link("views/layer.py", label=f"Open {name}", icon=":material/layers:")
    cautions = study.cautions()
    icon = f":material/{'warning' if cautions else 'fact_check'}:"
    expander = st.expander(trust_line(study.records(), len(cautions)), icon=icon, key="layers_trust", bind=URL)
    if expander.open:
        with expander:
            st.markdown("\n".join(f"- {words.plain(caution)}" for caution in cautions))
            trust.all_layers(study)
    expander = st.expander("All numbers", icon=":material/table:", key="layers_table", bind=URL)
    if expander.open:
        with expander:
            exact(study, table)


def mapped(table: pd.DataFrame) -> list[str]:
    """What the map can show: errors are held-out ones where something was held out."""
    held = table["held_out_sparsegpt"].notna().any()
    tokens, errors = ("held_out_", "held_out_") if held else ("", "error_")
    gains = ["forecast_gain", "forecast_global_gain", f"{tokens}gain", f"{tokens}global_gain"]
    names = ["relative_range", *gains, "column_variation", *(errors + name for name in tables.SHOWN_METHODS)]
    return [*(name for name in [*names, "condition"] if name in table and table[name].notna().any()), OWN]


def choose_threshold() -> None:
    st.session_state.threshold_widget = session.threshold()
    st.slider(
        "Columnar above",
        0.0,
        1.0,
        step=0.01,
        key="threshold_widget",
        on_change=lambda: st.session_state.update(chosen_threshold=st.session_state.threshold_widget),
        help="A relative range. ROSE reorders only columnar layers; all pages share this threshold.",
    )
    session.publish()  # the slider redraws only this part of the page, and the end of a whole redraw publishes


def experts(study: Study) -> str | None:
    """Which projection of the experts has a map of its own; None: all share one, each with its largest value."""
    kinds = maps.expert_kinds(study.layer_names)
    if not kinds:
        return None
    labels = {"": "Largest of all"} | {kind: kind.rpartition(".")[2] for kind in kinds}
    return components.section(labels, "experts", "Experts", default="") or None


def columnar(table: pd.DataFrame) -> str:
    """Which layers are columnar, what two-level order saves there, and over all layers."""
    threshold, layers = session.threshold(), table[table["is_columnar"]]
    which, verb = words.sentence(words.out_of(len(layers), len(table), "layer")), "is" if len(layers) < 2 else "are"
    kinds, places = table["projection"].map(maps.map_row), []
    for kind, rows in layers.groupby(kinds, sort=False):  # in the model's order
        blocks = list(dict.fromkeys(str(index) for index in rows["block_index"]))
        listed = f"{', '.join(blocks)} · " if len(blocks) <= NAMED else f"{len(rows)} of {(kinds == kind).sum()} "
        places.append(listed + words.plain(kind))
    by_default = words.word(int((table["relative_range"] > THRESHOLD).sum()))
    default = f" (ROSE's own threshold, {THRESHOLD:g}, gives {by_default})"
    unsure = int(table["is_undecided"].sum())
    number, rest = words.sentence(words.word(unsure)), ""
    if unsure:
        rest = f" {number} {'layer is' if unsure < 2 else 'layers are'} undecided: other text may decide otherwise."
    text = f"**{which} {verb} columnar** above {threshold:g}{default * (threshold != THRESHOLD)}"
    text += f"{': ' if places else ''}{'; '.join(places)}."
    gain = "held_out_gain" if table.get("held_out_gain", pd.Series()).notna().any() else "gain"
    if gain not in table or not table[gain].notna().any():
        return text + rest
    if len(layers):
        kind, share = "held-out" if gain.startswith("held") else "calibration", words.percent(layers[gain].mean(), 0)
        text += f" There two-level order, which is ROSE's, saves {share} of SparseGPT's {kind} error."
    rule, always = words.percent((table[gain] * table["is_columnar"]).mean()), words.percent(table[gain].mean())
    return f"{text} Over all layers ROSE saves {rule}, two-level order in every layer {always}.{rest}"


def with_own(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """The table with somebody's own numbers by layer, as soon as there is a file that can be read."""
    label = "CSV, or report.json of a tuned model"
    left, right = st.columns(2)
    upload = left.file_uploader(label, ["csv", "json"], key=f"{OWN}-file")
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


def trust_line(records: pd.DataFrame, cautions: int) -> str:
    """How many layers overfit, and by which method most: the line that opens cautions and checks."""
    over = records[records["held_out_error"] > OVERFIT * records["relative_error"]]
    caution_text = f" {words.sentence(words.count(cautions, 'caution'))}." if cautions else ""
    if over.empty:
        return f"No layer overfits.{caution_text}"
    labels = over["method"].map(lambda name: palette.method_style(name).label)
    methods = ", ".join(f"{label} {layers}" for label, layers in labels.value_counts().items())
    layers = words.sentence(words.count(over["layer"].nunique(), "layer overfits", "layers overfit"))
    return f"{layers}: {methods}.{caution_text}"


def exact(study: Study, table: pd.DataFrame) -> None:
    errors = [f"{kind}_{method}" for kind in ("held_out", "error") for method in tables.SHOWN_METHODS]
    shares = [name for name, metric in maps.METRICS.items() if metric.kind == "change"]
    label: Any = lambda name: maps.metric(name).label  # noqa: E731
    shown: dict[str, Any] = {
        "block_index": st.column_config.NumberColumn("Decoder block", pinned=True),
        "projection": st.column_config.TextColumn("Projection", pinned=True),
        OWN: OWN,
        "relative_range": (label("relative_range"), "%.3f"),
        "is_columnar": st.column_config.CheckboxColumn("Columnar"),
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
        st.caption("ROSE is two-level order where a layer is columnar, else SparseGPT.", width="stretch")
        csv_button("CSV", table, "layers.csv", "layers-csv")
        report_button(
            lambda: naming.runs_of_study(study, session.threshold(), session.layer()), "layers", "layers-report"
        )


draw()
