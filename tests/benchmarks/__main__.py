"""Timings, each as a ratio within one run on one machine: python -m tests.benchmarks [--samples N] [NAME ...].

`--reference PATH` runs the authors' own program against ours instead, `--quick` without its largest layer; PATH is a
clone of github.com/mingluo-su/ROSE, see reference.py. Not part of the test run: absolute times depend on the machine,
and a timed test would fail for no fault of the code. Memory, several processes, and what documents ask else are
measured by python -m tests.benchmarks.FILE.
"""

import cProfile
import platform
import pstats
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers
from rich.console import Console
from rich.table import Table

import rose
from rose.layer.error import quadratic_form
from rose.layer.hessian import damp, factorize
from rose.layer.loss import block_widths
from rose.layer.methods.toolkit import plan_layer
from rose.layer.pattern import BLOCK_SIZE, parse_sparsity
from rose.layer.statistics import InputStatistics
from rose.layer.sweep import Choice, sweep
from rose.layer.tiles import prune_in_tiles
from rose.model.estimate import matmul_rate, statistics_groups
from rose.model.walk.forward import run_block
from tests.benchmarks.common import Row, arguments, forward_passes, packaged_model, timed
from tests.benchmarks.reference import load_reference, reference_layer, reference_model


def whole_model(tokens_per_run: tuple[int, int]) -> list[Row]:
    """A whole-model prune against the two bare forward passes per decoder block that it cannot do without."""
    model, tokens = packaged_model(tokens_per_run)
    bare = timed(lambda: forward_passes(model, tokens, 2))
    rows: list[Row] = [("two bare forward passes", bare, "", 1.0)]
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for method in ("sparsegpt", "rose", "rose_global", "rose_dealt", "wanda"):
        layer: dict[str, Any] = {"target": "layer"}
        for mode in (layer, layer | {"true_sequential": True}, {"target": "dense"}):
            seconds = timed(lambda: rose.prune_model(model, tokens, method=method, **mode))  # noqa: B023  called at once
            model.load_state_dict(dense)
            name = " ".join(["prune_model,", method, *(f"{name}={value}" for name, value in mode.items())])
            rows.append((name, seconds, "two bare forward passes", seconds / bare))
    return rows


# What the time of a prune goes into; none of them calls another.
PARTS: dict[str, Callable[..., Any]] = {
    "decoder blocks": run_block,
    "Hessians": InputStatistics.update,
    "planning": plan_layer,
    "damping and factors": factorize,
    "sweeps": sweep,
    "errors": quadratic_form,
}


def profiled(tokens_per_run: tuple[int, int]) -> list[Row]:
    """Where the time of a whole-model prune goes, under Python's own profiler, which slows it by a few per cent."""
    model, tokens = packaged_model(tokens_per_run)
    profiler = cProfile.Profile()
    profiler.runcall(rose.prune_model, model, tokens, method="rose", target="layer")
    stats: Any = pstats.Stats(profiler)
    seconds = {}
    for what, function in PARTS.items():
        code = function.__code__
        seconds[what] = stats.stats[code.co_filename, code.co_firstlineno, code.co_name][3]  # cumulative
    seconds["everything else"] = stats.total_tt - sum(seconds.values())
    return [(what, spent, "the whole", spent / stats.total_tt) for what, spent in seconds.items()]


def analysis(tokens_per_run: tuple[int, int]) -> list[Row]:
    """Statistics and records of all layers against the one forward pass that they need."""
    model, tokens = packaged_model(tokens_per_run)
    bare = timed(lambda: forward_passes(model, tokens, 1))
    collected = timed(lambda: rose.collect_statistics(model, tokens))
    analyzed = timed(lambda: list(rose.analyze_model(model, tokens, compute="float32")))
    rounded = timed(lambda: list(rose.analyze_model(model, tokens, compute="bfloat16")))
    layers = rose.prunable_layers(model)
    products = 2 * sum(layer.weight.numel() for layer in layers) * tokens.numel() / matmul_rate()
    hessians = sum(columns**2 for columns in statistics_groups(layers)) * tokens.numel() / matmul_rate()
    return [
        ("one bare forward pass", bare, "", 1.0),
        ("  its linear layers at the speed of one large product", products, "one bare forward pass", products / bare),
        ("  half of every XᵀX at that speed", hessians, "one bare forward pass", hessians / bare),
        ("collect_statistics, 210 layers", collected, "one bare forward pass", collected / bare),
        ("analyze_model, SparseGPT and ROSE", analyzed, "one bare forward pass", analyzed / bare),
        ("  the same, forward passes in bfloat16", rounded, "analyze_model", rounded / analyzed),
    ]


def one_layer(_tokens: tuple[int, int]) -> list[Row]:
    """One layer's prune against its own factorization and against one product of W and H."""
    rows: list[Row] = []
    for out, columns in ((576, 576), (1536, 576), (576, 1536), (2048, 2048), (4096, 4096)):
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(out, columns, generator=generator)
        inputs = torch.randn(2 * columns, columns, generator=generator)
        hessian = inputs.T @ inputs
        factor = damp(hessian).natural_factor
        pattern, widths = parse_sparsity(0.7), block_widths(columns, BLOCK_SIZE)
        counts = [pattern.count(out * width) for width in widths]
        choice, mask = Choice(pattern, factor.diagonal(), counts), torch.zeros(columns, out, dtype=torch.bool).T
        product = timed(lambda: weight @ hessian, 3)  # noqa: B023  called at once
        factorization = timed(lambda: damp(hessian).natural_factor, 3)  # noqa: B023
        by_column = weight.T.contiguous().T
        swept = timed(lambda: sweep(by_column, mask, factor, widths, choice, prune_in_tiles), 3)  # noqa: B023
        total = timed(lambda: rose.prune_layer(weight, hessian, method="rose"), 3)  # noqa: B023
        name = f"{out} × {columns}"
        rows += [
            (f"{name}: product W·H", product, "", 1.0),
            (f"{name}: factorization", factorization, "product W·H", factorization / product),
            (f"{name}: sweep", swept, "product W·H", swept / product),
            (f"{name}: prune_layer, everything", total, "factorization + sweep", total / (factorization + swept)),
        ]
    return rows


BENCHMARKS: dict[str, Callable[[tuple[int, int]], list[Row]]] = {
    "whole_model": whole_model,
    "profile": profiled,
    "analysis": analysis,
    "one_layer": one_layer,
}


def main() -> None:
    options = arguments(__doc__, "names", samples=32, length=1024, reference="", quick=False)
    tokens = (options.samples, options.length)
    benchmarks = {name: partial(work, tokens) for name, work in BENCHMARKS.items()}
    if options.reference:
        official = load_reference(Path(options.reference))
        benchmarks = {
            "reference_layer": partial(reference_layer, official, options.quick),
            "reference_model": partial(reference_model, official, tokens),
        }
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, numpy {numpy.__version__}, transformers {transformers.__version__}, "
        f"{options.samples} × {options.length} tokens"
    )
    for name in options.names or benchmarks:
        table = Table("what", "seconds", "against", "ratio", title=name)
        for what, seconds, against, ratio in benchmarks[name]():
            table.add_row(what, f"{seconds:.3f}", against, f"{ratio:.2f}")
        Console().print(table)


if __name__ == "__main__":
    main()
