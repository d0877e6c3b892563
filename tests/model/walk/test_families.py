"""Every supported family: the pipeline against the model's own forward pass."""

import copy
import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rose
from rose.model.network.layers import decoder_blocks
from rose.model.network.network import Network
from rose.model.walk.forward import check_blocks, record_inputs
from rose.tensor_files import digest
from tests.layer.helpers import statistics_of
from tests.model.families import DENSE, EXPERTS, UNCHAINED, UNKNOWN_EXPERTS, VOCABULARY, logits, make_model, make_tokens
from tests.refusals import refused

OPTIONS: dict[str, Any] = {"block_size": 16}

PROJECTIONS = {
    "llama": [
        *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    ],
    "phi3": ["self_attn.o_proj", "self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj"],
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "opt": ["self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2"],
    "gpt_neox": ["attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
    "bloom": ["self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
}
SAME_AS = dict.fromkeys(["mistral", "qwen3", "gemma3"], "llama") | {"opt_projected": "opt", "openai_gpt": "gpt2"}
SAME_AS |= dict.fromkeys(["falcon", "falcon_alibi", "falcon_grouped"], "bloom")
SAME_AS |= {"gpt_neox_sequential": "gpt_neox"}

every_family = pytest.mark.parametrize("family", DENSE)
pytestmark = pytest.mark.usefixtures("small_batches")


def hooked_inputs(
    model: nn.Module, names: Sequence[str], tokens: Tensor, run: Callable[..., Any] | None = None
) -> dict[str, Tensor]:
    """What these layers read in the model's own forward pass, (tokens, in), sample after sample."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str, _module: nn.Module, args: tuple[Tensor]) -> None:
        seen[name].append(args[0].flatten(0, -2).clone())

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(model.get_submodule(name).register_forward_pre_hook(functools.partial(keep, name)))
        for sample in tokens:
            run(sample[None]) if run else logits(model, sample[None])
    return {name: torch.cat(parts) for name, parts in seen.items()}


@every_family
def test_layers_are_found_by_structure(family):
    model = make_model(family)
    layers = rose.prunable_layers(model)
    assert [x.projection for x in layers if x.block_index == 0] == PROJECTIONS[SAME_AS.get(family, family)]
    modules = dict(model.named_modules())
    for layer in layers:
        assert modules[layer.name] is layer.module
        assert layer.name.endswith(f".{layer.block_index}.{layer.projection}")
    name, blocks = decoder_blocks(model)
    assert model.get_submodule(name) is blocks
    assert {x.block_index for x in layers} == set(range(model.config.num_hidden_layers)) == set(range(len(blocks)))
    # Everything linear but the head, and what projects embeddings, is inside.
    outside = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    outside = [name for name in outside if name not in {x.name for x in layers}]
    assert set(outside) <= {"lm_head", "embed_out", "model.decoder.project_in", "model.decoder.project_out"}


MODES: list[dict[str, Any]] = [
    {"target": "dense"},
    {"target": "layer"},
    *({"method": name} for name in ("rose_global", "sparsegpt", "wanda", "magnitude")),
    {"true_sequential": True},
]


@pytest.mark.parametrize(("family", "mode"), [*product(DENSE, MODES), *product(EXPERTS, MODES[:2])], ids=str)
def test_ratio_zero_leaves_the_logits_bit_identical(family, mode):
    model = make_model(family)
    before = logits(model)
    report = rose.prune_model(model, make_tokens(), sparsity=0, **OPTIONS | mode)
    assert torch.equal(logits(model), before)
    assert (report.layers["sparsity"] == 0).all()
    assert (report.layers["relative_error"] == 0).all()


def assert_half(model: Any, report: rose.RunReport, sparsity: float | str) -> None:
    """Half of every layer is gone, by 2:4 half of every four columns."""
    layers = rose.prunable_layers(model)
    assert report.layers["layer"].tolist() == [layer.name for layer in layers]
    assert (report.layers["sparsity"] == 0.5).all()
    for layer, error in zip(layers, report.layers["relative_error"], strict=True):
        assert int(layer.weight.eq(0).sum()) == layer.weight.numel() // 2, layer.name
        assert 0 < error < 1, layer.name
        if sparsity == "2:4":
            assert (layer.weight.ne(0).unflatten(1, (-1, 4)).sum(2) == 2).all()
    assert logits(model).isfinite().all()


@every_family
@pytest.mark.parametrize(("method", "sparsity"), [("rose", 0.5), ("rose_global", 0.5), ("rose", "2:4")])
def test_every_layer_has_the_requested_sparsity(family, method, sparsity):
    model = make_model(family)
    before = logits(model)
    report = rose.prune_model(model, make_tokens(), method=method, sparsity=sparsity, **OPTIONS)
    assert_half(model, report, sparsity)
    assert not torch.equal(before, logits(model))


@every_family
def test_statistics_equal_those_of_plain_hooks(family):
    model, tokens = make_model(family), make_tokens()
    names = [layer.name for layer in rose.prunable_layers(model)]
    statistics = rose.collect_statistics(model, tokens)
    assert set(statistics) == set(names)
    for name, inputs in hooked_inputs(model, names, tokens).items():
        assert statistics[name].tokens == tokens.numel() == len(inputs)
        x = inputs.double()
        hessian = x.T @ x
        assert (statistics[name].hessian.double() - hessian).abs().max() <= 1e-5 * hessian.abs().max(), name
        assert (statistics[name].mean.double() - x.mean(0)).abs().max() <= 1e-5 * x.abs().max()


@every_family
def test_pruned_blocks_feed_the_next(family):
    """The same run by hand: prune a block on what the whole, partly pruned model shows it; then the next."""
    model, tokens = make_model(family), make_tokens()
    by_hand = copy.deepcopy(model)
    report = rose.prune_model(model, tokens, method="sparsegpt", sparsity=0.5, target="layer", **OPTIONS)
    layers = rose.prunable_layers(by_hand)
    for index in range(by_hand.config.num_hidden_layers):
        here = [layer for layer in layers if layer.block_index == index]
        seen = hooked_inputs(by_hand, [layer.name for layer in here], tokens)
        for layer in here:
            statistics = statistics_of(seen[layer.name])
            result = rose.prune_layer(layer.weight, statistics, method="sparsegpt", sparsity=0.5, **OPTIONS)
            layer.write(result.weight)
    errors = dict(zip(report.layers["layer"], report.layers["relative_error"], strict=True))
    for ours, theirs in zip(rose.prunable_layers(model), layers, strict=True):
        assert (ours.weight.eq(0) == theirs.weight.eq(0)).float().mean() > 0.99, ours.name  # rounding breaks near ties
        assert (ours.weight - theirs.weight).abs().mean() <= 0.01 * theirs.weight.abs().mean(), ours.name
    # With dense blocks below, the last block's errors would come out differently.
    dense = rose.analyze_model(make_model(family), tokens, methods=["sparsegpt"], sparsity=0.5, **OPTIONS)
    last = [record for record in dense if record.block_index == by_hand.config.num_hidden_layers - 1]
    assert any(abs(record.relative_error / errors[record.layer] - 1) > 1e-3 for record in last)


def test_equal_masks_are_stored_once():
    """Gemma 3 alternates sliding and full attention."""
    network, tokens = Network(make_model("gemma3")), make_tokens()
    recorded = record_inputs(network, tokens, check_blocks(network, tokens))
    masks = [arguments[0][1]["attention_mask"] for arguments in recorded]
    assert masks[0] is not None
    assert masks[0] is masks[2]


@every_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_models_keep_their_dtype(family, dtype):
    model = make_model(family).to(dtype)
    before = logits(model)
    rose.prune_model(model, make_tokens(), sparsity=0, **OPTIONS)
    assert torch.equal(logits(model), before)
    report = rose.prune_model(model, make_tokens(), sparsity=0.5, **OPTIONS)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert (report.layers["sparsity"] == 0.5).all()
    for layer in rose.prunable_layers(model):
        zeros, removed = int(layer.weight.eq(0).sum()), layer.weight.numel() // 2
        assert removed <= zeros <= removed + 1  # a kept weight may round to zero in float16


@pytest.mark.parametrize("family", ["gpt2", "opt", "bloom"])
def test_dropout_stays_off_in_a_model_in_training_mode(family):
    model, tokens = make_model(family), make_tokens()
    evaluated = rose.collect_statistics(model, tokens)
    model.train()
    trained = rose.collect_statistics(model, tokens)
    for name, statistics in evaluated.items():
        assert torch.equal(statistics.hessian, trained[name].hessian), name
    assert all(module.training for module in model.modules())
    assert rose.perplexity(model, tokens) == pytest.approx(rose.perplexity(model.eval(), tokens))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, hidden_states: Tensor, extra: Tensor | None = None) -> Tensor:
        return hidden_states + self.linear(hidden_states if extra is None else hidden_states * extra).tanh()


class Toy(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=VOCABULARY)
        self.how = how
        self.embed = nn.Embedding(VOCABULARY, 16)
        self.layers = nn.ModuleList([Block(), Block(), Block()])

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Tensor:
        x = self.embed(input_ids)
        layers = [*self.layers, *(self.layers if self.how == "twice" else [])]
        extra = x if self.how in ("argument", "same argument") else None
        for layer in reversed(layers) if self.how == "backwards" else layers:
            x = layer(hidden_states=x, extra=extra) if self.how == "keyword" else layer(x, extra=extra)
            if self.how == "between":
                x = x * 0.5
            if self.how == "argument":
                extra = x.mean(-1, keepdim=True)
        return x


@pytest.mark.parametrize("how", ["between", "twice", "backwards", "argument"])
def test_blocks_that_are_not_a_chain_are_refused(how):
    """Running them one by one would calibrate on inputs that the model never sees."""
    message = "Toy does not simply pass hidden states from one decoder block to the next"
    refused(message, rose.collect_statistics, Toy(how), make_tokens())


@pytest.mark.parametrize("how", ["keyword", "same argument"])
def test_chains_are_accepted_under_any_name(how):
    toy = Toy(how)
    statistics = rose.collect_statistics(toy, make_tokens())
    for name, inputs in hooked_inputs(toy, list(statistics), make_tokens(), run=toy).items():
        torch.testing.assert_close(statistics[name].hessian, inputs.T @ inputs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", [*UNCHAINED, *UNKNOWN_EXPERTS])
def test_families_without_a_chain_and_unknown_experts_are_refused(family):
    model = make_model(family)
    before = digest(model.state_dict())
    message = "not supported yet; choose another model"
    if family in UNKNOWN_EXPERTS:
        message = r"fused three-dimensional weights .*, as mixtures of experts do; .* not supported yet"
    refused(message, rose.prune_model, model, make_tokens(), sparsity=0.5)
    refused(message, rose.collect_statistics, model, make_tokens())
    assert digest(model.state_dict()) == before
