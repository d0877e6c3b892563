"""State that all sessions share: which studies stay in memory."""

import gc
import weakref
from unittest.mock import Mock

from app import shared
from app.jobs import Run, Status
from app.runs.pruning import PruneRequest, PruningRun
from app.study.setup import Setup
from app.study.study import Calibration, Study, held_by
from rose import InputStatistics
from rose.model.walk.walk import BlockStatistics
from tests.app.tiny_study import COLUMNAR, measured_study


def unfinished(model: str, seed: int, status: str = "done") -> Study:
    study = Study(Setup(model=model, seed=seed), Mock(side_effect=AssertionError), Calibration())
    study.job.status = status  # type: ignore[assignment]
    return study


def kept(*studies: Study) -> list[Study]:
    by_setup = {study.setup: study for study in studies}
    shared._forget(by_setup)
    return list(by_setup.values())


def test_oldest_studies_are_dropped_unless_they_run():
    studies = [unfinished("a", seed) for seed in range(6)]
    assert kept(*studies) == studies[-shared.KEPT_STUDIES :]
    a, b, c = (unfinished(model, 0) for model in "abc")
    assert kept(a, b, c) == [b, c]  # no more than two models are held
    running = unfinished("b", 0, "running")
    assert kept(running, *studies)[0] is running


def test_older_studies_share_a_budget_of_bytes(monkeypatch):
    statistics = InputStatistics(1000)
    large, shared_inputs = [unfinished("a", seed) for seed in range(3)], {"q": statistics, "k": statistics}
    for study in large:
        study.calibration.blocks = [BlockStatistics(0, [], shared_inputs, {"q": InputStatistics(500)})]
    assert held_by(large) == 4 * 1000**2 + 3 * 4 * 500**2
    monkeypatch.setattr(shared, "OLDER_BYTES", 5 * 10**6)
    assert kept(*large) == large[-2:]


def test_calibration_is_freed_with_its_studies():
    study = shared._new(Setup(seed=96))
    assert shared._new(Setup(seed=96, sparsity="0.3")).calibration is study.calibration
    gone = weakref.ref(study.calibration)
    del study
    gc.collect()
    assert gone() is None


def test_busy_runs_are_not_dropped_and_runs_without_files_go_first(monkeypatch):
    runs: dict[str, PruningRun] = {}
    monkeypatch.setattr(shared, "prunings", lambda: runs)

    def begin(status: Status = "done", **more: Run) -> PruningRun:
        run = PruningRun(Setup(), PruneRequest(("rose",), ("0.5",)), Mock())
        run.job.status = status
        vars(run).update(more)
        return run

    ended, at_work = Run(), Run()
    ended.job.status = "done"
    stay = [begin("running"), begin(tuning=at_work), begin(file=at_work), begin()]
    folder = stay[-1]._temporary()
    others = [begin(tuning=ended, file=ended) for _ in range(shared.KEPT_RUNS)]
    for run in [*stay, *others]:
        shared.keep_pruning(run)
    assert list(runs.values()) == [*stay, *others[-(shared.KEPT_RUNS - len(stay)) :]]
    assert folder.exists()


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


def test_studies_on_disk_are_released(monkeypatch):
    stored, unstored, failed = (measured_study(samples=samples, layers="*.o_proj") for samples in (4, 5, 6))
    failed.job.status = "failed"
    by_setup = {each.setup: each for each in (stored, unstored, failed)}
    monkeypatch.setattr(shared, "studies", lambda: by_setup)
    monkeypatch.setattr(shared.disk, "recall", lambda setup, files: object() if setup == stored.setup else None)
    drawn = shared.seen()
    shared.let_go()
    assert list(by_setup) == [unstored.setup]
    assert shared.seen() > drawn  # pages that hold the others are drawn anew
    for gone in (stored, failed):  # and meanwhile hold only their numbers
        assert (gone.loaded, gone.calibration.blocks, gone.has(COLUMNAR)) == (None, [], False)
        assert gone.measurements.records
    assert unstored.has(COLUMNAR)
