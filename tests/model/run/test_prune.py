"""Choosing layers, held-out tokens, progress, and cancelling."""

import copy
import weakref
from functools import partial
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import rose
from rose.layer.error import relative_error
from rose.layer.hessian import DampedHessian, damp
from rose.layer.rounding import find_grid
from rose.layer.settings import LayerSettings
from rose.layer.target import InputGap
from rose.model.network.layers import PrunableLayer, decoder_blocks
from rose.model.network.network import Network
from rose.model.progress import part_callback
from rose.model.run.one_layer import prune_in
from rose.model.walk import forward
from rose.model.walk.walk import BlockStatistics, visit_inputs
from tests.layer.helpers import statistics_of
from tests.model.families import LENGTH, VOCABULARY, logits, make_model, make_tokens, stop_at
from tests.model.walk.test_families import hooked_inputs
from tests.model.walk.test_sequential import routed_model
from tests.refusals import cancelled, refused

pytestmark = pytest.mark.usefixtures("small_batches")

# What the papers do, in two passes. Dense targets have tests of their own, test_targets.py.
prune_model = partial(rose.prune_model, target="layer")
HALF: dict[str, Any] = {"sparsity": 0.5, "block_size": 16}


def weights_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(model: PreTrainedModel, before: dict[str, Tensor]) -> set[str]:
    names = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]
    return {name.removesuffix(".weight") for name in names}


def test_hooks_of_accelerate_stay_and_run():
    """accelerate dispatches a model by giving modules a forward function of their own."""
    model, plain = make_model("llama"), make_model("llama")
    blocks = list(decoder_blocks(model)[1])
    hooks = [ModelHook() for _ in blocks]
    for block, hook in zip(blocks, hooks, strict=True):
        hook.pre_forward = Mock(side_effect=lambda _module, *args, **options: (args, options))
        add_hook_to_module(block, hook)
    hooked = [block.forward for block in blocks]
    prune_model(model, make_tokens(), **HALF)
    assert [block.forward for block in blocks] == hooked
    assert all(hook.pre_forward.called for hook in hooks)  # the batches that calibrate pass through them too
    calls = [hook.pre_forward.call_count for hook in hooks]
    logits(model)
    assert [hook.pre_forward.call_count for hook in hooks] == [before + 1 for before in calls]
    prune_model(plain, make_tokens(), **HALF)
    assert all(torch.equal(model.get_parameter(name), p) for name, p in plain.named_parameters())


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["model.layers.1.mlp.up_proj"], {"model.layers.1.mlp.up_proj"}),
        (["*.o_proj"], {"model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj"}),
        (["model.layers.0.mlp.*"], {f"model.layers.0.mlp.{x}_proj" for x in ("gate", "up", "down")}),
        (["*.1.*.?_proj"], {f"model.layers.1.self_attn.{x}_proj" for x in "qkvo"}),
        (["*.0.*.q_proj", "*.0.*.q_proj", "*.0.*.?_proj"], {f"model.layers.0.self_attn.{x}_proj" for x in "qkvo"}),
        ("model.layers.1.mlp.up_proj", {"model.layers.1.mlp.up_proj"}),
        (["*.1.*.q_proj", "*.0.*.o_proj"], {"model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.q_proj"}),
    ],
)
def test_only_the_chosen_layers_change(patterns, expected):
    model = make_model("llama")
    before = weights_of(model)
    report = prune_model(model, make_tokens(), **HALF, layers=patterns)
    assert changed(model, before) == expected
    in_order = [layer.name for layer in rose.prunable_layers(model) if layer.name in expected]
    assert report.layers["layer"].tolist() == [layer.name for layer in Network(model).select(patterns)] == in_order
    assert report.summary["layers"] == len(expected)
    assert set(rose.collect_statistics(model, make_tokens(), layers=patterns)) == expected


def test_the_largest_list_of_linear_layers_is_the_decoder():
    """A small list before it (an encoder of images) and lists within a block (experts) are not."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    model: Any = nn.Module()
    model.vision = nn.ModuleList([nn.Linear(4, 4)])
    model.layers = nn.ModuleList([Block(), Block()])
    model.layers_extra = nn.ModuleList([nn.Linear(2, 2)])
    assert decoder_blocks(model)[0] == "layers"
    assert [layer.name for layer in rose.prunable_layers(model)][:2] == ["layers.0.experts.0", "layers.0.experts.1"]


def test_subclasses_of_linear_are_pruned():
    model = make_model("llama")
    special = model.model.layers[0].mlp.up_proj
    special.__class__ = type("Special", (nn.Linear,), {})
    prune_model(model, make_tokens(), **HALF)
    assert float(special.weight.eq(0).float().mean()) == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [3]}, r"layers must be a list of names, not 3"),
        ({"layers": ["*.o_proj", "*.wrong"]}, r"No prunable layer is named '\*.wrong'; names look like model.layers.0"),
        ({"layers": []}, r"layers must be a list of names, not \[\]"),
        ({"target_damping": 0.5}, "Only target dense has a correction"),
        ({"target": "dense", "target_damping": -1.0}, "target_damping must be a number of at least 0"),
        ({"min_expert_tokens": 0}, "min_expert_tokens must be a whole number of at least 1"),
        ({"min_expert_tokens": np.int64(5)}, "which experts stay dense, and no layer here is one"),
        ({"group": 32}, "give bits too"),
        ({"held_out": torch.zeros(4, dtype=torch.long)}, "Held-out tokens must be whole numbers of shape"),
    ],
)
def test_bad_arguments_change_nothing(options, message):
    model = make_model("llama")
    before = weights_of(model)
    refused(message, prune_model, model, make_tokens(), **options)
    assert not changed(model, before)
    assert_clean(model)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(4, dtype=torch.long), r"whole numbers of shape \(samples, length\), not torch.int64 of \(4,\)"),
        (torch.zeros(2, 4), r"whole numbers .* not torch.float32"),
        (torch.full((2, 4), VOCABULARY), rf"Token {VOCABULARY} is outside .* of {VOCABULARY}; .* added to it need"),
        (None, "Tokens must be a tensor with values"),
        (torch.zeros(2, 4, dtype=torch.long, device="meta"), "Tokens must be a tensor with values"),
        (torch.zeros(1, 65, dtype=torch.long), "65 tokens are longer than the model's 64 positions"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(tokens, message):
    model = make_model("llama")
    calls = (rose.prune_model, rose.collect_statistics, rose.perplexity, rose.damage)
    # Iterators are refused when they are made, before anything asks for the first item.
    for call in (*calls, rose.visit_blocks, rose.analyze_model):
        refused(message, call, model, tokens)


def test_objects_other_than_models_are_refused():
    for call in (rose.prune_model, rose.collect_statistics, rose.perplexity, rose.visit_blocks):
        refused("model is needed, with its configuration, not a str", call, "smollm2-135m", make_tokens())
    refused("A transformers model is needed, not a str", rose.prunable_layers, "a")
    refused("no list of decoder", rose.prunable_layers, nn.Sequential())


def test_broken_weights_and_inputs_name_their_layer():
    model = make_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = float("nan")
    for says in (r"mlp\.up_proj: W holds NaN or infinity", r"self_attn\.q_proj: H holds NaN or infinity"):
        refused(rf"^model\.layers\.1\.{says}", prune_model, model, make_tokens(), **HALF)
        assert_clean(model)
        model.model.layers[1].input_layernorm.weight.data.fill_(float("inf"))


def test_the_report_describes_the_run():
    model, name, settings = make_model("llama"), "model.layers.0.self_attn.q_proj", {"sparsity": 0.6, "block_size": 16}
    statistics, weight = rose.collect_statistics(model, make_tokens(), layers=[name])[name], weights_of(model)
    settings |= {"damping": 0.02, "threshold": 0.05, "method": "rose"}
    result = rose.prune_layer(weight[f"{name}.weight"], statistics, **settings)
    report = prune_model(model, make_tokens(), **settings)
    row, summary = report.layers.iloc[0].to_dict(), report.summary
    facts = {"layer": name, "block_index": 0, "projection": "self_attn.q_proj", "rows": 32, "columns": 32}
    facts |= {"damping": 0.02, "dead_columns": 0, "sparsity": result.sparsity, "is_columnar": result.plan.is_columnar}
    assert facts.items() <= row.items()
    assert row["relative_range"] == pytest.approx(result.plan.relative_range, rel=1e-5)
    assert row["relative_error"] == pytest.approx(result.relative_error, rel=1e-4)
    layers = rose.prunable_layers(model)
    zeros = sum(int(layer.weight.eq(0).sum()) for layer in layers)
    weights = sum(layer.weight.numel() for layer in layers)
    totals = {"method": "rose", "sparsity": "0.6", "samples": 5, "length": LENGTH, "weights": weights}
    totals |= {"layers_with_raised_damping": 0, "mean_held_out_error": None, "held_out_samples": 0}
    assert totals.items() <= summary.items()
    assert summary["removed_fraction"] == pytest.approx(zeros / weights)
    assert summary["columnar_layers"] == int(report.layers["is_columnar"].sum())


@pytest.mark.parametrize("target", ["dense", "layer"])
def test_rounded_weights_are_on_their_grid_and_errors_stand_apart(target):
    model = make_model("llama")
    words = {"method": "rose_admm", "block_size": 16, "bits": 4, "group": "row", "target": target}
    report = prune_model(model, make_tokens(), sparsity=0.5, **words)
    for layer in rose.prunable_layers(model):
        assert find_grid(layer.weight, 4, "row") is not None
        assert int(layer.weight.eq(0).sum()) >= layer.weight.numel() / 2
    table, summary = report.layers, report.summary
    if target == "layer":
        both = (table["pruning_error"] + table["rounding_error"]).tolist()
        assert both == pytest.approx(table["relative_error"].tolist(), rel=1e-3)
    assert (table["rounding_error"] > 0).all()
    assert summary["mean_rounding_error"] == pytest.approx(table["rounding_error"].mean())
    assert (summary["bits"], summary["group"]) == (4, "row")
    before = weights_of(model)
    for bits, sparsity in ((8, 0.5), (4, 0)):  # a finer grid, and the same one without any pruning
        with pytest.raises(rose.RoseError, match="rounded to 4 bits, a scale a row already"):
            prune_model(model, make_tokens(), sparsity=sparsity, **words | {"bits": bits})
    assert not changed(model, before)
    dense = prune_model(make_model("llama"), make_tokens(), sparsity=0, **words)
    assert 0 < dense.summary["mean_rounding_error"] < 0.1


@pytest.mark.parametrize("method", ["sparsegpt", "rose_admm"])
def test_pruning_and_rounding_add_to_the_error_towards_the_dense_model(method):
    pruned = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    dense = pruned + 0.5 * torch.randn(200, 32, generator=torch.Generator().manual_seed(1))
    layer, gap = PrunableLayer("up", 0, "up", nn.Linear(32, 8)), InputGap(32)
    gap.update(pruned, dense)
    block = BlockStatistics(0, [layer], {"up": statistics_of(pruned)}, gaps={"calibration": {"up": gap}})

    def record(**asked: Any) -> rose.LayerRecord:
        return prune_in(block, layer, LayerSettings.of(method=method, **HALF | asked), lambda _tokens: 0.01)[1]

    both, left = record(bits=3, group="row"), record(sparsity=0.0)
    assert both.pruning_error > 0 < both.rounding_error
    assert left.target_error > 0.05
    assert left.target_error + both.pruning_error + both.rounding_error == pytest.approx(both.target_error, rel=1e-5)


@pytest.mark.parametrize("method", ["sparsegpt", "rose_dealt", "rose_admm", "wanda"])
@pytest.mark.parametrize("target", ["dense", "layer"])
def test_rounding_alone_keeps_the_zeros_of_a_pruned_model(target, method):
    """Towards the dense model too, whose corrected weights have none."""
    model = make_model("llama")
    prune_model(model, make_tokens(), method="sparsegpt", sparsity="2:4", target="layer")
    zeros = {layer.name: layer.weight.eq(0) for layer in rose.prunable_layers(model)}
    report = prune_model(model, make_tokens(), method=method, sparsity=0, bits=4, group="row", target=target)
    for layer in rose.prunable_layers(model):
        assert find_grid(layer.weight, 4, "row") is not None
        assert layer.weight[zeros[layer.name]].eq(0).all()
    assert report.summary["removed_fraction"] == pytest.approx(0.5)


def test_raised_target_damping_is_remarked_on():
    """Eight tokens span fewer directions than there are columns, so that μ = 0 cannot be factorized; λ can."""
    settings = HALF | {"target_damping": 0.0}
    report = rose.prune_model(make_model("llama"), make_tokens(1, 8), **settings)
    raised = report.layers[report.layers["target_damping"] > 0]
    assert len(raised)
    assert raised["is_damping_raised"].all()
    assert report.layers["damping"].eq(0.01).all()
    assert any("damping had to be raised" in remark for remark in report.remarks)


@pytest.mark.parametrize("side", [slice(None, 14), slice(-14, None)])
def test_windows_that_were_padded_are_remarked_on(side):
    tokens = make_tokens()
    tokens[: len(tokens) // 2 + 1, side] = 0
    settings = HALF | {"target": "layer"}
    padded = prune_model(make_model("llama"), tokens, **settings)
    assert any("windows begin or end with one repeated token" in remark for remark in padded.remarks)
    smaller = rose.prune_structured(make_model("llama"), tokens, ratio=0.3, multiple=4)
    assert smaller.summary["padded_windows"] == padded.summary["padded_windows"] == len(tokens) // 2 + 1
    tokens[0, side] = make_tokens(1, seed=3)[0, side]
    assert "padded_windows" not in prune_model(make_model("llama"), tokens, **settings).summary


def test_dead_columns_are_counted():
    model, dead = make_model("llama"), [*range(12), 30]
    model.model.layers[0].input_layernorm.weight.data[dead] = 0
    report = prune_model(model, make_tokens(), **HALF, method="rose", layers=["*.0.self_attn.?_proj"])
    assert report.layers["dead_columns"].tolist() == [13, 13, 13, 0]
    assert model.model.layers[0].self_attn.q_proj.weight[:, dead].eq(0).all()
    zeros = [float(layer.weight.eq(0).double().mean()) for layer in rose.prunable_layers(model)[:4]]
    assert report.layers["sparsity"].tolist() == pytest.approx(zeros)
    assert zeros[0] > 0.5  # 12 of the first 16 columns are dead, more than the block's share


@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_analysis_changes_nothing_and_measures_each_method_as_if_alone(sparsity):
    model = make_model("llama")
    before = weights_of(model)
    methods = ["sparsegpt", "rose", "wanda", "oats", "measured", "rose_dealt"]
    options: dict[str, Any] = {"sparsity": sparsity, "block_size": 16}
    unseen = make_tokens(2, seed=3)
    held_out = rose.collect_statistics(model, unseen)
    records = list(rose.analyze_model(model, make_tokens(), methods=methods, held_out=unseen, **options))
    assert not changed(model, before)
    names = [layer.name for layer in rose.prunable_layers(model)]
    assert [(r.layer, r.method) for r in records] == [(name, method) for name in names for method in methods]
    statistics = rose.collect_statistics(model, make_tokens())
    for record in records:
        weight = before[f"{record.layer}.weight"]
        result = rose.prune_layer(weight, statistics[record.layer], method=record.method, **options)
        assert record.relative_error == pytest.approx(result.relative_error, rel=1e-5)
        assert record.relative_range == pytest.approx(result.plan.relative_range, rel=1e-5)
        assert record.sparsity == result.sparsity
        expected = relative_error(weight, result.weight, held_out[record.layer].hessian)
        assert record.held_out_error == pytest.approx(expected, rel=1e-4)


def test_a_block_size_counts_heads_and_every_layer_says_how_many_a_block_holds():
    model = make_model("llama")
    width = Network(model).head_width
    heads, columns = (
        list(rose.analyze_model(model, make_tokens(), methods=["sparsegpt"], block_size=size, layers=["*.[oq]_proj"]))
        for size in ("2heads", 2 * width)
    )
    assert [record.relative_error for record in heads] == [record.relative_error for record in columns]
    for record in heads:
        is_output = record.projection.endswith("o_proj")
        assert record.heads_per_block == (2 if is_output else None)
        assert (record.between_heads is not None) == is_output
    twin = copy.deepcopy(model)
    report = rose.prune_model(model, make_tokens(), method="sparsegpt", block_size="1.5 heads", layers=["*.o_proj"])
    assert report.summary["block_size"] == 1.5 * width
    assert report.layers["heads_per_block"].eq(1.5).all()
    refused("no whole number of columns", rose.prune_model, twin, make_tokens(), block_size="0.3heads")
    refused("or of heads such as 2heads, not 'two'", rose.prune_model, twin, make_tokens(), block_size="two")
    weight = torch.randn(4, 32)
    refused("needs to know the heads", rose.prune_layer, weight, torch.eye(32), method="rose", block_size="2heads")


def test_analysis_splits_errors_where_it_is_asked_to():
    model, layers = make_model("llama"), ["*.o_proj"]
    how = {"methods": ["sparsegpt", "oats"], "block_size": 16, "layers": layers, "sparsity": 0.6}
    records = list(rose.analyze_model(model, make_tokens(), split=True, **how))
    statistics = rose.collect_statistics(model, make_tokens(), layers=layers)
    for layer, swept, low_rank in zip(Network(model).select(layers), records[::2], records[1::2], strict=True):
        inputs = statistics[layer.name]
        result = rose.prune_layer(layer.weight, inputs, method="sparsegpt", sparsity=0.6, block_size=16)
        assert swept.mask_error == pytest.approx(rose.split_error(layer.weight, inputs, result).mask, rel=1e-4)
        assert 0 < swept.mask_error < swept.relative_error
        assert low_rank.mask_error is None
        assert swept.range_low <= swept.relative_range <= swept.range_high
    refused("leave out bits or split", rose.analyze_model, model, make_tokens(), split=True, bits=4, group=32)


def test_pruning_reports_progress():
    events: list[rose.Progress] = []
    settings = HALF | {"held_out": make_tokens(3)}
    report = prune_model(make_model("llama"), make_tokens(), progress=events.append, **settings)
    for name in ("fraction", "layers_done", "seconds"):
        values = [getattr(event, name) for event in events]
        assert values == sorted(values), name
    assert (events[0].fraction, events[-1].fraction, events[-1].remaining) == (0, 1, 0)
    assert (events[-1].layers_done, events[-1].layers, events[-1].blocks) == (14, 14, 2)
    assert {event.stage for event in events} == {"embed", "calibrate", "prune", "propagate", "done"}
    pruned = [(event.layer, event.relative_error, event.block_index) for event in events if event.stage == "prune"]
    assert pruned == list(zip(*(report.layers[x] for x in ("layer", "relative_error", "block_index")), strict=True))
    assert all(event.layer is None for event in events if event.stage != "prune")


def assert_clean(model: PreTrainedModel) -> None:
    for name, module in model.named_modules():
        assert not module._forward_hooks, name
        assert not module._forward_pre_hooks, name
        assert "forward" not in vars(module), name


@pytest.mark.parametrize("stage", ["embed", "calibrate", "prune", "propagate", "done"])
@pytest.mark.parametrize("which", [0, 1, -1])
@pytest.mark.parametrize("train", [False, True])
def test_cancelling_leaves_nothing_half_done(stage, which, train):
    model, tokens = make_model("llama").train(train), make_tokens()
    events: list[rose.Progress] = []
    options = HALF | {"held_out": make_tokens(3)}
    prune_model(copy.deepcopy(model), tokens, progress=events.append, **options)
    moments = [number for number, event in enumerate(events) if event.stage == stage]
    last = moments[which] if abs(which) < len(moments) else moments[0]
    before = weights_of(model)
    seen: list[rose.Progress] = []

    def cancel(progress: rose.Progress) -> None:
        seen.append(progress)
        if len(seen) == last + 1:
            raise rose.Cancelled

    with pytest.raises(rose.Cancelled) as stopped:
        prune_model(model, tokens, progress=cancel, **options)
    assert len(seen) == last + 1
    done = seen[-1].layers_done
    told = [f"{done} of 14 layers of the model are pruned now."]
    assert getattr(stopped.value, "__notes__", []) == (told if done and stage != "done" else [])
    assert_clean(model)
    assert all(module.training == train for module in model.modules())
    layers = rose.prunable_layers(model)
    assert changed(model, before) == {layer.name for layer in layers[:done]}
    shares = [float(layer.weight.eq(0).float().mean()) for layer in layers]
    assert shares == [0.5] * done + [0.0] * (14 - done)
    assert len(prune_model(model, tokens, **options).layers) == 14  # a second run goes through


@pytest.mark.parametrize("run", [prune_model, lambda *args, **options: list(rose.analyze_model(*args, **options))])
def test_factors_are_freed_before_a_block_runs_again(run, monkeypatch):
    made: list[weakref.ref] = []

    def watched(*args: Any) -> DampedHessian:
        made.append(weakref.ref(damped := damp(*args)))
        return damped

    def look(progress: rose.Progress) -> None:
        if progress.stage in ("calibrate", "propagate"):
            assert not any(reference() for reference in made)

    monkeypatch.setattr("rose.layer.hessian.damp", watched)
    run(make_model("llama"), make_tokens(), **HALF, held_out=make_tokens(2), progress=look)
    assert len(made) == 2 * 4  # q, k, v; o; gate, up; down


@pytest.mark.parametrize("begin", [rose.visit_blocks, rose.analyze_model])
def test_leaving_a_visit_early_cleans_up(begin):
    model = make_model("llama").train()
    visit = begin(model, make_tokens())
    assert next(visit).block_index == 0
    visit.close()
    assert_clean(model)
    assert all(module.training for module in model.modules())


def test_one_block_on_the_device_at_a_time(monkeypatch):
    """The device is "cpu:0", the same memory as "cpu" under another name: a second device that every machine has."""
    model, device, move = make_model("gemma3"), torch.device("cpu", 0), nn.Module.to
    blocks = {id(block): index for index, block in enumerate(decoder_blocks(model)[1])}
    there, visited = set[int](), list[int]()

    def watched(module: nn.Module, to: torch.device) -> nn.Module:
        if (index := blocks.get(id(module))) is not None:
            assert there <= {index}
            there.symmetric_difference_update({index})
            visited.extend([index] if to == device else [])
        return move(module, to)

    monkeypatch.setattr(nn.Module, "to", watched)
    monkeypatch.setattr("rose.model.network.network.pick_device", lambda: device)
    report = prune_model(model, make_tokens(), **HALF)
    assert visited == [0, 1, 2, 3]
    assert not there
    assert report.summary["device"] == "cpu:0"


def test_inputs_of_a_batch_are_freed_with_it():
    """Only statistics stay; keeping what each layer read would take as much memory as calibration has tokens."""
    model = make_model("llama")
    seen: list[weakref.ref[Tensor]] = []
    model.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda _m, args: seen.append(weakref.ref(args[0])))

    def look(progress: rose.Progress) -> None:
        assert progress.stage != "calibrate" or not any(reference() for reference in seen)

    rose.collect_statistics(model, make_tokens(), progress=look)
    assert len(seen) >= 3


@pytest.mark.parametrize("gather", [True, False])
def test_routed_experts_share_statistics_only_while_they_read_the_same(gather, monkeypatch):
    """Against plain hooks. Where they do not gather, experts read the router's own tensor, or not, batch by batch."""
    monkeypatch.setattr(forward, "BATCH_TOKENS", LENGTH)  # one sample a batch
    model, tokens = routed_model(gather), make_tokens(8)
    statistics = rose.collect_statistics(model, tokens)
    for name, inputs in hooked_inputs(model, list(statistics), tokens).items():
        assert statistics[name].tokens == len(inputs), name
        torch.testing.assert_close(statistics[name].hessian, inputs.T @ inputs, rtol=1e-4, atol=1e-4)
    assert set(statistics) == {layer.name for layer in rose.prunable_layers(model)}
    assert len({statistics[f"model.layers.0.mlp.experts.{number}.0"].tokens for number in range(3)}) > 1
    assert statistics["model.layers.0.self_attn.q_proj"] is statistics["model.layers.0.self_attn.v_proj"]


def test_a_layer_called_twice_on_one_tensor_has_read_it_twice():
    model = make_model("llama")
    once = rose.collect_statistics(model, make_tokens(), layers=["*.0.mlp.*"])
    mlp = model.model.layers[0].mlp
    mlp.register_forward_pre_hook(lambda _m, args: (mlp.gate_proj(args[0]), None)[1])
    twice = rose.collect_statistics(model, make_tokens(), layers=["*.0.mlp.*"])
    for name, times in (("gate_proj", 2), ("up_proj", 1)):
        name = f"model.layers.0.mlp.{name}"
        torch.testing.assert_close(twice[name].hessian, times * once[name].hessian)
        assert twice[name].tokens == times * once[name].tokens


def test_inputs_of_one_layer_are_visited():
    model, tokens, name = make_model("llama"), make_tokens(), "model.layers.1.mlp.down_proj"
    seen: list[Tensor] = []
    visit_inputs(model, tokens, name, seen.append)
    torch.testing.assert_close(torch.cat(seen), hooked_inputs(model, [name], tokens)[name], rtol=1e-4, atol=1e-5)
    assert_clean(model)
    refused("names 2 layers; name exactly one", visit_inputs, model, tokens, "*.down_proj", seen.append)


def test_time_left_counts_work_of_this_process(monkeypatch):
    """A run with an allocation that goes on from a checkpoint begins in the middle of the whole."""
    monkeypatch.setattr("rose.model.progress.time.perf_counter", Mock(side_effect=[0.0, 10.0, 20.0]))
    events: list[rose.Progress] = []
    tell: Any = part_callback(events.append, 0.0, 0.25, 1.0)
    for share in (0.5, 0.6, 0.7):
        tell(rose.Progress("calibrate", 0, 1, None, None, 0, 1, share, 0.0, None))
    assert [event.remaining for event in events] == [None, pytest.approx(40), pytest.approx(30)]


@pytest.mark.parametrize("target", ["layer", "dense"])
def test_blocks_that_change_their_input_are_refused(target, monkeypatch):
    def forward(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
        attention, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **arguments)
        hidden_states += attention
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))

    monkeypatch.setattr(LlamaDecoderLayer, "forward", forward)
    model = make_model("llama")
    before = weights_of(model)
    refused("change their input hidden states", prune_model, model, make_tokens(), **HALF, target=target)
    assert not changed(model, before)
    assert_clean(model)


@pytest.mark.parametrize("allocation", ["uniform", "owl", "sensitivity"])
@pytest.mark.parametrize("target", ["layer", "dense"])
def test_a_layer_that_is_never_called_is_named_before_any_work(target, allocation):
    model = make_model("llama")
    model.model.layers[1].mlp.unused = nn.Linear(32, 32)
    before = weights_of(model)
    options = HALF | {"target": target}
    message = r"model\.layers\.1\.mlp\.unused received no input"
    refused(message, prune_model, model, make_tokens(), **options, allocation=allocation)
    assert not changed(model, before)
    layers = [layer.name for layer in rose.prunable_layers(model) if "unused" not in layer.name]
    report = prune_model(model, make_tokens(), **options, layers=layers)
    assert len(report.layers) == 14


@pytest.mark.parametrize("method", ["oats", "sparsegpt"])
def test_a_cancelled_run_keeps_the_factors_of_its_layer(method):
    model = make_model("llama")
    before, first = weights_of(model), rose.prunable_layers(model)[0]
    cancelled(prune_model, model, make_tokens(), method=method, **HALF, progress=stop_at("prune", 0))
    assert changed(model, before) == {first.name}
    assert (first.low_rank is not None) == (method == "oats")
