"""Columns as a matter of basis: python -m tests.benchmarks.rotation --output FOLDER [STUDY ...].

    layers      held-out error of every output projection, pruned by several methods as given and in each basis;
                FOLDER/rotation.csv. `kept_error` is what `--rotate heads` decides by: calibrated on three quarters of
                the samples, measured on the last quarter
    outputs     held-out error of every output projection by order and budget, and by method, as given and in the
                learned basis; by block sizes, of which the last is the whole layer, and 2:4; FOLDER/orders-outputs.csv
    gain        what the two-level order gains in every layer, and what weights and H alone say of that beforehand;
                FOLDER/order-gain.csv
    whole       perplexity of the whole model, over draws of calibration, with and without `--rotate heads`;
                FOLDER/rotation-whole.csv

Each layer and run is kept as it comes; a study that is started again goes on where it stopped.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import rose
from rose.layer import error
from rose.layer.basis import find_rotations, rotate_columns, rotate_statistics
from rose.layer.hessian import damp
from rose.layer.methods import Settings, make_settings, prune_with
from rose.layer.order import Order, OrderPlan, make_order
from rose.layer.pattern import BUDGETS
from rose.layer.statistics import InputStatistics
from rose.model.load.tokens import load_calibration
from rose.model.network.heads import ValueHeads
from rose.model.network.network import Network
from rose.model.run.rotation import JUDGES, rotate_heads, value_heads
from rose.model.walk.walk import visit_blocks
from tests.benchmarks.common import Rows, arguments, judged

GIVEN = "as given"
Known = dict[str, InputStatistics]


def texts(options: Any, tokenizer: Any, seed: int) -> tuple[Tensor, Tensor]:
    """Calibration and held-out windows."""
    tokens, held_out = load_calibration(
        options.text, tokenizer, samples=options.samples, held_out=options.held_out, length=options.length, seed=seed
    )
    assert held_out is not None
    return tokens, held_out


def layers(options: Any) -> None:
    """Every output projection, as given and rotated, by every method."""
    rows = Rows(Path(options.output) / "rotation.csv", ("model", "seed", "layer"))
    for name, seed in product(options.models, options.seeds):
        model, tokenizer = rose.load_model(name)
        tokens, held_out = texts(options, tokenizer, seed)
        found = {heads.output.name: heads for heads in value_heads(Network(model), options.layers or None)}
        kept_back = max(1, len(tokens) // JUDGES)
        streams = (tokens[:-kept_back], tokens[-kept_back:], held_out)
        names = [layer.name for heads in found.values() for layer in (heads.output, heads.values)]
        most, kept, judge = (statistics_of(model, one, names) for one in streams)
        for layer, heads in found.items():
            if (name, seed, layer) not in rows:
                known, by_values = (known_about(one, most, kept, judge) for one in (layer, heads.values.name))
                run = {"model": name, "seed": seed, "layer": layer}
                rows.add(*(run | one for one in _rotated(heads, known, by_values, options)))
    print(summary(rows.table()).round(3).to_string())


def _rotated(
    heads: ValueHeads, given: list[InputStatistics], by_values: list[InputStatistics], options: Any
) -> Iterator[dict[str, Any]]:
    """Held-out errors of an output projection and of its values, by every method in each basis; statistics as of
    `known_about`."""
    pattern = make_settings("sparsegpt", sparsity=options.sparsity).pattern
    for basis in (GIVEN, *options.bases):
        outputs, values, known = heads.output.weight.float(), heads.values.weight.float(), given
        if basis != GIVEN:
            rotations = find_rotations(outputs, given[2].hessian, heads.layout, basis, pattern=pattern)
            outputs = rotate_columns(outputs, heads.layout, rotations).float()
            values = heads.rotated_values(rotations)[0].float()
            known = [rotate_statistics(one, heads.layout, rotations) for one in given]
        plan = rose.plan_order(outputs, known[0], sparsity=options.sparsity)
        for method in options.methods:
            settings = make_settings(method, sparsity=options.sparsity)
            yield {
                "basis": basis, "method": method, "relative_range": round(plan.relative_range, 4),
                "error": round(held_out_error(outputs, known[0], known[1], settings), 6),
                "kept_error": round(held_out_error(outputs, known[2], known[3], settings), 6),
                "values_error": round(held_out_error(values, by_values[0], by_values[1], settings), 6),
            }  # fmt: skip


def known_about(layer: str, most: Known, kept: Known, judge: Known) -> list[InputStatistics]:
    """Statistics of all calibration, of what judges it, of most of it, and of what was kept back of it."""
    hessian = most[layer].hessian + kept[layer].hessian
    every = InputStatistics.from_hessian(hessian, most[layer].tokens + kept[layer].tokens)
    return [every, judge[layer], most[layer], kept[layer]]


def statistics_of(model: Any, tokens: Tensor, names: Sequence[str]) -> dict[str, InputStatistics]:
    """Statistics of the dense model's layers of these names."""
    found: dict[str, InputStatistics] = {}
    for block in visit_blocks(model, tokens, layers=names, compute="auto"):
        found |= block.calibration
    return found


def held_out_error(weight: Tensor, known: InputStatistics, judge: InputStatistics, settings: Settings) -> float:
    pruned = prune_with(weight, known, replace(settings, measures=False)).weight
    return error.relative_error(weight, pruned, judge.hessian)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean, least and largest ratio to the error as given, by basis and method; the same with the rule, which rotates a
    layer where `kept_error` falls."""
    key = ["model", "seed", "layer", "method"]
    given = table[table["basis"] == GIVEN].set_index(key)[["error", "kept_error", "values_error"]].add_suffix("_given")
    joined = table[table["basis"] != GIVEN].join(given, on=key)
    joined["ratio"] = joined["error"] / joined["error_given"]
    joined["values"] = joined["values_error"] / joined["values_error_given"]
    gains = joined["kept_error"] < joined["kept_error_given"]
    joined["by_rule"], joined["rotated"] = joined["ratio"].where(gains, 1.0), gains.astype(float)
    shown = {"ratio": ["mean", "min", "max"], "by_rule": ["mean", "max"], "values": ["mean", "max"], "rotated": "mean"}
    return joined.groupby(["model", "basis", "method"], sort=False).agg(shown)


# Order and budget of every output projection

SWEEPS = [
    f"{order}/{budget}" for order in ("natural", "two_level", "global", "random:0", "dealt") for budget in BUDGETS
]
METHODS = ("rose_dealt", "rose_admm")
BY_SIZE = ("natural/block", "two_level/block", "global/layer", "dealt/block")
# By sparsity and block size: bases, and what is tried there. N:M leaves no budget to choose.
TRIED: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "0.7/128": ((GIVEN, "learned"), (*SWEEPS, *METHODS)),
    "2:4/128": ((GIVEN, "learned"), (*SWEEPS[::2], *METHODS)),
    **{f"0.7/{size}": ((GIVEN,), BY_SIZE) for size in ("32", "64", "256", "whole")},
}


def outputs(options: Any) -> None:
    """Every output projection by each of `TRIED`; the statistics of one draw serve all."""
    key = ("model", "seed", "layer", "sparsity", "block_size")
    rows = Rows(Path(options.output) / "orders-outputs.csv", key)
    for seed, name in product(options.seeds, options.models):
        model, tokenizer = rose.load_model(name)
        found = {heads.output.name: heads for heads in value_heads(Network(model), options.layers or None)}
        runs = [(Path(name).stem, seed, layer, *one.split("/")) for one in options.tried or TRIED for layer in found]
        if all(run in rows for run in runs):
            continue
        known, judge = (statistics_of(model, one, list(found)) for one in texts(options, tokenizer, seed))
        for run in runs:
            if run not in rows:
                new = _tried(found[run[2]], known[run[2]], judge[run[2]], *run[3:])
                rows.add(*(dict(zip(key, run, strict=True)) | one for one in new))
    print(by_variant(rows.table()).round(3).to_string())


def _tried(
    heads: ValueHeads, known: InputStatistics, judge: InputStatistics, sparsity: str, size: str
) -> Iterator[dict[str, Any]]:
    """Held-out error of one layer by every variant, in each basis. ROSE's sweep is one of two that are made anyway."""
    bases, variants = TRIED[f"{sparsity}/{size}"]
    width = heads.output.weight.shape[1] if size == "whole" else int(size)
    for basis in bases:
        weight, judged_by, calibrated = heads.output.weight.float(), judge, known
        if basis != GIVEN:
            pattern = make_settings("sparsegpt", sparsity=sparsity).pattern
            turn = find_rotations(weight, known.hessian, heads.layout, basis, pattern=pattern, block_size=width)
            weight = rotate_columns(weight, heads.layout, turn).float()
            calibrated, judged_by = (rotate_statistics(one, heads.layout, turn) for one in (known, judge))
        plan = rose.plan_order(weight, calibrated, sparsity=sparsity, block_size=width)
        said: dict[str, Any] = {"basis": basis, "relative_range": round(plan.relative_range, 4)}
        for variant in variants:
            order, _, budget = variant.partition("/")
            method, swept = ("sparsegpt", order) if budget else (variant, None)
            settings = make_settings(method, sparsity=sparsity, block_size=width, order=swept, budget=budget or None)
            said[variant] = float(f"{held_out_error(weight, calibrated, judged_by, settings):.5g}")
        said["rose"] = said["two_level/block" if plan.is_columnar else "natural/block"]
        yield said


def by_variant(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over layers and draws of the ratio to SparseGPT's error as given at the same sparsity, blocks of 128."""
    same = ["model", "seed", "layer", "sparsity"]
    base = table[(table["block_size"] == "128") & (table["basis"] == GIVEN)].set_index(same)["natural/block"]
    kept = [name for name in (*SWEEPS, "rose", *METHODS) if name in table]
    ratios = table[kept].div(table.join(base.rename("base"), on=same)["base"], axis=0)
    by = [table[name] for name in ("model", "sparsity", "block_size", "basis")]
    return ratios.groupby(by, sort=False).mean()


# What an order will gain, before it is tried


def _gini(values: Tensor) -> float:
    ordered = values.double().sort().values
    count = len(ordered)
    places = torch.arange(1, count + 1, dtype=torch.double)
    return float((2 * places - count - 1) @ ordered / (count * ordered.sum()))


def _variation(values: Tensor) -> float:
    return float(values.std(correction=0) / values.mean())


def _within(plan: OrderPlan) -> float:
    """Variation of column loss within blocks, in the mean."""
    return sum(map(_variation, plan.column_loss.split(list(plan.block_width)))) / len(plan.block_width)


def _earlier(plan: OrderPlan, loss: Tensor) -> float:
    """How much earlier the two-level order visits what is lost: mean change of place, weighted, as a share of all
    columns. Columns visited earlier have more columns behind them to compensate."""
    places = torch.arange(len(loss), dtype=torch.double) - make_order(plan, "two_level").inverse.double()
    return float((loss.double() @ places) / (loss.double().sum() * len(loss)))


def foreseen(plan: OrderPlan, weight: Tensor, statistics: InputStatistics, order: Order) -> float:
    """Σ w²/U_jj² over the weights that pre-pruning removes: the error of a sweep in this order, did its weights not
    change on the way."""
    damped = damp(statistics.hessian, 0.01)
    factor = damped.natural_factor if order.is_natural else damped.inverse_factor(order.permutation)
    lost = (weight.float() * (plan.potential_loss > 0)).square().sum(0)[order.permutation]
    return float((lost / factor.diagonal().square()).sum(dtype=torch.double))


def _foreseen_gain(plan: OrderPlan, weight: Tensor, statistics: InputStatistics) -> float:
    natural, sorted_ = (foreseen(plan, weight, statistics, make_order(plan, one)) for one in ("natural", "two_level"))
    return 1 - sorted_ / natural


Predictor = Callable[[OrderPlan, Tensor, InputStatistics], float]
PREDICTORS: dict[str, Predictor] = {
    "relative_range": lambda plan, _w, _h: plan.relative_range,
    "variation_of_blocks": lambda plan, _w, _h: _variation(plan.loss_per_column),
    "variation_of_columns": lambda plan, _w, _h: plan.column_variation,
    "gini_of_columns": lambda plan, _w, _h: _gini(plan.column_loss),
    "variation_within_blocks": lambda plan, _w, _h: _within(plan),
    "loss_visited_earlier": lambda plan, _w, _h: _earlier(plan, plan.column_loss),
    "energy_visited_earlier": lambda plan, _w, _h: _earlier(plan, plan.potential_loss.square().sum(0)),
    "foreseen_by_factor": _foreseen_gain,
}


def gain(options: Any) -> None:
    """Held-out gain of the two-level order, forced on every layer, beside what could be known before."""
    rows = Rows(Path(options.output) / "order-gain.csv", ("model", "seed", "layer"))
    for name, seed in product(options.models, options.seeds):
        model, tokenizer = rose.load_model(name)
        tokens, held_out = texts(options, tokenizer, seed)
        chosen = options.layers or None
        for block in visit_blocks(model, tokens, layers=chosen, held_out=held_out, compute="auto"):
            for layer in block.layers:
                if (name, seed, layer.name) not in rows:
                    known, judge = block.calibration[layer.name], block.held_out[layer.name]
                    rows.add(model=name, seed=seed, layer=layer.name, **_gains(layer.weight, known, judge, options))
    print(correlations(rows.table()).round(3).to_string())


def _gains(weight: Tensor, known: InputStatistics, judge: InputStatistics, options: Any) -> dict[str, float]:
    weight, plan = weight.float(), rose.plan_order(weight, known, sparsity=options.sparsity)
    errors = [
        held_out_error(weight, known, judge, make_settings("sparsegpt", sparsity=options.sparsity, order=order))
        for order in ("natural", "two_level")
    ]
    found = {"natural": errors[0], "two_level": errors[1], "gain": 1 - errors[1] / errors[0]}
    said = {predictor: says(plan, weight, known) for predictor, says in PREDICTORS.items()}
    return {what: float(f"{value:.6g}") for what, value in (found | said).items()}


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of each predictor with the gain, by model: over all layers, within each kind of
    projection in the mean, and over output projections alone."""

    def each() -> Iterator[dict[str, Any]]:
        for model, of_model in table.groupby("model", sort=False):
            kind = of_model["layer"].str.rpartition(".")[2]
            for name in PREDICTORS:

                def ranked(part: pd.DataFrame, name: str = name) -> float:
                    return float(part[name].corr(part["gain"], method="spearman"))

                within = of_model.groupby(kind)[[name, "gain"]].apply(ranked)
                yield {
                    "model": model, "predictor": name, "all_layers": ranked(of_model), "within_a_kind": within.mean(),
                    "output_projections": within.get("o_proj"),
                }  # fmt: skip

    return pd.DataFrame(each()).set_index(["model", "predictor"])


def whole(options: Any) -> None:
    """Perplexity of the whole model by each draw, target and method, with and without rotated heads."""
    key = ("model", "seed", "samples", "sparsity", "target", "method", "rotated")
    rows = Rows(Path(options.output) / "rotation-whole.csv", key)
    for name, target, method, seed, rotated in product(
        options.models, options.targets, options.methods, options.seeds, (False, True)
    ):
        run = (name, seed, options.samples, options.sparsity, target, method, rotated)
        if run in rows:
            continue
        model, tokenizer = rose.load_model(name)
        tokens, _ = texts(options, tokenizer, seed)
        pruning = {"method": method, "sparsity": options.sparsity}
        turned = rotate_heads(model, tokens, compute="auto", **pruning)["rotated"].sum() if rotated else 0
        rose.prune_model(model, tokens, target=target, **pruning)
        perplexity = rose.perplexity(model, judged(options.judge or options.text, tokenizer))
        rows.add(**dict(zip(key, run, strict=True)), layers_rotated=int(turned), perplexity=round(perplexity, 3))
    print(with_and_without(rows.table()).round(3).to_string())


def with_and_without(table: pd.DataFrame) -> pd.DataFrame:
    """Perplexity as given and rotated, means over draws, and their ratio in each draw: mean, least and largest."""
    by = ["model", "samples", "sparsity", "target", "method"]
    drawn = table.pivot(index=[*by, "seed"], columns="rotated", values="perplexity").dropna()
    drawn = drawn.rename(columns={False: "as_given", True: "rotated"})
    drawn["ratio"] = drawn["rotated"] / drawn["as_given"]
    return drawn.groupby(by, sort=False).agg(
        as_given=("as_given", "mean"), rotated=("rotated", "mean"), ratio=("ratio", "mean"),
        least=("ratio", "min"), most=("ratio", "max"), draws=("ratio", "size"),
    )  # fmt: skip


STUDIES: dict[str, Callable[[Any], None]] = {"layers": layers, "outputs": outputs, "gain": gain, "whole": whole}


def main() -> None:
    options = arguments(
        __doc__, "studies", output=str, text="packaged", judge="", samples=8, length=512, held_out=4, sparsity="0.7",
        models=["smollm2-135m"], seeds=[0], methods=["sparsegpt", "rose"], targets=["layer"], layers=[""],
        tried=[""], bases=["gathered", "learned", "random"],
    )  # fmt: skip
    options.layers, options.tried = ([name for name in names if name] for names in (options.layers, options.tried))
    for name in options.studies or ("layers", "gain"):
        STUDIES[name](options)


if __name__ == "__main__":
    main()
