"""Look inside a file of weights, and compare it with another: the first mode of *Check a checkpoint*."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import streamlit as st

import rose
from app import components, session, words
from app.figures import weights as figures
from app.forms.widgets import linked, path_input
from app.results.downloads import csv_button
from app.study.cache import model_identity
from rose.model.inspect import TensorFiles, compare_files, inspect_file, look_at
from rose.model.packaged import PACKAGED

FILE_HELP = "A .safetensors or .gguf file, or a folder of a checkpoint, packed or sharded. Nothing is loaded whole."
LABELS = {
    "name": "Tensor", "kind": "Format", "shape": "Shape", "stored": "Bytes", "sparsity": "Zeros", "pattern": "Pattern",
    "true_bits": "True bits", "norm": "Norm", "largest": "Largest", "zero_rows": "Zero rows",
    "zero_columns": "Zero columns", "odd_rows": "Odd rows", "odd_columns": "Odd columns", "not_finite": "Not finite",
    "says": "What stands out",
}  # fmt: skip
BESIDE = {
    "name": "Tensor", "other_name": "In the other", "status": "Status", "moved_to": "Moved to",
    "change": "Change of norm", "moved": "Nonzeros that differ", "rows": "Rows", "columns": "Columns",
    "cosine": "Cosine", "says": "What happened",
}  # fmt: skip


def draw() -> None:
    left, right = st.columns(2)
    with left:
        path = path_input("File or folder", "inspect_path", "model.safetensors", FILE_HELP)
    with right:
        other = path_input("Compare with, if you like", "inspect_other", "", "What differs, tensor by tensor.")
    if not path:
        path = next(iter(PACKAGED))
        st.caption(f"Shown: {path}, which comes with the app.")
    try:
        if other:
            _beside(path, other)
        else:
            _one(path)
    except rose.RoseError as problem:
        components.error(problem)


def _table(key: tuple[Any, ...], make: Callable[[], pd.DataFrame]) -> pd.DataFrame | None:
    """A table that is computed once, in the background; None until then."""
    tables = st.session_state.setdefault("inspected-files", {})
    if key not in tables:
        components.finished([lambda: tables.update({key: make()})], "look-inside", key, "file")
    return tables.get(key)


def _one(path: str) -> None:
    def make() -> pd.DataFrame:
        with TensorFiles(path) as files:
            return inspect_file(files)

    table = _table((path, model_identity(path)), make)
    if table is None:
        return
    st.markdown(
        f"**{words.sentence(words.count(len(table), 'tensor'))}, {words.size(float(table['stored'].sum()))}, "
        f"{words.percent(float(table['zeros'].sum() / max(1, table['numbers'].sum())))} zeros.**"
    )
    st.dataframe(
        components.in_percent(table[list(LABELS)], ["sparsity"]).rename(columns=LABELS),
        hide_index=True,
        height=min(250, 38 + 35 * len(table)),
        key="inspect-table",
        on_select=lambda: components.pick_row("inspect-table", list(table["name"]), _choose),
        selection_mode="single-row",
        column_config={
            "Zeros": st.column_config.NumberColumn(format=components.SHARE),
            "Bytes": st.column_config.NumberColumn(format="localized"),
        },
        alt="All tensors of the file; a chosen row is drawn below",
    )
    csv_button("Tensors, CSV", table, "tensors.csv", "inspect-csv")
    names = list(table.loc[table["shape"].str.contains("×"), "name"])
    if not names:
        return
    if st.session_state.get("inspect_tensor") not in names:
        st.session_state.inspect_tensor = names[0]
    name = st.selectbox("Tensor", names, **linked("inspect_tensor"))
    with TensorFiles(path) as files:
        look, texts = look_at(files, name), files.texts()
    components.show(figures.tensor_map(look.map, look.block, name=name, theme=session.theme()), "inspect-map")
    left, right = st.columns(2)
    with left:
        components.show(figures.histogram(look.counts, look.edges, theme=session.theme()), "inspect-histogram")
    with right:
        norms = {"row": look.facts.row_norms, "column": look.facts.column_norms}
        components.show(figures.norms(norms, theme=session.theme()), "inspect-norms")
    with st.expander("Configuration, tokenizer, template and licence, as text"):
        for title, text in texts.items():
            st.markdown(f"**{words.plain(title)}**")
            st.code(text, language=None, wrap_lines=True)


def _choose(name: str) -> None:
    st.session_state.inspect_tensor = name


def _beside(path: str, other: str) -> None:
    def make() -> pd.DataFrame:
        with TensorFiles(path) as files, TensorFiles(other) as second:
            return compare_files(files, second)

    table = _table((path, other, model_identity(path), model_identity(other)), make)
    if table is None:
        return
    counts = table["status"].value_counts()
    counted = ", ".join(f"{status} {count}" for status, count in counts.items())
    st.markdown(f"**{words.sentence(words.count(len(table), 'tensor'))}: {words.plain(counted)}.**")
    shown = components.in_percent(table[list(BESIDE)], ["change", "moved"]).rename(columns=BESIDE)
    share = st.column_config.NumberColumn(format=components.SHARE)
    st.dataframe(
        shown,
        hide_index=True,
        key="inspect-beside",
        height=430,
        column_config={BESIDE["change"]: share, BESIDE["moved"]: share},
        alt="All tensors of both files",
    )
    csv_button("Differences, CSV", table, "differences.csv", "inspect-beside-csv")
