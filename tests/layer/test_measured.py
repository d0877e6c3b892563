"""The measured order: the least error of all candidates, where it says it is measured."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import rose
from rose.layer.error import direct_error
from rose.layer.methods.measured import CANDIDATES


def case(seed: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """W, few calibration inputs and as many others; some neighbouring columns are loud, so that order matters."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(32, 32, generator=generator) / 32**0.5 + 0.5 * torch.eye(32)
    mixing[:, 20:24] *= 4
    calibration, held_out = (torch.randn(tokens, 32, generator=generator) @ mixing for _ in range(2))
    return torch.randn(24, 32, generator=generator), calibration, held_out


def errors_by_hand(
    weight: Tensor, inputs: Tensor, judge: Tensor, sparsity: float | str
) -> dict[tuple[str, str], float]:
    hessian = inputs.T @ inputs
    return {
        (order, budget): direct_error(
            weight,
            rose.prune_layer(
                weight, hessian, method="sparsegpt", sparsity=sparsity, block_size=8, order=order, budget=budget
            ).weight,
            judge,
        )
        for order, budget in CANDIDATES
    }


@pytest.mark.parametrize("sparsity", [0.5, 0.8, "2:4"])
def test_least_of_all_candidates(sparsity: float | str) -> None:
    differ = 0
    for seed in range(6):
        weight, inputs, others = case(seed, tokens=48)
        hessian = inputs.T @ inputs
        plain = rose.prune_layer(weight, hessian, method="measured", sparsity=sparsity, block_size=8)
        by_hand = errors_by_hand(weight, inputs, inputs, sparsity)
        assert direct_error(weight, plain.weight, inputs) == pytest.approx(min(by_hand.values()), rel=1e-5)
        assert by_hand[plain.order.name, plain.budget] == pytest.approx(min(by_hand.values()), rel=1e-5)
        held = rose.prune_layer(
            weight, hessian, method="measured", sparsity=sparsity, block_size=8, held_out=others.T @ others
        )
        on_others = errors_by_hand(weight, inputs, others, sparsity)
        assert direct_error(weight, held.weight, others) == pytest.approx(min(on_others.values()), rel=1e-5)
        assert on_others[held.order.name, held.budget] == pytest.approx(min(on_others.values()), rel=1e-5)
        differ += held.order.name != plain.order.name or held.budget != plain.budget
    assert differ  # held-out inputs were looked at


def test_settings_narrow_the_candidates() -> None:
    weight, inputs, _ = case(7, tokens=48)
    hessian = inputs.T @ inputs
    by_hand = errors_by_hand(weight, inputs, inputs, 0.7)
    blocks = rose.prune_layer(weight, hessian, method="measured", sparsity=0.7, block_size=8, budget="block")
    assert blocks.budget == "block"
    tried = {order: by_hand[order, "block"] for order in ("natural", "two_level")}
    assert blocks.order.name in ("natural", "two_level", "global", "hessian")
    assert direct_error(weight, blocks.weight, inputs) <= min(tried.values()) * (1 + 1e-5)
    fixed = rose.prune_layer(weight, hessian, method="measured", sparsity=0.7, block_size=8, order="two_level")
    assert fixed.order.name == "two_level"
    least = min(by_hand["two_level", budget] for budget in ("block", "layer"))
    assert direct_error(weight, fixed.weight, inputs) == pytest.approx(least, rel=1e-5)


def test_traced_like_any_sweep() -> None:
    weight, inputs, _ = case(8, tokens=48)
    plain = rose.prune_layer(weight, inputs.T @ inputs, method="measured", sparsity=0.7, block_size=8)
    traced = rose.prune_layer(weight, inputs.T @ inputs, method="measured", sparsity=0.7, block_size=8, trace=True)
    assert torch.equal(plain.weight, traced.weight)
    assert (plain.order.name, plain.budget) == (traced.order.name, traced.budget)
    assert traced.trace is not None
    assert torch.equal(traced.trace.weights[-1], traced.weight)


def test_held_out_must_fit() -> None:
    weight, inputs, _ = case(9, tokens=48)
    with pytest.raises(rose.RoseError, match="32 input columns but H has 16"):
        rose.prune_layer(weight, inputs.T @ inputs, method="measured", held_out=torch.eye(16))
