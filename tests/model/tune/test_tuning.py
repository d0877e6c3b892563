"""Tuning: zeros stay to the bit, held-out tokens decide, and a stopped run goes on to the same bits."""

import copy
import itertools
import json
import math
import random
import re
from argparse import Namespace
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

import rose
from rose import cli
from rose.commands import terminal
from rose.commands.changing import Tuned, draw_texts
from rose.interrupt import CANCELLED
from rose.model.network import precision
from rose.model.run.checkpoint import claimed
from rose.model.settings import TuneSettings
from rose.model.tune import tuning
from rose.model.tune.task import FEW, TuneTask, TuningProgress, _beside, divergence
from rose.model.tune.tuning import Parts
from rose.model.workers import Workers
from rose.tensor_files import digest, write_tensors
from tests.model.families import GATED, make_from, make_model, make_tokens, stop_when
from tests.refusals import cancelled, refused
from tests.tiny import byte_tokenizer, save_tiny_llama

FAMILIES = ("llama", "gpt2", "gemma3", "phi3", "qwen3_moe", "gpt_neox")
TOKENS, HELD_OUT = make_tokens(64), make_tokens(4, seed=3)
FAST: dict[str, Any] = {"epochs": 2, "rate": 1e-3, "compute": "float32"}
JUDGED: dict[str, Any] = FAST | {"loss": "ce", "held_out": TOKENS}  # held-out tokens that get better for certain


def pruned_pair(family: str = "llama", sparsity: Any = 0.5, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """A dense model, and a copy of it without its smallest weights."""
    dense = make_model(family).to(dtype)
    model = copy.deepcopy(dense)
    for layer in rose.prunable_layers(model):
        hessian = torch.eye(layer.weight.shape[1])
        layer.write(rose.prune_layer(layer.weight, hessian, method="magnitude", sparsity=sparsity).weight)
    return dense, model


@torch.no_grad()
def away(model: Any, dense: Any) -> float:
    """Nats a token between the distributions of two models, on tokens that neither has seen."""
    return float(divergence(model(HELD_OUT).logits, dense(HELD_OUT).logits)) / HELD_OUT.numel()


@torch.no_grad()
def likeliest(dense: Any) -> torch.Tensor:
    """Windows whose tokens the dense model tells better than one that was pruned."""
    windows = make_tokens(4, 1)
    while windows.shape[1] < HELD_OUT.shape[1]:
        windows = torch.cat([windows, dense(windows).logits[:, -1:].argmax(2)], 1)
    return windows


def masks(model: nn.Module) -> list[torch.Tensor]:
    return [layer.weight == 0 for layer in rose.prunable_layers(model)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_weights_recover_and_zeros_stay(family, dtype):
    dense, model = pruned_pair(family, dtype=dtype)
    before, was, start = masks(model), digest(dense.state_dict()), away(model, dense)
    report = rose.tune_model(model, dense, TOKENS, **FAST)
    assert all(map(torch.equal, masks(model), before))
    assert report.summary["zeros"] == sum(int(mask.sum()) for mask in before)
    assert away(model, dense) < 0.9 * start
    assert digest(dense.state_dict()) == was
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert (report.layers["change"] > 0).all()


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("layers", [None, ["*down_proj"]])
def test_double_precision_weights_are_tuned(compute, layers):
    dense = make_model("llama").double()
    for parameter in dense.parameters():
        parameter.data *= 1 + 1e-10  # no longer float32 numbers
    model = copy.deepcopy(dense)
    for layer in rose.prunable_layers(model):
        layer.write(layer.weight * (layer.weight > 0))
    start, before = copy.deepcopy(model), masks(model)
    report = rose.tune_model(model, dense, TOKENS, layers=layers, **FAST | {"epochs": 1, "compute": compute})
    assert all(map(torch.equal, masks(model), before))
    trained = {f"{name}.weight" for name in report.layers["layer"]}
    for name, tensor in start.state_dict().items():
        assert model.state_dict()[name].dtype == torch.float64
        assert torch.equal(model.state_dict()[name], tensor) != (name in trained)
    was = digest(start.state_dict())
    cancelled(rose.tune_model, start, dense, TOKENS, layers=layers, **FAST, progress=Mock(side_effect=rose.Cancelled))
    assert digest(start.state_dict()) == was


@pytest.mark.parametrize("loss", ["kl", "ce"])
def test_steps_are_those_of_adam_by_hand_on_the_mean_loss_a_token(loss):
    dense, model = pruned_pair()
    by_hand, start, survivors = copy.deepcopy(model), copy.deepcopy(model), [~mask for mask in masks(model)]
    seen: list[torch.Tensor] = []

    def watch(_model: nn.Module, _args: Any, given: dict[str, Any]) -> None:
        if torch.is_grad_enabled():  # a step, and no look
            seen.append(given["input_ids"])

    hook = model.register_forward_pre_hook(watch, with_kwargs=True)
    tokens, rate, batch = TOKENS[:18], 1e-3, 3
    options: dict[str, Any] = {"rate": rate, "batch": batch, "loss": loss, "epochs": 2, "compute": "float32"}
    report = rose.tune_model(model, dense, tokens, **options)
    hook.remove()
    epochs = torch.cat(seen).view(2, *tokens.shape)
    assert not torch.equal(*epochs)
    assert all(torch.equal(epoch.unique(dim=0), tokens.unique(dim=0)) for epoch in epochs)  # each window once
    weights = [layer.weight for layer in rose.prunable_layers(by_hand)]
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    losses: list[float] = []
    for step, windows in enumerate(seen):
        logits = by_hand(windows).logits.log_softmax(2)
        if loss == "kl":
            target = dense(windows).logits.detach().log_softmax(2)
            mean = nn.functional.kl_div(logits, target, log_target=True, reduction="sum") / windows.numel()
        else:
            mean = -logits[:, :-1].gather(2, windows[:, 1:, None]).mean()
        losses.append(mean.item())
        now = rate * ((step + 1) / 3 if step < 3 else (12 - step) / 9)  # up in a quarter of 12 steps, and down to 0
        for at, gradient in enumerate(torch.autograd.grad(mean, [x.parameter for x in rose.prunable_layers(by_hand)])):
            masked_gradient = gradient * survivors[at]
            first[at] = 0.9 * first[at] + 0.1 * masked_gradient
            second[at] = 0.999 * second[at] + 0.001 * masked_gradient.square()
            scale = (second[at] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
            with torch.no_grad():
                weights[at] -= now * first[at] / (1 - 0.9 ** (step + 1)) / scale
    for layer, expected, before in zip(*map(rose.prunable_layers, (model, by_hand, start)), strict=True):
        assert (layer.weight - expected.weight).norm() < 1e-2 * (expected.weight - before.weight).norm(), layer.name
    curve = report.curve.set_index("step")["loss"].dropna()
    ends = [0, *curve.index]
    means = [sum(losses[a:b]) / (b - a) for a, b in itertools.pairwise(ends)]
    assert curve.tolist() == pytest.approx(means, rel=1e-4)


@pytest.mark.parametrize("loss", ["kl", "ce"])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_tuning_has_gradients_inside_no_grad(loss, mode):
    dense, model = pruned_pair()
    twin, options = copy.deepcopy(model), {**FAST, "epochs": 1, "loss": loss}
    rose.tune_model(twin, dense, TOKENS, **options)
    with mode():
        rose.tune_model(model, dense, TOKENS + 0, **options)  # tokens that are made there, too
    assert digest(model.state_dict()) == digest(twin.state_dict())


def test_a_smaller_model_is_tuned_without_zeros():
    dense = make_model("llama")
    model = copy.deepcopy(dense)
    rose.prune_structured(model, TOKENS, ratio=0.3, multiple=4)
    start = away(model, dense)
    rose.tune_model(model, dense, TOKENS, **FAST | {"rate": 1e-4})
    assert away(model, dense) < start


@pytest.mark.parametrize(("family", "layers"), [("gpt_oss", None), ("gpt_oss", ["*up_proj"]), ("gpt2", None)])
def test_sparse_parts_of_experts_and_transposed_weights_stay(family, layers):
    dense = make_model(family)
    model = copy.deepcopy(dense)
    rose.prune_model(model, make_tokens(), method="oats", sparsity=0.5, block_size=16)
    before = digest(model.state_dict())
    parts = [(each.low_rank, sparse_zeros(each, *each.low_rank)) for each in rose.prunable_layers(model)]
    rose.tune_model(model, dense, TOKENS, layers=layers, **FAST)
    assert digest(model.state_dict()) != before
    for layer, (factors, zeros) in zip(rose.prunable_layers(model), parts, strict=True):
        assert zeros.any()
        assert torch.equal(sparse_zeros(layer, *factors) & zeros, zeros)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_small_kept_entries_beside_a_low_rank_part_are_trained(dtype, scale):
    torch.manual_seed(0)
    left, right = scale * torch.randn(64, 2), torch.randn(2, 96)
    sparse = torch.zeros(64, 96)
    sparse[::2] = 0.02 * left.abs().max()  # of a hundredth of the largest weight
    sparse[0, 0] = scale
    weight = (sparse + left @ right).to(dtype)
    frozen = _beside(weight, left, right)
    assert frozen[sparse == 0].all()
    small = (sparse != 0) & (weight.float().abs() < 50 * sparse)
    assert scale < 1 or not frozen[small].any()  # rounding hides none of them; the smallest it does


def sparse_zeros(layer: Any, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (layer.weight - left @ right).abs() < 1e-6


def test_worse_steps_are_not_kept(capsys):
    dense, model = pruned_pair()
    before = digest(model.state_dict())
    held_out = likeliest(dense)
    report = rose.tune_model(model, dense, TOKENS, **FAST | {"rate": 10.0, "epochs": 1, "held_out": held_out})
    summary = report.summary
    assert summary["kept_step"] == 0
    assert summary["held_out_dense"] == pytest.approx(math.log(rose.perplexity(dense, held_out)), rel=1e-5)
    assert summary["held_out_before"] == pytest.approx(math.log(rose.perplexity(model, held_out)), rel=1e-5)
    assert summary["held_out_after"] == summary["held_out_before"] == report.curve["held_out"].min()
    assert digest(model.state_dict()) == before
    Tuned(report).say()
    assert "no step was better, so nothing was changed; a --rate below 10 may do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("whose", "message"),
    [("pruned", "The loss is nan before any step; `rose check` tells"), ("step", "choose a smaller rate than 1e[+]30")],
)
def test_the_cause_of_a_loss_that_is_not_finite_is_named(whose, message):
    dense, model = pruned_pair()
    if whose == "pruned":
        rose.prunable_layers(model)[0].parameter.data[0, 0] = math.nan
    rate = 1e-3 if whose == "pruned" else 1e30
    refused(message, rose.tune_model, model, dense, TOKENS, **FAST | {"rate": rate})


@pytest.mark.parametrize("loss", ["kl", "ce"])
@pytest.mark.parametrize("is_held_out", [True, False])
def test_the_rate_falls_with_the_way_to_the_dense_model(loss, is_held_out, monkeypatch):
    dense, model = pruned_pair()
    greedy = likeliest(dense)
    tokens, held_out = (TOKENS, greedy) if is_held_out else (greedy.repeat(16, 1), None)  # else by those of a step
    far = math.log(rose.perplexity(model, greedy) / rose.perplexity(dense, greedy))
    monkeypatch.setattr(tuning, "FAR", 2 * far)
    rates = {}
    for sparsity in (0.5, 0.1):
        dense, model = pruned_pair(sparsity=sparsity)
        report = rose.tune_model(model, dense, tokens, held_out=held_out, epochs=1, loss=loss, compute="float32")
        rates[sparsity] = report.summary["rate"]
    assert report.summary["steps"] == 32  # enough for the full rate, were the way long
    if is_held_out:
        assert rates[0.5] == pytest.approx(1e-3 * 0.5, rel=1e-2)
    assert rates[0.1] == pytest.approx(1e-4)
    assert rates[0.5] > rates[0.1]


def test_gradients_of_the_caller_are_ignored_and_restored():
    dense, model = pruned_pair()
    other = copy.deepcopy(model)
    brought = [torch.ones_like(parameter) for parameter in other.parameters()]
    for parameter, gradient in zip(other.parameters(), brought, strict=True):
        parameter.grad = gradient
    for each in (model, other):
        rose.tune_model(each, dense, TOKENS[:8], epochs=1, compute="float32")
    assert digest(other.state_dict()) == digest(model.state_dict())
    assert all(parameter.grad is gradient for parameter, gradient in zip(other.parameters(), brought, strict=True))


def test_a_process_without_windows_joins_the_sums(monkeypatch):
    monkeypatch.setattr(Workers, "here", lambda: Workers(8, 7))
    for name in ("from_first", "gather", "sum_tensor"):  # what the other seven would send
        monkeypatch.setattr(Workers, name, lambda _workers, value: value() if callable(value) else [value])
    dense, model = pruned_pair()
    report = rose.tune_model(model, dense, TOKENS[:4], held_out=HELD_OUT, batch=8)
    assert report.summary["steps"] == 1
    assert report.curve["held_out"].tolist() == [0, 0]  # its part of the sums


def test_a_resumed_optimizer_is_on_the_device_of_the_weights(tmp_path):
    parts = {name: torch.ones(3) for name in ("weight", "best", "exp_avg", "exp_avg_sq")} | {"step": torch.tensor(4.0)}
    facts = json.dumps(dict.fromkeys(tuning.FACTS, 0))
    write_tensors(tmp_path / "state", {f"a/{name}": tensor for name, tensor in parts.items()}, facts=facts, curve="[]")
    parameter = nn.Parameter(torch.zeros(3, device="meta"))
    loop: Any = Namespace(state=tmp_path / "state", device=parameter.device)
    loop.trained, loop.optimizer = [Namespace(name="a", parameter=parameter)], torch.optim.Adam([parameter])
    assert tuning.Tuner._resume(loop)
    state = loop.optimizer.state[parameter]
    assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
    assert all(tensor.is_meta for tensor in state.values())


def test_a_stopped_run_keeps_the_best_and_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    dense, model = pruned_pair()
    whole, start = copy.deepcopy(model), copy.deepcopy(model)
    expected = rose.tune_model(whole, dense, TOKENS, **JUDGED)

    stop = stop_when(lambda progress: progress.layers_done == 30)
    cancelled(rose.tune_model, model, dense, TOKENS, **JUDGED, checkpoint=tmp_path, progress=stop)
    assert digest(start.state_dict()) != digest(model.state_dict()) != digest(whole.state_dict())
    assert all(map(torch.equal, masks(model), masks(start)))
    seen: list[TuningProgress] = []
    again = rose.tune_model(start, dense, TOKENS, **JUDGED, checkpoint=tmp_path, progress=seen.append)
    assert min(event.layers_done for event in seen) > 0
    assert digest(start.state_dict()) == digest(whole.state_dict())
    assert again.curve["held_out"].tolist() == expected.curve["held_out"].tolist()
    other = copy.deepcopy(dense)
    other.model.norm.weight.data[0] += 0.01
    fresh = pruned_pair()[1]
    for pruned, teacher, changes, message in (
        (fresh, dense, {"rate": 0.1}, r"rate was 0\.001 there and is 0\.1 now"),
        (model, dense, {}, r"pruned model's weights differ .*load it again"),
        (fresh, other, {}, "the dense model's weights differ"),
    ):
        refused(message, rose.tune_model, pruned, teacher, TOKENS, **JUDGED | changes, checkpoint=tmp_path)
    monkeypatch.setattr(tuning, "FORMAT", tuning.FORMAT + 1)
    with pytest.raises(rose.RoseError, match="another version of this program began it"):
        rose.tune_model(fresh, dense, TOKENS, **JUDGED, checkpoint=tmp_path)


def test_parts_of_blocks_are_tuned_one_after_another(tmp_path):
    dense, model = pruned_pair(dtype=torch.bfloat16)
    fast = FAST | {"seed": 2**63 - 1}  # the largest one; other parts have other seeds
    before, seen = masks(model), []
    again, start = copy.deepcopy(model), away(model, dense)
    report = rose.tune_model(model, dense, TOKENS, **fast, parts=2, progress=seen.append)
    summary, curve = report.summary, report.curve
    assert all(map(torch.equal, masks(model), before))
    assert summary["zeros"] == summary["zeros_before"] == sum(int(mask.sum()) for mask in before)
    assert summary["parts"] == 2
    assert summary["steps"] == summary["steps_planned"] == len(TOKENS)
    assert list(report.layers["layer"]) == [layer.name for layer in rose.prunable_layers(model)]
    assert (report.layers["change"] > 0).all()
    assert curve["step"].is_monotonic_increasing
    assert curve["step"].iloc[-1] == summary["steps"]
    assert away(model, dense) < 0.95 * start
    assert [event.fraction for event in seen] == sorted(event.fraction for event in seen)
    assert seen[-1].fraction == 1

    stop = stop_when(lambda progress: progress.fraction > 0.75)
    cancelled(rose.tune_model, copy.deepcopy(again), dense, TOKENS, **fast, parts=2, checkpoint=tmp_path, progress=stop)
    rose.tune_model(again, dense, TOKENS.int(), **fast, parts=2, checkpoint=tmp_path)  # the same tokens
    assert digest(again.state_dict()) == digest(model.state_dict())
    with pytest.raises(rose.RoseError, match="epochs was 2 there and is 3 now"):  # as given, not a part's share
        rose.tune_model(pruned_pair()[1], dense, TOKENS, **fast | {"epochs": 3}, parts=2, checkpoint=tmp_path)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_resumed_run_keeps_its_parts_and_its_format(tmp_path, monkeypatch, parts):
    dense, model = pruned_pair()
    task, auto, stop_at_once = TuneTask(model, dense, TOKENS[:4]), {"epochs": 1.0}, Mock(side_effect=rose.Cancelled)
    cancelled(Parts(task, TuneSettings(**auto), parts).run, stop_at_once, tmp_path)
    begun = Parts(task, TuneSettings(**auto), parts).tuner.precision.describe()["products"]
    other = "float32" if begun == "bfloat16" else "bfloat16"
    monkeypatch.setattr(precision, "_chosen", lambda _device: other)  # as on another processor
    again = Parts(task, TuneSettings(**auto), parts)
    cancelled(again.run, stop_at_once, tmp_path)
    assert again.tuner.precision.describe()["products"] == begun
    with pytest.raises(rose.RoseError, match=f"computed in {begun} there and are in {other} now"):
        Parts(task, TuneSettings(**auto, compute=other), parts).run(None, tmp_path)
    with pytest.raises(rose.RoseError, match=f"parts was {parts} there and is {3 - parts} now"):
        Parts(task, TuneSettings(**auto), 3 - parts).run(None, tmp_path)


def test_the_part_with_the_fewest_steps_is_named():
    dense, model = pruned_pair()
    tuner = Parts(TuneTask(model, dense, TOKENS[:16]), TuneSettings(epochs=1.0), 2)
    tuner.run()
    report = tuner.report()
    assert report.summary["steps_planned"] >= FEW
    report.summary["minutes"] = 5
    assert report.caution.startswith("Only four steps of a part fitted into 5 min")


def test_the_divergence_has_the_gradient_of_autograd():
    torch.manual_seed(0)
    pruned, dense = (torch.randn(2, 5, 11, requires_grad=True) for _ in range(2))
    by_hand = divergence(pruned, dense)
    targets = dense.detach().log_softmax(2)
    expected = nn.functional.kl_div(pruned.log_softmax(2), targets, log_target=True, reduction="sum")
    torch.testing.assert_close(by_hand, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, pruned)[0] for value in (by_hand, expected)))


dense, pruned = partial(make_model, "llama"), lambda: pruned_pair()[1]


@pytest.mark.parametrize(
    ("make", "towards", "options", "message"),
    [
        (pruned, dense, {"minutes": 1.0, "epochs": 1.0}, "not both"),
        (pruned, dense, {"rate": 0.0}, "rate must be a number above 0"),
        (pruned, dense, {"loss": "mse"}, "one of kl, ce"),
        (pruned, dense, {"held_out": make_tokens().float()}, "whole numbers"),
        (pruned, dense, {"parts": 9}, "cannot be tuned in 9 parts"),
        (pruned, dense, {"parts": "2"}, "cannot be tuned in '2' parts"),
        (dense, dense, {}, "all weights of the dense model and no zeros"),
        (pruned, pruned, {}, "as sparse as the model to tune"),
        (pruned, pruned, {"loss": "ce"}, "as sparse as the model to tune"),
        (pruned, lambda: make_from(LlamaConfig(**GATED | {"vocab_size": 97})), {}, "different vocabularies"),
        (pruned, lambda: make_model("gpt2"), {}, "their input embeddings differ"),
        (pruned, None, {}, "the same object"),
    ],
)
def test_settings_and_models_that_cannot_be_tuned_are_refused(make, towards, options, message):
    model = make()
    refused(message, rose.tune_model, model, towards() if towards else model, TOKENS, **FAST | options)


@pytest.mark.parametrize(
    ("state", "rate"),
    [
        ({"steps": 32}, 1e-3),
        ({"steps": 16}, 5e-4),
        ({"steps": 32, "kept": 0.8}, 5e-4),
        ({"steps": 32, "away": tuning.FAR / 2}, 5e-4),
        ({"steps": 32, "away": 0.0}, 1e-4),
        ({"steps": 32, "_size": tuning.SIZE / 4}, 2.5e-4),
        ({"steps": 32, "_size": 3 * tuning.SIZE}, 1e-3),
    ],
)
def test_the_rate_falls_with_steps_lead_kept_weights_and_size(state, rate):
    dense, model = pruned_pair()
    tuner = tuning.Tuner(TuneTask(model, dense, TOKENS), TuneSettings())
    for name, value in {"kept": 0.3, "away": 1.0, "_size": tuning.SIZE, **state}.items():
        setattr(tuner, name, value)
    assert tuner.rate == pytest.approx(rate)


@pytest.mark.parametrize(("is_dense_on_a_grid", "bits"), [(False, 4), (True, 4), (True, None)])
def test_bits_are_refused_also_where_the_dense_model_is_on_another_grid(is_dense_on_a_grid, bits):
    """As the packaged one is, which comes from a GGUF file with an offset beside the scale."""
    dense = make_model("llama")
    for layer in rose.prunable_layers(dense) if is_dense_on_a_grid else ():
        low, high = layer.weight.aminmax(dim=1, keepdim=True)
        step = (high - low) / 15
        layer.write(((layer.weight - low) / step).round() * step + low)
    model = copy.deepcopy(dense)
    rounding: dict[str, Any] = {"bits": bits, "group": "row"} if bits else {}
    rose.prune_model(model, TOKENS, method="wanda", sparsity=0.5, target="layer", **rounding)
    refusal = pytest.raises(rose.RoseError, match="lie on a grid of 16 values, which tuning would leave")
    with refusal if bits else nullcontext():
        rose.tune_model(model, dense, TOKENS, **FAST | {"epochs": 0.2})


def test_windows_for_tuning_are_disjoint(tmp_path):
    text = tmp_path / "letters.txt"
    text.write_text("".join(random.Random(0).choices("abcdefgh", k=4000)))
    evaluated = rose.load_tokens(str(text), byte_tokenizer(), samples=5, length=32, seed=None)
    options = Namespace(tune=1.0, calibration=str(text), length=32, seed=0, bos="auto", checkpoint=None)
    tokens, held_out = draw_texts(options, pruned_pair()[0], byte_tokenizer(), evaluated)
    assert len(tokens) + len(held_out) == 4000 // 32 - 5
    assert len({tuple(window) for window in (*tokens.tolist(), *held_out.tolist(), *evaluated.tolist())}) == 4000 // 32


def test_what_tuning_would_refuse_is_refused_before_pruning(tmp_path, capsys, monkeypatch):
    monkeypatch.delattr(rose, "prune_model")
    model, tokenizer = rose.load_model(str(save_tiny_llama(tmp_path / "dense")))
    for layer in rose.prunable_layers(model):
        layer.write(layer.weight * (torch.arange(layer.weight.numel()) % 2).view_as(layer.weight))
    rose.save_model(model, tokenizer, tmp_path / "halved")
    begun = tmp_path / "kept"
    with claimed(begun / "tuned", lambda: {"command": "tune", "minutes": 5.0}):
        pass
    task = [*tiny_task(tmp_path), "--output", str(tmp_path / "out"), "--checkpoint", str(begun)]
    assert cli.main(["prune", *task, "--tune", "1"]) == 2
    assert "was begun with --tune 5; give that, or another checkpoint" in capsys.readouterr().err
    with claimed(begun / "other" / "tuned", lambda: {"command": "tune", "minutes": 5.0, "tokens": "of others"}):
        pass
    assert cli.main(["prune", *task, "--tune", "5", "--checkpoint", str(begun / "other"), "--block-size", "16"]) == 2
    assert "was begun with other windows to tune on" in capsys.readouterr().err
    task[1] = str(tmp_path / "halved")
    assert cli.main(["prune", *task, "--tune", "5", "--sparsity", "0.5"]) == 2
    assert "50 % of the model's weights are zero already" in capsys.readouterr().err


def tiny_task(folder: Path) -> list[str]:
    """Options that say what is pruned, on which windows."""
    tiny, text = str(save_tiny_llama(folder / "dense")), folder / "text.txt"
    letters = random.Random(0).choices("abcdefghijklmnopqrstuvwxyz ", k=2000)  # no two windows are alike
    text.write_text("".join(letters))
    return ["--model", tiny, "--calibration", str(text), "--samples", "4", "--length", "48", "--held-out", "2"]


def fail_after(steps: int, problem: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    take = tuning.Tuner._step

    def step(loop: Any) -> None:
        if loop.step == steps:
            raise problem
        take(loop)

    monkeypatch.setattr(tuning.Tuner, "_step", step)


@pytest.mark.parametrize(
    ("problem", "says", "status"),
    [
        (KeyboardInterrupt(), "was cancelled", CANCELLED),
        (rose.RoseError("No."), "has failed", 2),
        (ValueError(), "has failed", cli.UNFORESEEN),
    ],
)
def test_a_copy_is_written_as_pruned_if_tuning_took_no_step(tmp_path, monkeypatch, problem, says, status, capsys):
    monkeypatch.setattr(Parts, "__init__", Mock(side_effect=problem))
    output = tmp_path / "out"
    prune = ["prune", "--method", "wanda", *tiny_task(tmp_path), "--tune", "1", "--output", str(output)]
    assert cli.main(prune) == status
    assert f"tuning {says}; the best weights so far are kept" in capsys.readouterr().err
    assert any(mask.any() for mask in masks(rose.load_model(str(output))[0]))
    summary = rose.RunReport.from_json((output / "report.json").read_text()).summary
    assert "tuned" not in summary
    assert summary["mean_relative_error"] > 0


@pytest.mark.parametrize("parts", [1, 2])
def test_steps_before_one_that_fails_are_not_lost(tmp_path, monkeypatch, parts, capsys):
    task, output = tiny_task(tmp_path), tmp_path / "out"
    model, tokenizer = rose.load_model(task[1])
    for layer in rose.prunable_layers(model):
        layer.write(layer.weight * (layer.weight > 0))
    rose.save_model(model, tokenizer, tmp_path / "pruned")
    tune = ["tune", str(tmp_path / "pruned"), "--dense", *task[1:], "--held-out", "0", "--parts", str(parts)]
    tune += ["--output", str(output), "--epochs", "2"]
    problem, make = rose.RoseError("No memory."), Parts._tuner
    fail_after(0, problem, monkeypatch)
    assert cli.main(tune) == 2
    assert not output.exists()  # it would be the pruned one again
    monkeypatch.undo()
    if parts == 1:
        fail_after(2, problem, monkeypatch)
    else:  # the second part has no memory
        refuse = Mock(side_effect=problem)
        monkeypatch.setattr(Parts, "_tuner", lambda tuner, number: (refuse if number else make)(tuner, number))
    assert cli.main(tune) == 2
    printed = capsys.readouterr()
    assert f"are in {output}" in printed.out
    assert printed.err.rstrip().endswith("No memory.")
    assert rose.RunReport.load(output).summary["tuned"]["steps"] == 2
    assert digest(rose.load_model(str(output))[0].state_dict()) != digest(model.state_dict())


SLIM = ["slim", "--ratio", "0.3", "--prune", "0.5"]


@pytest.mark.parametrize("command", [["prune", "--block-size", "16"], SLIM], ids=["prune", "slim"])
def test_a_copy_is_written_and_marked_if_tuning_was_cancelled(tmp_path, monkeypatch, command, capsys):
    fail_after(1, KeyboardInterrupt(), monkeypatch)
    output = tmp_path / "out"
    assert cli.main([*command, *tiny_task(tmp_path), "--tune", "1", "--output", str(output)]) == CANCELLED
    printed = capsys.readouterr()
    assert "tuning was cancelled; the best weights so far are kept" in printed.err
    assert "Drift of the residual stream" in printed.out  # of what was pruned
    assert rose.load_model(str(output))

    # The report tells of a model that was tuned, and holds no errors of the one before.
    report = rose.RunReport.from_json((output / "report.json").read_text())
    last = report.stages[-1]
    assert last.summary["environment"] == report.summary["tuned"]["environment"]
    assert "mean_relative_error" not in last.summary
    assert "drift" not in last.summary
    assert "relative_error" not in last.layers or last.layers["relative_error"].isna().all()
    if len(report.stages) > 1:
        assert report.summary["mean_relative_error"] == report.stages[0].layers["relative_error"].mean()


def test_commands_tune_and_evaluate(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(terminal, "MINUTE", 0)
    _, tiny, *windows = tiny_task(tmp_path)
    other = tmp_path / "other.txt"
    other.write_text("Another text has other words. " * 40)
    evaluated = ["--evaluate", str(other), "--windows", "2"]
    pruned, tuned = tmp_path / "pruned", tmp_path / "tuned"
    prune = ["prune", "--model", tiny, *windows, "--block-size", "16", "--output", str(pruned), "--tune", "0.02"]
    assert cli.main([*prune, *evaluated]) == 0
    assert rose.RunReport.load(pruned).summary["tuned"]["steps"] >= 1
    assert cli.main(["tune", str(pruned), "--dense", tiny, *windows, *evaluated, "--output", str(tuned)]) == 0
    printed = capsys.readouterr()
    assert "weights are zero, as before" in printed.out
    assert re.search(r"Tuning, held-out perplexity \d+\.\d\d: \d+ of", printed.err)
    summary = rose.RunReport.load(tuned).summary
    assert summary["tuned"]["dense"] == tiny
    assert None not in (summary["perplexity_after"], summary["tuned"]["perplexity_before"])
    former = rose.RunReport.load(pruned).summary["tuned"]
    assert summary["tuned_before"] == [former]
    before, other = (rose.load_model(str(folder))[0] for folder in (pruned, tuned))
    assert all(map(torch.equal, masks(before), masks(other)))
