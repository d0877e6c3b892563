"""Executes notebooks in a fresh kernel of the Python that runs this file, without a network.

`python notebooks/run.py` executes all of them, or those named, and stores their outputs; the tests execute copies
and compare.
"""

import os
import sys
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
CELL_TIMEOUT = 500  # seconds; a busy machine may be five times slower than an idle one


def execute(path: Path) -> nbformat.NotebookNode:
    """Runs every cell, from the repository root, and returns the notebook with its outputs; the file is not changed.

    Raises:
        CellExecutionError: a cell failed; the message shows which, and its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    # No folders to search: a kernel that someone has registered as "python3" could be of another environment.
    specs = KernelSpecManager(kernel_dirs=[])
    manager = KernelManager(kernel_name="python3", kernel_spec_manager=specs)
    root = str(FOLDER.parent)
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    quiet = {"PYTHONWARNINGS": "ignore:IProgress not found"}  # progress bars fall back to text, which is fine
    same = {"ROSE_COMPUTE": "float32"}  # outputs are compared, whatever the processor is good at
    environment = os.environ | offline | quiet | same | {"PYTHONPATH": root}
    client = NotebookClient(
        notebook, km=manager, timeout=CELL_TIMEOUT, record_timing=False, resources={"metadata": {"path": root}}
    )
    try:
        return client.execute(env=environment)
    finally:
        manager.shutdown_kernel(now=True)  # a client does not end a kernel that it was given


def main() -> None:
    for path in [Path(name) for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        print(f"{path.name} ...", flush=True)
        nbformat.write(execute(path), path)


if __name__ == "__main__":
    main()
