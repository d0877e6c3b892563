"""Paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path


def expand(name: str | Path) -> Path:
    """The path with ~ or ~user replaced; a ~ of nobody stays, so that it ends in "there is no such file"."""
    return Path(os.path.expanduser(name))
