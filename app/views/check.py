"""Check a checkpoint: is something wrong with a pruned copy of a dense model, whoever made it?"""

from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

import rose
from app import components, session, shared, words
from app.components.work import follow
from app.figures import trust as figures
from app.forms import study_form
from app.forms.widgets import linked, pruned_model, start_button
from app.results import check_report, naming
from app.results.downloads import csv_button, file_button
from app.results.drift_sections import DRIFT as DRIFT_VIEW
from app.results.drift_sections import DRIFT_SCALE
from app.results.html_page import to_html
from app.runs import checked
from app.runs.checked import CheckpointRun, CheckRequest
from app.study import preflight
from rose.model.check.check import CheckpointCheck
from rose.model.check.costs import ERROR_OF
from rose.model.check.findings import PARTIAL, SOUND, WORSE, WRONG, headline, method_of
from rose.model.check.findings import lines as check_lines
from rose.model.check.verdicts import NOT_PRUNED, VERDICTS, says_pattern
from rose.model.estimate.duration import Cost

RUNS_PAGE = "views/runs.py"
OTHER = "Another checkpoint"
ON = {"tokens": "Weights, and errors on tokens", "weights": "Weights alone"}
NOTHING_KEPT = ". Nothing was kept."
EVERY, ONE, DRIFT = "All layers", "One layer", "Drift"
BOXES = {  # what the headline stands in, by its status; green only over what was measured
    WRONG: (components.error, ":material/error:"),
    WORSE: (components.warning, ":material/warning:"),
    PARTIAL: (components.info, ":material/info:"),
    SOUND: (components.success, ":material/check_circle:"),
}
FACTS: dict[str, Any] = {  # columns of the table of all layers, besides errors
    "sparsity": st.column_config.NumberColumn("Zeros", format="percent"),
    "pattern": "Pattern",
    "broken_groups": "Broken groups",
    "moved": st.column_config.NumberColumn("Kept weights moved", format="percent"),
    "change": st.column_config.NumberColumn("Change of kept weights, of their norm", format="percent"),
    "levels": "Values of the grid",
    "recovered": st.column_config.NumberColumn("Recovered of what a refit would", format="percent"),
}


def draw() -> None:
    st.title("Check a checkpoint: is something wrong with it?")
    components.edited_setup()
    request = _choose()
    run = shared.checks().get(shared.check_key(request))
    _offer(request, run)
    if run is None:
        _empty()
        return
    follow(run, "checkpoint", NOTHING_KEPT)
    if run.check is not None:
        _results(run, run.check)


def _choose() -> CheckRequest:
    setup = session.setup()
    left, right = st.columns(2)
    dense = left.text_input(
        "Dense model",
        **linked("check_dense"),
        placeholder=f"{setup.model}, as on the start page",
        help="What the checkpoint was made from: packaged name, Hub id, folder or .gguf file.",
    ).strip()
    with right:
        pruned = _pruned(dense or setup.model)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        on = components.choose("Check", ON, "check_on", width="content")
        stream = st.toggle(
            "Leave the weights on disk",
            **linked("check_stream"),
            help="For models larger than memory, in safetensors files: one decoder block of each is read at a time.",
        )
    return CheckRequest.of(setup, dense, pruned, with_tokens=on == "tokens", stream=stream)


def _pruned(dense: str) -> str:
    help = "Whoever pruned it, by whatever program: a folder, sharded too, a Hub id or a .gguf file."
    return pruned_model(dense, "check", "Checkpoint", OTHER, ("Checkpoint", "pruned/ or owner/model"), help)


def _offer(request: CheckRequest, run: CheckpointRun | None) -> None:
    if run is not None and run.job.status in ("running", "done"):
        return
    cost, problem, missing = _priced(request) if request.pruned else (None, "", "")
    label = "Check" if cost is None else f"Check, about {components.lasting(cost)}"
    place = start_button(
        label,
        "check-start",
        _start,
        request,
        problem=problem,
        running=not request.pruned,
        icon=":material/fact_check:",
    )
    setup = request.setup
    if missing:
        study_form.offer_to_find(missing)
    elif not request.pruned:
        place.caption("Name a checkpoint above.")
    elif not problem:
        text = "Zeros, patterns and changes, layer by layer, in seconds; no errors and no perplexity."
        if cost is not None:
            needed = words.size(2 * preflight.weights_size(cost, setup.dtype) + cost.memory)
            text = (
                f"{setup.samples} × {setup.length} tokens of {words.text_name(setup.text)} and {setup.held_out} × "
                f"{setup.length} held out, as on the start page, through both models; {needed} of memory."
            )
        place.caption(words.plain(text))
        with place:
            study_form.say_hub(setup, replace(setup, model=request.pruned))


def _priced(request: CheckRequest) -> tuple[Cost | None, str, str]:
    """What a check takes; or why it cannot be, and the model that is not there."""
    names = (request.setup.model, request.pruned)
    skeletons = [study_form.structure(name) for name in names]
    try:
        request.check([skeleton for skeleton in skeletons if skeleton is not None])
    except rose.RoseError as wrong:
        return None, str(wrong), ""
    for name, skeleton in zip(names, skeletons, strict=True):
        if skeleton is None:
            return None, study_form.problems()[name], name
    if not request.with_tokens:
        return None, "", ""
    dense = skeletons[0]
    assert dense is not None
    return request.estimate(dense), "", ""


def _start(request: CheckRequest) -> None:
    run = shared.start_check(request, session.viewer())
    session.follow_run(run, f"fact_check: Checking {words.plain(request.name)}")


def _empty() -> None:
    with st.container(border=True, horizontal_alignment="center", gap="small"):
        st.markdown("**What was pruned in this checkpoint, where did something go wrong, and what does it cost?**")
        st.text(
            "It is compared with its dense model layer by layer: what was removed and by which pattern, and what was "
            "changed. With tokens also errors, perplexity, and the methods whose masks are nearest."
        )


def _results(run: CheckpointRun, check: CheckpointCheck) -> None:
    answer = headline(check)
    box, icon = BOXES[answer.status]
    box(answer.text, icon=icon)
    verdicts = check_lines(check, words.short_layer)
    st.markdown("\n".join(f"- **{words.plain(about)}**: {words.plain(text)}" for about, text in verdicts))
    sections = {EVERY: EVERY, ONE: ONE} | ({DRIFT: DRIFT} if check.summary["drift"] else {})
    view = components.section(sections, "check_view", "What is shown")
    {EVERY: _every, ONE: _one, DRIFT: _drift}[view](run, check)
    _further(run, check)


def _every(run: CheckpointRun, check: CheckpointCheck) -> None:
    if checked.differs(check):
        drawing = check_report.map_of(check, marked_layer=_layer(check.layers), theme=session.theme())
        pick = partial(components.pick_layer, choose=_show_layer)
        components.show(drawing, "check-map", on_select=pick)
    st.markdown("\n".join(f"- {words.plain(sentence)}" for sentence in checked.facts(run)))
    table = _ranked(check.layers)
    errors = {"error": "Error", "mask_error": "Mask alone", "possible_error": "Mask, refitted"}
    errors |= {name: method_of(name) for name in map(str, table) if name.startswith(ERROR_OF)}
    columns: dict[str, Any] = {
        "layer": st.column_config.TextColumn("Layer", pinned=True),
        "verdict": "Verdict",
        "reason": st.column_config.TextColumn("Why", width="large"),
        **{name: st.column_config.NumberColumn(label, format="%.4f") for name, label in errors.items()},
        **FACTS,
    }
    st.dataframe(
        table.assign(layer=table["layer"].map(words.short_layer), pattern=table["pattern"].map(says_pattern)),
        hide_index=True,
        height=min(430, 38 + 35 * len(table)),
        key="check-layers",
        on_select=lambda: components.pick_row("check-layers", list(table["layer"]), _show_layer),
        selection_mode="single-row",
        column_order=list(columns),
        column_config=columns,
        alt="All layers of the checkpoint with verdict, reason and errors, the worst first",
    )
    if len(check.others):
        with st.expander(f"Norms, biases, embeddings and ties that differ: {len(check.others)}"):
            st.dataframe(check.others, hide_index=True, key="check-others", alt="Other tensors that differ")


def _ranked(layers: pd.DataFrame) -> pd.DataFrame:
    """The worst first, and last those that nothing has happened to."""
    rank = 2 * layers["verdict"].map(VERDICTS.index) - layers["is_wrong"] * 2 * len(VERDICTS)
    rank += 2 * len(VERDICTS) * (~layers["is_wrong"] & (layers["verdict"] == NOT_PRUNED))
    return layers.iloc[rank.argsort(kind="stable")].reset_index(drop=True)


def _layer(layers: pd.DataFrame) -> str:
    """The layer that is shown: chosen here, or on other pages, or the worst."""
    names = list(_ranked(layers)["layer"])
    chosen = st.session_state.get("check_layer")
    if chosen in names:
        return str(chosen)
    here = session.layer()
    if layers["is_wrong"].any() or here not in names:
        return str(names[0])
    errors = layers.set_index("layer").get("error", pd.Series(dtype=float)).dropna()
    return str(here if errors.empty or here in errors else names[0])


def _show_layer(layer: str) -> None:
    st.session_state.check_layer, st.session_state.check_view = layer, ONE


def _one(run: CheckpointRun, check: CheckpointCheck) -> None:
    names = list(_ranked(check.layers)["layer"])
    if st.session_state.get("check_layer") not in names:
        st.session_state.check_layer = _layer(check.layers)
    layer = st.selectbox("Layer, the worst first", names, format_func=words.short_layer, **linked("check_layer"))
    row = check.layers.set_index("layer").loc[layer]
    st.markdown(f"**{words.sentence(row['verdict'])}.** {words.plain(row['reason'])}")
    look = components.look(layer)
    if pd.notna(row.get("error")):
        components.show(figures.compensation_bars(row, **look), "check-bars")
    elif run.request.with_tokens:
        st.caption("No error was measured: the layer is untouched, broken, behind a broken one, or of an expert.")
    if layer in run.excerpts:
        components.show(figures.broken_pattern(run.excerpts[layer], **look), "check-mask")


def _drift(run: CheckpointRun, _check: CheckpointCheck) -> None:
    components.show(check_report.drift_curve(run, session.theme()), "check-drift")
    st.caption(DRIFT_SCALE)


def _further(run: CheckpointRun, check: CheckpointCheck) -> None:
    """What to take away, and other pages about this checkpoint."""
    request = run.request
    with st.container(horizontal=True, vertical_alignment="center"):
        csv_button("Layers, CSV", check.layers, "check.csv", "check-csv")
        file_button("All, JSON", check.to_json, "check.json", key="check-json", icon=":material/download:")
        file_button(
            "Report, HTML",
            lambda: to_html(check_report.report_of(run)),
            "check.html",
            key="check-report",
            mime="text/html",
        )
    folder = checked.folder_of(request)
    with st.container(horizontal=True):
        shown = {"runs": [naming.label(checked.record_of(run))]}
        st.page_link(RUNS_PAGE, label="Compare it with runs", query_params=shown, icon=":material/compare:")
        if check.summary["drift"]:
            label, drift = "Its drift beside that of others", {"runs_view": DRIFT_VIEW} | shown
            st.page_link(RUNS_PAGE, label=label, query_params=drift, icon=":material/stacked_line_chart:")
        if folder and request.setup.model == session.setup().model:
            text, restore = {"text_path": folder}, {"damage_how": "Restore alone", "damage_path": folder}
            st.page_link(
                "views/text.py", label="Read a text with it", query_params=text, icon=":material/chrome_reader_mode:"
            )
            label = "Layer sensitivity: restore each layer alone"
            st.page_link("views/damage.py", label=label, query_params=restore, icon=":material/healing:")
        else:
            st.caption("Your text and Layer sensitivity take folders of the model chosen on Start.")


draw()
