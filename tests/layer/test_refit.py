"""Refitting the kept weights: least squares for the mask, and an honest account of the error."""

from __future__ import annotations

import pytest
import torch

import rose
from rose.layer.methods.refit import refit
from tests.layer.helpers import Layer, damped_by_hand, make_layer


def best_for_mask(layer: Layer, result: rose.LayerResult) -> torch.Tensor:
    """Kept weights of each row from the normal equations, float64."""
    matrix = damped_by_hand(layer, result.added_damping)
    dense = layer.weight.double().masked_fill((layer.inputs == 0).all(0), 0)
    best = torch.zeros_like(dense)
    for i, gone in enumerate(result.mask):
        kept = (~gone).nonzero().squeeze(1)
        best[i, kept] = torch.linalg.solve(matrix[kept][:, kept], matrix[kept] @ dense[i])
    return best


@pytest.mark.parametrize("sparsity", [0.5, 0.8, "2:4"])
@pytest.mark.parametrize("dead", [(), (3, 11)])
def test_refit_is_least_squares(sparsity: float | str, dead: tuple[int, ...]) -> None:
    layer = make_layer(rows=10, seed=1, dead=dead, loud=4)
    swept = layer.prune(method="sparsegpt", order="dealt", sparsity=sparsity)
    result = layer.prune(method="rose_dealt", sparsity=sparsity)
    assert torch.equal(result.mask, swept.mask)
    assert result.weight[result.mask].eq(0).all()
    best = best_for_mask(layer, result)
    torch.testing.assert_close(result.weight.double(), best, rtol=1e-2, atol=2e-3)
    matrix = damped_by_hand(layer, result.added_damping)
    live = layer.weight.double().masked_fill((layer.inputs == 0).all(0), 0)
    least = torch.einsum("ij,jk,ik->", live - best, matrix, live - best).item()
    assert least * (1 - 1e-4) <= float(result.column_error.sum()) <= least * (1 + 1e-3)
    assert float(result.column_error.sum()) < float(swept.column_error.sum())
    assert float(result.block_error.sum()) == pytest.approx(float(result.column_error.sum()), rel=1e-5)


@pytest.mark.parametrize("method", ["wanda", "magnitude", "sparsegpt", "dsnot"])
def test_helps_every_method(method: str) -> None:
    layer = make_layer(rows=10, seed=2)
    before = layer.prune(method=method, sparsity=0.6)
    after = refit(layer.weight, layer.statistics, before)
    assert after.relative_error < before.relative_error
    assert after.method == method
    assert torch.equal(after.mask, before.mask)


def test_order_and_budget_apply() -> None:
    layer = make_layer(rows=10, seed=3)
    result = layer.prune(method="rose_dealt", sparsity=0.6, order="natural", budget="block")
    assert torch.equal(result.mask, layer.prune(method="sparsegpt", sparsity=0.6).mask)
    assert (result.order.name, result.budget) == ("natural", "block")


def test_nothing_to_refit() -> None:
    layer = make_layer(seed=4)
    torch.testing.assert_close(layer.prune(method="rose_dealt", sparsity=0).weight, layer.weight)
    assert layer.prune(method="rose_dealt", sparsity=1).weight.eq(0).all()
