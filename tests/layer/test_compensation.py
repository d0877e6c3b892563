"""Compensation inside a block, against a sweep that sees nothing else."""

import pytest
import torch

from rose.layer.sweep import error_inside
from tests.layer.helpers import make_layer


@pytest.mark.parametrize("sparsity", ["0.5", "2:4"])
@pytest.mark.parametrize("order", ["natural", "two_level", "random:1"])
def test_compensation_within_a_block_lies_between_none_and_all(order, sparsity):
    layer = make_layer(rows=12, loud=8)
    result = layer.prune(order=order, sparsity=sparsity, trace=True)
    trace = result.trace
    inside = error_inside(trace, result.order, result.mask, layer.hessian, result.added_damping)
    assert inside[-1] == pytest.approx(float(trace.error[-1]), rel=1e-4)  # nobody else is left
    assert (inside[:-1] > trace.error[:-1]).all()
    assert (inside < trace.lost).all()


def test_the_first_block_is_a_layer_of_its_own():
    """By the definition of U, in float64, from H of these columns alone."""
    layer = make_layer(rows=12)
    result = layer.prune(order="natural", sparsity=0.5, trace=True)
    inside = error_inside(result.trace, result.order, result.mask, layer.hessian, result.added_damping)
    own = layer.hessian[:8, :8]
    first = torch.linalg.cholesky(torch.linalg.inv(own.double() + result.added_damping * torch.eye(8)), upper=True)
    weight, total = layer.weight[:, :8].double().clone(), 0.0
    for j in range(8):
        error = weight[:, j] * result.mask[:, j] / first[j, j]
        weight -= error[:, None] * first[j]
        total += float(error.square().sum())
    assert float(inside[0]) == pytest.approx(total, rel=1e-4)
