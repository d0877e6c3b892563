"""Work in a background thread: pages poll its progress and may cancel it, and it ends when nobody watches any more."""

from __future__ import annotations

import atexit
import contextlib
import copy
import ctypes
import gc
import logging
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rose import Cancelled, Progress, RoseError
from rose.errors import is_out_of_memory
from rose.interrupt import stoppable
from rose.model.progress import ProgressCallback
from rose.output import temporary_folder

logger = logging.getLogger(__name__)

# "kept": not started, because its results are there already.
Status = Literal["running", "done", "cancelled", "failed", "kept"]
# Seconds without a page asking. An open page polls every second, but browsers wake hidden tabs only once a minute.
ABANDONED_AFTER = 90.0
TOLD_EVERY = 10.0  # seconds between two lines on work that a terminal follows
POLL = 0.2  # seconds between two looks at whether waiting work may go on
TRUST = 0.1  # share of the work whose pace outweighs the first estimate
PATIENCE = 10.0  # seconds that the program's end waits for work to stop; loading a model is the longest piece

_jobs: weakref.WeakSet[Job] = weakref.WeakSet()
when_any_ends: list[Callable[[], object]] = []  # called when any work has ended
_here = threading.local()  # the job whose thread this is
clock = time.monotonic


class Job:
    """One piece of work, watched by any number of browser sessions.

    A browser that has asked for the work may end it, unless another browser that has asked for it watches too. If
    nobody else watches, anybody may end it. Without watchers it ends.
    """

    def __init__(self, work: Callable[[Job], None]) -> None:
        self.status: Status = "running"
        self.message = "Starting"  # what the work is doing, or what went wrong, as one sentence
        self.progress: Progress | None = None  # the latest
        self.abandoned = False  # cancelled because nobody watched it any more
        self.waited = 0.0  # seconds for other work, see `holding`
        self.then: list[Callable[[], object]] = []  # called once it has ended
        self._work = work
        self._cancelled = threading.Event()
        self._watchers: dict[str, float] = {}
        self._owners: set[str] = set()  # browsers that have asked for the work
        self._lock = threading.Lock()
        self._started = self._told = clock()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Job:
        self.status = "running"
        self._started = self._told = clock()
        _jobs.add(self)
        self._thread.start()
        return self

    def watch(self, viewer: str, *, owns: bool = False) -> None:
        """`viewer` is a session, "browser/session". It has asked for the work if it `owns` it or watches first."""
        with self._lock:
            if owns or not self._owners:
                self._owners.add(_browser(viewer))
            self._watchers[viewer] = clock()

    def is_by(self, viewer: str) -> bool:
        """Whether this browser has asked for the work: it comes back with another session when a page is reloaded."""
        return _browser(viewer) in self._owners

    def may_stop(self, viewer: str) -> bool:
        """Whether a person may end it for all, see above."""
        browser = _browser(viewer)
        with self._lock:
            browsers = {_browser(watcher) for watcher in self._watching()} - {browser}
            return not (browsers & self._owners if browser in self._owners else browsers)

    def leave(self, viewer: str) -> bool:
        """A session does something else: the work stops unless another session watches. Says whether it stops."""
        with self._lock:
            self._watchers.pop(viewer, None)
            if not self._watching():
                self.stop()
        return self.is_cancelled

    @property
    def is_cancelled(self) -> bool:
        """Whether it stops, or has stopped, because somebody cancelled it."""
        return self._cancelled.is_set()

    @property
    def is_over(self) -> bool:
        """Whether it ended early, or will: whoever joined a job that is being cancelled would see it end."""
        return self.is_cancelled or self.status in ("failed", "cancelled")

    def tell(self, progress: Progress) -> None:
        """Progress callback for `rose`; stops the work by raising where it was cancelled or abandoned."""
        self.progress, self._told = progress, clock()
        self.check()

    @property
    def seconds(self) -> float:
        return clock() - self._started

    @property
    def worked(self) -> float:
        """Seconds so far without those that it has waited."""
        return self.seconds - self.waited

    def check(self) -> None:
        """Raises `Cancelled` where nobody wants the work any more."""
        with self._lock:
            alone = not self._watching() and self.seconds > ABANDONED_AFTER
        if self._cancelled.is_set():
            raise Cancelled
        if alone:
            self.abandoned = True
            raise Cancelled

    def stop(self) -> None:
        self._cancelled.set()

    def wait(self, timeout: float) -> None:
        """Blocks until the work has ended, or for `timeout` seconds."""
        self._thread.join(timeout)

    def _watching(self) -> list[str]:
        """The sessions that have asked within the time in which a hidden tab asks."""
        now = clock()
        return [watcher for watcher, seen in self._watchers.items() if now - seen < ABANDONED_AFTER]

    def _run(self) -> None:
        _here.job = self
        try:
            with stoppable(self.check):
                self._work(self)
            return_memory()
            self.status = "done"
        except Cancelled:
            self.status = "cancelled"
        except Exception as problem:  # or the page would wait for ever
            self.message, self.status = _told(problem), "failed"
        callbacks, self.then = self.then, []  # which hold what the work has used
        for callback in [*callbacks, *when_any_ends]:
            callback()


def current() -> Job | None:
    """The job that this thread works for."""
    return getattr(_here, "job", None)


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder, which may lose files meanwhile."""
    size = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            size += file.stat().st_size if file.is_file() else 0
    return size


def _browser(viewer: str) -> str:
    return viewer.partition("/")[0]


def _told(problem: Exception) -> str:
    """The error of the job, for the page; its traceback, which a thread would lose, goes into the log."""
    if isinstance(problem, RoseError):
        return str(problem)
    if isinstance(problem, GivenBack):
        return "The memory was needed for other work meanwhile; run this again."
    if is_out_of_memory(problem):
        return "There was not enough memory; choose fewer samples, fewer layers or a smaller model."
    logger.exception("background work failed")
    return f"Unexpected {type(problem).__name__}: {problem}"


def is_busy() -> bool:
    return any(job.status == "running" for job in list(_jobs))


@atexit.register
def stop_everything() -> None:
    """Cancels all work and waits for its end: a thread inside torch at the program's end brings SIGABRT."""
    jobs = list(_jobs)
    for job in jobs:
        job.stop()
    until = clock() + PATIENCE
    for job in jobs:
        job.wait(max(0.0, until - clock()))


def return_memory() -> None:
    """Gives freed memory back to the system: glibc keeps what a thread has freed for the next one."""
    gc.collect()  # studies and their jobs refer to one another
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def run_to_end(job: Job, describe: Callable[[], str]) -> None:
    """Runs a job without a page, printing its progress. Raises RoseError unless it finishes."""
    job.start()
    while job.status == "running":
        job.watch("terminal")
        job.wait(TOLD_EVERY)
        print(describe(), flush=True)
    if job.status != "done":
        raise RoseError(job.message)


@contextmanager
def waiting(job: Job, reason: str) -> Iterator[Callable[[], None]]:
    """Work waits: each call of the yielded function says why, and raises once the job was cancelled."""
    doing, began = job.message, clock()

    def wait() -> None:
        job.message = reason
        job.check()

    yield wait
    job.message = doing
    job.waited += clock() - began


@contextmanager
def holding(lock: threading.Lock, job: Job) -> Iterator[None]:
    """Holds a lock; while it waits for it, the job can be cancelled."""
    with waiting(job, "Waiting for another run on this model to finish") as wait:
        while not lock.acquire(timeout=POLL):
            wait()
    try:
        yield
    finally:
        lock.release()


class GivenBack(Exception):
    """What was asked of a shared object has been given back meanwhile. A page is drawn again, and finds it anew."""


class Shared:
    """A resource of several pieces of work, such as a model."""

    def __init__(self) -> None:
        self._users: set[Job] = set()

    def use(self) -> None:
        """The work of this thread uses it until the work ends."""
        if (job := current()) is not None and job not in self._users:
            self._users.add(job)
            job.then.append(lambda: self._leave(job))

    def _leave(self, job: Job) -> None:
        self._users.discard(job)
        self.clean_up()

    def clean_up(self) -> None:
        """Called at the end of all work that uses it."""

    @property
    def is_in_use(self) -> bool:
        return bool(self._users)


class Run(Shared):
    """Work in the background and its results; a subclass does it in `_run`, and moves `fraction` from 0 to 1."""

    CANCEL = "Cancel"
    UNIT = ""  # that progress counts, after a space, where the message does not say it
    estimated = 0.0  # seconds of the whole run, by the estimate before its start

    def __init__(self) -> None:
        super().__init__()
        self.fraction = 0.0
        self._folder: Path | None = None  # without one, nothing is lost with it but its numbers
        self._opened = contextlib.ExitStack()
        weakref.finalize(self, self._opened.close)
        self._is_discarded = False
        self._make_job()

    def _make_job(self) -> None:
        self.job = Job(self._run)
        self.job.then.append(self.clean_up)

    def _run(self, job: Job) -> None:
        raise NotImplementedError

    def cancel(self) -> None:
        """What the button does that `CANCEL` names."""
        self.job.stop()

    @property
    def is_in_use(self) -> bool:
        """Whether it goes on, or other work on its results."""
        return self.job.status == "running" or super().is_in_use

    @property
    def bytes_on_disk(self) -> int:
        """Size of its temporary files."""
        return 0 if self._folder is None else size_of(self._folder)

    @property
    def remaining(self) -> float | None:
        """Estimated seconds left; None before the first progress."""
        if (progress := self.job.progress) is not None:
            since = clock() - self.job._told  # a large block takes long; the clock must not stand still
            return None if progress.remaining is None else max(0.0, progress.remaining - since)
        trust = TRUST if self.estimated else 0.0  # or the dense model's slow first window would promise an hour
        share = self.fraction + trust
        return (self.job.worked + trust * self.estimated) * (1 - self.fraction) / share if share > 0.01 else None

    def _say(self, doing: str) -> None:
        """Begins a step, unless nobody wants the work any more."""
        self.job.message, self.job.progress = doing, None  # which was the former step's
        self.job.check()

    def _follow(self, start: float = 0.0, end: float = 1.0) -> ProgressCallback:
        """Progress callback of a step from the fraction `start` to `end`; the time left includes later steps."""

        def tell(progress: Progress) -> None:
            self.fraction, left = start + (end - start) * progress.fraction, progress.remaining
            if left is not None:
                left += (progress.seconds + left) * (1 - end) / (end - start)
            self.job.tell(replace(progress, remaining=left))

        return tell

    def _copy(self, model: Any, lock: threading.Lock) -> Any:
        """A copy of a shared model, which is never changed itself."""
        with holding(lock, self.job):
            return copy.deepcopy(model)

    def _temporary(self) -> Path:
        """A folder, created on first use; it goes with this object, at the latest when the program ends."""
        if self._folder is None:
            self._folder = self._opened.enter_context(temporary_folder(Path(tempfile.gettempdir()), 0o700))
        return self._folder

    def discard(self) -> None:
        """Removes its files, and gives back what it can, now or once it is no longer in use."""
        self._is_discarded = True
        self.clean_up()

    def clean_up(self) -> None:
        if self._is_discarded and not self.is_in_use:
            self._opened.close()
            self._folder = None
            self.free()

    def free(self) -> None:
        """Gives back what can be made again."""


class SerialRun(Run):
    """Pieces of work one after another; `noun` is what a piece makes."""

    def __init__(self, pieces: Sequence[Callable[[], Any]], noun: str = "piece") -> None:
        super().__init__()
        self._pieces, self._nouns = pieces, noun if len(pieces) == 1 else f"{noun}s"

    def _run(self, job: Job) -> None:
        for done, piece in enumerate([lambda: None, *self._pieces]):
            job.check()
            piece()
            self.fraction = done / len(self._pieces)
            job.message = f"{done} of {len(self._pieces)} {self._nouns} done"
