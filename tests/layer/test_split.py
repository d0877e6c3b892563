"""The mask's part of an error against least squares in float64, and what has no such parts."""

import pytest
import torch
from torch import Tensor

import rose
from rose.layer.error import direct_error
from rose.layer.split import split_error
from rose.layer.target import InputGap, corrected_weight
from tests.layer.helpers import damped_by_hand, make_layer, statistics_of
from tests.refusals import refused


def refit_by_hand(target: Tensor, mask: Tensor, damped: Tensor) -> Tensor:
    """Least squares for the kept weights of each row, (out, in) float64, by normal equations."""
    fitted = torch.zeros_like(target, dtype=torch.float64)
    for row, removed in enumerate(mask):
        kept = ~removed
        right = (damped @ target[row].double())[kept]
        fitted[row, kept] = torch.linalg.solve(damped[kept][:, kept], right)
    return fitted


@pytest.mark.parametrize("sparsity", ["0.6", "2:4"])
@pytest.mark.parametrize("order", ["natural", "two_level", "global"])
def test_the_masks_part_is_that_of_least_squares(sparsity, order):
    layer = make_layer(rows=9, loud=8, dead=[3])
    result = layer.prune(order=order, sparsity=sparsity)
    live = layer.weight.masked_fill(layer.statistics.dead, 0)
    by_hand = refit_by_hand(live, result.mask, damped_by_hand(layer, result.added_damping))
    energy = direct_error(layer.weight, torch.zeros_like(layer.weight), layer.inputs)
    parts = split_error(layer.weight, layer.statistics, result)
    assert parts.mask == pytest.approx(direct_error(layer.weight, by_hand.float(), layer.inputs) / energy, rel=1e-4)
    assert parts.error == pytest.approx(result.relative_error)
    assert 0 < parts.sequence == pytest.approx(parts.error - parts.mask)
    assert torch.equal(parts.refitted == 0, result.mask | layer.statistics.dead)


def test_a_refitted_mask_has_no_sequence_left():
    layer = make_layer(rows=9)
    refitted = layer.prune(method="rose_dealt", sparsity=0.5)
    swept = layer.prune(method="sparsegpt", order="dealt", sparsity=0.5)
    assert split_error(layer.weight, layer.statistics, refitted).sequence < 1e-3 * refitted.relative_error
    assert split_error(layer.weight, layer.statistics, swept).sequence > 0.05 * swept.relative_error


def test_held_out_inputs_have_whole_errors():
    layer, other = make_layer(rows=9), make_layer(rows=9, seed=1)
    result = layer.prune(sparsity=0.6)
    parts = split_error(layer.weight, layer.statistics, result, held_out=other.statistics)
    energy = direct_error(layer.weight, torch.zeros_like(layer.weight), other.inputs)
    assert parts.held_out_error == pytest.approx(direct_error(layer.weight, result.weight, other.inputs) / energy)
    assert parts.held_out_refit == pytest.approx(direct_error(layer.weight, parts.refitted, other.inputs) / energy)


def test_a_dense_target_is_refitted_and_reported():
    layer = make_layer(rows=9)
    dense = layer.inputs + 0.1 * torch.randn(layer.inputs.shape, generator=torch.Generator().manual_seed(5))
    gap = InputGap(32)
    gap.update(layer.inputs, dense)
    statistics = statistics_of(layer.inputs)
    target, _ = corrected_weight(layer.weight, statistics, gap, 0.1)
    result = rose.prune_layer(target, statistics, method="sparsegpt", sparsity=0.6, block_size=8)
    parts = split_error(layer.weight, statistics, result, target=target, gap=gap)
    by_hand = refit_by_hand(target, result.mask, damped_by_hand(layer, result.added_damping)).float()
    outputs = dense @ layer.weight.T
    missed = [
        float((outputs - layer.inputs @ w.T).square().sum() / outputs.square().sum()) for w in (result.weight, by_hand)
    ]
    assert [parts.error, parts.mask] == pytest.approx(missed, rel=1e-3)


def test_what_has_no_parts_is_refused_in_a_sentence():
    layer, other = make_layer(columns=64), make_layer(columns=64, seed=1)
    rounded = layer.prune(sparsity=0.5, bits=4, group=32)
    refused("Rounded weights have no such parts", split_error, layer.weight, layer.statistics, rounded)
    factors = layer.prune(method="oats", sparsity=0.5)
    refused("low-rank part share this error", split_error, layer.weight, layer.statistics, factors)
    plain = layer.prune(sparsity=0.5)
    refused("pruned with another H", split_error, layer.weight, other.statistics, plain)
