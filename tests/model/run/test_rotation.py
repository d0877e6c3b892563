"""Rotated heads of many families: outputs stay equal, and only gains are kept."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rose
from rose.layer.basis import HeadLayout
from rose.model.network.heads import rotated_heads
from rose.model.network.network import Network
from rose.model.run.rotation import value_heads
from rose.tensor_files import digest
from tests.model.families import DENSE, EXPERTS, logits, make_model, make_tokens, read_both_ways, save, stop_at
from tests.pretend import pretend_cuda
from tests.refusals import cancelled, refused

pytestmark = pytest.mark.usefixtures("small_batches")
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
    table = rose.rotate_heads(model, make_tokens(), basis="random")
    assert len(table) == len(Network(model).blocks)
    assert table["rotated"].all()
    assert difference(logits(model), before) < 1e-5
    rounded = with_biases(make_model(family)).bfloat16()
    rotated = copy.deepcopy(rounded).float()  # both are computed in float32, so that only weights are rounded
    rose.rotate_heads(rounded, make_tokens(), basis="random")
    assert difference(logits(rounded.float()), logits(rotated)) < 0.03


@pytest.mark.parametrize("family", LAYOUTS)
def test_heads_of_every_family_are_found(family):
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


@pytest.mark.parametrize("operation", [*BETWEEN, "keys"])
def test_attention_with_an_operation_between_is_refused(operation):
    model = make_model("llama")
    for attention in (layer.self_attn for layer in model.model.layers):
        if operation == "keys":  # they read the values too
            attention.k_proj = attention.v_proj
        else:
            attention.o_proj.register_forward_pre_hook(lambda _m, args: (BETWEEN[operation](args[0]),))
    before = digest(model.state_dict())
    refused("LlamaForCausalLM no output projection reads values", rose.rotate_heads, model, make_tokens())
    assert digest(model.state_dict()) == before
    assert rotated_heads(model) is None


def test_a_method_that_judges_has_only_its_gains_rotated():
    model, dense = make_model("gemma3"), make_model("gemma3")
    table = rose.rotate_heads(model, make_tokens(8), basis="gathered", method="sparsegpt", sparsity=0.6, block_size=16)
    assert 0 < table["rotated"].sum() < len(table)
    assert (table["rotated"] == (table["rotated_error"] < table["error"])).all()
    assert rotated_heads(model) == {"basis": "gathered", "layers": [*table.loc[table["rotated"], "layer"]]}
    weights, given = model.state_dict(), dense.state_dict()
    for row in table.itertuples():
        same = torch.equal(weights[f"{row.layer}.weight"], given[f"{row.layer}.weight"])
        assert same == (not row.rotated)
    # What it says is what pruning each layer says, by three quarters of the samples and on the last quarter.
    tokens = make_tokens(8)
    records = {}
    for name, model_analyzed in (("error", dense), ("rotated_error", model)):
        options: dict[str, Any] = {"sparsity": 0.6, "block_size": 16, "compute": "float32", "layers": ["*o_proj"]}
        analyzed = rose.analyze_model(model_analyzed, tokens[:6], methods=["sparsegpt"], held_out=tokens[6:], **options)
        records[name] = {record.layer: record.held_out_error for record in analyzed}
    for row in table.itertuples():
        assert row.error == pytest.approx(records["error"][row.layer], rel=1e-3)
        if row.rotated:
            assert row.rotated_error == pytest.approx(records["rotated_error"][row.layer], rel=1e-3)


def test_rotation_on_a_gpu_matches_the_processor():
    models = []
    for place in (nullcontext, pretend_cuda):
        models.append(make_model("falcon_grouped"))
        with place():
            table = rose.rotate_heads(models[-1], make_tokens(), method="rose", sparsity=0.5, block_size=16)
    assert len(table) == 2
    for name, weight in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[name], weight, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "samples", "message"),
    [
        ({"layers": ["*q_proj"]}, 5, "that were chosen no output projection"),
        ({"method": "sparsegpt"}, 1, "give at least 2 calibration samples, not 1"),
        ({"method": ["rose", "unknown"]}, 5, "unknown"),
    ],
)
def test_bad_input_is_refused(options, samples, message):
    refused(message, rose.rotate_heads, make_model("llama"), make_tokens(samples), **options)


@pytest.mark.parametrize("low_rank", [False, True])
def test_a_pruned_model_is_refused(low_rank):
    model = make_model("llama")
    heads = value_heads(Network(model))[1]
    if low_rank:  # as OATS leaves one: the sum of both parts has no zeros
        heads.values.keep_low_rank((torch.ones(16, 1), torch.ones(1, 32)))
    else:
        heads.output.write(heads.output.weight * (heads.output.weight > 0))
    refused(r"has (zeros|a sparse and a low-rank part) already", rose.rotate_heads, model, make_tokens())


def test_a_run_that_is_stopped_leaves_a_model_that_computes_the_same():
    model = make_model("gemma3")
    before = logits(model)
    cancelled(rose.rotate_heads, model, make_tokens(), progress=stop_at("calibrate", 2))
    assert difference(logits(model), before) < 1e-4


@pytest.mark.parametrize(("family", "dtype"), [("gemma3", "float32"), ("gpt2", "bfloat16")])
def test_rotation_of_a_streamed_model_matches_memory_to_the_bit(family, dtype, tmp_path):
    options: dict[str, Any] = {"sparsity": 0.5, "block_size": 16, "checkpoint": tmp_path / "kept"}

    def rotate_and_prune(model: nn.Module) -> rose.RunReport:
        residence = Network(model).residence
        dense = residence.fingerprint()
        rose.rotate_heads(model, make_tokens(), block_size=16)
        assert residence.fingerprint() != dense
        report = rose.prune_model(model, make_tokens(), **options | {"checkpoint": tmp_path / dense[:8]})
        assert report.summary["rotated_heads"]["basis"] == "learned"
        return report

    read_both_ways(save(family, tmp_path / "dense"), tmp_path, rotate_and_prune, dtype=dtype)


def test_a_checkpoint_of_rotated_heads_is_not_that_of_the_given_ones(tmp_path):
    model, options = make_model("llama"), {"sparsity": 0.5, "block_size": 16, "checkpoint": tmp_path}
    rose.rotate_heads(model, make_tokens(), block_size=16)
    rose.prune_model(model, make_tokens(), **options)
    says = "rotated heads was learned there and is None now"
    refused(says, rose.prune_model, make_model("llama"), make_tokens(), **options)
