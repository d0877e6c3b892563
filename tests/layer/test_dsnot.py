"""DSnoT against a slow loop over rows, written from the paper's algorithm."""

import pytest
import torch
from torch import Tensor

import rose
from rose.layer.loss import smallest
from rose.layer.methods.wanda import CYCLES, TOLERANCE, refine_mask
from rose.layer.pattern import parse_sparsity
from tests.layer.helpers import statistics_of


def case(seed: int, rows: int = 12, columns: int = 32, scale: float = 0.2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(200, columns, generator=generator) * torch.rand(columns, generator=generator)
    inputs += torch.randn(columns, generator=generator)
    return torch.randn(rows, columns, generator=generator) * scale, inputs


def refine_row(row: list[float], removed: list[bool], inputs: Tensor, of: int) -> list[bool]:
    """One row, one cycle after another; statistics straight from the inputs, in float64."""
    x = inputs.double()
    mean, variance = x.mean(0).tolist(), x.var(0, correction=0).tolist()
    norm = x.square().mean(0).sqrt().tolist()
    removed, moved = list(removed), set()
    drift = [w * m for w, m in zip(row, mean, strict=True)]
    e = sum(d for d, gone in zip(drift, removed, strict=True) if gone)
    first = e > 0
    for _ in range(CYCLES):
        if abs(e) <= TOLERANCE:
            break
        sign = 1 if e > 0 else -1
        fresh = [j for j in range(len(row)) if j not in moved]
        survivors = [j for j in fresh if not removed[j]]
        regrowable = [j for j in fresh if removed[j] and sign * drift[j] > 0]
        if of:
            regrowable = [j for j in regrowable if any(k // of == j // of for k in survivors)]
        if not regrowable:
            break
        grown = max(regrowable, key=lambda j: sign * drift[j] / variance[j])
        if of:
            prunable = [j for j in survivors if j // of == grown // of]
        else:
            prunable = [j for j in survivors if sign * drift[j] < 0]
        if not prunable:
            break
        gone = min(prunable, key=lambda j: abs(row[j]) * norm[j])
        after = e + drift[gone] - drift[grown]
        if of and (after > 0) != first:
            break
        e = after
        removed[grown], removed[gone] = False, True
        moved |= {grown, gone}
    return removed


@pytest.mark.parametrize("sparsity", ["0.5", "0.7", "2:4", "1:4", "4:8"])
@pytest.mark.parametrize("seed", range(4))
def test_mask_matches_a_literal_loop(sparsity, seed):
    weight, inputs = case(seed)
    pattern = parse_sparsity(sparsity)
    score = weight.abs() * inputs.square().mean(0).sqrt()
    of = pattern.of or 32
    start = smallest(score, of - pattern.keep if pattern.is_grouped else pattern.count(32), of)
    expected = [refine_row(w, m, inputs, pattern.of) for w, m in zip(weight.tolist(), start.tolist(), strict=True)]
    mask = rose.prune_layer(weight, statistics_of(inputs), method="dsnot", sparsity=sparsity, block_size=32).mask
    assert mask.tolist() == expected
    assert not torch.equal(mask, start)  # otherwise the comparison says nothing


@pytest.mark.parametrize("start", ["wanda", "magnitude", "sparsegpt"])
def test_start_masks_match_their_methods(start):
    weight, inputs = case(5, scale=1e-4)  # |e| is below the tolerance, so the start mask stays
    hessian = inputs.double().T @ inputs.double()
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(32, dtype=torch.float64)
    # The saliency of SparseGPT, column by column from the inverse of the Hessian of the columns still free.
    remaining = torch.stack([torch.linalg.inv(damped[j:, j:])[0, 0] for j in range(32)])
    saliency = {
        "wanda": weight.abs() * inputs.square().mean(0).sqrt(),
        "magnitude": weight.abs(),
        "sparsegpt": weight.double().square() / remaining,
    }[start]
    options = {"method": "dsnot", "sparsity": 0.5, "block_size": 32, "options": {"start": start}}
    result = rose.prune_layer(weight, statistics_of(inputs), **options)
    survivors = saliency.topk(16, dim=1).indices
    assert torch.equal(result.mask, torch.ones_like(result.mask).scatter(1, survivors, False))
    assert torch.equal(result.weight, weight.masked_fill(result.mask, 0))


def test_rows_within_the_tolerance_are_unchanged():
    weight, inputs = case(9)
    inputs = inputs - inputs.mean(0)
    pattern = parse_sparsity(0.5)
    mask = smallest(weight.abs(), 16, 32)
    assert torch.equal(refine_mask(weight, statistics_of(inputs), mask, pattern), mask)


def test_dead_and_constant_columns_keep_the_sparsity():
    weight, inputs = case(11)
    inputs[:, 3] = 0
    inputs[:, 8] = 1.5
    for sparsity in (0.5, "2:4"):
        result = rose.prune_layer(weight, statistics_of(inputs), method="dsnot", sparsity=sparsity, block_size=32)
        if sparsity == 0.5:
            assert result.mask[:, 3].all()
        assert result.mask.sum(1).eq(16).all()
        assert torch.isfinite(torch.tensor(result.relative_error))
