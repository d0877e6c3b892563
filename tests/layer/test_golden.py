"""Results match the paper's worked example and the authors' programs."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import rose
from rose.layer.error import direct_error, quadratic_form
from rose.layer.order import plan_from_importance, visited_blocks

FIXTURES = Path(__file__).parent.parent / "fixtures"
EXAMPLE = json.loads((FIXTURES / "worked_example.json").read_text())
CASES = ["columnar_50", "columnar_70", "flat_60", "nm_2_4"]


@dataclass(frozen=True)
class Case:
    weight: Tensor
    statistics: rose.InputStatistics
    inputs: Tensor
    block_size: int
    sparsity: float | str
    relative_range: float
    permutation: Tensor
    pruned: dict[str, Tensor]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    with np.load(FIXTURES / "official_cases.npz") as archive:
        fields = {key.split("/")[1]: archive[key] for key in archive if key.startswith(request.param + "/")}
    weight = torch.from_numpy(fields["W"])
    inputs = torch.from_numpy(fields["X"])
    statistics = rose.InputStatistics(weight.shape[1])
    statistics.update(inputs)
    block_size = int(fields["block_size"])
    sparsity: float | str = f"{int(fields['prune_n'])}:{int(fields['prune_m'])}"
    if not fields["prune_n"]:
        # Their threshold is inclusive: one weight more per block than floor(size · sparsity).
        size = weight.shape[0] * block_size
        sparsity = (int(size * float(fields["sparsity"])) + 1) / size
    return Case(
        weight,
        statistics,
        inputs,
        block_size,
        sparsity,
        float(fields["relative_range"]),
        torch.from_numpy(fields["permutation"]).long(),
        {method: torch.from_numpy(fields[f"{method}_W"]) for method in ("rose", "sparsegpt")},
    )


@pytest.mark.parametrize("method", ["rose", "sparsegpt"])
def test_results_match_the_official_program(case, method):
    result = rose.prune_layer(
        case.weight, case.statistics, method=method, sparsity=case.sparsity, block_size=case.block_size
    )
    theirs = case.pruned[method]
    assert (result.mask == (theirs == 0)).float().mean() >= 0.999
    survives = ~result.mask & (theirs != 0)
    assert (result.weight - theirs)[survives].abs().max() <= 1e-3 * theirs.abs().max()
    natural = torch.arange(case.weight.shape[1])
    expected = natural if method == "sparsegpt" or isinstance(case.sparsity, str) else case.permutation
    assert torch.equal(result.order.permutation, expected)
    # Their weights through our meters, and through the tokens.
    change, inputs = case.weight - theirs, case.inputs
    assert quadratic_form(change, case.statistics.hessian) == pytest.approx(
        direct_error(case.weight, theirs, inputs), rel=1e-4
    )
    dense = direct_error(case.weight, torch.zeros_like(case.weight), inputs)
    assert result.relative_error == pytest.approx(direct_error(case.weight, theirs, inputs) / dense, rel=1e-3)


@pytest.mark.parametrize("case", CASES[:3], indirect=True)  # under N:M their program does not reorder
def test_orders_match_the_official_program(case):
    plan = rose.plan_order(case.weight, case.statistics, sparsity=case.sparsity, block_size=case.block_size)
    assert plan.relative_range == pytest.approx(case.relative_range, abs=1e-6)
    assert plan.is_columnar == (case.relative_range > 0.5)
    assert torch.equal(plan.permutation, case.permutation)


def example_plans() -> list[rose.OrderPlan]:
    """The example's importance as it stands, and as a weight whose inputs are all of size one."""
    score = torch.tensor(EXAMPLE["importance"])
    options = {"sparsity": EXAMPLE["sparsity"], "block_size": EXAMPLE["block_size"]}
    signs = torch.tensor([1.0, -1.0]).repeat(18).view(4, 9)
    return [plan_from_importance(score, **options), rose.plan_order(score * signs, torch.eye(9), **options)]


@pytest.mark.parametrize("plan", example_plans())
def test_worked_example_matches_to_the_printed_digit(plan):
    assert [round(x, 1) for x in plan.column_loss.tolist()] == EXAMPLE["column_loss"]
    assert [round(x, 1) for x in plan.block_loss.tolist()] == EXAMPLE["block_loss"]
    assert (plan.permutation + 1).tolist() == EXAMPLE["permutation_one_based"]
    assert visited_blocks(plan, plan.order) == [2, 0, 1]
    assert plan.is_columnar
    assert plan.relative_range == pytest.approx((11.6 - 2.6) / 11.6, abs=1e-6)
    removed_per_block = [int((block > 0).sum()) for block in plan.potential_loss.split(3, dim=1)]
    assert removed_per_block == [EXAMPLE["pruned_per_block"]] * 3
