"""Forward passes in float32 against bfloat16: python -m tests.benchmarks.compute --calibration A.txt --evaluate B.txt.

Processor seconds of one forward pass and of a whole run, and perplexities after pruning over several draws, in pairs
on the same tokens. A row of compute.csv is written as soon as it is known; perplexities are always measured in float32.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import torch

import rose
from rose.model.network.precision import Precision, bfloat16_gain
from tests.benchmarks.common import MODEL, Rows, arguments, judged, processor_seconds

FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    options = arguments(
        __doc__,
        output=Path("compute.csv"),
        model=MODEL,
        calibration="packaged",
        evaluate="packaged",
        samples=16,
        length=512,
        windows=24,
        draws=[0, 1, 2],
        method="sparsegpt",
    )
    dense, tokenizer = rose.load_model(options.model)
    windows = judged(options.evaluate, tokenizer, options.windows, options.length)
    rows = Rows(options.output, ["what", "draw", "compute"])
    print(f"one matrix product, bfloat16 against float32: {1 / bfloat16_gain():.3f}")
    for pair in range(3):
        for compute, dtype in FORMATS.items():
            with torch.no_grad(), Precision(rounds=dtype == torch.bfloat16).computing(torch.device("cpu")):
                seconds, _ = processor_seconds(lambda: dense.base_model(input_ids=windows[:2], use_cache=False))
            rows.add(what="forward", draw=pair, compute=compute, seconds=round(seconds, 2))
    rows.add(what="dense", compute="float32", perplexity=rose.perplexity(dense, windows))
    for draw in options.draws:
        tokens = rose.load_tokens(
            options.calibration, tokenizer, samples=options.samples, length=options.length, seed=draw
        )
        for compute in FORMATS:
            model = copy.deepcopy(dense)
            run = partial(rose.prune_model, model, tokens, method=options.method, sparsity=0.7, compute=compute)
            seconds, report = processor_seconds(run)
            rows.add(
                what="pruned",
                draw=draw,
                compute=compute,
                seconds=round(seconds, 1),
                perplexity=rose.perplexity(model, windows),
                mean_relative_error=report.summary["mean_relative_error"],
            )


if __name__ == "__main__":
    main()
