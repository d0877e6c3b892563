"""Prices, orders and forecasts: python -m tests.benchmarks.prices --output FOLDER STUDY ...

    measured    error of layers by order and budget, one sweep each; FOLDER/prices-measured.csv
    forecast    the forecast for the layers and pairs of that file, before any sweep; FOLDER/prices-forecast.csv
    rule        error of the pivot order under three rules for the weights; FOLDER/prices-rule.csv
    law         Σ log d and Σ d by order, and the error of rounding every weight to 3 bits; FOLDER/prices-law.csv
    times       processor time of forecasts and of their sweeps, without factorization; FOLDER/prices-times.csv
    leverage    how much larger residuals are on tokens left out, by the leverage of each; FOLDER/prices-leverage.csv
    picture     the prices of the first layer that matches, over the steps of a sweep; FOLDER/prices.svg
    whole       perplexity of whole models by order, budget and refit; FOLDER/prices-whole.csv

Inputs are the dense model's, except in `times` and `whole`. `--text` is calibrated on and held out. A row of the first
three files is a layer and a setting, with a column for each pair of order and budget: the error on held-out inputs, and
after `c ` the error on calibration inputs, measured under the damped H. Rows are written as they come; a study that is
started again continues.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot
from torch import Tensor

import rose
from rose.layer import error
from rose.layer.budget import count_by_block
from rose.layer.forecast import AnyBudget, _Factored, _Sample, forecasts, price_columns
from rose.layer.hessian import factorize
from rose.layer.methods import prune_with
from rose.layer.order import by_weighted_pivot
from rose.layer.pattern import DAMPING
from rose.layer.settings import LayerSettings
from rose.layer.statistics import InputStatistics
from rose.layer.sweep import Choice, sweep
from rose.layer.tiles import prune_in_tiles
from rose.model.load.tokens import load_tokens
from rose.model.walk.walk import visit_blocks
from tests.benchmarks.common import MODEL, Rows, arguments, judged, processor_seconds

KEY = ("model", "seed", "layer", "sparsity", "block_size")
BOTH = ("natural", "two_level", "global", "random:0", "dealt", "pivot", "hessian")
LAYER_ONLY = ("pivot_weighted", "inverse", "greedy", "min_pivot")
ALL = [*(f"{order}/{budget}" for order in BOTH for budget in ("block", "layer")), *(f"{o}/layer" for o in LAYER_ONLY)]
RARE = ("global/block", "pivot/block", "hessian/block", "inverse/layer", "min_pivot/layer")
MOST = [pair for pair in ALL if pair not in RARE]
FEW = [
    *("natural/block", "natural/layer", "two_level/block", "random:0/block", "dealt/block"),
    *("dealt/layer", "global/layer", "pivot/layer"),
]
SETTINGS: dict[str, list[str]] = {  # sparsity/block size -> pairs
    "0.7/128": MOST,
    "0.70/128": ALL,  # the same sparsity; for few layers
    "2:4/128": [f"{order}/block" for order in ("natural", "two_level", "global", "random:0", "dealt", "pivot")],
    "0.5/128": FEW,
    "0.8/128": FEW,
    "0.7/32": ["natural/block", *(f"{order}/layer" for order in ("natural", "global", "dealt", "pivot"))],
}
VARIANTS: dict[str, dict[str, Any]] = {  # of whole models
    "sparsegpt": {"method": "sparsegpt"},
    "rose": {"method": "rose"},
    "rose, threshold 0": {"method": "rose", "threshold": 0.0},
    "rose_global": {"method": "rose_global"},
    "pivot/layer": {"method": "sparsegpt", "order": "pivot", "budget": "layer"},
    "pivot_weighted/layer": {"method": "sparsegpt", "order": "pivot_weighted", "budget": "layer"},
    "rose_dealt": {"method": "rose_dealt"},
    "global/layer, refitted": {"method": "rose_dealt", "order": "global", "budget": "layer"},
    "pivot/layer, refitted": {"method": "rose_dealt", "order": "pivot", "budget": "layer"},
}
TIMED = [*(f"{order}/0.7/{budget}" for order in ("natural", "pivot") for budget in ("block", "layer", "own"))]
TIMED += ["natural/2:4/block", "pivot/2:4/block"]
REPEATS = 9
Layer = tuple[Any, InputStatistics, InputStatistics]  # the model's layer, calibration, held out


def _label(name: str) -> str:
    """The model's name in tables."""
    return Path(name).stem.removesuffix("-instruct-q4_k_m")


def layers_of(options: Any) -> Iterator[tuple[dict[str, Any], list[Layer]]]:
    """The layers of every model and draw that match `--layers`, with their statistics."""
    for name, seed in product(options.models, options.seeds):
        texts = (options.text, options.samples, options.held_out, options.length)
        layers = _layers_of(name, seed, tuple(options.layers), *texts)
        yield {"model": _label(name), "seed": seed}, layers


@lru_cache(maxsize=1)  # studies of one run share the forward passes
def _layers_of(
    name: str, seed: int, patterns: tuple[str, ...], text: str, samples: int, held_out: int, length: int
) -> list[Layer]:
    model, tokenizer = rose.load_model(name)
    tokens, others = load_tokens(text, tokenizer, samples=samples, held_out=held_out, length=length, seed=seed)
    names = [layer.name for layer in rose.prunable_layers(model)]
    chosen = [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
    layers: list[Layer] = []
    for block in visit_blocks(model, tokens, layers=chosen, held_out=others, compute="auto"):
        layers += [(layer, block.calibration[layer.name], block.held_out[layer.name]) for layer in block.layers]
    return layers


def measured(options: Any) -> None:
    rows = Rows(Path(options.output) / "prices-measured.csv", KEY)
    for run, layers in layers_of(options):
        for setting, layer in product(options.settings, layers):
            sparsity, size = setting.split("/")
            row = run | {"layer": layer[0].name, "sparsity": sparsity, "block_size": size}
            if tuple(row.values()) not in rows:
                rows.add(**row, **_errors(layer, setting, SETTINGS[setting]))


def _errors(layer: Layer, setting: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Errors of one layer by pairs of order and budget, beside its shape, relative range and column variation."""
    module, inputs, held_out = layer
    sparsity, size = setting.split("/")
    weight = module.weight.detach().float()
    errors = {}
    energies = [error.quadratic_form(weight, statistics.hessian) for statistics in (inputs, held_out)]
    for pair in pairs:
        order, budget = pair.split("/")
        how = {"sparsity": sparsity, "block_size": int(size), "order": order, "budget": budget}
        result = prune_with(weight, inputs, LayerSettings.of(method="sparsegpt", **how))
        damped = float(result.column_error.sum(dtype=torch.float64)) / energies[0]
        errors[f"c {pair}"] = f"{damped:.5g}"
        errors[pair] = f"{error.relative_error(weight, result.weight, held_out.hessian, energies[1]):.5g}"
    return {
        "rows": len(weight),
        "columns": weight.shape[1],
        "relative_range": round(result.plan.relative_range, 4),
        "column_variation": round(result.plan.column_variation, 4),
        **errors,
    }


def forecast(options: Any) -> None:
    folder = Path(options.output)
    rows, swept = Rows(folder / "prices-forecast.csv", KEY), Rows(folder / "prices-measured.csv", KEY)
    for run, layers in layers_of(options):
        for setting, (layer, inputs, _) in product(options.settings, layers):
            sparsity, size = setting.split("/")
            row = run | {"layer": layer.name, "sparsity": sparsity, "block_size": size}
            if tuple(row.values()) in rows or tuple(row.values()) not in swept:
                continue
            pairs = [(order, budget) for order, _, budget in (pair.partition("/") for pair in SETTINGS[setting])]
            weight = layer.weight.detach().float()
            told_errors = forecasts(weight, inputs, pairs, sparsity=sparsity, block_size=int(size))
            errors: dict[str, str] = {}
            for pair, told in zip(SETTINGS[setting], told_errors, strict=True):
                errors |= {f"c {pair}": f"{told.error:.5g}", pair: f"{told.held_out:.5g}"}
            rows.add(**row, **errors)


RULE = ["natural/block", "pivot/block", *(f"{order}/layer" for order in ("pivot", "pivot_weighted", "pivot_median"))]


@rose.register_order("pivot_median")
def by_median_pivot(plan: rose.OrderPlan, ascending: bool) -> Tensor:
    """The pivot order with each variance times the median w² of its column."""
    median = plan.importance.median(0, keepdim=True).values  # of |w| times a number of the column
    return by_weighted_pivot(replace(plan, importance=median), ascending)


def rule(options: Any) -> None:
    rows = Rows(Path(options.output) / "prices-rule.csv", ("model", "seed", "layer"))
    for run, layers in layers_of(options):
        for layer in layers:
            row = run | {"layer": layer[0].name}
            if tuple(row.values()) not in rows:
                rows.add(**row, **_errors(layer, "0.7/128", RULE))


LAW = ("natural", "two_level", "global", "random:0", "pivot", "min_pivot", "greedy", "hessian")


def law(options: Any) -> None:
    rows = Rows(Path(options.output) / "prices-law.csv", ("model", "seed", "layer"))
    for run, layers in layers_of(options):
        for layer, inputs, held_out in layers:
            row = run | {"layer": layer.name}
            if tuple(row.values()) in rows:
                continue
            weight = layer.weight.detach().float()
            plan = rose.plan_order(weight, inputs)  # at 70 %: orders by loss are natural order where nothing goes
            for order in LAW:
                visited = rose.make_order(plan, order)
                result = rose.prune_layer(
                    weight, inputs, method="sparsegpt", order=visited, sparsity=0.0, bits=3, group="row"
                )
                assert result.prices is not None
                row[f"log {order}"] = f"{result.prices.log_total:.9g}"
                row[f"sum {order}"] = f"{result.prices.total:.6g}"
                row[f"bits {order}"] = f"{result.relative_error:.5g}"
                row[f"held out {order}"] = f"{error.relative_error(weight, result.weight, held_out.hessian):.5g}"
            rows.add(**row)


def times(options: Any) -> None:
    """Medians of nine, sweeps and forecasts in turn; of weights as models hold them, in bfloat16."""
    rows, generator = Rows(Path(options.output) / "prices-times.csv", ("columns", "pair")), torch.Generator()
    for columns in options.columns:
        mixed = torch.randn(columns, columns, generator=generator.manual_seed(0)) / columns**0.5 + torch.eye(columns)
        inputs = InputStatistics(columns)
        inputs.update(torch.randn(2 * columns, columns, generator=generator) @ mixed)
        weight = torch.randn(columns, columns, generator=generator) * torch.rand(columns, generator=generator)
        for pair in TIMED:
            order, sparsity, budget = pair.split("/")
            if (columns, pair) not in rows:
                plan = rose.plan_order(weight.bfloat16().float(), inputs, sparsity=sparsity)
                sample = _Sample.of(weight.bfloat16().float(), plan)
                shares = [sample.plan.pattern.ratio * width / columns for width in sample.plan.block_width]
                rows.add(columns=columns, pair=pair, **_times(sample, order, shares if budget == "own" else budget))


def _times(sample: _Sample, name: str, budget: AnyBudget) -> dict[str, float]:
    factored = _Factored.of(sample.plan, name)
    weight, pattern, order, U = sample.all_rows, sample.plan.pattern, factored.order, factored.factor

    def whole() -> None:
        counts, W = count_by_block(budget, weight, U.diagonal(), pattern, order), order.visit(weight)
        choice = Choice(pattern, U.diagonal(), counts)
        sweep(W, torch.zeros_like(W, dtype=torch.bool), U, order.widths, choice, prune_in_tiles)

    works = {"sweep": whole, "forecast": lambda: sample.forecast(factored, budget)}
    seconds = [[processor_seconds(work)[0] for work in works.values()] for _ in range(REPEATS + 1)]
    medians = [sorted(column)[REPEATS // 2] for column in zip(*seconds[1:], strict=True)]
    named = {f"{work}_ms": round(1000 * value, 1) for work, value in zip(works, medians, strict=True)}
    return named | {"ratio": round(medians[1] / medians[0], 3)}


HIGHEST = 0.99  # leverage; of a token that a column has for itself, 1 - h is rounding noise


def leverage(options: Any) -> None:
    """Σ ‖x‖² (1 − h)⁻² / Σ ‖x‖² over tokens, h = xᵀ(H + λI)⁻¹x: the residual of a token left out of a regression is
    1/(1 − h) times larger (Allen 1974). Inputs are the dense model's."""
    rows = Rows(Path(options.output) / "prices-leverage.csv", ("model", "seed", "layer"))
    for name, seed in product(options.models, options.seeds):
        run = {"model": _label(name), "seed": seed}
        model, tokenizer = rose.load_model(name)
        sizes = {"samples": options.samples, "held_out": options.held_out, "length": options.length}
        tokens, _ = load_tokens(options.text, tokenizer, seed=seed, **sizes)
        seen: dict[str, list[Tensor]] = {}  # inputs by layer
        for layer in rose.prunable_layers(model):
            if (
                any(fnmatch(layer.name, pattern) for pattern in options.layers)
                and (*run.values(), layer.name) not in rows
            ):
                keep = seen.setdefault(layer.name, [])
                layer.module.register_forward_pre_hook(lambda _, given, keep=keep: keep.append(given[0].flatten(0, 1)))
        with torch.no_grad():
            for window in tokens if seen else ():
                model(window.unsqueeze(0))
        for layer_name, inputs in seen.items():
            rows.add(**run, layer=layer_name, inflation=f"{_inflation(torch.cat(inputs).float()):.5g}")


def _inflation(inputs: Tensor) -> float:
    statistics = InputStatistics(inputs.shape[1])
    statistics.update(inputs)
    _, factor = factorize(statistics, DAMPING, torch.arange(inputs.shape[1]))
    leverages, squares = (inputs @ factor.T).square().sum(1), inputs.square().sum(1)
    return float((squares / (1 - leverages.clamp(max=HIGHEST)).square()).sum() / squares.sum())


def picture(options: Any) -> None:
    pyplot.rcParams |= {"svg.hashsalt": "rose", "font.size": 11}
    _, layers = next(layers_of(options))
    layer, inputs, _ = layers[0]
    plan = rose.plan_order(layer.weight.detach().float(), inputs)
    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    for order, colour in {
        "natural": "#0973b2",
        "two_level": "#d9580b",
        "random:0": "#506a79",
        "pivot": "#2da2b2",
    }.items():
        prices = price_columns(plan, order)
        line = prices.price.log().unfold(0, 48, 4).mean(1)
        axes.plot(24 + 4 * torch.arange(len(line)), line, color=colour, label=order.partition(":")[0].replace("_", "-"))
    axes.axhline(prices.level, color="black", linewidth=0.8, linestyle=":", label="mean of every order")
    axes.set(xlabel="columns visited", ylabel="log price")
    axes.legend(frameon=False, ncols=5, loc="lower left", bbox_to_anchor=(0, 1), columnspacing=1, handlelength=1)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(options.output) / "prices.svg", bbox_inches="tight", metadata={"Date": None}, facecolor="white")


def whole(options: Any) -> None:
    key = ("model", "target", "variant", "sparsity", "seed")
    rows = Rows(Path(options.output) / "prices-whole.csv", key)
    for name, target, seed, variant in product(options.models, options.targets, options.seeds, options.variants):
        run = (_label(name), target, variant, "0.7", seed)
        if run in rows:
            continue
        model, tokenizer = rose.load_model(name)
        tokens = rose.load_tokens(
            options.text, tokenizer, samples=options.samples, length=options.length, seed=seed, split="train"
        )
        rose.prune_model(model, tokens, sparsity=0.7, target=target, **VARIANTS[variant])
        perplexity = rose.perplexity(model, judged(options.judge or options.text, tokenizer))
        rows.add(**dict(zip(key, run, strict=True)), perplexity=round(perplexity, 3))


STUDIES = {
    "measured": measured, "forecast": forecast, "rule": rule, "law": law, "times": times, "leverage": leverage,
    "picture": picture, "whole": whole,
}  # fmt: skip


def main() -> None:
    options = arguments(
        __doc__, "studies", output=str, text="packaged", judge="", samples=16, held_out=8, length=512, models=[MODEL],
        seeds=[0], layers=["*"], columns=[576, 2048], settings=list(SETTINGS), targets=["layer"],
        variants=list(VARIANTS),
    )  # fmt: skip
    for study in options.studies:
        STUDIES[study](options)


if __name__ == "__main__":
    main()
