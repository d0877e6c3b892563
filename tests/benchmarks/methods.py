"""What each method costs in a whole prune, as a ratio to SparseGPT, and what dense targets cost with it.

    python -m tests.benchmarks.methods

Processor seconds of the first decoder blocks, all methods in turn in every round, so that what disturbs the machine
disturbs them alike. A row is written as soon as it is known.
"""

import copy
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import pandas as pd

import rose
from rose.layer.registry import get_method
from rose.model.measure.comparison import results_at
from rose.verdicts import Result
from tests.benchmarks.common import MODEL, Rows, arguments, processor_seconds

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


def costs_and_worths(times: pd.DataFrame, rows: pd.DataFrame) -> list[Result]:
    """Time and perplexity of all that was measured in both ways, for a picture.

    Args:
        times: as for `ratios`, which become the `seconds`.
        rows: as of `rose compare`, of one sparsity; a target that is not the default stands behind the method's name.
    """
    known, found = ratios(times).set_index(["method", "target"])["ratio"], []
    for one in results_at(rows, rows["sparsity"].iloc[0]):
        method, _, target = one.method.partition(":")
        if (method, target or "dense") in known:
            name = get_method(method).label + (f", target {target}" if target else "")
            seconds = float(known[method, target or "dense"])
            found.append(replace(one, name=name, seconds=seconds, target=target or "dense"))
    return found


def main() -> None:
    options = arguments(
        __doc__,
        output=Path("times.csv"),
        model=MODEL,
        dtype="float32",
        calibration="packaged",
        samples=16,
        length=512,
        blocks=3,
        rounds=3,
        sparsity="0.7",
        methods=list(METHODS),
        targets=["dense", "layer"],
    )
    dense, tokenizer = rose.load_model(options.model, dtype=options.dtype)
    tokens = rose.load_tokens(options.calibration, tokenizer, samples=options.samples, length=options.length)
    layers = [layer.name for layer in rose.prunable_layers(dense) if layer.block_index < options.blocks]
    rows = Rows(options.output, ["method", "target", "round"])
    for turn, method, target in product(range(options.rounds), options.methods, options.targets):
        how = {"method": method, "target": target, "sparsity": options.sparsity, "layers": layers}
        seconds, _ = processor_seconds(partial(rose.prune_model, copy.deepcopy(dense), tokens, **how))
        rows.add(method=method, target=target, round=turn, seconds=round(seconds, 2))
    if "sparsegpt" in options.methods and "dense" in options.targets:
        print(ratios(rows.table()).to_string(index=False))
    if {"dense", "layer"} <= set(options.targets):
        print(dense_over_layer(rows.table()).to_string(index=False))


if __name__ == "__main__":
    main()
