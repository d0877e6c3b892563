"""What all sessions share: what stays in memory, who may end what, and what becomes of what is let go."""

import gc
import threading
import weakref
from unittest.mock import Mock

import pytest
import torch

from app import shared
from app.jobs import GivenBack, Run
from app.registry import held
from app.runs.pruning import PruneRequest, PruningRun
from app.study.setup import Setup
from app.study.study import LoadedModel, Study
from rose import InputStatistics
from rose.model.walk.walk import BlockStatistics
from tests.app.tiny_study import COLUMNAR, ended, measured_study

MEGABYTE = 2**20


def study_of(seed: int, status: str = "done", size: int = MEGABYTE) -> Study:
    """A study that holds this many bytes of remembered results."""
    study = Study(Setup(seed=seed), Mock(side_effect=AssertionError), shared.Calibration())
    study.job.status = status  # type: ignore[assignment]
    study.remember("results", lambda: torch.zeros(size, dtype=torch.uint8))
    return study


def pruning(*, size: int = 0, **more: Run) -> PruningRun:
    run = PruningRun(Setup(), PruneRequest(("rose",), ("0.5",)), Mock())
    run.job.status = "done"
    vars(run).update(more)
    if size:
        (run._temporary() / "weights").write_bytes(bytes(size))
    return run


def test_least_recently_used_gives_back_first(empty_registry):
    empty_registry.budget = 3.5 * MEGABYTE
    studies = [study_of(0), study_of(1, "running"), study_of(2)]
    for study in studies:
        empty_registry.put(Study, study.setup, study)
    empty_registry.get(Study, studies[0].setup)  # used since
    latest = empty_registry.put(Study, Setup(seed=3), study_of(3))
    kept = {study.setup.seed: study.knows("results") for study in empty_registry.all(Study).values()}
    assert kept == {0: True, 1: True, 2: False, 3: True}  # 1 is running; all have their numbers
    assert latest.job.status == "done"
    assert studies[2].job.status == "kept"  # as if its numbers had come from disk
    assert empty_registry.total() < empty_registry.budget


def test_runs_and_their_files_are_dropped_in_turn(empty_registry):
    empty_registry.budget = 3.5 * MEGABYTE
    at_work = Run()
    runs = [pruning(size=MEGABYTE), pruning(size=MEGABYTE, tuning=at_work), pruning(size=MEGABYTE)]
    folders = [run._folder for run in runs]
    for run in runs:
        shared.keep_pruning(run)
    last = pruning(size=MEGABYTE)
    shared.keep_pruning(last)
    assert list(shared.prunings().values()) == [runs[1], runs[2], last]
    assert [folder.exists() for folder in folders] == [False, True, True]
    shared.registry.remove(PruningRun, next(iter(shared.prunings())))
    assert folders[1].exists(), "a tuning that goes on has its files"


def test_bytes_that_entries_share_count_once():
    statistics, other = InputStatistics(1000), [InputStatistics(500) for _ in range(2)]
    studies = [study_of(seed, size=0) for seed in range(2)]
    for study, held_out in zip(studies, other, strict=True):
        study.calibration.blocks = [BlockStatistics(0, [], {"q": statistics, "k": statistics}, {"q": held_out})]
    arrays = 4 * 1000**2 + 2 * 4 * 500**2
    assert arrays < held(studies) < arrays + 200_000
    model = torch.nn.Linear(1000, 100)
    loaded = LoadedModel(model, None, threading.Lock())
    studies[0].loaded = studies[1].loaded = loaded
    assert 0 <= held([*studies, loaded]) - arrays - 4 * 100_100 < 200_000


def test_calibration_is_freed_with_its_studies():
    study = shared._new(Setup(seed=96))
    assert shared._new(Setup(seed=96, sparsity="0.3")).calibration is study.calibration
    gone = weakref.ref(study.calibration)
    del study
    gc.collect()
    assert gone() is None


def test_memory_is_freed_when_idle(monkeypatch):
    now, given_back, busy = 0.0, [], range(2900, 3301)
    monkeypatch.setattr(shared, "_asked", [now])
    monkeypatch.setattr(shared, "is_busy", lambda: now in busy)
    monkeypatch.setattr(shared, "let_go", lambda: given_back.append(now))

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds
        if now in (1200.0, 2400.0):
            shared._asked[0] = now

    shared.let_go_when_idle(600.0, clock=lambda: now, wait=wait, goes_on=lambda: now < 6000)
    # Once after each visit, and after the end of what ran.
    assert given_back == [630.0, 1830.0, 3330.0]


@pytest.mark.parametrize("status", ["done", "failed"])
def test_given_back_studies_have_their_numbers(empty_registry, status):
    study = measured_study(samples=5, layers="*.o_proj")
    study.job.status = status
    drawn, model, inputs = shared.seen(), weakref.ref(study.loaded), weakref.ref(study.statistics(COLUMNAR))
    records = study.measurements.records
    study._load = Mock()
    shared.let_go()
    assert shared.seen() > drawn  # pages that hold it are drawn anew
    assert (study.loaded, study.calibration.blocks, study.has(COLUMNAR)) == (None, [], False)
    assert study.measurements.records == records
    with pytest.raises(GivenBack):
        study.weight(COLUMNAR)
    gc.collect()
    assert (inputs(), model()) == (None, None)


def test_given_back_study_collects_its_inputs_again(empty_registry):
    study = measured_study(samples=6, layers="*.o_proj")
    records, loaded, drawn = study.measurements.records, study.loaded, study.calibration
    shared.let_go()
    study._load, study.calibration = lambda: loaded, drawn
    shared.start(study.setup, "ann/1")
    assert shared.find(study.setup) is study
    ended(study)
    assert study.has(COLUMNAR)
    assert study.measurements.records == records  # none is measured again


def test_work_waits_for_memory_that_other_work_uses(empty_registry):
    """A third model is read once a run that uses one of two ends."""
    empty_registry.budget = 2.5 * MEGABYTE
    reading, going = threading.Event(), threading.Event()

    def loaded(name: str) -> LoadedModel:
        empty_registry.wait_for_room(MEGABYTE)
        model = LoadedModel(torch.nn.Linear(2**18 - 1, 1), None, threading.Lock())
        model.use()
        return empty_registry.put(LoadedModel, name, model)

    class Using(Run):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def _run(self, job) -> None:
            loaded(self.name)
            reading.set()
            assert going.wait(240)

    runs = [empty_registry.join(Using, name, lambda _, name=name: Using(name), "ann/1") for name in "ab"]
    assert reading.wait(240)
    while len(empty_registry.all(LoadedModel)) < 2:
        runs[1].job.wait(0.01)
    third = empty_registry.join(Using, "c", lambda _: Using("c"), "bob/1")
    while third.job.message != "Waiting for memory that other runs use":
        third.job.wait(0.01)
    assert set(empty_registry.all(LoadedModel)) == {"a", "b"}
    going.set()
    assert ended(third).job.message == "Starting"
    assert "c" in empty_registry.all(LoadedModel)
    assert empty_registry.total() <= empty_registry.budget
