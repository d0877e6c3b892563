"""Can these numbers be trusted? Of one layer, a section of the page Layer; of all layers, a view of the page Layers."""

import pandas as pd
import streamlit as st

import rose
from app import components, session, words
from app.figures import trust as figures
from app.figures.palette import method_style
from app.figures.trust import STATUSES, verdict_map
from app.forms.widgets import linked
from app.results.downloads import csv_button
from app.study import checking
from app.study.checking import Findings, LayerCheckRequest, LayerChecks
from app.study.study import Study
from rose import verdicts
from rose.layer.checks import AGREE, AGREE_ROUGHLY, OVERFIT, check_overfitting
from rose.layer.pattern import parse_sparsity
from rose.layer.registry import label_of
from rose.model.measure.layer_checks import CHECKS, check_layers, sparsity_off

# Status is never colour alone: a word, and an icon of another shape for each.
BADGES = {
    "pass": ":green-badge[:material/check_circle: pass]",
    "look": ":orange-badge[:material/visibility: review]",
    "fail": ":red-badge[:material/error: fail]",
}
CELLS = {"pass": "✓ pass", "look": "◐ review", "fail": "✗ fail"}
DEFAULT_METHODS = ["sparsegpt", "rose", "rose_global", "wanda"]
NOT_KEPT = ". No results were kept, and nothing was changed."  # of a cancelled check
KEPT_RUNS = 24
TOKENS, FITTING = "Enough tokens", "Over-fitting"
RANK = {"pass": 1, "look": 2, "fail": 3}
VERDICTS, MEASURES, OVERFITTING, SPARSITY = "Checks", "Three measures", "Over-fitting", "Sparsity"
VIEWS = {name: name for name in (VERDICTS, MEASURES, OVERFITTING, SPARSITY)}


def of_layer(study: Study, layer: str, *_: object) -> None:
    """The checks of one layer: those of its inputs at once, those of methods after a run."""
    components.begin_restored(study)
    view = components.choose("What to check", VIEWS, "trust", label_visibility="collapsed")
    request = _choose(layer)
    run = st.session_state.setdefault("check_runs", {}).get((study.created, request))
    if run is not None and run.job.status == "running":
        components.while_running(run.job, lambda: components.job_status(run.job, "checks", NOT_KEPT), 0.5)
        return
    findings = run.findings if run is not None else None
    if view == VERDICTS:
        _checks(study, layer, findings)
    elif findings is not None:
        {MEASURES: _measures, OVERFITTING: _overfitting, SPARSITY: _sparsity}[view](study, layer, findings, request)
    if findings is None:
        _offer(study, request, run)
    else:
        st.caption(f"Measured on {findings.tokens} tokens in {words.duration(findings.seconds)}.")


def _choose(layer: str) -> LayerCheckRequest:
    left, right = st.columns([3, 1])
    methods = left.multiselect(
        "Methods",
        list(rose.METHODS),
        default=DEFAULT_METHODS,
        format_func=label_of,
        **linked("check_methods"),
        help="Each method prunes the layer; its error is then measured in three independent ways.",
    )
    curve = right.selectbox(
        "Over-fitting curve of",
        list(rose.METHODS),
        format_func=label_of,
        **linked("check_curve"),
        help="The layer is pruned again on more and more of the calibration tokens.",
    )
    return LayerCheckRequest(layer, tuple(methods), curve, session.threshold())


def _offer(study: Study, request: LayerCheckRequest, run: LayerChecks | None) -> None:
    if run is not None:
        components.ended(run.job, NOT_KEPT)
    if not request.methods:
        st.info("Choose at least one method above.")
        return
    cost = checking.estimate(study, request)
    left, right = st.columns([1, 2], vertical_alignment="center")
    left.button(
        "Measure this layer",
        type="primary",
        icon=":material/play_arrow:",
        on_click=_start,
        args=(study, request),
        key="check-start",
        disabled=study.calibration.tokens is None,
        help="The calibration tokens are not drawn yet." if study.calibration.tokens is None else None,
    )
    right.caption(
        f"Prunes by {words.count(len(request.methods), 'method')}, then runs {study.setup.samples} × "
        f"{study.setup.length} tokens through the model up to this layer: about "
        f"{components.lasting(cost)}, {words.size(cost.memory)} of memory."
    )


def _start(study: Study, request: LayerCheckRequest) -> None:
    runs = st.session_state.check_runs
    run = runs[(study.created, request)] = LayerChecks(study, request)
    while len(runs) > KEPT_RUNS:
        del runs[next(iter(runs))]
    session.follow(run.job, lambda: f":material/fact_check: Checks of {words.short_layer(request.layer)}")
    run.job.start()


def _checks(study: Study, layer: str, findings: Findings | None) -> None:
    checks = [("calibration", check) for check in checking.input_checks(study, layer)]
    if findings is not None:
        checks += [(label_of(method), check) for method, check in findings.checks()]
    else:  # what all layers were measured by, as on the page Layers
        known = [record for record in study.all_records() if record.layer == layer]
        worst = max(known, key=lambda record: (record.held_out_error or 0) / (record.relative_error or 1))
        check = check_overfitting(worst.relative_error, worst.held_out_error)
        checks += [(method_style(worst.method).label, check)] if check else []
    checks.sort(key=lambda pair: -RANK[pair[1].status])
    st.markdown(f"**{verdicts.says_statuses([check.status for _, check in checks], 'check')}**")
    rows = [
        {"Status": BADGES[check.status], "Check": check.name, "Of": of, "Found": check.finding, "To pass": check.limit}
        for of, check in checks
    ]
    components.table(rows, f"Checks of {layer}", "Status")


def _measures(study: Study, layer: str, findings: Findings, request: LayerCheckRequest) -> None:
    gaps = [measures.disagreement for measures in findings.measures]
    agree = sum(gap <= AGREE for gap in gaps)
    components.show(figures.error_measures(findings.measures, **components.look(layer)), "three-measures")
    st.markdown(f"Agreement within {AGREE:g}: **{words.out_of(agree, len(gaps), 'method')}**.")
    rows = [
        {
            "Status": BADGES[measures.check.status],
            "Method": label_of(measures.method),
            "tr(ΔW H ΔWᵀ)": f"{measures.quadratic_form:.6g}",
            "Σe² − λ‖ΔW‖²": f"{measures.sweep_sum:.6g}",
            "‖(W − Ŵ)Xᵀ‖²": "–" if measures.direct is None else f"{measures.direct:.6g}",
            "Disagreement": f"{measures.disagreement:.1e}",
            "Relative error": words.number(measures.relative_error),
            "Held-out error": "not measured" if held_out is None else words.number(held_out),
        }
        for measures, held_out in zip(findings.measures, findings.held_out, strict=True)
    ]
    components.table(rows, f"Three measures of the error of {layer}", "Status")
    st.caption(
        f"Squared error of the layer's outputs, summed over {findings.tokens} calibration tokens and computed three "
        f"ways: from the Hessian, from the sweep's own sum minus its damping, and from the tokens without a Hessian. "
        f"Disagreement is (largest − smallest) / largest: up to {AGREE:g} passes, above {AGREE_ROUGHLY:g} fails. "
        "Relative errors are divided by the squared norm of the dense output."
    )


def _overfitting(study: Study, layer: str, findings: Findings, request: LayerCheckRequest) -> None:
    drawing = figures.held_out_curve(findings.curve, method=request.curve_method, **components.look(layer))
    components.show(drawing, "held-out-curve")
    rows = [
        {
            "Calibration tokens": f"{point.tokens}",
            "Error on them": words.number(point.calibration_error),
            "Held-out error": "not measured" if point.held_out_error is None else words.number(point.held_out_error),
            "Ratio": "–"
            if point.held_out_error is None or not point.calibration_error
            else f"{point.held_out_error / point.calibration_error:.2f}",
            "Damping": f"{point.damping:g}" + (" (raised)" if point.is_damping_raised else ""),
        }
        for point in findings.curve
    ]
    if findings.curve[-1].held_out_error is None:
        st.info("Nothing was held out in this set-up; add held-out samples on the start page.")
    components.table(rows, f"Error of {layer} by calibration length")
    st.caption(
        f"Relative errors; {study.setup.held_out} × {study.setup.length} held-out tokens, not used for pruning. A "
        f"ratio up to {OVERFIT:g} passes. Where the held-out error no longer falls, more calibration may not help."
    )


def _sparsity(study: Study, layer: str, findings: Findings, request: LayerCheckRequest) -> None:
    components.show(figures.sparsity_by_method(findings.sparsity, **components.look(layer)), "sparsity-by-method")
    rows = [
        {
            "Status": BADGES[found.check.status],
            "Method": label_of(found.method),
            "Requested": words.percent(found.requested, 3).replace(" ", "\u00a0"),
            "Removed": words.percent(found.realised, 3).replace(" ", "\u00a0"),
            "Promised per": {"group": f"group of {study.setup.sparsity}"}.get(found.unit, found.unit),
            "Units": f"{found.units}",
            "Largest deviation, weights": f"{found.deviation}",
            "Allowed": f"{found.allowed}",
            "Removed but not zero": f"{found.left}",
        }
        for found in findings.sparsity
    ]
    components.table(rows, f"Sparsity of {layer}", "Status")
    st.caption(
        "Each method fixes the number of removed weights per unit: SparseGPT and ROSE per block, Wanda per row, a "
        "layer budget per layer, N:M per group. That number is the nearest whole one to the sparsity asked for; the "
        "deviation is the largest difference from it."
    )


def all_layers(study: Study) -> None:
    """The checks of every layer that has been measured: a map, and a table with the worst first."""
    table = _judged(study)
    if table.empty:
        _nothing_yet(study)
        return
    places = {one.name: (one.block_index, one.projection) for block in study.calibration.blocks for one in block.layers}
    where = pd.DataFrame(table["layer"].map(places).tolist(), columns=["block_index", "projection"])
    drawing = verdict_map(
        table.join(where).assign(
            verdict=table["status"].map(STATUSES), reason=table["found"], is_wrong=table["status"] != "pass"
        ),
        verdicts.says_statuses(list(table["status"]), "layer"),
        marked_layer=session.layer(),
        theme=session.theme(),
    )
    components.show(drawing, "trust-map", on_select=components.pick_layer)
    _tell(study, table)
    components.left_out(study)
    if study.job.status == "failed":
        components.error(f"The run stopped early: {study.job.message}")
    _table(table)
    _numbers_as_asked(study)


def _judged(study: Study) -> pd.DataFrame:
    """As `check_layers` judges, which is the only rule, in the order of the model."""
    setup, records, blocks = study.setup, study.records(), list(study.calibration.blocks)
    return study.remember(
        ("all checks", len(records), len(blocks)),
        lambda: check_layers(
            records, blocks, sparsity=setup.sparsity, block_size=setup.block_size, damping=setup.damping
        ),
    )


def _table(table: pd.DataFrame) -> None:
    """The worst first."""
    table = table.sort_values("status", key=lambda one: -one.map(RANK), kind="stable", ignore_index=True)
    only = st.toggle("Only layers that do not pass", key="check_only", bind=components.URL)
    shown = table[table["status"] != "pass"] if only else table
    if shown.empty:
        st.success("Every layer passes every check.", icon=":material/check_circle:")
        return
    cells = shown.assign(layer=shown["layer"].map(words.short_layer))
    st.dataframe(
        cells.replace(CELLS).rename(columns={"layer": "Layer", "status": "Status", "found": "What did not pass"}),
        hide_index=True,
        key="check_table",
        on_select=lambda: components.pick_row("check_table", list(shown["layer"])),
        selection_mode="single-row",
        column_order=["Layer", "Status", "What did not pass", *CHECKS],
        column_config={"What did not pass": st.column_config.TextColumn(width="large")},
        height=min(430, 38 + 35 * len(cells)),
        alt="Checks of all layers",
    )
    left, right = st.columns([4, 1])
    left.caption(
        "Select a row to choose its layer. A layer passes if it has no NaN, infinity or dead column, at least as many "
        "tokens as columns, the requested damping and sparsity, and a held-out error of at most "
        f"{OVERFIT:g} times the calibration error for every measured method. A held-out error above 1 fails."
    )
    with right:
        csv_button("Table, CSV", table, "checks.csv", "checks-csv", width="stretch")


def _tell(study: Study, table: pd.DataFrame) -> None:
    """Which layers are judged, and what many of them have in common."""
    if len(table) < len(study.expected):
        st.caption(
            f"Judged so far: {words.out_of(len(table), len(study.expected), 'layer')}, those whose "
            "inputs are collected."
        )
    few, over = (table[table[check].isin(("look", "fail"))] for check in (TOKENS, FITTING))
    if len(few):
        records = study.records()
        tokens = records.loc[records["layer"].isin(few["layer"]), "tokens"]  # each expert has its own
        span = " to ".join(dict.fromkeys(words.whole(int(one)) for one in (tokens.min(), tokens.max()) if one == one))
        st.warning(
            f"{words.sentence(f'{span} calibration tokens'.strip())} are fewer than the columns of "
            f"{words.out_of(len(few), len(table), 'layer')}. Errors there look smaller than they are; use more "
            "samples.",
            icon=":material/data_usage:",
        )
    if len(over):
        components.info(
            f"Over-fitting: on {words.out_of(len(over), len(table), 'layer')} the held-out error is more than "
            f"{OVERFIT:g} times the calibration error. This says how well the calibration generalizes, not that a "
            f"layer is wrong; more samples reduce it.",
            icon=":material/query_stats:",
        )


def _numbers_as_asked(study: Study) -> None:
    """How far sparsity and damping are from the request: a picture only where there is something to see."""
    records, setup = study.records(), study.setup
    if records.empty:
        return
    off = sparsity_off(records, parse_sparsity(setup.sparsity))
    worst = records.loc[off.idxmax()]
    weights = int(worst["rows"] * worst["columns"])
    said = (
        f"Removed weights of all {words.count(len(records), 'result')} are within {off.max():.1f} weights "
        f"of what the sparsity {setup.sparsity} asks for: the largest difference is in "
        f"{words.short_layer(worst['layer'])}, of {words.whole(weights)} weights. Blocks round to "
        "whole weights."
    )
    if records["is_damping_raised"].any():
        st.caption(said)
        drawing = figures.damping_strip(records, setup.damping, marked_layer=session.layer(), theme=session.theme())
        components.show(drawing, "damping-of-layers")
    else:
        st.caption(f"{said} No damping had to be raised.")


def _nothing_yet(study: Study) -> None:
    if study.job.status == "running":
        st.info("The first layers appear here as soon as they are measured.")
        return
    why = f": {study.job.message}" if study.job.status == "failed" else "."
    components.warning(
        f"The run ended before its first decoder block was measured{why} Start it again on the start page.",
        ":material/stop:",
    )
