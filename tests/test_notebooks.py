"""Notebooks run, use no private name, and repeat their committed findings."""

import ast
import contextlib
import io
import multiprocessing
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import matplotlib
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbclient.exceptions import CellExecutionError

import rose
from notebooks.run import FOLDER, execute

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
ALLOWED = {"rose", "torch", "numpy", "pandas", "matplotlib", "transformers", *sys.stdlib_module_names}
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed_by(notebook: nbformat.NotebookNode) -> str:
    return "".join(o.text for c in code_cells(notebook) for o in c.outputs if o.output_type == "stream")


def found_lines(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("Found: ")]


def run_cells(path: Path) -> str:
    """Runs every cell as a kernel does, in this process; returns what they print, or raises what one raises."""
    os.environ["PYTHONPATH"] = str(FOLDER.parent)
    matplotlib.use("agg")
    shell, printed = InteractiveShell.instance(), io.StringIO()
    with contextlib.redirect_stdout(printed):
        for cell in code_cells(nbformat.read(path, as_version=4)):
            shell.run_cell(cell.source).raise_error()
    return printed.getvalue()


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_committed_outputs_are_whole_and_small(path: Path) -> None:
    """Readable on a forge: every code cell has run, in order, and shows something; none shows a failure."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert cell.outputs, f"no output of: {cell.source[:60]}"
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
            assert ".venv" not in str(output)
    assert path.stat().st_size < 500_000


def test_notebooks_use_no_private_name(path: Path) -> None:
    for cell in code_cells(nbformat.read(path, as_version=4)):
        for node in ast.walk(ast.parse(re.sub(r"\A%%writefile .*\n", "", cell.source))):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= ALLOWED
                assert not any(alias.name.startswith("rose.") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert str(node.module).split(".")[0] in ALLOWED
                names = [*str(node.module).split("."), *(alias.name for alias in node.names)]
                assert not any(name.startswith("_") for name in names)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "rose":
                assert node.attr in rose.__all__, node.attr


@pytest.fixture(scope="session")
def fresh_process(request: pytest.FixtureRequest) -> multiprocessing.context.BaseContext:
    """Starts processes that have imported and loaded what notebooks need, as a kernel each would take seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "rose.cli", "matplotlib.pyplot", "tests.preloaded"])
    return context


def test_a_kernel_runs_a_notebook_and_reports_a_failure(tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell(source) for source in ("import os", "print(os.environ['HF_HUB_OFFLINE'])")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "one.ipynb")
    assert printed_by(execute(tmp_path / "one.ipynb")) == "1\n"
    nbformat.write(nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell("1 / 0")]), tmp_path / "one.ipynb")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(tmp_path / "one.ipynb")


@pytest.mark.timeout(600)
def test_a_notebook_repeats_its_findings(path: Path, fresh_process: multiprocessing.context.BaseContext) -> None:
    """The cells' own assertions hold, and what was found is what the committed file says."""
    committed = found_lines(printed_by(nbformat.read(path, as_version=4)))
    with ProcessPoolExecutor(1, mp_context=fresh_process) as pool:
        lines = found_lines(pool.submit(run_cells, path).result())
    assert lines
    assert [NUMBER.sub("#", line) for line in lines] == [NUMBER.sub("#", line) for line in committed]
    for now, then in zip(lines, committed, strict=True):
        # The packaged text differs from one Python release to the next, and processors round differently.
        for a, b in zip(NUMBER.findall(now), NUMBER.findall(then), strict=True):
            unit = 10.0 ** -len(b.partition(".")[2])
            assert float(a) == pytest.approx(float(b), rel=0.25, abs=2.001 * unit), (now, then)
