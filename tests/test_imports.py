"""What a fresh process reads, what it leaves for later, and how it ends: one for all tests, as it takes seconds."""

import os
import subprocess
import sys

import pytest

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
