"""Corrected targets: each identity against the same quantity computed on tokens."""

import math

import pytest
import torch
from torch import Tensor

import rose
from rose.layer.error import quadratic_form
from rose.layer.target import (
    InputGap,
    OutputGap,
    corrected_weight,
    correction_damping,
    target_error,
    target_error_with_bias,
)
from tests.layer.helpers import statistics_of

ROWS, COLUMNS, TOKENS = 6, 12, 80


@pytest.fixture
def case() -> dict[str, Tensor]:
    torch.manual_seed(0)
    pruned = torch.randn(TOKENS, COLUMNS)
    return {
        "weight": torch.randn(ROWS, COLUMNS),
        "pruned": pruned,
        "dense": pruned + 0.3 * torch.randn(TOKENS, COLUMNS),
        "lost": 0.5 * torch.randn(TOKENS, ROWS),
    }


def gaps(
    case: dict[str, Tensor], parts: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[InputGap, OutputGap, Tensor, Tensor]:
    """Both kinds of gap, streamed in parts, and the targets that they belong to."""
    ours = InputGap(COLUMNS, dtype=dtype)
    streamed = OutputGap(ROWS, COLUMNS, dtype=dtype)
    own_gap = (case["dense"] - case["pruned"]) @ case["weight"].T
    for x, d, g in zip(*(t.chunk(parts) for t in (case["pruned"], case["dense"], own_gap + case["lost"])), strict=True):
        ours.update(x, d)
        streamed.update(x, g)
    target = case["dense"] @ case["weight"].T
    return ours, streamed, target, target + case["lost"]


EACH_GAP = pytest.mark.parametrize("kind", [0, 1], ids=["input gap", "output gap"])


@EACH_GAP
@pytest.mark.parametrize("parts", [1, 3])
def test_error_against_the_target_is_that_on_tokens(case, kind, parts):
    parts_of_gap = gaps(case, parts)
    gap, target = parts_of_gap[kind], parts_of_gap[kind + 2]
    pruned = case["weight"] * (torch.rand(ROWS, COLUMNS) < 0.5)
    weight, hessian = case["weight"], statistics_of(case["pruned"]).hessian
    change, dense = quadratic_form(weight - pruned, hessian), quadratic_form(weight, hessian)
    error = target_error(weight, pruned, gap.of(weight), change_energy=change, dense_energy=dense)
    direct = (target - case["pruned"] @ pruned.T).square().sum() / target.square().sum()
    assert error == pytest.approx(float(direct), rel=1e-4)


@EACH_GAP
@pytest.mark.parametrize("with_bias", [True, False])
def test_error_against_the_target_with_a_bias(case, kind, with_bias):
    case |= {"pruned": case["pruned"] + 0.5, "dense": case["dense"] + 0.8}  # or a bias would hardly matter
    parts_of_gap = gaps(case, parts=3)
    gap, target = parts_of_gap[kind], parts_of_gap[kind + 2]
    pruned = case["weight"] * (torch.rand(ROWS, COLUMNS) < 0.5)
    bias = torch.randn(ROWS) if with_bias else None
    output = case["pruned"] @ pruned.T + (0 if bias is None else bias)
    error = target_error_with_bias(case["weight"], pruned, bias, gap.of(case["weight"]), statistics_of(case["pruned"]))
    direct = (target - output).square().sum() / target.square().sum()
    assert error == pytest.approx(float(direct), rel=1e-4)


@EACH_GAP
def test_without_damping_it_is_the_least_squares_solution(case, kind):
    gap = gaps(case)
    corrected, used = corrected_weight(case["weight"], statistics_of(case["pruned"]), gap[kind], 0.0)
    best = torch.linalg.lstsq(case["pruned"], gap[kind + 2]).solution.T
    torch.testing.assert_close(corrected, best, rtol=1e-3, atol=1e-4)
    assert used == 0


def test_every_mask_has_the_same_loss_by_target_and_by_corrected_weight(case):
    """‖T − XŴᵀ‖² − ‖T − XW*ᵀ‖² = tr((W* − Ŵ) H (W* − Ŵ)ᵀ), which is why methods prune W* as if it were W."""
    gap, _, target, _ = gaps(case)
    hessian = statistics_of(case["pruned"]).hessian
    best, _ = corrected_weight(case["weight"], statistics_of(case["pruned"]), gap, 0.0)
    for seed in range(3):
        mask = torch.rand(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed)) < 0.5
        pruned = best.masked_fill(mask, 0)
        loss = [(target - case["pruned"] @ weight.T).square().sum() for weight in (pruned, best)]
        change = best - pruned
        assert float(loss[0] - loss[1]) == pytest.approx(float((change @ hessian * change).sum()), rel=1e-3)


def test_damping_shrinks_the_correction_to_zero(case):
    gap, _, _, _ = gaps(case)
    statistics = statistics_of(case["pruned"])
    sizes = [
        float((corrected_weight(case["weight"], statistics, gap, mu)[0] - case["weight"]).norm())
        for mu in (0.0, 0.1, 1.0, 10.0, 1e6)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 1e-4 * sizes[0]


def test_dead_columns_and_weights_without_a_gap_are_unchanged(case):
    for name in ("pruned", "dense"):
        case[name][:, 3] = 0
    statistics = statistics_of(case["pruned"])
    corrected, _ = corrected_weight(case["weight"], statistics, gaps(case)[0], 0.1)
    torch.testing.assert_close(corrected[:, 3], case["weight"][:, 3])
    unchanged, _ = corrected_weight(case["weight"], statistics, gaps(case | {"dense": case["pruned"]})[0], 0.1)
    assert torch.equal(unchanged, case["weight"])


@EACH_GAP
def test_rounding_of_products_is_far_below_sampling_noise(case, kind):
    exact, rounded = (gaps(case, 3, dtype)[kind] for dtype in (torch.float32, torch.bfloat16))
    assert rounded.cross.dtype == torch.float32
    assert rounded.of(case["weight"]).square == pytest.approx(exact.of(case["weight"]).square, rel=2e-3)
    half = gaps({name: value[: TOKENS // 2] if len(value) == TOKENS else value for name, value in case.items()})[kind]
    off, sampling = rounded.cross - exact.cross, 2 * half.cross - exact.cross
    assert 0 < off.norm() < 0.01 * sampling.norm()


def test_inputs_in_bfloat16_are_subtracted_before_they_are_rounded_again(case):
    case |= {name: case[name].bfloat16().float() for name in ("pruned", "dense")}
    narrow = {name: case[name].bfloat16() for name in ("pruned", "dense")}
    for dtype in (torch.float32, torch.bfloat16):
        expected, gap = InputGap(COLUMNS, dtype=dtype), InputGap(COLUMNS, dtype=dtype)
        expected.update(case["pruned"], case["dense"])
        gap.update(narrow["pruned"], narrow["dense"])
        assert torch.equal(expected.cross, gap.cross)
        assert torch.equal(expected.difference.hessian, gap.difference.hessian)


def test_damping_falls_as_theory_says_with_many_tokens_and_faster_with_few():
    least = correction_damping(1, 10**9)

    def slope(tokens: int) -> float:
        damping, of_twice = (correction_damping(100, number, 30) - least for number in (tokens, 2 * tokens))
        return math.log2(damping / of_twice)

    assert slope(12800) == pytest.approx(1, abs=0.01)
    assert slope(800) == pytest.approx(1.2, abs=0.1)
    assert slope(10) == pytest.approx(3, abs=0.01)
    sweep = rose.prune_layer(torch.randn(8, 8), torch.eye(8), method="rose", sparsity=0.5).damping
    assert correction_damping(64, 10**9) == pytest.approx(3 * sweep, rel=1e-4)  # with any number of tokens some is left


def test_decoder_blocks_count_as_tokens_do():
    """The noise of a correction is read by those above it."""
    assert correction_damping(576, 1024, 30) > 1 > correction_damping(576, 32768, 30) > 0
    assert correction_damping(576, 2048, 30) == pytest.approx(correction_damping(576, 1024, 15))
    assert correction_damping(576, 2048, 30) > 5 * correction_damping(576, 2048, 6)


def test_sums_over_processes_discard_earlier_solutions(case):
    gap = InputGap(COLUMNS)
    gap.update(case["pruned"], case["pruned"] + 1)
    hessian = statistics_of(case["pruned"]).hessian
    alone, _ = gap.correction(case["weight"], hessian, 0.1)
    gap.sum_over(lambda tensor: tensor.mul_(2))
    torch.testing.assert_close(gap.correction(case["weight"], hessian, 0.1)[0], 2 * alone)


def test_the_square_of_a_gap_is_summed_in_double():
    gap = OutputGap(ROWS, COLUMNS)
    large = torch.ones(TOKENS, ROWS)
    large[0, 0] = 1e5
    gap.update(torch.zeros(TOKENS, COLUMNS), large)
    assert float(gap.square) == 1e10 + TOKENS * ROWS - 1
