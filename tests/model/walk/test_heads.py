"""Heads of many families are found, and their rotation keeps the model's output."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from rose.layer.basis import HeadLayout
from rose.model.network.network import Network
from rose.model.walk.heads import value_heads
from rose.tensor_files import digest
from tests.model.families import DENSE, EXPERTS, logits, make_model, rotate_heads
from tests.pretend import pretend_cuda
from tests.refusals import refused

LAYOUTS = {  # values and output projection of the first decoder block, and the first rows of each head's values
    "llama": ("self_attn.v_proj", "self_attn.o_proj", (0, 0, 8, 8)),
    "phi3": ("self_attn.qkv_proj", "self_attn.o_proj", (48, 48, 56, 56)),
    "gpt2": ("attn.c_attn", "attn.c_proj", (64, 72, 80, 88)),
    "opt": ("self_attn.v_proj", "self_attn.out_proj", (0, 8, 16, 24)),
    "gpt_neox": ("attention.query_key_value", "attention.dense", (16, 40, 64, 88)),
    "bloom": ("self_attention.query_key_value", "self_attention.dense", (16, 40, 64, 88)),
    "falcon": ("self_attention.query_key_value", "self_attention.dense", (40, 40, 40, 40)),
    "falcon_grouped": ("self_attention.query_key_value", "self_attention.dense", (24, 24, 56, 56)),
    "deepseek_v3": ("self_attn.kv_b_proj", "self_attn.o_proj", (8, 24, 40, 56)),
}


def with_biases(model: nn.Module) -> nn.Module:
    """Biases that are not zero, as they are in a trained model."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 4)
    return model


def difference(after: Tensor, before: Tensor) -> float:
    return float((after.double() - before.double()).norm() / before.double().norm())


@pytest.mark.parametrize("family", [*DENSE, *EXPERTS, "diff_llama"])  # of a pair of heads both read the same values
def test_rotation_keeps_the_outputs_of_every_family(family):
    model = with_biases(make_model(family))
    before = logits(model)
    assert len(rotate_heads(model)) == len(Network(model).blocks)
    assert difference(logits(model), before) < 1e-5


@pytest.mark.parametrize("family", LAYOUTS)
def test_heads_of_every_family_are_found(family):
    with pretend_cuda() if family == "falcon_grouped" else nullcontext():
        network = Network(make_model(family))
        first = value_heads(network)[0]
    assert (first.values.projection, first.output.projection, first.rows) == LAYOUTS[family]
    assert first.layout == HeadLayout(8, tuple(sorted(set(first.rows)).index(row) for row in first.rows))
    assert digest(network.model.state_dict()) == digest(make_model(family).state_dict())


BETWEEN = {  # the values and what reads them
    "norm": lambda values: values * torch.linspace(1, 2, 32),
    "gate": lambda values: values * values.sigmoid(),
    "mixture": lambda values: values + values.roll(8, -1),
}


@pytest.mark.parametrize("operation", [*BETWEEN, "keys", "chosen"])
def test_attention_with_an_operation_between_is_refused(operation):
    model = make_model("llama")
    for attention in (layer.self_attn for layer in model.model.layers):
        if operation == "keys":  # they read the values too
            attention.k_proj = attention.v_proj
        elif operation in BETWEEN:
            attention.o_proj.register_forward_pre_hook(lambda _m, args: (BETWEEN[operation](args[0]),))
    layers = ["*q_proj"] if operation == "chosen" else None
    refused("LlamaForCausalLM no output projection reads values", value_heads, Network(model), layers)
