"""Errors that a person can act on: one sentence that says what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unicodedata import category

LONGEST, LONGEST_WORD = 1000, 300  # characters of a message, and of a word in it, which may come from a file


class RoseError(ValueError):
    """Bad input, or work that cannot be done. The message is one line for the user."""

    def __init__(self, message: str = "") -> None:
        super().__init__(_one_line(message))


class Cancelled(Exception):
    """Raised by a progress callback to stop a run; the run cleans up and lets it pass."""


def _one_line(message: str) -> str:
    """Escapes line breaks and other control characters, and shortens what is too long to read."""
    words = " ".join(word if len(word) <= LONGEST_WORD else f"{word[:LONGEST_WORD]}…" for word in message.split(" "))
    line = words if len(words) <= LONGEST else f"{words[:LONGEST]}…"
    if line.isprintable():
        return line
    return "".join(
        letter if letter.isprintable() or category(letter) == "Zs" else letter.encode("unicode_escape").decode()
        for letter in line
    )


EXHAUSTED = ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory", "_ALLOC_FAILED")


@contextmanager
def failing(what: str) -> Iterator[None]:
    """Says in a RoseError that the code of somebody else, such as "The plugin x.py", failed in this body, and how."""
    try:
        yield
    except (RoseError, Cancelled):
        raise
    except Exception as problem:
        if is_out_of_memory(problem):
            raise
        raise RoseError(f"{what} failed: {type(problem).__name__}: {problem}.") from problem


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether memory has run out, of the machine or of its GPU.

    torch raises RuntimeError, files OSError; only Python and NumPy have a type for it.
    """
    return isinstance(problem, MemoryError) or any(sign in str(problem) for sign in EXHAUSTED)
