"""Grids found from weights alone, and rounding in the sweep against a slow GPTQ."""

import itertools

import pytest
import torch
from torch import Tensor

import rose
from rose.layer import rounding
from rose.layer.error import relative_error
from rose.layer.pattern import Grid, parse_grid
from rose.layer.rounding import BITS, GROUPS, choose_scales, coarsest_grid, find_grid, revise
from tests.benchmarks.bits import bits_a_weight
from tests.layer.helpers import Layer, damped_by_hand, every_method, make_layer, round_to
from tests.refusals import refused


def _pruned(rows: int = 12, columns: int = 256) -> Tensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.02
    weight[weight.abs() < 0.01] = 0
    weight[3] = 0
    weight[5, :128] *= 1e-4  # scales among the smallest numbers of float16
    return weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounded_weights_carry_their_grid(dtype):
    weight = _pruned().to(dtype).float()
    for bits, group in itertools.product(BITS, GROUPS):
        grid = Grid(bits, group)
        scales = choose_scales(weight, grid)
        rounded = round_to(weight, scales, grid)
        assert torch.equal(scales.half().float(), scales)
        assert torch.equal(rounded.to(dtype).float(), rounded)
        assert not rounded[weight == 0].any()
        grid_found = find_grid(rounded.to(dtype), bits, group)
        assert torch.equal(grid_found.weight, rounded)
        assert grid.least <= int(grid_found.codes.min())
        assert int(grid_found.codes.max()) <= grid.most
        assert torch.equal(grid_found.scales.half().float(), grid_found.scales)
        assert find_grid(weight, bits, group) is None


def test_scales_that_float16_cannot_hold_are_split():
    # 7 · 1031 has 13 bits, so the common divisor of the group is no scale.
    weight = torch.zeros(1, 32)
    weight[0, 3] = 7 * 1031 / 2**16
    grid = find_grid(weight, 4, 32)
    assert float(grid.scales) == 1031 / 2**16
    assert int(grid.codes.sum()) == 7


def test_the_sign_of_the_largest_weight_has_the_extra_code():
    weight = torch.arange(-7.0, 9.0).repeat(2)[None] / 16
    grid = find_grid(weight, 4, 32)
    assert float(grid.scales) == -1 / 16
    assert int(grid.codes.min()) == -8
    assert torch.equal(round_to(weight, choose_scales(weight, Grid(4, 32)), Grid(4, 32)), weight)
    weight[0, 0] = -0.5  # both 8 and −8
    assert find_grid(weight, 4, 32) is None
    assert find_grid(weight, 8, 32) is not None


def test_scales_are_the_best_of_many():
    weight, grid = torch.randn(1, 32, generator=torch.Generator().manual_seed(1)), Grid(4, 32)
    tried = [torch.full((1, 1), sign * step / 512) for step in range(1, 512) for sign in (1, -1)]
    least = min(float((weight - round_to(weight, scale, grid)).square().sum()) for scale in tried)
    scales = choose_scales(weight, grid)
    assert float((weight - round_to(weight, scales, grid)).square().sum()) < 1.05 * least
    # With importance, columns that matter are rounded better.
    weight[0, :16] *= 0.1
    importance = torch.tensor([1000.0] * 16 + [0.0] * 16)
    there = (weight - round_to(weight, choose_scales(weight, grid, importance), grid))[0, :16]
    assert float(there.square().sum()) < 0.4 * float((weight - round_to(weight, scales, grid))[0, :16].square().sum())


def test_the_coarsest_grid_is_named_first():
    weight, grid = _pruned(), Grid(4, 128)
    rounded = round_to(weight, choose_scales(weight, grid), grid)
    coarsest = coarsest_grid(rounded)
    assert coarsest.grid == grid
    assert coarsest_grid(weight) is None
    assert find_grid(rounded[:, :100], 4, 64) is None


def test_bits_per_weight_count_mask_codes_and_scales():
    weight = torch.zeros(2, 64)
    assert bits_a_weight(weight, None) == 1
    weight[:, :16] = 1
    assert bits_a_weight(weight, None) == 1 + 16 / 4
    assert bits_a_weight(weight, Grid(4, 32)) == 1 + 4 / 4 + 16 / 32
    assert bits_a_weight(weight + 1, Grid(3, "row")) == 3 + 16 / 64  # no bitmask where nothing is 0


def test_grids_are_parsed():
    assert parse_grid(None) is None
    assert parse_grid("4", "row") == Grid(4, "row")
    assert str(parse_grid(3)) == "3 bits, groups of 64"
    for words, says in (((5, 64), "3, 4 or 8 bits"), ((4, 48), "128 or row"), ((None, 64), "give bits too")):
        refused(says, parse_grid, *words)
    refused("choose the group 32, 64 or row", Grid(4, 128).width, 576)


NO_GRID = "its low-rank part lies on no grid"


def published(layer: Layer, result: rose.LayerResult, grid: Grid) -> Tensor:
    """GPTQ (Frantar et al. 2022, algorithm 1; SparseGPT, section 3.5) with an explicit inverse of what is left of H for
    every column, in float64: q_j = round(w_j), 0 where removed; w −= (w_j − q_j)/[H⁻¹]_jj · [H⁻¹]_j:.

    Only order, damping and mask of the result are read; scales are chosen as each group is reached.
    """
    weight, mask = layer.weight.double().clone(), result.mask
    hessian, width = damped_by_hand(layer, result.added_damping), int(grid.group)
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(len(hessian))]
    importance = torch.stack([1 / inverse[0, 0] for inverse in inverses]).float()
    for j, inverse in enumerate(inverses):
        if j % width == 0:
            group = slice(j, j + width)
            # Under N:M only the mask of groups that were passed is known yet.
            gone = torch.zeros_like(mask) if result.plan.pattern.is_grouped else mask
            now = weight[:, group].masked_fill(gone[:, group], 0)
            scales = choose_scales(now.float(), Grid(grid.bits, "row"), importance[group])
        q = round_to(weight[:, j : j + 1].float(), scales, grid)[:, 0].double().masked_fill(mask[:, j], 0)
        error = (weight[:, j] - q) / inverse[0, 0]
        weight[:, j:] -= torch.outer(error, inverse[0])
        weight[:, j] = q
    return weight.float()


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_sparsegpt_with_bits_is_the_published_sweep(sparsity, bits):
    layer = make_layer(rows=6, columns=128, tokens=300)
    result = layer.prune(method="sparsegpt", sparsity=sparsity, block_size=64, bits=bits, group=32)
    assert torch.equal(result.weight, published(layer, result, Grid(bits, 32)))
    assert int(result.mask.sum()) == sparsity * layer.weight.numel()


def test_nm_masks_are_chosen_from_weights_compensated_for_rounding():
    layer = make_layer(rows=6, columns=64, tokens=300)
    result = layer.prune(method="sparsegpt", sparsity="2:4", bits=4, group=32)
    assert torch.equal(result.mask.view(6, -1, 4).sum(2), torch.full((6, 16), 2))
    assert find_grid(result.weight, 4, 32) is not None
    unrounded = layer.prune(method="sparsegpt", sparsity="2:4")
    assert (result.mask == unrounded.mask).float().mean() > 0.9


def test_nm_groups_may_span_two_groups_of_the_grid():
    """32 is no multiple of 6: scales are then chosen before the sweep, as no column may come before its own."""
    layer = make_layer(rows=6, columns=96, tokens=400)
    result = layer.prune(method="sparsegpt", sparsity="3:6", block_size=96, bits=8, group=32)
    assert find_grid(result.weight, 8, 32) is not None
    assert (result.weight != 0).float().mean() > 0.45  # of a half; some codes are 0
    assert result.relative_error < 1.1 * layer.prune(method="sparsegpt", sparsity="3:6", block_size=96).relative_error


@every_method(oats=NO_GRID)
def test_every_method_rounds(method):
    layer = make_layer(rows=12, columns=64, tokens=400, dead=[3, 40])
    for sparsity, group, dtype in ((0.5, 32, torch.bfloat16), ("2:4", "row", torch.float16), (0.0, 64, torch.float64)):
        words = {"method": method, "sparsity": sparsity, "block_size": 32}
        weight = layer.weight.to(dtype)
        alone = rose.prune_layer(weight, layer.statistics, **words)
        result = rose.prune_layer(weight, layer.statistics, bits=4, group=group, **words)
        assert result.weight.dtype == dtype
        assert find_grid(result.weight, 4, group) is not None
        assert result.weight[result.mask].eq(0).all()
        assert int(result.mask.sum()) == int(alone.mask.sum())
        assert result.pruning_error is not None
        assert result.rounding_error is not None
        assert result.pruning_error + result.rounding_error == pytest.approx(result.relative_error)
        assert result.pruning_error == pytest.approx(alone.relative_error, rel=0.3, abs=1e-6)
        assert result.column_error[layer.statistics.dead].eq(0).all()
        live = (layer.weight.to(dtype) - result.weight).float()[:, ~layer.statistics.dead]
        damped = live.double().square().sum() * result.added_damping
        expected = result.relative_error * (layer.inputs @ layer.weight.to(dtype).float().T).square().sum()
        assert float(result.column_error.sum()) == pytest.approx(float(expected + damped), rel=2e-2)
        merely = round_to(alone.weight.float(), choose_scales(alone.weight.float(), Grid(4, group)), Grid(4, group))
        assert result.relative_error < 1.1 * relative_error(weight, merely.to(dtype), layer.statistics.hessian)
        assert alone.rounding_error is None


def test_the_result_names_a_damping_that_rounding_raised(monkeypatch):
    """The order that rounding visits may need more than that of the method."""
    factorize = rounding.factorize
    layer = make_layer(columns=64, tokens=300)
    alone = layer.prune(method="wanda", sparsity=0.5, damping=0.01)
    monkeypatch.setattr(rounding, "factorize", lambda known, _asked, order: factorize(known, 0.1, order))
    result = layer.prune(method="wanda", sparsity=0.5, damping=0.01, bits=4, group=32)
    assert (alone.damping, result.damping) == (0.01, 0.1)
    assert result.added_damping == pytest.approx(10 * alone.added_damping)


@every_method(oats=NO_GRID)
def test_rounding_of_empty_and_fully_pruned_layers(method):
    layer = make_layer(columns=32)
    assert layer.prune(method=method, sparsity=1.0, bits=3, group=32).weight.eq(0).all()
    assert layer.prune(method=method, sparsity=1.0, bits=3, group=32).rounding_error == 0
    empty = Layer(torch.zeros(3, 32), torch.zeros(5, 32))
    assert empty.prune(method=method, sparsity=0.5, bits=8, group="row").weight.eq(0).all()


@every_method(oats=NO_GRID)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_existing_zeros_stay_in_unpruned_layers(method, dtype):
    layer = make_layer(columns=64, tokens=300)
    pruned = layer.prune(method="sparsegpt", sparsity=0.5)
    weight = pruned.weight.to(dtype)
    again = rose.prune_layer(weight, layer.statistics, method=method, sparsity=0, bits=4)
    assert again.weight[pruned.mask].eq(0).all()
    assert torch.equal(again.mask, pruned.mask)


def test_no_single_code_is_better_than_the_revised_ones():
    layer, grid = make_layer(rows=3, columns=32, tokens=60), Grid(3, 32)
    hessian, mask = damped_by_hand(layer, 1.0).float(), torch.rand(3, 32) < 0.4
    target = layer.weight.masked_fill(mask, 0)
    scales = choose_scales(target, grid)
    start = round_to(target, scales, grid)
    steps = scales.expand(3, 32)
    now = start
    for _ in range(10):  # until nothing moves
        now = revise(target, now, mask, hessian, steps, grid)

    def error(weight: Tensor) -> Tensor:
        return ((target - weight) @ hessian * (target - weight)).sum(1)

    assert (error(now) <= error(start)).all()
    assert float(error(now).sum()) < 0.9 * float(error(start).sum())
    for j in range(32):
        for code in range(grid.least, grid.most + 1):
            other = now.clone()
            other[:, j] = torch.where(mask[:, j], 0, code * scales[:, 0])
            assert (error(other) >= error(now) * (1 - 1e-5)).all()
