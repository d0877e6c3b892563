"""The measured order: the least error of all candidates, where it says it is measured."""

import pytest
import torch
from torch import Tensor

import rose
from rose.layer.error import direct_error
from rose.layer.methods.sparsegpt import CANDIDATES
from tests.layer.helpers import Layer


def case(seed: int) -> tuple[Layer, Tensor]:
    """A layer with few tokens, and as many others; some neighbouring columns are loud, so that order matters."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(32, 32, generator=generator) / 32**0.5 + 0.5 * torch.eye(32)
    mixing[:, 20:24] *= 4
    calibration, held_out = (torch.randn(48, 32, generator=generator) @ mixing for _ in range(2))
    return Layer(torch.randn(24, 32, generator=generator), calibration), held_out


def errors_by_hand(layer: Layer, judge: Tensor, sparsity: float | str) -> dict[tuple[str, str], float]:
    return {
        (order, budget): direct_error(
            layer.weight, layer.prune(method="sparsegpt", sparsity=sparsity, order=order, budget=budget).weight, judge
        )
        for order, budget in CANDIDATES
    }


@pytest.mark.parametrize("sparsity", [0.5, 0.8, "2:4"])
def test_measured_returns_the_least_error_of_all_candidates(sparsity):
    differ = 0
    for seed in range(6):
        layer, others = case(seed)
        plain = layer.prune(method="measured", sparsity=sparsity)
        held = layer.prune(method="measured", sparsity=sparsity, held_out=others.T @ others)
        for found, judge in ((plain, layer.inputs), (held, others)):
            by_hand = errors_by_hand(layer, judge, sparsity)
            assert direct_error(layer.weight, found.weight, judge) == pytest.approx(min(by_hand.values()), rel=1e-5)
            assert by_hand[found.order.name, found.budget] == pytest.approx(min(by_hand.values()), rel=1e-5)
        differ += held.order.name != plain.order.name or held.budget != plain.budget
    assert differ  # held-out inputs were looked at


def test_settings_narrow_the_candidates():
    layer, _ = case(7)
    by_hand = errors_by_hand(layer, layer.inputs, 0.7)
    blocks = layer.prune(method="measured", sparsity=0.7, budget="block")
    assert blocks.budget == "block"
    assert blocks.order.name in ("natural", "two_level", "global", "hessian")
    least = min(by_hand[order, "block"] for order in ("natural", "two_level"))
    assert direct_error(layer.weight, blocks.weight, layer.inputs) <= least * (1 + 1e-5)
    fixed = layer.prune(method="measured", sparsity=0.7, order="two_level")
    assert fixed.order.name == "two_level"
    least = min(by_hand["two_level", budget] for budget in ("block", "layer"))
    assert direct_error(layer.weight, fixed.weight, layer.inputs) == pytest.approx(least, rel=1e-5)


def test_measured_is_traced_like_any_sweep():
    layer, _ = case(8)
    plain, traced = (layer.prune(method="measured", sparsity=0.7, trace=trace) for trace in (False, True))
    assert torch.equal(plain.weight, traced.weight)
    assert (plain.order.name, plain.budget) == (traced.order.name, traced.budget)
    assert torch.equal(traced.trace.weights[-1], traced.weight)


def test_held_out_statistics_must_fit_the_layer():
    with pytest.raises(rose.RoseError, match="32 input columns but H has 16"):
        case(9)[0].prune(method="measured", held_out=torch.eye(16))
