"""Grids of few bits: what `rose.layer.rounding` guarantees, and that weights alone tell their grid."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from rose import RoseError
from rose.layer.pattern import Grid, parse_grid
from rose.layer.rounding import BITS, GROUPS, bits_a_weight, choose_scales, coarsest_grid, find_grid
from tests.layer.helpers import round_to

FORMATS = (torch.bfloat16, torch.float16, torch.float32)


def _pruned(rows: int = 12, columns: int = 256) -> Tensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.02
    weight[weight.abs() < 0.01] = 0
    weight[3] = 0
    weight[5, :128] *= 1e-4  # scales among the smallest numbers of float16
    return weight


@pytest.mark.parametrize("dtype", FORMATS)
def test_rounded_weights_carry_their_grid(dtype):
    weight = _pruned().to(dtype).float()
    for bits, group in itertools.product(BITS, GROUPS):
        grid = Grid(bits, group)
        scales = choose_scales(weight, grid)
        rounded = round_to(weight, scales, grid)
        assert torch.equal(scales.half().float(), scales)
        assert torch.equal(rounded.to(dtype).float(), rounded)
        assert not rounded[weight == 0].any()
        found = find_grid(rounded.to(dtype), bits, group)
        assert torch.equal(found.weight, rounded)
        assert grid.least <= int(found.codes.min())
        assert int(found.codes.max()) <= grid.most
        assert torch.equal(found.scales.half().float(), found.scales)
        assert find_grid(weight, bits, group) is None


def test_a_multiple_of_a_scale_that_float16_does_not_hold_is_split():
    # 7 · 1031 has 13 bits, so the common divisor of the group is no scale.
    weight = torch.zeros(1, 32)
    weight[0, 3] = 7 * 1031 / 2**16
    found = find_grid(weight, 4, 32)
    assert float(found.scales) == 1031 / 2**16
    assert int(found.codes.sum()) == 7


def test_the_side_with_the_largest_weight_has_one_code_more():
    weight = torch.arange(-7.0, 9.0).repeat(2)[None] / 16
    found = find_grid(weight, 4, 32)
    assert float(found.scales) == -1 / 16
    assert int(found.codes.min()) == -8
    assert torch.equal(round_to(weight, choose_scales(weight, Grid(4, 32)), Grid(4, 32)), weight)
    weight[0, 0] = -0.5  # both 8 and −8
    assert find_grid(weight, 4, 32) is None
    assert find_grid(weight, 8, 32) is not None


def test_scales_are_the_best_of_many():
    weight, grid = torch.randn(1, 32, generator=torch.Generator().manual_seed(1)), Grid(4, 32)
    tried = [torch.full((1, 1), sign * step / 512) for step in range(1, 512) for sign in (1, -1)]
    least = min(float((weight - round_to(weight, scale, grid)).square().sum()) for scale in tried)
    found = choose_scales(weight, grid)
    assert float((weight - round_to(weight, found, grid)).square().sum()) < 1.05 * least
    # With importance, columns that matter are rounded better.
    weight[0, :16] *= 0.1
    importance = torch.tensor([1000.0] * 16 + [0.0] * 16)
    there = (weight - round_to(weight, choose_scales(weight, grid, importance), grid))[0, :16]
    assert float(there.square().sum()) < 0.4 * float((weight - round_to(weight, found, grid))[0, :16].square().sum())


def test_the_coarsest_grid_is_named_first():
    weight, grid = _pruned(), Grid(4, 128)
    rounded = round_to(weight, choose_scales(weight, grid), grid)
    found = coarsest_grid(rounded)
    assert found.grid == grid
    assert coarsest_grid(weight) is None
    assert find_grid(rounded[:, :100], 4, 64) is None


def test_bits_per_weight():
    weight = torch.zeros(2, 64)
    assert bits_a_weight(weight, None) == 1
    weight[:, :16] = 1
    assert bits_a_weight(weight, None) == 1 + 16 / 4
    assert bits_a_weight(weight, Grid(4, 32)) == 1 + 4 / 4 + 16 / 32
    assert bits_a_weight(weight + 1, Grid(3, "row")) == 3 + 16 / 64  # no bitmask where nothing is 0


def test_grids_are_read_from_words():
    assert parse_grid(None) is None
    assert parse_grid("4", "row") == Grid(4, "row")
    assert str(parse_grid(3)) == "3 bits, groups of 64"
    for words, says in (((5, 64), "3, 4 or 8 bits"), ((4, 48), "128 or row"), ((None, 64), "give bits too")):
        with pytest.raises(RoseError, match=says):
            parse_grid(*words)
    with pytest.raises(RoseError, match="choose the group 32, 64 or row"):
        Grid(4, 128).width(576)
