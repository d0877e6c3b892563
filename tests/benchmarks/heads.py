"""Layers by heads a block holds, and what an order changes: the mask's part of each error, and the sequence's.

    python -m tests.benchmarks.heads --output docs/results/heads.csv --text valid.txt --judge test.txt
    python -m tests.benchmarks.heads --output docs/results/splits.csv ... --layers "*[02468].*_proj" --heads 2 --split

A row for each model, draw, layer, block size, sparsity and sweep ("order/budget", or a method's name), with errors on
calibration and on held-out inputs of the dense model. ROSE is two-level/block where `is_columnar`, else natural/block.
`overlap` is the share of removed weights that natural/layer removes too. A run that was stopped goes on.
"""

import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rose
from rose.layer.error import relative_error
from rose.layer.loss import variance_between
from rose.layer.registry import METHODS
from rose.layer.split import split_error
from rose.model.load.tokens import load_tokens
from rose.model.network.network import Network
from tests.benchmarks.common import MODEL, Rows, arguments

SWEEPS = ["natural/block", "two_level/block", "natural/layer", "global/layer"]
SPLIT = [*SWEEPS, "random:0/block", "dealt/block", "two_level/layer", "random:0/layer", "pivot/layer", "rose_admm"]
KEY = ("model", "seed", "layer", "block_size", "sparsity", "sweep")


def main() -> None:
    options = arguments(
        __doc__, output=Path, text=str, judge=str, model=MODEL, seeds=[0, 1, 2], samples=12, held_out=8, length=512,
        layers=["*.o_proj"], heads=[0.5, 1.0, 1.5, 2.0, 4.0], sparsity=["0.7", "0.5"], split=False, threads=1,
        every=1,
    )  # fmt: skip
    torch.set_num_threads(options.threads)
    rows, sweeps = Rows(options.output, KEY), SPLIT if options.split else SWEEPS
    model, tokenizer = rose.load_model(options.model)
    width, name = Network(model).head_width or 64, Path(options.model).stem
    judge = load_tokens(options.judge, tokenizer, samples=options.held_out, length=options.length, seed=0)
    for seed in options.seeds:
        tokens = load_tokens(options.text, tokenizer, samples=options.samples, length=options.length, seed=seed)
        layers = [
            layer.name for layer in Network(model).select(options.layers) if layer.block_index % options.every == 0
        ]
        cases = list(itertools.product(options.heads, options.sparsity))
        todo = [
            layer for layer in layers
            if not all((name, seed, layer, int(h * width), s, w) in rows for h, s in cases for w in sweeps)
        ]  # fmt: skip
        if not todo:
            continue
        for block in rose.visit_blocks(model, tokens, layers=todo, held_out=judge):
            for layer in block.layers:
                inputs, others = block.calibration[layer.name], block.held_out[layer.name]
                start = {"model": name, "seed": seed, "layer": layer.name}
                every = []
                for heads, sparsity in cases:
                    case = start | {"block_size": int(heads * width), "sparsity": sparsity}
                    every += measure(layer.weight, inputs, others, case, sweeps, layer.head_width, options.split)
                rows.add(*every)
    print(rows.means(["model", "block_size", "sparsity", "sweep"], ["error", "held_out_error", "is_columnar"]))


def measure(
    weight: Tensor, inputs: rose.InputStatistics, others: rose.InputStatistics, case: dict, sweeps: list[str],
    width: int | None, split: bool,
) -> list[dict]:  # fmt: skip
    rows, reference = [], None
    for sweep in sweeps:
        order, _, budget = sweep.partition("/")
        how: dict[str, Any] = (
            {"method": sweep} if sweep in METHODS else {"method": "sparsegpt", "order": order, "budget": budget}
        )
        result = rose.prune_layer(
            weight, inputs, sparsity=case["sparsity"], block_size=case["block_size"], **how
        )  # fmt: skip
        plan = result.plan
        low, high = plan.interval or (None, None)
        row = case | {
            "sweep": sweep,
            "relative_range": plan.relative_range,
            "range_low": low,
            "range_high": high,
            "is_columnar": int(plan.is_columnar),
            "between_heads": variance_between(plan.column_loss, width) if width else None,
            "error": result.relative_error,
            "held_out_error": relative_error(weight, result.weight, others.hessian),
        }
        if split:
            parts = split_error(weight, inputs, result, held_out=others)
            reference = result.mask if sweep == "natural/layer" else reference
            row |= {"mask_error": parts.mask, "held_out_refit": parts.held_out_refit}
            row["overlap"] = None if reference is None else float((result.mask & reference).sum() / result.mask.sum())
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
