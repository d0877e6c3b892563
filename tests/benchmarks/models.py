"""How methods rank in whole models of several families: python -m tests.benchmarks.models --output FOLDER

    --models smollm2-135m qwen.gguf gpt2 opt gpt_neox --calibration TEXT --evaluate TEXT

Perplexity at 70 % with both targets, over calibration draws. `gpt2`, `opt` and `gpt_neox` are small ones, trained here
for some minutes on the bytes of the calibration text's first part; any other name is as for `rose prune --model`.
A line of FOLDER/rows.csv for each run, as it comes; the same command resumes where the lines end.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import rose
from rose.model.load.tokens import load_calibration
from tests.benchmarks.orders import SMALL, byte_windows, bytes_of, train
from tests.benchmarks.resuming import resume

METHODS = ("sparsegpt", "rose", "rose_global", "rose_dealt", "rose_admm", "alps")
TARGETS = ("layer", "dense")
WINDOWS, LENGTH, BYTE_WINDOWS = 24, 512, 64
KEY = ["model", "target", "method", "seed"]


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
    test = rose.load_tokens(options.evaluate, tokenizer, samples=WINDOWS, length=LENGTH, seed=None, split="test")
    sizes: dict[str, Any] = {"samples": options.samples, "held_out": 4, "length": LENGTH}  # 4: as in the other tables
    return Subject(model, test, lambda seed: load_calibration(options.calibration, tokenizer, seed=seed, **sizes)[0])


def runs(options: argparse.Namespace, known: set[Any]) -> Iterator[dict[str, Any]]:
    for name in options.models:
        wanted = [(target, method, seed) for target in TARGETS for method in options.methods for seed in options.seeds]
        every = product(TARGETS, options.methods, options.seeds)
        wanted = [one for one in every if (name, *one) not in known]
        if not wanted:
            continue
        subject = (small if name in SMALL else pretrained)(name, options)
        model = subject.model
        dense = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        base = rose.perplexity(model, subject.test)
        for target, method, seed in wanted:
            rose.prune_model(model, subject.draw(seed), method=method, sparsity=options.sparsity, target=target)
            row = {"model": name, "target": target, "method": method, "seed": seed, "dense": base}
            yield row | {"perplexity": rose.perplexity(model, subject.test)}
            model.load_state_dict(dense)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", *SMALL])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--calibration", default="packaged", metavar="TEXT")
    parser.add_argument("--evaluate", default="packaged", metavar="TEXT", help="of models with a tokenizer")
    parser.add_argument("--samples", type=int, default=16, help="of 512 tokens, of models with a tokenizer")
    parser.add_argument("--dtype", default="bfloat16", help="of models with a tokenizer")
    parser.add_argument("--sparsity", default="0.7")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    summary(resume(options.output, KEY, partial(runs, options)))


def summary(rows: pd.DataFrame) -> None:
    """Means over draws ± half their range."""
    methods = list(dict.fromkeys(rows["method"]))
    shown = Table("model", "dense", "target", *methods)
    for (model, target), part in rows.groupby(["model", "target"], sort=False):
        found = part.groupby("method")["perplexity"].agg(["mean", "min", "max"])
        cells = {name: f"{mean:.4g} ± {(most - least) / 2:.2g}" for name, mean, least, most in found.itertuples()}
        shown.add_row(model, f"{part['dense'].iloc[0]:.4g}", target, *(cells.get(name, "") for name in methods))
    Console(width=160).print(shown)


if __name__ == "__main__":
    main()
