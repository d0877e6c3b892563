"""Compare runs: how do they differ?"""

from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from app import components, session, shared, words
from app.components import URL
from app.figures import depth as depth_figures
from app.figures import runs as figures
from app.runs import finished, pairs
from app.runs.depth import drift_table
from app.runs.finished import FinishedRun
from app.runs.pairs import Pair
from app.runs.widgets import csv_button, left_out, saved
from rose.report import without_formulas

PRUNE_PAGE = "views/prune.py"
DIFFERENCE, MAPS, NUMBERS, DRIFT, SETTINGS = "Difference", "Both maps", "Numbers", "Drift", "Settings"
SECTIONS = {name: name for name in (DIFFERENCE, MAPS, NUMBERS, DRIFT, SETTINGS)}
STUDY = (
    "A study measures each layer by itself on the dense model's inputs; a pruned model's layers get the inputs that "
    "the pruned ones below give."
)


def draw() -> None:
    st.title("Compare runs: how do they differ?")
    named = finished.name_apart(_offered())
    if len(named) < 2:
        _empty(named)
        return
    first, second = _choose(named)
    if first == second:
        st.info("Choose two different runs.")
        return
    view = components.section(SECTIONS, "runs_view", "What is shown")
    chosen = pairs.pair(named[first], named[second])
    {DIFFERENCE: _difference, MAPS: _maps, NUMBERS: _numbers, DRIFT: _drift, SETTINGS: _settings}[view](chosen)
    if not chosen.problem:
        _remarks(chosen, view)
        components.report_button(lambda: [chosen.first, chosen.second], "runs", "runs-report")


def _offered() -> list[FinishedRun]:
    opened = saved(
        "runs_path",
        "Folders of saved runs",
        partial(finished.read_runs, skip=left_out),
        "Folders that `rose prune`, `rose slim`, `rose analyze` or the Prune page have written, or one that holds "
        "several such folders; separated by semicolons. They are read, nothing in them is run.",
    )
    pruned = [run for report in list(shared.reports()) for run in finished.runs_of(report)]
    studies = {id(one): one for one in [session.study(), *shared.studies().values()] if one and one.is_measured}
    measured = [run for one in studies.values() for run in finished.runs_of_study(one, session.threshold())]
    return [*opened, *reversed(pruned), *measured]


def _choose(named: dict[str, FinishedRun]) -> tuple[str, str]:
    names, identities = list(named), {name: run.identity for name, run in named.items()}
    chosen = []
    for column, key, label, place in zip(st.columns(2), ("runs_a", "runs_b"), ("Run A", "Run B"), (0, 1), strict=True):
        components.keep_choice(key, identities)
        chosen.append(column.selectbox(label, names, index=place, key=key, bind=URL))
    return chosen[0], chosen[1]


def _empty(named: dict[str, FinishedRun]) -> None:
    with st.container(border=True, horizontal_alignment="center", gap="small"):
        st.markdown("**Two runs side by side: methods, sparsities, calibrations, or models**")
        one = f"One run is here, {next(iter(named))}; a second is missing. " if named else ""
        st.text(
            f"{one}Open the folders of saved runs above, also those written on another machine; prune copies of a "
            "model; or measure its layers: a study holds three methods."
        )
        st.page_link(PRUNE_PAGE, label="Prune copies of the model", icon=":material/content_cut:")
        st.page_link(components.START_PAGE, label="Measure its layers", icon=":material/play_arrow:")


def _measure(measures: dict[str, str]) -> str | None:
    """What the maps show; None where no layer has a number in both."""
    if not measures:
        st.info(
            "No layer has a number in both runs: where whole decoder blocks were taken out there are none to compare. "
            "Their totals are under Numbers."
        )
        return None
    if st.session_state.get("runs_measure") not in (None, *measures):
        del st.session_state["runs_measure"]
    labels = {name: words.sentence(label) for name, label in measures.items()}
    return st.selectbox("Of", list(labels), format_func=labels.__getitem__, key="runs_measure", bind=URL)


def _names(chosen: Pair) -> tuple[str, str]:
    return chosen.first.name, chosen.second.name


def _difference(chosen: Pair) -> None:
    if chosen.problem:
        components.error(f"{chosen.problem} Or see {MAPS}, each with axes of its own.")
        return
    left, right = st.columns(2, vertical_alignment="bottom")
    with left:
        measure = _measure(chosen.measures)
    if measure is None:
        return
    with right:
        kinds = {"share": "per cent of A", "plain": "B − A"}
        kind = components.choose("As", kinds, "runs_as")
    drawing = figures.run_difference(
        chosen.rows(measure), _names(chosen), pairs.MEASURES[measure], as_share=kind == "share", theme=session.theme()
    )
    components.show(drawing, "runs-difference", wide=True)


def _maps(chosen: Pair) -> None:
    measure = _measure(chosen.measures)
    if measure is None:
        return
    names, label, theme = _names(chosen), pairs.MEASURES[measure], session.theme()
    if chosen.problem:
        components.show(figures.maps_apart(chosen.apart(measure), names, label, theme=theme), "runs-apart", wide=True)
    else:
        components.show(figures.run_maps(chosen.rows(measure), names, label, theme=theme), "runs-maps", wide=True)


def _numbers(chosen: Pair) -> None:
    one, two = _names(chosen)
    table = pairs.numbers([chosen.first, chosen.second])
    table = table.assign(change=table[two] / table[one].where(table[one] > 0) - 1)
    shown = pd.DataFrame(
        {
            "": table["number"],
            **{run: list(map(pairs.said, table["number"], table[run])) for run in (one, two)},
            "B against A": [_against(*row) for row in table.itertuples(index=False, name=None)],
        }
    )
    st.dataframe(shown, hide_index=True, key="runs-numbers", height="content", alt="Totals of both runs")
    if pairs.windows_differ(chosen.first, chosen.second):
        st.warning(
            "The two perplexities were measured on different windows, or of different dense models: do not compare "
            "them.",
            icon=":material/warning:",
        )
    accuracies = pairs.accuracies(chosen.first, chosen.second)
    if accuracies is not None:
        named = accuracies.rename(columns={"first": one, "second": two})
        formats: dict[str, Any] = {name: st.column_config.NumberColumn(format="%.3f") for name in (one, two)}
        formats["points"] = st.column_config.NumberColumn("B − A, points", format="%+.1f")
        st.dataframe(
            named,
            hide_index=True,
            key="runs-accuracies",
            height="content",
            column_config=formats,
            alt="Zero-shot accuracy by task",
        )
    csv_button("Numbers, CSV", table, "numbers.csv", "runs-numbers-csv")


def _against(name: str, first: float, second: float, change: float) -> str:
    """In per cent; of a count, by how many."""
    if name == pairs.COUNT:
        more = second - first
        if pd.isna(more):
            return "–"
        return f"{'+' if more > 0 else '−' if more < 0 else ''}{words.whole(round(abs(more)))}"
    return ("+" if change > 0 else "") + words.percent(change)


def _drift(chosen: Pair) -> None:
    known = [run for run in (chosen.first, chosen.second) if run.drift]
    if not known:
        st.info("Neither run has drift: it is measured on held-out tokens while a model is pruned (--held-out 4).")
        return
    scale = components.choose("Scale", {"linear": "linear", "log": "log"}, "runs_scale")
    drawing = depth_figures.drift_curves(drift_table(known), scale=scale, theme=session.theme())
    components.show(drawing, "runs-drift", wide=True)
    if len(known) == 1:
        st.caption("The other run has no drift.")


def _settings(chosen: Pair) -> None:
    every = st.toggle("Also those that are the same", key="runs_every", bind=URL)
    table = pairs.settings([chosen.first, chosen.second], only_different=not every)
    if table.empty:
        st.info("The settings of the two runs do not differ.")
        return
    shown = without_formulas(table.rename(columns={"setting": "Setting"}))  # the table offers itself as CSV, too
    st.dataframe(shown, hide_index=True, key="runs-settings", height="content", alt="Settings of both runs")
    csv_button("Settings, CSV", shown, "settings.csv", "runs-settings-csv")


def _remarks(chosen: Pair, view: str) -> None:
    if view not in (DIFFERENCE, MAPS):
        return
    if chosen.left_out:
        left = words.sentence(words.count(chosen.left_out, "layer"))
        st.caption(f"{left} that only one of the runs has {'is' if chosen.left_out == 1 else 'are'} left out.")
    if (chosen.first.kind == "study") != (chosen.second.kind == "study"):
        st.caption(STUDY)


draw()
