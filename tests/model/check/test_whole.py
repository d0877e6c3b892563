"""Removed parts, changes outside of layers, and several checkpoints of one model."""

import copy
import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rose
from rose import cli
from rose.model.check.change import weight_change
from rose.model.check.check import EVEN, better_by_layer, check_checkpoint, common_masks, pair_layers
from rose.model.check.findings import findings, says_alike
from rose.model.check.inputs import walk_both
from rose.model.check.others import Gone
from rose.model.check.result import CheckpointCheck
from rose.model.check.verdicts import Verdict
from rose.model.network.network import Network
from rose.wording import count, word
from tests.model.check.faults import compensate
from tests.model.families import make_model, make_tokens, rotate_heads
from tests.refusals import refused
from tests.tiny import save_tiny_llama


def halved(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for layer in rose.prunable_layers(model):
        layer.write(compensate(layer.weight, 0.5))
    return model


def others_of(check: CheckpointCheck) -> dict[str, tuple[str, str, bool]]:
    table = check.others.set_index("name")
    return {name: (row["kind"], row["verdict"], row["is_wrong"]) for name, row in table.iterrows()}


def test_empty_heads_rows_and_columns_are_counted():
    dense = make_model("llama")  # 4 heads of 8
    pruned = halved(dense)
    pruned.model.layers[1].self_attn.o_proj.weight.data[:, 16:24] = 0
    pruned.model.layers[0].mlp.up_proj.weight.data[[3, 5]] = 0
    check = check_checkpoint(dense, pruned)
    gone = {"heads": ["model.layers.1.self_attn.o_proj: 2"], "rows": 2, "columns": 8}
    assert gone.items() <= check.summary["gone"].items()
    reasons = check.layers.set_index("layer")["reason"]
    assert reasons["model.layers.1.self_attn.o_proj"].endswith("Nothing is left of eight columns, head 2.")
    assert reasons["model.layers.0.mlp.up_proj"].endswith("Nothing is left of two rows.")
    assert "Two output rows have no weight left: two of model.layers.0.mlp.up_proj." in " ".join(findings(check))


def test_heads_are_as_wide_as_their_values():
    """As of DeepSeek: what a head reads of the positions is narrower than what it puts out."""
    config = SimpleNamespace(num_attention_heads=4, head_dim=2, v_head_dim=8, hidden_size=32)
    dense, pruned = (rose.prunable_layers(make_model("llama")) for _ in range(2))
    pruned[3].weight[:, 16:24] = 0
    changes = {old.name: (old, weight_change(old.weight, new.weight)) for old, new in zip(dense, pruned, strict=True)}
    assert Gone.find(changes, config).heads == {"model.layers.0.self_attn.o_proj": [2]}


def test_single_numbers_are_compared_too():
    dense, pruned = make_model("llama"), make_model("llama")
    for model, scale in ((dense, 1.0), (pruned, math.nan)):
        model.model.layers[0].register_parameter("scale", nn.Parameter(torch.tensor(scale)))
    expected = {"model.layers.0.scale": ("other", Verdict.NUMBERS_BROKEN, True)}
    assert others_of(check_checkpoint(dense, pruned)) == expected


def test_removed_experts_and_removed_layers_are_distinguished():
    dense = make_model("mixtral")
    pruned = halved(dense)
    lost = "model.layers.1.mlp.experts.1"
    for layer in rose.prunable_layers(pruned):
        if layer.name.startswith(f"{lost}.") or layer.name == "model.layers.0.mlp.experts.0.up_proj":
            layer.write(torch.zeros(layer.weight.shape))
    check = check_checkpoint(dense, pruned)
    assert check.summary["gone"]["experts"] == [lost]
    wrong = check.wrong.set_index("name")["reason"]
    assert len(wrong) == 4
    assert wrong[f"{lost}.down_proj"].endswith("Nothing is left of this expert.")
    assert wrong["model.layers.0.mlp.experts.0.up_proj"].endswith("weights are zero.")


def test_changes_of_norms_biases_and_embeddings_are_reported_by_kind():
    dense: Any = make_model("opt")
    pruned: Any = halved(dense)
    first, second = pruned.model.decoder.layers
    with torch.no_grad():
        dense.model.decoder.layers[0].fc1.bias.fill_(0.5)
        dense.model.decoder.layers[0].self_attn.q_proj.bias.fill_(0.5)
        first.fc1.bias.fill_(0.6)
        first.self_attn.q_proj.bias = None
        first.fc2.weight.zero_()
        second.final_layer_norm.weight[3] = float("inf")
        second.self_attn_layer_norm.weight.zero_()
        table = pruned.model.decoder.embed_positions.weight
        table.copy_(torch.randn(table.shape))
    others = others_of(check_checkpoint(dense, pruned))
    part = "model.decoder.layers.{}.{}".format
    assert others == {
        part(0, "self_attn.q_proj.bias"): ("bias", Verdict.OTHER_MODEL, True),
        part(0, "fc1.bias"): ("bias", Verdict.NO_FAULT, False),
        part(1, "self_attn_layer_norm.weight"): ("norm", Verdict.NUMBERS_BROKEN, True),
        part(1, "final_layer_norm.weight"): ("norm", Verdict.NUMBERS_BROKEN, True),
        "model.decoder.embed_positions.weight": ("embedding", Verdict.OTHER_MODEL, True),
    }


def test_faults_outside_the_layers_are_named():
    dense, pruned = make_model("llama"), halved(make_model("llama"))
    turned = "turned round, or changed in size by more than 2 times."
    pruned.config.rms_norm_eps, pruned.config.rope_parameters = 1e-2, {"rope_type": "default", "rope_theta": 77.0}
    with torch.no_grad():
        pruned.model.layers[0].input_layernorm.weight.mul_(2)
        pruned.model.layers[1].input_layernorm.weight[3].neg_()
        pruned.model.embed_tokens.weight[7].neg_()
    check = check_checkpoint(dense, pruned)
    assert dict(check.wrong[["name", "reason"]].to_numpy()) == {
        "model.layers.0.input_layernorm.weight": "It moved by 100.0 % of its norm.",
        "model.layers.1.input_layernorm.weight": f"It moved by 35.4 % of its norm. Number 3 {turned}",
        "model.embed_tokens.weight": f"It moved by 20.8 % of its norm. Row 7 {turned}",
        "rms_norm_eps": "It is 0.01 here and 1e-06 in the dense model.",
        "rope_theta": "It is 77.0 here and 10000.0 in the dense model.",
    }


def test_a_longer_vocabulary_and_rounding_are_no_faults():
    dense: Any = make_model("llama")
    pruned = halved(dense)
    with torch.no_grad():
        for layer, was in zip(rose.prunable_layers(pruned), rose.prunable_layers(dense), strict=True):
            layer.write(was.weight.masked_fill(layer.weight == 0, 0).bfloat16().float())
        pruned.model.norm.weight.copy_(pruned.model.norm.weight.bfloat16())
    pruned.resize_token_embeddings(dense.config.vocab_size + 8)
    check = check_checkpoint(dense, pruned)
    assert check.is_sane
    assert set(check.layers["verdict"]) == {Verdict.MASK_ALONE}
    assert check.layers["reason"].str.contains("those of the dense model, rounded to bfloat16").all()
    assert set(check.layers["rounded"]) == {"bfloat16"}
    kinds = {"model.embed_tokens.weight": "embedding", "lm_head.weight": "output head"}
    assert others_of(check) == {name: (kind, Verdict.NO_FAULT, False) for name, kind in kinds.items()}
    assert check.others["reason"].str.startswith("It has 8 rows more").all()


def test_nan_in_one_layer_hides_nothing_of_the_others():
    dense, broken, tokens = make_model("llama"), "model.layers.0.mlp.up_proj", make_tokens()
    pruned: Any = halved(dense)
    pruned.model.layers[0].mlp.up_proj.weight.data[1, 2] = torch.nan
    check = check_checkpoint(dense, pruned, tokens, held_out=tokens[:1], methods=("wanda",), block_size=8)
    layers = check.layers.set_index("layer")
    assert check.wrong.iloc[0].tolist()[:2] == [broken, Verdict.NUMBERS_BROKEN]
    before = list(layers.index).index(broken)  # what comes after reads NaN, by which nothing can be measured
    assert layers["error"].notna().tolist() == [place < before for place in range(len(layers))]
    assert json.loads(check.to_json())["summary"]["perplexity_after"] is None


def test_tokens_that_the_checkpoint_does_not_know_are_refused():
    dense = make_model("llama")
    pruned: Any = halved(dense)
    pruned.resize_token_embeddings(5)
    refused("token", check_checkpoint, dense, pruned, make_tokens())


@pytest.mark.parametrize("target", ["layer", "dense"])
@pytest.mark.parametrize("method", ["sparsegpt", "rose", "rose_admm"])
def test_a_run_is_recognized_to_the_last_weight(method, target):
    """ROSE is told from SparseGPT by the columnar layers."""
    dense, tokens = make_model("llama"), make_tokens()
    with torch.no_grad():
        for layer in rose.prunable_layers(dense)[::2]:
            layer.weight[:, 5:9] *= 4
    pruned = copy.deepcopy(dense)
    rose.prune_model(pruned, tokens, method=method, sparsity=0.5, block_size=8, target=target)
    methods = ("wanda", "sparsegpt", "rose", "rose_admm")
    check = check_checkpoint(dense, pruned, tokens, methods=methods, block_size=8)
    made = check.summary["method"]
    assert (made["name"], made["target"], made["layers"], made["agreement"]) == (method, target, 14, 1.0)
    assert set(check.layers["nearest_method"]) == {method}
    if method == "rose_admm":
        assert (made["alike"], made["compared"]) == ({}, 14)
        return
    other = {"rose": "sparsegpt", "sparsegpt": "rose"}[method]
    (same,) = made["alike"].values()
    assert [*made["alike"]] == [other]
    assert 0 < same < made["compared"] == 14
    assert f" remove the same weights in {count(same, 'layer')} and differ in {word(14 - same)}." in says_alike(made)


def test_layers_that_read_one_tensor_share_its_statistics(two):
    dense, models, tokens = two
    networks = Network(dense), Network(models["wanda"])
    streams = {"calibration": tokens, "held_out": tokens[:1]}
    for block in walk_both(networks, pair_layers(*networks), streams):
        for inputs in block.inputs.values():
            layer = next(iter(inputs))
            assert len(inputs) == 7
            assert len({id(each.statistics) for each in inputs.values()}) == 4
            assert len({id(each.gap) for each in inputs.values()}) == 4
            assert {each.statistics.tokens for each in inputs.values()} == {inputs[layer].statistics.tokens}


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt"])  # shared values, fused ones, with a bias
def test_heads_that_were_rotated_are_compared_in_their_basis(family):
    dense, tokens = make_model(family), make_tokens()
    pruned = copy.deepcopy(dense)
    names = rotate_heads(pruned)
    turned = check_checkpoint(dense, pruned)
    assert turned.is_sane
    assert turned.layers["change"].max() < 1e-5
    partly = copy.deepcopy(pruned)  # rounding what was rotated and left dense loses no zeros
    rose.prune_model(partly, tokens, method="sparsegpt", sparsity=0.5, block_size=8, layers=["*.0.*"])
    assert check_checkpoint(dense, partly.bfloat16().float()).is_sane
    rose.prune_model(pruned, tokens, method="sparsegpt", sparsity=0.5, block_size=8)
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    check = check_checkpoint(dense, pruned, tokens, methods=("wanda", "sparsegpt"), block_size=8)
    assert check.summary["rotated_heads"] == turned.summary["rotated_heads"] == names
    assert not check.layers["verdict"].eq(Verdict.OTHER_MODEL).any()
    reasons = check.layers.set_index("layer")["reason"]
    assert all("heads fit those of the dense model after a rotation" in reasons[name] for name in names)
    assert check.summary["nearest"]["name"] == "sparsegpt"
    assert all(torch.equal(value, dense.state_dict()[name]) for name, value in before.items())


@pytest.fixture(scope="module")
def two() -> tuple[nn.Module, dict[str, nn.Module], Tensor]:
    """A dense model, copies of it by Wanda and by magnitude, and tokens."""
    dense, tokens = make_model("llama"), make_tokens()
    models = {method: copy.deepcopy(dense) for method in ("wanda", "magnitude")}
    for method, model in models.items():
        rose.prune_model(model, tokens, method=method, sparsity=0.5, target="layer", block_size=8)
    return dense, models, tokens


def test_several_checkpoints_are_compared_by_layer(two):
    dense, models, tokens = two
    wanda, magnitude = models.values()
    masks = common_masks(wanda, magnitude)
    assert (masks["jaccard"] > masks["chance"]).all()
    assert (common_masks(wanda, wanda)["jaccard"] == 1).all()
    checks = [check_checkpoint(dense, model, tokens, methods=("wanda",), block_size=8) for model in models.values()]
    better = better_by_layer(checks[0], checks[1], ("first", "second"))
    assert len(better) == 14
    lower = {True: "first", False: "second"}
    for row in better.itertuples():
        apart = max(row.error, row.other_error) > 1.1 * min(row.error, row.other_error)
        assert row.better == (lower[row.error < row.other_error] if apart else EVEN)
    assert better_by_layer(checks[0], check_checkpoint(dense, magnitude), ("a", "b")).empty


def test_dense_zeros_and_few_tokens_are_cautions(two):
    dense, models, tokens = two
    assert check_checkpoint(dense, models["wanda"]).cautions == []
    again = halved(models["wanda"])
    check = check_checkpoint(models["wanda"], again, tokens[:1, :8], methods=())
    zeros, few = check.cautions[::-1]
    assert zeros.startswith("In all 14 layers more than 5 % of the weights were zero before pruning")
    assert few.startswith("In all 14 layers calibration tokens are fewer than columns")
    assert json.loads(check.to_json())["cautions"] == check.cautions


def test_errors_on_dense_inputs_match_a_direct_computation(two):
    dense, models, tokens = two
    check = check_checkpoint(dense, models["wanda"], tokens, methods=(), block_size=8, compute="float32")
    statistics = rose.collect_statistics(dense, tokens)
    for before, after in zip(rose.prunable_layers(dense), rose.prunable_layers(models["wanda"]), strict=True):
        hessian = statistics[before.name].hessian
        change = before.weight - after.weight
        expected = (change @ hessian * change).sum() / (before.weight @ hessian * before.weight).sum()
        row = check.layers.set_index("layer").loc[before.name]
        assert row["dense_input_error"] == pytest.approx(float(expected), rel=1e-3)


def test_the_command_compares_several_and_streams(tmp_path, capsys):
    dense = save_tiny_llama(tmp_path / "dense")
    model, tokenizer = rose.load_model(str(dense))
    for name, ratio in (("half", 0.5), ("most", 0.8)):
        pruned = copy.deepcopy(model)
        with torch.no_grad():
            for layer in rose.prunable_layers(pruned):
                layer.write(compensate(layer.weight, ratio))
            pruned.lm_head.weight.mul_(1.2)
            pruned.model.layers[0].input_layernorm.weight.mul_(1.2)
        rose.save_model(pruned, tokenizer, tmp_path / name)
    folders = [str(tmp_path / name) for name in ("dense", "half", "most")]
    assert cli.main(["check", *folders, "--json", str(tmp_path / "found.json"), "--stream"]) == 0
    printed = capsys.readouterr().out
    assert "both remove 62.5 % of the weights that either removes, " in printed
    assert "Other parts that differ: 1 of kind norm, 1 of kind output head" in printed
    written = json.loads((tmp_path / "found.json").read_text())
    assert [one["checkpoint"] for one in written["checkpoints"]] == folders[1:]
    assert written["between"][0]["layers"][0]["jaccard"] == pytest.approx(0.625, abs=0.01)
