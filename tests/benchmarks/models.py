"""How methods rank in whole models of several families: python -m tests.benchmarks.models --output FOLDER

    --models smollm2-135m qwen.gguf gpt2 opt gpt_neox --calibration TEXT --evaluate TEXT

Perplexity at 70 % with both targets, over calibration draws. `gpt2`, `opt` and `gpt_neox` are small ones, trained here
for some minutes on the bytes of the calibration text's first part; any other name is as for `rose prune --model`.
`--samples` windows of 512 tokens and `--dtype` are for models with a tokenizer, and so is the text to `--evaluate`.
A line of FOLDER/rows.csv for each run, as it comes; the same command resumes where the lines end.
"""

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import rose
from rose.model.load.tokens import load_calibration
from tests.benchmarks.common import MODEL, Rows, arguments, judged
from tests.benchmarks.orders import SMALL, byte_windows, bytes_of, train

METHODS = ("sparsegpt", "rose", "rose_global", "rose_dealt", "rose_admm", "alps")
TARGETS = ("layer", "dense")
BYTE_WINDOWS = 64


@dataclass(frozen=True)
class Subject:
    """A model, its windows to judge by, and how its calibration tokens are drawn by seed."""

    model: nn.Module
    test: Tensor
    draw: Callable[[int], Tensor]


def small(family: str, options: argparse.Namespace) -> Subject:
    training, calibration, evaluation = bytes_of(options.calibration)
    test = byte_windows(evaluation, BYTE_WINDOWS, seed=0)
    return Subject(
        train(SMALL[family](), training), test, lambda seed: byte_windows(calibration, BYTE_WINDOWS, seed + 1)
    )


def pretrained(name: str, options: argparse.Namespace) -> Subject:
    model, tokenizer = rose.load_model(name, dtype=options.dtype)
    sizes: dict[str, Any] = {"samples": options.samples, "held_out": 4, "length": 512}  # 4: as in the other tables
    draw = partial(load_calibration, options.calibration, tokenizer, **sizes)
    return Subject(model, judged(options.evaluate, tokenizer), lambda seed: draw(seed=seed)[0])


def main() -> None:
    options = arguments(
        __doc__,
        output=Path,
        models=[MODEL, *SMALL],
        methods=list(METHODS),
        calibration="packaged",
        evaluate="packaged",
        samples=16,
        dtype="bfloat16",
        sparsity="0.7",
        seeds=[0, 1, 2],
    )
    rows = Rows(options.output / "rows.csv", ["model", "target", "method", "seed"])
    for name in options.models:
        every = product(TARGETS, options.methods, options.seeds)
        wanted = [one for one in every if (name, *one) not in rows]
        if not wanted:
            continue
        subject = (small if name in SMALL else pretrained)(name, options)
        base = rose.perplexity(subject.model, subject.test)
        for target, method, seed in wanted:
            model = copy.deepcopy(subject.model)
            rose.prune_model(model, subject.draw(seed), method=method, sparsity=options.sparsity, target=target)
            found = rose.perplexity(model, subject.test)
            rows.add(model=name, target=target, method=method, seed=seed, dense=base, perplexity=found)
    groups = rows.table().groupby(["model", "dense", "target", "method"], sort=False)["perplexity"]
    table = groups.agg(["mean", "min", "max"])
    cells = table["mean"].map("{:.4g}".format) + " ± " + ((table["max"] - table["min"]) / 2).map("{:.2g}".format)
    print(cells.unstack().to_string())


if __name__ == "__main__":
    main()
