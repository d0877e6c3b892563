"""How far solvers are from the best mask there could be: python -m tests.benchmarks.bound --text TEXT --output FILE.

For some rows of each layer, the error that a solver reaches on the calibration tokens, damping included as it sees it,
and what no mask with as many weights in that row can be below (`rose.layer.bound`). A line of the file for each layer
and method, as it comes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch

import rose
from rose.layer.bound import lower_bound

METHODS = ("sparsegpt", "rose_dealt", "rose_admm", "alps")
DAMPING = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bound", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", default="packaged")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--sparsity", default="0.7")
    parser.add_argument("--layers", nargs="+", default=[f"model.layers.{block}.*" for block in (0, 12, 18, 24)])
    parser.add_argument("--rows", type=int, default=4, help="of each layer, evenly spaced")
    parser.add_argument("--output", type=Path, default=Path("bound.csv"))
    options = parser.parse_args()
    model, tokenizer = rose.load_model(options.model)
    tokens = rose.load_tokens(options.text, tokenizer, samples=options.samples, length=options.length)
    statistics = rose.collect_statistics(model, tokens, layers=options.layers)
    for layer in rose.prunable_layers(model):
        if layer.name not in statistics:
            continue
        hessian, weight = statistics[layer.name].hessian, layer.weight.float()
        damped = hessian.double().clone()
        damped.diagonal().add_(DAMPING * damped.diagonal().mean())
        rows = torch.linspace(0, len(weight) - 1, options.rows).long()
        for method in METHODS:
            pruned = rose.prune_layer(weight, statistics[layer.name], method=method, sparsity=options.sparsity).weight
            change = (pruned - weight)[rows].double()
            kept = (pruned[rows] != 0).sum(1).clamp(min=1)  # fewer would only cost more
            reached = float((change @ damped * change).sum())
            bound = float(lower_bound(weight[rows], damped, kept).sum())
            shares = {"reached": reached, "bound": bound, "share": bound / reached}
            row = {"layer": layer.name, "projection": layer.projection, "method": method, **shares}
            is_first = not options.output.exists()
            pd.DataFrame([row]).to_csv(options.output, mode="a", header=is_first, index=False)
            print(layer.name, method, f"{row['share']:.3f}", flush=True)
    table = pd.read_csv(options.output)
    print(table.pivot_table(index="method", columns="projection", values="share", margins=True).round(3).to_string())


if __name__ == "__main__":
    main()
