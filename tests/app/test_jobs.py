"""Background jobs: how they end, who may cancel them, and when abandoned jobs end."""

import gc
import threading
from unittest.mock import Mock

import pytest

import rose
from app import jobs
from app.jobs import Job, Run, SerialRun, holding
from rose.output import PARTIAL

SOON = 240.0  # seconds; an upper bound, not a delay
WAITS = "Waiting for another run on this model to finish"


def endless(job: Job) -> None:
    """Work that only a cancel ends."""
    while not threading.Event().wait(0.002):
        job.check()


def started(*viewers: str) -> Job:
    job = Job(endless)
    for viewer in viewers:
        job.watch(viewer)
    return job.start()


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (rose.RoseError("Choose another model."), "Choose another model."),
        (MemoryError(), "There was not enough memory; choose fewer samples"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "There was not enough memory"),
        (KeyError("lost"), "Unexpected KeyError: 'lost'"),
    ],
)
def test_failures_have_a_message(problem, message):
    job = Job(Mock(side_effect=problem)).start()
    job.wait(SOON)
    assert job.status == "failed"
    assert job.message.startswith(message)


def test_progress_is_kept_and_raises_after_a_cancel():
    progress, job = rose.Progress("calibrate", 0, 1, None, None, 0, 7, 0.5, 1.0, 1.0), Job(endless)
    job.watch("ann")
    job.tell(progress)
    assert job.progress is progress
    job.leave("ann")
    with pytest.raises(rose.Cancelled):
        job.tell(progress)


def test_time_left_includes_later_steps():
    """Half of a step from 0.2 to 0.8 took 30 s: 30 s are left of it, and 20 s of the later steps."""
    run = Run()
    run._follow(0.2, 0.8)(rose.Progress("calibrate", 0, 1, None, None, 3, 6, 0.5, 30.0, 30.0))
    assert (run.fraction, run.remaining) == (pytest.approx(0.5), pytest.approx(50.0, abs=5))  # less the time since
    run._say("Writing")
    assert (run.job.message, run.job.progress) == ("Writing", None)
    run.fraction, run.job._started, run.estimated = 0.01, run.job._started - 7.0, 116.0  # 1 % took 7 s of 116 s
    assert run.remaining == pytest.approx(166.0, abs=10)  # its pace alone would say 11 min


def test_work_goes_on_for_another_viewer():
    job = started("ann/1", "bob/1")
    assert not job.leave("ann/1")
    job.check()  # as the work itself does
    assert job.status == "running"
    assert job.leave("bob/1")
    job.wait(SOON)
    assert job.status == "cancelled"


def test_only_who_asked_for_it_ends_watched_work(monkeypatch):
    now = 0.0
    monkeypatch.setattr(jobs, "clock", lambda: now)
    job = Job(endless)
    for viewer in ("ann/1", "bob/1"):
        job.watch(viewer)
    assert (job.may_stop("ann/1"), job.may_stop("ann/2"), job.may_stop("bob/1")) == (True, True, False)
    assert (job.is_by("ann/2"), job.is_by("bob/1")) == (True, False)
    now = jobs.ABANDONED_AFTER - 1  # a hidden tab asks once a minute
    job.watch("bob/2")
    assert not job.may_stop("bob/2")
    assert not job.leave("eve/1")
    job.watch("eve/1", owns=True)  # pressed the button too
    assert (job.may_stop("ann/1"), job.may_stop("eve/1")) == (False, False)
    now = 2 * jobs.ABANDONED_AFTER
    assert job.may_stop("zoe/1")


def test_abandoned_work_ends(monkeypatch):
    job = started("ann")
    monkeypatch.setattr(jobs, "ABANDONED_AFTER", 0.0)
    job.wait(SOON)
    assert (job.status, job.abandoned) == ("cancelled", True)


@pytest.mark.parametrize(("is_left", "ends"), [(False, ("done", "Starting")), (True, ("cancelled", WAITS))])
def test_waiting_for_a_lock_is_shown_and_can_be_cancelled(is_left, ends):
    lock, told = threading.Lock(), threading.Event()

    def work(job: Job) -> None:
        with holding(lock, job):
            assert lock.locked()

    class Telling(Job):
        def check(self) -> None:
            told.set()
            super().check()

    job = Telling(work)
    job.watch("ann")
    with lock:
        job.start()
        assert told.wait(SOON)
        assert job.message == WAITS
        if is_left:
            job.leave("ann")
            job.wait(SOON)
    job.wait(SOON)
    assert (job.status, job.message) == ends
    assert is_left or job.waited > 0
    assert not lock.locked()


def test_batch_stops_between_two_pieces():
    made: list[int] = []
    batch = SerialRun([lambda: batch.job.stop(), lambda: made.append(2)])
    batch.job.watch("test")
    batch.job.start().wait(SOON)
    assert (batch.job.status, batch.job.message, made) == ("cancelled", "1 of 2 pieces done", [])


def test_temporary_folders_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"{PARTIAL}dead" / "checkpoint").mkdir(parents=True)
    (tmp_path / f"{PARTIAL}dead.lock").touch()
    first, second = Run(), Run()
    first.job.status = "done"
    folders = [first._temporary(), second._temporary()]
    assert sorted(path for path in tmp_path.iterdir() if path.is_dir()) == sorted(folders)
    assert folders[0].stat().st_mode & 0o777 == 0o700
    ending = threading.Thread(target=first.discard)  # another one than has made it
    ending.start()
    ending.join()
    del second
    gc.collect()
    assert not list(tmp_path.iterdir())
    assert first._temporary().exists()  # what still ends writes into a folder that goes too


def test_files_stay_while_work_writes_them():
    """A run that is dropped goes on to its end, and its files go with it."""
    going, folders = threading.Event(), []

    class Writing(Run):
        def _run(self, job: Job) -> None:
            folders.append(self._temporary())
            assert going.wait(SOON)
            (self._temporary() / "weights").touch()

    run, reader = Writing(), Job(lambda _job: (run.use(), going.wait(SOON)))
    run.job.watch("ann")
    reader.watch("ann")
    run.job.start()
    run.discard()
    going.set()
    run.job.wait(SOON)
    assert run.job.status == "done", run.job.message
    assert [folder.exists() for folder in folders] == [False]
    going.clear()
    reader.start()
    while not run.is_in_use:
        reader.wait(0.01)
    going.set()
    reader.wait(SOON)
    assert not run.is_in_use
