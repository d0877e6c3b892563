"""What somebody has given: checks of kinds that several parts need."""

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


def check_word(name: object, what: str) -> None:
    """Raises RoseError unless `what`, such as "A method", can be named so on a command line."""
    if not isinstance(name, str) or not name.isidentifier():
        raise RoseError(f"{what} cannot be named {name!r}; take one word of letters, digits and underscores.")


def check_choice(what: str, value: object, known: Collection[str]) -> None:
    """Raises RoseError unless the value is among those known; `what`, such as "The budget", begins the sentence."""
    if value not in known:
        raise RoseError(f"{what} must be one of {', '.join(known)}, not {value!r}.")


def check_named(what: str, name: object, known: Collection[str]) -> None:
    """Raises RoseError unless there is one of this name; `what` is what is named, such as "order"."""
    if name not in known:
        raise RoseError(f"There is no {what} named {name!r}; choose one of {', '.join(known)}.")


def check_keywords(given: Iterable[str], known: Iterable[str]) -> None:
    """Raises RoseError for a keyword that a function does not take."""
    for name in set(given).difference(known):
        raise RoseError(f"There is no option {name!r} here; there are {', '.join(sorted(known))}.")
