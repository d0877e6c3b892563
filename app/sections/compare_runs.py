"""Compare runs: how do they differ?"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

import rose
from app import components, session, shared, words
from app.components import URL
from app.figures import drift as drift_figures
from app.figures import maps, methods
from app.forms.widgets import folders_input, saved
from app.results import naming, pairs
from app.results.downloads import csv_button, menu, report_button
from app.results.pairs import Pair
from app.runs import checked, example
from app.runs.checked import CheckpointRun
from app.study.study import Study
from rose import RunReport
from rose.model.measure import comparison
from rose.report import read_runs
from rose.verdicts import on_other_windows

MAP, NUMBERS, DRIFT, SEEDS = "Map", "Numbers", "Drift", "Over seeds"
ALONE = ("study", "check")
PARTS = {"share": "Difference", "both": "Both maps"}


def draw() -> None:
    row = st.container(horizontal=True, vertical_alignment="center")
    sources = row.popover("Choose runs", icon=":material/folder_open:", key="runs-sources")
    with sources:
        folders = folders_input(
            "Folders of saved runs, or a rows.csv",
            "runs_path",
            "Files are read, nothing in them is run. Folders that `rose prune`, `rose slim` or `rose analyze` or the "
            "page Prune has written; rows.csv of `rose compare` shows methods over calibration seeds",
        )
    offered, tables, with_example = _offered(folders)
    with sources:
        runs = _choose(naming.labelled(offered))
    if with_example:
        with row:
            components.example("pruned copies")
    if not runs:
        st.info("Choose at least one run.")
        return
    st.markdown(f"**{words.plain(_sentence(runs))}**")
    sections = {MAP: len(runs) > 1, NUMBERS: True, DRIFT: any(run.drift for run in runs), SEEDS: bool(tables)}
    names = [name for name, has_data in sections.items() if has_data]
    with st.container(horizontal=True, vertical_alignment="center"):
        view = components.section(names, "runs_view", "What is shown")
        settings = _choose_map(runs) if view == MAP else None
    if view == SEEDS:
        _seeds(tables[0])
        return
    if settings:
        _map(*settings)
    elif view != MAP:
        {NUMBERS: _numbers, DRIFT: _drift}[view](runs)
    components.cautions(pairs.cautions_of(runs))
    with menu("runs-downloads"):
        csv_button("Numbers, CSV", pairs.numbers(runs), "numbers.csv", "runs-numbers-csv")
        if len(runs) != 2 or not pairs.pair(*runs).problem:
            report_button(lambda: runs, "runs", "runs-report")


def _offered(folders: str) -> tuple[list[RunReport], list[pd.DataFrame], bool]:
    """Runs of this server, of folders that a person names, or of the example; tables of rows.csv files; whether the
    example is among the runs."""
    pruned = [run for report in shared.registry.all(RunReport).values() for run in report.runs]
    studies = {id(study): study for study in [session.study(), *shared.registry.all(Study).values()] if study}
    studied = [
        run
        for study in studies.values()
        if study.is_measured
        for run in naming.runs_of_study(study, session.threshold())
    ]
    checks = [
        checked.record_of(run)
        for run in reversed(list(shared.registry.all(CheckpointRun).values()))
        if run.job.status == "done"
    ]
    skip = partial(read_runs, skip=lambda problem: components.warning(f"Left out: {problem}"))
    contents = saved(folders, lambda path: [comparison.read_comparison(path)] if path.endswith(".csv") else skip(path))
    tables = [table for table in contents if isinstance(table, pd.DataFrame)]
    runs = [run for run in contents if isinstance(run, RunReport)]
    offered = [*runs, *checks, *reversed(pruned)]
    with_example = len(offered) < 2
    offered += reversed(example.pruning().copies) if with_example else ()
    return [*offered, *studied], tables, with_example


def _choose(offered: dict[str, RunReport]) -> list[RunReport]:
    """The runs to show, with distinct names; by default those that compare well."""
    state, identities = st.session_state, {label: run.identity for label, run in offered.items()}
    names = {id(run): label for label, run in offered.items()}
    usual = [names[id(run)] for run in pairs.usual_choice(list(offered.values()))]
    before, former = state.get("runs"), state.get("runs-usual")
    components.keep_choice("runs", identities)
    if before is not None and before == former and state.get("runs") != usual:
        state.runs = usual
    state["runs-usual"] = usual
    default = None if state.get("runs") != before else usual  # a default and a value set by hand exclude each other
    help = f"The others are compared with the first; at most {pairs.MOST} at a time."
    widget: dict[str, Any] = {"key": "runs", "bind": URL, "help": help, "max_selections": pairs.MOST}
    chosen = st.multiselect("Runs to compare", list(offered), default, **widget)
    return list(naming.name_apart([offered[label] for label in chosen]).values())


def _sentence(runs: Sequence[RunReport]) -> str:
    """The page's first sentence: the verdict on perplexities, or on errors if no perplexity was measured."""
    first, *rest = runs
    if apart := [text for run in rest if (text := pairs.in_environments(first, run))]:
        return apart[0]
    if text := pairs.says_perplexities(runs):
        return f"{text}{pairs.says_second(runs)}"
    for run in rest:
        both = pairs.pair(first, run)
        if both.problem:
            return both.problem
        if measure := both.told_apart_by:
            return rose.verdicts.says_layers(both.rows(measure), (first.name, run.name), pairs.MEASURES[measure]) + "."
    return (
        f"{first.name}: choose a second run to compare it with." if not rest else "Both runs have no number in common."
    )


def _choose_map(runs: Sequence[RunReport]) -> tuple[Pair, str, str] | None:
    """The first run and another, the measure, and the form of the map; None, with the reason, where there is none."""
    first, runs_by_name = runs[0], {run.name: run for run in sorted(runs[1:], key=lambda run: run.is_tuned)}
    name = next(iter(runs_by_name))
    if len(runs_by_name) > 1:
        components.keep_choice("runs_b", {name: run.identity for name, run in runs_by_name.items()})
        label = f"Compared with {words.plain(first.name)}"
        name = st.selectbox(
            label, list(runs_by_name), key="runs_b", bind=URL, width=240, label_visibility="collapsed", help=label
        )
    both = pairs.pair(first, runs_by_name[name])
    measures = both.measures
    if not measures or both.problem:
        components.info(both.problem or "No layer has a number in both runs; their totals are under Numbers.")
        return None
    if st.session_state.get("runs_measure") not in measures:
        st.session_state.pop("runs_measure", None)
    with st.popover("Map of", icon=":material/tune:", key="runs-map-of"):
        labels = {name: words.sentence(label) for name, label in measures.items()}
        measure = st.selectbox("Of", list(labels), format_func=labels.__getitem__, key="runs_measure", bind=URL)
        options = {"both": PARTS["both"]} if both.apart else PARTS
        part = st.selectbox("Show", list(options), format_func=PARTS.__getitem__, key="runs_as", bind=URL)
    return both, measure, part


def _map(both: Pair, measure: str, part: str) -> None:
    """Layer by layer: another run minus the first, or the maps of both."""
    names, label, theme = (both.first.name, both.second.name), pairs.MEASURES[measure], session.theme()
    if both.apart or part == "both":
        drawing = maps.run_maps(both.rows(measure), names, label, why=both.apart, theme=theme)
    else:
        drawing = maps.run_difference(both.rows(measure), names, label, theme=theme)
    components.show(drawing, "runs-map", fill=(470, "640px"))
    remarks = []
    if "error" in label and on_other_windows(both.first.summary, both.second.summary):
        remarks.append("Part of the difference comes from different windows of text, see Numbers.")
    if both.left_out:
        remarks.append(f"{words.sentence(words.count(both.left_out, 'layer'))} of only one run left out.")
    if (both.first.kind in ALONE) != (both.second.kind in ALONE):
        remarks.append(
            "A study or a check measures each layer alone on the dense model's inputs; a pruned model's layers get "
            "the inputs that the pruned layers before them give."
        )
    st.caption(" ".join(remarks))


def _numbers(runs: Sequence[RunReport]) -> None:
    table = pairs.numbers(runs)
    shown = pairs.in_words(table).rename(columns={"number": ""})
    components.table(shown.to_dict("records"), "Totals of the runs", key="runs-numbers")
    st.caption(
        "Errors are of each layer on its own inputs. Those against the dense model hold earlier layers' errors too."
    )
    if ratios := pairs.verdict_table(pairs.results_of(runs)):
        components.table(ratios, "Every pair", key="runs-pairs")
        st.caption("95\u202f% intervals, paired over windows; ≈ no clear difference, = same.")
    if len(accuracies := pairs.accuracy_table(runs)):
        components.show(methods.accuracy_bars(accuracies, theme=session.theme()), "runs-accuracies")
    differing = len(pairs.settings(runs, only_different=True))
    title = f"Settings: {words.word(differing) if differing else 'none'} that differ{'s' if differing == 1 else ''}"
    with st.expander(title, icon=":material/tune:", key="runs-settings-more"):
        shown = rose.rows.without_formulas(pairs.settings(runs).rename(columns={"setting": "Setting"}))
        st.dataframe(shown, hide_index=True, key="runs-settings", height="content", alt="Settings of the runs")


def _drift(runs: Sequence[RunReport]) -> None:
    drifting, theme = [run for run in runs if run.drift], session.theme()
    table = pairs.drift_table(drifting)
    drawing = drift_figures.drift_curves(table, finding=pairs.drift_finding(drifting), theme=theme)
    components.show(drawing, "runs-drift")
    st.caption(pairs.DRIFT_SCALE)
    sources = [run for run in drifting if run.kind != "check"]
    if not sources:  # a check measures only the size of drift
        return
    with st.expander("Where drift arises", key="runs-origins", on_change="rerun") as details:
        if details.open:
            name = st.selectbox("Run", [run.name for run in sources], key="runs_origin")
            components.show(drift_figures.drift_shares(table[table["run"] == name], theme=theme), "runs-origin")


def _seeds(table: pd.DataFrame) -> None:
    """Methods over calibration seeds: means and how far single seeds lie apart."""
    sparsities = {sparsity: sparsity for sparsity in dict.fromkeys(table["sparsity"])}
    sparsity = components.choose("Sparsity", sparsities, "seeds_sparsity")
    try:
        drawing = methods.over_seeds_bars(table, sparsity, theme=session.theme())
        components.show(drawing, "over-seeds")
    except rose.RoseError as problem:
        components.info(problem)
    components.cautions(comparison.cautions_of(table))
    means = comparison.over_seeds(table, ("perplexity", "mean_held_out_error", "seconds"))
    shown = means.drop(columns="seconds_spread")
    st.dataframe(shown, hide_index=True, alt="Means and spread by method and sparsity")
