"""Make it smaller: what does each way give?"""

from collections.abc import Sequence
from functools import partial
from html import escape

import pandas as pd
import streamlit as st

from app import components, session, shared, words
from app.components.work import follow
from app.figures import smaller as figures
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
from rose.verdicts.smaller import HALF, SAME_QUALITY, ZEROS, Recommendation, recommend, says_stored

FIELDS = Smaller.fields()


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
    left, right = st.columns([1.1, 1], gap="medium")
    with left:
        components.show(figures.size_and_quality(run.rows, theme=session.theme()), "smaller-sizes")
    with right:
        _advise(advice)
        measured = [row for row in run.rows if row.is_measured]
        components.table([_cells(row) for row in measured], "Ways that were measured", key="smaller-table")
        with st.container(horizontal=True):
            for key, name in {answer.key: answer.name for answer in advice if answer.key}.items():
                if (folder := run.kept(key)) is not None:
                    st.markdown(f"Take {words.plain(name)} home:", width="content")
                    checkpoint_button(folder, key=f"smaller-{key}", type="primary")
            with menu("smaller-downloads"):
                csv_button("Table, CSV", records_table(run.rows, Row), "smaller.csv", "smaller-csv")
        notes = [ZEROS, says_stored(run.rows[0]), says_llama(run.rows)]
        notes += [
            f"Your text: {spec.held_out} × {spec.length} tokens of held-out calibration text; other text: "
            f"{spec.second or 'plain English'}.",
            _says_speed(measured),
        ]
        st.caption(words.plain(" ".join(filter(None, notes))))
        components.cautions(run.left_out)
    title = f"All {len(run.rows)} ways, estimates among them, and files that round nothing further"
    with st.expander(title, icon=":material/table:"):
        st.dataframe(pd.DataFrame(map(_facts, run.rows)), hide_index=True, key="smaller-ways", alt="All ways")
    programs = runtimes()
    programs = programs[~programs["here"].str.contains(ENDED)]
    usable = words.out_of(int(programs["here"].eq("yes").sum()), len(programs), "program")
    title = f"{words.sentence(usable)} that gain from zeros can run here, as of {programs['checked'].max()}"
    with st.expander(title, icon=":material/speed:"):
        order = ("name", "here", "gain", "uses", "hardware", "needs", "state", "source", "checked")
        st.dataframe(programs, hide_index=True, column_order=order, key="smaller-runtimes", alt="Programs for zeros")


def _advise(advice: Sequence[Recommendation]) -> None:
    """The answer in one line, and below it why."""
    advised = {answer.goal: words.plain(answer.name) for answer in advice if answer.key}
    title = "No way that was measured pays here"
    if same := advised.get(SAME_QUALITY):
        half = advised.get(HALF)
        title = f"Take {same}" + (f", or {half} if half of the bytes must go" if half and half != same else "")
    elif half := advised.get(HALF):
        title = f"{half} halves the bytes of 16 bits"
    st.html(f'<div class="figure-title"><b>{escape(title)}</b></div>')
    st.caption(words.plain(" ".join(answer.text for answer in advice)))


def _says_speed(rows: Sequence[Row]) -> str:
    """Copies of other shapes are faster or slower in torch, which rounds and prunes without a gain."""
    gains = [f"{row.name} × {words.number(row.prefill_gain)}" for row in rows if row.prefill_gain]
    rest = "Other ways keep the model's shapes, and so its speed" if gains else "These ways keep the model's speed"
    return f"{rest} in torch." if not gains else f"Reading speed in torch: {words.listing(gains)}. {rest}."


def _cells(row: Row) -> dict[str, str]:
    return {
        "Way": "the same weights" if row.key == AS_IS else row.name,
        "File": f"{words.size(row.bytes)} {row.smallest}",
        "Your text": figures.says(row.times),
        "Other text": figures.says(row.second_times),
        "Makes in": "–" if row.minutes < 0.01 else f"{_minutes(row)} min",
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
