"""What a user's own model takes: python -m tests.benchmarks.own_model --output docs/results/own-model.csv

Writes a random LLaMA of 1B's and of 7B's shapes in bfloat16, of some decoder blocks only, runs the commands of
docs/tutorial.md on it with `--stream`, and writes processor seconds and the peak of memory that is not pages of files.
Every decoder block takes the same, so that of the whole model is `seconds` / `blocks` times its number of blocks.
"""

import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

from rose.environment import processor
from tests.benchmarks.common import Rows, arguments
from tests.benchmarks.shapes import write_random_llama

SHAPES = {"1B": (2048, 22, 4), "7B": (4096, 32, 1)}  # hidden size, decoder blocks, how many of them are run
TEXT = "--samples 8 --length 512 --held-out 4"
COMMANDS = {
    "analyze": f"analyze --layers *o_proj {TEXT}",
    "prune, sparsegpt": f"prune --method sparsegpt --sparsity 0.5 {TEXT}",
    "prune": f"prune --sparsity 0.5 {TEXT}",
}


def watch(command: list[str]) -> tuple[float, int]:
    """Runs a command; returns its processor seconds and the peak of its anonymous memory in bytes."""
    seconds, peak = 0.0, 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        running = psutil.Process(process.pid)
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                memory, used = running.memory_info(), running.cpu_times()
                seconds, peak = max(seconds, used.user + used.system), max(peak, memory.rss - memory.shared)
            time.sleep(0.05)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}.")
    return seconds, peak


def main() -> None:
    options = arguments(__doc__, output=str)
    rows = Rows(Path(options.output), ["shapes", "command"])
    machine = {"threads": torch.get_num_threads(), "processor": processor(), "torch": torch.__version__}
    for shapes, (hidden, every, blocks) in SHAPES.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_random_llama(folder, hidden, blocks, torch.bfloat16)
            for what, words in COMMANDS.items():
                if (shapes, what) in rows:
                    continue
                command = [sys.executable, "-m", "rose", *words.split(), "--stream", "--dtype", "bfloat16"]
                seconds, peak = watch([*command, "--model", name, "--output", str(folder / what)])
                rows.add(
                    shapes=shapes,
                    command=what,
                    blocks=blocks,
                    of_blocks=every,
                    seconds=round(seconds, 1),
                    peak_memory=peak,
                    **machine,
                )


if __name__ == "__main__":
    main()
