"""Batches of 2048 tokens against 4096: python -m tests.benchmarks.batches.

Pairs on the same tokens of the packaged model, in turns: a bare forward pass, the statistics of an analysis, and a run
that prunes. Processor seconds of all threads, and page faults: memory that a pass asks the system for anew.
"""

from __future__ import annotations

import argparse
import copy
import resource
import statistics
from collections.abc import Callable
from typing import Any

import rose
from rose.model.walk import forward
from tests.benchmarks.compute import processor_seconds
from tests.benchmarks.timing import forward_passes, packaged_model

SIZES = (4096, 2048)


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.batches", description=__doc__)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=4, help="decoder blocks, of 30 that cost the same")
    parser.add_argument("--skip", type=int, default=0, help="so many of the comparisons")
    options = parser.parse_args()
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
