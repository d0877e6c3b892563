"""Errors that a person can act on, one sentence that says what is wrong and what to do; and checks of arguments."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from unicodedata import category

LONGEST, LONGEST_WORD = 1000, 300  # characters of a message, and of a word in it, which may come from a file


class RoseError(ValueError):
    """Bad input, or work that cannot be done. The message is one line for the user."""

    def __init__(self, message: str = "") -> None:
        """Escapes line breaks and other control characters, and shortens what is too long to read."""
        words = (word if len(word) <= LONGEST_WORD else f"{word[:LONGEST_WORD]}…" for word in message.split(" "))
        line = " ".join(words)
        line = line if len(line) <= LONGEST else f"{line[:LONGEST]}…"
        super().__init__(
            "".join(
                letter if letter.isprintable() or category(letter) == "Zs" else letter.encode("unicode_escape").decode()
                for letter in line
            )
        )


class Cancelled(Exception):
    """Raised by a progress callback to stop a run; the run cleans up and lets it pass."""


EXHAUSTED = ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory", "_ALLOC_FAILED")


@contextmanager
def failing(subject: str) -> Iterator[None]:
    """Says in a RoseError that the code of somebody else, such as "The plugin x.py", failed in this body, and how."""
    try:
        yield
    except (RoseError, Cancelled):
        raise
    except Exception as problem:
        if is_out_of_memory(problem):
            raise
        raise RoseError(f"{subject} failed: {type(problem).__name__}: {problem}.") from problem


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether memory has run out, of the machine or of its GPU.

    torch raises RuntimeError, files OSError; only Python and NumPy have a type for it.
    """
    return isinstance(problem, MemoryError) or any(sign in str(problem) for sign in EXHAUSTED)


def is_whole(value: object) -> bool:
    """Whether this is a whole number, NumPy's too; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether this is a real number, NumPy's too; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_word(name: object, subject: str) -> None:
    """Raises RoseError unless `subject`, such as "A method", can have this name on a command line."""
    if not isinstance(name, str) or not name.isidentifier():
        raise RoseError(f"{subject} cannot be named {name!r}; take one word of letters, digits and underscores.")


def check_choice(subject: str, value: object, choices: Collection[str]) -> None:
    """Raises RoseError unless the value is in `choices`; `subject`, such as "The budget", begins the sentence."""
    if value not in choices:
        raise RoseError(f"{subject} must be one of {', '.join(choices)}, not {value!r}.")


def check_named(noun: str, name: object, names: Collection[str]) -> None:
    """Raises RoseError unless the name is in `names`; `noun` is the kind of name, such as "order"."""
    if name not in names:
        raise RoseError(f"There is no {noun} named {name!r}; choose one of {', '.join(names)}.")


def check_keywords(keywords: Iterable[str], allowed: Iterable[str]) -> None:
    """Raises RoseError for a keyword that a function does not take."""
    for name in set(keywords).difference(allowed):
        raise RoseError(f"There is no option {name!r} here; there are {', '.join(sorted(allowed))}.")
