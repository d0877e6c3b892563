"""Imports and ends of fresh processes, and layers of the app."""

import ast
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

APP = Path(__file__).parent.parent / "app"
Ended = subprocess.CompletedProcess[str]
CODE = """
import importlib, os, pkgutil, sys, threading

class Finder:
    def find_spec(name, path, target=None):
        if name == "torch":
            print("torch finds spins:", os.environ.get("GOMP_SPINCOUNT"))

sys.meta_path.insert(0, Finder)
import rose, rose.cli
print("rose reads diffusers:", "diffusers" in sys.modules)

import app.figures
for module in pkgutil.iter_modules(app.figures.__path__):
    importlib.import_module(f"app.figures.{module.name}")
assert "app.figures.weights" in sys.modules
print("figures read streamlit:", "streamlit" in sys.modules)

import torch
from app.jobs import Job

deep = threading.Event()

def work(job):
    matrix = torch.randn(300, 300)
    while True:
        deep.set()
        torch.linalg.eigh(matrix)
        job.check()

Job(work).start()
deep.wait()
print("ends inside torch")
"""


@pytest.fixture(scope="module")
def ended() -> Ended:
    env = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    return subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "line", ["torch finds spins: 1000", "rose reads diffusers: False", "figures read streamlit: False"]
)
def test_a_fresh_process_reads_only_what_it_needs(line: str, ended: Ended) -> None:
    assert line in ended.stdout, ended.stderr


def test_a_program_that_ends_during_work_prints_no_error(ended: Ended) -> None:
    assert ended.stdout.endswith("ends inside torch\n"), ended.stderr
    assert (ended.returncode, ended.stderr) == (0, "")


ROOMS = [
    *("words", "glossary", "jobs", "registry", "figures", "study", "runs", "shared", "session"),
    *("components", "forms", "lab", "lessons", "results", "sections", "views"),
]


def test_rooms_of_the_app_use_only_rooms_below() -> None:
    for file in APP.rglob("*.py"):
        room = file.relative_to(APP).parts[0].removesuffix(".py")
        below = {*ROOMS[: ROOMS.index(room) + 1]} if room in ROOMS else {*ROOMS}
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "app":
                package = str(node.module).split(".")[1:2] or [alias.name for alias in node.names]
                assert below.issuperset(package), f"{file}, line {node.lineno}"


TORCH = "import os, signal; os.kill(os.getpid(), signal.SIGINT); raise SystemExit('it went on')"
SCRIPT = "import sys; from rose.cli import main; sys.exit(main())"  # as installers write it
LIBRARY = "try: import rose; rose.load_model\nexcept KeyboardInterrupt: print('mine')"


@pytest.mark.parametrize(
    ("call", "status", "message"),
    [
        (["-m", "rose", "models"], 130, "rose: cancelled; nothing was written\n"),
        (["{folder}/rose", "models"], 130, "rose: cancelled; nothing was written\n"),
        (["-c", LIBRARY], 0, "mine\n"),
    ],
    ids=["module", "script", "library"],
)
def test_an_interrupted_import_ends_quietly(call: list[str], status: int, message: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(TORCH)
    (tmp_path / "rose").write_text(SCRIPT)
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    command = [sys.executable, *(word.format(folder=tmp_path) for word in call)]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # shells ignore it in the background
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, preexec_fn=heard)
    assert (done.returncode, done.stdout + done.stderr) == (status, message)
