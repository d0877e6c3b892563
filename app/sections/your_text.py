"""Your text: what does pruning do to it?"""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st

from app import components, session, shared, words
from app.components.work import follow
from app.figures import tokens as coloured
from app.forms.widgets import folders_input, linked, saved, start_button
from app.results.downloads import csv_button
from app.runs import example, reading
from app.runs.copies import kept_checkpoints
from app.runs.kept_copies import named_apart, saved_checkpoint
from app.runs.reading import DENSE, LIMIT, MOST, SAMPLE, Readings, TextReading
from rose.model.measure.perplexity import EncodedText

SEEN = 18  # characters before a token that its row shows; the file has more
COLOURS = {"change": "change against dense", "loss": "surprise itself"}
MEANING = {
    "change": "Orange: the pruned model expects the token less than the dense model does; purple: more.",
    "loss": "The stronger the colour, the less the model expects the token.",
}


def draw() -> None:
    run: TextReading | None = session.run_in("reading")
    with st.expander("Read a text of your own", icon=":material/edit:", key="text-form"):
        text, checkpoints = _ask()
        _offer(text, checkpoints, run)
    if run is not None:
        follow(run, "text", "; what was read is shown.", state=run.count, every=0.5)
        if run.job.status == "done" and not run.answers(session.setup(), text, checkpoints):
            st.caption("The text below was read before the choices were changed; press Read again.")
    if run is None or (run.job.status in ("failed", "cancelled") and len(run.readings) < 2):
        run = example.reading()
        components.example("a text read by the dense model and by pruned copies")
    if run.encoded is not None and len(run.readings) > 1:
        _results(run, run.encoded, dict(run.readings))


def _ask() -> tuple[str, dict[str, Path]]:
    text = st.text_area(
        "Your text",
        SAMPLE,
        **linked("text_written"),
        height=130,
        max_chars=8 * LIMIT,
        help=f"At most {LIMIT} tokens. It stays on this machine, and in the link of this page.",
    )
    copies = kept_checkpoints(list(shared.prunings().values()), session.setup().model)
    components.keep_choice("text_models", {name: (str(place),) for name, place in copies.items()})
    left, right = st.columns(2, vertical_alignment="bottom")
    chosen = left.multiselect(
        "Models pruned on this server",
        list(copies),
        default=list(copies)[:1],
        max_selections=MOST,
        **linked("text_models"),
        placeholder="choose" if copies else "none kept: prune copies on the page Prune",
    )
    with right:
        help = "Folders that `rose prune` or `rose slim` has written"
        folders = folders_input("Folders of saved models", "text_path", help)
        models = [(name, copies[name]) for name in chosen if name in copies]
        models += saved(folders, lambda path: [saved_checkpoint(path)])
    return text, named_apart(models, [DENSE, *reading.COLUMNS])


def _offer(text: str, checkpoints: dict[str, Path], run: TextReading | None) -> None:
    problem = ""
    if not text.strip():
        problem = "Write a text first."
    elif len(checkpoints) > MOST:
        problem = f"At most {words.count(MOST, 'model')} beside the dense one; take some out."
    setup = session.setup()
    make = partial(TextReading, setup, text, checkpoints, partial(shared.load, setup.model, setup.dtype))
    takes = "Takes about as long as the models take to load."
    start_button(
        "Read", "text-read", session.start_run, "reading", make, "chrome_reader_mode: Reading",
        icon=":material/chrome_reader_mode:", problem=problem,
        running=session.sees_at_work(run), ready=bool(checkpoints),
        takes=takes if checkpoints else "Choose a pruned model, or name the folder of one.",
        asking=[setup.changed(calibration="packaged")] if checkpoints else (),  # the text is the reader's own
    )  # fmt: skip


def _results(run: TextReading, encoded: EncodedText, readings: Readings) -> None:
    names = [name for name in readings if name != DENSE]
    if len(names) > MOST:
        names = st.multiselect("Copies", names, names[-1:], max_selections=MOST, key="text_copies") or names[-1:]
    for name in names:
        st.markdown(f"**{words.plain(reading.finding(readings[DENSE], name, readings[name]))}.**")
    readings = {name: readings[name] for name in (DENSE, *names)}
    table = reading.token_table(encoded, readings)
    size = table[[f"{name} − dense" for name in names]].abs().max(axis=1)  # of the largest change
    number = _chosen(encoded, table, size)
    _texts(encoded, readings, number, components.choose("Colour", COLOURS, "text_colour"))
    left, right = st.columns([1.2, 1])
    with left:
        _changes(table, size, names)
    with right:
        _next(run, encoded, readings, number)


def _texts(encoded: EncodedText, readings: Readings, number: int, kind: str) -> None:
    change = kind == "change"
    values = {name: reading.losses(encoded, model) for name, model in readings.items()}
    if change:
        values = {name: losses - values[DENSE] for name, losses in values.items() if name != DENSE}
    end, theme = coloured.scale_end(*values.values()), session.theme()
    st.html(coloured.legend(end, theme, change=change))
    for column, (name, losses) in zip(st.columns(len(values)), values.items(), strict=True):
        with column:
            unit = "minus dense" if change else f"{words.number(float(np.nanmean(losses)))} nats a token"
            st.markdown(f"**{words.plain(name)}**, {unit}")
            st.html(coloured.coloured_text(encoded.pieces, losses, end=end, theme=theme, change=change, marked=number))
    st.caption(
        f"Surprise: −log p of a token given those before it, in nats. {MEANING[kind]} *Prune* measures perplexity on "
        "held-out calibration text, which flatters a copy."
    )


def _chosen(encoded: EncodedText, table: pd.DataFrame, size: pd.Series) -> int:
    """The token that the tables and the outline show: a chosen row, or at first the largest change."""
    state = st.session_state
    if state.get("text_of") != encoded.pieces:
        _show_token(int(table["number"].iloc[0 if size.isna().all() else size.idxmax()]))
        state.text_of = encoded.pieces
    return int(state.text_token)


def _show_token(number: int) -> None:
    """Chooses a token, in a new box that begins with it: a box whose value is set by hand misses a redraw at once."""
    state = st.session_state
    state.text_token, state.text_box = number, state.get("text_box", 0) + 1


def _changes(table: pd.DataFrame, size: pd.Series, names: list[str]) -> None:
    st.markdown("**Tokens, the largest change first**")
    ranked = table.loc[size.sort_values(ascending=False, kind="stable").index].reset_index(drop=True)
    ranked["before"] = ranked["before"].map(lambda text: f"…{text[-SEEN:]}" if len(text) > SEEN else text)
    changes, is_single = [f"{name} − dense" for name in names], len(names) == 1
    shown = {
        "token": st.column_config.TextColumn("Token", pinned=True),
        **dict.fromkeys(changes, ("Change" if is_single else None, "%+.2f")),
        **{name: ("Pruned" if is_single and name != DENSE else None, "%.2f") for name in [DENSE, *names]},
        "before": "Preceding text",
    }
    alt = "Tokens with their surprise in nats under every model"
    components.frame(ranked, shown, "text-tokens", alt, ranked["number"].tolist(), _show_token)
    csv_button("Tokens, CSV", table, "tokens.csv", "text-tokens-csv")


def _next(run: TextReading, encoded: EncodedText, readings: Readings, number: int) -> None:
    st.markdown("**What the models expected instead**")
    key = f"text_token_{st.session_state.text_box}"

    def choose() -> None:
        st.session_state.text_token = st.session_state[key]

    st.selectbox(
        "Token",
        range(1, len(encoded.pieces)),
        number - 1,
        format_func=lambda place: f"{place} · “{reading.token_name(encoded.pieces, place)}”",
        key=key,
        on_change=choose,
        help="Choose it here, or a row of the table.",
    )
    table = reading.next_tokens(run, number, readings)
    shown = {
        name: [
            f"{token} {words.percent(chance)}"
            for token, chance in zip(table[name], table[f"{name}, chance"], strict=True)
        ]
        for name in readings
    }
    st.dataframe(
        pd.DataFrame({"Rank": table["rank"], **shown}),
        hide_index=True,
        key="text-next",
        height="content",
        alt="The ten likeliest tokens of every model, with their probabilities",
    )
