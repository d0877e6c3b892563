"""Prices, orders and forecasts: python -m tests.benchmarks.prices --output FOLDER STUDY ...

    measured    error of every layer by order and budget, one sweep each; FOLDER/prices-measured.csv
    forecast    what `rose.forecasts` says of the same pairs before any sweep; FOLDER/prices-forecast.csv
    whole       perplexity of whole models by order, budget and refit; FOLDER/prices-whole.csv

Inputs are the dense model's; `--text` is both calibrated on and held out. A row is a layer and a setting, with a column
a pair of order and budget: its error on held-out inputs, and with `c ` before it that on calibration inputs. Rows are
kept as they come; a study that is started again goes on where it stopped.
"""

from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from typing import Any

import torch

import rose
from rose.layer import error
from rose.layer.methods import Known, make_settings, prune_with
from rose.layer.statistics import InputStatistics
from rose.model.load.tokens import load_calibration
from rose.model.walk.walk import visit_blocks
from tests.benchmarks.common import MODEL, Rows, arguments

KEY = ("model", "seed", "layer", "sparsity", "block_size")
BOTH = ("natural", "two_level", "global", "random:0", "dealt", "pivot", "hessian")
LAYER_ONLY = ("pivot_weighted", "inverse", "greedy", "min_pivot")
ALL = [*(f"{order}/{budget}" for order in BOTH for budget in ("block", "layer")), *(f"{o}/layer" for o in LAYER_ONLY)]
MOST = [
    one
    for one in ALL
    if one not in ("global/block", "pivot/block", "hessian/block", "inverse/layer", "min_pivot/layer")
]
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
Layer = tuple[Any, InputStatistics, InputStatistics]  # the model's layer, calibration, held out


def layers_of(options: Any) -> Iterator[tuple[dict[str, Any], list[Layer]]]:
    """The layers of every model and draw that match `--layers`, with their statistics."""
    for name, seed in product(options.models, options.seeds):
        model, tokenizer = rose.load_model(name)
        tokens, held_out = load_calibration(
            options.text,
            tokenizer,
            samples=options.samples,
            held_out=options.held_out,
            length=options.length,
            seed=seed,
        )
        every = [layer.name for layer in rose.prunable_layers(model)]
        chosen = [one for one in every if any(fnmatch(one, pattern) for pattern in options.layers)]
        found: list[Layer] = []
        for block in visit_blocks(model, tokens, layers=chosen, held_out=held_out, compute="auto"):
            found += [(layer, block.calibration[layer.name], block.held_out[layer.name]) for layer in block.layers]
        yield {"model": Path(name).stem.removesuffix("-instruct-q4_k_m"), "seed": seed}, found


def measured(options: Any) -> None:
    rows = Rows(Path(options.output) / "prices-measured.csv", KEY)
    for run, layers in layers_of(options):
        for setting, (layer, inputs, judge) in product(options.settings, layers):
            sparsity, size = setting.split("/")
            row = run | {"layer": layer.name, "sparsity": sparsity, "block_size": size}
            if tuple(row.values()) in rows:
                continue
            weight = layer.weight.detach().float()
            known, errors = Known(weight), {}
            energy = error.quadratic_form(weight, inputs.hessian)
            dense = error.quadratic_form(weight, judge.hessian)
            for pair in SETTINGS[setting]:
                order, budget = pair.split("/")
                settings = make_settings(
                    "sparsegpt", sparsity=sparsity, block_size=int(size), order=order, budget=budget
                )
                result = prune_with(weight, inputs, _with(settings, known))
                errors[f"c {pair}"] = f"{float(result.column_error.sum(dtype=torch.float64)) / energy:.5g}"
                errors[pair] = f"{error.relative_error(weight, result.weight, judge.hessian, dense):.5g}"
            plan = result.plan
            numbers = {
                "rows": len(weight), "columns": weight.shape[1],
                "relative_range": round(plan.relative_range, 4), "column_variation": round(plan.column_variation, 4),
            }  # fmt: skip
            rows.add(**row, **numbers, **errors)


def _with(settings: Any, known: Known) -> Any:
    from dataclasses import replace

    return replace(settings, known=known, measures=False)


STUDIES = {"measured": measured}


def main() -> None:
    options = arguments(
        __doc__, "studies", output=Path, text="packaged", samples=16, held_out=8, length=512, models=[MODEL],
        seeds=[0], layers=["*"], settings=list(SETTINGS),
    )  # fmt: skip
    for study in options.studies:
        STUDIES[study](options)


if __name__ == "__main__":
    main()
