"""Look inside a file of weights, and compare it with another: the first mode of *Check a checkpoint*."""

import contextlib

import pandas as pd
import streamlit as st

import rose
from app import components, session, words
from app.figures import weights as figures
from app.forms.widgets import linked, text_input
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
    path = text_input("File or folder", "inspect_path", "model.safetensors", FILE_HELP, left)
    other = text_input("Compare with, if you like", "inspect_other", "", "What differs, tensor by tensor.", right)
    if not path:
        path = next(iter(PACKAGED))
        st.caption(f"Shown: {path}, which comes with the app.")
    try:
        _beside(path, other) if other else _one(path)
    except rose.RoseError as problem:
        components.error(problem)


def _table(*paths: str) -> pd.DataFrame | None:
    """A row a tensor of one file, or of two; computed once, in the background, and None until then."""

    def make() -> None:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(TensorFiles(path)) for path in paths]
            tables[key] = compare_files(files[0], files[1]) if len(files) > 1 else inspect_file(files[0])

    key, tables = (*paths, *map(model_identity, paths)), st.session_state.setdefault("inspected-files", {})
    if key not in tables:
        components.finished([make], "look-inside", key, "file")
    return tables.get(key)


def _one(path: str) -> None:
    table = _table(path)
    if table is None:
        return
    st.markdown(
        f"**{words.sentence(words.count(len(table), 'tensor'))}, {words.size(float(table['stored'].sum()))}, "
        f"{words.percent(float(table['zeros'].sum() / max(1, table['numbers'].sum())))} zeros.**"
    )

    def choose(name: str) -> None:
        st.session_state.inspect_tensor = name

    cells = components.in_percent(table[list(LABELS)], ["sparsity"]).rename(columns=LABELS)
    shown = {name: name for name in cells} | {"Zeros": ("Zeros", components.SHARE), "Bytes": ("Bytes", "localized")}
    alt = "All tensors of the file; a chosen row is drawn below"
    components.frame(cells, shown, "inspect-table", alt, list(table["name"]), choose)
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


def _beside(path: str, other: str) -> None:
    table = _table(path, other)
    if table is None:
        return
    counted = ", ".join(f"{status} {count}" for status, count in table["status"].value_counts().items())
    st.markdown(f"**{words.sentence(words.count(len(table), 'tensor'))}: {words.plain(counted)}.**")
    cells = components.in_percent(table[list(BESIDE)], ["change", "moved"]).rename(columns=BESIDE)
    shown = {name: name for name in cells} | {
        BESIDE[name]: (BESIDE[name], components.SHARE) for name in ("change", "moved")
    }
    components.frame(cells, shown, "inspect-beside", "All tensors of both files")
    csv_button("Differences, CSV", table, "differences.csv", "inspect-beside-csv")
