"""Recorded solvers: last states equal the results, and every state has the requested sparsity."""

import pytest
import torch

import rose
from rose.layer.solvers import SOLVERS, watch_solver
from tests.layer.helpers import make_layer
from tests.refusals import refused

METHODS = {"sweep": ("sparsegpt", "natural"), "refit": ("rose_dealt", "dealt"), "admm": ("rose_admm", "natural")}


def layer_of(rows: int = 48, columns: int = 64) -> tuple[torch.Tensor, rose.InputStatistics]:
    layer = make_layer(rows=rows, columns=columns, tokens=400, loud=6)
    return layer.weight, layer.statistics


@pytest.mark.parametrize("sparsity", [0.7, "2:4"])
@pytest.mark.parametrize("name", list(METHODS))
def test_the_last_state_equals_the_result(name, sparsity):
    weight, statistics = layer_of()
    method, order = METHODS[name]
    *_, last = watch_solver(name, weight, statistics, sparsity=sparsity, order=order, block_size=16)
    result = rose.prune_layer(weight, statistics, method=method, sparsity=sparsity, block_size=16)
    assert torch.equal(last.mask, result.mask)
    torch.testing.assert_close(last.weight, result.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(SOLVERS))
def test_states_hold_the_promised_sparsity(name):
    weight, statistics = layer_of()
    states = list(watch_solver(name, weight, statistics, sparsity=0.7, block_size=16))
    work = [state.work for state in states]
    assert work == sorted(set(work))
    for state in states:
        assert state.weight[state.mask].eq(0).all()
        if state.is_complete:
            assert abs(int(state.mask.sum()) - round(0.7 * weight.numel())) <= 4  # a weight per block
    assert states[-1].is_complete


def test_work_is_counted_in_products():
    weight, statistics = layer_of(rows=64, columns=64)
    (swept,) = watch_solver("sweep", weight, statistics)
    assert swept.work == pytest.approx(1 / 3 + 1 / 2)  # in³/3 and out · in²/2, of out · in²
    *_, refitted = watch_solver("refit", weight, statistics)
    assert refitted.work == pytest.approx(swept.work + 9)
    *_, watched = watch_solver("admm", weight, statistics)
    assert watched.work == pytest.approx(4 * 1 / 2 + 20 + 4)  # four penalties


@pytest.mark.parametrize(("name", "sparsity", "message"), [("brute", 0.7, "no solver"), ("stages", "2:4", "in stages")])
def test_unknown_solvers_are_refused(name, sparsity, message):
    weight, statistics = layer_of()
    refused(message, next, watch_solver(name, weight, statistics, sparsity=sparsity))
