"""Damage: a pass that begins at a decoder block gives what the whole pass gives, and nothing stays changed."""

import copy
import json
import math
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import rose
from rose.model.measure import damage
from rose.model.measure import perplexity as evaluation
from rose.model.measure.perplexity import window_losses
from rose.rows import records_table
from tests.model.families import LENGTH, VOCABULARY, make_model, make_tokens, stop_when
from tests.refusals import refused

pytestmark = pytest.mark.usefixtures("small_batches")

TOKENS, WINDOWS = make_tokens(), make_tokens(seed=2)
SETTINGS: dict[str, Any] = {"method": "sparsegpt", "sparsity": 0.5, "block_size": 16}


@pytest.fixture(autouse=True)
def batches_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "LOGIT_ELEMENTS", 2 * LENGTH * VOCABULARY)  # windows too leave a remainder


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def is_as_before(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def visit(model: nn.Module, **more: Any) -> list[damage.DamageRecord]:
    records: list[damage.DamageRecord] = []
    rose.damage(model, more.pop("tokens", TOKENS), record=records.append, **({"held_out": WINDOWS} | SETTINGS | more))
    return records


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "bloom", "opt_projected"])
@pytest.mark.parametrize("units", ["layers", "blocks"])
def test_each_damage_matches_the_whole_model_with_one_unit_pruned(family, units):
    """bloom returns tuples from its blocks, gemma3's have masks of their own, OPT projects before its head."""
    model = make_model(family)
    before, base = state_of(model), window_losses(model, WINDOWS)
    records = visit(model, units=units)
    assert is_as_before(model, before)
    layers = rose.prunable_layers(model)
    every = [layer.name for layer in layers] if units == "layers" else {layer.block_index for layer in layers}
    assert records[-1].unit == damage.WHOLE
    assert len(records) == len(every) + 1
    for record in records[:-1]:
        pruned = copy.deepcopy(model)
        names = [f"{record.unit}.*"] if units == "blocks" else [record.unit]
        report = rose.prune_model(pruned, TOKENS, layers=names, held_out=WINDOWS, target="layer", **SETTINGS)
        losses = window_losses(pruned, WINDOWS)
        differences = losses - base
        assert record.loss == pytest.approx(float(losses.mean()), rel=1e-6)
        assert record.delta_loss == pytest.approx(float(differences.mean()), abs=1e-6)
        assert record.damage == record.delta_loss
        assert record.standard_error == pytest.approx(float(differences.std()) / len(losses) ** 0.5, abs=1e-6)
        assert record.perplexity_ratio == pytest.approx(math.exp(record.delta_loss))
        assert record.relative_error == pytest.approx(report.layers["relative_error"].mean(), rel=1e-4)
        assert record.held_out_error == pytest.approx(report.layers["held_out_error"].mean(), rel=1e-4)
        assert record.sparsity == pytest.approx(report.summary["removed_fraction"])
        drift = next(row for row in report.summary["drift"] if row["block_index"] == record.block_index)
        assert record.drift == pytest.approx(drift["drift"], rel=1e-3)


def test_output_error_is_measured_at_the_layer_s_outputs():
    model, name = make_model("llama"), "model.layers.1.mlp.up_proj"
    record = visit(model, layers=[name])[0]
    read: list[Tensor] = []
    layer = next(candidate for candidate in rose.prunable_layers(model) if candidate.name == name)
    with layer.module.register_forward_pre_hook(lambda _module, args: read.append(args[0].flatten(0, 1))):
        window_losses(model, WINDOWS)
    statistics = rose.collect_statistics(model, TOKENS, layers=[name])[name]
    change = layer.weight - rose.prune_layer(layer.weight, statistics, **SETTINGS).weight
    expected = (torch.cat(read) @ change.T).square().sum(-1).mean()
    assert record.output_error == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("units", ["layers", "blocks"])
def test_restoring_matches_the_dense_weights(units):
    dense = make_model("llama")
    weights = {layer.name: layer.weight.clone() for layer in rose.prunable_layers(dense)}
    pruned = copy.deepcopy(dense)
    rose.prune_model(pruned, TOKENS, target="layer", **SETTINGS)
    before, base = state_of(pruned), window_losses(pruned, WINDOWS)
    records = visit(pruned, restore=weights, units=units)
    assert is_as_before(pruned, before)
    for record in records[:-1]:
        restored = copy.deepcopy(pruned)
        for layer in rose.prunable_layers(restored):
            if layer.name == record.unit or layer.name.startswith(record.unit + "."):
                layer.write(weights[layer.name])
        expected = float((window_losses(restored, WINDOWS) - base).mean())
        assert record.delta_loss == pytest.approx(expected, abs=1e-6)
        assert record.damage == -record.delta_loss
        assert record.sparsity == pytest.approx(0.5, abs=1e-3)
        assert record.relative_error > 0
    assert records[-1].loss == pytest.approx(float(window_losses(dense, WINDOWS).mean()), rel=1e-6)


def test_a_dense_model_in_place_of_the_pruned_one_is_not_restored():
    dense = make_model("llama")
    pruned = copy.deepcopy(dense)
    rose.prune_model(pruned, TOKENS, target="layer", **SETTINGS)
    refused("the wrong way round", damage.dense_weights, pruned, dense)
    refused("nothing can be restored", damage.dense_weights, dense, dense)
    weights = {layer.name: layer.weight for layer in rose.prunable_layers(pruned)}
    refused("the wrong way round", visit, dense, restore=weights)


def test_units_that_are_done_are_not_measured_again_and_the_rest_is_the_same():
    model = make_model("llama")
    every = visit(model)
    rest = visit(model, done=[record.unit for record in every[:5]])
    assert [record.unit for record in rest] == [record.unit for record in every[5:]]
    assert [record.loss for record in rest] == [record.loss for record in every[5:]]


@pytest.mark.parametrize("how", ["cancelled", "left at a record", "broken"])
def test_a_cancel_and_an_error_leave_the_model_as_it_was(how, monkeypatch):
    model = make_model("llama").train()
    before, losses = state_of(model), window_losses(model, WINDOWS)
    options: dict[str, Any] = {"held_out": WINDOWS, **SETTINGS}
    if how == "cancelled":
        options["progress"] = stop_when(lambda event: (event.stage, event.layers_done) == ("damage", 3))
    elif how == "left at a record":
        options["record"] = stop_when(lambda _record: is_as_before(model, before))
    else:
        passes = Mock(side_effect=[losses, losses, ValueError("disk on fire")])
        monkeypatch.setattr("rose.model.measure.damage.window_losses", passes)
    with pytest.raises((rose.Cancelled, ValueError)):
        rose.damage(model, TOKENS, **options)
    assert is_as_before(model, before)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_without_held_out_tokens_the_last_quarter_measures():
    model, eight = make_model("llama"), make_tokens(8)
    report = rose.damage(model, eight, units="blocks", **SETTINGS)
    expected = rose.damage(model, eight[:6], held_out=eight[6:], units="blocks", **SETTINGS)
    pd.testing.assert_frame_equal(report.units.drop(columns="seconds"), expected.units.drop(columns="seconds"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"units": "heads"}, "layers, blocks, not 'heads'"),
        ({"layers": ["nothing"]}, "No prunable layer is named 'nothing'"),
        ({"restore": {}}, "no dense weight of this shape for model.layers.0"),
        ({"held_out": WINDOWS[:, :1]}, "at least 2 tokens"),
        ({"held_out": WINDOWS + VOCABULARY}, "outside the model's vocabulary"),
        ({"tokens": make_tokens(1), "held_out": None}, "One sample cannot"),
    ],
)
def test_bad_input_is_refused_before_any_work(more, message):
    told: list[rose.Progress] = []
    options = {"tokens": TOKENS, "held_out": WINDOWS, "progress": told.append} | more
    refused(message, rose.damage, make_model("llama"), **options)
    assert not told


def made_table(errors: list[float], costs: list[float], projections: list[str] | None = None) -> pd.DataFrame:
    kinds = projections or ["a"] * len(errors)
    Record, rows = damage.DamageRecord, enumerate(zip(errors, costs, kinds, strict=True))
    records = [Record(f"layer.{i}", i, k, 10, 0.5, *[e] * 4, 1 + c, c, c, 0.01, 1.0, 0.0) for i, (e, c, k) in rows]
    return records_table(records, damage.DamageRecord)


def test_rank_correlation_is_spearman_s():
    for costs, rho in (([1, 10, 100, 1000], 1), ([4, 3, 2, 1], -1), ([1, 3, 2, 4], 1 - 6 * 2 / 60)):
        interval = damage.rank_correlation(made_table([1, 2, 3, 4], costs))  # 1 − 6·Σd²/(n(n² − 1)), d = (0, 1, −1, 0)
        assert interval.value == pytest.approx(rho)
    assert damage.rank_correlation(made_table([1, 2], [1, 2])) is None


def test_correlations_are_over_all_by_projection_and_by_depth():
    table = made_table([1, 2, 3, 4, 5, 6], [1, 2, 3, 6, 5, 4], ["a", "a", "a", "b", "b", "b"])
    values = damage.correlations(table).set_index(["group", "name"])["held_out_error"].dropna()
    values = values.map(lambda interval: interval.value)
    assert values["projection", "a"] == pytest.approx(1)
    assert values["projection", "b"] == pytest.approx(-1)
    assert values["all", ""] == pytest.approx(1 - 6 * 8 / 210)
    depths = damage.correlations(table).set_index("group").loc["depth", "name"]
    assert list(depths) == [f"decoder blocks {first} to {first + 1}" for first in (0, 2, 4)]
    opposite = pd.concat([table, table.assign(held_out_error=-table["held_out_error"])])
    within = opposite.assign(block_index=[0] * 6 + [1] * 6)
    mean = damage.correlations(within).set_index("group").loc["within a decoder block", "held_out_error"]
    assert (mean.low, mean.high) == (-1, 1)  # of two blocks that rank opposite ways, t alone would leave that range
    names = list(damage.correlations(made_table([1, 2], [1, 2], ["", ""]))["name"])
    assert names == ["", "decoder block 0", "decoder block 1"]


def test_outliers_have_small_errors_and_large_damages_beyond_chance():
    table = made_table([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.9, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert list(damage.outliers(table)["unit"]) == ["layer.0"]
    assert damage.outliers(table.assign(standard_error=0.6)).empty
    assert damage.outliers(table.assign(standard_error=math.nan)).empty  # of a single window
    assert damage.DamageReport.from_records([]).summary["outliers"] == []


def test_summaries_hold_only_json_numbers(tmp_path):
    record = damage.DamageRecord("a", 0, "", 9, 0.5, 0.1, 0.1, 0.1, 0.1, 1.0, math.inf, math.inf, 0.1, math.inf, 0)
    damage.DamageFolder(tmp_path, {}).add(record)
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["sum_of_damages"] is None


@pytest.mark.parametrize("units", ["layers", "blocks"])
def test_experts_that_no_token_reaches_are_left_out(units):
    model, tokens = make_model("sparse_experts"), make_tokens(1)
    told: list[rose.Progress] = []
    records = visit(model, tokens=tokens, held_out=make_tokens(2, seed=3), progress=told.append, units=units)
    layers = len(rose.prunable_layers(model))
    assert 2 < len(records) < layers
    assert all(math.isfinite(record.loss) and record.sparsity > 0 for record in records)
    assert (told[-1].layers_done, told[-1].fraction) == ((layers if units == "layers" else 2), 1.0)
    assert sum(record.weights for record in records[:-1]) == records[-1].weights
