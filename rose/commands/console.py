"""Standard output and error of the command line; needs no torch."""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console


class Output(Console):
    """Standard output, or error, without markup. Where its reader has gone, as in `rose models | head`, the rest is not
    shown, and the command goes on to its own exit status."""

    def __init__(self, **more: Any) -> None:
        super().__init__(markup=False, emoji=False, **more)  # or N:M: would be a picture

    def on_broken_pipe(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
