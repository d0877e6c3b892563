"""Zeros, fewer bits, or both, on whole models: python -m tests.benchmarks.bits --output FOLDER ...

Perplexity by sparsity, bits, group and draw, and the way: "joint", as `rose prune --bits` does it; "sweep", pruned
first and then rounded by a sweep of its own to the same grid; "rounding", pruned first and then rounded to the nearest;
"layer", as "joint" with `--target layer`; "published", that with SparseGPT's own program, whose grid has an offset and
one scale a row: --reference is a clone of github.com/IST-DASLab/sparsegpt, imported from there as it is.
Runs of a draw come in the order of --runs, each WAY:METHOD:SPARSITY:BITS:GROUP, in which N:M is written N-M and "-"
stands for no bits. A line of FOLDER/bits.csv for each run, as it comes; the same command resumes where the lines end.

Bits a weight: a bit that says whether it is 0 (unless that makes it larger), its code where it is not, and 16 bits for
each scale; unrounded ones have 16 bits.
"""

import copy
import time
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor, nn

import rose
from app.figures import palette
from app.figures.palette import Style, Theme
from app.figures.shapes import Chart
from rose import verdicts
from rose.layer.methods import LayerResult
from rose.layer.methods.toolkit import result_of
from rose.layer.pattern import Grid, parse_grid
from rose.layer.rounding import choose_scales
from rose.layer.settings import LayerSettings
from rose.layer.statistics import InputStatistics
from rose.model.load.tokens import load_tokens
from rose.model.network.layers import PrunableLayer, prunable_layers
from tests.benchmarks.common import MODEL, WHOLE, Rows, arguments, dense_and_judged
from tests.benchmarks.reference import load_program, undisturbed
from tests.layer.helpers import round_to

KEY = ["model", "way", "method", "sparsity", "bits", "group", "seed"]
RUNS = [
    *("joint:rose_admm:0.5:-:-", "joint:rose_admm:0.5:4:64", "sweep:rose_admm:0.5:4:64", "rounding:rose_admm:0.5:4:64"),
    *("joint:rose_admm:0:4:64", "joint:rose_admm:2-4:-:-", "joint:rose_admm:2-4:4:64", "joint:rose_admm:0:3:64"),
    *("joint:rose_admm:0.7:-:-", "joint:rose_admm:0.7:4:64", "joint:sparsegpt:0.5:4:64", "joint:sparsegpt:0.5:-:-"),
    *("joint:rose_admm:0:8:64", "joint:rose_admm:0.7:8:64"),
    *("joint:rose_admm:0.5:3:64", "joint:rose_admm:0.5:8:64", "joint:rose_admm:0.5:4:32", "joint:rose_admm:0.5:4:row"),
]
LOOKS = {
    "0": Style(palette.SLATE, "No zeros", symbol="circle"),
    "0.5": Style(palette.BLUE, "50 % zeros", symbol="square"),
    "2:4": Style(palette.ORANGE, "2:4", symbol="diamond"),
    "0.7": Style(palette.GREEN, "70 % zeros", symbol="triangle-up"),
}
DASHES = ("solid", "dash", "dot")  # of the usual method and of others
UNROUNDED = "16 bits"


def mean_bits(layers: list[PrunableLayer], grid: Grid | None) -> float:
    """Bits a weight over all of these layers."""
    sizes = [layer.weight.numel() for layer in layers]
    stored = [bits_a_weight(layer.weight, grid) for layer in layers]
    return sum(bits * size for bits, size in zip(stored, sizes, strict=True)) / sum(sizes)


def bits_a_weight(weight: Tensor, grid: Grid | None) -> float:
    """Storage in bits a weight: a mask bit, a code for each nonzero, and 16 bits for a scale; without the mask if that
    is less. Without a grid a nonzero has 16 bits."""
    code = grid.bits if grid else 16
    scale = 16 / grid.width(weight.shape[1]) if grid else 0.0
    return min(1 + code * int(weight.count_nonzero()) / weight.numel(), code) + scale


def prune_published(
    program: ModuleType, bits: int, weight: Tensor, statistics: InputStatistics, settings: LayerSettings
) -> LayerResult:
    """A layer by the authors' program on our H, rounded as their llama.py does it."""
    pattern, layer = settings.pattern, nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.float()
    theirs = program.SparseGPT(layer)
    theirs.H = statistics.hessian.clone()  # its scale makes no difference
    theirs.quantizer = program.Quantizer()
    theirs.quantizer.configure(bits, perchannel=True, sym=False, mse=False)
    groups = {"prunen": pattern.of - pattern.keep, "prunem": pattern.of} if pattern.is_grouped else {}
    with undisturbed():
        theirs.fasterprune(pattern.ratio, **groups, blocksize=settings.block_size, percdamp=settings.damping)
    pruned = layer.weight.data.to(weight.dtype)
    return result_of(weight, pruned, pruned == 0, statistics, settings, budget="block")


def made(way: str, dense: nn.Module, pruned: nn.Module, tokens: Any, grid: Grid | None, **options: Any) -> tuple:
    """The model of a run, and its report; `pruned` is that of the same method and sparsity without bits."""
    words: dict[str, Any] = {} if grid is None else {"bits": grid.bits, "group": grid.group}
    if way == "published":
        options["method"], words = "published", {}
    if way in ("joint", "layer", "published"):
        model = copy.deepcopy(dense)
        target = "dense" if way == "joint" else "layer"
        return model, rose.prune_model(model, tokens, **options, **words, target=target)
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


def first_draw(rows: pd.DataFrame, way: str = "joint", method: str = "rose_admm") -> pd.DataFrame:
    """Rows of a method on the packaged model in draw 0, scales of groups of 64, after one of the dense model at 16 bits
    a weight; `bits` are numbers, 0 where weights are not rounded."""
    rows = rows[(rows["way"] == way) & (rows["method"] == method) & rows["group"].isin(["-", "64"])]
    rows = rows[(rows["model"] == MODEL) & (rows["seed"] == 0)]
    (before,) = rows["dense_perplexity"].unique()
    dense = {"sparsity": "0", "bits": 0, "bits_a_weight": 16.0, "perplexity": before}
    rows = rows.assign(bits=rows["bits"].replace("-", "0").astype(int))
    return pd.concat([pd.DataFrame([dense]), rows[list(dense)].sort_values("sparsity")], ignore_index=True)


def perplexity_and_bits(table: pd.DataFrame, theme: Theme) -> go.Figure:
    """Perplexity of whole models by bits a weight, a line for each sparsity and method.

    The table has a row per model: sparsity (of `LOOKS`), bits (0 where weights are not rounded), bits_a_weight,
    perplexity, and `by`, the method, or "" for the usual one. The dense model is a row of 16 bits a weight.
    """
    chart = Chart(x="bits a weight", y="perplexity", height=460, legend=True, theme=theme)
    _draw_bits(chart, table, "perplexity", "perplexity")
    usual, bits = table[table["by"] == ""], table["bits_a_weight"]
    for trace in chart.figure.data:  # few points, far apart: each shows its bits
        if trace.line.dash == DASHES[0]:
            places = ["top right" if names == UNROUNDED else "bottom left" for names in trace.customdata]
            trace.update(mode="lines+markers+text", text=trace.customdata, textposition=places)
    chart.y(range=(0.95 * table["perplexity"].min(), 1.08 * table["perplexity"].max()))
    sizes = np.log10([0.85 * bits.min(), 1.25 * bits.max()])
    chart.x(type="log", range=sizes, tickvals=[2, 3, 4, 6, 8, 12, 16], exponentformat="none")
    both, alone = _row(usual, "0.5", 4), _row(usual, "0", 3)
    options = verdicts.says_change(both["perplexity"], alone["perplexity"], "all of them at 3 bits", "perplexity")
    note = "Perplexity of SmolLM2-135M by bits a weight on a log scale; marks name the bits of weights that are kept; "
    note += "the axis of perplexity does not begin at 0"
    caption = f"Half the weights at 4 bits take {both['bits_a_weight']:.2f} bits a weight, as all of them at 3 bits do."
    alt = "Line chart of perplexity against bits a weight, a line for each sparsity"
    return chart.done(f"Half the weights at 4 bits make {options}", note, caption, alt, table).figure


def _draw_bits(chart: Chart, table: pd.DataFrame, column: str, noun: str) -> None:
    """A line for each sparsity and method, `column` against bits a weight."""
    dashes = dict(zip(table["by"].unique(), DASHES, strict=False))
    for (sparsity, by), rows in table.groupby(["sparsity", "by"], sort=False):
        rows, look = rows.sort_values("bits_a_weight"), LOOKS[sparsity]
        look = look._replace(label=", ".join(filter(None, (look.label, by))), dash=dashes[by])
        names = [UNROUNDED if bits == 0 else f"{bits} bits" for bits in rows["bits"]]
        hover = f"{look.label}, %{{customdata}}<br>%{{x:.2f}} bits a weight<br>{noun} %{{y:.4g}}"
        chart.line(rows["bits_a_weight"], rows[column], look, hover, customdata=names, size=10)


def _row(table: pd.DataFrame, sparsity: str, bits: int) -> pd.Series:
    return table[(table["sparsity"] == sparsity) & (table["bits"] == bits)].iloc[0]


def picture(rows: pd.DataFrame, theme: Theme) -> go.Figure:
    """Perplexity against bits a weight, of the recommended method and of SparseGPT with both targets."""
    others = {"SparseGPT": "joint", "SparseGPT, target layer": "layer"}
    table = [first_draw(rows).assign(by="")]
    table += [first_draw(rows, way, "sparsegpt").iloc[1:].assign(by=name) for name, way in others.items()]
    return perplexity_and_bits(pd.concat(table, ignore_index=True), theme)


def main() -> None:
    options = arguments(__doc__, **WHOLE, samples=16, runs=RUNS, reference="")
    if options.reference:
        source = "github.com/IST-DASLab/sparsegpt"
        program = load_program(Path(options.reference), source, "sparsegpt", "sparsegpt.py", "quant.py")
    dense, tokenizer, windows = dense_and_judged(options)
    rows = Rows(options.output / "bits.csv", KEY)
    before = rose.perplexity(dense, windows)
    for seed in options.seeds:
        tokens, _ = load_tokens(
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
            if way == "published":
                published = partial(prune_published, program, int(bits))
                rose.register("published", "SparseGPT's program", "Prunes and rounds by the authors' code.")(published)
            if way in ("sweep", "rounding") and base not in unrounded:
                unrounded[base] = made("joint", dense, dense, tokens, None, **chosen)[0]
            model, report = made(way, dense, unrounded.get(base, dense), tokens, grid, **chosen)
            if grid is None and way == "joint":
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
