"""Layer sensitivity: which layers does the loss depend on?"""

import json
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

import rose
from app import components, session, shared, words
from app.components.work import progress
from app.figures import sensitivity as figures
from app.forms.widgets import attempt, method_choice, pruned_model, start_button
from app.results.downloads import csv_button, file_button, menu
from app.runs import example
from app.runs.damage import DamageRun, estimate, layer_of, recipe_of, says_changed, unit_names
from rose.layer.pattern import METHOD, THRESHOLD
from rose.model.measure.damage import CLEAR, correlations
from rose.recipe.steps import Damage
from rose.rows import finite, json_rows

INTERVENTIONS = {"prune": "Prune alone", "restore": "Restore alone"}
UNITS = {"blocks": "Decoder blocks", "layers": "Layers"}
MEASURES = {name: words.sentence(label) for name, (label, *_) in figures.PREDICTORS.items()}
MEANING = {
    "prune": "One unit is pruned, everything else stays dense: its sensitivity is the rise of the loss.",
    "restore": "The model is pruned, one unit gets its dense weights back: its sensitivity is the fall of the loss.",
}
NO_RUN = "No pruned model is chosen: prune one under What you get and keep its checkpoint, or give the folder of one."


def draw() -> None:
    with st.expander("Measure your own", icon=":material/tune:", key="damage-form"):
        request, problem = _choose()
        run = None if request is None else shared.registry.get(DamageRun, shared.key_of(request))
        if run is None or run.job.status not in ("running", "done"):
            _offer(request, problem, run)
    if request is None or run is None:
        run = example.damage()
        components.example(
            f"each layer pruned alone by {rose.METHODS[run.request.method].label} at {run.setup.sparsity}"
        )

    def arriving(shown: DamageRun) -> None:
        table, running = shown.table, shown.job.status == "running"
        if running:
            progress(shown, "damage")
        else:
            done = words.count(len(table), "unit")
            components.ended(shown.job, f" after {done}; what is measured is kept.")
        if not table.empty:
            _results(shown, table)
        elif running:
            st.info("The first units are being measured.")

    components.while_measured(run.job, partial(arriving, run))


def _choose() -> tuple[Damage | None, str]:
    """The requested measurement, or the reason why none is possible."""
    setup, chosen = session.setup(), dict[str, Any]()
    left, middle, right = st.columns(3)
    with left:
        how = components.choose("Change", INTERVENTIONS, "damage_how")
    with middle:
        units = components.choose("Unit", UNITS, "damage_units")
    with right:
        if how == "restore":
            help = "A checkpoint that `rose prune` or this page has written, of the chosen model."
            path = ("Folder of a pruned model", "pruned/")
            chosen["restore"] = pruned_model(setup.model, "damage", "Pruned model", "Another folder", path, help)
        else:
            method = method_choice(right, METHOD, "damage_method")
            chosen = {"method": method, "threshold": session.threshold() if method == "rose" else THRESHOLD}
    amount = f" Sparsity {setup.sparsity}." if how == "prune" else ""
    which = "" if setup.layers is None else f" Only layers named {words.plain(setup.layers_text)} are changed."
    st.caption(
        f"{MEANING[how]}{amount} Calibration: {setup.samples} × {setup.length} tokens; loss: {setup.held_out} × "
        f"{setup.length} held-out tokens.{which}"
    )
    return (None, NO_RUN) if chosen.get("restore") == "" else attempt(lambda: recipe_of(setup, units=units, **chosen))


def _offer(request: Damage | None, problem: str, run: DamageRun | None) -> None:
    cost = None
    if request is not None:
        cost, problem = attempt(lambda: estimate(request, shared.skeleton(request.model)))
    label, takes = "Measure sensitivity", ""
    if run is not None and run.records:
        label, takes = "Go on measuring", "What is measured is kept."
    elif cost is not None:
        takes = f"About {components.lasting(cost)}, {words.size(cost.memory + cost.model_memory)} of memory."
    start_button(
        label, "damage-start", session.start_damage, request, icon=":material/play_arrow:", problem=problem,
        takes=takes, asking=[session.setup()], recipes=[request] if request else (),
    )  # fmt: skip


def _results(run: DamageRun, table: pd.DataFrame) -> None:
    request = run.request
    _together(run)
    predictor = components.choose("Compare sensitivity with", MEASURES, "damage_predictor")
    skeleton = shared.skeleton(run.setup.model)
    units = unit_names(request, skeleton)
    layer, theme = session.layer() or "", session.theme()
    marked = next((unit for unit in units if layer == unit or layer.startswith(unit + ".")), None)

    def select(unit: str) -> None:
        """The unit's layer, on all pages; of a decoder block, the layer of the chosen projection."""
        names = [layer.name for layer in rose.prunable_layers(skeleton)]
        components.select_layer(layer_of(unit, names, session.layer()))

    pick = partial(components.pick_layer, choose=select)
    draw = figures.damage_bars if request.units == "blocks" else figures.damage_map
    left, right = st.columns(2)
    with left:
        drawing = draw(table, "damage", units=units, marked=marked, theme=theme)
        components.show(drawing, "damage-map-damage", on_select=pick)
    with right:
        try:
            scatter = figures.damage_scatter(
                table, predictor, marked=marked, restore=bool(request.restore), theme=theme
            )
            components.show(scatter, "damage-scatter", on_select=pick)
        except rose.RoseError as problem:
            components.info(problem)
    summary = run.report.summary
    components.cautions([*summary.get("text_cautions", []), *summary["cautions"]])
    if not request.restore:
        st.caption("Each is pruned on the dense model's inputs. On *Prune* later layers make up for earlier ones.")
    if changed := says_changed(request, skeleton):
        st.caption(changed)
    _exact(run, table)


def _together(run: DamageRun) -> None:
    summary = run.report.summary
    if summary["together"] is None:
        return
    every, error, alone = (summary[name] for name in ("together", "together_standard_error", "sum_of_damages"))
    verb = "give back" if run.request.restore else "cost"
    spread = "" if error is None else f" (standard error {words.number(error, 2)})"
    is_clear = error is not None and every > CLEAR * error
    share = f", {words.percent(alone / every, 0)} of that" if is_clear else ""
    units = "decoder blocks" if run.request.units == "blocks" else "layers"
    st.markdown(
        f"**Changed together, the {units} {verb} {words.number(every)} nats per token{spread}. Changed one at a time, "
        f"they {verb} {words.number(alone)} in sum{share}.**"
    )


def _exact(run: DamageRun, table: pd.DataFrame) -> None:
    """The numbers of every unit, and how well each error ranks the units."""
    with st.expander("All numbers", icon=":material/table:", key="damage-numbers", on_change="rerun") as part:
        if not part.open:
            return
        shown = {
            "unit": st.column_config.TextColumn("Unit", pinned=True),
            "damage": ("Sensitivity, nats per token", "%.4f"),
            "standard_error": ("Standard error", "%.4f"),
            "perplexity_ratio": ("Perplexity ratio", "%.4f"),
            **{name: (label, "%.4g") for name, label in MEASURES.items()},
            "sparsity": ("Removed", "%.3f"),
            "weights": ("Weights", "localized"),
        }
        summary = run.report.summary
        base = f"{summary['base_loss']:.3f} nats per token, perplexity {words.number(summary['base_perplexity'])}"
        st.caption(f"Loss without a change: {base}.")
        components.frame(table, shown, "damage-table", "All units measured so far with sensitivity and errors")
        if len(table) > 2:
            ranks = correlations(table)
            ranks["name"] = ranks["name"].where(ranks["name"] != "", "all units")
            ranks[[*MEASURES]] = ranks[[*MEASURES]].map(lambda interval: "–" if interval is None else f"{interval}")
            names = {"group": "Among", "name": "Which", "units": "Units", **MEASURES}
            components.frame(ranks, names, "damage-correlations", "Rank correlations")
            st.caption("Spearman's rank correlation of each error with sensitivity, with its 95\u202f% interval.")
        with menu("damage-downloads"):
            csv_button("CSV", table, "damage.csv", "damage-csv")
            report = run.report
            content = lambda: {"summary": finite(report.summary), "units": json_rows(report.units)}  # noqa: E731
            file_button("JSON", lambda: json.dumps(content(), indent=1), "damage.json", key="damage-json")
