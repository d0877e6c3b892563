"""What each method costs in a whole prune, as a ratio to SparseGPT, and what dense targets cost with it.

    python -m tests.benchmarks.methods

Processor seconds of the first decoder blocks, all methods in turn in every round, so that what disturbs the machine
disturbs them alike. A row is written as soon as it is known.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import pandas as pd
import torch

import rose
from app.runs.results import read_results, time_and_perplexity
from rose.layer.methods import get_method
from tests.benchmarks.timing import processor_seconds

METHODS = ("sparsegpt", "wanda", "rose", "rose_global", "rose_dealt", "rose_admm", "alps")


def ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """Median over rounds of each method's seconds over those of SparseGPT in the same round.

    Args:
        rows: method, target, round, seconds; SparseGPT with target dense in every round.
    """
    base = rows[(rows["method"] == "sparsegpt") & (rows["target"] == "dense")].set_index("round")["seconds"]
    shares = rows.assign(ratio=rows["seconds"] / rows["round"].map(base))
    return shares.groupby(["method", "target"], sort=False)["ratio"].median().reset_index()


def dense_over_layer(rows: pd.DataFrame) -> pd.DataFrame:
    """Seconds towards the dense model over those of the same method with target layer, medians over rounds.

    Args:
        rows: as for `ratios`, with both targets.
    """
    seconds = rows.pivot(index=["method", "round"], columns="target", values="seconds")
    shares = (seconds["dense"] / seconds["layer"]).groupby("method").median()
    return shares.loc[rows["method"].unique()].rename("dense over layer").reset_index()


def costs_and_worths(times: pd.DataFrame, results: dict[str, Path], sparsity: str) -> pd.DataFrame:
    """Time and perplexity of all that was measured in both ways, for `app.figures.comparison.time_and_perplexity`.

    Args:
        times: as for `ratios`, which become the `seconds`.
        results: by target, the rows.csv of `python -m rose compare`.
    """
    tables = []
    for target, path in results.items():
        found = time_and_perplexity(read_results(str(path)), sparsity)
        known = ratios(times[times["target"].isin([target, "dense"])])
        of = known[known["target"] == target].set_index("method")["ratio"]
        labels = [get_method(name).label + (", target layer" if target == "layer" else "") for name in found["method"]]
        tables.append(found.assign(seconds=found["method"].map(of), target=target, run=labels))
    return pd.concat(tables, ignore_index=True).dropna(subset="seconds")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.methods", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--calibration", default="packaged")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sparsity", default="0.7")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--targets", nargs="+", default=["dense", "layer"])
    parser.add_argument("--output", type=Path, default=Path("times.csv"))
    options = parser.parse_args()
    model, tokenizer = rose.load_model(options.model, dtype=getattr(torch, options.dtype))
    tokens = rose.load_tokens(options.calibration, tokenizer, samples=options.samples, length=options.length)
    layers = [layer.name for layer in rose.prunable_layers(model) if layer.block_index < options.blocks]
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for turn in range(options.rounds):
        for method in options.methods:
            for target in options.targets:
                run = partial(rose.prune_model, model, tokens, sparsity=options.sparsity, layers=layers)
                seconds, _ = processor_seconds(partial(run, method=method, target=target))
                model.load_state_dict(dense)
                row = {"method": method, "target": target, "round": turn, "seconds": round(seconds, 2)}
                is_first = not options.output.exists()
                pd.DataFrame([row]).to_csv(options.output, mode="a", header=is_first, index=False)
                print(*row.values(), flush=True)
    rows = pd.read_csv(options.output)
    if "sparsegpt" in options.methods and "dense" in options.targets:
        print(ratios(rows).to_string(index=False))
    if {"dense", "layer"} <= set(options.targets):
        print(dense_over_layer(rows).to_string(index=False))


if __name__ == "__main__":
    main()
