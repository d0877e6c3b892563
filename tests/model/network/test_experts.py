"""Mixtures of experts: each matrix of a fused expert is a layer, with the statistics of the tokens routed to it."""

from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rose
from rose.layer.error import direct_error
from rose.layer.hessian import MAX_DAMPING, sampling_damping
from rose.model.network.experts import ExpertLinear, experts_apart, is_experts
from tests.layer.helpers import statistics_of
from tests.model.families import EXPERTS, logits, make_model, make_tokens
from tests.model.walk.test_families import assert_half, hooked_inputs

OPTIONS: dict[str, Any] = {"block_size": 16}
pytestmark = pytest.mark.usefixtures("small_batches")
every_family = pytest.mark.parametrize("family", EXPERTS)


def inputs_by_hand(model: nn.Module, tokens: Tensor) -> dict[str, list[Tensor]]:
    """What each expert's matrices read, from the routes and the stored parameters alone, in the model's own pass."""
    seen: dict[str, list[Tensor]] = {}

    def hook(name: str, experts: Any, args: tuple[Tensor, Tensor, Tensor]) -> None:
        hidden, routes, _ = args
        for number in range(4):
            inputs = hidden[(routes == number).any(1)]
            first = experts.gate_up_proj[number]
            fused = inputs @ (first if experts.is_transposed else first.T)
            if experts.has_bias:
                fused = fused + experts.gate_up_proj_bias[number]
            for part, value in (("gate_proj", inputs), ("up_proj", inputs), ("down_proj", experts._apply_gate(fused))):
                seen.setdefault(f"{name}.{number}.{part}", []).append(value)

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if is_experts(module):
                hooks.enter_context(module.register_forward_pre_hook(partial(hook, name)))
        for sample in tokens:
            logits(model, sample[None])
    return seen


@every_family
def test_single_experts_have_the_same_outputs(family):
    model = make_model(family)
    before = logits(model)
    with experts_apart(model):
        torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-6)
    assert not any("forward" in vars(module) or isinstance(module, ExpertLinear) for module in model.modules())


@every_family
def test_every_matrix_of_an_expert_is_a_layer_and_a_router_is_not(family):
    model = make_model(family)
    layers = {layer.name: layer for layer in rose.prunable_layers(model)}
    experts = {name: layer for name, layer in layers.items() if layer.is_expert}
    parameters = {name: p for name, p in model.named_parameters() if p.ndim == 3}
    assert sum(layer.weight.numel() for layer in experts.values()) == sum(p.numel() for p in parameters.values())
    last = "model.layers.1.mlp.experts"
    parts = [f"{last}.3.{part}_proj" for part in ("gate", "up", "down")]
    assert [name for name in experts if name.startswith(f"{last}.3.")] == parts
    assert not [name for name in layers if name.endswith((".gate", ".router", "shared_expert_gate"))]
    # The weights are views: what is written there is in the model, and nothing else.
    before = {name: p.clone() for name, p in model.named_parameters()}
    up = layers[f"{last}.2.up_proj"]
    up.write(torch.full_like(up.weight, 7.0))
    changed = {name: int((p != before[name]).sum()) for name, p in model.named_parameters()}
    assert {name: count for name, count in changed.items() if count} == {f"{last}.gate_up_proj": up.weight.numel()}
    model.double()
    assert up.weight.dtype == torch.float64


@every_family
def test_statistics_of_an_expert_are_of_the_tokens_routed_to_it(family):
    model, tokens = make_model(family), make_tokens()
    statistics = rose.collect_statistics(model, tokens)
    by_hand = inputs_by_hand(model, tokens)
    assert set(by_hand) == {layer.name for layer in rose.prunable_layers(model) if layer.is_expert}
    for name, parts in by_hand.items():
        x = torch.cat(parts).double()
        assert statistics[name].tokens == len(x)
        assert (statistics[name].hessian.double() - x.T @ x).abs().max() <= 1e-5 * (x.T @ x).abs().max(), name
    assert len({statistics[name].tokens for name in by_hand}) > 1
    gate = "model.layers.1.mlp.experts.2.gate_proj"
    assert statistics[gate] is statistics[gate.replace("gate", "up")]
    others = [layer.name for layer in rose.prunable_layers(model) if not layer.is_expert]
    for name, inputs in hooked_inputs(model, others, tokens).items():  # shared experts among them
        torch.testing.assert_close(statistics[name].hessian, inputs.T @ inputs, rtol=1e-4, atol=1e-4)


@every_family
@pytest.mark.parametrize(("target", "sparsity"), [("dense", 0.5), ("layer", "2:4")])
def test_every_expert_has_the_requested_sparsity(family, target, sparsity):
    model = make_model(family)
    held_out = make_tokens(2, seed=3)
    report = rose.prune_model(model, make_tokens(), sparsity=sparsity, target=target, held_out=held_out, **OPTIONS)
    assert_half(model, report, sparsity)
    expert = report.layers["layer"].str.contains(r"experts\.\d")
    assert (report.layers.loc[~expert, "tokens"] == make_tokens().numel()).all()
    assert report.layers.loc[expert, "tokens"].between(1, make_tokens().numel()).all()
    assert (report.layers["target_error"].notna() == (target == "dense")).all()


@pytest.mark.parametrize("target", ["dense", "layer"])
@pytest.mark.parametrize("allocation", ["uniform", "owl", "sensitivity"])
def test_experts_without_tokens_stay_dense(target, allocation):
    model, tokens = make_model("sparse_experts"), make_tokens(2, 8)
    before = {layer.name: layer.weight.clone() for layer in rose.prunable_layers(model)}
    options = {"sparsity": 0.5, "target": target, "allocation": allocation, "min_expert_tokens": 2}
    report = rose.prune_model(model, tokens, held_out=make_tokens(1, 8, seed=3), **options, **OPTIONS)
    table = report.layers.set_index("layer")
    assert set(table.index) == set(before)
    few = table["tokens"] < 2
    assert set(table.loc[few, "tokens"]) == {0, 1}
    assert few.sum() < len(table)
    for layer in rose.prunable_layers(model):
        assert torch.equal(layer.weight, before[layer.name]) == few[layer.name], layer.name
    assert (table.loc[few, "sparsity"] == 0).all()
    assert (table.loc[~few, "sparsity"] > 0).all()
    assert report.summary["experts_left_dense"] == few.sum()
    assert report.summary["fewest_expert_tokens"] == 0
    assert rose.RunReport.from_json(report.to_json()).layers["tokens"].tolist() == table["tokens"].tolist()


def test_damping_helps_experts_with_few_tokens():
    """Inputs of which half can be told from the others: held-out errors by the rule, and by the usual damping."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(8, 64, generator=generator)
    weight = torch.randn(64, 64, generator=generator)

    def draw(tokens: int) -> Tensor:
        sources = torch.randn(tokens, 8, generator=generator) / 8**0.5
        return sources @ mixing + torch.randn(tokens, 64, generator=generator)

    held_out = draw(4096)

    def error(statistics: rose.InputStatistics, damping: float) -> float:
        pruned = rose.prune_layer(weight, statistics, method="sparsegpt", sparsity=0.5, damping=damping, **OPTIONS)
        return direct_error(weight, pruned.weight, held_out)

    for tokens in (8, 32, 128, 512):
        statistics = statistics_of(draw(tokens))
        assert error(statistics, sampling_damping(64, tokens)) < error(statistics, 0.01), tokens
    assert sampling_damping(64, 8) == MAX_DAMPING
    assert sampling_damping(64, 64000) == 0.001  # below the usual one, which then stays
