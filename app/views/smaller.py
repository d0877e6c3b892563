"""Make it smaller: what does each way give?"""

from functools import partial

import streamlit as st

from app import components, session, shared, words
from app.components.work import follow
from app.forms.widgets import attempt, linked, spec_number, start_button
from app.results.downloads import checkpoint_button, csv_button
from app.runs import example
from app.runs.slimming import SmallerRun
from rose.recipe.steps import Smaller
from rose.rows import records_table
from rose.smaller import Row
from rose.smaller.table import FILES, runtimes
from rose.verdicts.smaller import recommend, says_stored

FIELDS = Smaller.fields()


def draw() -> None:
    st.title("Make it smaller: what does each way give?")
    components.edited_setup()
    components.require_weights()
    run: SmallerRun | None = st.session_state.get("smaller")
    _offer(run)
    if run is not None:
        done = lambda: sum(row.is_measured for row in st.session_state.smaller.rows)  # noqa: E731
        follow(run, "smaller", "; rows so far are shown.", state=done)
    if run is None or not run.rows:
        run = example.smaller()
        components.example("ways to make a copy smaller")
    _results(run)
    with st.expander("Does it pay here? Programs that gain from zeros", icon=":material/speed:"):
        st.dataframe(runtimes(), hide_index=True, key="smaller-runtimes", alt="Programs that use zeros")


def _offer(run: SmallerRun | None) -> None:
    setup = session.setup()
    left, right = st.columns([1, 3], vertical_alignment="bottom")
    minutes = spec_number(left, FIELDS["minutes"], linked("smaller_minutes"), value=float(FIELDS["minutes"].default))
    help = words.sentence(FIELDS["second"].description) + "."
    second = right.text_input("Second text", **linked("smaller_second"), placeholder="plain English", help=help)
    settings = {name: getattr(setup, name) for name in ("model", "dtype", "samples", "length", "seed")}
    settings |= {"calibration": setup.text, "held_out": max(2, setup.held_out), "second": second.strip() or None}
    spec, problem = attempt(lambda: Smaller.of(**settings, minutes=minutes, output="smaller"))
    start_button(
        f"Measure for {minutes:g} minutes", "smaller-start", session.start_run, "smaller",
        partial(SmallerRun, spec, partial(shared.load, setup.model, setup.dtype)), "compare_arrows: Making it smaller",
        problem=problem, running=session.sees_at_work(run), icon=":material/compare_arrows:", asking=[setup],
        takes=f"Estimates every way for {words.plain(setup.model)}, then measures the most promising first.",
    )  # fmt: skip


def _results(run: SmallerRun) -> None:
    advice = recommend(run.rows)
    if note := says_stored(run.rows[0]):
        st.caption(words.plain(note))
    if advice:
        st.markdown("\n".join(f"- {words.plain(answer.text)}" for answer in advice))
    components.table([_cells(row) for row in run.rows], "Every way, measured or estimated", key="smaller-table")
    st.caption(
        "≈ estimated by a rule, as are the file sizes in that row; the rest is measured. Reads, writes: speed, times "
        "the dense model's. Elsewhere: the second text, plain English unless chosen."
    )
    components.cautions(run.left_out)
    with st.container(horizontal=True, vertical_alignment="center"):
        csv_button("Table, CSV", records_table(run.rows, Row), "smaller.csv", "smaller-csv")
        for key in dict.fromkeys(answer.key for answer in advice):
            if key and (folder := run.kept(key)) is not None:
                checkpoint_button(folder, key=f"smaller-{key}")


def _cells(row: Row) -> dict[str, str]:
    mark = "" if row.is_measured else "≈ "

    def number(value: float | None, before: str = "", digits: int = 3) -> str:
        text = "" if value is None else words.number(value, digits)
        return "–" if text in ("", "–") else f"{mark}{before}{text}".replace(" ", "\u00a0")

    def perplexity(value: float | None, times: float | None) -> str:
        return number(times, "× ") if value is None else f"{number(value)},\u00a0×\u00a0{words.number(times or 1.0)}"

    sizes = {name: getattr(row, name) for name in FILES}
    return {
        "Way": row.name,
        "Perplexity": perplexity(row.perplexity, row.times),
        "elsewhere": perplexity(row.second_perplexity, row.second_times),
        "Reads": number(row.prefill_gain, "× "),
        "Writes": number(row.decoding_gain, "× "),
        **{name: "–" if size is None else words.size(size).replace(" ", "\u00a0") for name, size in sizes.items()},
        "Minutes": number(row.minutes, digits=2) if row.minutes > 0.01 else "–",
    }


draw()
