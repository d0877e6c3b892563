"""One prune by one and by several processes: python -m tests.benchmarks.distributed [--processes 1 2].

Each process has one thread. On a machine with fewer free cores than processes only the processor time of each process
says how the work divides. Volume is what each process sends by the formula of docs/large-models.md, which is for target
layer.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence

import torch
from torch import nn

import rose
from rose.layer.statistics import PANEL
from rose.model.estimate import statistics_groups
from rose.model.load.models import load_skeleton
from rose.model.network.layers import prunable_layers
from rose.model.workers import Workers, process_group
from tests.benchmarks.common import MODEL, arguments


def volume(model: nn.Module, processes: int) -> float:
    """Bytes that each process sends for the whole model in float32: sums of Hessians, and pruned weights."""
    layers = prunable_layers(model)
    hessians = sum(4 * columns * (columns + PANEL) / 2 for columns in statistics_groups(layers))
    weights = sum(4 * layer.weight.numel() for layer in layers)
    return 2 * (processes - 1) / processes * hessians + (processes - 1) / processes * weights


def prune(processes: int, options: Sequence[str]) -> tuple[float, list[float]]:
    """Seconds that pruning the packaged model takes, and processor seconds of each process.

    `options`: of this program, as for the command line.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launcher, "-m", "tests.benchmarks.distributed", *options, "--one"]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return json.loads(done.stdout)


def one_of_several(options: argparse.Namespace) -> None:
    """What each process does; the first prints."""
    torch.set_num_threads(1)
    with process_group():
        model, tokenizer = rose.load_model(MODEL)
        tokens = rose.load_tokens("packaged", tokenizer, samples=options.samples, length=options.length)
        workers = Workers.here()
        workers.from_first(lambda: None)  # all begin at once
        start, worked = time.perf_counter(), time.process_time()
        rose.prune_model(model, tokens, method=options.method, target=options.target)
        mine = time.process_time() - worked
        every = workers.exchange(list(range(workers.count)), lambda _number: mine)
        if workers.place == 0:
            print(json.dumps([time.perf_counter() - start, every]))


def main() -> None:
    options = arguments(__doc__, processes=[1, 2], samples=8, length=512, method="rose", target="layer", one=False)
    if options.one:  # this is one of the processes
        return one_of_several(options)
    model, first = load_skeleton(MODEL), None
    for count in options.processes:
        seconds, every = prune(count, sys.argv[1:])
        first = first or max(every)
        sent = f"; each sends {volume(model, count) / 1e9:.2f} GB" if options.target == "layer" else ""
        shown = ", ".join(f"{one:.0f}" for one in every)
        print(f"{count}: {seconds:.0f} s; of each processor {shown} s, {first / max(every):.2f} times the first{sent}")
    return None


if __name__ == "__main__":
    main()
