"""A model larger than half the memory, by streaming, against the formula: python -m tests.benchmarks.large FOLDER.

Writes a random LLaMA of 7B's shapes into FOLDER (13.5 GB, bfloat16) shard by shard, unless it is there, and runs the
two commands that a user would: `rose analyze --stream` on the attention output projections, and `rose prune --stream`
on the first two decoder blocks. Every command is a process of its own, whose anonymous memory is looked at twenty times
a second: what the system cannot take back. What a command takes that prunes one tiny matrix is subtracted, since the
formula does not count the interpreter and its libraries.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rose.model.estimate.memory import estimate_memory
from rose.model.load.models import load_skeleton
from tests.benchmarks.common import arguments
from tests.benchmarks.memory import write_random_llama

SECONDS = 0.05
SAMPLES, HELD_OUT, LENGTH = 2, 1, 128
LIBRARIES = "import rose, torch; rose.prune_layer(torch.randn(64, 64), torch.eye(64))"
ANALYZED, PRUNED = ["*o_proj"], ["model.layers.0.*", "model.layers.1.*"]


def watch(command: Sequence[str]) -> tuple[int, float]:
    """Peak anonymous memory in bytes and seconds of a command, which must succeed."""
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            _, found, rest = status.read_text().partition("RssAnon:")
            peak = max(peak, 1024 * int(rest.split()[0]) if found else 0)
            time.sleep(SECONDS)
        problem = process.stderr.read() if process.stderr else ""
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {problem}")
    return peak, time.perf_counter() - start


def commands(folder: Path, output: Path) -> dict[str, tuple[list[str], list[str], bool]]:
    """What is run: a name -> the command, its layers, whether it prunes towards the dense model."""
    words = [sys.executable, "-m", "rose"]
    model = ["--stream", "--model", str(folder), "--dtype", "bfloat16"]
    tokens = ["--samples", str(SAMPLES), "--length", str(LENGTH), "--held-out", str(HELD_OUT)]

    def prune(target: str) -> list[str]:
        method = ["--method", "rose", "--target", target, "--sparsity", "0.5", "--layers", *PRUNED]
        return [*words, "prune", *model, *tokens, *method, "--output", str(output / target)]

    return {
        "analyze": ([*words, "analyze", *model, *tokens, "--layers", *ANALYZED], ANALYZED, False),
        "prune, target layer": (prune("layer"), PRUNED, False),
        "prune, target dense": (prune("dense"), PRUNED, True),
    }


def main() -> None:
    options = arguments(__doc__, "folder", hidden=4096, inner=11008, blocks=32, heads=32, only="")
    (folder,) = map(Path, options.folder)
    output = folder.with_name(f"{folder.name}-pruned")
    if not (folder / "model.safetensors.index.json").exists():
        folder.mkdir(exist_ok=True)
        write_random_llama(
            folder, options.hidden, options.blocks, torch.bfloat16, inner=options.inner, heads=options.heads
        )
    skeleton = load_skeleton(str(folder))
    libraries, _ = watch([sys.executable, "-c", LIBRARIES])
    weights = sum(parameter.numel() for parameter in skeleton.parameters())
    print(f"{weights / 1e9:.2f} billion parameters, {libraries / 1e6:.0f} MB of libraries")
    sizes: dict[str, Any] = {"samples": SAMPLES + HELD_OUT, "length": LENGTH, "dtype": torch.bfloat16, "held_out": True}
    for name, (command, layers, is_dense) in commands(folder, output).items():
        if options.only not in ("", name):
            continue
        output.mkdir(parents=True)
        peak, seconds = watch(command)
        shutil.rmtree(output)  # as large as the model
        formula = estimate_memory(skeleton, layers=layers, dense_targets=is_dense, **sizes).peak
        measured = peak - libraries
        shown = f"{measured / 1e6:.0f} MB measured, {formula / 1e6:.0f} by the formula: {measured / formula:.3f}"
        print(f"{name}: {seconds:.0f} s, {shown}", flush=True)


if __name__ == "__main__":
    main()
