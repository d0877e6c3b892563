"""What a fresh process reads, what it leaves for later, and how it ends: one for all tests, as it takes seconds."""

import ast
import os
import subprocess
import sys
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
    known = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    return subprocess.run([sys.executable, "-c", CODE], env=known, capture_output=True, text=True, check=False)


def test_threads_without_work_wait_briefly(ended: Ended) -> None:
    assert "torch finds spins: 1000" in ended.stdout, ended.stderr


def test_rose_does_not_read_diffusers(ended: Ended) -> None:
    assert "rose reads diffusers: False" in ended.stdout, ended.stderr


def test_figures_do_not_read_streamlit(ended: Ended) -> None:
    assert "figures read streamlit: False" in ended.stdout, ended.stderr


def test_a_program_that_ends_during_work_ends_in_peace(ended: Ended) -> None:
    assert ended.stdout.endswith("ends inside torch\n"), ended.stderr
    assert (ended.returncode, ended.stderr) == (0, "")


ROOMS = [
    *("words", "jobs", "figures", "study", "runs", "shared", "session"),
    *("components", "forms", "lab", "lessons", "results", "sidebar", "first", "views"),
]


def test_rooms_of_the_app_use_only_rooms_below() -> None:
    for file in APP.rglob("*.py"):
        room = file.relative_to(APP).parts[0].removesuffix(".py")
        below = {*ROOMS[: ROOMS.index(room) + 1]} if room in ROOMS else {*ROOMS}
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "app":
                package = str(node.module).split(".")[1:2] or [alias.name for alias in node.names]
                assert below.issuperset(package), f"{file}, line {node.lineno}"
