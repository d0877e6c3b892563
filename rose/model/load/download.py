"""Downloads from the Hub that can be stopped: huggingface_hub tells a progress bar of every piece that has come.

What it had of a file is then removed, by huggingface_hub; files that were whole stay, and the next download goes on
with the others.
"""

from __future__ import annotations

from typing import Any

from huggingface_hub.utils import tqdm
from huggingface_hub.utils._xet import abort_xet_session  # what the library itself does at Ctrl+C

from rose.interrupt import stop_point_here


def stoppable_bars() -> type[tqdm]:
    """A class of progress bars, for `tqdm_class`, that draw nothing; a step of one is a `stop_point` of this thread,
    whichever thread downloads."""
    check = stop_point_here()

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | {"disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            try:
                check()
            except Exception:
                abort_xet_session()  # its own threads fetch, and no exception would reach them
                raise
            return super().update(n)

    return Bar
