"""Layer sensitivity: which layers does the loss depend on?"""

import json
from functools import partial

import pandas as pd
import streamlit as st

import rose
from app import components, session, shared, words
from app.components.work import progress
from app.figures import sensitivity as figures
from app.forms import study_form
from app.forms.widgets import method_choice, priced, pruned_model
from app.results.downloads import csv_button, file_button
from app.runs.damage import DamageRequest, DamageRun, layer_of
from rose.layer.defaults import THRESHOLD
from rose.model.measure.damage import CLEAR, correlations
from rose.rows import finite, json_rows

INTERVENTIONS = {"prune": "Prune alone", "restore": "Restore alone"}
UNITS = {"blocks": "Decoder blocks", "layers": "Layers"}
MEASURES = {name: words.sentence(said) for name, (said, _) in figures.PREDICTORS.items()}
MEANING = {
    "prune": "One unit is pruned, everything else stays dense: its sensitivity is the rise of the loss.",
    "restore": "The model is pruned, one unit gets its dense weights back: its sensitivity is the fall of the loss.",
}
NO_RUN = "No pruned model is chosen: prune one on the Prune page and keep its checkpoint, or give the folder of one."


def draw() -> None:
    st.title("Layer sensitivity: which layers does the loss depend on?")
    components.edited_setup()
    components.require_weights()
    request = choose()
    run = None if request is None else session.damage(request)
    start(request, run)
    if request is None or run is None:
        empty()
        return

    def arriving() -> None:
        table, running = run.table, run.job.status == "running"
        if running:
            progress(run, "damage")
        else:
            done = words.count(len(table), "unit")
            components.ended(run.job, f" after {done}; what is measured is kept.")
        if not table.empty:
            results(run, request, table)
        elif running:
            st.info("The first units are being measured; they will show here as they arrive.")

    components.while_measured(run.job, arriving)


def choose() -> DamageRequest | None:
    """What is changed alone; None where a pruned model is still to be chosen."""
    left, middle, right = st.columns(3)
    with left:
        how = components.choose("Change", INTERVENTIONS, "damage_how")
    with middle:
        units = components.choose("Unit", UNITS, "damage_units")
    with right:
        if how == "restore":
            place = pruned()
            request = DamageRequest(units, restore=place) if place else None
        else:
            method = method_choice(right, "sparsegpt", "damage_method")
            threshold = session.threshold() if method == "rose" else THRESHOLD
            request = DamageRequest(units, method, threshold=threshold)
    setup = session.setup()
    at = f" Sparsity {setup.sparsity}." if how == "prune" else ""
    which = "" if setup.layer_patterns is None else f" Only layers named {words.plain(setup.layers)} are changed."
    st.caption(
        f"{MEANING[how]}{at} Calibration: {setup.samples} × {setup.length} tokens; loss: {setup.held_out} × "
        f"{setup.length} held-out tokens, as chosen on the start page.{which}"
    )
    return request


def pruned() -> str:
    help = "A checkpoint that `rose prune` or the Prune page has written, of the model chosen on the start page."
    path = ("Folder of a pruned model", "pruned/")
    return pruned_model(session.setup().model, "damage", "Pruned model", "Another folder", path, help)


def start(request: DamageRequest | None, run: DamageRun | None) -> None:
    if run is not None and run.job.status in ("running", "done"):
        return
    setup = session.setup()
    cost, problem = priced(setup, request) if request is not None else (None, NO_RUN)
    label = "Measure sensitivity"
    if run is not None and run.records:
        label = "Go on measuring"
    elif cost is not None:
        label += f", about {components.lasting(cost)} and {words.size(cost.memory + cost.model_memory)}"
    with st.container(width=420):
        st.button(
            label,
            key="damage-start",
            type="primary",
            icon=":material/play_arrow:",
            on_click=session.start_damage,
            args=(request,),
            disabled=bool(problem),
            width="stretch",
        )
    if problem:
        st.caption(words.plain(problem))
    else:
        study_form.say_hub(setup)


def empty() -> None:
    with st.container(border=True, horizontal_alignment="center", gap="small"):
        st.markdown("**Does a layer's error say what the model loses?**")
        st.markdown(
            "Every layer, or every decoder block, is changed alone, and the loss measured on held-out text. You see "
            "on which of them the loss depends, and how well their errors predict it."
        )
        st.page_link("views/prune.py", label="Prune whole copies of the model", icon=":material/content_cut:")


def results(run: DamageRun, request: DamageRequest, table: pd.DataFrame) -> None:
    together(run, request)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        predictor = components.choose("Compare sensitivity with", MEASURES, "damage_predictor")
    skeleton = shared.skeleton(run.setup.model)
    names = request.names(run.setup, skeleton)
    marked = chosen_unit(names)
    left, right = st.columns(2)
    pick = partial(components.pick_layer, choose=select_unit)
    for place, value in ((left, "damage"), (right, predictor)):
        with place:
            key = f"damage-map-{'damage' if value == 'damage' else 'error'}"
            draw = figures.damage_bars if request.units == "blocks" else figures.damage_map
            drawing = draw(table, value, units=names, marked=marked, theme=session.theme())
            components.show(drawing, key, on_select=pick)
    if changed := request.changed(run.setup, skeleton):
        st.caption(changed)
    try:
        scatter = figures.damage_scatter(
            table, predictor, marked=marked, restore=bool(request.restore), theme=session.theme()
        )
        components.show(scatter, "damage-scatter", on_select=pick)
    except rose.RoseError as problem:
        components.info(problem)
    to_layer()
    if len(table) > 2:
        told(table)
    exact(run, table)


def together(run: DamageRun, request: DamageRequest) -> None:
    summary = run.report.summary
    components.cautions([*summary.get("text_cautions", []), *summary["cautions"]])
    base = f"Loss without a change: {summary['base_loss']:.3f} nats per token (perplexity "
    base += f"{words.number(summary['base_perplexity'])})."
    if summary["together"] is None:
        st.markdown(base)
        return
    every, error, alone = (summary[name] for name in ("together", "together_standard_error", "sum_of_damages"))
    verb = "cost" if not request.restore else "give back"
    spread = "" if error is None else f" ± {words.number(error)}"
    is_clear = error is not None and every > CLEAR * error
    share = f", {words.percent(alone / every, 0)} of it".replace(" %", "\u00a0%") if is_clear else ""
    st.markdown(
        f"{base} **All units together {verb} {words.number(every)}{spread} nats per token; measured alone, they add up "
        f"to {words.number(alone)}{share}.**"
    )


def told(table: pd.DataFrame) -> None:
    found = correlations(table)
    found["name"] = found["name"].where(found["name"] != "", "all units")
    found[[*MEASURES]] = found[[*MEASURES]].map(lambda one: "–" if one is None else f"{one}")
    with st.expander(
        "How well each error predicts sensitivity, by projection and depth", icon=":material/query_stats:"
    ):
        st.dataframe(
            found,
            hide_index=True,
            column_config={
                "group": "Among",
                "name": "Which",
                "units": "Units",
                **MEASURES,
            },
            key="damage-correlations",
            alt="Rank correlations of sensitivity with each error, overall and within groups",
        )
        st.caption(
            "Spearman's rank correlation with sensitivity, with its 95 % interval: 1 where the measure ranks the units "
            "exactly as sensitivity does, below 0 where it ranks them the other way round."
        )


def exact(run: DamageRun, table: pd.DataFrame) -> None:
    column = st.column_config.NumberColumn
    st.dataframe(
        table,
        hide_index=True,
        height=min(380, 38 + 35 * len(table)),
        column_order=[
            *("unit", "damage", "standard_error", "perplexity_ratio", *MEASURES, "sparsity", "weights"),
        ],
        column_config={
            "unit": st.column_config.TextColumn("Unit", pinned=True),
            "damage": column("Sensitivity, nats per token", format="%.4f"),
            "standard_error": column("Standard error", format="%.4f"),
            "perplexity_ratio": column("Perplexity ratio", format="%.4f"),
            **{name: column(said, format="%.4g") for name, said in MEASURES.items()},
            "sparsity": column("Removed", format="%.3f"),
            "weights": column("Weights", format="localized"),
        },
        key="damage-table",
        alt="All units measured so far with sensitivity and errors",
    )
    with st.container(horizontal=True):
        csv_button("CSV", table, "damage.csv", "damage-csv")
        file_button("JSON", partial(_as_json, run), "damage.json", key="damage-json", icon=":material/download:")


def _as_json(run: DamageRun) -> str:
    report = run.report
    return json.dumps({"summary": finite(report.summary), "units": json_rows(report.units)}, indent=1)


def select_unit(unit: str) -> None:
    """Chooses its layer for all pages; of a decoder block, the layer of the chosen projection."""
    names = [layer.name for layer in rose.prunable_layers(shared.skeleton(session.setup().model))]
    components.select_layer(layer_of(unit, names, session.layer()))


def chosen_unit(names: list[str]) -> str | None:
    layer = session.layer() or ""
    return next((name for name in names if layer == name or layer.startswith(name + ".")), None)


def to_layer() -> None:
    layer = session.layer()
    with st.container(horizontal=True, vertical_alignment="center"):
        if layer is None:
            st.caption("Click a mark to choose its layer for all pages.", width="content")
        else:
            st.caption(f"Chosen layer: {words.short_layer(layer)}.", width="content")
            st.page_link("views/layer.py", label="See this layer in depth", icon=":material/layers:")


draw()
