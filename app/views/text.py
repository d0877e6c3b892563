"""Your text: what does pruning do to it?"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app import components, session, shared, words
from app.components.work import follow
from app.figures import tokens as coloured
from app.forms import study_form
from app.forms.widgets import folders_input, linked, saved, start_button
from app.results.downloads import csv_button
from app.runs import reading
from app.runs.checkpoints import Checkpoint, named_apart, saved_checkpoint
from app.runs.pruning import kept_checkpoints
from app.runs.reading import DENSE, LIMIT, MOST, TextReading
from app.study.setup import Setup
from rose.model.measure.text import EncodedText

SAMPLE = (
    "Pruning removes weights from a trained network. The first heart transplant was performed in Cape Town in 1967 by "
    "Christiaan Barnard. If a train leaves at 9:40 and takes two and a half hours, it arrives at 12:10. She said that "
    "she would rather read the letter herself than have it read to her."
)
COLOURS = {"change": "change against dense", "loss": "surprise itself"}
SURPRISE = "Surprise is −log p of a token given those before it, in nats: what perplexity averages. "
MEANING = {
    "change": "Orange: the pruned model expects the token less than the dense one does; purple: it expects it more.",
    "loss": "The stronger the colour, the less the model expects the token.",
}


def draw() -> None:
    st.title("Your text: what does pruning do to it?")
    components.edited_setup()
    components.require_weights()
    setup = session.setup()
    text, checkpoints = _ask()
    run: TextReading | None = st.session_state.get("reading")
    _offer(text, checkpoints, run)
    if run is None:
        if not checkpoints:
            _empty()
        return
    follow(run, "text", "; what was read is shown.", found=lambda: len(run.readings), every=0.5)
    if run.job.status == "done" and not run.answers(setup, text, checkpoints):
        st.caption("What is shown was read before the choices were changed; press Read again.")
    encoded, known = run.encoded, dict(run.readings)
    if encoded is not None and len(known) > 1:
        _results(run, encoded, known)


def _ask() -> tuple[str, list[Checkpoint]]:
    text = st.text_area(
        "Your text",
        SAMPLE,
        **linked("text_written"),
        height=130,
        max_chars=8 * LIMIT,
        help=f"At most {LIMIT} tokens. It stays on this machine, and in the link of this page.",
    )
    kept = kept_checkpoints(list(shared.prunings().values()), session.setup().model)
    components.keep_choice("text_models", {name: (str(one.place),) for name, one in kept.items()})
    left, right = st.columns(2, vertical_alignment="bottom")
    chosen = left.multiselect(
        "Models pruned on this server",
        list(kept),
        default=list(kept)[:1],
        max_selections=MOST,
        **linked("text_models"),
        placeholder="none kept" if not kept else "choose",
        help="Those whose checkpoint was kept on the page Prune.",
    )
    with right:
        folders = folders_input(
            "Folders of saved models", "text_path", "Folders that `rose prune` or `rose slim` has written"
        )
        named = saved(folders, lambda path: [saved_checkpoint(path)])
    models = [*(kept[name] for name in chosen if name in kept), *named]
    return text, named_apart(models, [DENSE, *reading.COLUMNS])


def _offer(text: str, checkpoints: list[Checkpoint], run: TextReading | None) -> None:
    problem = ""
    if not text.strip():
        problem = "Write a text first."
    elif len(checkpoints) > MOST:
        problem = f"At most {words.count(MOST, 'model')} beside the dense one; take some out."
    icon = ":material/chrome_reader_mode:"
    running = session.sees_at_work(run)
    right = start_button(
        "Read", "text-read", _start, text, checkpoints, problem=problem, running=running or not checkpoints, icon=icon
    )
    if checkpoints and not problem:
        models = words.count(len(checkpoints), "pruned model")
        dense = words.plain(session.setup().model)
        right.caption(f"The dense {dense} and {models} read it once each: about as long as it takes to load them.")
        with right:
            study_form.say_hub(replace(session.setup(), text=Setup.text))  # the text is the reader's own


def _start(text: str, checkpoints: list[Checkpoint]) -> None:
    setup = session.setup()
    run = TextReading(setup, text, checkpoints, lambda: shared.load(setup.model, setup.dtype))
    session.start_run("reading", run, "chrome_reader_mode: Reading")


def _empty() -> None:
    with st.container(border=True, horizontal_alignment="center", gap="small"):
        st.markdown("**Your own text, token by token: where the pruned model is more surprised than the dense one**")
        st.text(
            "It takes a pruned model: prune copies, of which the best is kept, or give the folder of one that was "
            "pruned on the command line."
        )
        st.page_link("views/prune.py", label="Prune copies; the best is kept", icon=":material/content_cut:")


def _results(run: TextReading, encoded: EncodedText, known: dict[str, Any]) -> None:
    pruned = {name: one for name, one in known.items() if name != DENSE}
    for name, one in pruned.items():
        st.markdown(f"**{words.plain(reading.finding(known[DENSE], name, one))}.**")
    table = reading.token_table(encoded, known)
    size = table[[f"{name} − dense" for name in pruned]].abs().max(axis=1)  # of the largest change
    number = _chosen(encoded, table, size)
    kind = components.choose("Colour", COLOURS, "text_colour")
    _texts(encoded, known, number, kind)
    left, right = st.columns(2)
    with left:
        _changes(table, size, pruned)
    with right:
        _next(run, encoded, known, number)


def _texts(encoded: EncodedText, known: dict[str, Any], number: int, kind: str) -> None:
    change = kind == "change"
    values = {name: reading.losses(encoded, one) for name, one in known.items()}
    if change:
        values = {name: one - values[DENSE] for name, one in values.items() if name != DENSE}
    end, theme = coloured.scale_end(*values.values()), session.theme()
    st.html(coloured.legend(end, theme, change=change))
    for column, (name, one) in zip(st.columns(len(values)), values.items(), strict=True):
        with column:
            said = "minus dense" if change else f"{words.number(float(np.nanmean(one)))} nats a token"
            st.markdown(f"**{words.plain(name)}**, {said}")
            st.html(coloured.coloured_text(encoded.pieces, one, end=end, theme=theme, change=change, marked=number))
    st.caption(SURPRISE + MEANING[kind])


def _chosen(encoded: EncodedText, table: pd.DataFrame, size: pd.Series) -> int:
    """The token that the tables and the outline show: a chosen row, or at first the largest change."""
    state, text = st.session_state, encoded.pieces
    if state.get("text_of") != text:
        _show_token(int(table["number"].iloc[0 if size.isna().all() else size.idxmax()]))
        state.text_of = text
    return int(state.text_token)


def _show_token(number: int) -> None:
    """In a box of its own, which begins with it: a box that is told its value never hears it where the page is drawn
    again at once, as at the end of a run."""
    state = st.session_state
    state.text_token, state.text_box = number, state.get("text_box", 0) + 1


def _changes(table: pd.DataFrame, size: pd.Series, pruned: dict[str, Any]) -> None:
    st.markdown("**Tokens, the largest change first**")
    changes = [f"{name} − dense" for name in pruned]
    ranked = table.loc[size.sort_values(ascending=False, kind="stable").index].reset_index(drop=True)
    one = len(pruned) == 1  # whose name need not stand twice, which would take the room of the numbers
    said = {name: "Pruned" if one and name != DENSE else None for name in [DENSE, *pruned]}
    nats = {name: st.column_config.NumberColumn(said[name], format="%.2f") for name in said}
    gaps = {name: st.column_config.NumberColumn("Change" if one else None, format="%+.2f") for name in changes}

    st.dataframe(
        ranked,
        hide_index=True,
        height=420,
        key="text-tokens",
        on_select=lambda: components.pick_row("text-tokens", ranked["number"].tolist(), _show_token),
        selection_mode="single-row",
        column_order=["token", *changes, *nats, "before", "number"],
        column_config={
            "token": st.column_config.TextColumn("Token", pinned=True),
            "before": st.column_config.TextColumn("Preceding text"),
            "number": st.column_config.NumberColumn("Position"),
            **nats,
            **gaps,
        },
        alt="Tokens with their surprise in nats under every model",
    )
    csv_button("Tokens, CSV", table, "tokens.csv", "text-tokens-csv")


def _next(run: TextReading, encoded: EncodedText, known: dict[str, Any], number: int) -> None:
    st.markdown("**What the models expected instead**")
    key = f"text_token_{st.session_state.text_box}"

    def chosen() -> None:
        st.session_state.text_token = st.session_state[key]

    st.selectbox(
        "Token",
        range(1, len(encoded.pieces)),
        number - 1,
        format_func=lambda at: f"{at} · “{reading.token_name(encoded.pieces, at)}”",
        key=key,
        on_change=chosen,
        help="Choose it here, or a row of the table.",
    )
    table = reading.next_tokens(run, number, known)
    shown = {
        name: [
            f"{token} {words.percent(chance)}"
            for token, chance in zip(table[name], table[f"{name}, chance"], strict=True)
        ]
        for name in known
    }
    st.dataframe(
        pd.DataFrame({"Rank": table["rank"], **shown}),
        hide_index=True,
        key="text-next",
        height="content",
        alt="The ten likeliest tokens of every model, with their probabilities",
    )
    given = ", ".join(
        f"{words.plain(name)} {words.number(100 * math.exp(-float(one.losses[number - 1])))} %"
        for name, one in known.items()
    )
    csv_button("Expected tokens, CSV", table, "expected.csv", "text-next-csv")
    st.caption(f"The text goes on with “{words.plain(reading.token_name(encoded.pieces, number))}”: {given}.")


draw()
