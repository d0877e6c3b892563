"""Dense targets match those computed by plain hooks on two whole models."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP

import rose
from rose.layer.target import corrected_weight, correction_damping
from rose.model.network.layers import decoder_blocks
from rose.model.network.network import Network
from rose.model.network.residual import find_writers
from rose.model.walk.forward import check_blocks, record_inputs, run_block
from rose.model.walk.sequential import visit_sequentially
from rose.model.walk.storage import token_drift
from rose.model.walk.targets import _inverse_slope
from tests.model.families import DENSE, begin_walk, logits, make_model, make_tokens, stop_when
from tests.model.walk.test_families import hooked_inputs

pytestmark = pytest.mark.usefixtures("small_batches")
OPTIONS: dict[str, Any] = {"sparsity": 0.5, "block_size": 16, "method": "sparsegpt"}


def block_outputs(model: nn.Module, tokens: Tensor) -> list[Tensor]:
    outputs: list[Any] = []
    with ExitStack() as hooks:
        for block in decoder_blocks(model)[1]:
            hooks.enter_context(block.register_forward_hook(lambda _m, _a, output: outputs.append(output)))
        logits(model, tokens)
    return [output[0] if isinstance(output, tuple) else output for output in outputs]


@pytest.mark.parametrize("family", DENSE)
def test_writers_explain_what_a_block_adds_to_the_stream(family):
    """Base, what was added before, and the layer's own term add up to the next value of the stream, block by block."""
    model = make_model(family)
    network, tokens, few = Network(model), make_tokens(1)[:, :8], list[Tensor]()
    outputs_of_blocks = check_blocks(network, tokens)
    arguments = record_inputs(network, tokens, outputs_of_blocks, lambda _batch, hidden: few.append(hidden))
    hidden, block = few[0].clone(), network.blocks[0]
    outputs: dict[str, Tensor] = {"": hidden}
    modules = dict(block.named_modules())
    run = partial(run_block, block, hidden, arguments[0][0], hidden.device)
    writers = find_writers(block, [x for x in network.layers if x.block_index == 0], run, hidden)
    assert len(writers) == 2, writers  # attention and feed-forward, in every family of the list
    with ExitStack() as hooks, torch.no_grad():
        for name, module in [*modules.items()][1:]:
            # Falcon adds to a layer's output in place.
            keep = partial(lambda name, _m, _a, out: outputs.update({name: deepcopy(out)}), name)
            hooks.enter_context(module.register_forward_hook(keep))
        after = run()
    last = max(writers.values(), key=lambda writer: len(writer.before) + (writer.base != ""))
    terms = (*last.before, last.term)
    stream = outputs[last.base] + sum(term.scale * outputs[term.module] for term in terms)
    norms = [name for name, out in outputs.items() if isinstance(out, Tensor) and torch.equal(out, after)]
    if family in ("openai_gpt", "opt_projected"):  # a norm of the stream is what the block puts out
        stream = modules[norms[-1]](stream)
    torch.testing.assert_close(stream.view_as(after), after, rtol=1e-4, atol=1e-5)


LAST = {"gpt_neox": "mlp.dense_4h_to_h", "opt_projected": "fc2", "gpt2": "mlp.c_proj"}
LAST |= dict.fromkeys(["llama", "granite"], "mlp.down_proj")


@pytest.mark.parametrize("chosen", ["all", "last"])
@pytest.mark.parametrize("family", LAST)
def test_gaps_match_those_of_two_whole_models(family, chosen):
    """GᵀX and ‖G‖² of every layer, or of the last one of each decoder block, from hooks on both models."""
    dense, model, tokens = make_model(family), make_model(family), make_tokens(4)
    walk = begin_walk(model, tokens, layers=None if chosen == "all" else [f"*.{LAST[family]}"], is_dense=True)
    written = {}
    for block, layer in ((found, layer) for found in visit_sequentially(walk) for layer in found.layers):
        gap = block.gaps["calibration"][layer.name].of(layer.weight)
        x_dense = hooked_inputs(dense, [layer.name], tokens)[layer.name]
        as_pruned = make_model(family)  # without the hooks of the walk
        as_pruned.load_state_dict(model.state_dict())
        x = hooked_inputs(as_pruned, [layer.name], tokens)[layer.name]
        found = (x_dense - x) @ layer.weight.float().T
        if type(block.gaps["calibration"][layer.name]).__name__ == "OutputGap":
            found = found + lost_by_the_stream(family, dense, as_pruned, layer, tokens).view_as(found)
            written[layer.name] = True
        torch.testing.assert_close(gap.cross, found.T @ x, rtol=1e-3, atol=1e-3 * float(gap.cross.abs().max() + 1))
        assert gap.square == pytest.approx(float(found.square().sum()), rel=1e-3, abs=1e-4)
        layer.write(rose.prune_layer(layer.weight, block.calibration[layer.name], **OPTIONS).weight)
    assert len(written) == (2 if chosen == "all" else 1) * len(walk.by_block)


GROUPS = {
    "llama": [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]],
    "gpt2": [["c_attn"], ["c_proj"], ["c_fc"], ["c_proj"]],
    "falcon": [["query_key_value", "dense_h_to_4h"], ["dense"], ["dense_4h_to_h"]],
}


@pytest.mark.parametrize("family", GROUPS)
def test_layers_that_read_the_same_come_together(family):
    """Several processes share them; towards their own outputs they come one by one."""
    for is_dense in (True, False):
        blocks = visit_sequentially(begin_walk(make_model(family), make_tokens(4), is_dense=is_dense))
        layers = [block.layers for block in blocks if block.block_index == 0]
        groups = [[layer.projection.rpartition(".")[2] for layer in together] for together in layers]
        expected = GROUPS[family] if is_dense else [[name] for group in GROUPS[family] for name in group]
        assert sorted(groups) == sorted(expected)


def lost_by_the_stream(family: str, dense: nn.Module, model: nn.Module, layer: Any, tokens: Tensor) -> Tensor:
    """R by its definition: the stream just before this layer's output is added, in units of that output."""
    scale = getattr(dense.config, "residual_multiplier", 1)
    attention = {"gpt2": "attn.c_proj", "gpt_neox": "attention.dense"}.get(family, "self_attn.o_proj")

    def before(of: nn.Module) -> Tensor:
        caught: dict[str, Tensor] = {}
        block = decoder_blocks(of)[1][layer.block_index]

        def read(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            caught["hidden"] = args[0] if args else kwargs["hidden_states"]

        with ExitStack() as hooks:
            hooks.enter_context(block.register_forward_pre_hook(read, with_kwargs=True))
            for name, module in [*block.named_modules()][1:]:
                keep = partial(lambda name, _m, _a, out: caught.update({name: out}), name)
                hooks.enter_context(module.register_forward_hook(keep))
            logits(of, tokens)
        if layer.projection in (attention, "self_attn.out_proj"):
            return caught["hidden"]
        if family == "opt_projected":
            return caught["self_attn_layer_norm"].view_as(caught["hidden"])
        return caught["hidden"] + scale * caught[attention]

    return (before(dense) - before(model)).float() / scale


def test_corrections_before_a_norm_act_as_intended_after_it():
    """As in Gemma, where a norm stands between layers and stream; channels that it nearly mutes are asked for less."""
    torch.manual_seed(0)
    norm = nn.RMSNorm(32)
    norm.weight.data = torch.rand(32) + 0.5
    norm.weight.data[3] = 1e-3
    put_out = torch.randn(5, 32)
    intended = 1e-3 * torch.randn(5, 32)
    with torch.no_grad():
        normed = norm(put_out)
        change = intended * _inverse_slope(put_out, normed)
        scale = normed / put_out  # what the norm does to a change that leaves the token's length as it is
    loud = torch.arange(32) != 3
    off = (change * scale - intended)[:, loud]
    assert (off.abs() <= 0.3 * intended[:, loud].abs()).all()
    assert (change[:, 3].abs() < intended[:, 3].abs()).all()  # and not a thousand times as much
    assert _inverse_slope(torch.zeros(2, 4), torch.zeros(2, 4)).eq(0).all()


def test_the_corrected_weight_is_what_is_pruned():
    model = make_model("llama")
    report = rose.prune_model(model, make_tokens(), **OPTIONS, target_damping=0.3)
    again = make_model("llama")
    walk = begin_walk(again, make_tokens(), is_dense=True)
    for block, layer in ((visited, layer) for visited in visit_sequentially(walk) for layer in visited.layers):
        statistics = block.calibration[layer.name]
        aim, used = corrected_weight(layer.weight, statistics, block.gaps["calibration"][layer.name], 0.3)
        assert used == 0.3
        layer.write(rose.prune_layer(aim, statistics, **OPTIONS).weight)
    for name, weight in again.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight, msg=name)
    assert (report.layers["target_damping"] == 0.3).all()
    assert report.summary["target"] == "dense"


@pytest.mark.parametrize("family", ["gemma3", "bloom", "falcon"])
def test_dense_targets_bring_outputs_nearer_to_the_dense_model(family):
    """On calibration tokens, by the outputs of the last decoder block; a random model has no sequel to over-fit."""
    tokens = make_tokens(16)
    dense = block_outputs(make_model(family), tokens)[-1]
    away = {}
    for target in ("layer", "dense"):
        model = make_model(family)
        rose.prune_model(model, tokens, **OPTIONS, target=target)
        away[target] = float((block_outputs(model, tokens)[-1] - dense).square().sum() / dense.square().sum())
    assert away["dense"] < away["layer"], away


APART = ["*.layers.0.*", "*.layers.3.*"]  # of gemma3: two decoder blocks between them lose nothing


@pytest.mark.parametrize(("target", "true_sequential"), [("dense", True), ("layer", False), ("layer", True)])
@pytest.mark.parametrize(("family", "layers"), [("llama", None), ("gemma3", APART)])
def test_drift_matches_that_of_two_whole_models(family, layers, target, true_sequential):
    options: dict[str, Any] = {"target": target, "true_sequential": true_sequential, "layers": layers}
    model, held_out = make_model(family), make_tokens(4, seed=3)
    report = rose.prune_model(model, make_tokens(), **OPTIONS, held_out=held_out, **options)
    rows = report.summary["drift"]
    outputs = list(zip(block_outputs(make_model(family), held_out), block_outputs(model, held_out), strict=True))
    assert [row["block_index"] for row in rows] == list(range(len(outputs)))
    for row, (dense, pruned) in zip(rows, outputs, strict=True):
        expected_drift = ((pruned - dense).square().sum(-1) / dense.square().sum(-1)).mean()
        assert row["drift"] == pytest.approx(float(expected_drift), rel=1e-4)
    assert rows[0]["passed_on"] == 0
    assert rows[0]["arisen"] == pytest.approx(rows[0]["drift"])
    if layers:
        assert [row["arisen"] for row in rows[1:3]] == [0, 0]
    assert json.loads(report.to_json())["results"]["drift"] == rows


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_drift_of_formats_of_16_bits_is_computed_in_double(dtype):
    """Squares of 300 are infinite in float16, and bfloat16 has three digits."""
    dense = torch.full((2, 3, 64), 300.0, dtype=dtype)
    pruned = dense + torch.linspace(0.1, 40, 64).to(dtype)
    exact = (pruned.double() - dense.double()).square().sum(-1) / dense.double().square().sum(-1)
    torch.testing.assert_close(token_drift(pruned, dense), exact.flatten())


def test_tokens_without_a_hidden_state_are_left_out_of_drift():
    model, held_out = make_model("llama"), make_tokens(4, seed=3)
    model.model.embed_tokens.weight.data[0] = 0  # as that of padding; at the beginning nothing is added to it
    held_out[1, 0] = 0
    rows = rose.prune_model(model, make_tokens(), **OPTIONS, held_out=held_out).summary["drift"]
    assert all(0 < row["drift"] < 10 for row in rows)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_target_damping_depends_on_the_width_of_the_residual_stream(family):
    layers = rose.prune_model(make_model(family), make_tokens(), **OPTIONS).layers
    corrected = layers[layers["target"] != "layer"]
    assert set(corrected["columns"]) > {32}
    for tokens, of_layers in corrected.groupby("tokens"):
        assert of_layers["target_damping"].to_numpy() == pytest.approx(correction_damping(32, int(tokens), 2))


def test_reports_have_targets_and_errors_against_them():
    model = make_model("llama")
    report = rose.prune_model(model, make_tokens(), **OPTIONS, held_out=make_tokens(4, seed=3))
    for column in ("relative_error", "held_out_error", "target_error", "held_out_target_error"):
        assert report.layers[column].between(0, 10).all(), column
    first = report.layers.iloc[0]  # nothing is lost before the first layer
    assert first["target_error"] == pytest.approx(first["relative_error"], rel=1e-4)
    assert (report.layers["target_error"] != report.layers["relative_error"]).any()
    writes = report.layers["projection"].isin(["self_attn.o_proj", "mlp.down_proj"])
    assert (report.layers["target"] == writes.map({True: "dense and stream", False: "dense"})).all()
    plain = rose.prune_model(make_model("llama"), make_tokens(), **OPTIONS, target="layer").layers
    assert plain[["target_error", "target_damping"]].isna().all(axis=None)
    assert (plain["target"] == "layer").all()


@pytest.mark.parametrize("target", ["dense", "layer"])
def test_a_run_stopped_between_two_pruned_blocks_resumes_there(tmp_path, target):
    options = OPTIONS | {"target": target, "layers": APART, "held_out": make_tokens(4, seed=3)}
    undisturbed, told = make_model("gemma3"), list[rose.Progress]()
    expected = rose.prune_model(undisturbed, make_tokens(), **options, progress=told.append)
    for last in range(0, len(told), 17):
        folder, left = tmp_path / str(last), iter(range(last))
        stop = stop_when(lambda _progress, left=left: next(left, None) is None)
        with pytest.raises(rose.Cancelled):
            rose.prune_model(make_model("gemma3"), make_tokens(), **options, progress=stop, checkpoint=folder)
        model, again = make_model("gemma3"), list[rose.Progress]()
        report = rose.prune_model(model, make_tokens(), **options, checkpoint=folder, progress=again.append)
        assert report.summary["drift"] == expected.summary["drift"]
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, undisturbed.state_dict()[name]), name
        pruned_again = [event.block_index for event in again if event.stage == "prune"]
        assert not pruned_again or min(pruned_again) >= told[last].block_index


def _parallel(attention_first: bool) -> Callable[..., Tensor]:
    def forward(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
        attention, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **arguments)
        mlp = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + attention + mlp if attention_first else hidden_states + mlp + attention

    return forward


def test_targets_do_not_depend_on_the_order_of_a_sum(monkeypatch):
    errors = []
    for attention_first in (True, False):
        monkeypatch.setattr(LlamaDecoderLayer, "forward", _parallel(attention_first))
        report = rose.prune_model(make_model("llama"), make_tokens(), **OPTIONS)
        assert (report.layers["target"] == "dense and stream").sum() == 4
        errors.append(torch.tensor(report.layers["target_error"].to_numpy()))
    torch.testing.assert_close(errors[0], errors[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("odd", ["called twice", "overwritten"])
def test_a_layer_that_reads_more_than_one_input_has_no_dense_target(odd, monkeypatch):
    once, model, dense = LlamaMLP.forward, make_model("llama"), make_model("llama").state_dict()
    if odd == "called twice":
        monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: once(self, once(self, x)))
    else:
        layer = model.model.layers[1].mlp.down_proj
        layer.register_forward_hook(lambda _module, args, _output: (args[0].zero_(), None)[1])
    report = rose.prune_model(model, make_tokens(), method="sparsegpt", sparsity=0, block_size=16)
    assert all(torch.equal(weight, dense[name]) for name, weight in model.state_dict().items())
    towards = report.layers.set_index("layer")["target"]
    assert towards["model.layers.1.mlp.down_proj"] == "layer"
    assert (towards["model.layers.1.mlp.gate_proj"] == "layer") == (odd == "called twice")
    assert towards["model.layers.1.self_attn.o_proj"] == "dense and stream"
