"""The damping of dense targets on whole models: python -m tests.benchmarks.targets --output FOLDER ...

Perplexity of the pruned model by the number of calibration tokens, the decoder blocks that are pruned, the damping μ
and the seed of the draw: with target layer, with μ by rule, and with fixed ones. A line of FOLDER/damping.csv for each
run, as it comes; the same command resumes where the lines end.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

import rose
from rose.files import write_atomically
from rose.model.load.tokens import load_calibration
from rose.model.network.layers import prunable_layers

LAYER, RULE = "layer", "rule"
COLUMNS = ["model", "method", "sparsity", "blocks", "tokens", "seed", "damping", "mu", "perplexity", "final_drift"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--calibration", default="packaged", help="text to calibrate on")
    parser.add_argument("--evaluate", default="packaged", help="text to measure perplexity on")
    parser.add_argument("--method", default="sparsegpt")
    parser.add_argument("--sparsity", default="0.7")
    parser.add_argument("--blocks", type=int, help="prune the first so many decoder blocks alone")
    parser.add_argument("--samples", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64], help="of --length tokens each")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--damping", nargs="+", default=[LAYER, RULE, "0.1", "0.3", "1", "3", "10"])
    options = parser.parse_args()
    model, tokenizer = rose.load_model(options.model, dtype="bfloat16")
    windows = rose.load_tokens(
        options.evaluate, tokenizer, samples=options.windows, length=options.length, seed=None, split="test"
    )
    path = options.output / "damping.csv"
    options.output.mkdir(parents=True, exist_ok=True)
    rows = (
        pd.read_csv(path, dtype={"damping": str, "sparsity": str}) if path.exists() else pd.DataFrame(columns=COLUMNS)
    )
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = [layer for layer in prunable_layers(model) if options.blocks is None or layer.block_index < options.blocks]
    for seed in options.seeds:
        for samples in options.samples:
            for damping in options.damping:
                key = {
                    "model": options.model,
                    "method": options.method,
                    "sparsity": options.sparsity,
                    "blocks": len({layer.block_index for layer in layers}),
                    "tokens": samples * options.length,
                    "seed": seed,
                    "damping": damping,
                }
                if (rows[list(key)] == pd.Series(key)).all(axis=1).any():
                    continue
                row = key | _run(model, tokenizer, options, [layer.name for layer in layers], samples, seed, damping)
                row["perplexity"] = rose.perplexity(model, windows)
                model.load_state_dict(dense)
                rows = pd.concat([rows, pd.DataFrame([row])], ignore_index=True)[COLUMNS]
                write_atomically(path, rows.to_csv(index=False).encode())
                print(f"{row['tokens']} tokens, seed {seed}, {damping}: {row['perplexity']:.1f}", flush=True)
    table = rows.pivot_table(
        index="damping", columns=["blocks", "tokens"], values="perplexity", aggfunc=["mean", "count"]
    )
    print(table.round(1).to_string())


def _run(
    model: nn.Module, tokenizer: Any, options: Any, layers: list[str], samples: int, seed: int, damping: str
) -> dict[str, float]:
    """Prunes the model; μ and the drift after the last decoder block."""
    tokens, held_out = load_calibration(
        options.calibration, tokenizer, samples=samples, held_out=4, length=options.length, seed=seed
    )
    fixed = None if damping in (LAYER, RULE) else float(damping)
    report = rose.prune_model(
        model,
        tokens,
        method=options.method,
        sparsity=options.sparsity,
        layers=layers,
        target="layer" if damping == LAYER else "dense",
        target_damping=fixed,
        held_out=held_out,
    )
    mu = float("nan") if damping == LAYER else report.layers["target_damping"].median()
    return {"mu": mu, "final_drift": report.summary["drift"][-1]["drift"]}


if __name__ == "__main__":
    main()
