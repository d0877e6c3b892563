"""ROSE ADMM: the iteration against a literal one, the shrinkage by hand, masks against all masks."""

import numpy as np
import pytest
import torch

from rose.layer.error import quadratic_form
from rose.layer.methods import Context, measured, prune_with
from rose.layer.methods.rose_admm import SAMPLE, _keep_largest, find_mask, penalties, shrunk_correlations
from rose.layer.pattern import parse_sparsity
from rose.layer.settings import LayerSettings
from tests.layer.helpers import Layer, make_layer
from tests.layer.test_hessian import case, damped_inputs, error_of, least_of_all_masks, smallest_of_runs


def literal_admm(weight: np.ndarray, gram: np.ndarray, count: int, of: int, schedule: list[float]) -> np.ndarray:
    """The mask by three variables, an explicit dual and sorts, float64."""
    sparse, dual = np.where(smallest_of_runs(weight, count, of), 0, weight), np.zeros_like(weight)
    for penalty in schedule:
        free = (weight @ gram - dual + penalty * sparse) @ np.linalg.inv(gram + penalty * np.eye(len(gram)))
        mask = smallest_of_runs(free + dual / penalty, count, of)
        sparse = np.where(mask, 0, free + dual / penalty)
        dual = dual + penalty * (free - sparse)
    return mask


@pytest.mark.parametrize(("sparsity", "count", "of"), [(0.5, 256, 0), (0.7, 358, 0), ("2:4", 2, 4), ("1:4", 3, 4)])
@pytest.mark.parametrize("effort", [1, 3])
def test_mask_matches_a_literal_loop(sparsity, count, of, effort):
    layer = make_layer(rows=16, columns=32, tokens=120, loud=6)
    gram = shrunk_correlations(layer.hessian, 120)
    mask, survivors = find_mask(layer.weight, gram, parse_sparsity(sparsity), penalties(effort))
    expected = literal_admm(layer.weight.double().numpy(), gram.double().numpy(), count, of, penalties(effort))
    assert int(mask.sum()) == expected.sum()
    assert (mask.numpy() != expected).mean() <= 0.01  # float32 may settle a near-tie the other way
    assert survivors[mask].eq(0).all()


@pytest.mark.parametrize("sparsity", [0.7, "2:4"])
def test_search_in_bfloat16_ends_as_low(sparsity):
    weight, inputs = case(20, rows=64, columns=64, tokens=1600)
    layer = Layer(weight, inputs)
    settings, case_of = LayerSettings.of(method="rose_admm", sparsity=sparsity), (layer.weight, layer.hessian)
    each = (Context(products=dtype) for dtype in (torch.float32, torch.bfloat16))
    exact, rounded = (measured(*case_of, prune_with(*case_of, settings, context)) for context in each)
    assert int(rounded.mask.sum()) == int(exact.mask.sum())
    assert rounded.weight.dtype == torch.float32
    assert 0 < float((rounded.mask != exact.mask).float().mean()) < 0.05  # it was rounded, and hardly anything moved
    assert rounded.relative_error == pytest.approx(exact.relative_error, rel=0.03)


def test_penalties_take_few_values():
    for effort in (1, 2, 3, 10):
        schedule = penalties(effort)
        assert len(schedule) == 20 * effort
        assert schedule == sorted(schedule)
        assert schedule[-1] == pytest.approx(1)
        assert len(set(schedule)) == 3 + effort  # each costs a factorization
    assert penalties(1)[0] == 0.2


def test_shrinkage_is_columns_per_token():
    layer = make_layer(columns=8, tokens=40)
    by_hand = layer.hessian + 8 / 40 * layer.hessian.diagonal().diag()
    scale = by_hand.diagonal().sqrt()
    torch.testing.assert_close(shrunk_correlations(layer.hessian, 40), by_hand / scale / scale[:, None])
    few, fewer = shrunk_correlations(layer.hessian, 3), shrunk_correlations(layer.hessian, 2)
    assert torch.equal(few, fewer)  # bounded
    many, unknown = shrunk_correlations(layer.hessian, 10**9), shrunk_correlations(layer.hessian, 1)
    assert few[0, 1].abs() < unknown[0, 1].abs() < many[0, 1].abs()


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.9, "2:4", "1:4", "4:8"])
def test_held_out_error_is_below_that_of_sparsegpt(sparsity):
    weight, inputs = case(20, rows=64, columns=64, tokens=1600)
    layer, others = Layer(weight, inputs[:400]), inputs[400:]
    errors = {}
    for method in ("sparsegpt", "rose_admm"):
        result = layer.prune(method=method, sparsity=sparsity, block_size=16)
        errors[method] = quadratic_form(layer.weight - result.weight, others.T @ others)
    assert errors["rose_admm"] < 0.97 * errors["sparsegpt"]


def test_error_is_near_the_best_of_all_masks():
    ratios: dict[int, list[float]] = {1: [], 3: []}
    for seed in range(4):
        layer = make_layer(rows=2, columns=6, tokens=4000, seed=30 + seed)
        best = least_of_all_masks(layer.weight, damped_inputs(layer.inputs), 6)
        for effort, of_effort in ratios.items():
            of_effort.append(error_of(layer.prune(method="rose_admm", sparsity=0.5, options={"effort": effort})) / best)
    for of_effort in ratios.values():
        assert min(of_effort) > 0.999  # nothing is below the optimum
        assert sum(of_effort) / len(of_effort) < 1.15


def test_counts_are_exact_with_sampled_thresholds():
    layer = make_layer(rows=2 * SAMPLE // 48 + 200, columns=48)
    assert layer.weight.numel() > 2 * SAMPLE
    for sparsity in (0.5, 0.999):
        mask = layer.prune(method="rose_admm", sparsity=sparsity).mask
        assert int(mask.sum()) == round(sparsity * mask.numel())


def test_a_sample_of_weights_covers_all_columns():
    """Every 48th of the weights would be those of one column."""
    state = torch.randn(48 * SAMPLE // 48, 48, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 49)
    survivors = _keep_largest(state, parse_sparsity(0.7))
    assert float(survivors.eq(0).float().mean()) == pytest.approx(0.7, abs=0.01)
    assert torch.equal(survivors[survivors != 0], state[survivors != 0])


def test_more_effort_never_raises_the_error():
    layer = make_layer(rows=32, columns=64, tokens=5000, loud=8)
    errors = [error_of(layer.prune(method="rose_admm", options={"effort": effort})) for effort in (1, 3)]
    assert errors[1] < errors[0]
