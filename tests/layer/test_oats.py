"""OATS against a plain float64 loop with a full SVD, and its account of parameters."""

import numpy as np
import pytest
import torch
from torch import Tensor

import rose
from rose.layer.methods.oats import SPARE, decompose, truncated_svd
from rose.layer.pattern import Pattern
from rose.layer.settings import LayerSettings
from tests.layer.helpers import statistics_of
from tests.refusals import refused


def case(seed: int, rows: int = 24, columns: int = 32) -> tuple[Tensor, rose.InputStatistics]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(100, columns, generator=generator) * torch.rand(columns, generator=generator)
    low = torch.randn(rows, 3, generator=generator) @ torch.randn(3, columns, generator=generator)
    return torch.randn(rows, columns, generator=generator) + low, statistics_of(inputs)


def plain_loop(weight: np.ndarray, norm: np.ndarray, rank: int, keep: int, of: int, iterations: int) -> np.ndarray:
    """S + L, unscaled. `keep` of every run of `of` entries of a row stay in S."""
    scaled = weight * norm
    sparse = np.zeros_like(scaled)
    for _ in range(iterations):
        u, s, v = np.linalg.svd(scaled - sparse, full_matrices=False)
        s[rank:] = 0
        low = u @ np.diag(s) @ v
        sparse = np.zeros_like(scaled)
        for i in range(scaled.shape[0]):
            for start in range(0, scaled.shape[1], of):
                rest = scaled[i, start : start + of] - low[i, start : start + of]
                for j in sorted(range(of), key=lambda j: -abs(rest[j]))[:keep]:
                    sparse[i, start + j] = rest[j]
    return (sparse + low) / norm


# Parameters of a 24 × 32 layer: κ = 1 − sparsity, or (keep/of)/(1 − ρ).
@pytest.mark.parametrize(
    ("sparsity", "rank_ratio", "rank", "keep", "of"),
    [
        (0.5, 0.25, int(0.25 * 0.5 * 768 / 56), 12, 32),
        (0.5, 0.5, int(0.5 * 0.5 * 768 / 56), 8, 32),
        ("2:4", 0.25, int(0.25 * (0.5 / 0.75) * 768 / 56), 2, 4),
        ("1:4", 0.3, int(0.3 * (0.25 / 0.7) * 768 / 56), 1, 4),
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_oats_is_the_plain_loop(sparsity, rank_ratio, rank, keep, of, transposed):
    rows, columns = (32, 24) if transposed else (24, 32)
    if transposed and of == 32:
        keep, of = keep * 3 // 4, 24
    weight, statistics = case(0, rows, columns)
    options = {"rank_ratio": rank_ratio, "iterations": 12}
    result = rose.prune_layer(weight, statistics, method="oats", sparsity=sparsity, block_size=8, options=options)
    norm = np.sqrt(statistics.mean_square.double().numpy())
    expected = plain_loop(weight.double().numpy(), norm, rank, keep, of, 12)
    torch.testing.assert_close(result.weight, torch.from_numpy(expected).float(), rtol=1e-3, atol=1e-4)
    assert rank > 0
    left, right = result.low_rank
    assert left.shape == (rows, rank)
    assert right.shape == (rank, columns)
    # The sparse part is what the factors leave, and it is sparse where the mask says so.
    sparse = result.weight - left @ right
    assert sparse[result.mask].abs().max() < 1e-5
    nonzeros = rows * columns * keep // of
    assert result.parameters == nonzeros + rank * (rows + columns)
    assert result.sparsity == pytest.approx(1 - result.parameters / weight.numel())


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7, 0.9])
def test_oats_stores_the_parameters_asked_for(sparsity):
    weight, statistics = case(1, 96, 128)
    result = rose.prune_layer(weight, statistics, method="oats", sparsity=sparsity, options={"iterations": 3})
    # One column of rounding in S, one rank of rounding in L.
    assert abs(result.sparsity - sparsity) <= (96 + 224) / weight.numel()


def test_oats_without_rank_is_wanda():
    weight, statistics = case(2)
    result = rose.prune_layer(weight, statistics, method="oats", sparsity=0.5, options={"rank_ratio": 0})
    wanda = rose.prune_layer(weight, statistics, method="wanda", sparsity=0.5)
    assert torch.equal(result.mask, wanda.mask)
    torch.testing.assert_close(result.weight, wanda.weight)


def test_oats_finds_a_sparse_plus_low_rank_matrix():
    generator = torch.Generator().manual_seed(3)
    low = torch.randn(40, 2, generator=generator) @ torch.randn(2, 40, generator=generator)
    spikes = 10 * torch.randn(40, 40, generator=generator) * (torch.rand(40, 40, generator=generator) < 0.05)
    result = rose.prune_layer(low + spikes, torch.eye(40), method="oats", sparsity=0.6, options={"rank_ratio": 0.5})
    wanda = rose.prune_layer(low + spikes, torch.eye(40), method="wanda", sparsity=0.6)
    assert result.relative_error < wanda.relative_error / 1000


@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
@pytest.mark.parametrize("rank", [0, 1, 7, 20])
def test_truncated_svd(shape, rank):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(6))
    left, right = truncated_svd(matrix, rank)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(left @ right, (u[:, :rank] * s[:rank]) @ v[:rank], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(50))
def test_directions_of_rows_from_large_to_nothing_are_found(seed):
    """A Gram matrix of low rank whose entries end below float32's least number, as rests of dead inputs have."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(32, 2, generator=generator) @ torch.randn(2, 64, generator=generator)
    matrix *= 10 ** (-20 * torch.rand(32, 1, generator=generator))
    matrix[::2] = 0
    left, right = truncated_svd(matrix, 2)
    torch.testing.assert_close(left @ right, matrix)


@pytest.mark.parametrize("shape", [(120, 160), (160, 120)])
def test_subspace_iteration_is_as_good_as_repeated_svd(shape):
    rank, iterations = 8, 30
    assert 4 * (rank + SPARE) <= min(shape)  # else it would be a decomposition every time
    generator = torch.Generator().manual_seed(7)
    low = torch.randn(shape[0], rank, generator=generator) @ torch.randn(rank, shape[1], generator=generator)
    matrix = torch.randn(*shape, generator=generator) ** 3 + low
    keep = shape[1] // 2
    mask, left, right = decompose(matrix, rank, Pattern(0.5), iterations)
    assert mask.sum(1).eq(shape[1] - keep).all()
    left_over = (matrix - left @ right)[mask].norm()
    plain = plain_loop(matrix.double().numpy(), np.ones(shape[1]), rank, keep, shape[1], iterations)
    expected = np.linalg.norm(matrix.double().numpy() - plain)
    assert float(left_over) == pytest.approx(expected, rel=0.01)
    assert float(left_over) < 0.9 * float(matrix.masked_fill(~mask, 0).norm())  # the low-rank part does its share


def test_a_pattern_that_stores_more_than_the_layer_is_refused_without_one():
    refused("would store more than the dense layer", LayerSettings, method="oats", sparsity="7:8", block_size=8)
    assert LayerSettings(method="oats", sparsity="7:8", block_size=8, options={"rank_ratio": 0.1}).pattern.keep == 7
