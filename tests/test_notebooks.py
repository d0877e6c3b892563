"""Notebooks run, use the public interface only, and say again what their committed outputs say."""

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
MAX_BYTES = 500_000
ALLOWED = {"rose", "torch", "numpy", "pandas", "matplotlib", "transformers", *sys.stdlib_module_names}
# What a notebook is for, as a line that it must print.
STATEMENTS = {
    "diffusion": (
        r"20 steps from noise to pictures of 28 x 28 pixels",
        r"the least drift is SparseGPT's or ROSE's",
        r"the median channel of the median layer moves by \d+\.\d percent",
        r"\d+ of 24 layers are columnar; the largest relative range is 0\.\d+",
    ),
    "pruning_order": (
        r"ranking at 70%, calibration: both < columns < blocks < none < columns ascending",
        r"ranking at 70%, held-out: both < columns < blocks < none < columns ascending",
        r"calibration: 0\.\d+ first, 0\.\d+ last",
    ),
    "order_and_budget": (
        r"calibration: one global sort with the block budget is worse than natural order in \d+ of 19 layers",
        r"held-out: global order with the layer budget is the best of the eight in \d+ of 19 layers",
        r"held-out error is 0\.\d+ times that as given, at most 0\.\d+",
        r"global order with the layer budget comes to 0\.\d+ times",
    ),
    "columnar_layers": (
        r"\d of 210 layers are columnar at 70%; the clearest is model\.layers\.18\.self_attn\.o_proj",
        r"shuffling the columns takes the mean relative range from 0\.\d+ to 0\.0\d",
        r"from 30% to 90% sparsity the mean relative range moves from 0\.\d+ to 0\.\d+",
        r"with blocks of one head \d\d of 30 output projections are columnar, with blocks of 4\.5 heads 0",
    ),
    "layer_errors": (
        "three ways to measure and the reported error agree to four digits",
        r"o_proj: on held-out tokens SparseGPT makes 1\.\d+ times Wanda's error with 256 tokens, 0\.\d+ times with",
        r"down_proj, 512 tokens: the best held-out damping of those tried is [01]",
    ),
    "full_model": (
        r"\d+ of 14 layers are columnar, and ROSE reordered those and no others",
        r"ROSE's perplexity is \d\.\d+ times SparseGPT's, standard error below \d%",
        "the loaded model's logits are the same to the last bit",
        r"70% of the pruned layers' weights are zero; the file is 1\.\d+ times as large as without",
    ),
    "targets": (
        r"one layer at 50%: W\* in place of W takes its error against T from 0\.\d+ to 0\.\d+",
        r"after three decoder blocks target dense has 0\.\d+ times the drift of target layer",
        r"against their own outputs the layers have 1\.\d+ times the error that target layer leaves",
        r"eight blocks: drift is lower with target dense after \d+ of 8 decoder blocks",
        r"perplexity with target dense is 0\.\d+ times that with target layer",
    ),
    "damage": (
        r"of 4 decoder blocks, number \d+ costs most, \d+\.\d times the median",
        r"all at once cost \d\.\d\d times the sum of each alone",
        r"drift ranks these 14 layers better than held-out error does, at 0\.\d\d",
        r"restoring all 7 layers of block 29 gives \d\.\d{3} nats back",
    ),
    "tuning": (
        r"on windows that nothing has seen: \d+\.\d dense, \d+\.\d pruned",
        r"perplexity falls from \d+\.\d to \d+\.\d",
        r"all zeros are where they were, 70% of 10\.6 million weights",
        r"21 layers have moved, 189 are the same to the bit",
        r"on windows that nothing has seen: \d+\.\d pruned, \d+\.\d tuned",
    ),
    "is_it_sane": (
        r"by its zeros 3 layers are odd, of 6 that something has happened to",
        r"by their kept weights 3 more layers are odd, and then all 6 are known",
        r"6 of 21 layers are accused; something has happened to 6, the same",
        r"compensation recovered \d\d% of what it could in the median sane layer, 0% in the one that lost it",
        r"nearest are the masks of sparsegpt in \d+% of the sane layers",
        r"calibrated on other tokens, 0 layers are accused",
    ),
    "your_own_model": (
        r"\d of 30 output projections are columnar; the clearest is model\.layers\.18\.self_attn\.o_proj",
        r"no fault in \d+ layers; 70% zeros",
        r"tuning on 8 windows takes the perplexity from \d+\.\d to \d+\.\d; all zeros are kept",
        "the loaded model's logits are the same to the last bit",
    ),
    "your_own_method": (
        r"calibration: snake order beats two-level order in \d of 8 layers, dealt order in \d",
        r"held-out: RIA beats Wanda in \d of 8 layers",
    ),
}
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def python_of(cell: nbformat.NotebookNode) -> str:
    """The source without the first line of a cell that is written to a file."""
    return re.sub(r"\A%%writefile .*\n", "", cell.source)


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


def test_every_notebook_has_statements_and_every_statement_a_notebook() -> None:
    assert set(STATEMENTS) == {path.stem for path in NOTEBOOKS}


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
    assert path.stat().st_size < MAX_BYTES


def test_only_the_public_interface(path: Path) -> None:
    for cell in code_cells(nbformat.read(path, as_version=4)):
        for node in ast.walk(ast.parse(python_of(cell))):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= ALLOWED
                assert not any(alias.name.startswith("rose.") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert str(node.module).split(".")[0] in ALLOWED
                assert not str(node.module).startswith("rose.")
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "rose":
                assert node.attr in rose.__all__, node.attr


@pytest.fixture(scope="session")
def fresh_process(request: pytest.FixtureRequest) -> multiprocessing.context.BaseContext:
    """Starts processes that have imported what notebooks need, for a kernel each would import for seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "rose.cli", "matplotlib.pyplot", "transformers.models.llama"])
    return context


def test_a_kernel_runs_a_notebook_and_tells_of_a_failure(tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell(source) for source in ("import os", "print(os.environ['HF_HUB_OFFLINE'])")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "one.ipynb")
    assert printed_by(execute(tmp_path / "one.ipynb")) == "1\n"
    nbformat.write(nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell("1 / 0")]), tmp_path / "one.ipynb")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(tmp_path / "one.ipynb")


@pytest.mark.timeout(600)
def test_says_again_what_was_committed(path: Path, fresh_process: multiprocessing.context.BaseContext) -> None:
    """The cells' own assertions hold, and what was found is what the committed file says."""
    committed = found_lines(printed_by(nbformat.read(path, as_version=4)))
    with ProcessPoolExecutor(1, mp_context=fresh_process) as pool:
        lines = found_lines(pool.submit(run_cells, path).result())
    assert lines
    for statement in STATEMENTS[path.stem]:
        assert any(re.search(statement, line) for line in lines), statement
    assert [NUMBER.sub("#", line) for line in lines] == [NUMBER.sub("#", line) for line in committed]
    for now, then in zip(lines, committed, strict=True):
        # The packaged text is Python's own and differs a little from release to release, and so do the figures;
        # threads and processors round differently. What was committed must still be what is found.
        for a, b in zip(NUMBER.findall(now), NUMBER.findall(then), strict=True):
            unit = 10.0 ** -len(b.partition(".")[2])
            assert float(a) == pytest.approx(float(b), rel=0.25, abs=2.001 * unit), (now, then)
