"""What all sessions share: which studies are kept."""

import gc
import threading
import weakref
from unittest.mock import Mock

from streamlit.runtime.scriptrunner_utils import script_run_context

from app import shared
from app.jobs import Run, Status
from app.runs.pruning import PruneRequest, PruningRun
from app.study.cache import Files
from app.study.setup import Setup
from app.study.study import Calibration, LoadedModel, Study, held_by
from rose import InputStatistics
from rose.model.walk.walk import BlockStatistics
from tests.app.results.made_reports import made_report
from tests.app.tiny_study import COLUMNAR, measured_study


def unfinished(model: str, seed: int, status: str = "done") -> Study:
    def load() -> LoadedModel:
        raise AssertionError("never started")

    study = Study(Setup(model=model, seed=seed), load, Calibration())
    study.job.status = status  # type: ignore[assignment]
    return study


def kept(*studies: Study) -> list[Study]:
    by_setup = {study.setup: study for study in studies}
    shared._forget(by_setup)
    return list(by_setup.values())


def test_oldest_studies_are_dropped():
    studies = [unfinished("a", seed) for seed in range(6)]
    assert kept(*studies) == studies[-shared.KEPT_STUDIES :]


def test_no_more_than_two_models_are_held():
    a, b, c = (unfinished(model, 0) for model in "abc")
    assert kept(a, b, c) == [b, c]


def test_older_studies_share_a_budget_of_bytes(monkeypatch):
    one = InputStatistics(1000)
    large = [unfinished("a", seed) for seed in range(3)]
    for study in large:
        study.calibration.blocks = [BlockStatistics(0, [], {"q": one, "k": one}, {"q": InputStatistics(500)})]
    assert held_by(large) == 4 * 1000**2 + 3 * 4 * 500**2
    monkeypatch.setattr(shared, "OLDER_BYTES", 5 * 10**6)
    assert kept(*large) == large[-2:]


def test_calibration_is_freed_with_its_studies():
    key, files = ("a model",), Files("identity", "text")
    calibration = shared._calibration(key, files)
    assert shared._calibration(key, files) is calibration
    gone = weakref.ref(calibration)
    del calibration
    gc.collect()
    assert gone() is None


def test_running_study_is_never_dropped():
    running = unfinished("a", 0, "running")
    others = [unfinished("b", seed) for seed in range(5)]
    assert kept(running, *others)[0] is running


def test_busy_runs_are_not_dropped(monkeypatch):
    known: dict[str, PruningRun] = {}
    monkeypatch.setattr(shared, "prunings", lambda: known)

    def begin(status: Status = "done", **more: Run) -> PruningRun:
        run = PruningRun(Setup(), PruneRequest(("rose",), ("0.5",)), Mock())
        run.job.status = status
        vars(run).update(more)
        shared.keep_pruning(run)
        return run

    ended, at_work = Run(), Run()
    ended.job.status = "done"
    kept = [begin("running"), begin(tuning=at_work), begin(file=at_work)]
    others = [begin(tuning=ended, file=ended) for _ in range(shared.KEPT_RUNS)]
    assert list(known.values()) == [*kept, *others[-(shared.KEPT_RUNS - len(kept)) :]]


def test_runs_without_files_are_dropped_first(monkeypatch):
    known: dict[str, PruningRun] = {}
    monkeypatch.setattr(shared, "prunings", lambda: known)
    for number in range(shared.KEPT_RUNS + 3):
        run = PruningRun(Setup(), PruneRequest(("rose",), ("0.5",)), Mock())
        run.job.status = "done"
        if number == 0:
            first, kept = run, run._temporary()
        shared.keep_pruning(run)
    assert next(iter(known.values())) is first
    assert len(known) == shared.KEPT_RUNS
    assert kept.exists()


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
    kept, unkept, failed = (measured_study(samples=samples) for samples in (4, 5, 6))
    failed.job.status = "failed"
    known = {one.setup: one for one in (kept, unkept, failed)}
    monkeypatch.setattr(shared, "studies", lambda: known)
    monkeypatch.setattr(shared.disk, "recall", lambda setup, files: object() if setup == kept.setup else None)
    drawn = shared.seen()
    shared.let_go()
    assert list(known) == [unkept.setup]
    assert shared.seen() > drawn  # pages that hold the others are drawn anew
    for gone in (kept, failed):  # and meanwhile hold only their numbers
        assert (gone.loaded, gone.calibration.blocks, gone.has(COLUMNAR)) == (None, [], False)
        assert gone.all_records()
    assert unkept.has(COLUMNAR)


def test_report_is_published_from_a_thread(monkeypatch):
    before, said = list(shared.reports()), []
    monkeypatch.setattr(script_run_context._LOGGER, "warning", lambda *text: said.append(text))
    shared.reports.clear()  # the first call would show a spinner
    thread = threading.Thread(target=shared.publish, args=(made_report(),))
    thread.start()
    thread.join()
    assert len(shared.reports()) == 1
    assert not said
    shared.reports.clear()
    shared.reports().extend(before)
