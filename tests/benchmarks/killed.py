"""The packaged model's prune, killed at random moments: python -m tests.benchmarks.killed [--kills N].

Each attempt is the same command in a process of its own, which SIGKILL ends after a random time, until enough have
been; the last one comes to its end. Its weights are compared with those of a run that nobody disturbed. The tests do
this on a tiny model, at random lines of code.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.benchmarks.common import arguments


def command(samples: int, length: int, output: Path, *more: str | Path) -> list[str | Path]:
    sizes = ("--samples", str(samples), "--length", str(length))
    return [sys.executable, "-m", "rose", "prune", *sizes, "--sparsity", "0.5", "--output", output, *more]


def changed(folder: Path) -> int:
    """When something was last written into the folder, in nanoseconds; 0 before there is one."""
    return folder.stat().st_mtime_ns if folder.exists() else 0


def lifetime(attempt: Sequence[str | Path], kept: Path, seconds: float | None) -> float:
    """Runs the command, and kills it so many seconds after it first wrote a checkpoint; returns how long it lived."""
    start, before = time.perf_counter(), changed(kept)
    process = subprocess.Popen(attempt, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while seconds is not None and changed(kept) == before and process.poll() is None:
            time.sleep(0.05)  # it still loads the model
        status = process.wait(seconds)
        assert status == 0, f"a run ended with status {status}"
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return time.perf_counter() - start


def digest(output: Path) -> str:
    return hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest()


def main() -> None:
    options = arguments(__doc__, samples=4, length=256, kills=8, seed=0)
    draw, attempts = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory(prefix="killed-") as name:
        folder = Path(name)
        start = partial(command, options.samples, options.length)
        whole = lifetime(start(folder / "undisturbed"), folder, None)
        while not (folder / "killed").exists():
            # Short lives, or chance would let an early attempt come to its end.
            limit = draw.uniform(0, whole / options.kills) if attempts < options.kills else None
            lived = lifetime(start(folder / "killed", "--checkpoint", folder / "kept"), folder / "kept", limit)
            attempts += 1
            kept = len(list((folder / "kept").glob("block-*.safetensors")))
            print(f"attempt {attempts} ended after {lived:.1f} s, {kept} decoder blocks kept", flush=True)
        same = digest(folder / "undisturbed") == digest(folder / "killed")
    print(f"Undisturbed: {whole:.1f} s. Weights bit-identical after {attempts - 1} kills: {same}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
