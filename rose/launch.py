"""Whether a launcher such as torchrun has started several processes for one run; needs no torch."""

from __future__ import annotations

import os


def is_launched() -> bool:
    """Whether a launcher such as torchrun started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def launched_place() -> tuple[int, int]:
    """Which of how many processes the launcher says this is; (0, 1) without one."""
    return (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if is_launched() else (0, 1)
