"""The packaged model's prune, killed at random moments: python -m tests.benchmarks.killed [--kills N].

Each attempt is the same command in a process of its own, which SIGKILL ends after a random time, until enough have
been; the last one comes to its end. Its weights are compared with those of a run that nobody disturbed. The tests do
this on a tiny model, at random lines of code.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks.timing import Row

SAMPLES, LENGTH, KILLS, SEED = 4, 256, 8, 0


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


def kill_and_go_on(
    samples: int = SAMPLES, length: int = LENGTH, kills: int = KILLS, seed: int = SEED
) -> tuple[float, list[tuple[float, bool, int]], bool]:
    """Prunes undisturbed, and again with kills.

    Returns:
        Seconds undisturbed; of each attempt the seconds it lived, whether it came to its end, and the decoder blocks
        kept after it; and whether the weights are the same to the bit.
    """
    draw = random.Random(seed)
    attempts: list[tuple[float, bool, int]] = []
    with tempfile.TemporaryDirectory(prefix="killed-") as name:
        folder = Path(name)
        whole = lifetime(command(samples, length, folder / "undisturbed"), folder, None)
        attempt = command(samples, length, folder / "killed", "--checkpoint", folder / "kept")
        finished = False
        while not finished:
            # Short lives, or chance would let an early attempt come to its end.
            limit = draw.uniform(0, whole / kills) if len(attempts) < kills else None
            lived = lifetime(attempt, folder / "kept", limit)
            finished = (folder / "killed").exists()
            attempts.append((lived, finished, len(list((folder / "kept").glob("block-*.safetensors")))))
        same = digest(folder / "undisturbed") == digest(folder / "killed")
    return whole, attempts, same


def rows() -> list[Row]:
    whole, attempts, same = kill_and_go_on()
    weights = "bit-identical" if same else "NOT the same"
    name = f"killed {len(attempts) - 1} times, weights {weights}"
    lived = sum(seconds for seconds, _, _ in attempts)
    return [("a run undisturbed", whole, "", 1.0), (name, lived, "undisturbed", lived / whole)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.killed", description=__doc__)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    whole, attempts, same = kill_and_go_on(options.samples, options.length, options.kills, options.seed)
    table = Table("attempt", "ended after, s", "how", "decoder blocks kept")
    for number, (lived, finished, kept) in enumerate(attempts, start=1):
        table.add_row(str(number), f"{lived:.1f}", "done" if finished else "killed", str(kept))
    console = Console()
    console.print(table)
    told = f"Undisturbed: {whole:.1f} s. Weights bit-identical after {len(attempts) - 1} kills: {same}"
    console.print(told, highlight=False)
    sys.exit(not same)


if __name__ == "__main__":
    main()
