"""Solvers of the layer problem, layer by layer: python -m tests.benchmarks.solvers --output FILE.csv.

Held-out error of every prunable layer of a model, the packaged one by default, on the dense model's inputs, and seconds
of processor time on one thread (the clock would count what else the machine does), both also relative to SparseGPT's on
the same layer. Each line is written as soon as it is known, and a run that is started again continues where it stopped.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

import rose
from rose.layer import error
from rose.layer.methods import make_settings, prune_with
from rose.layer.statistics import InputStatistics
from rose.model.load.tokens import load_calibration
from rose.model.network.layers import decoder_blocks
from rose.model.walk.walk import visit_blocks

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
COLUMNS = ["setting", "layer", "projection", "variant", "error", "seconds"]


def measure(variant: str, weight: torch.Tensor, known: InputStatistics, sparsity: str) -> tuple[torch.Tensor, float]:
    """Ŵ and seconds; with statistics of its own, so that every method pays for its factorization."""
    method, options, search = VARIANTS[variant]
    settings = replace(make_settings(method, sparsity=sparsity, options=options), search=search)
    own = InputStatistics.from_hessian(known.hessian, tokens=known.tokens)
    start = time.process_time()
    result = prune_with(weight, own, settings)
    return result.weight, time.process_time() - start


def run(options: argparse.Namespace) -> None:
    """Appends what the file does not hold yet."""
    file: Path = options.output
    done = set()
    if file.exists():
        known = read(file)
        done = set(zip(known["setting"], known["layer"], known["variant"], strict=True))
    model, tokenizer = rose.load_model(options.model)
    prefix, blocks = decoder_blocks(model)
    most = max(MOST_SAMPLES, *options.samples)
    tokens, _ = load_calibration(options.text, tokenizer, samples=HELD_OUT + most, held_out=0, length=512, seed=0)
    layers = None if options.every == 1 else [f"{prefix}.{block}.*" for block in range(0, len(blocks), options.every)]
    for samples in options.samples:
        calibration = tokens[HELD_OUT : HELD_OUT + samples]
        for block in visit_blocks(model, calibration, layers=layers, held_out=tokens[:HELD_OUT]):
            for layer in block.layers:
                weight = layer.weight.detach()
                hessian = block.held_out[layer.name].hessian
                for sparsity in options.sparsity:
                    setting = f"{sparsity}, {samples} × 512"
                    for variant in options.variants:
                        if (setting, layer.name, variant) in done:
                            continue
                        pruned, seconds = measure(variant, weight, block.calibration[layer.name], sparsity)
                        found = error.relative_error(weight, pruned, hessian)
                        row = [setting, layer.name, layer.projection, variant, found, seconds]
                        table = pd.DataFrame([row], columns=COLUMNS)
                        table.to_csv(file, mode="a", header=not file.exists(), index=False)


def read(file: Path) -> pd.DataFrame:
    return pd.read_csv(file, dtype={"setting": str})


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
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.solvers", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.csv")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", default="packaged", help="calibration and held-out text (default: %(default)s)")
    parser.add_argument("--sparsity", nargs="+", default=["0.7"], help="ratios or N:M (default: 0.7)")
    parser.add_argument("--samples", nargs="+", type=int, default=[16], help="calibration windows (default: 16)")
    parser.add_argument("--every", type=int, default=1, help="take one decoder block in so many (default: all)")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    run(options)
    summary = summarize(read(options.output))
    shown = Table(*summary.columns, title="held-out error relative to SparseGPT's")
    for row in summary.itertuples(index=False):
        shown.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row))
    Console(width=200).print(shown)


if __name__ == "__main__":
    main()
