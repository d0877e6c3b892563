"""Streaming statistics against the plain formulas, and the channels that count as massive activations."""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from threading import Barrier

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import rose
from rose.layer.error import FEW, NEARLY_ALL, MassiveActivation, massive_channels, relative_error
from rose.layer.statistics import PANEL, as_statistics
from tests.layer.helpers import statistics_of
from tests.refusals import refused


@given(
    columns=st.integers(1, 12), pieces=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 2**20)
)
def test_pieces_add_up(columns, pieces, seed):
    inputs = torch.randn(sum(pieces), columns, generator=torch.Generator().manual_seed(seed))
    statistics = rose.InputStatistics(columns)
    for piece in inputs.split(pieces):
        statistics.update(piece)
        statistics.hessian  # noqa: B018 reading in between must not freeze it
    assert statistics.tokens == sum(pieces)
    torch.testing.assert_close(statistics.hessian, inputs.T @ inputs)
    torch.testing.assert_close(statistics.mean, inputs.mean(0))
    torch.testing.assert_close(statistics.mean_square, inputs.square().mean(0))
    torch.testing.assert_close(statistics.variance, inputs.var(0, correction=0))
    torch.testing.assert_close(statistics.diagonal, inputs.square().sum(0))


@pytest.mark.parametrize("columns", [PANEL - 1, PANEL, PANEL + 1, 2 * PANEL + 77])
def test_panels_cover_the_whole_matrix(columns):
    inputs = torch.randn(30, columns, generator=torch.Generator().manual_seed(columns))
    statistics = rose.InputStatistics(columns)
    statistics.update(inputs.view(3, 10, columns))
    torch.testing.assert_close(statistics.hessian, inputs.T @ inputs, rtol=1e-4, atol=1e-4)
    assert torch.equal(statistics.hessian, statistics.hessian.T)


def test_variance_does_not_cancel():
    """Means of 100 beside deviations of 0.001, in pieces that drift, with weights, from two processes, from a file."""
    generator = torch.Generator().manual_seed(0)
    pieces = [100 + drift + 1e-3 * torch.randn(300, 6, generator=generator) for drift in (0, 1e-3, -2e-3, 0)]
    weights = torch.tensor([1.0, 0.25, 3.0, 2.0])
    share = (weights / weights.sum() / 300).double().repeat_interleave(300)[:, None]
    mean = (share * torch.cat(pieces)).sum(0)
    expected = (share * (torch.cat(pieces) - mean).square()).sum(0)
    whole, first, second = (rose.InputStatistics(6) for _ in range(3))
    for number, (piece, weight) in enumerate(zip(pieces, weights.tolist(), strict=True)):
        for statistics in (whole, second if number else first):
            statistics.update(piece, weight)
    both, given = Barrier(2), list[Tensor]()

    def add(tensor: Tensor) -> None:
        given.append(tensor.clone())
        both.wait()
        tensor.copy_(given[-1] + given[-2])
        both.wait()

    with ThreadPoolExecutor(2) as processes:
        list(processes.map(lambda statistics: statistics.sum_over(add), (first, second)))
    for statistics in (whole, first, second, rose.InputStatistics.unpack(whole.pack())):
        torch.testing.assert_close(statistics.mean, mean.float())
        torch.testing.assert_close(statistics.variance, expected.float(), rtol=1e-4, atol=0)


def test_threads_that_share_statistics_read_a_whole_hessian():
    inputs = torch.randn(4, 6 * PANEL, generator=torch.Generator().manual_seed(0))
    packed, expected = statistics_of(inputs).pack(), inputs.T @ inputs
    for _ in range(5):
        shared, start = rose.InputStatistics.unpack(packed), Barrier(2)

        def last_rows(shared: rose.InputStatistics = shared, start: Barrier = start) -> Tensor:
            start.wait()
            return shared.hessian[-PANEL:].clone()

        with ThreadPoolExecutor(2) as threads:
            for reading in [threads.submit(last_rows) for _ in range(2)]:
                torch.testing.assert_close(reading.result(), expected[-PANEL:])
        torch.testing.assert_close(deepcopy(shared).hessian, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_inputs_accumulate_in_float32(dtype):
    """4096 ones, squared and summed, do not fit into either dtype exactly after 2048 or 256 of them."""
    statistics = rose.InputStatistics(2)
    for _ in range(4096):
        statistics.update(torch.ones(1, 2, dtype=dtype))
    assert statistics.hessian.dtype == torch.float32
    assert torch.equal(statistics.hessian, torch.full((2, 2), 4096.0))


def with_value(value):
    hessian = torch.eye(4)
    hessian[1, 2] = value
    return hessian


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda: rose.InputStatistics(4).update(torch.zeros(2, 5)), "4 channels, got 5"),
        (lambda: rose.InputStatistics.from_hessian(torch.zeros(2, 3)), "square matrix"),
        (lambda: rose.InputStatistics.from_hessian(torch.zeros(0, 0)), "square matrix"),
        (lambda: rose.InputStatistics.from_hessian((torch.eye(4) + 0.3).triu()), "must be symmetric; give all of XᵀX"),
        (lambda: rose.InputStatistics.from_hessian(with_value(float("nan"))), "NaN or infinity"),
        (lambda: rose.InputStatistics.from_hessian(torch.eye(4), tokens=2.5), "tokens, at least 1, not"),
        (lambda: rose.InputStatistics(4.0), "whole number of channels, at least 1, not"),
        (lambda: as_statistics(rose.InputStatistics(4), torch.zeros(3, 4)), "have not seen any token"),
        (lambda: as_statistics(torch.eye(4), torch.zeros(3, 8)), "8 input columns but H has 4"),
        (lambda: as_statistics(-torch.eye(4), torch.zeros(3, 4)), "negative diagonal"),
        (lambda: as_statistics(with_value(float("inf")), torch.zeros(3, 4)), "NaN or infinity"),
    ],
)
def test_bad_arguments_are_refused(work, message):
    refused(message, work)


@pytest.mark.parametrize(
    "other",
    [np.eye(4, dtype=np.float32), torch.eye(4).tolist(), None, torch.eye(4).to_sparse(), torch.eye(4).to("meta")],
    ids=["array", "list", "None", "sparse", "meta"],
)
def test_other_types_than_tensors_are_refused(other):
    says = "must be a torch tensor, not a .*; torch.from_numpy makes one of an array|neither sparse nor on meta"
    for wrong in (
        lambda: rose.plan_order(other, torch.eye(4)),
        lambda: rose.plan_order(torch.eye(4), other),
        lambda: rose.prune_layer(other, torch.eye(4), method="rose"),
        lambda: rose.prune_layer(torch.eye(4), other, method="rose"),
        lambda: rose.InputStatistics(4).update(other),
    ):
        refused(says, wrong)


def test_updates_leave_a_given_hessian_unchanged():
    given_hessian = torch.diag(torch.tensor([4.0, 9.0]))
    statistics = rose.InputStatistics.from_hessian(given_hessian)
    assert statistics.mean_square.tolist() == [4.0, 9.0]
    assert statistics.mean.isnan().all()
    statistics.update(torch.ones(2, 2))
    assert given_hessian.tolist() == [[4.0, 0.0], [0.0, 9.0]]
    assert torch.equal(statistics.hessian, given_hessian + 2)


def test_statistics_move_to_another_device():
    statistics = rose.InputStatistics.from_hessian(torch.eye(4))
    for same in ("cpu", torch.device("cpu")):  # a second object over the same numbers would grow with the first
        assert statistics.to(same) is statistics
    moved = statistics.to(torch.device("meta"))
    assert (moved.diagonal.device.type, moved.tokens) == ("meta", 1)
    refused("W is on cpu and H on meta", as_statistics, moved, torch.zeros(3, 4))


def test_weights_scale_inputs():
    """A weight of 3 is the same as seeing the inputs three times; half a weight, as √½ of them."""
    inputs = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    other = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    weighted, repeated = rose.InputStatistics(5), rose.InputStatistics(5)
    weighted.update(inputs, weight=3.0)
    weighted.update(other)
    for _ in range(3):
        repeated.update(inputs)
    repeated.update(other)
    torch.testing.assert_close(weighted.hessian, repeated.hessian)
    torch.testing.assert_close(weighted.mean, repeated.mean)
    torch.testing.assert_close(weighted.mean_square, repeated.mean_square)
    assert (weighted.tokens, weighted.total_weight) == (11, 25.0)
    halved = rose.InputStatistics(5)
    halved.update(inputs, weight=0.5)
    torch.testing.assert_close(halved.hessian, (0.5**0.5 * inputs).T @ (0.5**0.5 * inputs))
    again = rose.InputStatistics.unpack(weighted.pack())
    assert (again.tokens, again.total_weight) == (11, 25.0)
    assert torch.equal(again.mean, weighted.mean)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), "1", True])
def test_weights_must_be_positive(weight):
    refused("positive number", rose.InputStatistics(2).update, torch.ones(1, 2), weight)


def test_packed_statistics_share_no_memory_with_the_originals():
    statistics = rose.InputStatistics(3)
    statistics.update(torch.ones(2, 3))
    packed = statistics.pack()
    again = rose.InputStatistics.unpack(packed)
    again.update(torch.ones(2, 3))
    statistics.update(torch.ones(5, 3))
    assert packed["mean"].tolist() == [1.0] * 3
    assert (again.mean == 1).all()


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
def test_massive_channels_carry_nearly_all_of_the_input(large, expected):
    diagonal = torch.ones(400)
    diagonal[list(large)] = torch.tensor(list(large.values()))
    assert massive_channels(diagonal) == expected
    assert len(expected) <= FEW * 400
    if expected:
        assert diagonal[list(expected)].sum() / diagonal.sum() >= NEARLY_ALL


def test_a_narrow_layer_has_at_most_one_massive_channel():
    assert massive_channels(torch.tensor([1.0, 1.0, 98.0])) == (2,)


def test_the_error_without_massive_channels_leaves_them_out():
    inputs = planted_inputs()
    statistics = rose.InputStatistics(400)
    for window in inputs:
        statistics.update(window[None])
    weight = torch.randn(24, 400, generator=torch.Generator().manual_seed(1))
    result = rose.prune_layer(weight, statistics, method="sparsegpt", sparsity=0.7)
    massive = MassiveActivation.find(weight, result.weight, statistics)
    assert massive.channels == (301, 7)
    assert massive.share > 0.99
    assert massive.first_share == pytest.approx(1, abs=1e-4)
    others = [column for column in range(400) if column not in massive.channels]
    rest = statistics.hessian[others][:, others]
    assert massive.error == pytest.approx(relative_error(weight[:, others], result.weight[:, others], rest), rel=1e-4)
    assert massive.error > 100 * result.relative_error


def test_the_first_position_is_given_for_windows_only():
    inputs = planted_inputs()
    windows, flat = rose.InputStatistics(400), rose.InputStatistics(400)
    windows.update(inputs, weight=2.0)
    flat.update(inputs.flatten(0, 1))
    expected = float(inputs[:, 0, 5].square().sum() / inputs[:, :, 5].square().sum())
    for statistics in (windows, rose.InputStatistics.unpack(windows.pack())):
        assert statistics.first_share([5]) == pytest.approx(expected, rel=1e-5)
    ready = rose.InputStatistics.from_hessian(windows.hessian)
    assert all(torch.tensor(statistics.first_share([5])).isnan() for statistics in (flat, ready))


def test_groups_of_windows_add_up_to_the_diagonal():
    windows = torch.randn(11, 5, 3, generator=torch.Generator().manual_seed(0))
    statistics = rose.InputStatistics(3)
    for batch in windows.split(4):
        statistics.update(batch, 2.0)
    groups = statistics.by_group
    torch.testing.assert_close(groups.sum(0), statistics.diagonal)
    torch.testing.assert_close(groups[1], 2 * windows[[1, 9]].square().sum((0, 1)))
    again = rose.InputStatistics.unpack(statistics.pack())
    assert torch.equal(again.by_group, groups)
    single = rose.InputStatistics(3)
    single.update(windows[:1])
    assert single.by_group is None
