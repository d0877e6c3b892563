"""Paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path

from rose.errors import RoseError


def expand(name: str | Path) -> Path:
    """The path with ~ or ~user replaced; the ~ of an unknown user stays, so that opening it fails."""
    return Path(os.path.expanduser(name))


def reachable(name: str | Path) -> Path:
    """The expanded path of what may be there or not.

    Raises:
        RoseError: the system cannot tell: a name that no file can have, or a folder that is closed to this user.
    """
    path = expand(name)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as problem:
        why = getattr(problem, "strerror", None) or problem
        raise RoseError(f"{str(name)[:200]} cannot be looked up ({why}); check the path.") from problem
    return path
