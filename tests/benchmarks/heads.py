"""Layers by heads a block holds, and what an order changes: the mask's part of each error, and the sequence's.

    python -m tests.benchmarks.heads --output docs/results/heads.csv --text valid.txt --judge test.txt
    python -m tests.benchmarks.heads --output docs/results/splits.csv ... --layers "*[02468].*_proj" --heads 2 --split
    python -m tests.benchmarks.heads --output docs/results/heads-whole.csv ... --sparsity 0.7 --whole

A row for each model, draw, layer, block size, sparsity and sweep ("order/budget", or a method's name), with errors on
calibration and on held-out inputs of the dense model. ROSE is two-level/block where `is_columnar`, else natural/block.
`overlap` is the share of removed weights that natural/layer removes too. A run that was stopped goes on.

--whole prunes whole models with target layer, and judges them by perplexity: with blocks of so many heads in all layers
(`where` all), or in output projections alone, beside blocks of 128 columns elsewhere.
"""

import copy
import itertools
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import rose
from rose.layer.error import relative_error
from rose.layer.loss import variance_between
from rose.layer.pattern import BLOCK_SIZE
from rose.layer.registry import METHODS
from rose.layer.split import split_error
from rose.model.load.tokens import load_tokens
from rose.model.measure.comparison import parse_variant, write_losses
from rose.model.measure.perplexity import perplexity_of, window_losses
from rose.model.network.network import Network
from rose.model.run import prune
from tests.benchmarks.common import MODEL, Rows, arguments

SWEEPS = ["natural/block", "two_level/block", "natural/layer", "global/layer"]
SPLIT = [*SWEEPS, "random:0/block", "dealt/block", "two_level/layer", "random:0/layer", "pivot/layer", "rose_admm"]
KEY = ("model", "seed", "layer", "block_size", "sparsity", "sweep")
WHOLE = ["sparsegpt", "rose", "sparsegpt@two_level", "rose_global"]
WHOLE_KEY = ("model", "seed", "sparsity", "where", "heads", "method")


def main() -> None:
    options = arguments(
        __doc__, output=Path, text=str, judge=str, model=MODEL, seeds=[0, 1, 2], samples=12, held_out=8, length=512,
        layers=["*.o_proj"], heads=[0.5, 1.0, 1.5, 2.0, 4.0], sparsity=["0.7", "0.5"], split=False, threads=1,
        every=1, whole=False, windows=32, methods=WHOLE,
    )  # fmt: skip
    torch.set_num_threads(options.threads)
    if options.whole:
        whole(options)
        return
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


def whole(options: Any) -> None:
    rows = Rows(options.output, WHOLE_KEY)
    dense, tokenizer = rose.load_model(options.model, dtype="bfloat16")
    width, name = Network(dense).head_width or 64, Path(options.model).stem
    windows = load_tokens(options.judge, tokenizer, samples=options.windows, length=options.length, seed=0)
    places = [("all", heads) for heads in options.heads]
    places += [("output projections", heads) for heads in options.heads if heads * width != BLOCK_SIZE]
    cases = [
        (where, heads, method)
        for (where, heads), method in itertools.product(places, options.methods)
        if is_asked(where, heads, method, width)
    ]
    for seed, sparsity, (where, heads, method) in itertools.product(options.seeds, options.sparsity, cases):
        if (name, seed, sparsity, where, heads, method) in rows:
            continue
        tokens = load_tokens(options.text, tokenizer, samples=options.samples, length=options.length, seed=seed)
        model, columns = copy.deepcopy(dense), int(heads * width)
        chosen: dict[str, Any] = {field: value for field, value in parse_variant(method).items() if value}
        with blocks_of_output_projections(columns if where != "all" else None):
            report = rose.prune_model(
                model, tokens, sparsity=sparsity, block_size=columns if where == "all" else BLOCK_SIZE, target="layer",
                **chosen,
            )  # fmt: skip
        losses = window_losses(model, windows)
        rows.add(
            **dict(zip(WHOLE_KEY, (name, seed, sparsity, where, heads, method), strict=True)),
            columnar=report.summary["columnar_layers"], mean_relative_error=report.summary["mean_relative_error"],
            perplexity=perplexity_of(losses), losses=write_losses(losses),
        )  # fmt: skip
    print(rows.means(["model", "sparsity", "where", "heads", "method"], ["perplexity"]))


def is_asked(where: str, heads: float, method: str, width: int) -> bool:
    """One threshold needs no blocks, so one block size is enough."""
    return method != "rose_global" or (where == "all" and heads * width == BLOCK_SIZE)


def blocks_of_output_projections(columns: int | None) -> Any:
    """While it is entered, output projections are pruned with blocks of so many columns; None leaves them alone."""
    plain = prune.prune_in

    def prune_in(block: Any, layer: Any, settings: Any, *others: Any) -> Any:
        alone = columns and layer.head_width
        return plain(block, layer, settings.changed(block_size=columns) if alone else settings, *others)

    return mock.patch.object(prune, "prune_in", prune_in)


if __name__ == "__main__":
    main()
