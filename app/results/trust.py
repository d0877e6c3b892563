"""Can these numbers be trusted? A line for all layers, their table, and the checks of one layer."""

from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

import rose
from app import components, session, shared, words
from app.components.work import follow
from app.figures import trust as figures
from app.figures.palette import method_style
from app.figures.trust import STATUSES, verdict_map
from app.forms.widgets import linked, start_button
from app.results.downloads import csv_button
from app.study import checking
from app.study.checking import Findings, LayerCheckRequest, LayerChecks
from app.study.study import Study
from rose import verdicts
from rose.layer.checks import AGREE, OVERFIT, check_inputs, check_overfitting
from rose.layer.registry import label_of
from rose.model.measure.layer_checks import CHECKS, check_layers

# A status has a word and an icon of its own besides its colour.
BADGES = {
    "pass": ":green-badge[:material/check_circle: pass]",
    "look": ":orange-badge[:material/visibility: review]",
    "fail": ":red-badge[:material/error: fail]",
}
CELLS = {"pass": "✓ pass", "look": "◐ review", "fail": "✗ fail"}
DEFAULT_METHODS = ["sparsegpt", "rose"]
NOT_KEPT = ". No results were kept, and nothing was changed."  # of a cancelled check

RANK = {"pass": 1, "look": 2, "fail": 3}


def of_layer(study: Study, layer: str, *_: object) -> None:
    """The checks of one layer: inputs at once, chosen methods after a run."""
    methods = st.multiselect(
        "Methods",
        list(rose.METHODS),
        default=DEFAULT_METHODS,
        format_func=label_of,
        **linked("check_methods"),
        help="Each method prunes the layer; its error is then measured in three independent ways.",
    )
    if not methods:
        st.info("Choose at least one method above.")
        return
    request = LayerCheckRequest(layer, tuple(methods), methods[0], session.threshold())
    run = shared.registry.get(LayerChecks, (study.subject, request))
    if run is not None and run.job.status == "running":
        follow(run, "checks", NOT_KEPT, every=0.5)
        return
    findings = run.findings if run is not None else None
    _checks(study, layer, methods, findings)
    if findings is None:
        _offer(study, request, run)
        return
    look = components.look(layer)
    components.show(figures.error_measures(findings.measures, **look), "three-measures")
    drawing = figures.held_out_curve(findings.curve, method=request.curve_method, **look)
    components.show(drawing, "held-out-curve")
    st.caption(f"Measured on {findings.tokens} tokens in {words.duration(findings.seconds)}.")


def _offer(study: Study, request: LayerCheckRequest, run: LayerChecks | None) -> None:
    if run is not None:
        components.ended(run.job, NOT_KEPT)
    cost, icon = checking.estimate(study, request), ":material/play_arrow:"
    right = start_button("Measure this layer", "check-start", _start, study, request, icon=icon)
    right.caption(
        f"Prunes by {words.count(len(request.methods), 'method')}, then measures each error from the tokens too, and "
        f"on ever more of them: about {components.lasting(cost)}, {words.size(cost.memory)} of memory."
    )


def _start(study: Study, request: LayerCheckRequest) -> None:
    key = (study.subject, request)
    run = shared.registry.join(LayerChecks, key, lambda _earlier: LayerChecks(study, request), session.viewer())
    session.follow(run, f"fact_check: Checks of {words.short_layer(request.layer)}")


def _checks(study: Study, layer: str, methods: list[str], findings: Findings | None) -> None:
    """A row a check, the worst first; before a run, over-fitting is judged for the chosen methods of the study."""
    compute = partial(check_inputs, study.statistics(layer), study.setup.damping)
    checks = [("calibration", check) for check in study.remember(("input checks", layer), compute)]
    if findings is not None:
        checks += [(label_of(method), check) for method, check in findings.checks()]
    else:
        is_columnar = bool(study.plan(layer, session.threshold()).is_columnar)
        measured = {("two_level" if is_columnar else "sparsegpt") if name == "rose" else name for name in methods}
        for record in study.measurements.records:
            if record.layer == layer and record.method in measured:
                check = check_overfitting(record.relative_error, record.held_out_error)
                checks += [(method_style(record.method).label, check)] if check else []
    checks.sort(key=lambda pair: -RANK[pair[1].status])
    st.markdown(f"**{verdicts.says_statuses([check.status for _, check in checks], 'check')}**")
    names = ("Status", "Check", "Of", "Found", "To pass")
    cells = [(BADGES[check.status], check.name, of, check.finding, check.limit) for of, check in checks]
    components.table([dict(zip(names, row, strict=True)) for row in cells], f"Checks of {layer}", "Status", "checks")
    if findings is not None:
        st.caption(f"Three measures of an error agree where they differ by at most {AGREE:g} of it.")


def all_layers(study: Study) -> None:
    """The checks of every measured layer, by the chosen methods: a map, and a table with the worst first."""
    if study.is_restored and study.job.status not in ("running", "done"):
        _overfitting(study.records())
        components.info("All other checks need the inputs of every layer.")
        components.offer_inputs(study.setup, "checks-collect")
        return
    measured = study.records().get("method", pd.Series()).unique()
    labels = {str(method): method_style(str(method)).label for method in measured}
    usual = [name for name in labels if name != "rose_global"] or list(labels)
    chosen = st.multiselect("Methods", list(labels), usual, format_func=labels.__getitem__, **linked("trust_methods"))
    setup, records, blocks = study.setup, study.records(), list(study.calibration.blocks)
    options: dict[str, Any] = setup.pick(("sparsity", "block_size", "damping"))
    judged = records[records["method"].isin(chosen)]
    key = ("all checks", tuple(chosen), len(records), len(blocks))
    table = study.remember(key, lambda: check_layers(judged, blocks, **options))
    places = {layer.name: (layer.block_index, layer.projection) for block in blocks for layer in block.layers}
    where = pd.DataFrame(table["layer"].map(places).tolist(), columns=["block_index", "projection"])
    shown = table.join(where).assign(
        verdict=table["status"].map(STATUSES), reason=table["found"], is_wrong=table["status"] != "pass"
    )
    finding, look = verdicts.says_statuses(list(table["status"]), "layer"), {"theme": session.theme()}
    drawing = verdict_map(shown, finding, marked_layer=session.layer(), **look)
    components.show(drawing, "trust-map", on_select=components.pick_layer)
    if len(table) < len(study.expected):
        st.caption(f"{words.sentence(words.out_of(len(table), len(study.expected), 'layer'))} judged so far.")
    components.left_out(study)
    if study.job.status == "failed":
        components.error(f"The run stopped early: {study.job.message}")
    _table(table)


def _overfitting(records: pd.DataFrame) -> None:
    """The only check that needs no inputs, the worst layer first."""
    table = records.assign(ratio=records["held_out_error"] / records["relative_error"]).query(f"ratio > {OVERFIT}")
    table = table.sort_values("ratio", ascending=False, kind="stable", ignore_index=True)
    labels = table["method"].map(lambda name: method_style(name).label)
    cells = table.assign(layer=table["layer"].map(words.short_layer), method=labels)
    shown = {"layer": "Layer", "method": "Method", "held_out_error": ("Held-out error", "%.5f")}
    shown |= {"relative_error": ("Calibration error", "%.5f"), "ratio": ("Held-out over calibration", "%.2f")}
    components.frame(cells, shown, "overfit_table", "Layers that overfit", list(table["layer"]))


def _table(table: pd.DataFrame) -> None:
    table = table.sort_values("status", key=lambda column: -column.map(RANK), kind="stable", ignore_index=True)
    cells = table.assign(layer=table["layer"].map(words.short_layer)).replace(CELLS)
    cells = cells.rename(columns={"layer": "Layer", "status": "Status", "found": "What did not pass"})
    shown: dict[str, Any] = {name: name for name in ("Layer", "Status", "What did not pass", *CHECKS)}
    shown["What did not pass"] = st.column_config.TextColumn(width="large")
    alt = "Checks of all layers, the worst first; a chosen row chooses its layer"
    components.frame(cells, shown, "check_table", alt, list(table["layer"]))
    csv_button("Table, CSV", table, "checks.csv", "checks-csv")
