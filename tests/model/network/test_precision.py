"""Forward passes in bfloat16 round matrix products alone, if the user or the processor asks for it."""

from typing import Any
from unittest.mock import Mock

import pytest
import torch

import rose
from rose.layer.methods import rose_admm
from rose.model.network import precision
from rose.model.network.precision import Precision
from rose.model.walk import targets, walk
from rose.model.workers import Workers
from rose.tensor_files import digest
from tests.model.families import make_model, make_tokens
from tests.refusals import refused

pytestmark = pytest.mark.usefixtures("small_batches")
OPTIONS: dict[str, Any] = {"sparsity": 0.5, "block_size": 16}


def passes(stored: torch.dtype = torch.float32, device: str = "cpu") -> torch.dtype:
    return Precision.of("auto", stored, torch.device(device)).passes


def test_auto_is_the_format_that_the_processor_has_instructions_for(monkeypatch):
    assert passes() == torch.float32  # the tests' own setting
    monkeypatch.delenv(precision.VARIABLE)
    for has_instructions, expected in ((False, torch.float32), (True, torch.bfloat16)):
        monkeypatch.setattr(precision, "has_bfloat16", lambda has_instructions=has_instructions: has_instructions)
        assert passes() == expected
        assert passes(device="cuda") == torch.float32
        assert passes(torch.bfloat16) == torch.bfloat16
        assert passes(torch.float16) == torch.float16
    monkeypatch.setenv(precision.VARIABLE, "float64")
    refused("ROSE_COMPUTE must be one of float32, bfloat16, not 'float64'", passes)


def test_processes_use_the_precision_of_the_first(monkeypatch):
    monkeypatch.delenv(precision.VARIABLE)
    monkeypatch.setattr(precision, "has_bfloat16", lambda: False)
    rounded = Precision(torch.bfloat16, torch.bfloat16, rounds=True)

    def of_the_first(_workers: Workers, work: Any) -> Any:
        return rounded if getattr(work, "func", None) == Precision.of else work()

    monkeypatch.setattr(Workers, "from_first", of_the_first)
    model, seen = make_model("llama"), []
    assert rose.prune_model(model, make_tokens(), **OPTIONS).summary["compute"] == "bfloat16"
    monkeypatch.setattr(walk, "start_walk", lambda *_others, precision, **_more: seen.append(precision))
    with pytest.raises(AttributeError):
        next(iter(rose.visit_blocks(model, make_tokens(), compute="auto")))
    assert seen == [rounded]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "mixtral"])
@pytest.mark.parametrize("target", ["dense", "layer"])
def test_pruning_in_bfloat16_is_close_to_float32(family, target):
    tables, models = [], []
    for compute in ("float32", "bfloat16"):
        model = make_model(family)
        # Of mixtures of experts the routes may differ, where two experts are nearly equal.
        layers = ["*.0.self_attn.*"] if family == "mixtral" else None
        options = {**OPTIONS, "target": target, "compute": compute, "layers": layers}
        report = rose.prune_model(model, make_tokens(), held_out=make_tokens(2, seed=3), **options)
        assert report.summary["compute"] == compute
        tables.append(report.layers)
        models.append(model)
    assert {parameter.dtype for parameter in models[1].parameters()} == {torch.float32}
    assert (tables[1]["sparsity"] == 0.5).all()
    means = [table["relative_error"].mean() for table in tables]  # single layers lose other weights near ties
    assert means[1] == pytest.approx(means[0], rel=0.05)
    assert digest(models[0].state_dict()) != digest(models[1].state_dict())  # or nothing was rounded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_gaps_are_multiplied_in_bfloat16_where_forward_passes_may_be(dtype, compute, monkeypatch):
    made = []
    for name in ("InputGap", "OutputGap"):
        kind = getattr(targets, name)
        monkeypatch.setattr(targets, name, lambda *args, kind=kind: made.append(args[-1]) or kind(*args))
    rose.prune_model(make_model("llama").to(dtype), make_tokens(), target="dense", compute=compute, **OPTIONS)
    assert len(made) > 5
    assert set(made) == {getattr(torch, compute)}


def test_statistics_and_pruning_are_float32():
    """With products of 8 significant bits in the sums, H would be off by far more than its inputs are."""
    model, tokens = make_model("llama"), make_tokens()
    exact = rose.collect_statistics(model, tokens)
    for block in rose.visit_blocks(model, tokens, compute="bfloat16"):
        assert not torch.is_autocast_enabled("cpu")
        for name, statistics in block.calibration.items():
            assert statistics.hessian.dtype == torch.float32
            difference = (statistics.hessian - exact[name].hessian).abs().max() / exact[name].hessian.abs().max()
            assert difference < 0.02, name
            if name == "model.layers.0.self_attn.q_proj":
                assert difference == 0  # nothing before it is a matrix product


@pytest.mark.parametrize(
    ("stored", "compute", "has_instructions", "expected"),
    [
        (torch.float32, "float32", True, torch.float32),
        (torch.float32, "bfloat16", True, torch.bfloat16),
        (torch.float32, "auto", True, torch.bfloat16),
        (torch.float32, "auto", False, torch.float32),
        (torch.bfloat16, "auto", True, torch.bfloat16),
        (torch.bfloat16, "auto", False, torch.float32),  # where bfloat16 is emulated
        (torch.bfloat16, "float32", True, torch.float32),
    ],
)
def test_a_search_multiplies_in_the_format_that_pays(stored, compute, has_instructions, expected, monkeypatch):
    find = Mock(side_effect=rose_admm.find_mask)
    monkeypatch.setattr(rose_admm, "find_mask", find)
    monkeypatch.delenv(precision.VARIABLE)
    monkeypatch.setattr(precision, "has_bfloat16", lambda: has_instructions)
    model = make_model("llama").to(stored)
    list(rose.analyze_model(model, make_tokens(), methods=["rose_admm"], compute=compute, **OPTIONS))
    for target in ("dense", "layer"):
        rose.prune_model(model, make_tokens(), method="rose_admm", compute=compute, target=target, **OPTIONS)
    assert find.call_count == 3 * len(rose.prunable_layers(model))
    assert {call.kwargs["dtype"] for call in find.call_args_list} == {expected}


def test_autocast_keeps_no_weights_from_before_pruning():
    """Autocast would keep the cast weights of a model that can be trained, and batches go on with pruned ones."""
    outputs = []
    for trained in (False, True):
        model = make_model("llama").requires_grad_(trained)
        rose.prune_model(model, make_tokens(), compute="bfloat16", **OPTIONS)
        outputs.append(digest(model.state_dict()))
    assert outputs[0] == outputs[1]
