"""ALPS: the search against a literal loop and against all masks."""

import numpy as np
import pytest
import torch

import rose
from rose.layer.methods.alps import find_support
from rose.layer.pattern import parse_sparsity
from tests.layer.test_hessian import case, damped_inputs, error_of, least_of_all_masks, smallest_of_runs


def literal_admm(weight: np.ndarray, gram: np.ndarray, count: int, of: int) -> np.ndarray:
    """The mask by the paper's loop in the authors' layout (in, out), float64, with plain solves and sorts."""

    def removed(matrix: np.ndarray) -> np.ndarray:
        return smallest_of_runs(matrix.T, count, of).T

    original = weight.T
    right = gram @ original
    last = removed(original)
    first = np.where(last, 0, original)
    survivors = (~last).sum()
    d, v, rho, moved = first, np.zeros_like(first), 0.1, False
    for iteration in range(300):
        b = np.linalg.solve(gram + rho * np.eye(len(gram)), right - v + rho * d)
        mask = removed(b + v / rho)
        d = np.where(mask, 0, b + v / rho)
        v = v + rho * (b - d)
        if iteration % 3 != 2:
            continue
        share = (mask != last).sum() / survivors
        last = mask
        if share > 0.1:
            moved, rho = True, rho * 1.3
        elif share > 0.005:
            moved, rho = True, rho * 1.2
        elif moved and (share == 0 or (iteration >= 30 and share < 0.0003)):
            break
        elif moved:
            rho *= 1.1
        else:
            d, v, rho = first, np.zeros_like(first), rho / 5
    return mask.T


@pytest.mark.parametrize(("sparsity", "count", "of"), [(0.5, 256, 0), (0.7, 358, 0), ("2:4", 2, 4), ("1:4", 3, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_support_matches_a_literal_loop(sparsity, count, of, seed):
    weight, inputs = case(seed)
    matrix = damped_inputs(inputs)
    scale = matrix.diagonal().sqrt()
    gram = matrix / scale / scale[:, None]
    expected = literal_admm((weight * scale).numpy(), gram.numpy(), count, of)
    mask, _ = find_support((weight * scale).float(), gram.float(), parse_sparsity(sparsity))
    assert mask.sum() == expected.sum()
    # Float32 may settle a near-tie the other way.
    assert (mask.numpy() != expected).mean() <= 0.01


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.9, "2:4", "1:4", "4:8"])
def test_error_is_below_that_of_sparsegpt(sparsity):
    weight, inputs = case(20, rows=64, columns=64, tokens=300)
    hessian = inputs.T @ inputs
    alps = rose.prune_layer(weight, hessian, method="alps", sparsity=sparsity, block_size=16)
    sparsegpt = rose.prune_layer(weight, hessian, method="sparsegpt", sparsity=sparsity, block_size=16)
    assert error_of(alps) < 0.95 * error_of(sparsegpt)
    assert alps.mask.sum() <= sparsegpt.mask.sum() <= alps.mask.sum() + 2  # rounded once, or in each of 4 blocks
    assert alps.relative_error < sparsegpt.relative_error


def test_error_is_near_the_best_of_all_masks():
    ratios = []
    for seed in range(5):
        weight, inputs = case(30 + seed, rows=1, columns=10, tokens=40)
        best = least_of_all_masks(weight, damped_inputs(inputs), 5)
        error = error_of(rose.prune_layer(weight, inputs.T @ inputs, method="alps", sparsity=0.5))
        ratios.append(error / best)
    assert min(ratios) > 0.999  # nothing is below the optimum
    assert sum(ratios) / len(ratios) < 1.15


def test_alps_is_nearly_optimal_for_uncorrelated_inputs():
    """Magnitude is optimal here; the search ends, and next to it."""
    weight, _ = case(41)
    result = rose.prune_layer(weight, torch.eye(32), method="alps", sparsity=0.5)
    magnitude = rose.prune_layer(weight, torch.eye(32), method="magnitude", sparsity=0.5)
    assert magnitude.relative_error <= result.relative_error < 1.01 * magnitude.relative_error
