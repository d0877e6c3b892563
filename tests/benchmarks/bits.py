"""Zeros, fewer bits, or both, on whole models: python -m tests.benchmarks.bits --output FOLDER ...

Perplexity by sparsity, bits, group and draw, and the way: "joint", as `rose prune --bits` does it; "sweep", pruned
first and then rounded by a sweep of its own to the same grid; "rounding", pruned first and then rounded to the nearest.
Runs of a draw come in the order of --runs, each WAY:METHOD:SPARSITY:BITS:GROUP, in which N:M is written N-M and "-"
stands for no bits. A line of FOLDER/bits.csv for each run, as it comes; the same command resumes where the lines end.

Bits a weight: a bit that says whether it is 0 (unless that makes it larger), its code where it is not, and 16 bits for
each scale; unrounded ones have 16 bits.
"""

import copy
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import rose
from rose.layer.grid import Grid, bits_a_weight, choose_scales, parse_grid, round_to
from rose.model.load.tokens import load_calibration
from rose.model.network.layers import PrunableLayer, prunable_layers
from tests.benchmarks.common import WHOLE, Rows, arguments, dense_and_judged

KEY = ["model", "way", "method", "sparsity", "bits", "group", "seed"]
RUNS = [
    *("joint:rose_admm:0.5:-:-", "joint:rose_admm:0.5:4:64", "sweep:rose_admm:0.5:4:64", "rounding:rose_admm:0.5:4:64"),
    *("joint:rose_admm:0:4:64", "joint:rose_admm:2-4:-:-", "joint:rose_admm:2-4:4:64", "joint:rose_admm:0:3:64"),
    *("joint:rose_admm:0.7:-:-", "joint:rose_admm:0.7:4:64", "joint:sparsegpt:0.5:4:64", "joint:sparsegpt:0.5:-:-"),
    *("joint:rose_admm:0.5:3:64", "joint:rose_admm:0.5:8:64", "joint:rose_admm:0.5:4:32", "joint:rose_admm:0.5:4:row"),
]


def mean_bits(layers: list[PrunableLayer], grid: Grid | None) -> float:
    """Bits a weight over all of these layers."""
    sizes = [layer.weight.numel() for layer in layers]
    stored = [bits_a_weight(layer.weight, grid) for layer in layers]
    return sum(bits * size for bits, size in zip(stored, sizes, strict=True)) / sum(sizes)


def made(way: str, dense: nn.Module, pruned: nn.Module, tokens: Any, grid: Grid | None, **options: Any) -> tuple:
    """The model of a run, and its report; `pruned` is that of the same method and sparsity without bits."""
    words: dict[str, Any] = {} if grid is None else {"bits": grid.bits, "group": grid.group}
    if way == "joint":
        model = copy.deepcopy(dense)
        return model, rose.prune_model(model, tokens, **options, **words)
    model = copy.deepcopy(pruned)
    if way == "sweep":
        return model, rose.prune_model(
            model, tokens, method=options["method"], sparsity=0, target="layer", true_sequential=True, **words
        )
    assert grid is not None
    for layer in prunable_layers(model):
        weight = layer.weight.float()
        layer.write(round_to(weight, choose_scales(weight, grid), grid))
    return model, None


def main() -> None:
    options = arguments(
        __doc__,
        **WHOLE,
        samples=16,
        runs=RUNS,
    )
    dense, tokenizer, windows = dense_and_judged(options)
    rows = Rows(options.output / "bits.csv", KEY)
    before = rose.perplexity(dense, windows)
    for seed in options.seeds:
        tokens, _ = load_calibration(
            options.calibration, tokenizer, samples=options.samples, held_out=4, length=options.length, seed=seed
        )
        unrounded: dict[tuple[str, str], nn.Module] = {}
        for run in options.runs:
            way, method, sparsity, bits, group = run.split(":")
            sparsity = sparsity if sparsity.replace(".", "").isdecimal() else sparsity.replace("-", ":")
            key = (Path(options.model).name, way, method, sparsity, bits, group, seed)
            base, began = (method, sparsity), time.perf_counter()
            grid = None if bits == "-" else parse_grid(bits, group)
            chosen = {"method": method, "sparsity": sparsity}
            if key in rows:
                continue
            if way != "joint" and base not in unrounded:
                unrounded[base] = made("joint", dense, dense, tokens, None, **chosen)[0]
            model, report = made(way, dense, unrounded.get(base, dense), tokens, grid, **chosen)
            if grid is None:
                unrounded = {base: model}
            summary = report.summary if report else {}
            rows.add(
                **dict(zip(KEY, key, strict=True)),
                bits_a_weight=mean_bits(prunable_layers(model), grid),
                perplexity=rose.perplexity(model, windows),
                dense_perplexity=before,
                pruning_error=summary.get("mean_pruning_error"),
                rounding_error=summary.get("mean_rounding_error"),
                seconds=time.perf_counter() - began,
                threads=torch.get_num_threads(),
                torch=torch.__version__,
            )
    print(rows.means(["way", "method", "sparsity", "bits", "group"], ["bits_a_weight", "perplexity"]))


if __name__ == "__main__":
    main()
