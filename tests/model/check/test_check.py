"""Planted faults, made with plain torch and transformers: each is named by its layer and its kind, and nothing else."""

import copy
import json
import math
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import rose
from rose import cli
from rose.model.check.change import weight_change
from rose.model.check.check import check_checkpoint, check_in_stages
from rose.model.check.costs import Costs, Rival
from rose.model.check.findings import findings, lines, says_other_draw
from rose.model.check.result import PARTIAL, SOUND, WORSE, WRONG, CheckpointCheck, headline
from rose.model.check.verdicts import LayerVerdict, Verdict, judge_costs
from tests.model.check.faults import compensate, q4_0, q4_1
from tests.model.families import DENSE, EXPERTS, make_from, make_model, make_tokens
from tests.refusals import refused
from tests.tiny import save_tiny_llama

BLOCKS, WORDS = 4, 4096  # of the packaged model: enough peers, and few embeddings, which every check compares
NAME = "model.layers.{}.{}".format


def first_blocks(whole: nn.Module, count: int) -> nn.Module:
    model: Any = copy.deepcopy(whole)
    model.model.layers, model.config.num_hidden_layers = model.model.layers[:count], count
    return model


@pytest.fixture(scope="module")
def dense(packaged: Any) -> nn.Module:
    """The packaged model's first decoder blocks, real weights."""
    model = first_blocks(packaged[0], BLOCKS)
    model.resize_token_embeddings(WORDS)
    return model


@pytest.fixture(scope="module")
def pruned(dense: nn.Module) -> nn.Module:
    model = copy.deepcopy(dense)
    for layer in rose.prunable_layers(model):
        layer.write(compensate(layer.weight))
    return model


def weight_of(model: nn.Module, name: str) -> Tensor:
    return model.get_submodule(name).weight.data


def told(check: CheckpointCheck) -> dict[str, str]:
    return dict(zip(check.wrong["name"], check.wrong["verdict"], strict=True))


def test_a_sane_checkpoint_and_the_dense_model_have_no_fault(dense, pruned):
    check = check_checkpoint(dense, pruned)
    assert check.is_sane
    assert check.summary["sparsity"] == pytest.approx(0.7, abs=1e-3)
    assert set(check.layers["verdict"]) == {Verdict.NO_FAULT}
    same = check_checkpoint(dense, dense)
    assert same.is_sane
    assert set(same.layers["verdict"]) == {Verdict.NOT_PRUNED}
    assert same.others.empty


def test_faults_of_single_layers_are_named(dense, pruned):
    model = copy.deepcopy(pruned)
    broken, zero, half = NAME(0, "self_attn.q_proj"), NAME(0, "mlp.up_proj"), NAME(1, "mlp.down_proj")
    masked, adapter, permuted = NAME(1, "self_attn.o_proj"), NAME(2, "mlp.gate_proj"), NAME(3, "self_attn.o_proj")
    first, second = NAME(2, "self_attn.k_proj"), NAME(3, "self_attn.k_proj")
    with torch.no_grad():
        weight_of(model, broken)[5, 7] = float("nan")
        weight_of(model, zero).zero_()
        weight_of(model, masked).copy_(weight_of(dense, masked) * (weight_of(pruned, masked) != 0))
        weight_of(model, half).copy_(compensate(weight_of(dense, half), 0.5))
        weight_of(model, first).copy_(weight_of(pruned, second))
        weight_of(model, second).copy_(weight_of(pruned, first))
        adapted = weight_of(model, adapter)
        rows, columns = (torch.randn(size, 4) * 0.01 for size in adapted.shape)
        adapted += rows @ columns.T
        order = torch.randperm(len(weight_of(model, permuted)), generator=torch.Generator().manual_seed(1))
        weight_of(model, permuted).copy_(weight_of(pruned, permuted)[order])
    check = check_checkpoint(dense, model)
    assert told(check) == {
        **dict.fromkeys((broken, zero), Verdict.NUMBERS_BROKEN),
        **dict.fromkeys((first, second, permuted), Verdict.OTHER_MODEL),
        masked: Verdict.MASK_ALONE,
        half: Verdict.OTHER_SPARSITY,
        adapter: Verdict.ZEROS_LOST,
    }
    reasons, parts = check.layers.set_index("layer")["reason"], {first: second, second: first, half: "50.0 % zeros"}
    parts |= {permuted: "another order", broken: "1 of 331 776 weights"}
    assert all(part in reasons[layer] for layer, part in parts.items())


def test_a_broken_group_of_2_4_is_found(dense):
    model = copy.deepcopy(dense)
    with torch.no_grad():
        for layer in rose.prunable_layers(model):
            groups = compensate(layer.weight, 0.0).unflatten(1, (-1, 4))
            groups.scatter_(2, groups.abs().argsort(2)[..., :2], 0)
            layer.write(groups.flatten(1))
        assert check_checkpoint(dense, model).summary["pattern"] == "2:4"
        group = weight_of(model, NAME(1, "self_attn.v_proj"))[3, 8:12]
        group[group == 0] = torch.tensor([0.5, 0.0])
    check = check_checkpoint(dense, model)
    assert told(check) == {NAME(1, "self_attn.v_proj"): Verdict.PATTERN_BROKEN}
    assert "1 of 27 648 groups keep more than 2 of 4" in check.wrong["reason"][0]
    assert "row 3, columns 8 to 11" in check.wrong["reason"][0]


@pytest.mark.parametrize(("quantize", "verdict"), [(q4_0, Verdict.NO_FAULT), (q4_1, Verdict.ZEROS_LOST)])
def test_zeros_lost_to_quantization_are_reported(dense, pruned, quantize, verdict):
    model = copy.deepcopy(pruned)
    for layer in rose.prunable_layers(model):
        layer.write(quantize(layer.weight))
    check = check_checkpoint(dense, model)
    assert set(check.layers["verdict"]) == {verdict}
    assert check.is_sane == (quantize is q4_0)
    if quantize is q4_0:
        assert check.layers["reason"].str.contains("a grid of 16 values for each 32 columns").all()


def test_other_models_and_torn_ties_are_named(dense, pruned):
    other = copy.deepcopy(pruned)
    for layer in rose.prunable_layers(other):
        layer.write(torch.randn(layer.weight.shape) * layer.weight.std())
    assert set(told(check_checkpoint(dense, other)).values()) == {Verdict.OTHER_MODEL}
    torn = copy.deepcopy(pruned)
    torn.lm_head.weight = nn.Parameter(torn.lm_head.weight.detach() * 1.01)
    assert told(check_checkpoint(dense, torn)) == {"lm_head.weight": Verdict.TIE_TORN}


@pytest.fixture(scope="module")
def tokens(packaged: Any) -> Tensor:
    return rose.load_tokens("packaged", packaged[1], samples=6, length=64, seed=0) % WORDS


def test_answers_come_in_stages_the_last_of_which_is_the_check(dense, tokens):
    dense, model = (first_blocks(dense, 2) for _ in range(2))
    rose.prune_model(model, tokens[:4], method="sparsegpt", sparsity=0.6, target="layer")
    broken = rose.prunable_layers(model)[-1]
    broken.write(-broken.weight)
    options: dict[str, Any] = {"held_out": tokens[4:], "methods": ("wanda",)}
    windows, seen = torch.cat([tokens, tokens.flip(1)]), []
    stages = [*check_in_stages(dense, model, tokens[:4], windows=windows, progress=seen.append, **options)]
    by_weights, with_perplexity, first_block, last = stages
    assert [*by_weights.wrong["name"]] == [broken.name]  # convicted before any token is read
    assert "perplexity_after" not in by_weights.summary
    assert headline(by_weights).text.endswith("Errors and perplexity were not measured.")
    assert "error" not in with_perplexity.layers
    assert with_perplexity.summary["perplexity_after"] == last.summary["perplexity_after"]
    assert first_block.layers["error"].notna().sum() == len(first_block.layers) / 2
    assert [done.fraction for done in seen] == sorted(done.fraction for done in seen)
    check = check_checkpoint(dense, model, tokens[:4], windows=windows, **options)
    assert check.layers.equals(last.layers)
    assert check.summary == last.summary


def test_perplexity_is_read_until_it_is_decided(dense, tokens):
    dense, model = (first_blocks(dense, 2) for _ in range(2))
    layer = rose.prunable_layers(model)[0]
    read = []
    for scale in (1.0, 1 + 1e-3, 0.0):
        layer.write(weight_of(dense, layer.name) * scale)
        check = check_checkpoint(dense, model, tokens[:1], windows=tokens.repeat(4, 1), methods=())
        read.append(len(check.summary["losses_after"]))
    assert read[:2] == [4, 4]  # the first windows decide that these copies are as good


@pytest.mark.parametrize(
    ("losses", "status"),
    [([2.0, 2.1, 2.2], "sound"), ([2.0, 2.7, 3.4], "undecided"), ([3.0, 3.1, 3.2], "worse"), ([2.5], "undecided")],
)
def test_what_too_few_windows_leave_open_is_no_answer(dense, losses, status):
    check = check_checkpoint(dense, dense)
    before = [2.0, 2.1, 2.2][: len(losses)]
    means = {stage: math.exp(sum(each) / len(each)) for stage, each in (("before", before), ("after", losses))}
    summary = check.summary | {f"perplexity_{stage}": mean for stage, mean in means.items()}
    summary |= {"tokens": 64, "evaluated_on": "3 × 64 tokens", "losses_before": before, "losses_after": losses}
    assert headline(replace(check, summary=summary)).status == status


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_methods_are_recognized_by_masks_and_errors(dense, tokens, method):
    dense, model = (first_blocks(dense, 2) for _ in range(2))
    layers = ["*.0.self_attn.*", "*.0.mlp.gate_proj", "*.1.*o_proj"]
    rose.prune_model(model, tokens[:4], method=method, sparsity=0.6, target="layer", layers=layers)
    check = check_checkpoint(dense, model, tokens[:4], held_out=tokens[4:], methods=("magnitude", "wanda", "sparsegpt"))
    pruned = check.layers[check.layers["zeros"] > check.layers["zeros_before"]]
    assert len(pruned) == 6
    assert set(pruned["nearest_method"]) == {method}
    assert (pruned["agreement"] > 0.99).all()
    assert (pruned["nearest_target"] == "layer").all()
    assert (check.summary["method"]["name"], check.summary["method"]["layers"]) == (method, 6)
    assert (pruned["agreement_by_chance"] < 0.5).all()
    assert (pruned["possible_error"] < pruned["error"] * 1.001).all()
    assert (pruned["mask_error"] > pruned["possible_error"]).all()
    assert check.is_sane == (method != "magnitude")
    assert set(pruned["verdict"]) == {Verdict.NO_FAULT if method == "sparsegpt" else Verdict.MASK_ALONE}
    if method == "sparsegpt":
        assert pruned["reason"].str.contains("compensation recovered").all()
        assert pruned["error"].to_numpy() == pytest.approx(pruned["error_of_sparsegpt"].to_numpy(), rel=0.02)
    else:
        assert pruned["recovered"].fillna(0).to_numpy() == pytest.approx(0, abs=1e-3)
    if method == "sparsegpt":  # compensation with the wrong sign
        name = NAME(0, "mlp.gate_proj")
        was, now = (weight_of(each, name) for each in (dense, model))
        backwards = copy.deepcopy(model)
        weight_of(backwards, name).copy_(2 * was.masked_fill(now == 0, 0) - now)
        told_of = check_checkpoint(dense, backwards, tokens[:4], held_out=tokens[4:], methods=("wanda",))
        assert told(told_of) == {name: Verdict.BACKWARDS}
        before = NAME(0, "self_attn.q_proj")  # whose faults are not those of the layers behind it
        spoilt = weight_of(backwards, before)
        spoilt += 0.05 * spoilt.std() * torch.randn(spoilt.shape, generator=torch.Generator().manual_seed(1))
        told_of = check_checkpoint(dense, backwards, tokens[:4], held_out=tokens[4:], methods=("wanda",))
        assert told(told_of) == {before: Verdict.ZEROS_LOST}
        assert f"reads outputs of {before}, which is wrong" in told_of.layers.set_index("layer").loc[name, "reason"]
    drifts = [row["drift"] for row in check.summary["drift"]]
    assert len(drifts) == 2
    assert min(drifts) > 0
    assert check.summary["perplexity_after"] == pytest.approx(rose.perplexity(model, tokens[4:]))


def test_tried_methods_have_the_target_of_the_checkpoint(dense, tokens):
    dense, model = (first_blocks(dense, 2) for _ in range(2))
    layers = ["*.0.self_attn.*", "*.1.self_attn.o_proj"]
    rose.prune_model(model, tokens[:4], method="sparsegpt", sparsity=0.6, target="dense", layers=layers)
    check = check_checkpoint(dense, model, tokens[:4], held_out=tokens[4:], methods=("wanda", "sparsegpt"))
    pruned = check.layers[check.layers["zeros"] > check.layers["zeros_before"]]
    assert pruned["compared_target"].iloc[-1] == "dense"
    for on in ("", "held_out_"):
        reached = pruned[f"{on}error_of_sparsegpt"].to_numpy()
        assert pruned[f"{on}error"].to_numpy() == pytest.approx(reached, rel=0.1)
    says = "SparseGPT aims at the dense model's outputs, as this checkpoint does, and other methods at each layer's own"
    assert says in " ".join(findings(check))
    other = check_checkpoint(dense, model, tokens[:1, :64], methods=("sparsegpt",))  # far fewer tokens than it had
    assert (other.layers["recovered"].dropna() <= 1).all()
    assert (other.layers["possible_error"].dropna() <= other.layers["error"].dropna()).all()


def against_wanda(error: float, held_out: float, wanda: float, wanda_held_out: float, stream: Any = None) -> Costs:
    beside = Rival(wanda, wanda_held_out, stream)
    return Costs(error, held_out, error, Rival(error, held_out), Rival(error), {"wanda": beside})


def with_opposite(errors: Any, opposite: Any, to_mask: Any = None, to_opposite: Any = None) -> Costs:
    """Beside a mask with errors of 0.30 and 0.32; streams of the layer's to the mask and to the opposite."""
    mask = Rival(0.30, 0.32, to_mask)
    return Costs(*errors, errors[0], mask, Rival(0.2), {}, opposite=Rival(*opposite, to_opposite))


@pytest.mark.parametrize(
    ("costs", "verdict"),
    [
        (against_wanda(0.0143, 0.0017, 0.0070, 0.0008), Verdict.NO_FAULT),  # makes too little of the output to matter
        (against_wanda(0.30, 0.10, 0.15, 0.02), Verdict.NO_FAULT),  # two sets of tokens disagree by more
        (against_wanda(0.40, 0.30, 0.20, 0.29), Verdict.NO_FAULT),  # is worse on calibration tokens alone
        (against_wanda(0.40, 0.41, 0.20, 0.20, 0.9), Verdict.NO_FAULT),  # repairs the residual stream
        (against_wanda(0.40, 0.41, 0.20, 0.20), Verdict.WORSE_THAN_WANDA),
        (against_wanda(0.40, 0.41, 0.20, 0.20, 1.9), Verdict.WORSE_THAN_WANDA),
        (with_opposite((0.40, 0.41), (0.25, 0.28)), Verdict.BACKWARDS),
        (with_opposite((0.40, 0.41), (0.25, 0.28), 1.3, 1.6), Verdict.BACKWARDS),
        (with_opposite((0.40, 0.41), (0.25, 0.28), 0.9, 0.8), Verdict.NO_FAULT),  # it repairs the stream
        (with_opposite((0.40, 0.41), (0.40, 0.41)), Verdict.NO_FAULT),  # weights moved at random
        (with_opposite((0.40, 0.33), (0.25, 0.28)), Verdict.NO_FAULT),  # harms calibration tokens alone
        (with_opposite((0.40, 0.41), (0.25, 0.36)), Verdict.NO_FAULT),  # the opposite helps these alone
    ],
)
def test_high_errors_are_faults_only_by_every_measure(costs, verdict):
    fine = LayerVerdict(Verdict.NO_FAULT, "", False)
    change = weight_change(torch.ones(4, 4), compensate(torch.ones(4, 4)))
    assert judge_costs(fine, costs, change).verdict == verdict
    if verdict == Verdict.WORSE_THAN_WANDA:
        assert not judge_costs(fine, replace(costs, has_few_tokens=True), change).is_wrong


def test_errors_match_the_outputs():
    """Against plain forward hooks: ‖out_d − out_p‖² / ‖out_d‖² of one layer."""
    name, tokens = NAME(1, "mlp.gate_proj"), make_tokens()
    dense, pruned = (make_model("llama") for _ in range(2))
    for layer in (NAME(0, "self_attn.o_proj"), name):
        weight_of(pruned, layer).copy_(compensate(weight_of(dense, layer)))
    outputs: list[Tensor] = []
    for model in (dense, pruned):
        with model.get_submodule(name).register_forward_hook(lambda _m, _a, out: outputs.append(out)), torch.no_grad():
            model(tokens)
    expected = ((outputs[0] - outputs[1]).square().sum() / outputs[0].square().sum()).item()
    layers = check_checkpoint(dense, pruned, tokens, methods=(), compute="float32").layers.set_index("layer")
    assert layers.loc[name, "error"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("family", [*DENSE, *EXPERTS])
def test_every_family_is_checked(family):
    before, after = make_model(family), make_model(family)
    for layer in rose.prunable_layers(after):
        layer.write(layer.weight * (layer.weight.abs() > layer.weight.abs().median()))
    check = check_checkpoint(before, after, make_tokens(), held_out=make_tokens(2, seed=3), methods=("wanda",))
    assert set(check.layers["verdict"]) == {Verdict.MASK_ALONE}
    assert check.layers["sparsity"].to_numpy() == pytest.approx(0.5, abs=0.01)
    experts = check.layers["layer"].str.contains(r"\.experts\.\d")  # are judged by their weights, as tokens differ
    assert (check.layers["error"].notna() != experts).all()
    assert check.others.empty


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
@pytest.mark.parametrize("method", ["wanda", "magnitude"])
def test_a_mask_in_the_first_layer_of_a_dense_target_run_is_no_fault(family, method):
    config = DENSE[family]()
    config.num_hidden_layers = 4
    dense, model = make_from(config), make_from(config)
    rose.prune_model(model, make_tokens(), method=method, sparsity=0.5, block_size=16)
    check = check_checkpoint(dense, model)
    assert check.is_sane
    assert set(check.layers["verdict"]) == {Verdict.MASK_ALONE, Verdict.NO_FAULT}
    last, was = rose.prunable_layers(model)[-1], rose.prunable_layers(dense)[-1]
    last.write(was.weight * (last.weight != 0))
    assert told(check_checkpoint(dense, model)) == {last.name: Verdict.MASK_ALONE}


def test_a_layer_pruned_by_oats_is_not_reported_as_unpruned():
    dense, model = make_model("llama"), make_model("llama")
    rose.prune_model(model, make_tokens(), method="oats", sparsity=0.5, block_size=16)
    check = check_checkpoint(dense, model)
    assert set(check.layers["verdict"]) == {Verdict.NO_FAULT}
    assert check.layers["reason"].str.contains("so it has no zeros").all()
    ((subject, text),) = lines(check)
    assert subject == "no fault found, all 14 layers"
    assert text.startswith(f"{NAME(0, 'self_attn.q_proj')}, for example: The layer is the sum of")


def test_further_pruning_may_move_zeros_but_not_lose_them():
    pruned, further = make_model("llama"), make_model("llama")
    rose.prune_model(pruned, make_tokens(), method="magnitude", sparsity=0.5, block_size=16)
    further.load_state_dict(pruned.state_dict())
    rose.prune_model(further, make_tokens(), sparsity="1:4", block_size=16)
    pairs = zip(rose.prunable_layers(pruned), rose.prunable_layers(further), strict=True)
    assert all((now.weight[was.weight == 0] != 0).any() for was, now in pairs)
    assert check_checkpoint(pruned, further).is_sane
    for other, is_turned in ((make_model("llama"), True), (further, False)):
        assert ("the other way round?" in " ".join(findings(check_checkpoint(pruned, other)))) == is_turned
    layer = rose.prunable_layers(further)[0]
    layer.write(layer.weight.masked_fill(layer.weight == 0, 0.01))
    assert told(check_checkpoint(pruned, further))[layer.name] == Verdict.ZEROS_LOST


def test_models_on_disk_are_checked_as_those_in_memory(tmp_path):
    dense = save_tiny_llama(tmp_path / "dense")
    model, tokenizer = rose.load_model(str(dense))
    tokens = rose.load_tokens("packaged", tokenizer, samples=3, length=48)
    rose.prune_model(model, tokens, sparsity=0.5, block_size=16)
    rose.save_model(model, tokenizer, tmp_path / "pruned")
    checks = []
    for stream in (False, True):
        models = [rose.load_model(str(tmp_path / name), stream=stream)[0] for name in ("dense", "pruned")]
        checks.append(check_checkpoint(*models, tokens))
    # Weights in files are aligned otherwise, which changes the order of sums.
    pd.testing.assert_frame_equal(*(check.layers.drop(columns="reason") for check in checks), rtol=1e-4)
    drifts, streamed = ([row["drift"] for row in check.summary["drift"]] for check in checks)
    assert drifts == pytest.approx(streamed, rel=1e-4)


def test_the_command_prints_faults_and_sets_its_status(tmp_path, capsys):
    dense, broken = save_tiny_llama(tmp_path / "dense"), tmp_path / "broken"
    model, tokenizer = rose.load_model(str(dense))
    rose.save_model(model, tokenizer, tmp_path / "same")
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")  # which loading refuses elsewhere
    rose.save_model(model, tokenizer, broken)
    assert cli.main(["check", str(dense), str(tmp_path / "same")]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last.endswith("by the weights alone. Errors and perplexity were not measured.")
    assert cli.main(["check", str(dense), str(broken), "--json", str(tmp_path / "found.json")]) == 1
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("model.layers.1.mlp.up_proj, numbers broken: 1 of ")
    assert last.endswith("Errors and perplexity were not measured. Wrong: model.layers.1.mlp.up_proj.")
    written = json.loads((tmp_path / "found.json").read_text())
    assert (written["is_sane"], written["status"]) == (False, WRONG)
    assert written["summary"]["verdicts"] == {Verdict.NOT_PRUNED: 20, Verdict.NUMBERS_BROKEN: 1}
    assert cli.main(["check", str(dense), str(tmp_path / "nowhere")]) == 2


@pytest.mark.parametrize(
    ("after", "tokens", "wrong", "status", "says"),
    [
        (None, 0, False, PARTIAL, "two layers (one pruned) by the weights alone. Errors and perplexity were not"),
        (None, 64, False, PARTIAL, "Perplexity was not measured."),
        (12.0, 64, False, SOUND, "goes from 10.0 to 12.0, 1.20 times the dense model's"),
        (278.0, 64, False, WORSE, "goes from 10.0 to 278, 27.8 times the dense model's"),
        (math.nan, 64, False, WORSE, "goes from 10.0 to no finite number"),
        (12.0, 64, True, WRONG, "One of two layers is wrong: zeros lost. The copy's perplexity"),
    ],
)
def test_the_headline_says_what_was_measured(after, tokens, wrong, status, says):
    """No copy of many times the dense perplexity, and none whose errors were not measured, is called sound."""
    table = pd.DataFrame({"layer": ["a", "b"], "moved": 0.0, "zeros": 8, "zeros_before": 0, "is_wrong": [wrong, False]})
    table["verdict"] = [Verdict.ZEROS_LOST if wrong else Verdict.NO_FAULT if tokens else Verdict.NOT_PRUNED, "ok"]
    table["reason"] = table["kind"] = ""
    summary: dict[str, Any] = {"tokens": tokens}
    if tokens:
        table["error"] = 0.1
    if after is not None:
        summary |= {"perplexity_before": 10.0, "perplexity_after": after, "evaluated_on": "2 × 32 tokens"}
        summary |= {"losses_before": [], "losses_after": []}
    line = headline(CheckpointCheck(table, table[:0].rename(columns={"layer": "name"}), summary))
    assert line.status == status
    assert says in line.text
    assert ("No fault was found" in line.text) == (status in (PARTIAL, SOUND))


@pytest.mark.parametrize(
    ("blocks", "says"),
    [
        ((4, 3), r"21 layers and the dense model 28; model\.layers\.3\.self_attn\.q_proj is only in the dense model"),
        ((12, 13), r"91 layers and the dense model 84; model\.layers\.12\.self_attn\.q_proj is only in the checkpoint"),
        ((2,), "load the checkpoint and the dense model apart"),
    ],
)
def test_other_shapes_and_the_same_model_twice_are_refused(blocks, says):
    config, models = DENSE["llama"](), []
    for config.num_hidden_layers in blocks:
        models.append(make_from(config))
    refused(says, check_checkpoint, models[0], models[-1], make_tokens())


def test_a_copy_calibrated_on_other_windows_is_reported(tmp_path):
    drawn = {"calibration": "text.txt", "samples": 4, "length": 16, "seed": 0, "held_out_samples": 2}
    drawn["bos_token"] = None
    assert says_other_draw(tmp_path, drawn) == ""  # nobody knows
    (tmp_path / "report.json").write_text('{"loss": 1}')
    assert says_other_draw(tmp_path, drawn) == ""  # nor does another program's report
    report = rose.prune_model(make_model("llama"), make_tokens(), sparsity=0.5, block_size=16)
    report.with_summary(**drawn).save(tmp_path)
    assert says_other_draw(tmp_path, drawn) == ""
    caution = says_other_draw(tmp_path, drawn | {"held_out_samples": 4})
    assert "4 × 16 tokens of text.txt, seed 0, 2 held out. " in caution
