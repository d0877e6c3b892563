"""Models that are not what they seem are refused, in a sentence, before anything is computed or written."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import rose
from rose.model.network.layers import check_not_shared
from rose.model.network.network import Network
from rose.model.network.residence import evaluating
from tests.model.families import make_model, make_tokens
from tests.tiny import byte_tokenizer

TOKENS = make_tokens(4)


class Adapted(nn.Module):
    """A layer with an adapter, as peft has it."""

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


def adapted() -> Any:
    return changed(lambda mlp: setattr(mlp, "up_proj", Adapted(mlp.up_proj)))


def masked() -> Any:
    return changed(lambda mlp: prune.l1_unstructured(mlp.up_proj, "weight", 0.3))


def normed() -> Any:
    return changed(lambda mlp: parametrizations.weight_norm(mlp.up_proj))


def offloaded() -> Any:
    """As accelerate leaves what it offloads."""
    return changed(lambda mlp: mlp.up_proj.to("meta"))


WRONG: dict[Callable[[], Any], str] = {
    adapted: r"up_proj is a layer with an adapter beside it.*merge_and_unload",
    masked: r"up_proj holds weights and their masks apart.*prune\.remove",
    normed: r"up_proj makes its weights of other tensors.*remove_parametrizations",
    offloaded: r"not in memory.*stream=True",
}


@pytest.mark.parametrize("make", WRONG)
def test_adapters_masks_and_offloaded_weights_are_refused_everywhere(make, tmp_path):
    model, dense = make(), make_model("llama")
    for use in (
        lambda: rose.prune_model(model, TOKENS, sparsity=0.5, block_size=8),
        lambda: rose.collect_statistics(model, TOKENS),
        lambda: rose.damage(model, TOKENS, sparsity=0.5, block_size=8),
        lambda: rose.prune_structured(model, TOKENS, ratio=0.2),
        lambda: rose.rotate_heads(model, TOKENS),
        lambda: rose.tune_model(model, dense, TOKENS, epochs=1, unpruned=True),
        lambda: rose.tune_model(dense, model, TOKENS, epochs=1, unpruned=True),
        lambda: rose.check_checkpoint(dense, model),
        lambda: rose.save_model(model, byte_tokenizer(), tmp_path / "saved"),
    ):
        with pytest.raises(rose.RoseError, match=WRONG[make]):
            use()
    assert not any(tmp_path.iterdir())


def test_perplexity_is_that_of_adapters_and_masks_but_needs_weights():
    for make in (adapted, masked, normed):
        assert rose.perplexity(make(), TOKENS) > 1
    with pytest.raises(rose.RoseError, match="not in memory"):
        rose.perplexity(offloaded(), TOKENS)


def test_weights_that_two_layers_share_are_seen_also_through_data():
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


def test_a_model_that_has_no_room_on_the_device_is_what_it_was(monkeypatch):
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2)).train()
    module[1].eval()
    moves: list[torch.device] = []

    def no_room(device: torch.device) -> None:
        moves.append(device)
        if device.type != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "to", no_room)
    with pytest.raises(torch.OutOfMemoryError), evaluating(module, torch.device("cuda")):
        pass
    assert [one.training for one in module.modules()] == [True, True, False, True]
    assert moves == [torch.device("cuda"), torch.device("cpu")]
