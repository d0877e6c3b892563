"""Look inside a file of weights, and compare it with another: a section of *Check a checkpoint*."""

import contextlib

import pandas as pd
import streamlit as st

import rose
from app import components, session, shared, words
from app.figures import weights as figures
from app.forms.widgets import linked
from app.results.downloads import csv_button
from app.study.cache import model_identity
from rose.model import inspect as tensors
from rose.model.check.verdicts import says_pattern
from rose.model.inspect import TensorFiles
from rose.model.packaged import PACKAGED

QUICK = 2**24  # numbers of a matrix
LABELS = {
    "name": "Tensor", "kind": "Format", "shape": "Shape", "stored": "Bytes", "sparsity": "Zeros", "pattern": "Pattern",
    "true_bits": "Bits used", "norm": "Norm", "largest": "Largest", "zero_rows": "Zero rows",
    "zero_columns": "Zero columns", "odd_rows": "Odd rows", "odd_columns": "Odd columns", "not_finite": "Not finite",
    "says": "What stands out", "stored_as": "Name in the file",
}  # fmt: skip
BESIDE = {
    "name": "Tensor", "status": "Status", "says": "What happened", "change": "Change of norm",
    "moved": "Nonzeros that differ", "rows": "Rows", "columns": "Columns", "cosine": "Cosine", "moved_to": "Moved to",
    "other_name": "Name in the other", "stored_as": "Name in the file",
}  # fmt: skip


def draw(path: str, other: str) -> None:
    """The tensors of a checkpoint, by default the packaged model, or its differences from another checkpoint."""
    label, help = f"Compare with {words.plain(other)}", "Reads any .safetensors or .gguf file, or a folder."
    is_compared = path and st.toggle(label, **linked("inspect_beside"), help=help)
    try:
        _beside(path, other) if is_compared else _one(path or next(iter(PACKAGED)))
    except rose.RoseError as problem:
        components.error(problem)


def _table(*paths: str) -> pd.DataFrame | None:
    """A row a tensor of one file, or of two; computed once, in the background, and None until then."""

    def make() -> None:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(TensorFiles(path)) for path in paths]
            is_one = len(files) == 1
            table = tensors.inspect_file(files[0]) if is_one else tensors.compare_files(files[0], files[1])
        shared.registry.put(pd.DataFrame, key, table)

    key = (*paths, *map(model_identity, paths))
    table = shared.registry.get(pd.DataFrame, key)
    if table is None:
        components.finished([make], "look-inside", key, "file")
        table = shared.registry.get(pd.DataFrame, key)
    return table


def _short(name: str) -> str:
    """A tensor as the app names its layer."""
    return words.short_layer(name.removesuffix(".weight"))


def _one(path: str) -> None:
    answer = st.empty()
    with TensorFiles(path) as files:
        size = files.size
        answer.markdown(f"{words.sentence(words.count(len(files.tensors), 'tensor'))}, {words.size(size)}")
        _picture(files)
        texts = files.texts()
    table = _table(path)
    if table is not None:
        sentence, *further = tensors.says_file(table, size, _short)
        answer.markdown(f"**{words.plain(sentence)}** {words.plain(' '.join(further))}")
        _tensors(table)
    with st.expander("Configuration, tokenizer, template and licence, as text"):
        for title, text in texts.items():
            st.markdown(f"**{words.plain(title)}**")
            st.code(text, language=None, wrap_lines=True)


def _picture(files: TensorFiles) -> None:
    """One matrix of the file, at first a matrix that is quick to read, unlike embeddings."""
    matrices = {
        name: entry for name, entry in files.tensors.items() if len(entry.shape) > 1 and files.has_weights(name)
    }
    if not matrices:
        return
    if st.session_state.get("inspect_tensor") not in matrices:
        small = (name for name, entry in matrices.items() if entry.count < QUICK)
        st.session_state.inspect_tensor = next(small, next(iter(matrices)))
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    name = left.selectbox("Tensor", list(matrices), format_func=_short, **linked("inspect_tensor"))
    help = "Singular values; a large matrix takes a minute."
    has_spectrum = right.toggle("Spectrum", key="inspect-spectrum", help=help)
    look, theme = tensors.look_at(files, name), session.theme()
    components.show(figures.tensor_map(look.map, look.block, name=_short(name), theme=theme), "inspect-map")
    left, right = st.columns(2)
    with left:
        components.show(figures.histogram(look.counts, look.edges, theme=theme), "inspect-histogram")
    with right:
        norms = {"row": look.facts.row_norms, "column": look.facts.column_norms}
        if has_spectrum:
            norms["singular value"] = tensors.spectrum(files, name)
        components.show(figures.norms(norms, theme=theme), "inspect-norms")


def _tensors(table: pd.DataFrame) -> None:
    def choose(name: str) -> None:
        st.session_state.inspect_tensor = name

    patterns = table["pattern"].map(says_pattern, na_action="ignore")
    cells = table.assign(name=table["name"].map(_short), pattern=patterns)[list(LABELS)]
    cells = components.in_percent(cells, ["sparsity"]).rename(columns=LABELS)
    shown = {name: name for name in cells} | {"Zeros": ("Zeros", components.SHARE), "Bytes": ("Bytes", "bytes")}
    shown |= {name: (name, "%.3g") for name in ("Norm", "Largest")}
    help = "Bits that a number needs, by the grid on which the values lie; at most the stored ones."
    shown["Bits used"] = st.column_config.NumberColumn("Bits used", format="%.2f", help=help)
    shown["Pattern"] = st.column_config.TextColumn("Pattern", help="How the zeros lie: in N:M groups, rows or blocks.")
    alt = "All tensors of the file; a chosen row is drawn above"
    components.frame(cells, shown, "inspect-table", alt, list(table["name"]), choose)
    csv_button("Tensors, CSV", table, "tensors.csv", "inspect-csv")


def _beside(path: str, other: str) -> None:
    table = _table(path, other)
    if table is None:
        return
    st.markdown(f"**{words.plain(tensors.says_differences(table, _short))}**")
    cells = table.sort_values("change", ascending=False).assign(name=table["name"].map(_short))[list(BESIDE)]
    cells = cells[~cells["status"].isin((tensors.SAME, tensors.ROUNDED))].dropna(axis=1, how="all")
    cells = components.in_percent(cells, ["change", "moved"]).rename(columns=BESIDE)
    shares = {label: (label, components.SHARE) for label in (BESIDE["change"], BESIDE["moved"])}
    components.frame(cells, {**{name: name for name in cells}, **shares}, "inspect-beside", "Tensors that differ")
    csv_button("Differences, CSV", table, "differences.csv", "inspect-beside-csv")
