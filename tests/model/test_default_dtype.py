"""Results do not depend on torch's default dtype, which transformers changes while it loads."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

import rose
from tests.model.families import make_model, make_tokens

TOKENS = make_tokens(12)
KW: dict[str, Any] = {"method": "rose", "compute": "float32", "sparsity": 0.5, "block_size": 8}
TUNING: dict[str, Any] = {"compute": "float32", "epochs": 1, "unpruned": True}
RUNS: dict[str, Callable[[Any, Any], Any]] = {
    "dense target": lambda model, _: rose.prune_model(model, TOKENS, target="dense", **KW),
    "random order": lambda model, _: rose.prune_model(model, TOKENS, target="layer", order="random:1", **KW),
    "sensitivity": lambda model, _: rose.prune_model(model, TOKENS, target="layer", allocation="sensitivity", **KW),
    "slimming": lambda model, _: rose.prune_structured(model, TOKENS, ratio=0.2),
    "tuning": lambda model, dense: rose.tune_model(model, dense, TOKENS, **TUNING),
    "cross-entropy": lambda model, dense: rose.tune_model(model, dense, TOKENS, loss="ce", **TUNING),
}


def coarse(work: Callable[[], Any]) -> Any:
    torch.set_default_dtype(torch.bfloat16)
    try:
        return work()
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", RUNS)
def test_runs_give_the_same_weights_under_any_default_dtype(name):
    dense = make_model("llama")
    teacher = copy.deepcopy(dense)
    for layer in rose.prunable_layers(dense):
        layer.write(layer.weight * 1.01)  # tuning has something to do
    first, second = copy.deepcopy(dense), copy.deepcopy(dense)
    RUNS[name](first, teacher)
    coarse(lambda: RUNS[name](second, teacher))
    expected, actual = first.state_dict(), second.state_dict()
    assert any(not torch.equal(tensor, dense.state_dict().get(key)) for key, tensor in expected.items())
    assert all(torch.equal(actual[key], tensor) for key, tensor in expected.items())


def test_statistics_are_float32_under_any_default_dtype():
    model = make_model("llama")
    actual, expected = coarse(lambda: rose.collect_statistics(model, TOKENS)), rose.collect_statistics(model, TOKENS)
    for name, statistics in expected.items():
        assert torch.equal(actual[name].hessian, statistics.hessian)
        assert torch.equal(actual[name].mean, statistics.mean)
