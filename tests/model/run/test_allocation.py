"""Ratios over layers: exact totals, the published rules, and the trace of the loss Hessian against the Hessian."""

import copy
import json
import math
import re
from functools import partial
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import rose
from rose.layer.pattern import Pattern
from rose.layer.registry import Method
from rose.model.network.layers import prunable_layers
from rose.model.network.network import Network
from rose.model.rules import DAMAGE_SPREAD, parse_allocation
from rose.model.run import allocation as allocations
from rose.rows import DamageRecord, records_table
from tests.model.families import make_model, make_tokens, stop_at
from tests.refusals import cancelled, refused


def tiny_llama(blocks: int = 3) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": blocks}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(**sizes, **heads, max_position_embeddings=32, initializer_range=0.3)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def tiny_gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=2, n_positions=32, initializer_range=0.4)
    return GPT2LMHeadModel(config).eval().requires_grad_(False)


def some_tokens(samples: int = 4, length: int = 16) -> Tensor:
    return torch.randint(40, (samples, length), generator=torch.Generator().manual_seed(1))


layer_lists = st.lists(st.tuples(st.floats(-0.5, 1.5), st.integers(1, 5000)), min_size=1, max_size=30)


@given(layer_lists, st.floats(0, 1))
def test_the_total_is_exact_and_layers_stay_within_limits(layers, ratio):
    """As a large layer at one limit would push all others over the other one."""
    shares, sizes = [want for want, _ in layers], [size for _, size in layers]
    for reach in (DAMAGE_SPREAD, 1.0):
        ratios = allocations.exact_ratios(shares, sizes, ratio, reach)
        counts = [round(r * size) for r, size in zip(ratios, sizes, strict=True)]
        assert sum(counts) == round(ratio * sum(sizes))
        assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))
        assert all(abs(r - ratio) < reach + 1 / size + 1e-12 for r, size in zip(ratios, sizes, strict=True))
    # One shift for all, but for rounding and where 0 or 1 is the limit.
    rows = [(r, want, 1 / size) for r, want, size in zip(ratios, shares, sizes, strict=True)]
    shifts = [(r - want, grain) for r, want, grain in rows if grain < r < 1 - grain]
    for shift, grain in shifts:
        assert all(abs(shift - other) <= 2 * (grain + other_grain) for other, other_grain in shifts)


def test_feasible_ratios_are_kept():
    exact = allocations.exact_ratios
    assert exact([0.4, 0.5, 0.6], [1000] * 3, 0.5) == [0.4, 0.5, 0.6]
    assert [exact([0.5, 0.9], [300, 100], ratio) for ratio in (1, 0)] == [[1, 1], [0, 0]]
    refused("from 0 to 1", exact, [0.5], [10], 1.5)


def test_outlier_share_matches_the_definition():
    scores = [torch.rand(7, 9).pow(8), torch.rand(5, 9).pow(8) * 3]
    together = np.concatenate([score.numpy().ravel() for score in scores]).astype(float)
    assert allocations.outlier_share(scores) == (together > 5 * together.mean()).mean() > 0


def test_owl_ratios_match_the_definition():
    shares = [0.01, 0.05, 0.03, 0.02]
    ratios = allocations.owl_ratios(shares, 0.7)
    assert max(ratios) - min(ratios) == pytest.approx(0.16)  # 2λ
    assert sum(ratios) / 4 == pytest.approx(0.7)
    assert np.argsort(ratios).tolist() == np.argsort(shares)[::-1].tolist()
    assert allocations.owl_ratios([0.02, 0.02], 0.6) == [0.6, 0.6]


def test_sensitivity_ratios_match_the_definition():
    assert allocations.sensitivity_ratios([3.0, -1.0, 2.0], 0.5) == pytest.approx([0.4, 0.6, 0.5])
    assert allocations.sensitivity_ratios([3.0, 1.0, 2.0], 0.5, spread=0.25) == pytest.approx([0.25, 0.75, 0.5])
    assert allocations.sensitivity_ratios([7.0], 0.5) == [0.5]


def test_layers_with_a_large_negative_trace_keep_more(monkeypatch):
    """The paper ranks layers by |mean trace| / size."""
    monkeypatch.setattr("rose.model.run.allocation.hessian_traces", lambda *_args, **_options: [1.0, -9.0, 2.0])
    model = tiny_llama()
    layers = [layer for layer in prunable_layers(model) if layer.projection == "self_attn.q_proj"]
    rule = parse_allocation("sensitivity:0.125")
    allocation = allocations.allocate(Network(model), some_tokens(), layers, Pattern(0.5), rule, list)
    assert [allocation[layer.name].ratio for layer in layers] == [0.625, 0.375, 0.5]


def exact_trace(model: PreTrainedModel, tokens: Tensor, name: str) -> float:
    weight = model.get_parameter(f"{name}.weight").detach()

    def loss(w: Tensor, window: Tensor) -> Tensor:
        arguments = {"input_ids": window[None], "labels": window[None], "use_cache": False}
        return functional_call(model, {f"{name}.weight": w}, (), arguments).loss

    total, size = 0.0, weight.numel()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for window in tokens:
            hessian = torch.autograd.functional.hessian(partial(loss, window=window), weight, vectorize=True)
            total += float(hessian.reshape(size, size).trace())
    return total / len(tokens)


@pytest.mark.parametrize("make", [partial(tiny_llama, 1), tiny_gpt2])
def test_trace_is_that_of_the_full_hessian(make):
    model, tokens = make(), some_tokens(samples=2)
    layers = prunable_layers(model)[2:5]
    exact = [exact_trace(model, tokens, layer.name) for layer in layers]
    again = tokens.repeat_interleave(25, 0)  # other signs each time
    estimates = np.array([allocations.hessian_traces(Network(model), again, layers, seed=seed) for seed in range(8)])
    spread = estimates.std(0, ddof=1) / 8**0.5
    assert (np.abs(estimates.mean(0) - exact) < 5 * spread + 1e-4).all()
    assert (spread < 0.5 * np.abs(exact).max()).all()  # or the line above would say little


def test_the_trace_has_gradients_inside_inference_mode():
    model, tokens = tiny_llama(1), some_tokens(2)
    layers = prunable_layers(model)
    traces = allocations.hessian_traces(Network(model), tokens, layers)
    with torch.inference_mode():
        assert allocations.hessian_traces(Network(model), tokens + 0, layers) == traces
        twin = copy.deepcopy(model)
    refused(r"made in torch\.inference_mode", allocations.hessian_traces, Network(twin), tokens, prunable_layers(twin))


def test_trace_leaves_the_model_unchanged():
    model = tiny_llama().train()
    model.lm_head.weight.requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    allocations.hessian_traces(Network(model), some_tokens(), prunable_layers(model))
    assert model.training
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["lm_head.weight"]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("allocation", ["owl", "sensitivity"])
@pytest.mark.parametrize("sparsity", [0.5, 0.93])
def test_allocated_ratios_are_exact(allocation, sparsity):
    model, tokens = tiny_llama(), some_tokens(8)
    sizes = sum(layer.weight.numel() for layer in prunable_layers(model))
    # Towards the dense model, layers behind a fully pruned one read zeros only, and lose more than they were asked to.
    options: dict[str, Any] = {"method": "rose_global", "target": "layer", "block_size": 8}
    report = rose.prune_model(model, tokens, sparsity=sparsity, allocation=allocation, **options)
    zeros = sum(int((layer.weight == 0).sum()) for layer in prunable_layers(model))
    assert zeros == round(sparsity * sizes)
    assert report.summary["removed_fraction"] == pytest.approx(zeros / sizes, abs=1e-6)
    assert report.summary["allocation"] == allocation
    ratios = report.layers["sparsity"]
    assert ratios.nunique() > 2
    if allocation == "owl":  # one ratio per decoder block, up to one weight of its smallest layer
        assert report.layers.groupby("block_index")["sparsity"].agg(np.ptp).max() <= 1 / 128


def test_owl_protects_the_block_with_outliers():
    model, tokens = tiny_llama(), some_tokens(8)
    with torch.no_grad():
        for layer in prunable_layers(model):
            if layer.block_index == 2:  # the last, for its outliers spread to the blocks above
                layer.weight[0, :4] *= 40
    report = rose.prune_model(model, tokens, method="wanda", sparsity=0.5, block_size=8, allocation="owl")
    ratios = report.layers.groupby("block_index")["sparsity"].mean()
    assert ratios.idxmin() == 2


def test_owl_handles_blocks_without_tokens():
    model, tokens = make_model("sparse_experts"), make_tokens()
    records = rose.analyze_model(model, tokens, methods=["wanda"], block_size=8)
    unreached = next(record.layer for record in records if record.block_index == 0 and not record.tokens)
    names = [unreached, "*layers.1.self_attn*"]
    report = rose.prune_model(model, tokens, method="wanda", sparsity=0.5, layers=names, allocation="owl", block_size=8)
    assert report.layers.set_index("layer").loc[unreached, "sparsity"] == 0


@pytest.mark.parametrize(
    ("allocation", "sparsity", "message"),
    [
        ("owl:0.1", 0.5, "one of uniform, owl, sensitivity"),
        ("owl", "2:4", "2:4 fixes the ratio"),
        ("damage", 0.5, "damage:FOLDER"),
        *((f"sensitivity:{bad}", 0.5, "must be a number from 0 to 1") for bad in ("", "x", "1.5", "nan")),
    ],
)
def test_bad_allocations_are_refused(allocation, sparsity, message):
    model = tiny_llama()
    before = copy.deepcopy(model.state_dict())
    refused(message, rose.prune_model, model, some_tokens(), sparsity=sparsity, block_size=8, allocation=allocation)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_no_method_sees_the_held_out_inputs(monkeypatch):
    spy = Mock(side_effect=rose.METHODS["wanda"].prune)
    monkeypatch.setitem(rose.METHODS, "spy", Method("spy", "Spy", "", function=spy))
    rose.prune_model(tiny_llama(1), some_tokens(8), method="spy", sparsity=0.5, block_size=8, held_out=some_tokens(3))
    for (_, statistics, settings), _ in spy.call_args_list:
        seen = [statistics, *vars(settings).values()]
        assert [each.tokens for each in seen if isinstance(each, rose.InputStatistics)] == [8 * 16]
    assert spy.call_count == 7


def test_damage_is_equalized_at_the_margin():
    """Lagrange's condition: what one weight more costs is the same in every layer within the bounds."""
    densities, growth = [0.02 / 100, 0.05 / 300, 0.04 / 100], allocations.DAMAGE_GROWTH
    ratios = allocations.damage_ratios(densities, 0.5)
    slopes = [growth * d * math.exp(growth * (ratio - 0.5)) for d, ratio in zip(densities, ratios, strict=True)]
    assert max(ratios) - min(ratios) < 2 * DAMAGE_SPREAD
    assert slopes == pytest.approx([slopes[0]] * 3)
    assert allocations.damage_ratios([0.0, 0.0], 0.5) == [0.5, 0.5]
    far = allocations.damage_ratios([1e-9, 1.0], 0.5)
    assert allocations.exact_ratios(far, [1000, 1000], 0.5, DAMAGE_SPREAD) == [0.5 + DAMAGE_SPREAD, 0.5 - DAMAGE_SPREAD]


@pytest.mark.parametrize("units", ["layers", "blocks"])
def test_a_model_is_pruned_by_its_damages(units, tmp_path):
    model, tokens = tiny_llama(), some_tokens()
    report = rose.damage(model, tokens, sparsity=0.5, block_size=8, units=units)
    report.units.to_csv(tmp_path / "rows.csv", index=False)
    by_damage = parse_allocation(f"damage:{tmp_path}")
    patterns = allocations.allocate(Network(model), tokens, prunable_layers(model), Pattern(0.5), by_damage, list)
    costliest = report.units.loc[(report.units["damage"] / report.units["weights"]).idxmax(), "unit"]
    chosen = [pattern.ratio for layer, pattern in patterns.items() if f"{layer}.".startswith(f"{costliest}.")]
    assert max(chosen) == pytest.approx(min(pattern.ratio for pattern in patterns.values()), abs=0.01)
    pruned = rose.prune_model(model, tokens, sparsity=0.5, block_size=8, allocation=f"damage:{tmp_path}")
    # Methods round in blocks of eight columns.
    assert pruned.summary["removed_fraction"] == pytest.approx(0.5, abs=0.01)


RECORD = DamageRecord("a", 0, "", 9, 0.5, 0.1, 0.1, 0.1, 0.1, 1.0, 0.1, 0.1, 0.1, 1.1, 0)


@pytest.mark.parametrize(
    ("records", "settings", "ratio", "message"),
    [
        ([], {}, 0.5, r"rows\.csv cannot be read"),
        ([RECORD], {}, 0.7, r"measured at a sparsity of 0\.5, which says little of 0\.7"),
        ([RECORD], {}, 0.6, r"damage of model\.layers\.0\.self_attn\.q_proj has not been measured"),
        ([RECORD], {"restore": "pruned70"}, 0.5, "what a pruned model gains by layers given back"),
    ],
)
def test_damages_that_cannot_be_shared_are_refused(records, settings, ratio, message, tmp_path):
    if records:
        records_table(records, DamageRecord).to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(rose.RoseError, match=message):
        rose.prune_model(tiny_llama(), some_tokens(), sparsity=ratio, block_size=8, allocation=f"damage:{tmp_path}")


def test_damages_of_another_model_are_refused(tmp_path):
    records_table([RECORD], DamageRecord).to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "settings.json").write_text(json.dumps({"restore": None, "weight_norms": [1.0, 1.0]}))
    rule, network, pattern = parse_allocation(f"damage:{tmp_path}"), Network(tiny_llama()), Pattern(0.5)
    message = "those of another model: its weights differ"
    refused(message, allocations.allocate, network, some_tokens(), [], pattern, rule, list)


def test_a_resumed_run_needs_the_same_damages(tmp_path):
    rows, model = tmp_path / "rows.csv", tiny_llama()
    options: dict[str, Any] = {"sparsity": 0.5, "block_size": 8}
    table = rose.damage(model, some_tokens(), units="blocks", **options).units
    table.to_csv(rows, index=False)
    options |= {"checkpoint": tmp_path / "kept", "allocation": f"damage:{tmp_path}"}
    cancelled(rose.prune_model, tiny_llama(), some_tokens(), progress=stop_at("calibrate", 1), **options)
    table.assign(damage=table["damage"] * 2).to_csv(rows, index=False)
    refused("the damages differ", rose.prune_model, model, some_tokens(), **options)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_damages_and_traces_that_are_not_finite_are_refused(value, tmp_path, monkeypatch):
    model = tiny_llama()
    names = [layer.name for layer in rose.prunable_layers(model)]
    traces = [1.0, value, *[1.0] * (len(names) - 2)]
    options: dict[str, Any] = {"sparsity": 0.5, "block_size": 8}
    with monkeypatch.context() as patched:
        patched.setattr(allocations, "hessian_traces", lambda *_arguments, **_more: traces)
        says = f"no finite curvature by {re.escape(names[1])}"
        refused(says, rose.prune_model, model, some_tokens(), allocation="sensitivity", **options)
    options["layers"] = names[:2]
    table = rose.damage(model, some_tokens(), **options).units
    table.loc[table["unit"] == names[0], "damage"] = value
    table.to_csv(tmp_path / "rows.csv", index=False)
    says = f"damage of {re.escape(names[0])} is {value}"
    refused(says, rose.prune_model, model, some_tokens(), allocation=f"damage:{tmp_path}", **options)
