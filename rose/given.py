"""Checks of arguments that several parts need."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from numbers import Integral, Real

from rose.errors import RoseError


def is_whole(value: object) -> bool:
    """Whether this is a whole number, NumPy's too; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether this is a real number, NumPy's too; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_word(name: object, subject: str) -> None:
    """Raises RoseError unless `what`, such as "A method", can be named so on a command line."""
    if not isinstance(name, str) or not name.isidentifier():
        raise RoseError(f"{subject} cannot be named {name!r}; take one word of letters, digits and underscores.")


def check_choice(subject: str, value: object, choices: Collection[str]) -> None:
    """Raises RoseError unless the value is among those known; `what`, such as "The budget", begins the sentence."""
    if value not in choices:
        raise RoseError(f"{subject} must be one of {', '.join(choices)}, not {value!r}.")


def check_named(noun: str, name: object, names: Collection[str]) -> None:
    """Raises RoseError unless there is one of this name; `what` is what is named, such as "order"."""
    if name not in names:
        raise RoseError(f"There is no {noun} named {name!r}; choose one of {', '.join(names)}.")


def check_keywords(keywords: Iterable[str], allowed: Iterable[str]) -> None:
    """Raises RoseError for a keyword that a function does not take."""
    for name in set(keywords).difference(allowed):
        raise RoseError(f"There is no option {name!r} here; there are {', '.join(sorted(allowed))}.")
