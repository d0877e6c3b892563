"""Make it smaller: what does each way give?"""

import math
from functools import partial

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import components, session, shared, words
from app.components.work import follow
from app.forms.study_form import format_of
from app.forms.widgets import attempt, linked, spec_number, start_button, text_input
from app.results.downloads import checkpoint_button, csv_button, menu
from app.runs import example
from app.runs.slimming import SmallerRun
from rose.recipe.steps import Smaller
from rose.rows import records_table
from rose.smaller import Row
from rose.smaller.table import ENDED, FILES, runtimes, says_llama
from rose.smaller.ways import AS_IS
from rose.verdicts.smaller import HALF, ZEROS, Recommendation, recommend, says_stored

FIELDS = Smaller.fields()
ENOUGH = 3  # from this number of measured rows on, estimates are folded


def draw() -> None:
    run: SmallerRun | None = session.run_in("smaller")
    _offer(run)
    if run is not None:
        follow(run, "smaller", "; rows so far are shown.", state=run.count_measured)
    if run is None or not run.rows:
        run = example.smaller()
        components.example("ways to make a copy smaller")
    _results(run)


def _offer(run: SmallerRun | None) -> None:
    setup = session.setup()
    first, second, third = st.columns([3, 2, 1], vertical_alignment="bottom")
    usual = f"{setup.model}, as in the dialog"
    model = text_input("Your checkpoint: a folder, a .gguf file or a Hub id", "smaller_model", usual, None, first)
    if model:
        setup = setup.changed(model=model, dtype=format_of(model))
    text = text_input("Second text", "smaller_second", "plain English", None, second)
    usual_minutes = float(FIELDS["minutes"].default)
    minutes = spec_number(third, FIELDS["minutes"], linked("smaller_minutes"), value=usual_minutes, help=None)
    settings = setup.pick(("model", "dtype", "calibration", "samples", "length", "seed"))
    settings |= {"held_out": max(2, setup.held_out), "second": text or None}
    request, problem = attempt(lambda: Smaller.of(**settings, minutes=minutes, output="smaller"))
    start_button(
        f"Measure for {minutes:g} {'minute' if minutes == 1 else 'minutes'}",
        "smaller-start", session.start_run, "smaller",
        partial(SmallerRun, request, partial(shared.load, setup.model, setup.dtype)),
        "compare_arrows: Making it smaller",
        problem=problem, running=session.sees_at_work(run), icon=":material/compare_arrows:", asking=[setup],
        recipes=[request] if request else (),
        takes="Estimates every way, then makes and measures copies, the most promising first.",
    )  # fmt: skip


def _results(run: SmallerRun) -> None:
    advice, spec = recommend(run.rows), run.request
    for note in filter(None, (ZEROS, says_stored(run.rows[0]), says_llama(run.rows))):
        st.caption(words.plain(note))
    for index, (place, answer) in enumerate(zip(st.columns(len(advice) or 1), advice, strict=False)):
        is_named = answer.key in [earlier.key for earlier in advice[:index] if earlier.key]
        _advise(place.container(border=True, height="stretch"), answer, is_named=is_named)
    measured = [row for row in run.rows if row.is_measured]
    components.table([_cells(row) for row in measured], "Ways that were measured", key="smaller-table")
    st.caption(
        f"Perplexity: {spec.held_out} × {spec.length} tokens of held-out calibration text; elsewhere: "
        f"{words.plain(spec.second or 'plain English')}. Speed: in torch, times the dense model's; – where shapes stay "
        "the same."
    )
    title = f"All {len(run.rows)} ways, estimates among them, and files that round nothing further"
    with st.expander(title, expanded=len(measured) < ENOUGH, icon=":material/table:"):
        st.dataframe(pd.DataFrame(map(_facts, run.rows)), hide_index=True, key="smaller-ways", alt="All ways")
    programs = runtimes()
    programs = programs[~programs["here"].str.contains(ENDED)]
    usable = words.out_of(int(programs["here"].eq("yes").sum()), len(programs), "program")
    title = f"{words.sentence(usable)} that gain from zeros can run here, as of {programs['checked'].max()}"
    with st.expander(title, icon=":material/speed:"):
        order = ("name", "here", "gain", "uses", "hardware", "needs", "state", "source", "checked")
        st.dataframe(programs, hide_index=True, column_order=order, key="smaller-runtimes", alt="Programs for zeros")
    components.cautions(run.left_out)
    with menu("smaller-downloads"):
        csv_button("Table, CSV", records_table(run.rows, Row), "smaller.csv", "smaller-csv")
        for key in dict.fromkeys(answer.key for answer in advice):
            if key and (folder := run.kept(key)) is not None:
                checkpoint_button(folder, key=f"smaller-{key}")


def _advise(place: DeltaGenerator, answer: Recommendation, *, is_named: bool) -> None:
    """A goal, the way that reaches it, and why, unless another goal names the same way."""
    goal, nothing = words.sentence(answer.goal), "Nothing pays here" if answer.is_complete else "Not known yet"
    why = answer.text.removeprefix(f"{goal}: ").removeprefix(f"{answer.name}, ").removeprefix("nothing pays here; ")
    goal += " of 16 bits" if answer.goal == HALF else ""
    place.markdown(f"{goal}: **{words.plain(answer.name or nothing)}**")
    place.caption("The same copy." if is_named else words.plain(words.sentence(why)))


def _cells(row: Row) -> dict[str, str]:
    gains = [f"× {words.number(gain)}" if gain else "–" for gain in (row.prefill_gain, row.decoding_gain)]
    texts = {"Perplexity": (row.perplexity, row.times), "elsewhere": (row.second_perplexity, row.second_times)}
    return {
        "Way": "the same weights" if row.key == AS_IS else row.name,
        **{name: f"{words.number(value or math.nan)}, {words.times(of or 1.0)}" for name, (value, of) in texts.items()},
        "Reading speed": gains[0],
        "writing": gains[1],
        "Smallest file": f"{words.size(row.bytes)} {row.smallest}",
        "Minutes": _minutes(row),
    }


def _minutes(row: Row) -> str:
    return words.number(row.minutes, 2) if row.minutes > 0.01 else "–"


def _facts(row: Row) -> dict[str, str]:
    """A row of the table of all ways; the range of an estimate is what other models had."""
    bounds = {"Perplexity, times": (row.times_low, row.times_high), "elsewhere": (row.second_low, row.second_high)}
    return {
        "Way": row.name,
        "Numbers": row.basis,
        **{name: " to ".join(words.number(bound) for bound in each if bound) or "–" for name, each in bounds.items()},
        "Minutes": _minutes(row),
        "Memory": words.size(row.memory),
        **{name: words.size(getattr(row, name)) if name in row.exact else "–" for name in FILES},
        "Loads in": row.loads,
    }
