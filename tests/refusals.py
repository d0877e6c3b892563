"""Bad input is refused in one sentence on one line, and cancelled work says so."""

from collections.abc import Callable
from typing import Any

import pytest

import rose


def refused(message: str, work: Callable[..., Any], /, *arguments: Any, **options: Any) -> str:
    """Checks that this work raises an error that matches the regular expression; returns the error's text."""
    with pytest.raises(rose.RoseError, match=message) as caught:
        work(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def cancelled(work: Callable[..., Any], /, *arguments: Any, **options: Any) -> None:
    with pytest.raises(rose.Cancelled):
        work(*arguments, **options)
