"""Kills pruning runs at random moments until there were enough, and says how those that went on ended.

    python -m tests.model.killed_runs prune|slim FOLDER KILLS SEED

A process of its own, because it forks: each run is a child that starts from the dense model, and dies by SIGKILL on the
n-th line of code of `rose` that it executes, which makes the moments random and the test repeatable.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import rose
from rose.files import digest
from tests.model.families import make_model, make_tokens

PACKAGE = str(Path(rose.__file__).parent)
OPTIONS: dict[str, Any] = {"sparsity": 0.5, "block_size": 16, "allocation": "owl"}


def prune(checkpoint: Path | None) -> str:
    """Prunes the dense model, and returns the digest of what became of it and of the report."""
    model = make_model("gemma3")
    report = rose.prune_model(model, make_tokens(), held_out=make_tokens(2, seed=3), checkpoint=checkpoint, **OPTIONS)
    return digest(model.state_dict(), {"report": report.layers.drop(columns="seconds").to_csv()})


def slim(checkpoint: Path | None) -> str:
    """The same for a model that gets smaller."""
    model = make_model("gemma3")
    report = rose.prune_structured(
        model,
        make_tokens(),
        ratio=0.3,
        multiple=4,
        target="dense",
        held_out=make_tokens(2, seed=3),
        checkpoint=checkpoint,
    )
    return digest(model.state_dict(), {"report": report.layers.drop(columns="seconds").to_csv()})


WORK: dict[str, Callable[[Path | None], str]] = {"prune": prune, "slim": slim}


class Lines:
    """Counts the lines that are executed in some files, and kills the process on one of them."""

    def __init__(self, files: tuple[str, ...], fatal: int | None = None) -> None:
        self.files, self.seen, self.fatal = files, 0, fatal
        sys.settrace(self.trace)

    def trace(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(self.files):
            return None
        if event == "line":
            self.seen += 1
            if self.seen == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.trace


def run(work: str, checkpoint: Path, result: Path, files: tuple[str, ...], fatal: int) -> bool:
    """One run in a child. Returns whether it came to its end."""
    child = os.fork()
    if child == 0:
        Lines(files, fatal)
        result.write_text(WORK[work](checkpoint))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    assert status == 0, f"a run ended with status {status}"
    return True


def main(work: str, folder: Path, kills: int, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    expected = WORK[work](None)
    # Half of the kills hit the few lines that write files.
    stores = ("files", "model/walk/hidden_states", "model/run/checkpoint")
    scopes = [(PACKAGE,), tuple(f"{PACKAGE}/{store}.py" for store in stores)]
    lines, ended = [], []
    for number, files in enumerate(scopes):
        counter = Lines(files)
        ended.append(WORK[work](folder / f"undisturbed-{number}"))
        sys.settrace(None)
        lines.append(counter.seen)
    draw = random.Random(seed)
    killed = 0
    while killed < kills:
        checkpoint, result = folder / f"run-{len(ended)}", folder / f"result-{len(ended)}"
        while not run(work, checkpoint, result, scopes[killed % 2], draw.randrange(1, lines[killed % 2])):
            killed += 1
        ended.append(result.read_text())
    return {"killed": killed, "expected": expected, "ended": ended}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
