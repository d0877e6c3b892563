"""What `rose check` takes: python -m tests.benchmarks.check_times --output check-times.csv

The packaged model beside a copy by `rose prune`, from the weights alone and on tokens with all methods that a check
tries; and two checkpoints of LLaMA's 7B shapes with `--stream`, from the weights alone. Those are made up as sparse
files, which hold zeros and take no room on a disk; zeros spare the search for grids and the like, and real weights take
about a third longer. Memory is the peak of what the process cannot give back to the system, above what it held before.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rose import cli
from tests.benchmarks.common import MODEL, Rows, arguments, processor_seconds
from tests.benchmarks.memory import PeakMemory
from tests.benchmarks.shapes import write_zeros_of_7b


def main() -> None:
    options = arguments(__doc__, output=Path("check-times.csv"), blocks=32, sparsity="0.5")
    rows = Rows(options.output, ["what"])
    calibration = ["--calibration", "packaged", "--samples", "8", "--length", "512"]
    with tempfile.TemporaryDirectory() as name:
        large, pruned = [Path(name) / one for one in ("dense", "sparse")], Path(name) / "pruned"
        pair, pairs = [MODEL, str(pruned)], [*map(str, large), "--stream", "--dtype", "bfloat16"]
        checks = {f"7B shapes, {options.blocks} decoder blocks": pairs, "packaged": pair}
        checks["packaged, 8 × 512 tokens"] = [*pair, *calibration]
        for what, command in checks.items():
            if (what,) in rows:
                continue
            if command is pairs:
                for folder in large:
                    folder.mkdir()
                    write_zeros_of_7b(folder, options.blocks)
            elif not pruned.exists():
                cli.main(["prune", *calibration, "--sparsity", options.sparsity, "--output", str(pruned)])
            rows.add(what=what, **timed_check(command))


def timed_check(command: Sequence[str]) -> dict[str, Any]:
    with PeakMemory() as memory:
        spent, status = processor_seconds(lambda: cli.main(["check", *command]))
    gigabytes = round((memory.peak - memory.before) / 1e9, 2)
    made = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    return {"processor_seconds": round(spent, 1), "gigabytes": gigabytes, "status": status, **made}


if __name__ == "__main__":
    main()
