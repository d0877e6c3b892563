"""The Prune page: a kept copy as a packed folder or a GGUF file, from the choice to the download."""

from typing import Any

import streamlit as st

from app import components, session, words
from app.components.work import follow
from app.results.downloads import large_button
from app.runs.copies import file_name
from app.runs.files import PACKED, FileRun, forms
from app.runs.pruning import PruningRun
from rose import RunReport


def draw(model: RunReport, run: PruningRun) -> None:
    """For a copy whose checkpoint is there."""
    title, icon = "As a smaller file: packed, or GGUF for llama.cpp", ":material/folder_zip:"
    with st.expander(title, icon=icon, key="prune-ship", on_change="rerun"):  # kept open when a run beside it ends
        labels = forms(model.bits)
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
        st.caption(_says(model, form, run.request.layers == "*"))
        if run.file is not None and run.file.folder == run.kept(model):
            _follow(run.file, model)


def _says(model: RunReport, form: str, whole: bool) -> str:
    """What the file is for, and what it costs; `whole`: all layers were pruned."""
    if form == PACKED:
        return (
            "To the bit: `rose.load_model` reads the folder, `rose unpack` makes a plain folder of it. Other programs "
            "do not read it."
        )
    reads = "llama.cpp and what is built on it read the file."
    if model.bits is not None:
        if form == "f16":
            return f"{reads} It holds the pruned layers exactly, and embeddings as f16 numbers."
        if whole:
            return f"{reads} It holds all weights exactly."
        return f"{reads} It holds the pruned layers exactly; the others are rounded too, without compensation."
    weights = "weights to f16 numbers" if form == "f16" else "kept weights, without compensation"
    return f"{reads} It rounds {weights}: perplexity was measured before that."


def _follow(file: FileRun, model: RunReport) -> None:
    follow(file, f"ship-file-{file_name(model)}", " before the file was whole; nothing of it is left.")
    if file.job.status != "done":
        return
    label = f"{words.plain(file.name)}, {words.size(file.size)}"
    look: dict[str, Any] = {"icon": ":material/download:", "type": "primary"}
    large_button(label, file.open, file.name, file.size, key=f"ship-take-{file_name(model)}", **look)
    st.caption(
        " ".join(words.plain(remark) for remark in [*file.found, f"It lies in {file.place} until you prune again."])
    )
