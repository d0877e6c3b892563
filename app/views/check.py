"""Check: can the numbers of these layers be trusted?"""

from __future__ import annotations

import pandas as pd
import streamlit as st

import rose
from app import components, session, words
from app.figures import check as figures
from app.study import checking
from app.study.checking import CheckRequest, Findings, LayerChecks
from app.study.study import Study
from rose.layer.checks import AGREE, AGREE_ROUGHLY, OVERFIT, Check
from rose.layer.pattern import parse_sparsity
from rose.model.checks import CHECKS, check_layers

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
ONE, ALL = "This layer", "All layers"
MEASURES, OVERFITTING, SPARSITY = "Three measures", "Over-fitting", "Sparsity"
SECTIONS = {name: name for name in (ONE, MEASURES, OVERFITTING, SPARSITY, ALL)}


def draw() -> None:
    st.title("Check: can these numbers be trusted?")
    study = components.require_study("Checks of every layer's error, sparsity and inputs appear here.")
    view = components.section(SECTIONS, "check", "What to check")
    if view == ALL:  # also for a run that broke off at a layer with bad inputs
        _all_layers(study)
        return
    study, layer = components.require_layer("Checks of one layer's error, sparsity and inputs appear here.")
    request = _choose(layer)
    run = _runs().get((study.created, request))
    if run is not None and run.job.status == "running":
        _wait(run)
        return
    findings = run.findings if run is not None else None
    if view == ONE:
        _one_layer(study, layer, findings)
    elif findings is not None:
        {MEASURES: _measures, OVERFITTING: _overfitting, SPARSITY: _sparsity}[view](study, layer, findings, request)
    if findings is None:
        _offer(study, request, run)
    else:
        st.caption(f"Measured on {findings.tokens} tokens in {components.duration(findings.seconds)}.")


def _choose(layer: str) -> CheckRequest:
    left, right = st.columns([3, 1])
    methods = left.multiselect(
        "Methods",
        list(rose.METHODS),
        default=DEFAULT_METHODS,
        format_func=_label,
        key="check_methods",
        bind="query-params",
        help="Each prunes the layer; the error that it reports is measured in three independent ways.",
    )
    curve = right.selectbox(
        "Over-fitting curve of",
        list(rose.METHODS),
        format_func=_label,
        key="check_curve",
        bind="query-params",
        help="Pruned anew on ever more of the calibration tokens.",
    )
    return CheckRequest(layer, tuple(methods), curve, session.threshold())


def _label(method: str) -> str:
    return rose.METHODS[method].label


def _runs() -> dict[object, LayerChecks]:
    """This session's runs by study and request; only numbers are kept in them."""
    return st.session_state.setdefault("check_runs", {})


def _offer(study: Study, request: CheckRequest, run: LayerChecks | None) -> None:
    """The way to the measurements that take a pass through the model."""
    if run is not None:
        components.job_status(run.job, "checks", NOT_KEPT)  # failed or cancelled
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
    )
    right.caption(
        f"Prunes by {words.count(len(request.methods), 'method')}, then runs {study.setup.samples} × "
        f"{study.setup.length} tokens through the model up to this layer: about "
        f"{components.duration(max(1.0, cost.seconds))}, {components.size(cost.memory)} of memory."
    )


def _start(study: Study, request: CheckRequest) -> None:
    runs = _runs()
    run = runs[(study.created, request)] = LayerChecks(study, request)
    while len(runs) > KEPT_RUNS:
        del runs[next(iter(runs))]
    session.start_job(run.job, lambda: f":material/fact_check: Checks of {words.short_layer(request.layer)}")


def _wait(run: LayerChecks) -> None:
    def poll() -> None:
        if run.job.status != "running":
            st.rerun()
        components.job_status(run.job, "checks", NOT_KEPT)

    components.live(poll, 0.5)


# The views


def _table(checks: list[tuple[str, Check]], alt: str) -> None:
    rows = [
        {"Status": BADGES[check.status], "Check": check.name, "Of": of, "Found": check.found, "Passes": check.limit}
        for of, check in checks
    ]
    st.table(pd.DataFrame(rows), hide_index=True, border="horizontal", alt=alt)


def _verdict(statuses: list[str], noun: str) -> str:
    """ "12 checks: eleven pass, one needs review, none fails"."""
    verbs = {"pass": ("passes", "pass"), "look": ("needs review", "need review"), "fail": ("fails", "fail")}
    parts = []
    for status, (one, several) in verbs.items():
        found = statuses.count(status)
        parts.append(f"{words.word(found)} {one if found == 1 else several}" if found else f"none {one}")
    return f"{words.sentence(words.count(len(statuses), noun))}: {', '.join(parts)}"


def _one_layer(study: Study, layer: str, findings: Findings | None) -> None:
    checks = [("calibration", check) for check in checking.input_checks(study, layer)]
    if findings is not None:
        checks += [(_label(method), check) for method, check in findings.checks()]
    order = ["fail", "look", "pass"]
    checks.sort(key=lambda pair: order.index(pair[1].status))
    st.subheader(_verdict([check.status for _, check in checks], "check"), anchor=False)
    _table(checks, f"Checks of {layer}")


def _measures(study: Study, layer: str, findings: Findings, request: CheckRequest) -> None:
    gaps = [measures.disagreement for measures in findings.measures]
    agree = sum(gap <= AGREE for gap in gaps)
    components.show(
        figures.error_measures(findings.measures, layer=words.short_layer(layer), theme=session.theme()),
        "three-measures",
    )
    st.markdown(f"Agreement within {AGREE:g}: **{words.out_of(agree, len(gaps), 'method')}**.")
    rows = [
        {
            "Status": BADGES[measures.check.status],
            "Method": _label(measures.method),
            "tr(ΔW H ΔWᵀ)": f"{measures.quadratic_form:.6g}",
            "Σe² − λ‖ΔW‖²": f"{measures.sweep_sum:.6g}",
            "‖(W − Ŵ)Xᵀ‖²": "–" if measures.direct is None else f"{measures.direct:.6g}",
            "Disagreement": f"{measures.disagreement:.1e}",
            "Relative error": f"{measures.relative_error:.4f}",
            "Held-out error": "not measured" if held_out is None else f"{held_out:.4f}",
        }
        for measures, held_out in zip(findings.measures, findings.held_out, strict=True)
    ]
    st.table(pd.DataFrame(rows), hide_index=True, border="horizontal", alt=f"Three measures of the error of {layer}")
    st.caption(
        f"Squared error of the layer's outputs, summed over {findings.tokens} calibration tokens: from the Hessian "
        "alone; from what the sweep itself counted, less its damping; and from the tokens, without a Hessian. "
        f"Disagreement is (largest − smallest) / largest: up to {AGREE:g} passes, above {AGREE_ROUGHLY:g} fails. "
        "Relative errors are shares of the dense output's square."
    )


def _overfitting(study: Study, layer: str, findings: Findings, request: CheckRequest) -> None:
    drawing = figures.held_out_curve(
        findings.curve,
        method=request.curve_method,
        layer=words.short_layer(layer),
        requested=study.setup.damping,
        theme=session.theme(),
    )
    components.show(drawing, "held-out-curve")
    rows = [
        {
            "Calibration tokens": f"{point.tokens}",
            "Error on them": f"{point.calibration_error:.4f}",
            "Held-out error": "not measured" if point.held_out_error is None else f"{point.held_out_error:.4f}",
            "Ratio": "–"
            if point.held_out_error is None or not point.calibration_error
            else f"{point.held_out_error / point.calibration_error:.2f}",
            "Damping": f"{point.damping:g}" + ("" if point.damping <= study.setup.damping else " (raised)"),
        }
        for point in findings.curve
    ]
    if findings.curve[-1].held_out_error is None:
        st.info("Nothing was held out in this set-up; ask for held-out samples on the start page.")
    st.table(pd.DataFrame(rows), hide_index=True, border="horizontal", alt=f"Error of {layer} by calibration length")
    st.caption(
        f"Relative errors; {study.setup.held_out} × {study.setup.length} held-out tokens that no fit has seen. "
        f"A ratio up to {OVERFIT:g} passes. Where the held-out error no longer falls, more calibration does not help."
    )


def _sparsity(study: Study, layer: str, findings: Findings, request: CheckRequest) -> None:
    components.show(
        figures.sparsity_by_method(findings.sparsity, layer=words.short_layer(layer), theme=session.theme()),
        "sparsity-by-method",
    )
    rows = [
        {
            "Status": BADGES[found.check.status],
            "Method": _label(found.method),
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
    st.table(pd.DataFrame(rows), hide_index=True, border="horizontal", alt=f"Sparsity of {layer}")
    st.caption(
        "Every method promises its count somewhere else: SparseGPT and ROSE in every block, Wanda in every row, a "
        "layer-wide budget in the whole layer, N:M in every group. The deviation is the largest difference from that "
        "count. Counts are rounded to whole weights, so the shares need not be equal to the last digit."
    )


def _all_layers(study: Study) -> None:
    setup = study.setup
    records, blocks = study.records(), list(study.calibration.blocks)
    table = study.remember(
        ("all checks", len(records), len(blocks)),
        lambda: check_layers(
            records, blocks, sparsity=setup.sparsity, block_size=setup.block_size, damping=setup.damping
        ),
    )
    if table.empty:
        _nothing_yet(study)
        return
    st.subheader(_verdict(list(table["status"]), "layer"), anchor=False)
    if study.job.status == "failed":
        st.error(f"The run stopped early: {study.job.message}", icon=":material/error:")
    only = st.toggle("Only layers that do not pass", key="check_only", bind="query-params")
    shown = table[table["status"] != "pass"] if only else table
    if shown.empty:
        st.success("Every layer passes every check.", icon=":material/check_circle:")
        return
    cells = shown.assign(layer=shown["layer"].map(words.short_layer))
    for column in ("status", *CHECKS):
        cells[column] = cells[column].map(lambda status: CELLS.get(status, status))
    st.dataframe(
        cells.rename(columns={"layer": "Layer", "status": "Worst", "found": "What did not pass"}),
        hide_index=True,
        key="check_table",
        on_select=lambda: _pick(list(shown["layer"])),
        selection_mode="single-row",
        column_order=["Layer", "Worst", "What did not pass", *CHECKS],
        column_config={"What did not pass": st.column_config.TextColumn(width="large")},
        height=min(430, 38 + 35 * len(cells)),
        alt="Checks of all layers",
    )
    left, right = st.columns([4, 1])
    left.caption(
        f"Select a row to choose its layer. Passes: no NaN or infinity; no dead column; at least as many tokens as "
        f"columns; damping {setup.damping:g} as requested; the requested sparsity to half a weight per block; "
        f"held-out error at most {OVERFIT:g} times the calibration error for every method that was measured."
    )
    right.download_button(
        "Table, CSV",
        table.to_csv(index=False),
        "checks.csv",
        on_click="ignore",
        icon=":material/download:",
        width="stretch",
    )
    if not records.empty:
        ratio = parse_sparsity(setup.sparsity).ratio
        components.show(figures.sparsity_strip(records, ratio, theme=session.theme()), "sparsity-of-layers")
        drawing = figures.damping_strip(records, setup.damping, marked_layer=session.layer(), theme=session.theme())
        components.show(drawing, "damping-of-layers")


def _nothing_yet(study: Study) -> None:
    """In place of the table while the first decoder block has not been measured, or where it never was."""
    if study.job.status == "running":
        st.info("The first layers will show here as soon as they have been measured.")
        components.wait_for(study, lambda: bool(study.calibration.blocks))
        return
    why = f": {study.job.message}" if study.job.status == "failed" else "."
    st.warning(
        f"The run ended before its first decoder block was measured{why} Start it again on the start page.",
        icon=":material/stop:",
    )


def _pick(layers: list[str]) -> None:
    rows = st.session_state.check_table.selection.rows
    if rows:
        session.choose_layer(layers[rows[0]])


draw()
