"""A measured study of a tiny model, for the pages that show one."""

import math
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock
from weakref import WeakSet

import pytest
from streamlit.components.v2 import manifest_scanner
from streamlit.testing.v1 import AppTest

import rose
from app import shared
from app.components import work
from app.jobs import Job
from app.registry import Registry
from app.study.setup import Setup
from app.study.study import LoadedModel, Study
from tests.app.tiny_study import measured_study, numbers_text, place
from tests.tiny import save_tiny_llama


@pytest.fixture(scope="session", autouse=True)
def components_sought_once() -> Iterator[None]:
    """For every page Streamlit reads the metadata of all installed packages, in a sixth of a second."""
    scan = cache(manifest_scanner.scan_component_manifests)
    with mock.patch.object(manifest_scanner, "scan_component_manifests", scan):
        yield


@pytest.fixture(scope="session", autouse=True)
def pages_show_no_exception() -> Iterator[None]:
    run = AppTest._run

    def checked(app: AppTest, *arguments: Any, **options: Any) -> AppTest:
        run(app, *arguments, **options)
        assert not app.exception, app.exception
        return app

    with mock.patch.object(AppTest, "_run", checked):
        yield


@pytest.fixture(autouse=True)
def jobs_end() -> Iterator[None]:
    """A test's jobs end with it: one that still loads a model would change torch's default dtype for the next test."""
    started: WeakSet[Job] = WeakSet()  # of finished work nothing may stay
    start = Job.start

    def remembered(job: Job) -> Job:
        started.add(job)
        return start(job)

    with mock.patch.object(Job, "start", remembered):
        yield
    for job in list(started):
        job.stop()
        job.wait(60)


@pytest.fixture(scope="module")
def study() -> Study:
    return measured_study()


@pytest.fixture
def placed(study: Study) -> None:
    """The study where the app looks for it, whatever a test before has started in its place."""
    place(study)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on disk; a module's own, so that no run of another one is of the same model."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text to calibrate on."""
    return numbers_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def setup(folder: Path) -> Setup:
    return Setup(model=str(folder), samples=4, length=32, held_out=2, block_size=16)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return LoadedModel(*rose.load_model(str(folder)), threading.Lock())


@pytest.fixture(scope="module")
def pruned_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without half of its weights, with its report."""
    model, tokenizer = rose.load_model(str(folder))
    tokens = rose.load_tokens("packaged", tokenizer, samples=4, length=32)
    report = rose.prune_model(model, tokens, method="magnitude", sparsity=0.5, block_size=16)
    place, losses = tmp_path_factory.mktemp("pruned") / "by_hand", {"losses_before": [], "losses_after": []}
    report = report.with_summary(perplexity_before=20.0, perplexity_after=24.0, windows=2, **losses)
    rose.save_model(model, tokenizer, place, report=report)
    return place


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page waits for its sweeps: on a busy machine it would show their progress instead."""
    monkeypatch.setattr(work, "PATIENCE", 50.0)


@pytest.fixture
def empty_registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """As on a server that has just started."""
    registry = Registry(math.inf)
    monkeypatch.setattr(shared, "registry", registry)
    return registry
