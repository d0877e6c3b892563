"""Rotations of heads: outputs they keep, columns they gather, and how they are found."""

import pytest
import torch
from torch import Tensor

from rose.layer.basis import BASES, HeadLayout, find_rotations, rotate_columns, rotate_statistics
from rose.layer.error import quadratic_form
from rose.layer.loss import importance, potential_loss
from rose.layer.pattern import parse_sparsity
from rose.layer.statistics import InputStatistics
from tests.refusals import refused

LAYOUT = HeadLayout(8, (0, 0, 1, 1, 2, 2))  # six heads, of which two each share their values
PATTERN = parse_sparsity(0.7)


@pytest.fixture(scope="module")
def layer() -> tuple[Tensor, InputStatistics]:
    """W, (24, 48), and inputs that a few directions of every head carry."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.linalg.qr(torch.randn(6, 8, 8, generator=generator)).Q
    strength = 2.0 ** -torch.arange(8)
    inputs = torch.einsum("thd,hde->the", torch.randn(200, 6, 8, generator=generator) * strength, mixed).flatten(1)
    statistics = InputStatistics(48)
    statistics.update(inputs, weight=0.5)
    return torch.randn(24, 48, generator=generator), statistics


def rotations_of(layer: tuple[Tensor, InputStatistics], basis: str, block_size: int = 16) -> Tensor:
    weight, statistics = layer
    return find_rotations(weight, statistics.hessian, LAYOUT, basis, pattern=PATTERN, block_size=block_size)


@pytest.mark.parametrize("basis", [*BASES, "random:3"])
def test_every_basis_is_a_rotation_that_keeps_the_output(layer, basis):
    weight, statistics = layer
    rotations = rotations_of(layer, basis)
    assert rotations.shape == (3, 8, 8)
    torch.testing.assert_close(rotations.mT @ rotations, torch.eye(8, dtype=torch.double).expand(3, 8, 8))
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(3, dtype=torch.double))
    turned, there = rotate_columns(weight, LAYOUT, rotations), rotate_statistics(statistics, LAYOUT, rotations)
    assert quadratic_form(turned, there.hessian) == pytest.approx(quadratic_form(weight, statistics.hessian), rel=1e-5)
    assert (there.tokens, there.total_weight) == (statistics.tokens, statistics.total_weight)
    whole = torch.block_diag(*(rotations[group] for group in LAYOUT.group))
    torch.testing.assert_close(turned, weight.double() @ whole)
    expected = (whole.mT @ statistics.hessian.double() @ whole).float()
    torch.testing.assert_close(there.hessian, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(there.mean, (statistics.mean.double() @ whole).float())
    assert torch.equal(rotations, rotations_of(layer, basis))


def lost(layer: tuple[Tensor, InputStatistics], rotations: Tensor) -> float:
    """Potential loss of S², with blocks of 16."""
    weight, statistics = layer
    there = rotate_statistics(statistics, LAYOUT, rotations)
    score = importance(rotate_columns(weight, LAYOUT, rotations), there.diagonal).square()
    return float(potential_loss(score, PATTERN, (16, 16, 16)).sum())


@pytest.mark.parametrize("basis", BASES)
def test_a_basis_is_the_same_in_inference_mode(layer, basis):
    rotations = rotations_of(layer, basis)
    with torch.inference_mode():
        assert torch.equal(rotations_of(layer, basis), rotations)


def test_learned_loses_less_than_gathered_and_gathered_less_than_given(layer):
    none = torch.eye(8, dtype=torch.double).expand(3, 8, 8)
    losses = {basis: lost(layer, rotations_of(layer, basis)) for basis in BASES}
    assert losses["learned"] < losses["gathered"] < lost(layer, none)
    assert min(losses.values()) == losses["learned"]


def test_gathered_columns_diagonalize_the_mean_of_inputs_and_weights(layer):
    weight, statistics = (layer[0] * 30).double(), layer[1]
    rotations = rotations_of((weight, statistics), "gathered")
    for group in range(3):
        total = torch.zeros(8, 8, dtype=torch.double)
        for head in (2 * group, 2 * group + 1):
            part = slice(8 * head, 8 * head + 8)
            inputs, made = statistics.hessian[part, part].double(), weight[:, part].T @ weight[:, part]
            total += inputs + inputs.trace() / made.trace() * made
        turned = rotations[group].T @ total @ rotations[group]
        torch.testing.assert_close(turned, turned.diagonal().sort(descending=True).values.diag(), atol=1e-4, rtol=0)


def test_nan_in_weights_and_unknown_bases_are_refused(layer):
    broken = layer[0].clone()
    broken[3, 4] = float("nan")
    refused("NaN or infinity", rotations_of, (broken, layer[1]), "gathered")
    for basis in ("unknown", "random:x", "random:" + "9" * 30, "gathered:1"):
        refused("no basis named", rotations_of, layer, basis)
