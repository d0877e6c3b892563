"""Compare runs: how do they differ?"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import components, session, shared, words
from app.components import URL
from app.figures import maps as figures
from app.forms.widgets import folders_input, saved
from app.results import drift_sections, naming, pairs, seeds
from app.results.downloads import csv_button, report_button
from app.results.pairs import Pair
from app.runs import checked
from rose import RunReport
from rose.report import read_runs
from rose.rows import without_formulas
from rose.verdicts import on_other_windows

DIFFERENCE, MAPS, NUMBERS, SETTINGS, SEEDS = "Difference", "Maps", "Numbers", "Settings", "Over seeds"
SECTIONS = {name: name for name in (DIFFERENCE, MAPS, NUMBERS, SETTINGS, *drift_sections.SECTIONS, SEEDS)}
ALONE = ("study", "check")
STUDY = (
    "A study, and a check of a checkpoint, measure each layer by itself on the dense model's inputs; a pruned model's "
    "layers get the inputs that the pruned ones below give."
)


def draw() -> None:
    st.title("Compare runs: how do they differ?")
    components.edited_setup()
    drift_sections.follow_comparison()
    offered = naming.labelled(_offered())
    chosen = _choose(offered) if offered else []
    if len(offered) < 2:
        _empty(list(offered))
    view = components.section(SECTIONS, "runs_view", "What is shown")
    if view == SEEDS:
        seeds.draw()
    elif not chosen:
        if offered:
            st.info("Choose at least one run.")
    elif view in drift_sections.SECTIONS:
        drift_sections.draw(view, chosen)
    elif len(chosen) > 1:
        (_tables if view in (NUMBERS, SETTINGS) else _layers)(view, chosen)
    elif len(offered) > 1:
        st.info("Choose a second run to compare this one with.")


def _offered() -> list[RunReport]:
    pruned = [run for report in list(shared.reports()) for run in report.runs]
    studies = {id(one): one for one in [session.study(), *shared.studies().values()] if one and one.is_measured}
    measured = [run for one in studies.values() for run in naming.runs_of_study(one, session.threshold())]
    checks = [checked.record_of(run) for run in reversed(list(shared.checks().values())) if run.check is not None]
    here = [*checks, *reversed(pruned), *measured]
    with st.expander(
        "More runs: open saved ones, or compare two targets",
        expanded=len(here) < 2,
        icon=":material/folder_open:",
        key="runs-sources",
        on_change="rerun",
    ) as more:
        left, right = st.columns([2, 1], vertical_alignment="bottom")
        with left:
            folders = folders_input(
                "Folders of saved runs",
                "runs_path",
                "They are read, nothing in them is run. Folders that `rose prune`, `rose slim`, `rose analyze` or the "
                "Prune page have written, or one that holds several such folders",
            )
        if more.open:  # what it would take costs a second
            with right:
                drift_sections.compare_button()
    # Below, where what cannot be read is told with the expander closed, too, as it is where a link names the folders.
    read = partial(read_runs, skip=lambda problem: components.warning(f"Left out: {problem}"))
    return [*saved(folders, read), *here]


def _choose(offered: dict[str, RunReport]) -> list[RunReport]:
    """The runs to show, named by what tells them apart; until somebody chooses, they are those that compare well."""
    state, identities = st.session_state, {label: run.identity for label, run in offered.items()}
    names = {id(run): label for label, run in offered.items()}
    labels = [names[id(run)] for run in pairs.usual_choice(list(offered.values()))]
    before, former = state.get("runs"), state.get("runs-usual")
    components.keep_choice("runs", identities)
    if before is not None and before == former and state.get("runs") != labels:
        state.runs = labels
    state["runs-usual"] = labels
    # A default and a value set by hand exclude each other.
    default = None if state.get("runs") != before else labels
    what = f"The others are compared with the first; at most {pairs.MOST} at a time."
    more: dict[str, Any] = {"key": "runs", "bind": URL, "help": what, "max_selections": pairs.MOST}
    chosen = st.multiselect("Runs to compare", list(offered), default, **more)
    return list(naming.name_apart([offered[label] for label in chosen]).values())


def _empty(labels: list[str]) -> None:
    with st.container(border=True, horizontal_alignment="center", gap="small"):
        st.markdown("**Runs side by side: methods, sparsities, calibrations, targets, or models**")
        one = f"One run is here, {labels[0]}; a second is missing. " if labels else ""
        st.text(
            f"{one}Open the folders of saved runs above, also those written on another machine; compare two targets; "
            "prune copies of a model; or measure its layers: a study holds three methods."
        )
        st.page_link("views/prune.py", label="Prune copies of the model", icon=":material/content_cut:")
        st.page_link(components.START_PAGE, label="Measure its layers", icon=":material/play_arrow:")


def _tables(view: str, runs: Sequence[RunReport]) -> None:
    {NUMBERS: _numbers, SETTINGS: _settings}[view](runs)
    components.cautions(pairs.cautions_of(runs))
    _report(runs)


def _report(runs: Sequence[RunReport]) -> None:
    if len(runs) == 2 and (both := pairs.pair(*runs)).problem and not both.elsewhere:
        return
    report_button(lambda: runs, "runs", "runs-report")


def _layers(view: str, runs: Sequence[RunReport]) -> None:
    """Layer by layer: one run minus the first, or the maps of both."""
    first, others = runs[0], sorted(runs[1:], key=lambda run: run.is_tuned)  # by default errors are compared
    named = {run.name: run for run in others}
    places = iter(st.columns(3 if len(others) > 1 else 2, vertical_alignment="bottom"))
    if len(others) > 1:
        components.keep_choice("runs_b", {name: run.identity for name, run in named.items()})
        with next(places):
            asked = st.selectbox(f"Compared with {words.plain(first.name)}", list(named), key="runs_b", bind=URL)
        chosen = pairs.pair(first, named[asked])
    else:
        chosen = pairs.pair(first, others[0])
    if chosen.problem and view == DIFFERENCE:
        components.error(f"{chosen.problem} Or see {MAPS}, where each has axes of its own.")
        return
    two = [chosen.first, chosen.second]
    untuned = [run.untuned_name for run in two if run.is_tuned]
    without = chosen.told_apart_by is None and bool(untuned)
    if without:
        st.info(
            "Tuning measures no errors of layers, so these two have none to compare: choose "
            f"{words.plain(words.listing(untuned))}, untuned, for those. Totals of these two:"
        )
        _numbers(two)
        places = iter(st.columns(2, vertical_alignment="bottom"))
    with next(places):
        measure = _measure(chosen.measures, asked=without)
    if measure is not None:
        _figure(view, chosen, measure, next(places))
    components.cautions(pairs.cautions_of(two))
    _report(two)


def _figure(view: str, chosen: Pair, measure: str, place: DeltaGenerator) -> None:
    names, label, theme = (chosen.first.name, chosen.second.name), pairs.MEASURES[measure], session.theme()
    if view == DIFFERENCE:
        with place:
            as_share = components.choose("As", {True: "per cent", False: "difference"}, "runs_as")
        drawing = figures.run_difference(chosen.rows(measure), names, label, as_share=as_share, theme=theme)
    elif chosen.problem:
        apart = chosen.apart(measure)
        drawing = figures.maps_apart(apart, names, label, why=chosen.elsewhere, theme=theme)
    else:
        drawing = figures.run_maps(chosen.rows(measure), names, label, theme=theme)
    components.show(drawing, "runs-difference" if view == DIFFERENCE else "runs-maps")
    if not chosen.problem:
        _remarks(chosen, label)


def _measure(measures: dict[str, str], *, asked: bool) -> str | None:
    """What the maps show; None where no layer has a number in both, or, of `asked` ones, until somebody chooses."""
    if not measures:
        st.info(
            "No layer has a number in both runs: where whole decoder blocks were taken out there are none to compare. "
            "Their totals are under Numbers."
        )
        return None
    if st.session_state.get("runs_measure") not in measures:
        st.session_state.pop("runs_measure", None)
    labels = {name: words.sentence(label) for name, label in measures.items()}
    first, label = (None, "A map of another number") if asked else (0, "Of")
    return st.selectbox(label, list(labels), first, format_func=labels.__getitem__, key="runs_measure", bind=URL)


def _numbers(runs: Sequence[RunReport]) -> None:
    first, *others = runs
    table = pairs.numbers(runs)
    shown = pairs.in_words(table)
    apart = {run.name: said for run in others if (said := pairs.in_environments(first, run))}
    for run in (one for one in others if one.name not in apart):
        against = map(_against, table["number"], table[first.name], table[run.name])
        rows = zip(shown[first.name], shown[run.name], against, strict=True)
        shown[run.name] = [text + more * (text != other) for other, text, more in rows]
    shown = shown.rename(columns={"number": ""})
    st.dataframe(shown, hide_index=True, key="runs-numbers", height="content", alt="Totals of the runs")
    ranked = "" if apart and len(runs) == 2 else pairs.says_perplexities(runs)
    for said in filter(None, [ranked, *apart.values()]):
        st.markdown(words.plain(said))
    for run in others:
        if (accuracies := pairs.accuracies(first, run)) is not None:
            _accuracies(accuracies, first.name, run.name)
    csv_button("Numbers, CSV", table, "numbers.csv", "runs-numbers-csv")


def _accuracies(table: pd.DataFrame, one: str, two: str) -> None:
    named = table.rename(columns={"first": one, "second": two})
    formats: dict[str, Any] = {name: st.column_config.NumberColumn(format="%.3f") for name in (one, two)}
    formats["points"] = st.column_config.NumberColumn("Difference, points", format="%+.1f")
    st.dataframe(
        named,
        hide_index=True,
        key=f"runs-accuracies-{two}",
        height="content",
        column_config=formats,
        alt=f"Zero-shot accuracy by task, {one} and {two}",
    )


def _against(name: str, first: float, second: float) -> str:
    """By how many per cent the second is more, of a share by how many points and of a count by how many; nothing where
    they are the same."""
    more = second - first
    if pd.isna(more) or more == 0 or (name != pairs.COUNT and not first > 0):
        return ""
    if name == pairs.COUNT:
        size = words.whole(round(abs(more)))
    elif name in pairs.SHARES:
        size = f"{words.number(100 * abs(more), 2)} points"
    else:
        size = words.percent(abs(more) / first)
    return f" ({'+' if more > 0 else '−'}{size})"


def _settings(runs: Sequence[RunReport]) -> None:
    every = st.toggle("Also those that are the same", key="runs_every", bind=URL)
    table = pairs.settings(runs, only_different=not every)
    if table.empty:
        st.info("The settings of these runs do not differ.")
        return
    shown = without_formulas(table.rename(columns={"setting": "Setting"}))  # the table offers itself as CSV, too
    st.dataframe(shown, hide_index=True, key="runs-settings", height="content", alt="Settings of the runs")
    csv_button("Settings, CSV", shown, "settings.csv", "runs-settings-csv")


def _remarks(chosen: Pair, label: str) -> None:
    if "error" in label and on_other_windows(chosen.first.summary, chosen.second.summary):
        st.caption(
            f"The two were calibrated and measured on different windows (see {SETTINGS}); part of the difference comes "
            "from that."
        )
    if chosen.left_out:
        left = words.sentence(words.count(chosen.left_out, "layer"))
        st.caption(f"{left} that only one of the runs has {'is' if chosen.left_out == 1 else 'are'} left out.")
    if (chosen.first.kind in ALONE) != (chosen.second.kind in ALONE):
        st.caption(STUDY)


draw()
