"""Ctrl+C while the program imports what it needs, for seconds: one sentence and exit status 130, no traceback.

A handler and not an `except`: the package is imported before any code of `rose.__main__` or `rose.cli` runs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from itertools import pairwise
from pathlib import Path
from types import FrameType

CANCELLED = 130


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
