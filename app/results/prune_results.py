"""The Prune page's results: a section each."""

import functools
import tempfile
from typing import Any

import pandas as pd
import streamlit as st

from app import components, session, shared, words
from app.figures import methods, palette, style
from app.figures import methods as figures
from app.forms.prune_choices import TARGETS
from app.results import naming, pairs, prune_files
from app.results.downloads import checkpoint_button, csv_button, file_button, report_button
from app.results.drift_sections import DRIFT
from app.results.shipping import Advice, advise, cost, what_loads, where
from app.runs.copies import file_name, results_of
from app.runs.pruning import PruningRun, accuracy_table, layer_table, model_table
from app.runs.request import HELD_OUT
from rose import RoseError, RunReport
from rose.rows import csv_text, with_cautions
from rose.verdicts import Result, says_odd_windows

ERRORS = {  # on, against -> column; those first that are shown unasked
    ("held-out", "own output"): "held_out_error",
    ("calibration", "own output"): "relative_error",
    ("held-out", "dense model's output"): "held_out_target_error",
    ("calibration", "dense model's output"): "target_error",
}


def of_another_setup(run: PruningRun) -> None:
    """Says whose results these are where they are not of the set-up beside the page, which may have changed since."""
    setup = run.setup
    if setup.changes(session.setup()).keys() <= {"sparsity", "layers", "stream"}:  # a run has its own, and names them
        return
    on = f"{setup.samples} × {setup.length} tokens of {words.text_name(setup.text)}, seed {setup.seed}"
    components.info(
        f"Below is a run of {setup.model} in {setup.dtype}, calibrated on {on}, with block size {setup.block_size} and "
        f"damping {setup.damping:g}; not of the set-up that is chosen now.",
        ":material/history:",
    )


def what_to_ship(run: PruningRun, models: list[RunReport]) -> None:
    """The recommended copy of every sparsity, and the ways to take it on."""
    dense, *pruned = models
    if not pruned:
        return
    by_name = {model.name: model for model in pruned}
    left = len(run.request.cases) - len(pruned)
    so_far = f" so far, {words.count(left, 'copy', 'copies')} to come" if run.job.status == "running" else ""
    with st.container(border=True, key="prune-ship"):
        for advice in advise(results_of(pruned)):
            model = by_name[advice.copy.name]
            st.subheader(f"What to ship{so_far}: {words.plain(model.name)}", anchor=False)
            _recommend(advice, model, run)
            _take_on(model, run)
        if own := where(run.request.evaluate, run.setup.text):
            st.caption(f":material/warning: {own}")
        _sizes(run, pruned, dense.perplexity)
        report_button(lambda: pruned, "pruned", "prune-report")


def _sizes(run: PruningRun, pruned: list[RunReport], dense: float) -> None:
    """What each copy takes, and what loads it."""
    rows = [
        {
            "Copy": model.name,
            "Perplexity": _times(model.perplexity),
            "× dense": _times(model.perplexity / dense),
            "Checkpoint": words.size(model.summary["plain_bytes"]),
            "Packed": words.size(model.summary["packed_bytes"]),
            "What loads it": what_loads(model.bits),
        }
        for model in pruned
        if "packed_bytes" in model.summary
    ]
    if not rows:
        return
    with st.expander("What a copy takes, and what loads it", icon=":material/deployed_code:", key="ship-sizes"):
        components.table(rows, "Sizes of the copies that were written, and what loads them")
        wide = run.setup.dtype == "float32" and any(model.bits is None for model in pruned)
        st.caption(
            "Sizes are of the whole model, measured when its checkpoint was written. A copy that an earlier one "
            "already beat has no checkpoint and is not listed. Zeros alone make no checkpoint smaller and no model "
            "faster; tokens per second were not measured. Packed: one bit per weight, the kept weights and the "
            "scales, compressed."
            + (" Weights in bfloat16, chosen on Start under More, take half of float32." if wide else "")
        )


def _recommend(advice: Advice, model: RunReport, run: PruningRun) -> None:
    assert run.dense is not None
    error = model.summary.get("mean_held_out_error")
    st.markdown(words.plain(cost(advice, run.dense.perplexity, error, len(model.layers))))
    st.markdown("\n".join(f"- {words.plain(one)}" for one in advice.reasons()))
    odd = says_odd_windows(run.dense.losses("after"), model.losses("after"))
    st.caption(" ".join(words.plain(said) for said in [advice.sure(), *model.remarks, odd] if said))


def _take_on(model: RunReport, run: PruningRun) -> None:
    place = run.kept(model)
    if place is None:
        st.caption(_not_kept(model, run))
        return
    setup = run.setup.to_texts()
    others: dict[str, tuple[str, str, dict[str, Any]]] = {
        "Read a text with it": ("views/text.py", ":material/chrome_reader_mode:", {"text_models": [model.name]}),
        "Compare it with the others": ("views/runs.py", ":material/compare:", {"runs": _labels(model, run)}),
        "Check it": ("views/check.py", ":material/fact_check:", {"check_path": str(place)}),
    }
    with st.container(horizontal=True, vertical_alignment="center"):
        checkpoint_button(place, key=f"ship-{file_name(model)}", type="primary", icon=":material/download:")
        for label, (page, icon, query) in others.items():
            st.page_link(page, label=label, icon=icon, query_params={**setup, **query})
    st.caption(f"Kept in {words.plain(place)}{'' if run.request.keep == 'folder' else ' until you prune again'}.")
    prune_files.draw(model, run)


def _labels(model: RunReport, run: PruningRun) -> list[str]:
    """The copy and the others at its sparsity, as the page Compare runs calls them."""
    # A snapshot: a run adds reports while pages are drawn.
    labels = {id(copy): label for label, copy in naming.labelled(list(reversed(list(shared.reports())))).items()}
    alike = [copy for copy in run.copies if copy.asked == model.asked and copy is not model]
    return [labels[id(copy)] for copy in [model, *alike] if id(copy) in labels]


def _not_kept(model: RunReport, run: PruningRun) -> str:
    if run.request.keep == "none":
        return "Its checkpoint was not kept; choose that above, and prune again."
    if model.name not in run.checkpoints:
        return f"Its checkpoint was not kept: {tempfile.gettempdir()} had too little room."
    return "Its checkpoint is deleted; prune again to have it."


def _apart(row: pd.Series) -> dict[str, str]:
    """What pruning and rounding each add to the error on calibration inputs, where a copy was rounded."""
    if pd.isna(row["mean_rounding_error"]):
        return {}
    return {"By pruning": _error(row["mean_pruning_error"]), "By rounding": _error(row["mean_rounding_error"])}


def _rows(models: list[RunReport]) -> list[dict[str, str]]:
    """Of the table of models."""
    return [
        {
            "Model": model.name,
            "Perplexity": _times(model.perplexity),
            "× dense": _times(row["ratio_to_dense"]),
            "Mean error, calibration": _error(row["mean_relative_error"]),
            "Mean error, held-out": _error(row["mean_held_out_error"]),
            "Against dense, held-out": _error(row["mean_held_out_target_error"]),
            "Drift": _error(row["drift"]),
            **_apart(row),
            "Removed of these layers": words.percent(row["removed_fraction"], 2),
            "Time": "–" if model is models[0] else words.duration(row["seconds"]).replace(" ", "\u00a0"),
        }
        for model, (_, row) in zip(models, model_table(models).iterrows(), strict=True)
    ]


def summary(run: PruningRun, models: list[RunReport]) -> None:
    request = run.request
    dense, *pruned = models
    if pruned:
        results = results_of(pruned)
        components.show(figures.perplexity_bars(results, dense=dense.perplexity, theme=session.theme()), "perplexity")
        _time_and_perplexity(run, results)
    components.table(_rows(models), "Perplexity and errors of every model")
    own = request.evaluate == HELD_OUT
    text = "held-out windows of the calibration text" if own else words.text_name(request.evaluate)
    said = (
        f"{words.sentence(_pruned_part(run, models))}. "
        f"Perplexity on {request.windows} × {request.window_length} tokens of {text}. "
        f"Time is by the clock, calibration and tuning included: other work lengthens it.{_computed(models)}"
    )
    st.caption(words.plain(said))
    with st.expander("What the columns say", icon=":material/help:"):
        st.markdown(
            "- **Mean error**: relative, averaged over layers, on the inputs that each layer gets from the pruned "
            "blocks before it, against the output of its own dense weights.\n"
            "- **Against dense**: against the dense model's output, where that was the target. Layers that write into "
            "the residual stream then also aim to restore what the stream has lost. Their inputs determine little of "
            "it, so an error near 1 is normal there.\n"
            "- **Drift**: how far the hidden states after the last pruned decoder block are from the dense model's, "
            "‖h_p − h_d‖²/‖h_d‖² as a mean over held-out tokens."
        )
    for remark in pairs.cautions_of(pruned):
        st.caption(words.plain(remark))
    if any(model.summary.get("drift") for model in pruned):
        label = "Where these models drift from the dense one"
        view = {"runs_view": DRIFT}
        st.page_link("views/runs.py", label=label, icon=":material/waterfall_chart:", query_params=view)


def _pruned_part(run: PruningRun, models: list[RunReport]) -> str:
    """ "all 210 layers pruned", or which of them."""
    pruned = next((len(model.layers) for model in models[1:]), 0)
    if not pruned:
        return "no copy is finished" + (" yet" if run.job.status == "running" else "")
    if run.request.layers == "*":
        return f"all {words.count(pruned, 'layer')} pruned"
    return f"{words.count(pruned, 'layer')} pruned ({run.request.layers})"


def _computed(models: list[RunReport]) -> str:
    rounded = any(model.summary.get("compute") == "bfloat16" for model in models)
    return " Pruning computed its forward passes in bfloat16; perplexity is in float32." if rounded else ""


def _time_and_perplexity(run: PruningRun, results: list[Result]) -> None:
    asked_of = [one.amount for one in results]
    several = {asked: asked for asked in dict.fromkeys(asked_of) if asked_of.count(asked) > 1}
    if not several or run.dense is None:
        return
    asked = components.choose("Sparsity", several, "prune_time_at") if len(several) > 1 else next(iter(several))
    some = [one for one in results if one.amount == asked]
    drawing = methods.time_and_perplexity(some, dense=run.dense.perplexity, theme=session.theme())
    components.show(drawing, "time-and-perplexity")


def _error(value: float | None) -> str:
    return "–" if value is None or pd.isna(value) else words.number(value)


def _times(value: float) -> str:
    """Perplexities, and their ratios, of which some are of ruined models."""
    return f"{value:.2f}" if value < 1e4 else words.number(value)


def layers(run: PruningRun, models: list[RunReport]) -> None:
    table = layer_table(models[1:])
    if table.empty:
        st.info("Layers appear here as soon as the first copy is pruned.")
        return
    known = {pair: column for pair, column in ERRORS.items() if table[column].notna().any()}
    tokens, outputs = ({pair[place]: pair[place] for pair in known} for place in (0, 1))
    asked = {sparsity: sparsity for sparsity in table["asked"].unique()}
    aimed = {target: TARGETS[target] for target in table["target"].unique()}
    kinds = {"map": "every layer", "dumbbell": "largest differences"}
    with st.container(horizontal=True):
        sparsity = components.choose("Sparsity", asked, "prune_layers_at", width="content")
        target = components.choose("Target", aimed, "prune_layers_target", width="content")
        on = components.choose("Error on", tokens, "prune_layers_error", width="content")
        against = components.choose("Error against", outputs, "prune_layers_against", width="content")
        kind = components.choose("Show", kinds, "prune_layers_as", width="content")
    rows, column = table[(table["asked"] == sparsity) & (table["target"] == target)], known[on, against]
    if rows[column].isna().all():
        st.info("Errors against the dense model's output are measured only with that target; choose it above.")
        return
    labels = {method: palette.method_style(method).label for method in dict.fromkeys(rows["method"])}
    try:
        if kind == "map":
            ours = [method for method in labels if method != style.BASELINE]
            method = components.choose("Method", labels, "prune_map_method", default=(ours or list(labels))[0])
            drawing = figures.layer_map(
                rows, method, column=column, marked_layer=session.layer(), theme=session.theme()
            )
        else:
            drawing = figures.layer_differences(rows, column=column, theme=session.theme())
    except RoseError as problem:
        components.info(problem)
        return
    components.show(drawing, "layer-errors")


def texts(run: PruningRun, models: list[RunReport]) -> None:
    if not run.request.prompt.strip():
        st.info("No prompt was given; enter one above and prune again.")
        return
    st.markdown("Continuations by the most likely next token. The prompt:")
    st.code(run.request.prompt, language=None, wrap_lines=True)
    for model in models:
        st.markdown(f"**{words.plain(model.name)}**, perplexity {_times(model.perplexity)}")
        st.code(model.summary.get("continuation") or "(nothing: the text ended)", language=None, wrap_lines=True)


def accuracies(run: PruningRun, models: list[RunReport]) -> None:
    table = accuracy_table(models)
    if table.empty:
        st.info("No zero-shot tasks were asked for; name some above and prune again.")
        return
    components.show(figures.accuracy_bars(table, theme=session.theme()), "accuracies")


def downloads(run: PruningRun, models: list[RunReport]) -> None:
    pruned = models[1:]
    left, right = st.columns(2)
    with left:
        csv_button("All models, CSV", model_table(models), "models.csv", "all-models", width="stretch")
    with right:
        table = layer_table(models[1:])
        csv_button(
            "All layers, CSV", with_cautions(table), "layers.csv", "all-layers", width="stretch", disabled=not pruned
        )
    for model in pruned:
        with st.container(border=True, horizontal=True, vertical_alignment="center"):
            _one_download(model, run)


def _one_download(model: RunReport, run: PruningRun) -> None:
    name = file_name(model)
    st.markdown(f"**{words.plain(model.name)}**", width="stretch")
    file_button("Report, JSON", model.to_json, f"{name}-report.json")
    file_button("Layers, CSV", functools.partial(csv_text, with_cautions(model.layers)), f"{name}-layers.csv")
    if (place := run.kept(model)) is not None:
        checkpoint_button(place)
    else:
        st.caption("checkpoint deleted" if model.name in run.checkpoints else "checkpoint not kept")
