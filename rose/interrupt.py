"""How work is stopped from outside: a program by Ctrl+C, work in a thread by whoever runs it.

Ctrl+C while the program imports what it needs, for seconds, gives one sentence and exit status 130, no traceback; by a
handler and not an `except`, as the package is imported before any code of `rose.__main__` or `rose.cli` runs.

A thread gets no Ctrl+C. Progress callbacks may raise to stop it; `stop_point` stands where steps are long and there is
no progress to tell.
"""

from __future__ import annotations

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
    """While this lasts, work of this thread calls `check` now and then, which may raise to stop it."""
    before = _check.set(check)
    try:
        yield
    finally:
        _check.reset(before)


def is_stoppable() -> bool:
    return _check.get() is not None


def stop_point() -> None:
    """A place where work can be stopped; raises what the `check` of `stoppable` raises."""
    check = _check.get()
    if check is not None:
        check()


def stop_point_here() -> Callable[[], Any]:
    """What `stop_point` does in this thread, for other threads that work for it."""
    return _check.get() or (lambda: None)


def guard() -> None:
    """Begins where `rose` or `python -m rose` is starting; a library leaves signals to those who import it."""
    by_module = sys.argv[:1] == ["-m"] and ("-m", "rose") in pairwise(sys.orig_argv)
    is_program = by_module or Path((sys.argv or [""])[0]).stem == "rose"
    is_free = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_program and is_free and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _leave)


def unguard() -> None:
    """Ends where KeyboardInterrupt is caught."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    os.write(2, b"rose: cancelled; nothing was written\n")
    os._exit(CANCELLED)  # an exception could be taken for a module that is missing
