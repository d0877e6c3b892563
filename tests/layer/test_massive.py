"""Massive activations: which channels count as such, and what the error is without them."""

import pytest
import torch
from torch import Tensor

import rose
from rose.layer.error import FEW, NEARLY_ALL, massive_channels, relative_error


def planted_inputs(columns: int = 400, windows: int = 8, length: int = 64) -> Tensor:
    """Inputs (windows, length, in) of which two channels are 3000 and 1000 at the first position of each window."""
    inputs = torch.randn(windows, length, columns, generator=torch.Generator().manual_seed(0))
    inputs[:, 0, 7], inputs[:, 0, 301] = 1000, 3000
    return inputs


@pytest.mark.parametrize(
    ("large", "expected"),
    [
        ({5: 1e6}, (5,)),
        ({5: 1e6, 9: 1e6}, (5, 9)),
        ({5: 1e3, 9: 5e3}, (9, 5)),
        ({5: 1e6, 9: 1e6, 11: 1e6}, ()),  # three of 400 are not few
        ({5: 3000.0}, ()),  # 88 % of all
        ({}, ()),
        (dict.fromkeys(range(400), 0.0), ()),
    ],
)
def test_channels_that_carry_nearly_all_of_the_input(large, expected):
    diagonal = torch.ones(400)
    diagonal[list(large)] = torch.tensor(list(large.values()))
    assert massive_channels(diagonal) == expected
    assert len(expected) <= FEW * 400
    if expected:
        assert diagonal[list(expected)].sum() / diagonal.sum() >= NEARLY_ALL


def test_a_narrow_layer_has_at_most_one_massive_channel():
    assert massive_channels(torch.tensor([1.0, 1.0, 98.0])) == (2,)


def test_result_has_the_error_without_massive_channels():
    inputs = planted_inputs()
    statistics = rose.InputStatistics(400)
    for window in inputs:
        statistics.update(window[None])
    weight = torch.randn(24, 400, generator=torch.Generator().manual_seed(1))
    result = rose.prune_layer(weight, statistics, method="sparsegpt", sparsity=0.7)
    massive = result.massive
    assert massive.channels == (301, 7)
    assert massive.share > 0.99
    assert massive.first_share == pytest.approx(1, abs=1e-4)
    others = [column for column in range(400) if column not in massive.channels]
    rest = statistics.hessian[others][:, others]
    assert massive.error == pytest.approx(relative_error(weight[:, others], result.weight[:, others], rest), rel=1e-4)
    assert massive.error > 100 * result.relative_error


def test_positions_are_known_of_windows_alone():
    inputs = planted_inputs()
    windows, flat = rose.InputStatistics(400), rose.InputStatistics(400)
    windows.update(inputs, weight=2.0)
    flat.update(inputs.flatten(0, 1))
    expected = float(inputs[:, 0, 5].square().sum() / inputs[:, :, 5].square().sum())
    for statistics in (windows, rose.InputStatistics.unpack(windows.pack())):
        assert statistics.first_share([5]) == pytest.approx(expected, rel=1e-5)
    ready = rose.InputStatistics.from_hessian(windows.hessian)
    assert all(torch.tensor(one.first_share([5])).isnan() for one in (flat, ready))
