"""The sweep against Optimal Brain Surgeon done the slow way: errors, trace, saliencies, orders and compensation."""

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import rose
from rose.layer.error import column_error, direct_error, quadratic_form, relative_error, sweep_error
from rose.layer.hessian import damp
from rose.layer.loss import smallest
from rose.layer.methods.sparsegpt import CANDIDATES
from rose.layer.pattern import parse_sparsity
from rose.layer.statistics import PANEL
from rose.layer.sweep import Choice, prune_block, sweep
from rose.layer.tiles import TILE, prune_in_tiles, solve_columns, solve_rows
from tests.layer.helpers import (
    ORDERS,
    SWEEPERS,
    Layer,
    block_sizes,
    damped_by_hand,
    every_method,
    layers,
    make_layer,
    ratios,
    reference_sweep,
)

PATTERNS = [(2, 4), (1, 4), (3, 4), (0, 4), (4, 4)]


def counts_of(result: rose.LayerResult) -> list[int]:
    ordered = result.mask[:, result.order.permutation]
    return [int(block.sum()) for block in ordered.split(list(result.order.widths), dim=1)]


def live_change(layer: Layer, result: rose.LayerResult) -> Tensor:
    """ΔW without dead columns, whose weights go before the sweep and cost nothing."""
    return (layer.weight - result.weight).masked_fill(layer.statistics.dead, 0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("budget", ["block", "layer"])
def test_reference_chooses_the_same_mask(order, budget):
    layer = make_layer(rows=7, columns=26, loud=6, dead=[3])
    result = layer.prune(order=order, budget=budget, sparsity=0.6)
    if budget == "block":
        counts = [round(0.6 * 7 * width) for width in result.order.widths]
    else:
        hessian = damped_by_hand(layer, result.added_damping)[result.order.permutation][:, result.order.permutation]
        cost = torch.stack([torch.linalg.inv(hessian[j:, j:])[0, 0] for j in range(26)])
        dense = layer.weight.double()
        dense[:, 3] = 0
        saliency = dense[:, result.order.permutation].square() / cost
        cut = saliency.flatten().sort().values[round(0.6 * 7 * 26) - 1]
        counts = [int(block.sum()) for block in (saliency <= cut).split(list(result.order.widths), dim=1)]
        assert len(set(counts)) > 1
    assert counts_of(result) == counts
    slow = reference_sweep(layer, result, counts)
    assert torch.equal(result.mask, slow.mask)
    torch.testing.assert_close(result.weight.double(), slow.weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(result.column_error.double(), slow.column_error, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("keep_of", [(2, 4), (1, 4), (4, 8), (1, 2)])
@pytest.mark.parametrize("order", ["natural", "two_level", "global"])
def test_reference_chooses_the_same_groups(keep_of, order):
    layer = make_layer(rows=5, columns=24, loud=8)
    result = layer.prune(order=order, sparsity=f"{keep_of[0]}:{keep_of[1]}")
    slow = reference_sweep(layer, result, keep_of=keep_of)
    assert torch.equal(result.mask, slow.mask)
    torch.testing.assert_close(result.weight.double(), slow.weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", SWEEPERS)
@given(layer=layers(), ratio=ratios, block_size=block_sizes, order=st.sampled_from([None, *ORDERS]))
def test_any_sweep_matches_optimal_brain_surgeon(layer, ratio, block_size, method, order):
    result = layer.prune(method=method, sparsity=ratio, block_size=block_size, order=order)
    slow = reference_sweep(layer, result, counts_of(result), force=True)
    weight = result.weight.double()
    if round(ratio * weight.numel()) == 0:
        weight[:, layer.statistics.dead] = 0
    torch.testing.assert_close(weight, slow.weight, rtol=2e-3, atol=2e-3)


@given(layer=layers(unit=4), keep_of=st.sampled_from(PATTERNS), order=st.sampled_from(["natural", *ORDERS]))
def test_any_grouped_sweep_matches_optimal_brain_surgeon(layer, keep_of, order):
    result = layer.prune(sparsity=f"{keep_of[0]}:{keep_of[1]}", order=order)
    slow = reference_sweep(layer, result, keep_of=keep_of, force=True)
    weight = result.weight.double()
    if keep_of[0] == keep_of[1]:
        weight[:, layer.statistics.dead] = 0
    torch.testing.assert_close(weight, slow.weight, rtol=2e-3, atol=2e-3)


def swept(layer: Layer, sparsity: float | str, widths: tuple[int, ...], prune: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Ŵ, mask and errors, float64, of columns from left to right in blocks of these widths."""
    pattern, factor = parse_sparsity(sparsity), damp(layer.hessian).natural_factor.double()
    counts = [pattern.count(len(layer.weight) * width) for width in widths]
    W, M = layer.weight.double(), torch.zeros_like(layer.weight, dtype=torch.bool)
    E = sweep(W, M, factor, widths, Choice(pattern, factor.diagonal(), counts), prune)
    return W, M, E


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.7, 1.0, "2:4", "1:3", "10:32", "0:4", "4:4"])
@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("columns", [1, 12, TILE, TILE + 1, 96])
@pytest.mark.parametrize("solve", [solve_columns, solve_rows])
def test_tiles_are_the_plain_loop(sparsity, rows, columns, solve):
    unit = parse_sparsity(sparsity).of or 1
    wide = unit * -(-columns // unit)
    layer, tiles = make_layer(rows=rows, columns=2 * wide + unit), partial(prune_in_tiles, solve=solve)
    plain, fast = (swept(layer, sparsity, (wide, wide, unit), prune) for prune in (prune_block, tiles))
    assert torch.equal(fast[1], plain[1])
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)


def test_few_rows_choose_the_masks_of_a_tile_at_once():
    layer = make_layer(rows=5, columns=TILE)
    diagonal = damp(layer.hessian).natural_factor.double().diagonal()
    expected = smallest((layer.weight / diagonal).square(), 2, 4)
    assert torch.equal(swept(layer, "2:4", (TILE,), partial(prune_in_tiles, few_rows=True))[1], expected)


@every_method()
@given(
    layer=layers(),
    ratio=ratios,
    block_size=block_sizes,
    order=st.sampled_from(ORDERS),
    damping=st.sampled_from([0.001, 0.01, 0.1]),
)
def test_three_errors_agree(layer, ratio, block_size, method, order, damping):
    options = {"order": order} if rose.METHODS[method].sweeps else {}
    result = layer.prune(method=method, sparsity=ratio, block_size=block_size, damping=damping, **options)
    change = layer.weight - result.weight
    # float32 has seven digits of the terms, which may cancel; so measure against their absolute values.
    terms = (layer.weight.abs() + change.abs()) @ layer.inputs.abs().T
    tolerance = 3e-6 * float(terms.square().sum()) + 1e-9
    direct = direct_error(layer.weight, result.weight, layer.inputs)
    assert quadratic_form(change, layer.hessian) == pytest.approx(direct, abs=tolerance)
    swept = sweep_error(result.column_error, live_change(layer, result), result.added_damping)
    assert swept == pytest.approx(direct, abs=tolerance)
    assert float(result.block_error.sum()) == pytest.approx(float(result.column_error.sum()), rel=1e-5)
    dense = direct_error(layer.weight, torch.zeros_like(layer.weight), layer.inputs)
    assert result.relative_error * dense == pytest.approx(direct, abs=tolerance * (1 + result.relative_error))


@given(layer=layers(), ratio=ratios)
def test_column_error_of_a_change_equals_that_of_the_sweep(layer, ratio):
    """The account for methods that do not sweep, applied to one that does."""
    result = layer.prune(method="sparsegpt", sparsity=ratio)
    factor = damp(layer.hessian).natural_factor
    again = column_error(live_change(layer, result), factor)
    scale = float(result.column_error.sum()) + 1e-6
    torch.testing.assert_close(again, result.column_error, rtol=1e-2, atol=1e-4 * scale)


@pytest.mark.parametrize("columns", [1, PANEL, PANEL + 1, 2 * PANEL + 37])
def test_quadratic_form_in_panels(columns):
    layer = make_layer(rows=3, columns=columns)
    change, hessian = layer.weight.double(), layer.hessian.double()
    expected = float(((change @ hessian) * change).sum())
    assert quadratic_form(layer.weight, layer.hessian) == pytest.approx(expected, rel=1e-5)


def test_relative_error_of_a_silent_layer():
    zero, one = torch.zeros(2, 3), torch.ones(2, 3)
    assert relative_error(zero, zero, torch.eye(3)) == 0.0
    assert relative_error(zero, one, torch.eye(3)) == float("inf")
    assert relative_error(one, zero, torch.eye(3)) == 1.0


@pytest.mark.parametrize("method", SWEEPERS)
@given(
    layer=layers(max_dead=2),
    pattern=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    block_size=block_sizes,
    order=st.sampled_from(ORDERS),
)
def test_a_trace_matches_its_definition(layer, pattern, block_size, method, order):
    result = layer.prune(method=method, sparsity=pattern, block_size=block_size, order=order, trace=True)
    check_trace(layer, result)


@given(layer=layers(unit=4, max_dead=2), keep_of=st.sampled_from(PATTERNS), order=st.sampled_from(ORDERS))
def test_a_trace_of_groups_matches_its_definition(layer, keep_of, order):
    check_trace(layer, layer.prune(sparsity=f"{keep_of[0]}:{keep_of[1]}", order=order, trace=True))


def check_trace(layer: Layer, result: rose.LayerResult) -> None:
    """Everything the trace claims, from the damped H in float64 and the weights alone."""
    trace = result.trace
    blocks = len(result.order.widths)
    assert trace.weights.shape == (blocks + 1, *layer.weight.shape)
    changes = parse_sparsity(result.plan.pattern).ratio > 0
    start = layer.weight.masked_fill(layer.statistics.dead, 0) if changes else layer.weight
    assert torch.equal(trace.weights[0], start)
    assert torch.equal(trace.weights[-1], result.weight)
    assert trace.removed.tolist() == counts_of(result)
    torch.testing.assert_close(trace.error, result.block_error)

    hessian = damped_by_hand(layer, result.added_damping)

    def cost(weight: Tensor) -> float:
        change = weight.double() - start.double()
        return float(((change @ hessian) * change).sum())

    dense = float(((start.double() @ hessian) * start.double()).sum()) + 1e-9
    columns = result.order.permutation.split(list(result.order.widths))
    for step, here in enumerate(columns):
        before, after = trace.weights[step], trace.weights[step + 1]
        # The running sum of errors is the error so far.
        assert float(trace.error[: step + 1].sum()) == pytest.approx(cost(after), abs=1e-4 * dense)
        moved = float((after.double() - start.double()).square().sum())
        assert float(trace.moved[step]) == pytest.approx(moved, rel=1e-4, abs=1e-9)
        undamped = cost(after) - result.added_damping * moved
        assert float(trace.error_so_far(result.added_damping)[step + 1]) == pytest.approx(undamped, abs=2e-4 * dense)
        # Lost: the same weights removed, nothing repaired.
        unrepaired = before.clone()
        unrepaired[:, here] = before[:, here].masked_fill(result.mask[:, here], 0)
        assert float(trace.lost[step]) == pytest.approx(cost(unrepaired) - cost(before), abs=1e-4 * dense)
        # No repair does better than the best for all columns that are free, this block's kept ones included.
        best = best_repair(unrepaired, start, here, columns[step:], result.mask, hessian)
        assert float(trace.error[: step + 1].sum()) >= best - 1e-4 * dense
        # Blocks already visited stand still; this one has exactly its zeros.
        visited = torch.cat(columns[:step]) if step else torch.empty(0, dtype=torch.long)
        assert torch.equal(before[:, visited], after[:, visited])
        assert after[:, here][result.mask[:, here]].eq(0).all()
        # Free columns are where the error is least, so its slope there is zero.
        free = torch.cat(columns[step + 1 :]) if step + 1 < blocks else torch.empty(0, dtype=torch.long)
        slope = ((after.double() - start.double()) @ hessian)[:, free]
        assert slope.abs().sum() <= 1e-3 * ((start.double() @ hessian).abs().sum() + 1e-6)


def best_repair(
    unrepaired: Tensor, start: Tensor, here: Tensor, unvisited: tuple[Tensor, ...], mask: Tensor, hessian: Tensor
) -> float:
    """Least damped error with this block's removed weights at zero and every other unvisited weight free."""
    total = 0.0
    for row in range(len(start)):
        free = torch.cat(unvisited)
        free = free[~(mask[row, free] & torch.isin(free, here))]
        fixed = torch.ones(len(hessian), dtype=torch.bool)
        fixed[free] = False
        delta = (unrepaired[row].double() - start[row].double()).masked_fill(~fixed, 0)
        pull = hessian[free] @ delta
        total += float(delta @ hessian @ delta - pull @ torch.linalg.solve(hessian[free][:, free], pull))
    return total


@pytest.mark.parametrize("method", ["rose", "measured"])
def test_a_trace_is_made_on_request_and_changes_no_weight(method):
    layer = make_layer(loud=8)
    plain, whole, errors = (layer.prune(method=method, trace=trace) for trace in (False, True, "errors"))
    assert torch.equal(whole.weight, plain.weight)
    assert torch.equal(whole.trace.weights[-1], whole.weight)
    assert plain.trace is layer.prune(method="wanda", trace=True).trace is None
    assert errors.trace.weights.shape == (0, *layer.weight.shape)
    for name in ("removed", "error", "lost", "moved"):
        assert torch.equal(getattr(whole.trace, name), getattr(errors.trace, name))


@pytest.mark.parametrize("sparsity", [0.5, 0.7, "2:4", "1:4"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("inverse", ["layer", "remaining"])
def test_masks_by_both_saliencies(sparsity, seed, inverse):
    layer = make_layer(rows=6, columns=32, seed=seed)
    result = layer.prune(method="isc", sparsity=sparsity, options={"inverse": inverse})
    hessian = damped_by_hand(layer, result.added_damping)
    weight = layer.weight.double().clone()
    mask = torch.zeros_like(weight, dtype=torch.bool)
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(32)]
    heads = torch.stack([upper[0, 0] for upper in inverses])
    factor = hessian.diagonal() + 1 / (torch.linalg.inv(hessian).diagonal() if inverse == "layer" else heads)
    for j in range(32):
        if isinstance(sparsity, str) and j % 4 == 0:
            for row in range(6):
                saliency = weight[row, j : j + 4].square() * factor[j : j + 4]
                mask[row, j + saliency.argsort()[: 4 - int(sparsity[0])]] = True
        if isinstance(sparsity, float) and j % 8 == 0:  # block size 8
            saliency = (weight[:, j : j + 8].square() * factor[j : j + 8]).flatten()
            chosen = torch.zeros(48, dtype=torch.bool)
            chosen[saliency.argsort()[: round(sparsity * 48)]] = True
            mask[:, j : j + 8] = chosen.view(6, 8)
        removed = torch.where(mask[:, j], weight[:, j], 0) / inverses[j][0, 0]
        weight[:, j:] -= torch.outer(removed, inverses[j][0])
        weight[mask[:, j], j] = 0
    assert torch.equal(result.mask, mask)
    torch.testing.assert_close(result.weight.double(), weight, rtol=1e-3, atol=1e-3)


def case(seed: int) -> Layer:
    """A layer with few tokens; some neighbouring columns are loud, so that order matters."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(32, 32, generator=generator) / 32**0.5 + 0.5 * torch.eye(32)
    mixing[:, 20:24] *= 4
    calibration = torch.randn(48, 32, generator=generator) @ mixing
    return Layer(torch.randn(24, 32, generator=generator), calibration)


def errors_by_hand(layer: Layer, sparsity: float | str) -> dict[tuple[str, str], float]:
    return {
        (order, budget): direct_error(
            layer.weight,
            layer.prune(method="sparsegpt", sparsity=sparsity, order=order, budget=budget).weight,
            layer.inputs,
        )
        for order, budget in CANDIDATES
    }


@pytest.mark.parametrize("sparsity", [0.5, 0.8, "2:4"])
def test_measured_returns_the_least_error_of_all_candidates(sparsity):
    for seed in range(6):
        layer = case(seed)
        result, by_hand = layer.prune(method="measured", sparsity=sparsity), errors_by_hand(layer, sparsity)
        assert direct_error(layer.weight, result.weight, layer.inputs) == pytest.approx(min(by_hand.values()), rel=1e-5)
        assert by_hand[result.order.name, result.budget] == pytest.approx(min(by_hand.values()), rel=1e-5)


def test_settings_narrow_the_candidates():
    layer = case(7)
    by_hand = errors_by_hand(layer, 0.7)
    blocks = layer.prune(method="measured", sparsity=0.7, budget="block")
    assert blocks.budget == "block"
    assert blocks.order.name in ("natural", "two_level", "global", "hessian")
    least = min(by_hand[order, "block"] for order in ("natural", "two_level"))
    assert direct_error(layer.weight, blocks.weight, layer.inputs) <= least * (1 + 1e-5)
    fixed = layer.prune(method="measured", sparsity=0.7, order="two_level")
    assert fixed.order.name == "two_level"
    least = min(by_hand["two_level", budget] for budget in ("block", "layer"))
    assert direct_error(layer.weight, fixed.weight, layer.inputs) == pytest.approx(least, rel=1e-5)
