"""Stopping work from outside: a program by Ctrl+C, a thread by its owner.

Ctrl+C during imports gives one sentence and exit status 130. A signal handler does this, as the package is imported
before any code of `rose.cli` runs. A thread gets no Ctrl+C: progress callbacks may raise, and so may `stop_point`.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

CANCELLED = 130
_check: ContextVar[Callable[[], Any] | None] = ContextVar("check", default=None)  # a value for each thread


@contextmanager
def stoppable(check: Callable[[], Any]) -> Iterator[None]:
    """Work of this thread in the body calls `check` regularly, which may raise to stop it."""
    before = _check.set(check)
    try:
        yield
    finally:
        _check.reset(before)


def is_stoppable() -> bool:
    return _check.get() is not None


def stop_point() -> None:
    """Calls the `check` of `stoppable`, which may raise."""
    check = _check.get()
    if check is not None:
        check()


def stop_point_here() -> Callable[[], Any]:
    """The `stop_point` of this thread, for threads that work for it."""
    return _check.get() or (lambda: None)


def guard() -> None:
    """Installs the handler if `rose` or `python -m rose` is starting; a library leaves signals alone."""
    by_module = sys.argv[:1] == ["-m"] and ("-m", "rose") in pairwise(sys.orig_argv)
    is_program = by_module or Path((sys.argv or [""])[0]).stem == "rose"
    is_free = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_program and is_free and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _leave)


def unguard() -> None:
    """Removes the handler, once KeyboardInterrupt is caught."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    os.write(2, b"rose: cancelled; nothing was written\n")
    os._exit(CANCELLED)  # an exception could be taken for a module that is missing
