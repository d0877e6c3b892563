"""Batches of 2048 tokens against 4096: python -m tests.benchmarks.batches.

Pairs on the same tokens of the packaged model, in turns: a bare forward pass, the statistics of an analysis, and a run
that prunes. Processor seconds of all threads, and page faults: memory that a pass asks the system for anew.
`--blocks` of 30 decoder blocks that cost the same are pruned; `--skip` leaves out so many of the comparisons.
"""

from __future__ import annotations

import copy
import resource
import statistics
from collections.abc import Callable
from typing import Any

import rose
from rose.model.walk import forward
from tests.benchmarks.common import arguments, forward_passes, packaged_model, processor_seconds

SIZES = (4096, 2048)


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def main() -> None:
    options = arguments(__doc__, samples=16, length=512, pairs=4, blocks=4, skip=0)
    layers = [f"model.layers.{index}.*" for index in range(options.blocks)]
    model, tokens = packaged_model((options.samples, options.length))
    works: dict[str, Callable[[], Any]] = {
        "a bare forward pass": lambda: forward_passes(model, tokens, 1),
        "statistics": lambda: list(rose.visit_blocks(model, tokens, layers=layers)),
        "pruning, target dense": lambda: rose.prune_model(
            copy.deepcopy(model), tokens, method="sparsegpt", sparsity=0.7, layers=layers
        ),
        "pruning, target layer": lambda: rose.prune_model(
            copy.deepcopy(model), tokens, method="sparsegpt", sparsity=0.7, layers=layers, target="layer"
        ),
    }
    for name, work in list(works.items())[options.skip :]:
        ratios, fault_ratios = [], []
        for number in range(options.pairs):
            seconds, missed = {}, {}
            for size in SIZES if number % 2 else SIZES[::-1]:
                forward.BATCH_TOKENS = size
                before = faults()
                seconds[size], _ = processor_seconds(work)
                missed[size] = faults() - before
            ratios.append(seconds[2048] / seconds[4096])
            fault_ratios.append(missed[2048] / max(1, missed[4096]))
            print(name, {size: (round(seconds[size], 2), missed[size]) for size in SIZES}, flush=True)
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(
            f"{name}: 2048 / 4096 = {statistics.median(ratios):.3f} ({spread}), faults "
            f"{statistics.median(fault_ratios):.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
