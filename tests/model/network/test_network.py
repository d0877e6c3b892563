"""Models with adapters, masks or missing weights are refused; OATS saves its factors beside the sum."""

import copy
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers import AutoModelForCausalLM

import rose
from rose.model.measure.comparison import compare_methods, plan_comparison
from rose.model.network.layers import LEFT, RIGHT, check_not_shared, low_rank_tensors, prunable_layers
from rose.model.network.network import Network
from rose.model.network.residence import evaluating
from tests.model.families import make_model, make_tokens
from tests.refusals import refused
from tests.tiny import byte_tokenizer

TOKENS = make_tokens(4)


class Adapted(nn.Module):
    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base_layer.out_features, bias=False)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def changed(change: Callable[[Any], Any]) -> Any:
    """A model in which this was done to the MLP of every decoder block."""
    model = make_model("llama")
    for block in Network(model).blocks:
        change(block.mlp)
    return model


WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "adapted": (
        lambda mlp: setattr(mlp, "up_proj", Adapted(mlp.up_proj)),
        r"up_proj is a layer with an adapter beside it.*merge_and_unload",
    ),
    "masked": (
        lambda mlp: prune.l1_unstructured(mlp.up_proj, "weight", 0.3),
        r"up_proj holds weights and their masks apart.*prune\.remove",
    ),
    "normed": (
        lambda mlp: parametrizations.weight_norm(mlp.up_proj),
        r"up_proj makes its weights of other tensors.*remove_parametrizations",
    ),
    "offloaded": (lambda mlp: mlp.up_proj.to("meta"), r"not in memory.*stream=True"),  # as accelerate leaves weights
}


@pytest.mark.parametrize("case", WRONG)
def test_adapters_masks_and_offloaded_weights_are_refused_everywhere(case, tmp_path):
    change, message = WRONG[case]
    model, dense = changed(change), make_model("llama")
    for use in (
        lambda: rose.prune_model(model, TOKENS, sparsity=0.5, block_size=8),
        lambda: rose.collect_statistics(model, TOKENS),
        lambda: rose.damage(model, TOKENS, sparsity=0.5, block_size=8),
        lambda: rose.prune_structured(model, TOKENS, ratio=0.2),
        lambda: rose.tune_model(model, dense, TOKENS, epochs=1, unpruned=True),
        lambda: rose.tune_model(dense, model, TOKENS, epochs=1, unpruned=True),
        lambda: rose.check_checkpoint(dense, model),
        lambda: rose.save_model(model, byte_tokenizer(), tmp_path / "saved"),
    ):
        refused(message, use)
    assert not any(tmp_path.iterdir())


def test_perplexity_is_that_of_adapters_and_masks_but_needs_weights():
    for case in ("adapted", "masked", "normed"):
        assert rose.perplexity(changed(WRONG[case][0]), TOKENS) > 1
    refused("not in memory", rose.perplexity, changed(WRONG["offloaded"][0]), TOKENS)


def test_shared_weights_are_recognized_through_data():
    model = make_model("llama")
    layers = rose.prunable_layers(model)
    check_not_shared(layers, layers)
    experts = rose.prunable_layers(make_model("qwen3_moe"))
    check_not_shared(experts, experts)  # views of one tensor, but of different parts of it
    blocks: Any = Network(model).blocks
    before = copy.deepcopy(model.state_dict())
    blocks[1].mlp.up_proj.weight.data = blocks[0].mlp.up_proj.weight.data
    with pytest.raises(rose.RoseError, match=r"0\.mlp\.up_proj and .*1\.mlp\.up_proj are the same weights"):
        rose.prune_model(model, TOKENS, sparsity=0.5, block_size=8)
    assert torch.equal(blocks[0].mlp.up_proj.weight, before["model.layers.0.mlp.up_proj.weight"])


def test_models_too_large_for_the_device_are_unchanged(monkeypatch):
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2)).train()
    module[1].eval()
    move = Mock(side_effect=[torch.OutOfMemoryError("CUDA out of memory"), module])
    monkeypatch.setattr(module, "to", move)
    with pytest.raises(torch.OutOfMemoryError), evaluating(module, torch.device("cuda")):
        pass
    assert [part.training for part in module.modules()] == [True, True, False, True]
    assert [call.args[0].type for call in move.call_args_list] == ["cuda", "cpu"]


OATS = {"method": "oats", "sparsity": 0.5, "block_size": 16, "options": {"iterations": 4, "rank_ratio": 0.4}}


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # GPT-2 stores its weights transposed
def test_saved_factors_are_a_file_beside_an_ordinary_checkpoint(family, tmp_path):
    model = make_model(family)
    report = rose.prune_model(model, make_tokens(), **OATS)
    rose.save_model(model, byte_tokenizer(), tmp_path / "out", report=report)
    factors = load_file(tmp_path / "out" / "low_rank.safetensors")
    layers = prunable_layers(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    assert len(factors) == 2 * len(layers)
    rows = report.layers.set_index("layer")
    for layer in layers:
        left, right = factors[layer.name + LEFT], factors[layer.name + RIGHT]
        sparse = layer.weight - left @ right
        nonzeros = int((sparse.abs() > 1e-5 * layer.weight.abs().max()).sum())
        stored = nonzeros + left.numel() + right.numel()
        assert 1 - stored / layer.weight.numel() == pytest.approx(rows.loc[layer.name, "sparsity"], abs=0.01)


def test_a_comparison_leaves_the_dense_model_without_factors():
    model = make_model("llama")
    plan = plan_comparison(["oats"], ["0.5"])
    assert len(list(compare_methods(model, lambda _seed: (TOKENS, None), TOKENS, plan, seeds=[0]))) == 1
    assert not low_rank_tensors(model.named_modules())
