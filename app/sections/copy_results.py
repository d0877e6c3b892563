"""Copies on screen: numbers, layers, texts, downloads and tuning."""

from collections.abc import Callable, Mapping
from functools import partial
from html import escape
from typing import Any

import streamlit as st
from torch import nn

from app import components, session, shared, words
from app.components.work import follow
from app.figures import maps, palette
from app.figures import methods as figures
from app.figures.style import BASELINE
from app.figures.tokens import coloured_text, scale_end
from app.forms.widgets import attempt, linked, start_button
from app.results import naming, pairs
from app.results.downloads import checkpoint_button, csv_button, file_button, large_button, menu, report_button
from app.results.pairs import accuracy_table, model_table
from app.runs import example
from app.runs.copies import MINUTES, CopyRun, Tuning, file_name, results_in_run
from app.runs.kept_copies import FileRun, forms
from app.runs.pruning import PruningRun
from app.runs.reading import DENSE, TextReading, losses
from rose import RoseError, RunReport
from rose.layer.pattern import parse_sparsity
from rose.model.defaults import HELD_OUT
from rose.model.estimate import tuning_memory
from rose.model.load.tokens import tuning_draw
from rose.model.network.network import Network
from rose.rows import csv_text, with_cautions

MOST_MINUTES = 24 * 60.0
MEANING = "Trains kept weights, all layers together, towards the dense model's next tokens; {} stays."  # of tuning
WRITTEN = 150  # characters of a continuation
# The error whose map shows where a copy is better than another: the first that both have.
BETTER_IN = ("held_out_target_error", "target_error", "held_out_error", "relative_error")


def of_another_setup(run: PruningRun) -> None:
    """Says which set-up these results have, if another set-up is chosen now."""
    setup = run.setup
    if setup.to_texts(session.setup()).keys() <= {"sparsity", "layers", "stream"}:  # a run names these itself
        return
    components.info(
        f"Below is a run of {setup.model} in {setup.dtype}, calibrated on {setup.tokens}, "
        f"seed {setup.seed}, with block size {setup.block_size} and damping "
        f"{setup.damping:g}. The set-up chosen now is another one.",
        ":material/history:",
    )


def what_you_get(run: PruningRun, models: list[RunReport]) -> None:
    """The copies as bars and what they write; where one is better, and a text that it has read. Below, all numbers."""
    dense, *copies = models
    if not copies:
        _numbers(run, models)
        return
    left, right = st.columns([1.13, 1], gap="medium")
    with left:
        results, elsewhere = results_in_run(copies), {copy.name: _times(dense, copy) for copy in copies}
        elsewhere = {name: ratio for name, ratio in elsewhere.items() if ratio is not None}
        look: dict[str, Any] = {"dense": dense.perplexity, "elsewhere": elsewhere, "theme": session.theme()}
        components.show(figures.perplexity_bars(results, **look), "perplexity")
        _written(run, models)
    best = _best(copies)
    with right:
        _where_better(copies, best)
        _read(run, best)
    if len(answered := accuracy_table(models)):
        components.show(figures.accuracy_bars(answered, theme=session.theme()), "accuracies")
    _numbers(run, models)
    components.cautions(pairs.cautions_of(copies))
    _take_away(run, models)


def _times(dense: RunReport, copy: RunReport) -> float | None:
    """Perplexity on the second text as a multiple of the dense model's."""
    values = [model.number("perplexity_second") for model in (copy, dense)]
    return None if None in values else values[0] / values[1]  # type: ignore[operator]


def _best(copies: list[RunReport]) -> RunReport:
    """The lowest perplexity at the highest sparsity, where copies differ most."""
    most = max(copies, key=lambda copy: parse_sparsity(copy.summary["sparsity"]).ratio).summary["sparsity"]
    return min((copy for copy in copies if copy.summary["sparsity"] == most), key=lambda copy: copy.perplexity)


def _written(run: PruningRun, models: list[RunReport]) -> None:
    if not run.request.prompt.strip():
        return
    rows = []
    for model in models:
        colour = palette.method_style(model.method).colour if model is not models[0] else "transparent"
        text = " ".join(model.summary.get("continuation", "").split()) or "(nothing: the text ended)"
        text = text if len(text) <= WRITTEN else f"{text[:WRITTEN].rstrip()} …"
        rows.append(f'<tr><th style="border-color:{colour}">{escape(model.name)}</th><td>{escape(text)}</td></tr>')
    title = f"What they write after “{escape(run.request.prompt)}”"
    st.html(f'<div class="written"><b>{title}</b><table>{"".join(rows)}</table></div>')


def _where_better(copies: list[RunReport], best: RunReport) -> None:
    """A map of the layers: the best copy against SparseGPT, or another copy of the same sparsity."""
    alike = [copy for copy in copies if copy.summary["sparsity"] == best.summary["sparsity"] and copy is not best]
    usual = [copy for copy in alike if copy.method == BASELINE] or alike
    both = pairs.pair(usual[0], best) if usual else None
    measure = None if both is None or both.problem or both.apart else _first(both.measures)
    theme, layer = session.theme(), session.layer()
    try:
        if both is not None and measure is not None:
            names = (usual[0].name, best.name)
            drawing = maps.run_difference(both.rows(measure), names, pairs.MEASURES[measure], theme=theme)
        else:
            column = "held_out_error" if best.by_layer["held_out_error"].notna().any() else "relative_error"
            rows = best.by_layer.assign(method=best.method)
            drawing = figures.layer_map(rows, best.method, column=column, marked_layer=layer, theme=theme)
    except RoseError as problem:
        components.info(problem)
        return
    components.show(drawing, "where-better", captioned=False)


def _first(measures: Mapping[str, str]) -> str | None:
    return next((name for name in BETTER_IN if name in measures), None)


def _read(run: PruningRun, best: RunReport) -> None:
    """A text with what the best copy expects less than the dense model, where that copy has read one."""
    reading: TextReading | None = example.reading() if run is example.pruning() else session.run_in("reading")
    if reading is None or reading.encoded is None or best.name not in reading.readings:
        return
    gap = losses(reading.encoded, reading.readings[best.name]) - losses(reading.encoded, reading.readings[DENSE])
    end, theme = scale_end(gap), session.theme()
    text = "A colour: that token costs it more than it costs the dense model, purple: less. In nats on hover."
    title = f"A text, read: what {escape(best.name)} expects less than the dense model"
    st.html(f'<div class="figure-title"><b>{title}</b><span>{text}</span></div>')
    st.html(coloured_text(reading.encoded.pieces, gap, end=end, theme=theme))


def _numbers(run: PruningRun, models: list[RunReport]) -> None:
    """All totals of the copies, and the verdict on every pair."""
    copies = models[1:]
    with st.expander("All numbers, and which differences are clear", icon=":material/table:", key="prune-numbers"):
        components.table(_rows(models), "The results of each copy, the dense model first", key="prune-table")
        request = run.request
        text = "held-out calibration text" if request.evaluate == HELD_OUT else request.evaluate
        layers = words.count(len(copies[0].layers) if copies else 0, "layer")
        st.caption(
            f"Perplexity: {request.windows} × {request.window_length} tokens of {words.plain(text)}; elsewhere: plain "
            f"English. Errors: mean over {layers}, held out, each on its own inputs. Zeros make no file smaller."
        )
        if any(map(pairs.rounding_part, copies)):
            st.caption(f"{pairs.PART}: its share of the error that rounding and pruning add, on calibration tokens.")
        if ratios := pairs.verdict_table(results_in_run(copies)):
            components.table(ratios, "Every pair", key="prune-pairs")
            st.caption("95\u202f% intervals, paired over windows, one calibration draw; ≈ no clear difference, = same.")
        if (study := session.study()) is not None and study.is_measured:
            for line in pairs.differences(study, study.overview(session.threshold()), run):
                st.caption(words.plain(line))


def _rows(models: list[RunReport]) -> list[dict[str, str]]:
    def perplexity(name: str, model: RunReport) -> str:
        """ "17.4, × 1.33": a perplexity and how many times the dense model's it is."""
        value, of_dense = model.summary.get(name), dense.summary.get(name)
        if value is None or of_dense is None:
            return "–"
        return words.number(value) + ("" if model is dense else f", {words.times(value / of_dense)}")

    dense, rows = models[0], []
    for model, (_, totals) in zip(models, model_table(models).iterrows(), strict=True):
        part = pairs.rounding_part(model)
        rows.append(
            {
                "Copy": model.name,
                "Perplexity": perplexity("perplexity_after", model),
                "elsewhere": perplexity("perplexity_second", model),
                "Error": words.number(totals["mean_held_out_error"]),
                **({} if part is None else {pairs.PART: words.percent(part)}),
                "Time": "–" if model is dense else words.duration(totals["seconds"]).replace(" ", "\u00a0"),
            }
        )
    return rows


def _take_away(run: PruningRun, models: list[RunReport]) -> None:
    """A copy's files, and links to pages that use the copy."""
    copies = models[1:]
    with st.expander("Take a copy away", icon=":material/download:", key="prune-take", on_change="rerun") as part:
        if not part.open:
            return
        names = {copy.name: copy for copy in sorted(copies, key=lambda copy: run.kept(copy) is None)}
        if st.session_state.get("prune_take_of") not in (None, *names):
            st.session_state.pop("prune_take_of")
        copy = names[st.selectbox("Copy", list(names), **linked("prune_take_of"))]
        name, place = file_name(copy), run.kept(copy)
        with menu("prune-downloads"):
            if place is not None:
                checkpoint_button(place, key=f"take-{name}", type="primary")
            file_button("Record, JSON", copy.to_json, f"{name}-report.json")
            file_button("Layers, CSV", partial(csv_text, with_cautions(copy.layers)), f"{name}-layers.csv")
            csv_button("All copies, CSV", model_table(models), "models.csv", "all-models")
            report_button(lambda: copies, "pruned", "prune-report")
        st.caption(f"Loads in transformers, and in llama.cpp as {' or '.join(forms(copy.grid))}.")
        if place is None:
            again = "choose to keep copies under Checkpoints, and prune again"
            is_example = run is example.pruning()
            st.caption("This is the example: prune your own." if is_example else f"It was not kept; {again}.")
            return
        setup, labels = run.setup.to_texts(), naming.labelled(list(reversed(shared.registry.all(RunReport).values())))
        label = next((text for text, other in labels.items() if other is copy), "")
        reading = {"prune_section": "Your text", "text_models": [copy.name]}
        compared = {"prune_section": "Compare runs", **({"runs": [label]} if label else {})}
        pages: dict[str, tuple[str, str, dict[str, Any]]] = {
            "Read a text with it": ("views/prune.py", ":material/chrome_reader_mode:", reading),
            "Compare it": ("views/prune.py", ":material/compare:", compared),
            "Check it": ("views/check.py", ":material/fact_check:", {"check_path": str(place)}),
        }
        with st.container(horizontal=True):
            for text, (page, icon, query) in pages.items():
                st.page_link(page, label=text, icon=icon, query_params={**setup, **query})
        until = "" if run.request.keep == "folder" else " until later work needs the room"
        st.caption(f"Kept in {words.plain(place)}{until}.")
        _files(copy, run)


def _files(model: RunReport, run: PruningRun) -> None:
    """A kept copy as a GGUF file, from the choice to the download."""
    with st.expander(
        "As a GGUF file, for llama.cpp", icon=":material/folder_zip:", key="prune-ship", on_change="rerun"
    ):  # kept open when a run beside it ends
        labels = forms(model.grid)
        left, right = st.columns([2, 1], vertical_alignment="bottom")
        with left:
            form = components.choose("Written as", labels, f"ship_as_{file_name(model)}")
        is_writing = run.file is not None and run.file.job.status == "running"
        right.button(
            "Write the file",
            key=f"ship-write-{file_name(model)}",
            icon=":material/save:",
            on_click=session.start_file,
            args=(run, run.kept(model), form),
            disabled=is_writing,
            width="stretch",
        )
        st.caption(_says(model, form, run.request.shared.layers is None))
        if run.file is not None and run.file.folder == run.kept(model):
            _file(run.file, file_name(model))


def _says(model: RunReport, form: str, whole: bool) -> str:
    """Which programs read the file, and which precision it loses; `whole`: all layers were pruned."""
    reads = "llama.cpp and programs built on it read the file."
    if model.grid is not None:
        if form == "f16":
            return f"{reads} It holds the pruned layers exactly, and embeddings as f16 numbers."
        if whole:
            return f"{reads} It holds all weights exactly."
        return f"{reads} It holds the pruned layers exactly; the others are rounded too, without compensation."
    weights = "weights to f16 numbers" if form == "f16" else "kept weights, without compensation"
    return f"{reads} It rounds {weights}; perplexity was measured before rounding."


def _file(file: FileRun, key: str) -> None:
    follow(file, f"ship-file-{key}", " before the file was whole; nothing of it is left.")
    if file.job.status != "done":
        return
    name, stored = file.offer()
    look: dict[str, Any] = {"icon": ":material/download:", "type": "primary", "key": f"ship-take-{key}"}
    large_button(f"{words.plain(name)}, {words.size(stored)}", file.open, name, stored, **look)
    remarks = [*file.remarks, f"It lies in {file.place} until later work needs the room."]
    st.caption(" ".join(map(words.plain, remarks)))


def tune(run: CopyRun, model: Callable[[], nn.Module]) -> None:
    """Tuning of a kept copy: cost, progress and effect; nothing where no copy can be tuned.

    `model` gives the dense model, or its skeleton.
    """
    copies, rounded = list(run.tunable), [copy.name for copy in run.untuned if copy.grid is not None]
    if run.job.status == "running" or not (copies or rounded or run.tuning):
        return
    prefix = "" if isinstance(run, PruningRun) else "slim_"
    with st.container(border=True, key="slim-tune" if prefix else "prune-tune"):
        st.subheader("Tune what is left", anchor=False)
        st.markdown(MEANING.format("its size" if prefix else "every zero"))
        if rounded:
            st.caption(
                f"Not offered: {words.plain(words.listing(rounded))}. Tuning would move rounded weights off their "
                "grid; tune a copy without bits, and round it then: `rose prune --sparsity 0 --bits 4` keeps "
                "its zeros."
            )
        if copies:
            _offer_tuning(run, copies, model, prefix)
        if run.tuning is not None:
            _follow_tuning(run.tuning, prefix)


def _offer_tuning(run: CopyRun, copies: list[str], model: Callable[[], nn.Module], prefix: str) -> None:
    left, right = st.columns([1, 3], vertical_alignment="bottom")
    minutes = left.number_input(
        "Minutes", 0.1, MOST_MINUTES, MINUTES, 1.0, format="%g", **linked(f"{prefix}tune_minutes")
    )
    if st.session_state.get("tune_copy") not in (None, *copies):
        del st.session_state["tune_copy"]
    name = copies[0]
    if len(copies) > 1:
        name = right.selectbox("Copy", copies, format_func=words.plain, **linked("tune_copy"))

    def takes() -> str:
        network, length = Network(model()), tuning_draw(run.setup.length).length
        memory = tuning_memory(network, length, sum(layer.weight.numel() for layer in network.layers))
        cost = f"{words.size(memory)} besides two models"
        if isinstance(run, PruningRun):
            seconds = 60 * minutes + run.request.evaluation_seconds(model())
            cost = f"About {words.duration(seconds)} with evaluation, and {cost}: {words.plain(name)}, trained"
        else:
            cost = f"Up to {cost}. It is trained"
        windows, text = tuning_draw(run.setup.length), words.plain(words.text_name(run.setup.calibration))
        return f"{cost} on up to {windows.samples} × {windows.length} tokens of {text}, apart from those above."

    text, problem = attempt(takes)
    start_button(
        f"Tune for {minutes:g} {'minute' if minutes == 1 else 'minutes'}", f"{prefix}tune-start".replace("_", "-"),
        session.start_tuning, run, name, minutes, icon=":material/model_training:", problem=problem,
        running=run.is_tuning, takes=text or "",
    )  # fmt: skip


def _follow_tuning(tuning: Tuning, prefix: str) -> None:
    """Progress with the curve, then the effect of tuning."""

    def curve() -> None:
        if len(tuning.curve):
            drawing = figures.tuning_curve(tuning.curve, tuning.steps, dense=tuning.dense, theme=session.theme())
            components.show(drawing, "tune-curve")

    rest = f" before the first measurement after a step; {words.plain(tuning.source.name)} stays as it was."
    follow(tuning, "slim-tune" if prefix else "tune", rest, extra=curve)
    if tuning.report is None:
        return
    st.markdown(f"**{words.plain(tuning.source.name)}.** {words.plain(tuning.says())}")
    if tuning.job.abandoned:
        st.caption("No page had been open, so tuning was stopped; the best so far is kept.")
    curve()
    if tuning.copy is None:
        return
    if tuning.run.kept(tuning.copy) is None:
        st.caption("There was too little room to keep its checkpoint.")
