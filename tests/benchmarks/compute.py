"""Forward passes in float32 against bfloat16: python -m tests.benchmarks.compute --calibration A.txt --evaluate B.txt.

Processor seconds of one forward pass and of a whole run, and perplexities after pruning over several draws, in pairs
on the same tokens. A row is written as soon as it is known; perplexities are always measured in float32.
"""

from __future__ import annotations

import argparse
import csv
from functools import partial
from pathlib import Path
from typing import Any

import torch

import rose
from rose.model.network.precision import Precision, bfloat16_gain
from tests.benchmarks.timing import processor_seconds

FORMATS = (torch.float32, torch.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.compute", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--calibration", default="packaged")
    parser.add_argument("--evaluate", default="packaged")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--method", default="sparsegpt")
    parser.add_argument("--output", type=Path, default=Path("compute.csv"))
    options = parser.parse_args()
    model, tokenizer = rose.load_model(options.model)
    windows = rose.load_tokens(options.evaluate, tokenizer, samples=options.windows, length=options.length, seed=None)
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def note(*row: Any) -> None:
        print(*row, flush=True)
        with options.output.open("a") as file:
            csv.writer(file).writerow(row)

    if not options.output.exists():
        note("what", "draw", "compute", "seconds", "perplexity", "mean_relative_error")
    note("one matrix product, bfloat16 against float32", "", "", round(1 / bfloat16_gain(), 3))
    body = model.base_model
    for pair in range(3):
        for dtype in FORMATS:
            with torch.no_grad(), Precision(rounds=dtype == torch.bfloat16).computing(torch.device("cpu")):
                seconds, _ = processor_seconds(lambda: body(input_ids=windows[:2], use_cache=False))
            note("forward", pair, str(dtype), round(seconds, 2))
    note("dense", "", "float32", "", rose.perplexity(model, windows))
    for draw in options.draws:
        tokens = rose.load_tokens(
            options.calibration, tokenizer, samples=options.samples, length=options.length, seed=draw
        )
        for compute in ("float32", "bfloat16"):
            run = partial(rose.prune_model, model, tokens, method=options.method, sparsity=0.7, compute=compute)
            seconds, report = processor_seconds(run)
            after = rose.perplexity(model, windows)
            note("pruned", draw, compute, round(seconds, 1), after, report.summary["mean_relative_error"])
            model.load_state_dict(dense)


if __name__ == "__main__":
    main()
