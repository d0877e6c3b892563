"""Solvers of the layer problem, layer by layer: python -m tests.benchmarks.solvers --output FILE.csv.

Held-out error of every prunable layer of a model, the packaged one by default, on the dense model's inputs, and seconds
of processor time on one thread (the clock would count what else the machine does), both also relative to SparseGPT's on
the same layer; of one decoder block in so many with `--every`. Each line is written as soon as it is known, and a run
that is started again continues where it stopped.
"""

import argparse
from itertools import product
from pathlib import Path

import pandas as pd
import torch

import rose
from rose.layer import error
from rose.layer.methods import Context, prune_with
from rose.layer.settings import LayerSettings
from rose.layer.statistics import InputStatistics
from rose.model.load.tokens import load_tokens
from rose.model.network.layers import decoder_blocks
from rose.model.walk.walk import visit_blocks
from tests.benchmarks.common import MODEL, Rows, arguments, processor_seconds

VARIANTS: dict[str, tuple[str, dict[str, float | str], torch.dtype]] = {
    "sparsegpt": ("sparsegpt", {}, torch.float32),
    "rose_dealt": ("rose_dealt", {}, torch.float32),
    "rose_admm": ("rose_admm", {}, torch.float32),
    "rose_admm, bfloat16": ("rose_admm", {}, torch.bfloat16),
    "rose_admm, effort 3": ("rose_admm", {"effort": 3}, torch.float32),
    "alps": ("alps", {}, torch.float32),
}
BASE = "sparsegpt"
HELD_OUT, MOST_SAMPLES = 16, 64  # windows; the same ones are held out whatever is calibrated on


def measure(variant: str, weight: torch.Tensor, known: InputStatistics, sparsity: str) -> tuple[torch.Tensor, float]:
    """Ŵ and seconds; with statistics of its own, so that every method pays for its factorization."""
    method, options, products = VARIANTS[variant]
    settings, context = LayerSettings.of(method=method, sparsity=sparsity, options=options), Context(products=products)
    own = InputStatistics.from_hessian(known.hessian, tokens=known.tokens)
    seconds, result = processor_seconds(lambda: prune_with(weight, own, settings, context))
    return result.weight, seconds


def run(options: argparse.Namespace) -> pd.DataFrame:
    """Adds what the file does not hold yet; returns all of it."""
    rows = Rows(options.output, ["setting", "layer", "variant"])
    model, tokenizer = rose.load_model(options.model)
    prefix, blocks = decoder_blocks(model)
    most = max(MOST_SAMPLES, *options.samples)
    tokens, _ = load_tokens(options.text, tokenizer, samples=HELD_OUT + most, held_out=0, length=512, seed=0)
    layers = None if options.every == 1 else [f"{prefix}.{block}.*" for block in range(0, len(blocks), options.every)]
    for samples in options.samples:
        calibration = tokens[HELD_OUT : HELD_OUT + samples]
        for block in visit_blocks(model, calibration, layers=layers, held_out=tokens[:HELD_OUT]):
            for layer, sparsity, variant in product(block.layers, options.sparsity, options.variants):
                setting, weight = f"{sparsity}, {samples} × 512", layer.weight.detach()
                if (setting, layer.name, variant) in rows:
                    continue
                pruned, seconds = measure(variant, weight, block.calibration[layer.name], sparsity)
                found = error.relative_error(weight, pruned, block.held_out[layer.name].hessian)
                known = {"setting": setting, "layer": layer.name, "projection": layer.projection, "variant": variant}
                rows.add(**known, error=found, seconds=seconds)
    return rows.table()


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """By setting and variant: error relative to SparseGPT's, its mean by projection and over all, how many layers are
    below 1; seconds per layer and the mean of their ratios."""
    keys = ["setting", "layer"]
    base = table[table["variant"] == BASE].set_index(keys)[["error", "seconds"]]
    joined = table.join(base.rename(columns=lambda name: f"base_{name}"), on=keys).dropna()
    joined["ratio"] = joined["error"] / joined["base_error"]
    joined["times"] = joined["seconds"] / joined["base_seconds"]
    joined["projection"] = joined["projection"].str.split(".").str[-1].str.removesuffix("_proj")
    groups = joined.groupby(["setting", "variant"], sort=False)
    summary = groups.agg(
        layers=("ratio", "size"),
        ratio=("ratio", "mean"),
        highest=("ratio", "max"),
        improved=("ratio", lambda ratio: (ratio < 1).sum()),
        seconds=("seconds", "mean"),
        times=("times", "mean"),
    )
    by_projection = joined.pivot_table("ratio", ["setting", "variant"], "projection", sort=False)
    return summary.join(by_projection).reset_index()


def main() -> None:
    options = arguments(
        __doc__,
        output=Path,
        model=MODEL,
        text="packaged",  # to calibrate on, and to hold out
        sparsity=["0.7"],
        samples=[16],  # calibration windows
        every=1,  # decoder block in so many is taken
        variants=list(VARIANTS),
    )
    torch.set_num_threads(1)
    print("held-out error relative to SparseGPT's")
    print(summarize(run(options)).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
