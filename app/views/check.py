"""Check a checkpoint: is something wrong with a pruned copy of a dense model, whoever made it?"""

from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

import rose
from app import components, session, shared, words
from app.components import SHARE
from app.components.work import follow
from app.figures import trust as figures
from app.forms import study_form
from app.forms.widgets import linked, pruned_model, start_button, text_input
from app.results import html_report, naming
from app.results.downloads import csv_button, file_button, menu
from app.results.pairs import DRIFT_SCALE
from app.runs import checked, example
from app.runs.checked import CheckpointRun
from app.sections import look_inside
from app.study.setup import weights_size
from rose.files import expand
from rose.layer.registry import label_of
from rose.model.check.costs import ERROR_OF
from rose.model.check.findings import lines as check_lines
from rose.model.check.findings import method_of
from rose.model.check.result import (
    PARTIAL,
    SOUND,
    UNDECIDED,
    WORSE,
    WRONG,
    CheckpointCheck,
    headline,
    so_far,
)
from rose.model.check.verdicts import Verdict, says_pattern
from rose.model.estimate import Cost
from rose.model.packaged import PACKAGED
from rose.recipe.steps import CheckCopies

OTHER = "Another checkpoint"
ON = {"tokens": "Weights and errors", "weights": "Weights alone"}
LAYERS, NUMBERS, DRIFT, INSIDE = "Layer by layer", "All numbers", "Drift", "Look inside"
BOXES = {  # what the headline stands in, by its status; green only over what was measured
    WRONG: (components.error, ":material/error:"),
    WORSE: (components.warning, ":material/warning:"),
    UNDECIDED: (components.warning, ":material/help:"),
    PARTIAL: (components.info, ":material/info:"),
    SOUND: (components.success, ":material/check_circle:"),
}
BEHIND = "No error was measured: the layer is untouched, broken, behind a broken one, or of an expert."
SHARES = ("sparsity", "moved", "change", "recovered")
FACTS: dict[str, Any] = {  # columns of the table of all layers, besides errors
    "sparsity": ("Zeros", SHARE),
    "pattern": "Pattern",
    "broken_groups": "Broken groups",
    "moved": ("Kept weights moved", SHARE),
    "change": ("Change of kept weights, of their norm", SHARE),
    "levels": "Values of the grid",
    "recovered": ("Part of a refit's gain recovered", SHARE),
}


def draw() -> None:
    components.head()
    request, pruned, dense = _choose()
    run = None if request is None else shared.registry.get(CheckpointRun, shared.key_of(request))
    status = None if request is None or run is None else run.job.status
    place = st.container() if status == "done" else _offer(request, running=status == "running")
    if run is not None:
        follow(run, "checkpoint", ". What was measured until then is shown.", state=partial(getattr, run, "stages"))
    elif not pruned:  # or it would stand under the name of another checkpoint
        run = example.check(with_tokens=st.session_state.check_on == "tokens")
    check = None if run is None else run.check
    drift = [DRIFT] if check is not None and check.summary["drift"] else []
    view = components.section([LAYERS, NUMBERS, *drift, INSIDE], "check_view", "What is shown")
    if not pruned:
        with place:
            broken = ("one group broken by hand in a copy at 2:4",)
            components.example(*(("the dense model", f" {next(iter(PACKAGED))}") if view == INSIDE else broken))
    if view == INSIDE:
        look_inside.draw(pruned, dense)
    elif run is not None and check is not None:
        _results(run, check, view)
    elif run is None:
        st.info("Check gives every layer a verdict here. Look inside shows the tensors without a check.")


def _choose() -> tuple[CheckCopies | None, str, str]:
    """The requested check, if any, and the names of the checkpoint and of its dense model."""
    setup, usual = session.setup(), f"{session.setup().model}, as in the dialog"
    left, middle, right = st.columns([2, 2, 0.8], vertical_alignment="bottom")
    dense = text_input("Dense model it was made from", "check_dense", usual, None, middle) or setup.model
    with left:
        path = ("Your checkpoint", "a folder, a .gguf file or a Hub id")
        pruned = pruned_model(dense, "check", path[0], OTHER, path, None)
    with right.popover("More", icon=":material/tune:", width="stretch"):
        mode = st.selectbox("Measure", list(ON), format_func=ON.__getitem__, **linked("check_on"))
        help = "Reads one decoder block of each model at a time, for safetensors files larger than memory."
        stream = st.toggle("Leave the weights on disk", **linked("check_stream"), help=help)
    if not pruned:
        return None, "", dense
    try:
        request = checked.request_of(setup, dense, pruned, with_tokens=mode == "tokens", stream=stream)
    except rose.RoseError as problem:
        components.error(problem)
        return None, pruned, dense
    return request, pruned, dense


def _offer(request: CheckCopies | None, *, running: bool) -> DeltaGenerator:
    cost, problem, missing = _priced(request) if request else (None, "", "")
    setups, takes = [], ""
    if request is not None:
        setup, takes = checked.setup_of(request), "Zeros, patterns and changes in seconds; no errors and no perplexity."
        setups = [setup, setup.changed(model=request.pruned[0])]
        if cost is not None:
            needed = words.size(2 * weights_size(cost, setup.dtype) + cost.memory)
            takes = f"{setup.tokens} and "
            takes += f"{setup.held_out} × {setup.length} held out through both models: about "
            takes += f"{components.lasting(cost)}, {needed}."
    place = start_button(
        "Check", "check-start", _start, request, icon=":material/fact_check:", problem=problem, running=running,
        ready=request is not None, takes=words.plain(takes), asking=setups, recipes=[request] if request else (),
    )  # fmt: skip
    if missing:
        study_form.offer_to_find(missing)
    return place


def _priced(request: CheckCopies) -> tuple[Cost | None, str, str]:
    """The cost of a check; or why none is possible, and the missing model."""
    names = (request.dense, request.pruned[0])
    skeletons = [study_form.structure(name) for name in names]
    try:
        checked.check(request, [skeleton for skeleton in skeletons if skeleton is not None])
    except rose.RoseError as problem:
        return None, str(problem), ""
    for name, skeleton in zip(names, skeletons, strict=True):
        if skeleton is None:
            return None, study_form.problems()[name], name
    dense = skeletons[0]
    if request.calibration is None or dense is None:
        return None, "", ""
    return checked.estimate(request, dense), "", ""


def _start(request: CheckCopies) -> None:
    run = shared.start_check(request, session.viewer())
    session.follow(run, f"fact_check: Checking {words.plain(checked.name_of(request))}")


def _results(run: CheckpointRun, check: CheckpointCheck, view: str) -> None:
    answer, is_done = headline(check), run.job.status == "done"
    box, icon = BOXES[answer.status]
    box(answer.text if is_done else so_far(check), icon=icon)
    if run.recorded:
        st.caption(words.plain(run.recorded))
    if view == DRIFT:
        components.show(html_report.check_drift(run, session.theme()), "check-drift")
        st.caption(DRIFT_SCALE)
    else:
        (_layers if view == LAYERS else _numbers)(run, check)
    if is_done:
        _further(run, check)


def _layers(run: CheckpointRun, check: CheckpointCheck) -> None:
    """The verdict on every layer, and beside it the evidence for one."""
    left, right = st.columns([1, 1.13], gap="medium")
    layer, theme = _layer(check.layers), session.theme()
    with left:
        if checked.differs(check):
            drawing = html_report.check_map(check, marked_layer=layer, theme=theme)
            pick = partial(components.pick_layer, choose=_show_layer)
            components.show(drawing, "check-map", on_select=pick)
        verdicts = check_lines(check, words.short_layer)
        st.markdown("\n".join(f"- **{words.plain(about)}**: {words.plain(text)}" for about, text in verdicts))
    with right:
        _evidence(run, check, layer)


def _numbers(run: CheckpointRun, check: CheckpointCheck) -> None:
    st.markdown("\n".join(f"- {words.plain(sentence)}" for sentence in checked.facts(run)))
    table = _ranked(check.layers)
    errors = {"held_out_error": "Held-out error", "error": "Error, calibration", "mask_error": "Mask alone"}
    errors |= {"possible_error": "Mask, refitted"}
    errors |= {name: method_of(name) for name in map(str, table) if name.startswith(ERROR_OF)}
    columns: dict[str, Any] = {
        "layer": st.column_config.TextColumn("Layer", pinned=True),
        "verdict": "Verdict",
        "reason": st.column_config.TextColumn("Why", width="large"),
        **{name: (label, "%.3g") for name, label in errors.items()},
        **FACTS,
    }
    shown = table.assign(layer=table["layer"].map(words.short_layer), pattern=table["pattern"].map(says_pattern))
    alt = "All layers of the checkpoint with verdict, reason and errors, the worst first"
    names = list(table["layer"])
    components.frame(components.in_percent(shown, SHARES), columns, "check-layers", alt, names, _show_layer)
    if len(check.others):
        with st.expander(f"Norms, biases, embeddings, ties and fields that differ: {len(check.others)}"):
            st.dataframe(check.others, hide_index=True, key="check-others", alt="Other tensors that differ")


def _ranked(layers: pd.DataFrame) -> pd.DataFrame:
    """The worst first, and untouched layers last."""
    rank = 2 * layers["verdict"].map(list(Verdict).index) - layers["is_wrong"] * 2 * len(Verdict)
    rank += 2 * len(Verdict) * (~layers["is_wrong"] & (layers["verdict"] == Verdict.NOT_PRUNED))
    return layers.iloc[rank.argsort(kind="stable")].reset_index(drop=True)


def _layer(layers: pd.DataFrame) -> str:
    """The layer that is shown: chosen here, or on other pages, or the worst."""
    names = list(_ranked(layers)["layer"])
    chosen = st.session_state.get("check_layer")
    if chosen in names:
        return str(chosen)
    elsewhere = session.layer()
    if layers["is_wrong"].any() or elsewhere not in names:
        return str(names[0])
    errors = layers.set_index("layer").get("error", pd.Series(dtype=float)).dropna()
    return str(elsewhere if errors.empty or elsewhere in errors else names[0])


def _show_layer(layer: str) -> None:
    st.session_state.check_layer = layer


def _evidence(run: CheckpointRun, check: CheckpointCheck, layer: str) -> None:
    """Why a layer has its verdict: the broken group, its error among others, and what was compared."""
    names = list(_ranked(check.layers)["layer"])
    if st.session_state.get("check_layer") not in names:
        st.session_state.check_layer = layer
    layer = st.selectbox("Layer, the worst first", names, format_func=words.short_layer, **linked("check_layer"))
    row, look = check.layers.set_index("layer").loc[layer], components.look(layer)
    st.markdown(f"**{words.sentence(row['verdict'])}.** {words.plain(row['reason'])}")
    if pd.notna(row.get("error")):
        components.show(figures.compensation_bars(row, **look), "check-bars")
    elif run.request.calibration is not None:
        reason = "No error was measured yet." if run.job.status == "running" else BEHIND
        st.caption(reason)
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in _compared(row).items())
    st.html(f'<div class="written"><b>What was compared</b><table>{rows}</table></div>')
    if layer in run.excerpts:
        components.show(figures.broken_pattern(run.excerpts[layer], **look), "check-mask")


def _compared(row: pd.Series) -> dict[str, str]:
    """What was compared in a layer, and the result."""
    pattern = says_pattern(row["pattern"])
    zeros = f"{words.percent(row['sparsity'])}{f', {pattern}' if pattern else ''}"
    if broken := int(row.get("broken_groups") or 0):
        zeros += f", broken in {words.count(broken, 'group')}"
    results = {"zeros": zeros}
    if pd.notna(row.get("agreement")) and row.get("nearest_method"):
        results["mask"] = f"{label_of(row['nearest_method'])}'s in {words.percent(row['agreement'], 0)} of the choices"
    moved = f"{words.percent(row['moved'], 0)} of them moved, by {words.percent(row['change'])} of their norm"
    results["kept weights"] = moved if row["moved"] > 0 else "as in the dense model"
    if pd.notna(row.get("recovered")):
        results["compensation"] = f"{words.percent(row['recovered'], 0)} of what a least-squares refit would recover"
    return results


def _further(run: CheckpointRun, check: CheckpointCheck) -> None:
    """Files, and other pages about this checkpoint."""
    folder = run.request.pruned[0]
    shown = {"prune_section": "Compare runs", "runs": [naming.label(checked.record_of(run))]}
    with st.container(horizontal=True, vertical_alignment="center"):
        with menu("check-downloads"):
            csv_button("Layers, CSV", check.layers, "check.csv", "check-csv")
            file_button("All, JSON", check.to_json, "check.json", key="check-json")
            html = partial(lambda: html_report.to_html(html_report.check_report(run)))
            file_button("Report, HTML", html, "check.html", key="check-report", mime="text/html")
        if run.request not in example.CHECKS.values():  # which Compare runs does not offer
            st.page_link("views/prune.py", label="Compare it", query_params=shown, icon=":material/compare:")
        if Path(expand(folder), "config.json").is_file() and run.setup.model == session.setup().model:
            text = {"prune_section": "Your text", "text_path": folder}
            restore = {"prune_section": "Layer sensitivity", "damage_how": "Restore alone", "damage_path": folder}
            icon = ":material/chrome_reader_mode:"
            st.page_link("views/prune.py", label="Read a text with it", query_params=text, icon=icon)
            label, icon = "Restore each layer alone", ":material/healing:"
            st.page_link("views/prune.py", label=label, query_params=restore, icon=icon)


draw()
