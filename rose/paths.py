"""Paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path


def expand(name: str | Path) -> Path:
    """The path with ~ or ~user replaced; the ~ of an unknown user stays, so that opening it fails."""
    return Path(os.path.expanduser(name))
