"""Pruning the packaged diffusion model: python -m tests.benchmarks.diffusion --output FOLDER

Every combination of method, sparsity and step weights, over draws of calibration noise; each pruned model is measured
on several seeds of evaluation noise that no calibration saw. Rows go to FOLDER/rows.csv as they come, and the same
command goes on after an interruption; FOLDER/layers.csv keeps relative range and order of every layer. The summary,
FOLDER/summary.md, holds means and the spread over draws and noise seeds.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import track

import rose
from rose.diffusion.evaluation import classes_in_turn
from rose.report import write_atomically

METHODS = ("wanda", "sparsegpt", "rose", "rose_dealt")
SPARSITIES = ("0.3", "0.5", "0.7", "2:4")
WEIGHTS = ("uniform", "log_decrease", "log_increase", "linear")
DRAWS, NOISES = (0, 1, 2), (1000, 1001, 1002)
CALIBRATION, STEPS = 30, 20  # pictures, denoising steps
KEY = ["method", "sparsity", "step_weights", "draw", "noise"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing, then summarizes."""
    parser = argparse.ArgumentParser(description="Measure pruned diffusion models.")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--sparsities", nargs="+", default=SPARSITIES)
    parser.add_argument("--weights", nargs="+", default=WEIGHTS)
    parser.add_argument("--draws", nargs="+", type=int, default=DRAWS)
    parser.add_argument("--pictures", type=int, default=100, help="judged for each row (default: %(default)s)")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "rows.csv"
    rows = pd.read_csv(path, dtype={"sparsity": str}).to_dict("records") if path.exists() else []
    layers = []
    if (options.output / "layers.csv").exists():
        layers = pd.read_csv(options.output / "layers.csv", dtype={"sparsity": str}).to_dict("records")
    wanted = [
        (method, sparsity, weights, draw)
        for draw in options.draws
        for sparsity in options.sparsities
        for method in options.methods
        for weights in options.weights
    ]
    done = {tuple(row[name] for name in KEY[:4]) for row in rows}
    missing = [one for one in wanted if one not in done]
    model = rose.load_diffusion()
    dense = {noise: _trajectory(model, options.pictures, noise) for noise in NOISES} if missing else {}
    if missing and ("dense", "0", "-", -1) not in done:
        rows += [_measure(model, dense, options.pictures, noise, "dense", "0", "-", -1, 0.0) for noise in NOISES]
    for method, sparsity, weights, draw in track(missing, "Pruning", console=Console(stderr=True)):
        pruned = copy.deepcopy(model)
        began = time.perf_counter()
        report = rose.prune_diffusion(
            pruned,
            classes_in_turn(CALIBRATION),
            method=method,
            sparsity=sparsity,
            steps=STEPS,
            step_weights=weights,
            seed=draw,
        )
        seconds = time.perf_counter() - began
        settings = {"method": method, "sparsity": sparsity, "step_weights": weights, "draw": draw}
        layers += report.layers.assign(**settings).to_dict("records")
        for noise in NOISES:
            measured = _measure(pruned, dense, options.pictures, noise, method, sparsity, weights, draw, seconds)
            rows.append(measured | {"layer_error": report.summary["mean_relative_error"]})
        write_atomically(options.output / "layers.csv", pd.DataFrame(layers).to_csv(index=False).encode())
        write_atomically(path, pd.DataFrame(rows).to_csv(index=False).encode())
    table = summarize(pd.DataFrame(rows))
    write_atomically(options.output / "summary.md", to_markdown(table).encode())
    Console().print(to_markdown(table), highlight=False)


def _trajectory(model: Any, pictures: int, noise: int) -> rose.Trajectory:
    return rose.evaluation_trajectory(model, pictures=pictures, steps=STEPS, seed=noise)


def _measure(
    model: Any,
    dense: dict[int, rose.Trajectory],
    pictures: int,
    noise: int,
    method: str,
    sparsity: str,
    weights: str,
    draw: int,
    seconds: float,
) -> dict[str, Any]:
    scores = rose.evaluate_diffusion(model, dense[noise], pictures=pictures, steps=STEPS, seed=noise)
    return {
        **dict(zip(KEY, (method, sparsity, weights, draw, noise), strict=True)),
        "drift_first_quarter": scores.drift[STEPS // 4],
        "drift_half": scores.drift[STEPS // 2],
        "drift": scores.drift[-1],
        "loss": float(torch.tensor(scores.loss).mean()),
        "frechet": scores.frechet,
        "accuracy": scores.accuracy,
        "seconds": seconds,
    }


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over draws and noise seeds by sparsity, method and step weights; the spread of the drift over draws."""
    rows = rows.astype({"sparsity": str})
    groups = rows.groupby(["sparsity", "method", "step_weights"], sort=True)
    table = groups[["drift_half", "drift", "loss", "frechet", "accuracy", "seconds"]].mean()
    by_draw = rows.groupby(["sparsity", "method", "step_weights", "draw"])["drift"].mean()
    table["drift_spread"] = by_draw.groupby(level=[0, 1, 2]).std()
    table["rows"] = groups.size()
    return table.reset_index()


def to_markdown(table: pd.DataFrame) -> str:
    """The summary as a table for documents."""
    lines = [
        "| sparsity | method | step weights | drift, halfway | drift, pictures | loss | Fréchet | recognized | rows |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in table.itertuples(index=False):
        spread = "" if pd.isna(row.drift_spread) else f" ± {row.drift_spread:.4f}"
        lines.append(
            f"| {row.sparsity} | {row.method} | {row.step_weights} | {row.drift_half:.4f} | {row.drift:.4f}{spread} | "
            f"{row.loss:.4f} | {row.frechet:.2f} | {row.accuracy:.0%} | {row.rows} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
